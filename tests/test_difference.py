"""Differences of two sides and upper limits, against definitions written out."""

import numpy as np
import pytest
from scipy.stats import binom

from mico_exp.auditing.difference import (
    FIGURES,
    Sample,
    by_models,
    by_points,
    differences,
    mean_figure,
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


def weighted(one, weights):
    """TPR at an FPR strictly below 0.1 and AUC, every point as often as it is drawn."""
    truth, scores = (np.repeat(x.ravel(), weights.ravel()) for x in (one.solution, one.predictions))
    rates = [((scores[~truth] >= t).mean(), (scores[truth] >= t).mean()) for t in np.unique(scores)]
    tpr = max([tpr for fpr, tpr in rates if fpr < 0.1], default=0)
    gaps = np.sign(scores[truth][:, None] - scores[~truth][None])
    return tpr, (gaps.astype(float).mean() + 1) / 2


@pytest.mark.parametrize("digits", [0, 6])
def test_draws_of_records_are_figures_of_points_as_often_as_they_are_drawn(digits):
    one = sample(digits=digits, models=5)
    found = by_points([one], seed=3, count=20)
    records = np.unique(one.points)
    draws = np.random.default_rng([3, 2]).multinomial(
        len(records), np.full(len(records), 1 / len(records)), size=20
    )
    for number, row in enumerate(draws):
        expected = weighted(one, row[np.searchsorted(records, one.points)])
        drawn = [found[name].draws[number] for name in FIGURES]
        assert drawn == pytest.approx(expected, abs=1e-9)


def test_dev_and_final_count_by_their_members():
    dev, final = sample(models=6, seed=1), sample(models=18, leak=2, seed=2)
    curves = [roc(one.solution, one.predictions) for one in (dev, final)]
    expected = (curves[0].tpr_at(0.1) + 3 * curves[1].tpr_at(0.1)) / 4
    assert mean_figure([dev, final], FIGURES[0]) == pytest.approx(expected)
    drawn = by_models([dev, final])
    assert drawn[FIGURES[0]].value == pytest.approx(expected)
    assert drawn[FIGURES[0]].freedom == 22
    assert drawn[FIGURES[1]].draws.mean() == pytest.approx(drawn[FIGURES[1]].value, abs=0.02)


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
        assert one.over_models.low == pytest.approx(-turned.over_models.high, abs=0.02)


def test_where_records_are_not_the_same_there_is_no_interval_over_them():
    first, second = sample(models=30), sample(models=30, seed=1)
    assert differences([first], [second])[0].over_points is not None  # all 60, of either
    moved = Sample(second.solution, second.predictions, second.points + 1000)
    assert differences([first], [moved])[0].over_points is None


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


def test_the_limit_is_above_percentile_and_value():
    one = own_points(sample(models=30))
    found, drawn = upper_limit([one]), by_models([one])[FIGURES[0]]
    assert found.limit >= np.percentile(drawn.draws, 95)
    assert found.limit >= found.tpr + 1.645 * drawn.draws.std()
    assert found.of == "30 models"


def test_models_that_share_their_records_err_together():
    """Scores are the records' own, so that models agree and only records tell how far it is off."""
    random = np.random.default_rng(8)
    solution = random.random((20, 40)) < 0.5
    scores = random.normal(size=40) + random.normal(size=solution.shape) / 9 + solution
    places = np.broadcast_to(np.arange(40), solution.shape)
    one = Sample(solution, scores.astype(np.float32), places)
    apart = Sample(solution, one.predictions, np.arange(solution.size).reshape(solution.shape))
    found, drawn = upper_limit([one]), by_points([one])[FIGURES[0]]
    assert found.of == "20 models, over 40 shared records"
    assert found.limit >= np.percentile(drawn.draws, 95)
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
    assert all(np.isfinite(one.value) for one in by_points([cut], count=3).values())
