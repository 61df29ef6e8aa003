"""One cell of the grid: a metric and a formula on one scenario, from scores to figures."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mico_exp.atomic import write_bytes
from mico_exp.calibration import Formula, calibrate, scale
from mico_exp.challenge import ChallengePoints
from mico_exp.errors import InputError
from mico_exp.extraction import Scores
from mico_exp.scoring import Roc, figures, roc

Predictions = Mapping[str, NDArray[np.float32]]
PREDICTIONS_FILE = "predictions.npz"
SHOWN_AS = {"train": "val", "dev": "dev", "final": "final"}  # train targets validate, left out


@dataclass(frozen=True, eq=False)
class Result:
    """What a cell found.

    predictions: phase → (T, P) float32 in [0, 1]; ``train`` leave-one-out.
    figures: official figures by name (``val/auc``) and the rates of the fall-backs.
    curves: ROC by phase, ``validation`` first.
    """

    predictions: Predictions
    figures: dict[str, float]
    curves: dict[str, Roc]


def evaluate(
    scores: Scores,
    points: ChallengePoints,
    formula: Formula,
    truth: Mapping[str, NDArray[np.bool_]],
) -> Result:
    """Calibrate a scenario's scores in every phase, and score where membership is known.

    Args:
        scores: one metric under the train models and under every target.
        points: where the challenge points lie.
        formula: see `mico_exp.formulas`.
        truth: (T, P) membership of dev and final models, where known; used for figures alone.
    """
    predictions, found, curves = {}, {}, {}
    for phase, own in scores.own.items():
        calibrated = calibrate(
            formula,
            own,
            scores.shadow,
            points.is_member,
            points.columns(phase),
            leave_one_out=phase == "train",
        )
        predictions[phase] = scale(calibrated.scores)
        name = SHOWN_AS[phase]
        found[f"{name}/out_fallback_rate"] = calibrated.out_fallback_rate
        found[f"{name}/in_fallback_rate"] = calibrated.in_fallback_rate
    for phase, solution in {"train": points.solution, **truth}.items():
        name = SHOWN_AS[phase]
        values = figures(solution, predictions[phase])
        found |= {f"{name}/{figure}": value for figure, value in values.items()}
        shown = "validation" if phase == "train" else phase
        curves[shown] = roc(solution, predictions[phase])
    found["out_fallback_rate"] = found["val/out_fallback_rate"]
    return Result(predictions, found, curves)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Keep the predictions of all phases in one compact file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **predictions)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue(), durable=False)


def read_predictions(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read what `write_predictions` wrote."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {phase: file[phase] for phase in file.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as predictions: {error}") from error
