"""Attacks that learn: what they learn from, what they never see, and what they make of it."""

import logging
from dataclasses import replace

import leaky
import numpy as np
import pytest
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression

from mico_exp.attacks import formulas
from mico_exp.attacks.calibration import calibrate
from mico_exp.attacks.features import FORMS, Forms, NormalScores, forms
from mico_exp.attacks.folds import Folds
from mico_exp.attacks.learned import Quantile, Stack, StackSearch
from mico_exp.attacks.sides import side
from mico_exp.common.errors import InputError
from mico_exp.results.cell import evaluate
from mico_exp.results.scoring import roc
from mico_exp.scores.table import Scores

STACK, SEARCH = Stack(folds=4), StackSearch(cs=(0.01, 0.1), folds=4, inner=2)
QUANTILE = Quantile(folds=3)


@pytest.fixture(scope="module")
def world():
    return leaky.evidence({"strong": 1.0, "weak": 0.5, "noise": 0.0})


def only(evidence, name):
    return replace(evidence, scores={name: evidence.scores[name]})


@pytest.mark.parametrize("folds", [1, 2, 0, 25, 2.0, True])
def test_fewer_models_than_folds(world, folds):
    for attack in (Stack(folds=folds), Quantile(folds=folds)):
        evidence = world[0] if isinstance(attack, Stack) else only(world[0], "weak")
        with pytest.raises(InputError, match="`folds` must be a whole number from 3 to "):
            attack(evidence)
    with pytest.raises(InputError, match="`folds` must be a whole number of at least 4"):
        StackSearch(folds=3)(world[0])
    with pytest.raises(InputError, match="`inner` must be a whole number from 1 to 4, got 5"):
        StackSearch(folds=5, inner=5)(world[0])


@pytest.mark.parametrize("attack", [STACK, SEARCH, QUANTILE], ids=["stack", "search", "quantile"])
def test_no_model_is_scored_by_its_own_membership(world, attack):
    """Turning round a model's membership moves other folds' scores, and none of its own fold."""
    evidence = only(world[0], "weak") if attack is QUANTILE else world[0]
    is_member, solution = (part.copy() for part in shown(evidence))
    is_member[7], solution[7] = ~is_member[7], ~solution[7]
    points = replace(evidence.points, is_member=is_member, solution=solution)
    before = attack(evidence)["train"].scores
    after = attack(replace(evidence, points=points))["train"].scores
    of_model = Folds.of(evidence.points, attack.folds).of_model
    same = of_model == of_model[7]
    assert np.array_equal(before[same], after[same])
    assert not np.isclose(before[~same], after[~same]).all()


def shown(evidence):
    return evidence.points.is_member, evidence.points.solution


def test_a_stack_is_logistic_regression_on_normal_quantiles(world):
    """One fold of models at one fold of points, and dev, put together by hand."""
    evidence, _ = world
    folds, found = Folds.of(evidence.points, 4), STACK(evidence)
    described = Forms(evidence, folds)
    solution, columns = evidence.points.solution, evidence.points.columns("train")

    def expected(hidden, point_fold, phase, targets):
        kept = [g for g in range(4) if g not in hidden]
        rows = [described("train", folds.models(g), frozenset({*hidden, g})) for g in kept]
        rows = np.concatenate([one.reshape(-1, one.shape[-1]) for one in rows])
        told = np.concatenate([solution[folds.models(g)].ravel() for g in kept])
        where = np.concatenate([columns[folds.models(g)].ravel() for g in kept])
        use = folds.of_point[where] != point_fold
        ranks = NormalScores(rows)
        model = LogisticRegression(C=0.03, tol=1e-8, max_iter=1000).fit(ranks(rows)[use], told[use])
        share = told[use].mean()  # the odds of which are taken out
        turns = []
        for g in kept:
            asked = described(phase, targets, frozenset({*hidden, g}))
            flat = model.decision_function(ranks(asked.reshape(-1, asked.shape[-1])))
            turns.append(flat.reshape(asked.shape[:-1]) - np.log(share / (1 - share)))
        return np.mean(turns, axis=0)

    targets = folds.models(2)
    here = folds.of_point[columns[targets]] == 1
    some = expected({2}, 1, "train", targets)
    np.testing.assert_allclose(found["train"].scores[targets][here], some[here], atol=1e-3)
    every = expected(set(), None, "dev", np.arange(6))
    np.testing.assert_allclose(found["dev"].scores, every, atol=1e-3)


@pytest.mark.parametrize("attack", [STACK, SEARCH], ids=["stack", "search"])
def test_a_stack_is_better_than_each_metric_alone(attack):
    evidence, truth = leaky.evidence({"one": 0.7, "other": 0.7}, models=40, points=60, targets=20)
    found = evaluate(evidence, attack, {"dev": truth})
    for name in ("one", "other"):
        alone = evaluate(only(evidence, name), formulas.lira_shrunk, {"dev": truth})
        for figure in ("val/auc", "dev/auc"):
            assert found.figures[figure] > alone.figures[figure] + 0.02
    assert abs(found.figures["val/auc"] - found.figures["dev/auc"]) < 0.06


def test_noise_teaches_nothing():
    """With no leak at all, validation is as good as guessing: no answer has got through."""
    found = []
    for seed in range(6):
        evidence, _ = leaky.evidence({"a": 0.0, "b": 0.0}, seed=seed)
        scores = Stack(c=10.0, folds=6)(evidence)["train"].scores
        found.append(roc(evidence.points.solution, scores).auc)
    assert abs(np.mean(found) - 0.5) < 0.03


def test_the_forms_are_the_formulas(world):
    evidence, _ = world
    scores = evidence.scores["strong"]
    place = evidence.points.is_member, evidence.points.columns("dev")
    columns = place[1][0]
    shadow = scores.shadow[:, columns]
    is_in = evidence.points.is_member[:, columns]
    sides = side(shadow, is_in), side(shadow, ~is_in)
    found = dict(zip(FORMS, forms(scores.own["dev"][0], *sides).T, strict=True))
    for form, formula in {
        "midpoint": formulas.offset,
        "in_mean": lambda *w: formulas.offset(*w, w=1.0),
        "out_mean": lambda *w: formulas.offset(*w, w=0.0),
        "standardized": lambda *w: formulas.offset(*w, k=1.0, scale="shrunk"),
        "log_ratio": formulas.lira_online,
        "shrunk": formulas.lira_shrunk,
    }.items():
        expected = calibrate(formula, scores.own["dev"], scores.shadow, *place).scores[0]
        np.testing.assert_allclose(found[form], expected, atol=1e-9, err_msg=form)
    assert found["centred"].mean() == pytest.approx(0, abs=1e-12)


def with_nan(evidence, name, value=np.nan):
    scores = evidence.scores[name]
    broken = Scores(
        np.full_like(scores.shadow, value),
        {phase: np.full_like(own, value) for phase, own in scores.own.items()},
    )
    return replace(evidence, scores={**evidence.scores, name: broken})


def test_a_metric_that_is_all_nan_teaches_nothing_with_a_warning(world, caplog):
    evidence, _ = world
    with caplog.at_level(logging.WARNING):
        found = STACK(with_nan(evidence, "weak"))
    assert "Metrics without a finite score teach nothing: weak" in caplog.text
    kept = {name: one for name, one in evidence.scores.items() if name != "weak"}
    expected = STACK(replace(evidence, scores=kept))
    for phase in ("train", "dev"):
        np.testing.assert_allclose(found[phase].scores, expected[phase].scores, atol=1e-9)


def test_only_metrics_that_are_all_nan(world):
    with pytest.raises(InputError, match="No metric has a finite score under any train model"):
        STACK(with_nan(only(world[0], "weak"), "weak"))


@pytest.mark.parametrize("attack", [STACK, SEARCH], ids=["stack", "search"])
def test_constant_scores_give_the_same_to_all(world, attack):
    evidence = with_nan(only(world[0], "weak"), "weak", 0.4)
    for one in attack(evidence).values():
        assert np.ptp(one.scores) < 1e-6


@pytest.mark.parametrize("attack", [STACK, SEARCH, QUANTILE], ids=["stack", "search", "quantile"])
def test_points_without_out_models_are_scored_too(world, attack):
    evidence = only(world[0], "strong")
    everyone = np.ones_like(evidence.points.is_member)
    found = attack(replace(evidence, points=replace(evidence.points, is_member=everyone)))
    assert all(np.isfinite(one.scores).all() for one in found.values())
    assert found["dev"].fallback_rate == 1.0


def test_a_single_point_without_a_score_leaves_the_others_as_they_are(world):
    """An infinite score is none; the mean that `centred` takes out is of the others alone."""
    evidence = only(world[0], "strong")
    scores = evidence.only
    own = {phase: values.copy() for phase, values in scores.own.items()}
    own["dev"][1, 3] = np.inf
    broken = replace(evidence, scores={"strong": replace(scores, own=own)})
    folds = Folds.of(evidence.points, 3)
    before, after = (
        Forms(one, folds)("dev", np.array([1]), frozenset({0}))[0] for one in (evidence, broken)
    )
    assert np.isnan(after[3]).all()
    rest = np.delete(np.arange(30), 3)
    plain = before[rest, FORMS.index("midpoint")]
    np.testing.assert_allclose(
        after[rest, FORMS.index("centred")], plain - plain.mean(), atol=1e-12
    )


def test_normal_scores_are_the_normal_quantiles_of_ranks():
    random = np.random.default_rng(0)
    learnt = random.exponential(size=(5000, 2))
    learnt[:1000, 1] = 0.25  # a fifth is tied
    scores = NormalScores(learnt)
    found = scores(learnt)
    rank = (rankdata(learnt[:, 0]) - 0.5) / len(learnt)
    expected = norm.ppf(rank)
    inner = np.abs(expected) < 2.5
    np.testing.assert_allclose(found[inner, 0], expected[inner], atol=0.03)
    assert (np.diff(found[np.argsort(learnt[:, 0]), 0]) >= 0).all()
    share = (learnt[:, 1] < 0.25).mean(), (learnt[:, 1] <= 0.25).mean()
    (tied,) = set(found[:1000, 1])
    assert norm.ppf(share[0]) < tied < norm.ppf(share[1])
    beyond = scores(np.array([[99.0, np.nan], [-1.0, np.inf], [np.median(learnt[:, 0]), 0.25]]))
    np.testing.assert_allclose(beyond, [[4, 0], [-4, 0], [0, tied]], atol=1e-3)


def test_a_target_without_scores_says_neither(world):
    evidence = only(world[0], "strong")
    scores = evidence.only
    own = {phase: values.copy() for phase, values in scores.own.items()}
    own["dev"][2] = np.nan
    evidence = replace(evidence, scores={"strong": replace(scores, own=own)})
    for attack in (STACK, QUANTILE):
        found = attack(evidence)["dev"].scores
        assert np.ptp(found[2]) == 0
        assert found.min() < found[2, 0] < found.max()


def test_a_quantile_is_passed_by_as_many_others_as_asked():
    """Of non-members that took no part, a share α lies above 1 − α quantile."""
    evidence, truth = leaky.evidence({"one": 0.8}, models=80, points=80, unique=300, targets=40)
    found = Quantile(alpha=0.2)(evidence)
    for phase, known in (("train", evidence.points.solution), ("dev", truth)):
        above = found[phase].scores > 0
        assert above[~known].mean() == pytest.approx(0.2, abs=0.06)
        assert above[known].mean() > above[~known].mean() + 0.1


def test_a_quantile_never_sees_members(world):
    """Whatever the members score, non-members are judged alike."""
    evidence = only(world[0], "strong")
    solution, scores = evidence.points.solution, evidence.only
    higher = {**scores.own, "train": scores.own["train"] + 100 * solution}
    changed = replace(evidence, scores={"strong": replace(scores, own=higher)})
    before, after = QUANTILE(evidence), QUANTILE(changed)
    assert np.array_equal(before["train"].scores[~solution], after["train"].scores[~solution])
    assert np.array_equal(before["dev"].scores, after["dev"].scores)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stack(c=0), "`c` must be a finite number above 0, got 0"),
        (lambda: StackSearch(cs=()), "`cs` must name at least one"),
        (lambda: StackSearch(cs=(1.0, -1.0)), "`cs` must be a finite number above 0, got -1.0"),
        (lambda: Quantile(alpha=1.0), r"`alpha` must be a number in \(0, 1\), got 1.0"),
    ],
)
def test_arguments_out_of_range(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_quantile_takes_one_metric(world):
    with pytest.raises(InputError, match="One metric is needed, got strong, weak, noise"):
        QUANTILE(world[0])


def test_a_quantile_of_a_metric_that_is_all_nan(world):
    with pytest.raises(InputError, match="No metric has a finite score under any train model"):
        QUANTILE(with_nan(only(world[0], "strong"), "strong"))


def test_a_quantile_of_members_alone_teaches_nothing():
    features = np.random.default_rng(0).normal(size=(100, 7))
    predict = Quantile()._fit(features, np.ones(100, dtype=bool))
    assert np.array_equal(predict(features[:5]), np.zeros(5))
