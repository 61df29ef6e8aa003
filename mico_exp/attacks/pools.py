"""Models that were all asked of the same points, each of them left out in turn.

A LiRA pool has hundreds of models and tens of thousands of records: for every target all others
are its shadow models, and to gather their scores would take a (T, S, P) array. What is known of
all models of a side is found once instead, and the target's own part taken out of it. Where that
part is nearly all, so that digits would cancel, the others are looked at themselves.

Axes: S shadow models, P points, t targets that are left out.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mico_exp.attacks.sides import Around, Models, Side, around, side
from mico_exp.common.arrays import Floats, Indices, Mask

POINTS_AT_ONCE = 2048  # keeps (S, points) arrays within the processor's cache
NEARLY_ALL = 1e-3  # of the squares, where fewer remain the rest is looked at


class Pool:
    """The shadow models on both sides of each point.

    Args:
        shadow: (S, P) their scores, finite.
        inside: (S, P) True where a model was trained on the point.
        outside: (S, P) True where it was not; neither where it has no score.
    """

    def __init__(self, shadow: Floats, inside: Mask, outside: Mask) -> None:
        self.inside, self.outside = _Whole(shadow, inside), _Whole(shadow, outside)

    def without(self, left_out: Indices) -> tuple[Models, Models]:
        """Both sides (t, P), as they are when one model is left out (t,)."""
        return _Rest(self.inside, left_out), _Rest(self.outside, left_out)

    def all(self, targets: int) -> tuple[Models, Models]:
        """Both sides (t, P) of all models, the same for so many targets."""
        return _Alike(self.inside, targets), _Alike(self.outside, targets)


class _Whole(Models):
    """All models of one side (P,)."""

    def __init__(self, shadow: Floats, mask: Mask) -> None:
        self.shadow, self.mask = shadow, mask

    @cached_property
    def size(self) -> Floats:
        return np.count_nonzero(self.mask, axis=0).astype(float)

    @cached_property
    def around(self) -> Around:
        """How many, their mean in two parts, squares around it."""
        parts = [around(self.shadow[:, some], self.mask[:, some]) for some in self._blocks]
        return Around(*map(np.concatenate, zip(*parts, strict=True)))

    @cached_property
    def moments(self) -> Side:
        return self.around.side

    @cached_property
    def parts(self) -> tuple[Floats, Floats, Floats]:
        """1/(n − 1), n/(n − 1), and squares of which so few are left (P,) that digits are lost."""
        others = np.maximum(self.size - 1, 1)
        return 1 / others, self.size / others, NEARLY_ALL * self.around.squares

    @cached_property
    def ascending(self) -> Floats:
        """(P, L) scores of every point in ascending order, and infinite ones after them.

        L is above the most models that any point has.
        """
        found = np.full((len(self.size), int(self.size.max(initial=0)) + 1), np.inf)
        for some in self._blocks:
            scores = np.where(self.mask[:, some], self.shadow[:, some], np.inf).T
            scores = np.sort(scores, axis=1)[:, : found.shape[1]]
            found[some, : scores.shape[1]] = scores
        return found

    @cached_property
    def median(self) -> Floats:
        return _median(self.size, lambda place: _taken(self.ascending, place))

    def at_most(self, score: Floats) -> Floats:
        found = np.zeros(score.shape, dtype=np.int64)
        length = self.ascending.shape[1]
        for step in (1 << power for power in reversed(range(length.bit_length()))):
            further = np.minimum(found + step, length)
            reached = _taken(self.ascending, further - 1) <= score
            found = np.where(reached, further, found)
        return found.astype(float)

    @property
    def _blocks(self) -> list[slice]:
        points = range(0, self.mask.shape[1], POINTS_AT_ONCE)
        return [slice(start, start + POINTS_AT_ONCE) for start in points]


def _taken(rows: Floats, place: NDArray[np.int64]) -> Floats:
    """Take of each row (P, L) what lies at a place (…, P)."""
    points, length = rows.shape
    return rows.reshape(-1)[np.arange(points) * length + place]


def _median(size: Floats, value: Callable[[NDArray[np.int64]], Floats]) -> Floats:
    """Median by a function that gives the scores at a place in ascending order; 0 of none."""
    count = size.astype(np.int64)
    low, high = (value(np.maximum(place, 0)) for place in ((count - 1) // 2, count // 2))
    return np.where(count > 0, (low + high) / 2, 0)


class _Alike(Models):
    """A side (t, P) that is the same for all of some targets."""

    def __init__(self, whole: _Whole, targets: int) -> None:
        self.whole, self.shape = whole, (targets, len(whole.size))

    @property
    def size(self) -> Floats:
        return np.broadcast_to(self.whole.size, self.shape)

    @property
    def moments(self) -> Side:
        return Side(*(np.broadcast_to(part, self.shape) for part in self.whole.moments))

    @property
    def median(self) -> Floats:
        return np.broadcast_to(self.whole.median, self.shape)

    def at_most(self, score: Floats) -> Floats:
        return self.whole.at_most(score)


class _Rest(Models):
    """A side (t, P) without one model (t,) for each target."""

    def __init__(self, whole: _Whole, left_out: Indices) -> None:
        self.whole, self.left_out = whole, left_out
        self.own, self.mask = whole.shadow[left_out], whole.mask[left_out]

    @cached_property
    def size(self) -> Floats:
        return self.whole.size - self.mask

    @cached_property
    def moments(self) -> Side:
        """Mean and squares by the differences d of the model left out from the mean of all n.

        The mean of the others is d/(n − 1) lower, their squares are d²·n/(n − 1) less.
        """
        _, top, middle, squares = self.whole.around
        step, share, enough = self.whole.parts
        apart = np.where(self.mask, self.own - top - middle, 0)
        mean = top + (middle - apart * step)  # which rounds but once
        left = squares - np.square(apart) * share
        alone = self.mask & (self.whole.size == 1)
        mean[alone] = 0
        few = self.mask & (left < enough)
        if few.any():
            self._look(few, mean, left)
        return Side(self.size, mean, left)

    def _look(self, few: Mask, mean: Floats, squares: Floats) -> None:
        """Find the mean and the squares of the others themselves at a few places (t, P)."""
        rows, points = np.nonzero(few)
        for start in range(0, len(rows), POINTS_AT_ONCE):
            row, point = (some[start : start + POINTS_AT_ONCE] for some in (rows, points))
            mask = self.whole.mask[:, point]
            mask[self.left_out[row], np.arange(len(row))] = False
            _, mean[row, point], squares[row, point] = side(self.whole.shadow[:, point], mask)

    @cached_property
    def median(self) -> Floats:
        return _median(self.size, self._at)

    def _at(self, place: NDArray[np.int64]) -> Floats:
        """Scores at a place in ascending order: the next one where the own comes before."""
        rows = self.whole.ascending
        found = _taken(rows, place)
        before = self.mask & (self.own <= found)
        return np.where(before, _taken(rows, np.minimum(place + 1, rows.shape[1] - 1)), found)

    def at_most(self, score: Floats) -> Floats:
        return self.whole.at_most(score) - (self.mask & (self.own <= score))
