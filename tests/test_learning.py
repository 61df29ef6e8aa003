"""Attacks that learn: what they learn from, what they never see, and what they make of it."""

import logging
from dataclasses import replace

import leaky
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mico_exp import formulas
from mico_exp.calibration import calibrate
from mico_exp.cell import evaluate
from mico_exp.errors import InputError
from mico_exp.evidence import Scores
from mico_exp.features import FORMS, NormalScores, forms, table
from mico_exp.learning import Quantile, Stack, StackSearch, cross_fit, folds_of
from mico_exp.scoring import roc

STACK, SEARCH = Stack(folds=4), StackSearch(cs=(0.01, 0.1), folds=3, inner=2)
QUANTILE = Quantile(folds=3)


@pytest.fixture(scope="module")
def world():
    return leaky.evidence({"strong": 1.0, "weak": 0.5, "noise": 0.0})


def only(evidence, name):
    return replace(evidence, scores={name: evidence.scores[name]})


def test_folds_are_of_models_and_alike_in_size():
    fold = folds_of(23, 4)
    assert sorted(np.bincount(fold)) == [5, 6, 6, 6]
    assert np.array_equal(fold, folds_of(23, 4))


@pytest.mark.parametrize("folds", [1, 0, 25, 2.0, True])
def test_fewer_models_than_folds(world, folds):
    for attack in (Stack(folds=folds), StackSearch(folds=folds), Quantile(folds=folds)):
        evidence = world[0] if isinstance(attack, Stack) else only(world[0], "weak")
        with pytest.raises(InputError, match="`folds` must be a whole number from 2 to the number"):
            attack(evidence)


def test_cross_fitting_by_hand():
    """What is learnt here is the mean of the features; its prediction is that mean."""
    features = {phase: np.random.default_rng(0).normal(size=(9, 2, 3)) for phase in ("train", "x")}

    def fit(some, solution):
        assert some.shape[:-1] == solution.shape
        return lambda others: np.full(others.shape[:-1], some.mean())

    found = cross_fit(features, np.zeros((9, 2), dtype=bool), fit, folds=4)
    fold = folds_of(9, 4)
    for row in range(9):
        assert (found["train"][row] == features["train"][fold != fold[row]].mean()).all()
    assert (found["x"] == features["train"].mean()).all()


@pytest.mark.parametrize("attack", [STACK, SEARCH], ids=["stack", "search"])
def test_no_model_is_scored_by_its_own_answers(world, attack):
    """Turning round a model's answers leaves what is learnt of it by the others alone.

    Its features are left as they are: only what the learner is told of it changes.
    """
    evidence, _ = world
    solution = evidence.points.solution.copy()
    solution[7] = ~solution[7]
    changed = replace(evidence, points=replace(evidence.points, solution=solution))
    before, after = attack(evidence)["train"].scores, attack(changed)["train"].scores
    fold = folds_of(24, attack.folds)
    same = fold == fold[7]
    assert np.array_equal(before[same], after[same])
    assert not np.isclose(before[~same], after[~same]).all()


def test_a_stack_is_logistic_regression_on_normal_quantiles(world):
    evidence, _ = world
    names, features = table(evidence)
    ranks = NormalScores(features["train"], names)
    train, dev = ranks(features["train"]), ranks(features["dev"])
    fold, found = folds_of(24, 4), STACK(evidence)
    for some, others, asked in (
        (fold != 2, train[fold == 2], found["train"].scores[fold == 2]),
        (fold >= 0, dev, found["dev"].scores),
    ):
        model = LogisticRegression(C=0.03, tol=1e-8, max_iter=1000)
        model.fit(train[some].reshape(-1, train.shape[-1]), evidence.points.solution[some].ravel())
        flat = others.reshape(-1, train.shape[-1])
        share = evidence.points.solution[some].mean()  # the odds of which are taken out
        expected = model.decision_function(flat) - np.log(share / (1 - share))
        np.testing.assert_allclose(asked, expected.reshape(asked.shape), atol=1e-3)


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
    found = dict(zip(FORMS, forms(scores.own["dev"][0], shadow, is_in, ~is_in).T, strict=True))
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


def test_a_feature_that_is_all_nan_is_left_out_with_a_warning(world, caplog):
    evidence, _ = world
    with caplog.at_level(logging.WARNING):
        found = STACK(with_nan(evidence, "weak"))
    assert "8 features have no finite value: ('weak', 'midpoint')" in caplog.text
    kept = {name: one for name, one in evidence.scores.items() if name != "weak"}
    expected = STACK(replace(evidence, scores=kept))
    for phase in ("train", "dev"):
        np.testing.assert_allclose(found[phase].scores, expected[phase].scores, atol=1e-9)


def test_only_features_that_are_all_nan(world):
    with pytest.raises(InputError, match="No feature of the train models has a finite value"):
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
    (_, before), (_, after) = table(evidence), table(broken)
    assert np.isnan(after["dev"][1, 3]).all()
    centred = FORMS.index("centred")
    rest = np.delete(np.arange(30), 3)
    plain = FORMS.index("midpoint")
    expected = before["dev"][1, rest, plain] - before["dev"][1, rest, plain].mean()
    np.testing.assert_allclose(after["dev"][1, rest, centred], expected, atol=1e-12)


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
        (lambda: Stack(c=0), "`c` must be above 0, got 0"),
        (lambda: StackSearch(cs=()), "`cs` must name at least one"),
        (lambda: StackSearch(cs=(1.0, -1.0)), "`cs` must be above 0, got -1.0"),
        (lambda: Quantile(alpha=1.0), r"`alpha` must be in \(0, 1\), got 1.0"),
    ],
)
def test_arguments_out_of_range(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_quantile_takes_one_metric(world):
    with pytest.raises(InputError, match="One metric is needed, got strong, weak, noise"):
        QUANTILE(world[0])
