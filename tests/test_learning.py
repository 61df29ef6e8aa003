"""Attacks that learn: what they learn from, what they never see, and what they make of it."""

import logging
from dataclasses import replace
from functools import cache, partial
from itertools import product

import leaky
import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression

from mico_exp.attacks import formulas
from mico_exp.attacks.calibration import calibrate
from mico_exp.attacks.features import FORMS, Forms, NormalScores, forms
from mico_exp.attacks.folds import Folds
from mico_exp.attacks.learned import Logistic, Quantile, Stack, StackSearch, _Described
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


@pytest.mark.parametrize("folds", [1, 2, 0, 2.0, True])
def test_too_few_folds(world, folds):
    for attack in (Stack(folds=folds), Quantile(folds=folds)):
        evidence = world[0] if isinstance(attack, Stack) else only(world[0], "weak")
        with pytest.raises(InputError, match="`folds` must be a whole number of at least 3"):
            attack(evidence)
    with pytest.raises(InputError, match="`folds` must be a whole number of at least 4"):
        StackSearch(folds=3)(world[0])
    with pytest.raises(InputError, match="`inner` must be a whole number from 1 to 4, got 5"):
        StackSearch(folds=5, inner=5)(world[0])
    with pytest.raises(InputError, match="`inner` must be a whole number from 1 to 4, got 0"):
        StackSearch(folds=5, inner=0)(world[0])


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


@pytest.mark.parametrize("apart", [False, True], ids=["shared points", "own points"])
def test_a_search_takes_what_loses_least_on_folds_held_out(apart):
    """Some folds at all folds of points, and dev: each choice made anew, put together by hand."""
    size = {"models": 12, "targets": 2, "points": 12, "unique": 168 if apart else 50}
    evidence, _ = leaky.evidence({"one": 0.6}, **size, shared=not apart)
    folds = Folds.of(evidence.points, 4)
    assert folds.point_folds == (1 if apart else 2)
    described = Forms(evidence, folds)
    solution, columns = evidence.points.solution, evidence.points.columns("train")
    few = [FORMS.index(form) for form in ("midpoint", "centred", "shrunk")]
    tried = [(use, c) for use in (list(range(len(FORMS))), few) for c in (1e-2, 1e-1, 1.0)]

    def flat(values, kept):
        return np.concatenate([values[folds.models(g)].ravel() for g in kept])

    @cache
    def taught(hidden):
        """Folds that are learnt from, quantiles of their rows, membership, folds of points."""
        kept = [g for g in range(4) if g not in hidden]
        rows = [described("train", folds.models(g), hidden | {g}).reshape(-1, 8) for g in kept]
        ranks = NormalScores(np.concatenate(rows))
        told = flat(solution, kept), flat(folds.of_point[columns], kept)
        return kept, ranks, ranks(np.concatenate(rows)), *told

    @cache
    def asked(hidden, phase, fold):
        """Quantiles of rows that are scored, described in turn without one more fold."""
        kept, ranks, *_ = taught(hidden)
        targets = folds.models(fold) if phase == "train" else np.arange(2)
        return [ranks(described(phase, targets, hidden | {g}).reshape(-1, 8)) for g in kept]

    def scores(hidden, point_fold, phase, fold, use, c):
        """By what all folds but the hidden ones teach at points of other folds, if there are."""
        *_, rows, told, where = taught(hidden)
        some = (where != point_fold) | apart
        model = LogisticRegression(C=c, solver="newton-cholesky").fit(
            rows[some][:, use], told[some]
        )
        turns = [model.decision_function(one[:, use]) for one in asked(hidden, phase, fold)]
        return np.mean(turns, axis=0) - logit(told[some].mean())

    def expected(hidden, point_fold, phase, fold=None):
        def loss(trial, *one):
            z = scores(hidden | {trial}, point_fold, "train", trial, *one)
            some = (flat(folds.of_point[columns], [trial]) != point_fold) | apart
            return np.logaddexp(0, np.where(flat(solution, [trial]), -z, z))[some].mean()

        trials = [g for g in range(4) if g not in hidden][:2]
        losses = [sum(loss(g, *one) for g in trials) for one in tried]
        return scores(hidden, point_fold, phase, fold, *tried[int(np.argmin(losses))])

    found = StackSearch((1e-2, 1e-1, 1.0), folds=4, inner=2)(evidence)
    for fold, point_fold in product((1, 2), range(folds.point_folds)):
        targets = folds.models(fold)
        here = (folds.of_point[columns[targets]] == point_fold).ravel()
        some = expected(frozenset({fold}), point_fold, "train", fold)
        np.testing.assert_allclose(flat(found["train"].scores, [fold])[here], some[here], atol=1e-6)
    some = expected(frozenset(), None, "dev")
    np.testing.assert_allclose(found["dev"].scores.ravel(), some, atol=1e-6)


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
        "bayesian": partial(formulas.lira_online, variance="bayesian"),
        "shrunk": formulas.lira_shrunk,
    }.items():
        expected = calibrate(formula, scores.own["dev"], scores.shadow, *place).scores[0]
        np.testing.assert_allclose(found[form], expected, atol=1e-9, err_msg=form)
    assert found["centred"].mean() == pytest.approx(0, abs=1e-12)


def test_forms_where_a_side_is_missing():
    """Its mean lies as far from the other's as that of the point which has both, by hand."""
    shadow = np.array([[1.0, 0, 5], [2, 4, 3], [3, 2, 1], [6, 2, 1]])
    is_in = np.array([[False, True, True], [False, True, True], [False, True, False], [False] * 3])
    is_out = ~is_in & (np.arange(3) != 1)  # point 0 has no in model, point 1 no out model
    score = np.array([2.0, 4.0, 3.5])
    found = dict(zip(FORMS, forms(score, side(shadow, is_in), side(shadow, is_out)).T, strict=True))
    above, below = np.array([3 + 3.0, 2, 4]), np.array([3, 2 - 3.0, 1])  # the gap is 4 − 1
    np.testing.assert_allclose(found["in_mean"], score - above)
    np.testing.assert_allclose(found["out_mean"], score - below)
    np.testing.assert_allclose(found["midpoint"], score - (above + below) / 2)
    squares, freedom = np.array([14.0, 8, 2]), np.array([3, 2, 2])
    variance = (squares + 10 * squares.sum() / freedom.sum()) / (freedom + 10)
    expected = (score - (above + below) / 2) / np.sqrt(variance)
    np.testing.assert_allclose(found["standardized"], expected)


def test_every_feature_is_its_metric_in_its_form_whatever_else_is_asked(world):
    evidence, _ = world
    folds, asked = Folds.of(evidence.points, 4), ("dev", np.array([1, 3, 4]), frozenset({2}))
    described = Forms(evidence, folds)
    together = described(*asked)
    assert len(described.names) == together.shape[-1] == 3 * len(FORMS)
    for name in evidence.scores:
        alone = Forms(only(evidence, name), folds)
        for row, target in enumerate(asked[1]):
            one = alone(asked[0], np.array([target]), asked[2])[0]
            for place, form in enumerate(FORMS):
                feature = together[row, :, described.names.index((name, form))]
                np.testing.assert_allclose(feature, one[:, place], atol=1e-12)


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


def test_a_train_model_without_scores_teaches_nothing_and_is_no_reason_to_stop(caplog):
    """It lies in the middle of what the others give, and they are described without it."""
    evidence, _ = leaky.evidence({"strong": 1.0}, models=9, targets=2, points=12, unique=40)
    scores, out = evidence.only, 5
    own = {**scores.own, "train": scores.own["train"].copy()}
    own["train"][out] = np.nan
    shadow = scores.shadow.copy()
    shadow[out] = np.nan
    evidence = replace(evidence, scores={"strong": Scores(shadow, own)})
    for attack in (STACK, QUANTILE):
        found = attack(evidence)["train"].scores
        assert np.isfinite(found).all()
        assert np.delete(found, out, axis=0).min() < found[out].min()
        assert found[out].max() < np.delete(found, out, axis=0).max()
    assert not caplog.records


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


def test_what_is_learnt_tells_how_many_out_models_there_were(world):
    """Beside the target itself, which has none of its own in validation."""
    evidence = only(world[0], "weak")
    is_member = np.arange(24)[:, None] >= np.arange(150) % 5  # 0 … 4 out models
    points = replace(evidence.points, is_member=is_member)
    found = STACK(replace(evidence, points=points))
    for phase in ("train", "dev"):
        columns = points.columns(phase)
        few = 0
        for target, point in np.ndindex(columns.shape):
            outside = {s for s in range(24) if not is_member[s, columns[target, point]]}
            count = len(outside - {target} if phase == "train" else outside)
            assert found[phase].out_models[target, point] == count
            few += count < 2
        assert found[phase].fallback_rate == few / columns.size


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


def test_a_point_without_a_score_is_known_by_none_of_its_forms_even_without_spread(world):
    """Forms are 0 where all shadow models agree, but not of a score that is not there."""
    evidence = with_nan(only(world[0], "weak"), "weak", 0.4)
    evidence.only.own["dev"][1, 3] = np.nan
    found = Forms(evidence, Folds.of(evidence.points, 3))("dev", np.array([1]), frozenset({0}))[0]
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()


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
    assert tied == pytest.approx(np.mean(norm.ppf(share)), abs=0.03)  # and between its two ends
    with_gaps = np.concatenate([learnt, np.full((5000, 2), np.nan), np.full((9, 2), np.inf)])
    assert np.array_equal(NormalScores(with_gaps)(learnt), found)
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
        (lambda: Quantile(alpha=0.0), r"`alpha` must be a number in \(0, 1\), got 0.0"),
        (lambda: Quantile(alpha="0.1"), r"`alpha` must be a number in \(0, 1\), got '0.1'"),
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


@pytest.mark.parametrize("is_member", [True, False])
def test_a_stack_of_one_class_teaches_nothing(is_member):
    features = np.random.default_rng(0).normal(size=(50, 3))
    predict = Logistic(1.0)(features, np.full(50, is_member))
    assert np.array_equal(predict(features[:5]), np.zeros(5))


def test_what_a_quantile_is_told_of_a_point_by_plain_loops(world):
    """Its class, of which trees take 255, and its shadow models outside the hidden folds."""
    evidence = only(world[0], "strong")
    labels = np.arange(150) * 3
    is_member = evidence.points.is_member & (np.arange(150) % 4 > 0) | (np.arange(150) % 5 == 0)
    points = replace(evidence.points, is_member=is_member)
    evidence = replace(evidence, points=points, labels=labels)
    folds, columns = Folds.of(points, 4), points.columns("dev")
    found = _Described(evidence, folds)("dev", np.array([4, 2]), frozenset({0, 3}))
    shadows = np.flatnonzero(np.isin(folds.of_model, [1, 2]))
    for row, target in enumerate((4, 2)):
        for point, column in enumerate(columns[target]):
            score, label, *means, deviation, n_in, n_out = found[row, point]
            assert score == evidence.only.own["dev"][target, point]
            assert label == min(labels[column], 254)
            values = evidence.only.shadow[shadows, column]
            pair = values[is_member[shadows, column]], values[~is_member[shadows, column]]
            assert (n_in, n_out) == (len(pair[0]), len(pair[1]))
            expected = [one.mean() if len(one) else np.nan for one in pair]
            np.testing.assert_allclose(means, expected)
            squares = sum(((one - one.mean()) ** 2).sum() for one in pair if len(one))
            assert deviation == pytest.approx((squares / (len(values) - 2)) ** 0.5)


def test_a_quantile_takes_classes_for_names_not_for_numbers():
    random = np.random.default_rng(0)
    classes = np.arange(320) % 4
    features = random.normal(size=(320, 7))
    features[:, 0] += 4 * classes
    found = []
    for names in (np.array([0, 1, 2, 3]), np.array([2, 0, 3, 1])):
        features[:, 1] = names[classes]
        found.append(Quantile()._fit(features, np.zeros(320, dtype=bool))(features))
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)
    shares = [(found[0][classes == one] < 0).mean() for one in range(4)]
    assert shares == pytest.approx([0.9] * 4, abs=0.06)  # each class by a quantile of its own


def test_a_quantile_learns_of_scores_that_there_are():
    """A non-member without a score is as none, and itself gets the median of the others."""
    random = np.random.default_rng(0)
    features, is_member = random.normal(size=(300, 7)), np.arange(300) % 3 == 0
    features[:, 1] = 0
    features[:10, 0] = np.nan
    found = Quantile()._fit(features, is_member)(features)
    alone = Quantile()._fit(features[10:], is_member[10:])(features[10:])
    assert np.array_equal(found[10:], alone)
    assert (found[:10] == np.median(alone)).all()
