"""Risk of single records: against each record looked at by itself, and over nothing."""

import itertools
from math import comb

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.metrics import roc_curve

from mico_exp.auditing.risk import Asked, allowed, by_group, judge_records, recurring
from mico_exp.challenge.points import NONE
from mico_exp.common.errors import InputError


def pool(models=24, records=40, leak=1.0, seed=0, digits=8, share=0.5):
    """Scores of a pool in which record r leaks by leak · r / R deviations."""
    random = np.random.default_rng(seed)
    inside = random.random((models, records)) < share
    shift = leak * np.arange(records) / records
    scores = (
        random.normal(size=inside.shape) + shift * inside + random.normal(size=records)
    ).round(digits)
    return Asked(np.arange(records) * 3, scores, inside, ~inside)


def literal(asked, column, fpr):
    """TPR of one record at its own FPR, by every threshold of scikit-learn's curve."""
    some = asked.inside[:, column] | asked.outside[:, column]
    truth, scores = asked.inside[some, column], asked.scores[some, column]
    rates = roc_curve(truth, scores, drop_intermediate=False)
    return max(tpr for false, tpr, _ in zip(*rates, strict=True) if false < fpr)


@pytest.mark.parametrize("digits", [0, 8])  # coarse scores tie
@pytest.mark.parametrize("fpr", [0.05, 0.1, 0.25, 1 / 3, 1.0, 1.5])
def test_every_record_by_itself(fpr, digits):
    asked = pool(leak=4, digits=digits)
    asked.inside[3, :20] = asked.outside[3, :20] = False  # a model without a score there
    found = judge_records(asked, fpr)
    np.testing.assert_array_equal(found.records, asked.records)
    for column in range(40):
        some, others = (asked.scores[mask[:, column], column] for mask in asked[2:4])
        assert found.models[column] == len(some) + len(others)
        assert found.in_mean[column] == pytest.approx(some.mean(), abs=1e-12)
        assert found.out_mean[column] == pytest.approx(others.mean(), abs=1e-12)
        assert found.tpr[column] == pytest.approx(literal(asked, column, fpr), abs=1e-12)


def columns(asked, mask):
    return [asked.scores[mask[:, column], column] for column in range(mask.shape[1])]


def by_hand(asked):
    """Separation, its error and degrees of freedom of every record, one after the other."""
    variances, found = [], []
    for mask in (asked.inside, asked.outside):
        sides = columns(asked, mask)
        squares = sum(((side - side.mean()) ** 2).sum() for side in sides)
        common = squares / sum(len(side) - 1 for side in sides)
        variances.append([(len(x), x.mean(), x.var(ddof=1), common) for x in sides])
    for inside, outside in zip(*variances, strict=True):
        (n, above, first, common), (m, below, second, others) = inside, outside
        v, w = (first + common) / 2, (second + others) / 2
        d = (above - below) / ((v**0.5 + w**0.5) / 2)
        a, b = max(v, first) / n, max(w, second) / m
        deviations = (v / (n - 1) + w / (m - 1)) / 16
        error = (a + b + d**2 * deviations) ** 0.5 / ((v**0.5 + w**0.5) / 2)
        found.append((d, error, (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))))
    return np.array(found).T


def unequal(models=40, records=60, seed=0, share=0.3):
    """Scores of records that are told by their in models alike, and not by out models."""
    random = np.random.default_rng(seed)
    inside = random.random((models, records)) < share
    spread = np.where(inside, 0.3, 1) * np.exp(random.normal(size=records) / 3)
    shift = np.linspace(0, 5, records)
    return Asked(
        np.arange(records),
        random.normal(size=inside.shape) * spread + shift * inside,
        inside,
        ~inside,
    )


@pytest.mark.parametrize("asked", [pool(leak=3), unequal()])
def test_separation_and_intervals_of_ranks_by_hand(asked):
    found, (separation, error, freedom) = judge_records(asked), by_hand(asked)
    np.testing.assert_allclose(found.separation, separation, rtol=1e-12)
    np.testing.assert_array_equal(found.rank, (-separation).argsort().argsort() + 1)
    wide = student.isf(0.025 / len(separation), np.floor(freedom)) * error
    for column, (middle, half) in enumerate(zip(separation, wide, strict=True)):
        assert found.low[column] == 1 + (separation - wide > middle + half).sum()
        assert found.high[column] == len(wide) - (separation + wide < middle - half).sum()


def test_a_side_of_one_model_has_the_spread_of_the_other():
    asked = pool(models=12, leak=3)
    asked.inside[:, 5], asked.outside[0, 5] = np.arange(12) == 0, False
    asked.outside[1:, 5] = True
    found = judge_records(asked)
    own, commons = asked.scores[1:, 5].var(ddof=1), []
    for mask in (asked.inside, asked.outside):
        sides = [asked.scores[1:, 5] if k == 5 else x for k, x in enumerate(columns(asked, mask))]
        squares = sum(((side - side.mean()) ** 2).sum() for side in sides)
        commons.append(squares / sum(len(side) - 1 for side in sides))
    deviation = sum(((own + common) / 2) ** 0.5 for common in commons) / 2
    gap = asked.scores[0, 5] - asked.scores[1:, 5].mean()
    assert found.separation[5] == pytest.approx(gap / deviation, rel=1e-12)


def test_ranks_have_all_records_between_whose_intervals_overlap():
    """Two records far out, one of them farther; the intervals of all others overlap."""
    asked = pool(models=200, leak=0)
    asked.scores[:, 7] += 8 * asked.inside[:, 7]
    asked.scores[:, 8] += 30 * asked.inside[:, 8]
    found = judge_records(asked)
    assert (found.rank[8], found.low[8], found.high[8]) == (1, 1, 1)
    assert (found.rank[7], found.low[7], found.high[7]) == (2, 2, 2)
    others = np.delete(np.arange(40), [7, 8])
    assert (found.low[others] == 3).all()
    assert (found.high[others] == 40).all()
    assert set(np.flatnonzero(found.exposed)) == {7, 8}


def chance_of(inside, outside, most, above):
    """Chance that so many in models or more are above the first out model too many: all orders."""
    size, count = inside + outside, 0
    for places in itertools.combinations(range(size), outside):
        first = places[most] if most < outside else size
        count += first - most >= above
    return count / comb(size, outside)


@pytest.mark.parametrize(("inside", "outside", "fpr"), [(5, 4, 0.3), (3, 7, 0.2), (6, 3, 0.1)])
def test_chance_counts_orders(inside, outside, fpr, monkeypatch):
    from mico_exp.auditing import risk

    seen = []
    monkeypatch.setattr(risk, "_holm", lambda chance: seen.append(chance) or chance)
    random = np.random.default_rng(0)
    scores = random.permuted(np.tile(np.arange(inside + outside, dtype=float), (50, 1)), axis=1).T
    mask = np.tile(np.arange(inside + outside)[:, None] < inside, 50)
    found = judge_records(Asked(np.arange(50), scores, mask, ~mask), fpr)
    most = int(allowed(np.array([outside]), fpr)[0])
    for tpr, chance in zip(found.tpr, seen[0], strict=True):
        above = round(tpr * inside)
        assert chance == pytest.approx(chance_of(inside, outside, most, above), abs=1e-12)


@pytest.mark.parametrize("fpr", [0.1, 0.2, 0.5, 1 / 3, 0.07])
def test_so_many_out_models_are_allowed(fpr):
    counts = np.arange(200)
    expected = [max([k for k in range(n + 1) if k / n < fpr]) if n else 0 for n in counts]
    np.testing.assert_array_equal(allowed(counts, fpr), expected)


@pytest.mark.parametrize("kind", ["normal", "skewed", "coarse"])
def test_over_nothing_hardly_ever_is_any_record_exposed_or_above_another(kind):
    """100 null pools: with an error of 5 % some 5 of them, and 14 in one of a thousand times."""
    random, exposed, ranked = np.random.default_rng(1), 0, 0
    for _ in range(100):
        inside = random.random((60, 30)) < 0.4
        scores = random.normal(size=inside.shape)
        if kind == "skewed":
            scores = np.exp(1.5 * scores) * np.exp(random.normal(size=30))
        elif kind == "coarse":
            scores = scores.round(0)
        found = judge_records(Asked(np.arange(30), scores, inside, ~inside))
        exposed += found.exposed.any()
        ranked += (found.low > 1).any() or (found.high < 30).any()
    assert exposed < 14
    assert ranked < 14


def test_records_alike_whose_sides_vary_unlike_are_hardly_ever_ranked_apart():
    """100 pools whose few in models vary 3 times as much: some 5 are wrong at most."""
    random, ranked = np.random.default_rng(2), 0
    for _ in range(100):
        inside = random.random((60, 30)) < 0.2
        inside[:2], inside[2:4] = True, False
        scores = random.normal(size=inside.shape) * np.where(inside, 3, 1) + inside
        found = judge_records(Asked(np.arange(30), scores, inside, ~inside))
        ranked += (found.low > 1).any() or (found.high < 30).any()
    assert ranked < 14


def test_who_leaks_is_found_and_nobody_else():
    random = np.random.default_rng(0)
    inside = random.random((128, 500)) < 0.5
    scores = random.normal(size=inside.shape)
    scores[:, :10] += 3 * inside[:, :10]
    found = judge_records(Asked(np.arange(500), scores, inside, ~inside))
    np.testing.assert_array_equal(np.flatnonzero(found.exposed), np.arange(10))
    assert (found.high[:10] <= 10).all()
    assert (found.low[10:] >= 11).all()


def test_records_that_recur_are_gathered():
    points = np.array([[5, 2, 9], [2, 9, NONE], [9, 7, 5]])
    scores = np.arange(9.0).reshape(3, 3)
    solution = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=bool)
    found = recurring(points, scores, solution)
    np.testing.assert_array_equal(found.records, [2, 5, 7, 9])
    for column, record in enumerate(found.records):
        for mask, wanted in ((found.inside, solution), (found.outside, ~solution)):
            here = scores[(points == record) & wanted]
            np.testing.assert_array_equal(found.scores[mask[:, column], column], here)


def test_a_pool_of_points_is_the_pool():
    asked = pool()
    points = np.tile(asked.records, (24, 1))
    found = recurring(points, asked.scores, asked.inside)
    for mine, same in zip(found, asked, strict=True):
        np.testing.assert_array_equal(mine, same)


def test_blocks_change_nothing(monkeypatch):
    from mico_exp.auditing import risk

    asked = pool(records=100, leak=3)
    whole = judge_records(asked)
    monkeypatch.setattr(risk, "RECORDS_AT_ONCE", 7)
    for name, value in vars(judge_records(asked)).items():
        np.testing.assert_array_equal(value, getattr(whole, name))


def test_records_without_either_kind_are_left_out():
    asked = pool()
    asked.inside[:, 3], asked.outside[:, 3] = True, False
    found = judge_records(asked)
    assert found.left_out == 1
    assert 9 not in found.records
    assert len(found.records) == 39


def test_two_models_tell_no_rank():
    scores, inside = np.array([[1.0, 2], [0, 0], [0, 9]]), np.array([[1, 1], [0, 0], [0, 0]], bool)
    outside = np.array([[0, 0], [1, 1], [0, 1]], dtype=bool)
    found = judge_records(Asked(np.arange(2), scores, inside, outside))
    np.testing.assert_array_equal(found.low, [1, 1])
    np.testing.assert_array_equal(found.high, [2, 2])


@pytest.mark.parametrize("kind", ["tied", "members", "fpr"])
def test_what_tells_nothing_is_refused(kind):
    asked, fpr = pool(), 0.1
    if kind == "tied":
        asked.scores[:] = 0.1 + 0.2
    elif kind == "members":
        asked.outside[:] = False
    else:
        fpr = 0.0
    messages = {"tied": "are equal", "members": "members and non-members", "fpr": "`fpr` must be"}
    with pytest.raises(InputError, match=messages[kind]):
        judge_records(asked, fpr)


def test_groups():
    found = judge_records(pool(models=60, leak=6))
    names = np.where(np.arange(40) < 30, "few", "more")
    first, second = by_group(found, names)
    assert (first.name, first.records, second.name, second.records) == ("more", 10, "few", 30)
    assert first.tpr == pytest.approx(found.tpr[30:].mean())
    assert first.exposed + second.exposed == found.exposed.sum()
    assert first.top == (found.rank[30:] <= 4).sum()
