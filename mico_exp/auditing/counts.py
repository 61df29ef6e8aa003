"""What a game of guesses comes to: how many bits, guesses and right ones.

A bound is a function of these numbers alone, and takes them one audit at a time. Thousands of
audits have few distinct numbers, and `each` looks at each of them once.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mico_exp.common.arrays import Floats
from mico_exp.common.errors import InputError


class Counts(NamedTuple):
    """Of one audit: how many bits there are, how many were guessed, and how many of these right."""

    bits: int
    guesses: int
    right: int

    def check(self) -> None:
        """Refuse what no game comes to.

        Raises:
            InputError: there are more guesses than bits, more right ones than guesses, or none.
        """
        if not 0 < self.guesses <= self.bits:
            raise InputError(
                f"`guesses` must be from 1 to the {self.bits} bits, got {self.guesses}."
            )
        if not 0 <= self.right <= self.guesses:
            raise InputError(
                f"`right` must be from 0 to the {self.guesses} guesses, got {self.right}."
            )


def each(bound: Callable[[Counts], float], bits: ArrayLike, guesses: ArrayLike,
         right: ArrayLike) -> Floats:  # fmt: skip
    """Give the bound of every audit, of counts that broadcast to one shape.

    A bound grows with the right guesses, as all here do: what proves nothing with more of them is
    not looked at with fewer.
    """
    columns = np.broadcast_arrays(bits, guesses, right)
    sizes = tuple(int(np.max(one)) + 1 for one in columns)
    keys, places = np.unique(np.ravel_multi_index(columns, sizes), return_inverse=True)
    distinct = np.transpose(np.unravel_index(keys, sizes))
    found = np.zeros(len(distinct))
    nothing: tuple[int, int] | None = None
    for place in range(len(distinct) - 1, -1, -1):  # of the same game, the most right ones first
        one = Counts(*map(int, distinct[place]))
        if (one.bits, one.guesses) == nothing:
            continue
        found[place] = bound(one)
        nothing = None if found[place] > 0 else (one.bits, one.guesses)
    return found[places.ravel()].reshape(columns[0].shape)


def highest(bound: Callable[[Counts, float], float], tries: Iterable[Counts]) -> tuple[int, float]:
    """Place of the first try with the highest bound, and that bound.

    Args:
        bound: of counts, which may say 0 of one that is below its second argument.
        tries: at least one, the most promising first where time counts.
    """
    best, place = 0.0, 0
    for number, counts in enumerate(tries):
        if (found := bound(counts, best)) > best:
            best, place = found, number
    return place, best
