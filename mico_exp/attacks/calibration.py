"""From raw scores to predictions in [0, 1]: who is a shadow model of whom, and one formula.

Axes: T target models, S train (shadow) models, P challenge points of a target, U unique points.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mico_exp.common.arrays import Floats, Mask
from mico_exp.common.errors import InputError, first_line

Function = TypeVar("Function", bound=Callable[..., object])
FEWEST_OUT = 2  # the winner's threshold: with fewer out models, in models stand in for them
LEAST_DISTINCT = 0.99  # of the scores, that must be so in float32
TARGETS_AT_ONCE = 8  # keeps the gathered (T, S, P) arrays within the processor's cache


class Formula(Protocol):
    """What judges a target's scores by its shadow models' scores at the same points.

    What can be chosen as a formula is one of three:

    - A plain function, the usual case, which nothing marks. It returns scores (…, P). It sees at
      least one model on either side: one side stands in for the other where there are too few
      (`stand_in`).
    - A function that is marked by `sees_gaps`. It sees the models as they are, n_I and n_O of
      them, either of which may be 0, and returns its scores together with (…, P) True where it
      had to do with less than it wants. One that is marked by `needs_no_shadows` as well looks at
      the target alone, and does where there is no shadow model at all.
    - An `evidence.Attack`, no function of this form: it is given all the evidence on a scenario,
      since it looks at more than one point at a time, or learns from the train models.

    Scores are higher = more member-like, those that it takes and those that it returns.
    """

    def __call__(
        self, score: Floats, shadow: Floats, is_in: Mask, is_out: Mask, /
    ) -> Floats | tuple[Floats, Mask]:
        """Calibrate the scores of targets, which are the leading axes.

        Args:
            score: (…, P) the target model's score at each of its points.
            shadow: (…, S, P) the same metric under the shadow models.
            is_in: (…, S, P) True where the shadow model was trained on the point.
            is_out: (…, S, P) True where it serves as one that was not.
        """


def sees_gaps(function: Function) -> Function:
    """Mark a formula that copes with points that have no in or no out models."""
    function.sees_gaps = True  # type: ignore[attr-defined]
    return function


def copes_with_gaps(formula: Any) -> bool:
    """Tell whether a formula is marked by `sees_gaps`, and wants the models without stand-ins."""
    return _is_marked(formula, "sees_gaps")


def needs_no_shadows(function: Function) -> Function:
    """Mark a formula, one that sees gaps, which looks at the target's own score alone."""
    function.needs_no_shadows = True  # type: ignore[attr-defined]
    return function


def asks_nobody(formula: Any) -> bool:
    """Tell whether a formula is marked by `needs_no_shadows`."""
    return _is_marked(formula, "needs_no_shadows")


def _is_marked(formula: Any, mark: str) -> bool:
    return getattr(formula.func if isinstance(formula, partial) else formula, mark, False)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Calibrated scores (T, P), and how often a formula lacked models.

    out_models: (T, P) how many shadow models were not trained on the point.
    fallback_rate: share of target points where the formula had to do with less than it wants: a
        side that the other stood in for, or what the formula itself calls so.
    out_fallback_rate: share where in models stood in for out models.
    in_fallback_rate: share with no in model at all, where out models stood in for them.
    keeps_order: the scores may lie so far apart that only their order can be kept (`scale`).
    """

    scores: Floats
    out_models: NDArray[np.int64]
    fallback_rate: float = 0.0
    out_fallback_rate: float = 0.0
    in_fallback_rate: float = 0.0
    keeps_order: bool = True

    @property
    def predictions(self) -> NDArray[np.float32]:
        """(T, P) in [0, 1]."""
        return scale(self.scores, keep_order=self.keeps_order)


def calibrate(
    formula: Formula,
    own: Floats,
    shadow: Floats,
    is_member: Mask,
    columns: NDArray[np.int64],
    *,
    left_out: NDArray[np.int64] | None = None,
) -> Calibrated:
    """Calibrate every target's scores against the train models.

    Args:
        formula: plain, or one that sees gaps.
        own: (T, P) each target's scores at its own points; NaN where the model has none. There,
            and where no shadow model has a score, the result is the median of all others.
        shadow: (S, U) scores of the train models at all points; NaN takes no part.
        is_member: (S, U) True where the train model was trained on the point.
        columns: (T, P) where each target's points lie in the U columns.
        left_out: (T,) the shadow model that takes no part for each target: where targets are
            train models, themselves, which makes the result a validation score.

    Raises:
        InputError: fewer than one shadow model is left, or the result is not finite.
    """
    known = np.isfinite(own)
    scores = np.empty(own.shape)
    fell_back = np.zeros(3)
    out_models = np.empty(own.shape, dtype=np.int64)
    gaps, alone = copes_with_gaps(formula), asks_nobody(formula)
    fewest = 0 if alone else 1
    for some, gathered, is_in, is_out in shadows_of(shadow, is_member, columns, left_out, fewest):
        out_models[some] = np.count_nonzero(is_out, axis=-2)
        nobody = ~(is_in | is_out).any(axis=-2)
        if not alone:
            known[some] &= ~nobody
        asked = np.where(known[some], own[some], 0)
        if gaps:
            values, lacking = _pair(_ask(formula, asked, gathered, is_in, is_out))
            fell_back[0] += np.count_nonzero(_of_shape(lacking, asked.shape))
        else:
            is_in[..., 0, :] |= nobody  # any score will do, for the result is not used
            is_in, is_out, counts = stand_in(is_in, is_out)
            values = _ask(formula, asked, gathered, is_in, is_out)
            fell_back += [counts.sum(), *counts]
        scores[some] = _of_shape(values, asked.shape)
    scores[~known] = np.median(scores[known]) if known.any() else 0
    _check_finite(scores)
    rate, out_rate, in_rate = map(float, fell_back / max(own.size, 1))
    return Calibrated(scores, out_models, rate, out_rate, in_rate, keeps_order=gaps)


def shadows_of(
    shadow: Floats,
    is_member: Mask,
    columns: NDArray[np.int64],
    left_out: NDArray[np.int64] | None = None,
    fewest: int = 1,
) -> Iterator[tuple[slice, Floats, Mask, Mask]]:
    """Give the shadow models' scores at the targets' points, some targets at a time.

    Arguments are those of `calibrate`, and the fewest shadow models that will do. Yields which
    targets they are, the scores (t, S, P), and masks (t, S, P) of the models that were and were
    not trained on the points.

    Raises:
        InputError: fewer shadow models are left.
    """
    shadows = len(shadow) - (left_out is not None)
    if shadows < fewest:
        raise InputError(
            "Calibration needs at least one shadow model for each target, got "
            f"{len(shadow)} train model(s){' with one left out' if left_out is not None else ''}."
        )
    usable = np.isfinite(shadow)
    shadow = np.where(usable, shadow, 0)
    inside, outside = is_member & usable, ~is_member & usable
    for start in range(0, len(columns), TARGETS_AT_ONCE):
        some = slice(start, start + TARGETS_AT_ONCE)
        gathered = shadow[:, columns[some]].swapaxes(0, 1)
        is_in = inside[:, columns[some]].swapaxes(0, 1)
        is_out = outside[:, columns[some]].swapaxes(0, 1)
        if left_out is not None:
            target = np.arange(len(gathered))
            is_in[target, left_out[some]] = is_out[target, left_out[some]] = False
        yield some, gathered, is_in, is_out


def _ask(formula: Formula, *arguments: Any) -> Any:
    try:
        return formula(*arguments)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a user's own formula makes of it
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"The formula fails: {reason}") from error


def _pair(found: Any) -> tuple[Any, Any]:
    if not isinstance(found, tuple) or len(found) != 2:
        raise InputError(
            "A formula that sees gaps must give its scores and where it lacked models, got "
            f"{type(found).__name__}."
        )
    return found


def _of_shape(values: Any, shape: tuple[int, ...]) -> Floats:
    found = np.asarray(values)
    if found.dtype.kind not in "biuf":
        raise InputError(f"A formula must give real numbers, got {found.dtype}.")
    if found.shape != shape:
        raise InputError(
            f"A formula must give shape {shape} for scores {shape}, got {found.shape}."
        )
    return found


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


def scale(scores: Floats, *, keep_order: bool = False) -> NDArray[np.float32]:
    """Min-max scale (T, P) to [0, 1] over all models together, as predictions in float32.

    One range for a whole scenario and phase keeps the models comparable under one threshold.
    Constant scores say nothing, and all become 0.5. With `keep_order`, ranks are scaled instead
    where float32 would make many scores equal that are not, since a few lie so far out: a
    likelihood ratio does that. The winner's procedure knows no such thing.
    """
    low, high = scores.min(), scores.max()
    if low == high:
        return np.full(scores.shape, 0.5, dtype=np.float32)
    scaled = ((scores - low) / (high - low)).astype(np.float32)
    if keep_order:
        distinct, rank = np.unique(scores, return_inverse=True)
        if len(np.unique(scaled)) < LEAST_DISTINCT * len(distinct):
            return (rank.reshape(scores.shape) / (len(distinct) - 1)).astype(np.float32)
    return scaled
