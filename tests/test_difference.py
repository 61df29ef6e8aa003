"""Differences of two sides and upper limits, against definitions written out."""

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student

from mico_exp.auditing.difference import (
    AUC,
    TPR,
    Sample,
    Spread,
    by_models,
    by_records,
    differences,
    interval_of_tpr,
    mean_figures,
    upper_limit,
)
from mico_exp.challenge.points import NONE
from mico_exp.common.errors import InputError
from mico_exp.results.scoring import roc


def sample(models=12, points=20, leak=1.0, seed=0, digits=6, shared=False):
    random = np.random.default_rng(seed)
    solution = np.tile(np.arange(points) % 2 == 0, (models, 1))
    scores = random.normal(size=solution.shape) + leak * solution + random.normal(size=(models, 1))
    records = np.arange(points) if shared else random.integers(60, size=solution.shape)
    places = np.broadcast_to(records, solution.shape)
    return Sample(solution, scores.round(digits).astype(np.float32), places)


def auc(one, weights):
    """AUC where each point counts as often as it weighs; pairs of a tie count half."""
    truth, scores, weight = (x.ravel() for x in (one.solution, one.predictions, weights))
    pairs = np.sign(scores[truth][:, None] - scores[~truth][None]) / 2 + 0.5
    both = weight[truth][:, None] * weight[~truth][None]
    return (pairs * both).sum() / both.sum()


@pytest.mark.parametrize("digits", [0, 6])
def test_influence_on_the_auc_is_its_derivative_by_a_weight(digits):
    one = sample(digits=digits, models=5)
    records = np.unique(one.points)
    groups = {"models": (by_models, np.arange(5)[:, None], 5), "records": (by_records, None, 0)}
    for moved, whose, count in groups.values():
        places = one.points if whose is None else np.broadcast_to(whose, one.points.shape)
        (found,) = moved([one])
        for place, key in enumerate(range(count) if count else records):
            ends = [auc(one, 1 + step * (places == key)) for step in (1e-4, -1e-4)]
            assert found[AUC, place] == pytest.approx((ends[0] - ends[1]) / 2e-4, abs=1e-7)


def test_influence_on_the_tpr_is_that_of_both_rates_and_the_curves_slope():
    one = sample(models=8, points=60)
    curve = roc(one.solution, one.predictions)
    fpr = curve.fpr[curve.fpr < 0.1].max()
    tpr, threshold = curve.tpr[curve.fpr == fpr].max(), curve.threshold[curve.fpr == fpr].min()
    called = one.predictions >= threshold
    above = one.predictions >= max(one.predictions[~one.solution & ~called])  # who sets it, too
    share = (240 * fpr + 1) / 240
    on_tpr, on_fpr = [], []
    for row, others, is_in in zip(called, above, one.solution, strict=True):
        on_tpr.append(sum(c - tpr for c in row[is_in]) / 240)
        on_fpr.append(sum(c - share for c in others[~is_in]) / 240)
    error = np.sqrt(8 / 7 * np.sum(np.square(on_fpr)))
    low, high = max(fpr - 1.959964 * error, 0), fpr + 1.959964 * error
    slope = (np.interp(high, curve.fpr, curve.tpr) - np.interp(low, curve.fpr, curve.tpr)) / (
        high - low
    )
    (found,) = by_models([one])
    assert found[TPR] == pytest.approx(on_tpr - slope * np.array(on_fpr), rel=1e-5)


def test_dev_and_final_count_by_their_members():
    dev, final = sample(models=6, seed=1), sample(models=18, leak=2, seed=2)
    curves = [roc(one.solution, one.predictions) for one in (dev, final)]
    expected = (curves[0].tpr_at(0.1) + 3 * curves[1].tpr_at(0.1)) / 4
    assert mean_figures([dev, final])[TPR] == pytest.approx(expected)
    parts = by_models([dev, final])
    assert [one.shape for one in parts] == [(2, 6), (2, 18)]
    assert parts[0] == pytest.approx(by_models([dev])[0] / 4)
    assert parts[1] == pytest.approx(by_models([final])[0] * 3 / 4)


def test_a_spread_is_that_of_independent_samples_with_welchs_degrees_of_freedom():
    random = np.random.default_rng(0)
    samples = random.normal(size=6), 3 * random.normal(size=20)
    moved = [(one - one.mean()) / len(one) for one in samples]
    variances = [one.var(ddof=1) / len(one) for one in samples]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 5 + variances[1] ** 2 / 19)
    found = Spread.of(moved)
    assert found.error == pytest.approx(np.sqrt(sum(variances)))
    assert found.freedom == pytest.approx(freedom)
    assert found.reach(0.975) == pytest.approx(student.ppf(0.975, freedom) * found.error)


@pytest.mark.parametrize("paired", [False, True])
def test_equal_sides_of_ten_models_differ_in_about_five_of_hundred(paired):
    """Of 300 comparisons at least 2 % and at most 8.5 %, which is 5 % and three errors of it."""
    alarms, count = np.zeros(2), 300
    for number in range(count):
        sides = [[sample(models=10, seed=2 * number + n, shared=paired)] for n in (0, 1)]
        found = differences(*sides)
        alarms += [one.differs for one in found]
    assert found[TPR].paired == paired
    assert (alarms >= 0.02 * count).all()
    assert (alarms <= 0.085 * count).all()


def test_pairs_are_drawn_together():
    """The second side is the first with a little noise: only pairs tell so small a difference."""
    one = sample(models=40)
    noise = np.random.default_rng(5).normal(size=one.predictions.shape) * 0.05
    other = Sample(one.solution, (one.predictions + noise).astype(np.float32), one.points)
    turned = Sample(one.solution[::-1, ::-1], one.predictions[::-1, ::-1], one.points[::-1, ::-1])
    (_, pair), (_, apart) = differences([one], [other]), differences([one], [turned])
    assert pair.paired
    assert not apart.paired
    assert pair.over_models.half_width < apart.over_models.half_width / 5
    assert pair.over_points.half_width < 0.02


def test_a_side_less_itself_is_nil():
    for one in differences([sample()], [sample()]):
        assert one.value == 0
        assert (one.over_models.low, one.over_models.high) == (0, 0)
        assert not one.differs


def test_a_clear_difference_differs_and_turns_its_sign():
    first, second = sample(models=30, leak=3), sample(models=30, leak=0.5, seed=1)
    for one, turned in zip(
        differences([first], [second]), differences([second], [first]), strict=True
    ):
        assert one.differs
        assert one.over_models.low > 0
        assert one.over_models.low == pytest.approx(-turned.over_models.high)


def test_where_records_are_not_the_same_there_is_no_interval_over_them():
    first, second = sample(models=30), sample(models=30, seed=1)
    assert differences([first], [second])[0].over_points is not None  # all 60, of either
    moved = Sample(second.solution, second.predictions, second.points + 1000)
    assert differences([first], [moved])[0].over_points is None


def test_single_models_of_different_records_have_them_drawn_by_themselves():
    """DeLong's variances of both sides are added; also where one side has several models."""
    first, second = (sample(models=1, points=400, seed=n, shared=True) for n in (0, 1))
    moved = Sample(second.solution, second.predictions, second.points + 1000)
    one = differences([first], [moved])[AUC]
    variances = []
    for side in (first, moved):
        members, others = (side.predictions[side.solution == kind] for kind in (True, False))
        won = (members[:, None] > others) + (members[:, None] == others) / 2
        variances.append(won.mean(1).var(ddof=1) / 200 + won.mean(0).var(ddof=1) / 200)
    assert one.over_models is None
    wide = 1.96 * np.sqrt(sum(variances))
    assert one.over_points.half_width == pytest.approx(wide, rel=0.01)
    several = sample(models=30, seed=2)
    assert differences([first], [several])[AUC].over_points is not None


@pytest.mark.parametrize("kind", [True, False])
def test_one_class_is_refused_before_anything_is_computed(kind):
    one = sample()
    alike = Sample(np.full_like(one.solution, kind), one.predictions, one.points)
    with pytest.raises(InputError, match="got one class only"):
        differences([alike], [one])


def test_single_models_are_compared_over_their_records():
    first = sample(models=1, points=400, shared=True)
    second = sample(models=1, points=400, seed=1, leak=0, shared=True)
    one = differences([first], [second])[1]
    assert one.over_models is None
    assert one.over_points.low > 0
    assert one.differs


def limit_of_points(truth, scores):
    """The highest non-member that is surely at an FPR of 0.1 or above; a binomial limit there."""
    others = np.sort(scores[~truth])[::-1]
    for number in range(1, len(others) + 1):
        # FPR at the number-th of n non-members is below 0.1 as often as so many or more of n are.
        if binom.sf(number - 1, len(others), 0.1) <= 0.025:
            above, members = (scores[truth] >= others[number - 1]).sum(), truth.sum()
            rates = np.linspace(0, 1, 100_001)
            return rates[binom.cdf(above, members, rates) >= 0.025].max()
    return 1.0


@pytest.mark.parametrize("points", [20, 60, 400])
def test_the_limit_of_one_model_is_over_its_points(points):
    one = sample(models=1, points=points)
    found = upper_limit([one])
    expected = limit_of_points(one.solution[0], one.predictions[0])
    assert found.limit == pytest.approx(expected, abs=2e-5)
    assert found.tpr < found.limit
    assert found.of == f"{points} points of one model"


def own_points(one):
    return Sample(one.solution, one.predictions, np.arange(one.points.size).reshape(-1, 20))


def odds(tpr):
    return np.log(tpr / (1 - tpr))


def test_ends_lie_on_the_scale_of_log_odds():
    one = own_points(sample(models=30))
    found, (moved,) = upper_limit([one]), by_models([one])
    tpr = found.tpr
    error = np.sqrt(30 / 29 * np.sum(moved[TPR] ** 2)) / (tpr * (1 - tpr))
    assert odds(found.limit) == pytest.approx(odds(tpr) + student.ppf(0.95, 29) * error)
    low, high = interval_of_tpr([one])
    assert odds(high) == pytest.approx(odds(tpr) + student.ppf(0.975, 29) * error)
    assert odds(low) == pytest.approx(odds(tpr) - student.ppf(0.975, 29) * error)
    assert found.of == "30 models"
    assert interval_of_tpr([sample(models=1)]) is None


def test_where_no_member_is_found_each_model_is_a_trial():
    """With a TPR of 0.2589 ten models of ten would all find none in 5 % of cases."""
    one = own_points(sample(models=10))
    none = Sample(one.solution, np.where(one.solution, -9, one.predictions), one.points)
    found = upper_limit([none])
    assert found.tpr == 0
    assert (1 - found.limit) ** 10 == pytest.approx(0.05)
    every = Sample(one.solution, np.where(one.solution, 9, one.predictions), one.points)
    low, high = interval_of_tpr([every])
    assert high == 1
    assert low**10 == pytest.approx(0.025)


def test_models_that_share_their_records_err_together():
    """Scores are the records' own, so that models agree and only records tell how far it is off."""
    random = np.random.default_rng(8)
    solution = random.random((20, 40)) < 0.5
    scores = random.normal(size=40) + random.normal(size=solution.shape) / 9 + solution
    places = np.broadcast_to(np.arange(40), solution.shape)
    one = Sample(solution, scores.astype(np.float32), places)
    apart = Sample(solution, one.predictions, np.arange(solution.size).reshape(solution.shape))
    found, (moved,) = upper_limit([one]), by_records([one])
    assert found.of == "20 models, over 40 shared records"
    error = np.sqrt(40 / 39 * np.sum(moved[TPR] ** 2)) / (found.tpr * (1 - found.tpr))
    assert odds(found.limit) == pytest.approx(odds(found.tpr) + student.ppf(0.95, 39) * error)
    assert found.limit > upper_limit([apart]).limit + 0.05


def test_a_phase_of_one_model_is_bounded_too():
    many, single = own_points(sample(models=30, leak=0)), sample(models=1, points=100, leak=2)
    found = upper_limit([single, many])
    assert found == upper_limit([single])
    assert upper_limit([many, single]) == found
    assert found.of == "100 points of one model"


def test_one_model_at_the_ceiling_hardly_ever_passes():
    """TPR at FPR 0.1 of N(1, 1) against N(0, 1) is 0.389: in 300 trials at most 15 are below."""
    random, low = np.random.default_rng(0), 0
    for _ in range(300):
        truth = np.arange(200)[None] % 2 == 0
        scores = random.normal(size=truth.shape) + truth
        found = upper_limit([Sample(truth, scores.astype(np.float32), np.arange(200)[None])])
        low += found.limit < 0.389
    assert low <= 15


@pytest.mark.parametrize("kind", ["tied", "coarse", "one class"])
def test_what_says_nothing_is_refused(kind):
    one = sample(points=60)
    scores, solution = one.predictions.copy(), one.solution.copy()
    if kind == "tied":
        scores[:] = 0.5
    elif kind == "coarse":
        scores[:] = scores > -10
        scores[0, 0] = 0
    else:
        solution[:] = True
    words = {"tied": "are equal", "coarse": "tie", "one class": "one class"}
    with pytest.raises(InputError, match=words[kind]):
        upper_limit([Sample(solution, scores, one.points)])


def test_points_that_are_none_take_no_part():
    one = sample(models=6, points=21)
    short = one.points.copy()
    short[2:, -1] = NONE
    scores = one.predictions.copy()
    scores[2:, -1] = np.nan
    cut = Sample(one.solution, scores, short)
    assert cut.members == one.members - 4
    assert np.isfinite(upper_limit([cut]).limit)
    assert np.isfinite(by_records([cut])).all()
    assert np.isfinite(by_models([cut])).all()
