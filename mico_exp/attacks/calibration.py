"""From raw scores to predictions in [0, 1]: who is a shadow model of whom, and one formula.

Axes: T target models, t of them at once, S shadow models, the train models and the reference models
after them, P challenge points of a target, U unique points. Where models have unequal numbers of
points, rows end in columns of `NONE`, which no formula sees; scores are NaN there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mico_exp.attacks.pools import Pool
from mico_exp.attacks.sides import Gathered, Instead, Models
from mico_exp.challenge.points import NONE
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError, first_line

Function = TypeVar("Function", bound=Callable[..., object])
FEWEST_OUT = 2  # the winner's threshold: with fewer out models, in models stand in for them
LEAST_DISTINCT = 0.99  # of the scores, that must be so in float32
TARGETS_AT_ONCE = 8  # keeps the gathered (t, S, P) arrays within the processor's cache
GATHERED_BYTES = 2**26  # of such an array, beyond which fewer targets are gathered
POOLED_BYTES = 2**20  # of the (t, P) arrays of a pool


class Formula(Protocol):
    """What judges a target's scores by its shadow models' scores at the same points.

    What can be chosen as a formula is one of four:

    - A plain function, the usual case, which nothing marks. It returns scores (…, P). It sees at
      least one model on either side: one side stands in for the other where there are too few
      (`stand_in`).
    - One that is marked by `OfSides`, and looks at the models on either side by what `sides.Models`
      tells of them. Where all models are asked at the same points, as in a pool, nothing has to be
      gathered for it, and it is quick whatever the number of models.
    - A function of either kind that is marked by `sees_gaps`. It sees the models as they are, n_I
      and n_O of them, either of which may be 0, and returns its scores together with (…, P) True
      where it had to do with less than it wants. One that is marked by `needs_no_shadows` as well
      looks at the target alone, and does where there is no shadow model at all.
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


class OfSides:
    """A formula that is written (score, inside, outside, …), and called as any other.

    score is (…, P), and the others are the models of the two sides, of the same shape.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(
        self, score: Floats, shadow: Floats, is_in: Mask, is_out: Mask, /, **options: Any
    ) -> Any:
        """Calibrate by shadow models (…, S, P), as `Formula` has it."""
        return self.of(score, Gathered(shadow, is_in), Gathered(shadow, is_out), **options)

    def of(self, score: Floats, inside: Models, outside: Models, /, **options: Any) -> Any:
        """Calibrate by the two sides, however they came about."""
        return self.function(score, inside, outside, **options)


BySides = Callable[[Floats, Models, Models], Any]


def by_sides(formula: Any) -> BySides | None:
    """What a formula that is marked by `OfSides` does with two sides; None of any other."""
    plain, options = formula, {}
    if isinstance(formula, partial) and not formula.args:
        plain, options = formula.func, formula.keywords
    return partial(plain.of, **options) if isinstance(plain, OfSides) else None


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

    out_models: (T, P) how many shadow models were not trained on the point; 0 where there is none.
    there: (T, P) True where a target has a point.
    fallback_rate: share of target points where the formula had to do with less than it wants: a
        side that the other stood in for, or what the formula itself calls so.
    out_fallback_rate: share where in models stood in for out models.
    in_fallback_rate: share with no in model at all, where out models stood in for them.
    keeps_order: the scores may lie so far apart that only their order can be kept (`scale`).
    """

    scores: Floats
    out_models: NDArray[np.int64]
    there: Mask
    fallback_rate: float = 0.0
    out_fallback_rate: float = 0.0
    in_fallback_rate: float = 0.0
    keeps_order: bool = True

    @property
    def predictions(self) -> NDArray[np.float32]:
        """(T, P) in [0, 1]; NaN where a target has no point."""
        if self.there.all():
            return scale(self.scores, keep_order=self.keeps_order)
        found = np.full(self.scores.shape, np.nan, dtype=np.float32)
        found[self.there] = scale(self.scores[self.there], keep_order=self.keeps_order)
        return found

    @property
    def constant(self) -> bool:
        """All points that there are score the same, which tells nothing."""
        found = self.scores[self.there]
        return bool(found.size) and bool(found.min() == found.max())


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
        shadow: (S, U) scores of the shadow models at all points; NaN takes no part.
        is_member: (S, U) True where the shadow model was trained on the point.
        columns: (T, P) where each target's points lie in the U columns; `NONE` at the end of a row
            with fewer points than others.
        left_out: (T,) the shadow model that takes no part for each target: where targets are
            train models, themselves, which makes the result a validation score.

    Raises:
        InputError: fewer than one shadow model is left, or the result is not finite.
    """
    there = columns != NONE
    known = np.isfinite(own) & there
    scores = np.full(own.shape, np.nan)
    fell_back = np.zeros(3)
    out_models = np.zeros(own.shape, dtype=np.int64)
    gaps, alone = copes_with_gaps(formula), asks_nobody(formula)
    shadows = _Shadows.of(shadow, is_member, left_out, fewest=0 if alone else 1)
    for some, shown in shadows.shown(columns, pooled=by_sides(formula) is not None):
        out_models[some] = shown.out_models
        if not alone:
            known[some] &= ~shown.nobody
        asked = np.where(known[some], own[some], 0)
        if gaps:
            values, lacking = _pair(shown.ask(formula, asked))
            fell_back[0] += np.count_nonzero(_of_shape(lacking, asked.shape))
        else:
            shown, counts = shown.standing_in()
            values = shown.ask(formula, asked)
            fell_back += [counts.sum(), *counts]
        scores[some] = _of_shape(values, asked.shape)
    if (unknown := there & ~known).any():
        scores[unknown] = np.median(scores[known]) if known.any() else 0
    _check_finite(scores, there)
    rate, out_rate, in_rate = map(float, fell_back / max(int(there.sum()), 1))
    return Calibrated(scores, out_models, there, rate, out_rate, in_rate, keeps_order=gaps)


def rows_alike(columns: Indices) -> Iterator[tuple[slice | Indices, int]]:
    """Give the rows (T, P) that have equally many points, and how many.

    What looks at all points of a target sees them together, cut to that length. Where all rows are
    full they are one slice, which copies nothing.
    """
    counts = np.count_nonzero(columns != NONE, axis=1)
    if (counts == columns.shape[1]).all():
        yield slice(None), columns.shape[1]
        return
    for count in np.unique(counts[counts > 0]):
        yield np.flatnonzero(counts == count), int(count)


Place = tuple[slice | Indices, slice]  # of some targets' points in (T, P)


class _Shown(Protocol):
    """The shadow models that some targets are judged by."""

    @property
    def out_models(self) -> NDArray[Any]:
        """(t, P) how many were not trained on the point."""

    @property
    def nobody(self) -> Mask:
        """(t, P) True where there is none at all."""

    def standing_in(self) -> "tuple[_Shown, NDArray[np.int64]]":
        """The same with one side in place of the other where models lack, as `stand_in` has it."""

    def ask(self, formula: Formula, score: Floats) -> Any:
        """What a formula gives for scores (t, P)."""


class _GatheredModels(NamedTuple):
    """Scores (t, S, P) and masks of the models that were and were not trained on the points."""

    shadow: Floats
    is_in: Mask
    is_out: Mask

    @property
    def out_models(self) -> NDArray[Any]:
        return np.count_nonzero(self.is_out, axis=-2)

    @property
    def nobody(self) -> Mask:
        return np.logical_not(np.any(self.is_in | self.is_out, axis=-2))

    def standing_in(self) -> tuple[_Shown, NDArray[np.int64]]:
        is_in = self.is_in.copy()
        is_in[..., 0, :] |= self.nobody  # any score will do, for the result is not used
        is_in, is_out, counts = stand_in(is_in, self.is_out)
        return _GatheredModels(self.shadow, is_in, is_out), counts

    def ask(self, formula: Formula, score: Floats) -> Any:
        return _ask(formula, score, *self)


class _PooledModels(NamedTuple):
    """Both sides (t, P) of models that were all asked of the same points."""

    inside: Models
    outside: Models

    @property
    def out_models(self) -> NDArray[Any]:
        return self.outside.size

    @property
    def nobody(self) -> Mask:
        return (self.inside.size == 0) & (self.outside.size == 0)

    def standing_in(self) -> tuple[_Shown, NDArray[np.int64]]:
        few_out, no_in = _lacking(self.inside.size, self.outside.size)
        inside = Instead(no_in, self.outside, self.inside) if no_in.any() else self.inside
        outside = Instead(few_out, self.inside, self.outside) if few_out.any() else self.outside
        nobody = np.count_nonzero(self.nobody)  # a lack of out models, if gathered
        counts = np.array([few_out.sum() + nobody, no_in.sum() - nobody])
        return _PooledModels(inside, outside), counts

    def ask(self, formula: Formula, score: Floats) -> Any:
        of = by_sides(formula)
        assert of is not None
        return _ask(of, score, *self)


@dataclass(frozen=True, eq=False)
class _Shadows:
    """The shadow models' scores (S, U), 0 where there is none, and masks of the two sides."""

    shadow: Floats
    inside: Mask
    outside: Mask
    left_out: Indices | None

    @classmethod
    def of(
        cls, shadow: Floats, is_member: Mask, left_out: Indices | None, fewest: int
    ) -> "_Shadows":
        """Look at the arguments of `calibrate`, and want a number of shadow models.

        Raises:
            InputError: fewer are left.
        """
        if len(shadow) - (left_out is not None) < fewest:
            told = " with one left out" if left_out is not None else ""
            raise InputError(
                "Calibration needs at least one shadow model for each target, got "
                f"{len(shadow)} train and reference model(s){told}."
            )
        usable = np.isfinite(shadow)
        shadow = np.where(usable, shadow, 0)
        return cls(shadow, is_member & usable, ~is_member & usable, left_out)

    def shown(self, columns: Indices, *, pooled: bool) -> Iterator[tuple[Place, _Shown]]:
        """Give the models at the targets' columns (T, P), some targets of as many points at a time.

        Where sides are all that is wanted, and all targets' columns are the same, nothing is
        gathered.
        """
        for rows, count in rows_alike(columns):
            left_out = None if self.left_out is None else self.left_out[rows]
            alike = columns[rows, :count]
            pays = pooled and len(alike) > 1 and _alike(alike)
            turns = self._pooled if pays else self._gathered
            for some, shown in turns(alike, left_out):
                targets = some if isinstance(rows, slice) else rows[some]
                yield (targets, slice(count)), shown

    def _gathered(
        self, columns: Indices, left_out: Indices | None
    ) -> Iterator[tuple[slice, _Shown]]:
        each = max(self.shadow.itemsize * len(self.shadow) * columns.shape[1], 1)
        for some in _runs(len(columns), min(TARGETS_AT_ONCE, GATHERED_BYTES // each)):
            gathered = self.shadow[:, columns[some]].swapaxes(0, 1)
            is_in = self.inside[:, columns[some]].swapaxes(0, 1)
            is_out = self.outside[:, columns[some]].swapaxes(0, 1)
            if left_out is not None:
                target = np.arange(len(gathered))
                is_in[target, left_out[some]] = is_out[target, left_out[some]] = False
            yield some, _GatheredModels(gathered, is_in, is_out)

    def _pooled(self, columns: Indices, left_out: Indices | None) -> Iterator[tuple[slice, _Shown]]:
        shared: Any = columns[0]
        if np.array_equal(shared, np.arange(self.shadow.shape[1])):
            shared = slice(None)  # which copies nothing
        pool = Pool(self.shadow[:, shared], self.inside[:, shared], self.outside[:, shared])
        for some in _runs(len(columns), POOLED_BYTES // max(8 * columns.shape[1], 1)):
            if left_out is None:
                yield some, _PooledModels(*pool.all(len(columns[some])))
            else:
                yield some, _PooledModels(*pool.without(left_out[some]))


def _alike(columns: Indices) -> bool:
    """Tell whether all rows (T, P) are the same."""
    return columns.strides[0] == 0 or all(np.array_equal(columns[0], row) for row in columns[1:])


def _runs(count: int, at_once: int) -> Iterator[slice]:
    """Cut so many targets into runs of at most so many, and at least one."""
    step = max(at_once, 1)
    return (slice(start, start + step) for start in range(0, count, step))


def _ask(formula: Callable[..., Any], *arguments: Any) -> Any:
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


def _check_finite(scores: Floats, there: Mask) -> None:
    bad = there & ~np.isfinite(scores)
    if bad.any():
        raise InputError(
            f"{bad.sum()} of {there.sum()} calibrated scores are not finite; the first belongs to "
            f"target {int(bad.any(axis=1).argmax())} of the phase."
        )


def stand_in(is_in: Mask, is_out: Mask) -> tuple[Mask, Mask, NDArray[np.int64]]:
    """Let one side stand in for the other where there are too few models (…, S, P).

    Returns the two masks and how many points fell back for want of out and of in models.
    """
    few_out, no_in = _lacking(*(np.count_nonzero(one, axis=-2) for one in (is_in, is_out)))
    in_side = np.where(no_in[..., np.newaxis, :], is_out, is_in)
    out_side = np.where(few_out[..., np.newaxis, :], is_in, is_out)
    return in_side, out_side, np.array([few_out.sum(), no_in.sum()])


def _lacking(inside: NDArray[Any], outside: NDArray[Any]) -> tuple[Mask, Mask]:
    """Where out and in models are too few, by how many there are of either (…, P)."""
    no_in = inside == 0
    few_out = (outside < FEWEST_OUT) & ~no_in  # without in models there is nothing to stand in
    return few_out, no_in


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
        ascending = np.sort(scores, axis=None)
        change = _changes(ascending)
        distinct = ascending[change]
        alike = ((distinct - low) / (high - low)).astype(np.float32)
        if np.count_nonzero(_changes(alike)) < LEAST_DISTINCT * len(distinct):
            ranks = np.cumsum(change) - 1
            found = np.empty(scores.size, dtype=np.float32)
            found[np.argsort(scores, axis=None)] = ranks / ranks[-1]
            return found.reshape(scores.shape)
    return scaled


def _changes(ascending: NDArray[Any]) -> Mask:
    """Where (N,) values are others than the one before."""
    return np.append(True, ascending[1:] != ascending[:-1])
