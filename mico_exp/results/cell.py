"""One cell of the grid: a metric and a formula on one scenario, from scores to figures."""

import io
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mico_exp.attacks.calibration import Calibrated, Formula
from mico_exp.attacks.evidence import Attack, Evidence
from mico_exp.challenge.phases import CALLED
from mico_exp.common.arrays import Mask
from mico_exp.common.atomic import write_bytes
from mico_exp.common.errors import InputError
from mico_exp.results.scoring import Roc, figures_of, flat, operating_points
from mico_exp.results.statistics import Ranked

Predicted = NDArray[np.float32]
Membership = NDArray[np.bool_]
Predictions = Mapping[str, Predicted]
SOLUTION = "train_solution"  # in that file: membership at the train models' points
SHOWN_AS = {"train": "val", "dev": "dev", "final": "final"}  # in the names of figures
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Result:
    """What a cell found.

    predictions: phase → (T, P) float32 in [0, 1]; ``train`` leave-one-out. Rows of models with
        fewer points than others end in NaN.
    truth: phase → (T, P) membership, where it is known and has both classes; False at those ends.
    there: phase → (T, P) False at those ends.
    figures: by name: official figures (``val/auc``), their 95 % intervals over models
        (``val/auc_low``, ``val/auc_high``), operating points, rates of the fall-backs.
    curves: ROC by phase, ``train`` first.
    out_models: (T, P) how many models beside the target were not trained on a validation point.
    warnings: what makes figures of a phase say little.
    """

    predictions: Predictions
    truth: dict[str, Membership]
    there: dict[str, Mask]
    figures: dict[str, float]
    curves: dict[str, Roc]
    out_models: NDArray[np.int64]
    warnings: tuple[str, ...] = ()


def evaluate(
    evidence: Evidence, formula: Formula | Attack, truth: Mapping[str, Membership]
) -> Result:
    """Calibrate a scenario's scores in every phase, and score where membership is known.

    Args:
        evidence: scores of the metric, or of several for an attack that takes several.
        formula: of any kind that `calibration.Formula` names.
        truth: (T, P) membership of dev and final models, where known; used for figures alone.

    Raises:
        InputError: calibration fails, or the train models' points are all of one class.
    """
    solution = evidence.points.solution
    there = {phase: evidence.points.there(phase) for phase in evidence.phases}
    _check_classes("train", solution, there["train"])
    calibrated = calibrate_phases(evidence, formula)
    predictions = {phase: one.predictions for phase, one in calibrated.items()}
    found = {}
    for phase, one in calibrated.items():
        for rate in ("fallback_rate", "out_fallback_rate", "in_fallback_rate"):
            found[f"{SHOWN_AS[phase]}/{rate}"] = getattr(one, rate)
    found["out_fallback_rate"] = found["val/out_fallback_rate"]
    known = {"train": solution, **dict(with_both_classes(truth, there))}
    curves = {}
    for phase, solution in known.items():
        ranked = Ranked(solution, predictions[phase], there[phase])
        values = _figures(ranked, predictions[phase], there[phase])
        found |= {f"{SHOWN_AS[phase]}/{figure}": value for figure, value in values.items()}
        curves[phase] = ranked.curve
    warnings = tuple(_warnings(calibrated))
    out_models = calibrated["train"].out_models
    return Result(predictions, known, there, found, curves, out_models, warnings)


def _warnings(calibrated: Mapping[str, Calibrated]) -> Iterator[str]:
    for phase, one in calibrated.items():
        models = f"in {CALLED[phase]}"
        if one.constant:
            yield f"{models} all calibrated scores are equal, so they tell nothing"
        elif one.fallback_rate == 1:
            yield f"{models} the formula lacked shadow models at every point"


def calibrate_phases(evidence: Evidence, formula: Formula | Attack) -> dict[str, Calibrated]:
    """Calibrate every phase by a formula, which takes one metric's scores, or by an attack."""
    if isinstance(formula, Attack):
        return formula(evidence)
    return {phase: evidence.calibrated(formula, evidence.only, phase) for phase in evidence.phases}


def _figures(ranked: Ranked, predictions: Predicted, there: Mask) -> dict[str, float]:
    found = figures_of(ranked.curve) | operating_points(ranked.curve, predictions, there)
    for figure, (low, high) in ranked.intervals().items():
        found |= {f"{figure}_low": low, f"{figure}_high": high}
    return found


def with_both_classes(
    truth: Mapping[str, Membership], there: Mapping[str, Mask]
) -> Iterator[tuple[str, Membership]]:
    """Give the phases whose points are of both classes; the others have no figures."""
    for phase, solution in truth.items():
        try:
            _check_classes(phase, solution, there[phase])
            yield phase, solution
        except InputError as error:
            log.warning("%s Its figures are left out.", error)


def _check_classes(phase: str, solution: Membership, there: Mask) -> None:
    told = flat(solution, there)
    if told.all() or not told.any():
        kind = "members" if told.all() else "non-members"
        raise InputError(
            f"All {told.size} challenge points of the {phase} models are {kind}; members and "
            "non-members are needed."
        )


def write_predictions(path: Path, predictions: Predictions, solution: Membership) -> None:
    """Keep the predictions of all phases in one compact file, with membership for validation."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**predictions, SOLUTION: solution})  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue(), durable=False)


def read_predictions(path: Path) -> dict[str, Predicted]:
    """Read the predictions that `write_predictions` wrote."""
    return {name: array for name, array in _read(path).items() if name != SOLUTION}


def read_validation(path: Path) -> tuple[Membership, Predicted]:
    """Read membership and predictions (T, P) of the train models' points from that file.

    Rows of models with fewer points than others end in NaN; the scenario says where.

    Raises:
        InputError: the file cannot be read, or lacks either.
    """
    found = _read(path, SOLUTION, "train")
    return found[SOLUTION].astype(bool), found["train"]


def _read(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    """Read arrays by name, or all that there are."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in names or file.files}
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(f"{path}: cannot be read as predictions: {error}") from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise InputError(f"{path}: {name} must be an array of real numbers.")
    return found
