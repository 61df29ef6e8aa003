import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mico_exp.common.errors import InputError
from mico_exp.results import scoring, statistics
from mico_exp.results.selection import auc_within_one_se, highest, within_one_se

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("curse", ROOT / "benchmarks" / "winners_curse.py")
simulation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulation)


def world(models, points, seed=0, digits=8):
    random = np.random.default_rng(seed)
    truth = random.random((models, points)) < 0.5
    truth[:, :2] = True, False
    scores = random.normal(size=truth.shape) + truth * (0.5 + random.normal(size=(models, 1)) / 2)
    return truth, scores.round(digits)


def literally(truth, scores, weights):
    """Each draw written out: its models' points one after another, scored as any others."""
    for row in weights.astype(int):
        models = np.repeat(np.arange(len(truth)), row)
        yield truth[models].ravel(), scores[models].ravel()


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("digits", [8, 1, 0])
def test_however_many_points_pairs_are_counted_exactly(digits, single, monkeypatch):
    """In stretches and in long blocks, with ties in short runs and in long ones."""
    truth, scores = world(6, 90, digits=digits)
    scores = scores.astype(np.float32) if single else scores
    weights = statistics.draw(6, 30)
    usual = statistics.Ranked(truth, scores)
    for name, value in (("STRETCH", 64), ("MOST_COUNTS", 30), ("EXACT", 100)):
        monkeypatch.setattr(statistics, name, value)
    ranked = statistics.Ranked(truth, scores)
    assert ranked.members.length > usual.members.length
    for x in scoring.OFFICIAL_FPRS:
        assert np.array_equal(ranked.tpr_at(x, weights), usual.tpr_at(x, weights))
    for i, j in np.ndindex(6, 6):
        other, member = scores[i][~truth[i]], scores[j][truth[j]][:, np.newaxis]
        expected = (member > other).sum() + (member == other).sum() / 2
        assert ranked.pairs[i, j] == usual.pairs[i, j] == expected


@pytest.mark.parametrize("digits", [8, 1])
def test_a_draw_is_scored_as_if_its_models_were_written_out(digits):
    truth, scores = world(7, 30, digits=digits)
    weights = statistics.draw(7, 40)
    ranked = statistics.Ranked(truth, scores)
    found = {x: ranked.tpr_at(x, weights) for x in scoring.OFFICIAL_FPRS}
    auc = ranked.auc(weights)
    for i, (drawn_truth, drawn) in enumerate(literally(truth, scores, weights)):
        for x, values in found.items():
            best = max(
                (drawn[drawn_truth] >= threshold).mean()
                for threshold in [np.inf, *set(drawn)]
                if (drawn[~drawn_truth] >= threshold).mean() < x
            )
            assert values[i] == pytest.approx(best, abs=1e-12)
        assert auc[i] == pytest.approx(scoring.roc(drawn_truth, drawn).auc, abs=1e-6)


def test_all_models_once_is_the_official_figure():
    truth, scores = world(9, 50)
    ranked, once = statistics.Ranked(truth, scores), np.ones((1, 9), np.float32)
    official = scoring.figures(truth, scores)
    for x in scoring.OFFICIAL_FPRS:
        assert ranked.tpr_at(x, once)[0] == pytest.approx(official[f"tpr_at_fpr_{x}"], abs=1e-12)
    assert ranked.auc(once)[0] == pytest.approx(official["auc"], abs=1e-6)


def test_draws_are_models_with_replacement_and_the_same_every_time():
    weights = statistics.draw(20, 3000, seed=4)
    assert weights.shape == (3000, 20)
    assert (weights.sum(axis=1) == 20).all()
    assert weights.mean() == 1
    assert weights.var() == pytest.approx(1 - 1 / 20, rel=0.05)
    statistics.draw.cache_clear()
    assert np.array_equal(weights, statistics.draw(20, 3000, seed=4))
    assert not np.array_equal(weights, statistics.draw(20, 3000, seed=5))
    halves = statistics.halve(7, 100)
    assert (halves.sum(axis=1) == 3).all()
    assert 30 < halves[:, 0].sum() < 60
    assert np.array_equal(halves, statistics.halve(7, 100))
    assert not np.array_equal(halves, statistics.halve(7, 100, seed=1))


def test_intervals_are_percentiles_of_the_draws():
    truth, scores = world(12, 40)
    found = statistics.intervals(truth, scores, count=200, seed=3)
    assert set(found) == {"auc", *(f"tpr_at_fpr_{x}" for x in scoring.OFFICIAL_FPRS)}
    drawn = literally(truth, scores, statistics.draw(12, 200, seed=3))
    auc = [scoring.roc(one_truth, one).auc for one_truth, one in drawn]
    assert found["auc"] == pytest.approx(np.percentile(auc, [2.5, 97.5]), abs=1e-6)
    assert found["auc"].half_width == pytest.approx(np.ptp(found["auc"]) / 2)


def test_one_model_has_no_interval_over_models():
    truth, scores = world(1, 40)
    assert statistics.intervals(truth, scores) == {}
    assert statistics.roc_band(truth, scores, [0.1]) is None


def test_draws_without_a_class_do_not_count():
    truth = np.array([[True, True], [False, False], [True, False]])
    scores = np.array([[0.9, 0.8], [0.1, 0.2], [0.7, 0.3]])
    found = statistics.intervals(truth, scores)
    assert found["auc"] == (1, 1)
    assert found["tpr_at_fpr_0.1"] == (1, 1)
    ranked = statistics.Ranked(truth, scores)
    weights = np.array([[2, 0, 0], [0, 2, 0], [1, 1, 0]], np.float32)
    assert np.array_equal(ranked.tpr_at(0.1, weights), [np.nan, np.nan, 1], equal_nan=True)
    assert np.array_equal(ranked.auc(weights), [np.nan, np.nan, 1], equal_nan=True)
    found = statistics.compare([(truth, scores), (truth, -scores)], highest, halvings=50)
    assert found.probability_best == pytest.approx([1, 0])
    assert (found.difference_interval[1] == 1).all()
    apart = np.array([[True, True], [False, False]] * 2), np.arange(8.0).reshape(4, 2)
    found = statistics.compare([apart, apart], highest)
    assert found.probability_best == pytest.approx([0.5, 0.5])
    assert found.procedure is None or np.isfinite(found.procedure.value)


@pytest.mark.parametrize("value", [0.5, 0.0])
def test_equal_scores_say_nothing(value):
    truth, scores = world(5, 20)
    found = statistics.intervals(truth, np.full_like(scores, value))
    assert found["tpr_at_fpr_0.1"] == (0, 0)
    assert found["auc"] == (0.5, 0.5)


def test_what_cannot_be_ranked():
    truth, scores = world(5, 20)
    with pytest.raises(InputError, match="1 of 100 predictions are NaN"):
        statistics.Ranked(truth, np.where(np.arange(100).reshape(5, 20) == 3, np.nan, scores))
    with pytest.raises(InputError, match="one class only"):
        statistics.Ranked(np.ones_like(truth), scores)
    with pytest.raises(InputError, match="has shape"):
        statistics.Ranked(truth, scores[:4])
    with pytest.raises(InputError, match="no cell"):
        statistics.compare([], highest)
    with pytest.raises(InputError, match="a single model"):
        statistics.compare([(truth[:1], scores[:1])], highest)
    with pytest.raises(InputError, match="of 5 and of 4 models"):
        statistics.compare([(truth, scores), (truth[:4], scores[:4])], highest)


def test_the_band_holds_the_intervals_of_single_rates():
    truth, scores = world(10, 40)
    low, high = statistics.roc_band(truth, scores, scoring.OFFICIAL_FPRS, count=1000)
    known = statistics.intervals(truth, scores)
    for i, x in enumerate(scoring.OFFICIAL_FPRS):
        assert (low[i], high[i]) == known[f"tpr_at_fpr_{x}"]


def test_cells_are_compared_on_the_same_draws():
    truth, scores = world(20, 40)
    random = np.random.default_rng(1)
    cells = [(truth, scores), (truth, scores + random.normal(size=scores.shape)), (truth, scores)]
    found = statistics.compare(cells, highest, count=300, halvings=50)
    drawn = [
        [scoring.roc(t, s).tpr_at(0.1) for t, s in literally(truth, one, statistics.draw(20, 300))]
        for _, one in cells
    ]
    drawn = np.array(drawn).T
    assert found.chosen == 0
    assert found.tpr[1] == scoring.figures(truth, cells[1][1])["tpr_at_fpr_0.1"]
    assert found.standard_error == pytest.approx(drawn.std(axis=0), abs=1e-9)
    difference = np.percentile(drawn[:, 0] - drawn[:, 1], [2.5, 97.5])
    assert found.difference_interval[1] == pytest.approx(difference, abs=1e-9)
    assert found.difference[1] == found.tpr[0] - found.tpr[1]
    # Two cells that are one and the same share the first place of every draw, and never differ.
    assert found.probability_best[0] == found.probability_best[2]
    wins = drawn[:, 1] > drawn[:, 0]
    ties = drawn[:, 1] == drawn[:, 0]
    assert found.probability_best[1] == pytest.approx(wins.mean() + ties.mean() / 3)
    assert found.probability_best.sum() == pytest.approx(1)
    assert (found.difference_interval[2] == 0).all()
    assert found.like_chosen[2]
    assert found.like_chosen[0]


def test_the_procedure_chooses_on_one_half_and_is_scored_on_the_other():
    truth, scores = world(10, 30)
    random = np.random.default_rng(2)
    cells = [(truth, scores + random.normal(size=scores.shape)) for _ in range(4)]
    found = statistics.compare(cells, highest, count=10, halvings=30, seed=5)
    values = []
    for half in statistics.halve(10, 30, seed=5):
        for here, there in ((half, ~half), (~half, half)):
            figures = [scoring.figures(truth[here], one[here]) for _, one in cells]
            best = max(
                range(4), key=lambda c: (figures[c]["tpr_at_fpr_0.1"], figures[c]["auc"], -c)
            )
            chosen = scoring.figures(truth[there], cells[best][1][there])
            values.append(chosen["tpr_at_fpr_0.1"])
    assert found.procedure.value == pytest.approx(np.mean(values), abs=1e-9)
    few = [(truth[:3], one[:3]) for _, one in cells]
    assert statistics.compare(few, highest).procedure is None


RULES = {
    "highest": highest,
    "auc": auc_within_one_se,
    "simplest": partial(within_one_se, simplicity=np.array([2, 0, 3, 1])),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_comparison_by_plain_loops(rule):
    """Draws, halves and halves of draws written out; a half has half as many models to err by."""
    choose, (truth, scores) = RULES[rule], world(8, 30)
    random = np.random.default_rng(4)
    cells = [
        scores + strength * random.normal(size=scores.shape) for strength in (0.5, 1, 0.6, 0.7)
    ]
    drawn, halves = statistics.draw(8, 12, seed=3), statistics.halve(8, 15, seed=3)
    found = statistics.compare([(truth, one) for one in cells], choose, 12, 15, seed=3)

    def figures(weights):
        """TPR and AUC (1, C) of models by how often each is there."""
        curves = [scoring.roc(*next(literally(truth, one, np.array([weights])))) for one in cells]
        return np.array([[c.tpr_at(0.1) for c in curves]]), np.array([[c.auc for c in curves]])

    def chosen(weights, error):
        return int(choose(*figures(weights), error[None])[0])

    draws = np.concatenate([figures(row)[0] for row in drawn])
    error = draws.std(axis=0)
    assert found.chosen == chosen(np.ones(8), error) == (2 if rule == "highest" else 3)
    np.testing.assert_allclose(found.tpr, figures(np.ones(8))[0][0], atol=1e-12)
    np.testing.assert_allclose(found.auc, figures(np.ones(8))[1][0], atol=1e-12)
    expected = np.percentile(draws, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(found.tpr_interval, expected, atol=1e-12)

    def crossed(half, weights):
        """Chosen on either half, scored on the other."""
        pairs = (half * weights, ~half * weights), (~half * weights, half * weights)
        return [figures(there)[0][0, chosen(here, error * np.sqrt(2))] for here, there in pairs]

    value = [crossed(half, np.ones(8)) for half in halves]
    assert found.procedure.value == pytest.approx(np.mean(value), abs=1e-12)
    value = [np.mean(crossed(half, drawn[i % 12])) for i, half in enumerate(halves)]
    expected = np.percentile(value, [2.5, 97.5])
    assert found.procedure.interval == pytest.approx(expected, abs=1e-12)


def test_a_chosen_cell_that_is_clearly_worse_is_not_like_the_others():
    truth, scores = world(12, 40)
    cells = [(truth, scores), (truth, scores + 2 * truth), (truth, scores)]
    found = statistics.compare(cells, lambda tpr, *_: np.zeros(len(tpr), int), count=50)
    assert found.chosen == 0
    assert (found.difference_interval[1] < 0).all()
    assert found.difference[1] < 0
    assert found.like_chosen.tolist() == [True, False, True]


def test_compared_are_the_official_figures_where_models_tie():
    """All on one line, of which the official curve keeps the two ends and the draws every point."""
    truth, scores = np.tile([True, False], (2, 20)), np.repeat(np.arange(40.0), 2).reshape(2, 40)
    once = np.ones((1, 2), np.float32)
    found = statistics.compare([(truth, scores)], highest, count=20)
    assert statistics.Ranked(truth, scores).tpr_at(0.1, once) == [3 / 40]
    assert found.tpr == [scoring.figures(truth, scores)["tpr_at_fpr_0.1"]] == [1 / 40]
    assert found.auc == pytest.approx([0.5], abs=1e-12)


def test_no_draw_with_both_classes_is_an_error():
    truth = np.array([[True, True], [False, False]])
    scores = np.array([[0.9, 0.8], [0.1, 0.2]])
    drawn = [statistics.draw(2, 1, seed).tolist() for seed in range(9)]
    alone, both = (
        next(i for i, (row,) in enumerate(drawn) if (max(row) > 1) == one) for one in (1, 0)
    )
    with pytest.raises(InputError, match="No draw of the models has members and non-members"):
        statistics.compare([(truth, scores)], highest, count=1, seed=alone)
    assert statistics.compare([(truth, scores)], highest, count=1, seed=both).tpr == [1]


def test_where_no_half_has_both_classes_the_choice_has_no_estimate():
    truth = np.array([[True, True], [False, False], [False, False], [False, False]])
    found = statistics.compare([(truth, np.arange(8.0).reshape(4, 2))], highest, count=20)
    assert found.procedure is None
    assert found.tpr == [0]


@pytest.mark.parametrize(("models", "halves"), [(2, 0), (3, 0), (4, 2), (5, 2)])
def test_a_half_has_two_models_at_least(models, halves):
    truth, scores = world(models, 40)
    found = statistics.compare([(truth, scores)], highest, count=20, halvings=20).procedure
    assert (found is None) == (halves == 0)


def test_the_rules():
    tpr = np.array([[0.30, 0.32, 0.32, 0.25]])
    auc = np.array([[0.9, 0.6, 0.7, 0.9]])
    assert highest(tpr, auc, np.zeros_like(tpr)) == [2]
    assert highest(tpr, np.full_like(auc, 0.5), np.zeros_like(tpr)) == [1]
    simplest = partial(within_one_se, simplicity=np.array([2, 3, 1, 0]))
    assert simplest(tpr, auc, np.full_like(tpr, 0.001)) == [2]
    assert simplest(tpr, auc, np.full_like(tpr, 0.1)) == [3]
    first = partial(within_one_se, simplicity=np.array([0, 3, 1, 2]))
    assert first(tpr, auc, np.full_like(tpr, 0.03)) == [0]
    # The highest one's error counts, not the other's.
    assert first(tpr, auc, np.array([[0.1, 0.1, 0.001, 0.1]])) == [2]
    # On the very border it is within.
    border = np.array([[0.5, 0.75]]), np.array([[0.9, 0.6]])
    assert auc_within_one_se(*border, np.full((1, 2), 0.25)) == [0]
    assert auc_within_one_se(*border, np.full((1, 2), 0.249)) == [1]
    assert auc_within_one_se(tpr, auc, np.full_like(tpr, 0.001)) == [2]
    assert auc_within_one_se(tpr, auc, np.full_like(tpr, 0.03)) == [0]
    rows = auc_within_one_se(np.tile(tpr, (2, 1)), np.stack([auc[0], -auc[0]]), np.ones((2, 4)))
    assert rows.tolist() == [0, 1]


def test_intervals_cover_the_truth_where_models_are_drawn():
    by_models, by_points = np.split(simulation.coverage(300, models=30, points=24), 2)
    assert (by_models >= 0.92).all()
    assert (by_models <= 0.98).all()
    assert (by_points < 0.92).all()


def test_the_winners_curse_and_its_repair():
    errors = simulation.curse(20, models=50, points=20)
    naive, nested = errors.mean(axis=0) / errors.std(axis=0, ddof=1)
    assert naive > 1
    assert abs(nested) <= 0.25 + 2 / np.sqrt(20)  # with what 20 repetitions leave open
    assert abs(errors[:, 1].mean()) < errors[:, 0].mean() / 5
