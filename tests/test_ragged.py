"""Models with unequal numbers of challenge points: rows that end in places that are no points."""

from dataclasses import replace

import leaky
import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from mico_exp.attacks.evidence import Evidence
from mico_exp.attacks.folds import Folds
from mico_exp.challenge.points import NONE
from mico_exp.common.errors import InputError
from mico_exp.config.making import make
from mico_exp.config.options import option_names
from mico_exp.config.typed import OPTIONS
from mico_exp.results import plots, scoring, statistics
from mico_exp.results.cell import calibrate_phases, evaluate, read_validation, write_predictions
from mico_exp.results.selection import highest
from mico_exp.scores.table import Scores

FULL = 12


def cut(evidence, truth, counts):
    """The same evidence with so many points of each model, by phase, and the truth of dev."""
    there = {phase: np.arange(FULL) < np.array(some)[:, None] for phase, some in counts.items()}

    def shown(rows, fill):
        return {phase: np.where(there[phase], some, fill) for phase, some in rows.items()}

    of_phase = shown(evidence.points.of_phase, NONE)
    solution = evidence.points.solution & there["train"]
    scores = {
        name: replace(one, own=shown(one.own, np.nan)) for name, one in evidence.scores.items()
    }
    points = replace(evidence.points, of_phase=of_phase, solution=solution)
    return replace(evidence, scores=scores, points=points), {"dev": truth & there["dev"]}


def alone(evidence, phase, row):
    """One target as a scenario of its own; a train model with all others as its shadow models."""
    points = evidence.points
    asked = points.points_of(phase, row)[np.newaxis]
    others = np.arange(len(points.is_member)) != (row if phase == "train" else -1)
    scores = {
        name: Scores(
            one.shadow[others],
            {"dev": one.own[phase][[row], : asked.shape[1]]},
            {"dev": [one.known[phase][row]]},
        )
        for name, one in evidence.scores.items()
    }
    place = replace(points, of_phase={"dev": asked}, is_member=points.is_member[others])
    return Evidence(scores, place, evidence.labels, {"dev": [evidence.known[phase][row]]})


@pytest.fixture(scope="module")
def world():
    evidence, truth = leaky.evidence(
        {"logit": 1.0, "other": 0.6}, models=10, targets=3, points=FULL, unique=30, known=20
    )
    return cut(evidence, truth, {"train": [12, 5, 9, 12, 1, 5, 7, 12, 8, 9], "dev": [4, 12, 4]})


@pytest.fixture(scope="module")
def probable(world):
    """The first metric alone, as probabilities."""
    evidence, truth = world
    one = evidence.scores["logit"]

    def chance(x):
        return 1 / (1 + np.exp(-x))

    own = {phase: chance(rows) for phase, rows in one.own.items()}
    known = {phase: [chance(x) for x in rows] for phase, rows in one.known.items()}
    return replace(evidence, scores={"confidence": Scores(chance(one.shadow), own, known)}), truth


with initialize_config_dir(str(OPTIONS), version_base="1.3"):
    CHOICES = {
        name: compose("config", overrides=[f"formula='{name}'"]).formula
        for name in option_names("formula")
    }
LEARNT = ("stack", "stack_search", "quantile", "density_ratio")
FEW = {"stack_search": {"folds": 4, "cs": [0.1], "inner": 1}}


def made(name):
    changed = FEW.get(name, {"folds": 3} if name in LEARNT else {})
    return make({**CHOICES[name].function, **changed})


@pytest.mark.parametrize("name", [name for name in CHOICES if name not in LEARNT])
def test_every_target_is_judged_as_by_itself(probable, name):
    """Scores and predictions are NaN where is no point, and nowhere else."""
    evidence, formula = probable[0], made(name)
    for phase, one in calibrate_phases(evidence, formula).items():
        there = evidence.points.there(phase)
        assert np.array_equal(np.isfinite(one.scores), there)
        assert np.array_equal(np.isfinite(one.predictions), there)
        assert one.predictions[there].min() == 0
        assert one.predictions[there].max() == 1
        assert (one.out_models[~there] == 0).all()
        for row in range(len(there)):
            expected = calibrate_phases(alone(evidence, phase, row), formula)["dev"]
            np.testing.assert_allclose(one.scores[row][there[row]], expected.scores[0], rtol=1e-9)
            assert np.array_equal(one.out_models[row][there[row]], expected.out_models[0])


@pytest.mark.parametrize("name", LEARNT)
def test_what_is_learnt_does_not_hang_on_what_stands_where_no_point_is(world, probable, name):
    """Whatever number stands there, and however long the rows are."""
    evidence, _ = world if "all" in (CHOICES[name].get("needs") or ()) else probable
    there = {phase: evidence.points.there(phase) for phase in evidence.phases}

    def longer(rows, fill):
        return np.concatenate([rows, np.full((len(rows), 3), fill, dtype=rows.dtype)], axis=1)

    scores = {
        metric: replace(
            one,
            own={p: longer(np.where(there[p], own, 7.5), -3.0) for p, own in one.own.items()},
        )
        for metric, one in evidence.scores.items()
    }
    points = replace(
        evidence.points,
        of_phase={phase: longer(rows, NONE) for phase, rows in evidence.points.of_phase.items()},
        solution=longer(evidence.points.solution | ~there["train"], True),
    )
    expected = calibrate_phases(evidence, made(name))
    found = calibrate_phases(replace(evidence, scores=scores, points=points), made(name))
    for phase, one in found.items():
        assert np.array_equal(np.isfinite(one.scores[:, :FULL]), there[phase])
        assert np.array_equal(one.scores[:, :FULL], expected[phase].scores, equal_nan=True)
        assert one.fallback_rate == expected[phase].fallback_rate


def test_a_model_lacks_scores_where_it_has_a_point_alone(world):
    evidence, _ = world
    one = evidence.scores["logit"]
    there = {phase: evidence.points.there(phase) for phase in evidence.phases}
    assert one.nan_models(there) == 0
    own = one.own | {"dev": one.own["dev"].copy()}
    own["dev"][1, 3] = np.nan
    assert replace(one, own=own).nan_models(there) == 1


def test_points_of_unequal_rows_are_shared_or_not(world):
    evidence, _ = world
    assert Folds.of(evidence.points, 3).point_folds == 2
    apart = np.where(evidence.points.there("train"), np.arange(120).reshape(10, 12), NONE)
    points = replace(evidence.points, of_phase={"train": apart}, unique=np.arange(120))
    assert Folds.of(points, 3).point_folds == 1


@pytest.fixture
def rows():
    """Membership, predictions and where there is a point: (9, 30)."""
    random = np.random.default_rng(0)
    there = np.arange(30) < random.integers(1, 31, size=9)[:, np.newaxis]
    there[0] = True
    truth = (random.random(there.shape) < 0.5) & there
    scores = random.normal(size=there.shape).round(1) + truth
    return truth, np.where(there, scores, np.nan), there


def joined(truth, scores, there, models):
    """Points of models, one after another."""
    some = [(truth[m][there[m]], scores[m][there[m]]) for m in models]
    return map(np.concatenate, zip(*some, strict=True))


def test_figures_are_those_of_all_points_one_after_another(rows):
    _, scores, there = rows
    one = list(joined(*rows, range(9)))
    curve = scoring.roc(*rows)
    assert scoring.figures(*rows) == scoring.figures(*one)
    assert scoring.operating_points(curve, scores, there) == scoring.operating_points(curve, one[1])


def test_a_draw_brings_all_points_of_its_models(rows):
    weights = statistics.draw(9, 40)
    ranked = statistics.Ranked(*rows)
    found = {x: ranked.tpr_at(x, weights) for x in scoring.OFFICIAL_FPRS}
    auc = ranked.auc(weights)
    for i, row in enumerate(weights.astype(int)):
        truth, scores = joined(*rows, np.repeat(np.arange(9), row))
        for x, values in found.items():
            best = max(
                (scores[truth] >= threshold).mean()
                for threshold in [np.inf, *set(scores)]
                if (scores[~truth] >= threshold).mean() < x
            )
            assert values[i] == pytest.approx(best, abs=1e-12)
        assert auc[i] == pytest.approx(scoring.roc(truth, scores).auc, abs=1e-12)


def test_intervals_bands_and_comparisons_leave_out_what_is_no_point(rows):
    truth, scores, there = rows
    ranked, weights = statistics.Ranked(*rows), statistics.draw(9)
    found = statistics.intervals(truth, scores, there=there)
    assert found["auc"] == statistics.interval(ranked.auc(weights))
    low, high = statistics.roc_band(truth, scores, [0.1], 1000, there)
    assert (low[0], high[0]) == found["tpr_at_fpr_0.1"]
    cells = [(truth, scores), (truth, -scores)]
    compared = statistics.compare(cells, highest, 100, 20, there=there)
    assert compared.tpr[0] == scoring.figures(*rows)["tpr_at_fpr_0.1"]
    for broken in (None, np.ones_like(there)):
        with pytest.raises(InputError, match="predictions are NaN"):
            statistics.Ranked(truth, scores, broken)
    curve = plots.Curve(
        "x", scoring.roc(*rows), int(there.sum()), plots.PHASE_STYLE["train"], *rows
    )
    assert plots.png(plots.roc_plot("x", [curve])).startswith(b"\x89PNG")


def test_a_run_of_unequal_rows_is_kept_and_read_as_it_is(world, tmp_path):
    evidence, truth = world
    one = replace(evidence, scores={"logit": evidence.scores["logit"]})
    found = evaluate(one, make(CHOICES["0"].function), truth)
    write_predictions(tmp_path / "it.npz", found.predictions, found.truth["train"])
    solution, predictions = read_validation(tmp_path / "it.npz")
    assert np.array_equal(predictions, found.predictions["train"], equal_nan=True)
    figures = scoring.figures(solution, predictions, evidence.points.there("train"))
    assert figures["auc"] == found.figures["val/auc"]
    dev = scoring.figures(truth["dev"], found.predictions["dev"], evidence.points.there("dev"))
    assert dev["auc"] == found.figures["dev/auc"]
