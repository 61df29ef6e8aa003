import logging
from dataclasses import replace

import numpy as np
import pytest

from mico_exp.attacks.calibration import calibrate, scale, sees_gaps
from mico_exp.attacks.evidence import Evidence
from mico_exp.attacks.formulas import offset, uncalibrated
from mico_exp.challenge.points import ChallengePoints
from mico_exp.common.errors import InputError
from mico_exp.results import scoring, statistics
from mico_exp.results.cell import evaluate, read_predictions, read_validation, write_predictions
from mico_exp.scores.table import Scores

SHADOWS, TARGETS, POINTS, UNIQUE = 8, 3, 10, 40


def evidence(scores, points):
    return Evidence({"loss": scores}, points, np.zeros(UNIQUE, dtype=np.int64))


@pytest.fixture
def world():
    """Scores of train and dev models that leak, and where their points lie."""
    random = np.random.default_rng(0)
    columns = {
        phase: np.stack([random.choice(UNIQUE, POINTS, replace=False) for _ in range(count)])
        for phase, count in (("train", SHADOWS), ("dev", TARGETS))
    }
    is_member = random.random((SHADOWS, UNIQUE)) < 0.5
    solution = np.take_along_axis(is_member, columns["train"], axis=1)
    truth = {"dev": random.random((TARGETS, POINTS)) < 0.5}
    points = ChallengePoints(columns, np.arange(UNIQUE), is_member, solution)
    shadow = random.normal(size=(SHADOWS, UNIQUE)) + is_member
    own = {
        "train": np.take_along_axis(shadow, columns["train"], axis=1),
        "dev": random.normal(size=truth["dev"].shape) + truth["dev"],
    }
    return Scores(shadow, own), points, truth


def test_figures_intervals_and_operating_points(world):
    scores, points, truth = world
    found = evaluate(evidence(scores, points), offset, truth)
    calibrated = calibrate(
        offset,
        scores.own["train"],
        scores.shadow,
        points.is_member,
        points.columns("train"),
        left_out=np.arange(SHADOWS),
    )
    assert np.array_equal(found.predictions["train"], scale(calibrated.scores))
    for name, phase, known in (("val", "train", points.solution), ("dev", "dev", truth["dev"])):
        predictions = found.predictions[phase]
        for figure, value in scoring.figures(known, predictions).items():
            assert found.figures[f"{name}/{figure}"] == value
        for figure, (low, high) in statistics.intervals(known, predictions).items():
            assert found.figures[f"{name}/{figure}_low"] == low
            assert found.figures[f"{name}/{figure}_high"] == high
    for row in range(SHADOWS):
        others = np.delete(points.is_member, row, axis=0)[:, points.columns("train")[row]]
        assert np.array_equal(found.out_models[row], (~others).sum(axis=0))


def test_operating_points_and_curves_are_those_of_each_phase(world):
    scores, points, truth = world
    found = evaluate(evidence(scores, points), offset, truth)
    phases = {"train": ("val", "train"), "dev": ("dev", "dev")}
    assert found.curves.keys() == phases.keys()
    for curve, (name, phase) in phases.items():
        known = {"train": points.solution, **truth}[phase]
        expected = scoring.roc(known, found.predictions[phase])
        assert np.array_equal(found.curves[curve].tpr, expected.tpr)
        assert np.array_equal(found.curves[curve].threshold, expected.threshold)
        operating = scoring.operating_points(expected, found.predictions[phase])
        assert (
            operating.items()
            <= {
                figure.removeprefix(f"{name}/"): value for figure, value in found.figures.items()
            }.items()
        )


def test_rates_of_fall_backs_are_told_by_phase(world):
    """With few out models and, at other points, none in; counted point by point."""
    scores, points, truth = world
    is_member = (np.arange(SHADOWS)[:, None] > np.arange(UNIQUE) % 4) & (np.arange(UNIQUE) % 3 > 0)
    points = replace(points, is_member=is_member)
    found = evaluate(evidence(scores, points), offset, truth)
    for name, phase in (("val", "train"), ("dev", "dev")):
        columns, few_out, no_in = points.columns(phase), 0, 0
        for target, point in np.ndindex(columns.shape):
            column = is_member[:, columns[target, point]].tolist()
            others = column[:target] + column[target + 1 :] if phase == "train" else column
            no_in += not any(others)
            few_out += any(others) and others.count(False) < 2
        assert 0 < few_out != no_in > 0
        assert found.figures[f"{name}/out_fallback_rate"] == few_out / columns.size
        assert found.figures[f"{name}/in_fallback_rate"] == no_in / columns.size
        assert found.figures[f"{name}/fallback_rate"] == pytest.approx(
            (few_out + no_in) / columns.size
        )
    assert found.figures["out_fallback_rate"] == found.figures["val/out_fallback_rate"]


def test_all_scores_equal_are_guessing(world):
    _, points, truth = world
    own = {"train": np.zeros((SHADOWS, POINTS)), "dev": np.zeros((TARGETS, POINTS))}
    found = evaluate(evidence(Scores(np.zeros((SHADOWS, UNIQUE)), own), points), offset, truth)
    assert (found.predictions["train"] == 0.5).all()
    assert found.figures["val/auc"] == found.figures["val/auc_low"] == 0.5
    assert found.figures["val/tpr_at_fpr_0.1"] == found.figures["val/tpr_at_fpr_0.1_high"] == 0
    assert found.figures["val/fpr_below_0.1"] == found.figures["val/tied_at_fpr_0.1"] == 0
    assert "val/threshold_at_fpr_0.1" not in found.figures  # nobody is called a member


def test_one_class_only(world, caplog):
    scores, points, truth = world
    with caplog.at_level(logging.WARNING):
        alone = {"dev": np.ones_like(truth["dev"])}
        found = evaluate(evidence(scores, points), offset, alone)
    assert "All 30 challenge points of the dev models are members" in caplog.text
    assert set(found.truth) == {"train"}
    assert "dev" in found.predictions
    assert not any(name.startswith("dev/auc") for name in found.figures)
    one_class = ChallengePoints(
        points.of_phase, points.unique, points.is_member, np.zeros_like(points.solution)
    )
    message = "All 80 challenge points of the train models are non-members"
    with pytest.raises(InputError, match=message):
        evaluate(evidence(scores, one_class), offset, truth)


def test_a_single_dev_model_has_figures_and_no_intervals(world):
    scores, points, truth = world
    own = {"train": scores.own["train"], "dev": scores.own["dev"][:1]}
    of_phase = {"train": points.of_phase["train"], "dev": points.of_phase["dev"][:1]}
    alone = ChallengePoints(of_phase, points.unique, points.is_member, points.solution)
    known = {"dev": truth["dev"][:1]}
    found = evaluate(evidence(Scores(scores.shadow, own), alone), offset, known)
    assert "dev/auc" in found.figures
    assert "dev/auc_low" not in found.figures


def test_a_single_train_model_cannot_be_calibrated(world):
    scores, points, _ = world
    own = {"train": scores.own["train"][:1]}
    of_phase = {"train": points.of_phase["train"][:1]}
    alone = ChallengePoints(of_phase, points.unique, points.is_member[:1], points.solution[:1])
    with pytest.raises(InputError, match="at least one shadow model"):
        evaluate(evidence(Scores(scores.shadow[:1], own), alone), offset, {})


def test_predictions_are_kept_with_membership_for_validation_alone(world, tmp_path):
    scores, points, truth = world
    found = evaluate(evidence(scores, points), offset, truth)
    path = tmp_path / "predictions.npz"
    write_predictions(path, found.predictions, points.solution)
    again = read_predictions(path)
    assert again.keys() == {"train", "dev"}
    assert np.array_equal(again["dev"], found.predictions["dev"])
    solution, predictions = read_validation(path)
    assert np.array_equal(solution, points.solution)
    assert np.array_equal(predictions, found.predictions["train"])
    np.savez(path, train=predictions)  # as an older version wrote it
    with pytest.raises(InputError, match="cannot be read as predictions"):
        read_validation(path)


@pytest.mark.parametrize(
    "train", [np.array([["a", "b"]]), np.array([[0.5, 1j]]), np.array([["1", "2"]], dtype="S")]
)
def test_predictions_that_are_no_numbers_are_refused(tmp_path, train):
    path = tmp_path / "predictions.npz"
    np.savez(path, train=train, train_solution=np.array([[True, False]]))
    with pytest.raises(InputError, match=r"predictions\.npz: train must be an array of real"):
        read_validation(path)


class Marker:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return self.mark.touch, ()


def test_predictions_run_no_code(tmp_path):
    path, mark = tmp_path / "predictions.npz", tmp_path / "mark"
    np.savez(path, train=np.array([[Marker(mark)]]), train_solution=np.array([[True, False]]))
    with pytest.raises(InputError, match="cannot be read as predictions"):
        read_validation(path)
    assert not mark.exists()


def test_figures_that_say_little_are_warned_of(world):
    scores, points, truth = world
    quiet = evaluate(evidence(scores, points), offset, truth)
    assert quiet.warnings == ()
    flat = Scores(
        np.zeros_like(scores.shadow), {k: np.zeros_like(v) for k, v in scores.own.items()}
    )
    found = evaluate(evidence(flat, points), offset, truth)
    assert found.warnings == tuple(
        f"in {phase} all calibrated scores are equal, so they tell nothing"
        for phase in ("validation", "dev")
    )
    nobody_out = replace(points, is_member=np.ones_like(points.is_member))
    lacking = evaluate(evidence(scores, nobody_out), offset, truth)
    assert lacking.warnings == tuple(
        f"in {phase} the formula lacked shadow models at every point"
        for phase in ("validation", "dev")
    )


def test_a_metric_by_itself_needs_no_shadow_model(world):
    """One train model, which leaves itself out, or none of whose points anybody knows."""
    scores, points, truth = world
    columns = {"train": points.of_phase["train"][:1], "dev": points.of_phase["dev"]}
    one = ChallengePoints(columns, points.unique, points.is_member[:1], points.solution[:1])
    own = {"train": scores.own["train"][:1], "dev": scores.own["dev"]}
    found = evaluate(evidence(Scores(scores.shadow[:1], own), one), uncalibrated, truth)
    assert np.array_equal(found.predictions["train"], scale(own["train"]))
    assert np.array_equal(found.predictions["dev"], scale(own["dev"]))
    assert found.figures["val/auc"] == scoring.figures(one.solution, own["train"])["auc"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda s: s.astype(str), "must give real numbers, got <U"),
        (lambda s: s + 1j, "must give real numbers, got complex128"),
        (lambda _: "text", "must give real numbers, got <U4"),
        (lambda _: None, "must give real numbers, got object"),
        (lambda s: s[..., :3], r"must give shape \(8, 10\) for scores \(8, 10\), got \(8, 3\)"),
        (lambda _: 1 / 0, "The formula fails: ZeroDivisionError: division by zero"),
        (lambda s: s * np.inf, "calibrated scores are not finite"),
    ],
)
def test_what_a_formula_of_ones_own_gives_is_told_as_its_own(world, given, said):
    scores, points, truth = world
    with pytest.raises(InputError, match=said):
        evaluate(evidence(scores, points), lambda score, *_: given(score), truth)


def test_a_formula_that_sees_gaps_gives_a_pair(world):
    scores, points, truth = world
    alone = sees_gaps(lambda score, *_: score)
    with pytest.raises(InputError, match="its scores and where it lacked models, got ndarray"):
        evaluate(evidence(scores, points), alone, truth)


def test_lists_will_do(world):
    scores, points, truth = world
    found = evaluate(evidence(scores, points), lambda score, *_: score.tolist(), truth)
    assert np.array_equal(found.predictions["dev"], scale(scores.own["dev"]))
