"""Which bits an attack guesses, and how often it is right.

In a MICO challenge exactly m of a model's 2m points are members, so their bits hang on each other.
Draw a uniformly random perfect matching of members with non-members within each model: given the
matching, which of the two is the member is a fair coin, independent for all pairs of all models.
A flipped bit swaps one record for another, so what is proven is of **replace-one**. It holds for
whatever membership that was drawn so that all points are alike, independent bits among it.

Where every record is in by a fair coin of its own, bits are independent, and what is proven is of
**add/remove**. A coin that is not fair is guessed right without any model. One canary a model is
the same with one bit a model: then trials are independent whatever happens within a model, and the
bounds of `bounds` hold too, of any coin.

An attack sees the margin of a bit, which a right guess has the sign of, and guesses the bits whose
margins are the largest. How many it guesses must not be chosen on the bits that it is judged by.

Axes: T models, P points of a model, N bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mico_exp.auditing.counts import Counts
from mico_exp.common.arrays import Floats, Mask
from mico_exp.common.errors import InputError

ADD_REMOVE, REPLACE_ONE = "add_remove", "replace_one"  # what neighbouring sets of records are


@dataclass(frozen=True, eq=False)
class Bits:
    """What an attack says of each bit: margin (N,), above 0 where it is right.

    relation: of the guarantee that it is a bit of, ``replace_one`` or ``add_remove``.
    """

    margin: Floats
    relation: str

    def guessed(self, *shares: float) -> list[Counts]:
        """For each share, guess that share of the bits whose margins are the largest, at least one.

        Bits with a margin of 0 are not guessed, for nothing tells them apart. Of equal margins the
        wrong guesses come first, so that ties make no attack better.
        """
        ordered = self.margin[np.lexsort((self.margin, -np.abs(self.margin)))]
        right, made = np.cumsum(ordered > 0), np.cumsum(ordered != 0)
        ends = [guesses_of(len(ordered), share) - 1 for share in shares]
        return [Counts(len(ordered), max(int(made[i]), 1), int(right[i])) for i in ends]

    @property
    def blank(self) -> bool:
        """All scores are tied: there is nothing to guess by."""
        return not self.margin.any()


def guesses_of(bits: int, share: float) -> int:
    """How many guesses that share of bits is."""
    return min(max(round(share * bits), 1), bits)


def paired(solution: Mask, scores: ArrayLike, there: Mask, seed: int) -> Bits:
    """Pair members with non-members of each model at random.

    Points that are left over where one class has more are not looked at. Scores of models of one
    call must be comparable.

    Args:
        solution: (T, P) True for a member.
        scores: (T, P), higher = more member-like.
        there: (T, P) False where a model has no point.
        seed: of the matching.

    Raises:
        InputError: no model has points of both classes.
    """
    random, values = np.random.default_rng(seed), np.asarray(scores, dtype=float)
    margins = [
        _matched(row[is_there], member[is_there], random)
        for row, member, is_there in zip(values, solution, there, strict=True)
    ]
    margin = np.concatenate(margins)
    if not margin.size:
        raise InputError("Members and non-members are needed, got one class only.")
    return Bits(margin, REPLACE_ONE)


def _matched(scores: Floats, is_member: Mask, random: np.random.Generator) -> Floats:
    """By how much members score higher than the non-members that they are paired with (N,)."""
    members = random.permutation(np.flatnonzero(is_member))
    others = random.permutation(np.flatnonzero(~is_member))
    pairs = min(len(members), len(others))
    return scores[members[:pairs]] - scores[others[:pairs]]


def independent(solution: Mask, scores: ArrayLike, there: Mask) -> Bits:
    """Take each point by itself, as drawn by a coin of its own; arguments are those of `paired`.

    A point is guessed to be a member where it scores above the median of all, which no bit is
    needed for.

    Raises:
        InputError: all points are of one class.
    """
    scored, is_member = np.asarray(scores, dtype=float)[there], solution[there]
    if is_member.all() or not is_member.any():
        raise InputError("Members and non-members are needed, got one class only.")
    above = scored - np.median(scored)
    return Bits(np.where(is_member, above, -above), ADD_REMOVE)


def pooled(parts: Sequence[Bits], *shares: float) -> list[Counts]:
    """For each share, guess that share of each part's bits; margins may be of other scales."""
    of_parts = [part.guessed(*shares) for part in parts]
    return [Counts(*map(sum, zip(*some, strict=True))) for some in zip(*of_parts, strict=True)]


def rates(solution: Mask, scores: ArrayLike, there: Mask, threshold: float) -> tuple[int, ...]:
    """True positives, members, false positives and others at a threshold, which counts as above."""
    scored, is_member = np.asarray(scores, dtype=float)[there], solution[there]
    called = scored >= threshold
    return (
        int((called & is_member).sum()),
        int(is_member.sum()),
        int((called & ~is_member).sum()),
        int((~is_member).sum()),
    )
