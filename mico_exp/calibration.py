"""From raw scores to predictions in [0, 1]: who is a shadow model of whom, and one formula.

Axes: T target models, S train (shadow) models, P challenge points of a target, U unique points.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mico_exp.errors import InputError
from mico_exp.formulas import Floats, Mask

Formula = Callable[[Floats, Floats, Mask, Mask], Floats]
FEWEST_OUT = 2  # the winner's threshold: with fewer out models, in models stand in for them
TARGETS_AT_ONCE = 8  # keeps the gathered (T, S, P) arrays within the processor's cache


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Calibrated scores (T, P), and how often a side had to be stood in for.

    out_fallback_rate: share of target points with fewer than two out models, where the in
        models serve as out models too.
    in_fallback_rate: share with no in model at all, where the out models serve as in models.
    out_models: (T, P) how many shadow models were not trained on the point.
    """

    scores: Floats
    out_fallback_rate: float
    in_fallback_rate: float
    out_models: NDArray[np.int64]


def calibrate(
    formula: Formula,
    own: Floats,
    shadow: Floats,
    is_member: Mask,
    columns: NDArray[np.int64],
    *,
    leave_one_out: bool = False,
) -> Calibrated:
    """Calibrate every target's scores against the train models.

    Args:
        formula: see `mico_exp.formulas`.
        own: (T, P) each target's scores at its own points; NaN where the model has none, which
            gives the median of all calibrated scores: it says neither.
        shadow: (S, U) scores of the train models at all points; NaN takes no part.
        is_member: (S, U) True where the train model was trained on the point.
        columns: (T, P) where each target's points lie in the U columns.
        leave_one_out: the targets are the train models themselves (T = S), and each is left
            out of its own shadow models, which makes the result a validation score.

    Raises:
        InputError: fewer than one shadow model is left, or the result is not finite.
    """
    shadows = len(shadow) - leave_one_out
    if shadows < 1:
        raise InputError(
            "Calibration needs at least one shadow model for each target, got "
            f"{len(shadow)} train model(s){' with one left out' if leave_one_out else ''}."
        )
    usable = np.isfinite(shadow)
    shadow = np.where(usable, shadow, 0)
    inside, outside = is_member & usable, ~is_member & usable
    known = np.isfinite(own)
    scores = np.empty(own.shape)
    fallbacks = np.zeros(2)
    out_models = np.empty(own.shape, dtype=np.int64)
    for start in range(0, len(own), TARGETS_AT_ONCE):
        some = slice(start, start + TARGETS_AT_ONCE)
        gathered = shadow[:, columns[some]].swapaxes(0, 1)
        is_in = inside[:, columns[some]].swapaxes(0, 1)
        is_out = outside[:, columns[some]].swapaxes(0, 1)
        if leave_one_out:
            target = np.arange(len(gathered))
            is_in[target, start + target] = is_out[target, start + target] = False
        out_models[some] = np.count_nonzero(is_out, axis=-2)
        is_in, is_out, fell_back = stand_in(is_in, is_out)
        fallbacks += fell_back
        asked = np.where(known[some], own[some], 0)
        scores[some] = _of_shape(formula(asked, gathered, is_in, is_out), asked.shape)
    scores[~known] = np.median(scores[known]) if known.any() else 0
    _check_finite(scores)
    out_rate, in_rate = fallbacks / own.size
    return Calibrated(scores, float(out_rate), float(in_rate), out_models)


def _of_shape(values: Floats, shape: tuple[int, ...]) -> Floats:
    if np.shape(values) != shape:
        raise InputError(
            f"A formula must give shape {shape} for scores {shape}, got {np.shape(values)}."
        )
    return values


def _check_finite(scores: Floats) -> None:
    bad = ~np.isfinite(scores)
    if bad.any():
        raise InputError(
            f"{bad.sum()} of {bad.size} calibrated scores are not finite; the first belongs to "
            f"target {int(bad.any(axis=1).argmax())} of the phase."
        )


def stand_in(is_in: Mask, is_out: Mask) -> tuple[Mask, Mask, NDArray[np.int64]]:
    """Let one side stand in for the other where there are too few models (…, S, P).

    Returns the two masks and how many points fell back for want of out and of in models.
    """
    few_out = np.count_nonzero(is_out, axis=-2) < FEWEST_OUT
    no_in = np.count_nonzero(is_in, axis=-2) == 0
    few_out &= ~no_in  # with no in models there is nothing to stand in for the out models
    in_side = np.where(no_in[..., np.newaxis, :], is_out, is_in)
    out_side = np.where(few_out[..., np.newaxis, :], is_in, is_out)
    return in_side, out_side, np.array([few_out.sum(), no_in.sum()])


def scale(scores: Floats) -> NDArray[np.float32]:
    """Min-max scale (T, P) to [0, 1] over all models together, as predictions in float32.

    One range for a whole scenario and phase keeps the models comparable under one threshold.
    Constant scores say nothing, and all become 0.5.
    """
    low, high = scores.min(), scores.max()
    if low == high:
        return np.full(scores.shape, 0.5, dtype=np.float32)
    return ((scores - low) / (high - low)).astype(np.float32)
