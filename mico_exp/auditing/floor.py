"""The floor: what an attack proves, where every choice is paid for.

The cell of the grid and how many bits it guesses are chosen on models whose bits do not take part
in the proof, and the bound is computed once; or the best of several is taken, each at a
significance that many times smaller (Bonferroni). Scores of train models that were left out are
good to choose by and never good for a bound: there each model's truth serves the attack on others.

Axes: T models, P points of a model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mico_exp.auditing import games
from mico_exp.auditing.counts import Counts, highest
from mico_exp.auditing.games import Bits
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError

Bound = Callable[[Counts, float], float]  # of counts; 0 where it is below the second argument
SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
MATCHINGS = 4  # of the models by which is chosen, whose mean tells more than one of them
PAIRED, INDEPENDENT, ONE_PER_MODEL = GAMES = ("paired", "independent", "one_per_model")


class Rows(NamedTuple):
    """Models of a phase: membership and scores (T, P), and where there is a point (T, P)."""

    solution: Mask
    scores: Floats
    there: Mask

    def bits(self, game: str, seed: int) -> Bits:
        """Their bits, as the game has them; see `games`."""
        if game == PAIRED:
            return games.paired(self.solution, self.scores, self.there, seed)
        return games.independent(self.solution, self.scores, self.there)

    @property
    def single(self) -> bool:
        """Each model has one point."""
        return bool((self.there.sum(axis=1) == 1).all())


@dataclass(frozen=True)
class Attacked:
    """The attacks that may be chosen from, by their cells.

    validation: cell → the models that it is chosen by; None where there are too few.
    targets: cell → phases of the models that the bound is of.
    judged_on: what these are called, and chosen_on what those are.
    """

    validation: Mapping[str, Rows] | None
    targets: Mapping[str, Sequence[Rows]]
    judged_on: str
    chosen_on: str

    @property
    def models(self) -> int:
        """How many models the bound is of."""
        return sum(len(rows.there) for rows in next(iter(self.targets.values())))

    def bits(self, game: str) -> int:
        """How many bits there are to guess."""
        return sum(len(rows.bits(game, 0).margin) for rows in next(iter(self.targets.values())))

    @property
    def sizes(self) -> tuple[Indices, Indices]:
        """Members and points (T,) of the models that the bound is of."""
        phases = next(iter(self.targets.values()))
        members = [(rows.solution & rows.there).sum(axis=1) for rows in phases]
        return np.concatenate(members), np.concatenate([rows.there.sum(axis=1) for rows in phases])


@dataclass(frozen=True)
class Proof:
    """An attack, what it guessed of the targets, and how many attacks were paid for.

    share: of the bits, that it guesses. counts: of the targets.
    """

    cell: str
    share: float
    counts: Counts
    tries: int = 1


def choose(
    attacked: Attacked, game: str, bound: Bound, shares: Sequence[float]
) -> tuple[str, float]:
    """Choose cell and share of guesses by the bound that they would prove on validation.

    `bound` is asked about the counts that so many bits as the targets' would come to. Where none
    proves anything, the one is taken whose guesses are right more clearly than by chance.

    Raises:
        InputError: all scores are tied, or there are points of one class alone.
    """
    assert attacked.validation is not None
    bits = attacked.bits(game)
    named = [(cell, share) for cell in attacked.validation for share in shares]
    tries = [
        _expected(some, bits)
        for rows in attacked.validation.values()
        for some in zip(
            *(rows.bits(game, seed).guessed(*shares) for seed in _seeds(game)), strict=True
        )
    ]
    place, best = highest(bound, tries)
    if best == 0:
        place = int(np.argmax([(2 * one.right - one.guesses) / one.guesses**0.5 for one in tries]))
    return named[place]


def _seeds(game: str) -> range:
    return range(1, 1 + (MATCHINGS if game == PAIRED else 1))


def _expected(some: Sequence[Counts], bits: int) -> Counts:
    """Mean of counts, as of so many bits."""
    _, guesses, right = np.mean(some, axis=0) * (bits / some[0].bits)
    made = min(max(round(guesses), 1), bits)
    return Counts(bits, made, min(round(right * made / guesses), made))


def judge(attacked: Attacked, game: str, cell: str, share: float, seed: int) -> Proof:
    """Guess once, with what was chosen.

    Raises:
        InputError: all scores are tied, or there are points of one class alone.
    """
    parts = _parts(attacked, game, cell, seed)
    return Proof(cell, share, games.pooled(parts, share)[0])


def best_of_all(
    attacked: Attacked,
    game: str,
    bound: Callable[[int], Bound],
    shares: Sequence[float],
    seed: int,
) -> Proof:
    """Take the attack that proves most on the targets themselves, and pay for all of them.

    `bound` is given the number of tries, by which the significance is divided.

    Raises:
        InputError: as in `judge`.
    """
    named = [(cell, share) for cell in attacked.targets for share in shares]
    tries = [
        counts
        for cell in attacked.targets
        for counts in games.pooled(_parts(attacked, game, cell, seed), *shares)
    ]
    place, _ = highest(bound(len(tries)), tries)
    return Proof(*named[place], tries[place], len(tries))


def _parts(attacked: Attacked, game: str, cell: str, seed: int) -> list[Bits]:
    parts = [rows.bits(game, seed) for rows in attacked.targets[cell]]
    if all(one.blank for one in parts):
        raise InputError(f"all scores of {cell} are tied, so that nothing can be guessed by them.")
    return parts
