"""A pool whose models were all asked of all records, against leaving each one out literally."""

import statistics
from functools import partial

import numpy as np
import pytest

from mico_exp.attacks import calibration, formulas
from mico_exp.attacks.calibration import calibrate, copes_with_gaps
from mico_exp.attacks.pools import Pool

MODELS, POINTS = 8, 40
KINDS = {
    "0": partial(formulas.offset, w=0.5),
    "1": partial(formulas.offset, w=1.0),
    "2": partial(formulas.offset, w="counts", k=1.0, scale="all"),
    "medians": partial(formulas.offset, centre="median", k=0.5, scale="shrunk"),
    "within": partial(formulas.offset, w=0.0, k=2.0, scale="within"),
    "uncalibrated": formulas.uncalibrated,
    "lira_online": formulas.lira_online,
    "lira_online_pooled": partial(formulas.lira_online, variance="pooled"),
    "lira_online_bayes": partial(formulas.lira_online, variance="bayesian"),
    "lira_offline": formulas.lira_offline,
    "lira_offline_bayes": partial(formulas.lira_offline, variance="bayesian"),
    "lira_shrunk": formulas.lira_shrunk,
    "rmia_online": partial(formulas.rmia_online, gamma=1.1),
    "rmia_offline": formulas.rmia_offline,
    "attack_r": formulas.attack_r,
}


@pytest.fixture
def pool():
    """Scores (M, N) in [0, 1] and membership, with all that is awkward at some record.

    Nobody, everybody, one or all but one trained on a record; models that agree, all or but for
    one; a score far out on either side; scores that no model has, or only one; ties.
    """
    random = np.random.default_rng(0)
    shadow = random.random((MODELS, POINTS))
    is_member = random.random((MODELS, POINTS)) < 0.5
    for point, members in enumerate([0, MODELS, 1, MODELS - 1, 2, MODELS - 2]):
        is_member[:, point] = np.arange(MODELS) < members
    shadow[:, 6], shadow[:, 7], shadow[:, 8] = 0.4, 0.1 + 0.2, is_member[:, 8]
    shadow[:, 9:12], shadow[4, 9] = 0.3, 0.9
    shadow[1, 10], shadow[2, 11] = 1e-12, 0.3 + 1e-15
    shadow[:, 12] *= 1e-12
    shadow[3, 12] = 1.0
    shadow[:, 13] = 1e-5 * shadow[:, 13] + 0.7
    shadow[:, 14] = np.nan
    shadow[1:, 15] = np.nan
    shadow[:6, 16] = np.nan
    shadow[:, 17:22] = shadow[:, 17:22].round(1)
    shadow[5, 20:] = np.nan
    return shadow, is_member


def literally(formula, own, shadow, is_member, columns, left_out):
    """Every target by itself, all its points' shadow models gathered."""
    rows = [
        calibrate(
            formula,
            own[[t]],
            shadow,
            is_member,
            columns[[t]],
            left_out=None if left_out is None else left_out[[t]],
        )
        for t in range(len(own))
    ]
    return np.concatenate([row.scores for row in rows]), rows


@pytest.fixture(params=["in order", "some of them"])
def columns(request):
    if request.param == "in order":
        return np.broadcast_to(np.arange(POINTS), (MODELS, POINTS))
    return np.tile(np.random.default_rng(1).permutation(POINTS)[: POINTS - 7], (MODELS, 1))


@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_leaving_one_out_by_sums_is_leaving_it_out(pool, columns, name, leave, monkeypatch):
    monkeypatch.setattr(calibration, "POOLED_BYTES", 8 * POINTS * 4)
    shadow, is_member = pool
    own = np.take_along_axis(shadow, columns, axis=1)
    place = shadow, is_member, columns
    left_out = np.arange(MODELS) if leave else None
    expected, rows = literally(KINDS[name], own, *place, left_out)
    found = calibrate(KINDS[name], own, *place, left_out=left_out)
    # A target without a score at a point has the median, of its own scores or of all targets'.
    known = np.isfinite(own) & (np.array([row.out_models[0] for row in rows]) >= 0)
    somebody = np.isfinite(shadow).sum(axis=0)[columns] > (1 if leave else 0)
    known &= somebody | (name == "uncalibrated")
    np.testing.assert_allclose(found.scores[known], expected[known], rtol=1e-9, atol=1e-9)
    assert (found.scores[~known] == np.median(found.scores[known])).all()
    assert np.array_equal(found.out_models, [row.out_models[0] for row in rows])
    for rate in ("fallback_rate", "out_fallback_rate", "in_fallback_rate"):
        assert getattr(found, rate) == pytest.approx(np.mean([getattr(r, rate) for r in rows]))


def test_both_sides_without_one_model_are_those_of_the_others(pool):
    """Count, mean, squares, median and rank of a score, of plain lists; agreement is exact."""
    shadow, is_member = pool
    usable = np.isfinite(shadow)
    shadow = np.where(usable, shadow, 0)
    masks = is_member & usable, ~is_member & usable
    left_out = np.arange(MODELS)
    score = np.random.default_rng(2).random((MODELS, POINTS)).round(1)
    for side, mask in zip(Pool(shadow, *masks).without(left_out), masks, strict=True):
        below = side.at_most(score)
        for place in np.ndindex(score.shape):
            t, i = place
            others = [shadow[s, i] for s in range(MODELS) if mask[s, i] and s != t]
            mean = statistics.fmean(others) if others else 0
            squares = sum((x - mean) ** 2 for x in others)
            assert side.size[place] == len(others)
            assert below[place] == sum(x <= score[place] for x in others)
            assert side.median[place] == (statistics.median(others) if others else 0)
            if len(set(others)) < 2:
                assert side.mean[place] == (others[0] if others else 0)
                assert side.squares[place] == 0
            assert side.mean[place] == pytest.approx(mean, rel=1e-12)
            assert side.squares[place] == pytest.approx(squares, rel=1e-9, abs=1e-30)


@pytest.mark.parametrize("far", [1e3, 1e6, -1e12])
def test_a_score_far_out_costs_no_digits(far):
    random = np.random.default_rng(3)
    shadow = random.normal(size=(40, 30)) + 100
    shadow[np.arange(30), np.arange(30)] += far
    mask = random.random(shadow.shape) < 0.5
    found, _ = Pool(shadow, mask, ~mask).without(np.arange(40))
    for place in np.ndindex(shadow.shape):
        t, i = place
        others = np.delete(shadow[:, i], t)[np.delete(mask[:, i], t)]
        assert found.squares[place] == pytest.approx(others.var() * len(others), rel=1e-9)


def test_a_formula_that_gathers_gives_the_same_over_a_pool(pool, monkeypatch):
    """A user's own, some targets at a time or one after another."""
    shadow, is_member = pool
    columns = np.tile(np.arange(POINTS), (MODELS, 1))
    own = np.where(np.isfinite(shadow), shadow, 0)

    def mine(score, shadow, is_in, is_out):
        return score - np.where(is_in, shadow, 0).sum(axis=-2) / is_in.sum(axis=-2)

    def found(formula):
        place = shadow, is_member, columns
        return calibrate(formula, own, *place, left_out=np.arange(MODELS)).scores

    assert not copes_with_gaps(mine)
    expected = found(mine)
    np.testing.assert_allclose(expected, found(KINDS["1"]), rtol=1e-9, atol=1e-12)
    seen = []
    monkeypatch.setattr(calibration, "GATHERED_BYTES", 8 * MODELS * POINTS * 2)
    assert np.array_equal(
        found(lambda *given: (seen.append(len(given[0])), mine(*given))[1]), expected
    )
    assert max(seen) == 2
