"""Whether models seem to be what they should be, on numbers whose answer is known."""

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from mico_exp.common.errors import InputError
from mico_exp.scores.vitals import Vitals, _ranks, findings


def vitals(leak=1.0, models=20, points=40, seed=0):
    """Models whose members score higher by `leak` deviations; membership of the train models."""
    random = np.random.default_rng(seed)
    counts = {"train": models, "dev": 4}
    solution = random.permuted(np.tile([True, False], (models, points // 2)), axis=1)
    logit = {phase: random.normal(2, 3, (count, points)) for phase, count in counts.items()}
    logit["train"] = logit["train"] + 3 * leak * solution
    right = {phase: random.random(rows.shape) < 0.8 for phase, rows in logit.items()}
    return Vitals(logit, right), solution


NAMES = {
    "train": [f"train/model_{i}" for i in range(20)],
    "dev": [f"dev/model_{i}" for i in "0123"],
}


def test_each_models_auc_is_that_of_its_own_points():
    found, solution = vitals()
    found.logit["train"][3] = np.round(found.logit["train"][3])  # ties count half
    expected = [roc_auc_score(*pair) for pair in zip(solution, found.logit["train"], strict=True)]
    np.testing.assert_allclose(found.aucs(solution), expected)
    assert found.told(solution).auc == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(("leak", "apart"), [(1.0, True), (0.3, True), (0.0, False), (-0.5, False)])
def test_members_are_told_apart_or_not(leak, apart):
    found, solution = vitals(leak)
    told = found.told(solution)
    assert told.apart is apart
    assert told.low < told.auc < told.high
    lines = findings(found, solution, NAMES)
    assert len(lines) == (0 if apart else 1)
    if not apart:
        assert f"AUC {told.auc:.4f} [{told.low:.4f}, {told.high:.4f}], mean of 20 train" in lines[0]


def test_nothing_is_found_apart_by_chance_about_as_often_as_it_should_be():
    """A 95 % interval: one-sided, one null experiment in forty has members apart."""
    for models in (2, 20):
        found = [vitals(0.0, models, seed=seed) for seed in range(400)]
        share = np.mean([one.told(solution).apart for one, solution in found])
        assert share < 0.045


def test_a_single_model_is_judged_by_what_chance_gives():
    found, solution = vitals(0.0, models=1)
    told = found.told(solution)
    n = 20  # of either kind
    error = np.sqrt((2 * n + 1) / (12 * n * n))
    assert told.high - told.low == pytest.approx(2 * 1.96 * error)


def test_points_of_one_class():
    found, solution = vitals()
    with pytest.raises(InputError, match="points of both kinds, members and non-members"):
        found.told(np.ones_like(solution))
    solution[5] = True
    assert found.told(solution).apart


def test_a_model_whose_seeds_are_not_its_own_is_named():
    found, solution = vitals(leak=1.5, points=100)
    found.logit["train"][[7, 11]] = np.random.default_rng(1).normal(2, 3, (2, 100))
    assert found.lost(solution) == [7, 11]
    (line,) = findings(found, solution, NAMES)
    assert "under 2 of 20 train models members score no higher" in line
    assert "the first train/model_7" in line
    found, solution = vitals(leak=0.2)  # where all are near chance none stands out
    assert found.lost(solution) == []


@pytest.mark.parametrize("seed", range(5))
def test_models_that_are_alike_are_not_far_from_each_other(seed):
    for points in (6, 40, 200):
        assert vitals(seed=seed, points=points)[0].outliers() == {}


def scaled(found, phase, row, factor):
    found.logit[phase][row] *= factor


def moved(found, phase, row, by):
    found.logit[phase][row] += by


def wrong(found, phase, row, _):
    found.right[phase][row] = False


@pytest.mark.parametrize(
    ("spoil", "amount", "words"),
    [
        (scaled, 1e4, "its median of the logit score is"),
        (scaled, 1e-3, "its spread of the logit score is"),
        (moved, 40.0, "its median of the logit score is"),
        (moved, -40.0, "its median of the logit score is"),
        (wrong, None, "its accuracy is 0, usually 0."),
    ],
)
@pytest.mark.parametrize("place", [("train", 4), ("dev", 2)])
def test_a_model_far_from_the_others_is_named(spoil, amount, words, place):
    found, solution = vitals(points=100)
    spoil(found, *place, amount)
    outliers = found.outliers()
    assert list(outliers) == [place]
    assert outliers[place].startswith(words)
    line = findings(found, solution, NAMES)[-1]
    assert f"1 of 24 models are far from the others, the first {NAMES[place[0]][place[1]]}" in line
    assert "`compute.allow_outliers=true`" in line


def test_a_model_that_is_not_finite_is_no_outlier_and_hides_none():
    found, solution = vitals()
    found.logit["train"][3] = np.nan
    scaled(found, "train", 5, 1e6)
    assert list(found.outliers()) == [("train", 5)]
    assert found.told(solution).apart


def test_too_few_models_to_tell():
    found, _ = vitals(models=2)
    few = Vitals({"train": found.logit["train"]}, {"train": found.right["train"]})
    few.logit["train"][0] *= 1e6
    assert few.outliers() == {}


def test_ranks_are_scipys():
    random = np.random.default_rng(0)
    for values in (random.normal(size=50), random.integers(0, 9, 50) * 1.0, np.array([np.inf, 1])):
        np.testing.assert_array_equal(_ranks(values), rankdata(values))
    assert np.isnan(_ranks(np.array([1, np.nan]))).all()


def test_models_of_one_point_are_looked_at_together():
    """Against scikit-learn's AUC over all models; of one kind alone there is nothing to say."""
    random = np.random.default_rng(0)
    solution = random.random((40, 1)) < 0.5
    logit = random.normal(size=(40, 1)) + solution
    found = Vitals({"train": logit}, {"train": solution})
    told = found.told(solution)
    assert told.auc == pytest.approx(roc_auc_score(solution[:, 0], logit[:, 0]))
    assert told.low < told.auc < told.high
    with pytest.raises(InputError, match="No train model has finite scores"):
        found.told(np.ones((40, 1), dtype=bool))
