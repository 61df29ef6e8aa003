"""Formulas and calibration against a literal definition, the golden vectors and invariants."""

import statistics

import numpy as np
import pytest
from conftest import GOLDEN, WINNER

from mico_exp.attacks import formulas
from mico_exp.attacks.calibration import calibrate, scale
from mico_exp.common.errors import InputError


def slow_formula(index, score, inside, outside):
    """The winner's formulas on plain lists, with his fall-back."""
    if not inside:
        inside = outside
    elif len(outside) < 2:
        outside = inside
    if index == "0":
        return score - (statistics.fmean(inside) + statistics.fmean(outside)) / 2
    if index == "1":
        return score - statistics.fmean(inside)
    both = inside + outside
    spread = statistics.stdev(both)
    return (score - statistics.fmean(both)) / spread if spread else 0.0


def slow_calibrate(index, own, shadow, is_member, columns, leave_one_out):
    result = np.empty(own.shape)
    for t in range(own.shape[0]):
        others = [s for s in range(len(shadow)) if not (leave_one_out and s == t)]
        for j in range(own.shape[1]):
            u = columns[t, j]
            inside = [float(shadow[s, u]) for s in others if is_member[s, u]]
            outside = [float(shadow[s, u]) for s in others if not is_member[s, u]]
            result[t, j] = slow_formula(index, float(own[t, j]), inside, outside)
    return result


@pytest.fixture
def world():
    """17 train and 11 dev models, 40 points; some points are in or out of almost all models."""
    random = np.random.default_rng(0)
    shadow = random.normal(size=(17, 40))
    is_member = random.random((17, 40)) < 0.5
    is_member[:, 0] = True
    is_member[:, 1] = False
    is_member[1:, 2], is_member[0, 2] = True, False
    is_member[2:, 3], is_member[:2, 3] = True, False
    is_member[1:, 4], is_member[0, 4] = False, True
    columns = np.stack([random.permutation(40) for _ in range(17)])[:, :30]
    columns[:, :5] = np.arange(5)
    return shadow, is_member, columns


@pytest.mark.parametrize("index", WINNER)
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_against_plain_loops(world, index, leave_one_out):
    shadow, is_member, columns = world
    targets = 17 if leave_one_out else 11
    columns = columns[:targets]
    own = np.take_along_axis(shadow[:targets], columns, axis=1)
    if not leave_one_out:
        own = own + np.random.default_rng(1).normal(size=own.shape)
    left_out = np.arange(17) if leave_one_out else None
    found = calibrate(WINNER[index], own, shadow, is_member, columns, left_out=left_out)
    expected = slow_calibrate(index, own, shadow, is_member, columns, leave_one_out)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-10, atol=1e-12)


def test_fall_backs_are_counted(world):
    shadow, is_member, columns = world
    own = np.zeros((1, 5))
    found = calibrate(WINNER["1"], own, shadow, is_member, columns[:1, :5])
    # Points 0 and 2 have fewer than two out models, point 1 has no in model; 3 and 4 have enough.
    assert found.out_fallback_rate == 2 / 5
    assert found.in_fallback_rate == 1 / 5
    assert found.fallback_rate == 3 / 5


@pytest.mark.parametrize("phase", ["train", "dev"])
@pytest.mark.parametrize("index", WINNER)
@pytest.mark.parametrize("metric", ["loss", "confidence", "mod_entropy"])
def test_golden(metric, index, phase):
    golden = np.load(GOLDEN / "calibration.npz")
    targets = slice(0, 12) if phase == "train" else slice(12, 15)
    scores = golden[f"metric_{metric}"].astype(float)
    columns = golden["challenge"][targets]
    own = np.take_along_axis(scores[targets], columns, axis=1)
    found = calibrate(
        WINNER[index],
        own,
        scores[:12],
        golden["member_mask"],
        columns,
        left_out=np.arange(12) if phase == "train" else None,
    )
    expected = golden[f"calibrated_{metric}_{index}_{phase}"]
    assert np.abs(found.scores - expected).max() <= 5e-5 * expected.std()
    assert 0.5 < found.out_fallback_rate < 0.6
    predictions = scale(found.scores)
    assert predictions.dtype == np.float32
    assert np.abs(predictions - golden[f"prediction_{metric}_{index}_{phase}"]).max() <= 1e-5


@pytest.mark.parametrize("index", WINNER)
def test_a_constant_added_at_a_point_changes_nothing(world, index):
    shadow, is_member, columns = world
    own = np.take_along_axis(shadow, columns, axis=1)
    shift = np.linspace(-3, 3, 40)
    place = is_member, columns
    left_out = np.arange(17)
    before = calibrate(WINNER[index], own, shadow, *place, left_out=left_out).scores
    moved = own + shift[columns], shadow + shift
    after = calibrate(WINNER[index], *moved, *place, left_out=left_out).scores
    np.testing.assert_allclose(after, before, atol=1e-12)


def test_uncalibrated_asks_no_shadow(world):
    shadow, is_member, columns = world
    own = np.random.default_rng(2).normal(size=columns.shape)
    found = calibrate(formulas.uncalibrated, own, shadow, is_member, columns)
    assert np.array_equal(found.scores, own)


def test_shadow_models_that_agree_have_no_scale():
    own, shadow = np.array([[1.0, 2.0]]), np.full((4, 2), 0.5)
    is_member = np.array([[True, True], [True, False], [False, True], [False, False]])
    found = calibrate(WINNER["2"], own, shadow, is_member, np.array([[0, 1]]))
    assert found.scores.tolist() == [[0.0, 0.0]]


def test_one_train_model_cannot_be_validated():
    one = np.zeros((1, 2))
    place = one.astype(bool), np.array([[0, 1]])
    with pytest.raises(InputError, match="at least one shadow model"):
        calibrate(WINNER["1"], one, one, *place, left_out=np.arange(1))


def test_a_formula_that_gives_nan_names_the_target(world):
    shadow, is_member, columns = world

    def broken(score, shadow, is_in, is_out):
        return np.where(score == own[13, 5], np.nan, score)

    own = np.take_along_axis(shadow, columns, axis=1)
    with pytest.raises(InputError, match=r"1 of 510 .* target 13"):
        calibrate(broken, own, shadow, is_member, columns, left_out=np.arange(17))


@pytest.mark.parametrize("index", WINNER)
def test_a_shadow_model_without_scores_takes_no_part(world, index):
    shadow, is_member, columns = world
    own = np.random.default_rng(3).normal(size=columns.shape)
    without = np.delete(np.arange(17), 9)
    expected = calibrate(WINNER[index], own, shadow[without], is_member[without], columns)
    broken = shadow.copy()
    broken[9] = np.nan
    found = calibrate(WINNER[index], own, broken, is_member, columns)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-12)
    assert found.out_fallback_rate == expected.out_fallback_rate


def test_a_point_that_no_shadow_model_knows_gets_the_median(world):
    shadow, is_member, columns = world
    own = np.take_along_axis(shadow, columns, axis=1)
    unknown = shadow.copy()
    unknown[:, columns[4, 0]] = np.nan
    asked = columns == columns[4, 0]
    for formula in (WINNER["0"], WINNER["2"], formulas.lira_shrunk):
        found = calibrate(formula, own, unknown, is_member, columns).scores
        assert (found[asked] == np.median(found[~asked])).all()


@pytest.mark.parametrize("formula", [WINNER["1"], formulas.rmia_online])
def test_a_target_without_scores_gets_the_median(world, formula):
    shadow, is_member, columns = world
    shadow = 1 / (1 + np.exp(-shadow))
    own = np.take_along_axis(shadow, columns, axis=1)
    expected = calibrate(formula, own, shadow, is_member, columns)
    own[13] = np.nan
    found = calibrate(formula, own, shadow, is_member, columns)
    others = np.delete(np.arange(17), 13)
    assert np.array_equal(found.scores[others], expected.scores[others])
    assert (found.scores[13] == np.median(expected.scores[others])).all()


@pytest.mark.parametrize("index", WINNER)
def test_two_train_models_validate_each_other(index):
    """With one shadow model left, whichever side it is on, it stands in for the other."""
    random = np.random.default_rng(4)
    shadow, columns = random.normal(size=(2, 6)), np.tile(np.arange(6), (2, 1))
    is_member = np.array([[True, True, False], [True, False, False]]).repeat(2, axis=1)
    place = is_member, columns
    found = calibrate(WINNER[index], shadow, shadow, *place, left_out=np.arange(2))
    expected = slow_calibrate(index, shadow, shadow, *place, leave_one_out=True)
    np.testing.assert_allclose(found.scores, expected, atol=1e-12)
    # Each of 12 has one model: 6 times in, where out models lack, and 6 times out.
    assert (found.out_fallback_rate, found.in_fallback_rate) == (0.5, 0.5)
    assert found.fallback_rate == 1


def test_a_formula_of_the_wrong_shape_is_refused(world):
    shadow, is_member, columns = world
    own = np.zeros(columns.shape)
    with pytest.raises(InputError, match="must give shape"):
        calibrate(lambda s, *_: s[:, :1], own, shadow, is_member, columns)


def test_scaling_has_one_range_for_all_models():
    predictions = scale(np.array([[-1.0, 0.0], [1.0, 3.0]]))
    assert predictions.tolist() == [[0.0, 0.25], [0.5, 1.0]]
    assert scale(np.full((2, 2), 7.0)).tolist() == [[0.5, 0.5], [0.5, 0.5]]


FAR = np.array([[3.0, -1e12, 1.0, 2.0], [1.0, 5.0, 4.0, 4.0]])  # one so low that the rest is 1


def test_scores_that_float32_makes_equal_keep_their_order_where_it_is_asked_for():
    plain, ordered = scale(FAR), scale(FAR, keep_order=True)
    np.testing.assert_allclose(plain, [[1, 0, 1, 1], [1, 1, 1, 1]])
    distinct = [-1e12, 1, 2, 3, 4, 5]
    expected = [[distinct.index(value) / 5 for value in row] for row in FAR]
    assert np.array_equal(ordered, np.array(expected, dtype=np.float32))
    assert ordered.dtype == np.float32


@pytest.mark.parametrize(("lost", "ranked"), [(0, False), (1, False), (2, True), (60, True)])
@pytest.mark.parametrize("times", [1, 3])
def test_ranks_are_taken_where_more_than_one_in_a_hundred_is_lost(lost, ranked, times):
    """Scores that are equal anyway lose nothing."""
    apart = np.arange(100.0 - lost) ** 2
    scores = np.concatenate([apart, 1 + np.arange(1, lost + 1) * 1e-12])  # 1 by float32
    assert len(np.unique(scores)) == 100
    shuffled = np.random.default_rng(0).permutation(np.repeat(scores, times)).reshape(-1, 4)
    found = scale(shuffled, keep_order=True)
    linear = (shuffled / apart.max()).astype(np.float32)
    place = np.searchsorted(np.sort(scores), shuffled) / 99
    assert np.array_equal(found, place.astype(np.float32) if ranked else linear)


@pytest.mark.parametrize(("formula", "kept"), [(formulas.uncalibrated, True), (WINNER["1"], False)])
def test_the_winners_formulas_know_no_ranks(formula, kept):
    """A formula that copes with gaps may be a likelihood ratio, and keeps the order."""
    is_member = np.tile([[True], [False]], (2, 4))
    columns = np.tile(np.arange(4), (2, 1))
    found = calibrate(formula, FAR, np.zeros((4, 4)), is_member, columns)
    assert np.array_equal(found.scores, FAR)
    assert np.array_equal(found.predictions, scale(FAR, keep_order=kept))
