"""The methods by which a floor is proven, each with a choice of its own, and what they come to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from mico_exp.auditing import bounds, ceiling, coins, curves, floor, games, one_run, posterior
from mico_exp.auditing.counts import Counts
from mico_exp.auditing.floor import INDEPENDENT, ONE_PER_MODEL, PAIRED, Attacked, Bound, Proof, Rows
from mico_exp.auditing.statement import Bounded, Claim, Estimated
from mico_exp.common.arrays import Floats
from mico_exp.common.errors import InputError
from mico_exp.results.scoring import RANKING_FPR, roc
from mico_exp.training.mechanism import Mechanism

Rates = Callable[..., Floats]  # of true positives, members, false positives and others


@dataclass(frozen=True)
class How:
    """What bounds are of.

    delta: δ. significance: α of each. game: one of `floor.GAMES`. shares: of the bits that may be
    guessed. seed: of the matchings.
    """

    delta: float
    significance: float
    game: str
    shares: Sequence[float]
    seed: int

    @property
    def relation(self) -> str:
        """What neighbouring sets of records are."""
        return games.REPLACE_ONE if self.game == PAIRED else games.ADD_REMOVE


def prove(attacked: Attacked, how: How, mechanism: Mechanism | None) -> tuple[Bounded, ...]:
    """Prove what can be, by every method that the game allows; the first is the one that counts.

    Independent bits must be fair coins; of one record a model, those methods that need them are
    left out where they are not.

    Raises:
        InputError: nothing can be guessed, or membership is not what the game needs.
    """
    if how.game == INDEPENDENT:
        coins.check(*attacked.sizes)
    found: list[Bounded] = []
    if how.game == ONE_PER_MODEL and attacked.validation is not None:
        found = _trials(attacked, how)
        if coins.is_fair(*attacked.sizes):
            found += _accuracy(attacked, how)
    if how.game != ONE_PER_MODEL or coins.is_fair(*attacked.sizes):
        found += [_one_run(attacked, how), *_curves(attacked, how, mechanism)]
    if not found:
        members, points = attacked.sizes
        raise InputError(
            f"{members.sum()} of {points.sum()} records are in, which no fair coin is; then bounds "
            "need models that thresholds are chosen by, and there are too few."
        )
    return tuple(found)


def _one_run(attacked: Attacked, how: How) -> Bounded:
    """(ε, δ) of one run."""

    def bound(tries: int) -> Bound:
        alpha = how.significance / tries
        return lambda counts, least: one_run.epsilon(counts, how.delta, alpha, least)

    proof = _proof(attacked, how, bound)
    return _bounded("one_run", bound(proof.tries)(proof.counts, 0.0), None, proof)


def _curves(attacked: Attacked, how: How, mechanism: Mechanism | None) -> list[Bounded]:
    """Gaussian DP of one run, and with the same guesses the accountant's own curve."""

    def bound(tries: int) -> Bound:
        return lambda counts, least: one_run.mu(counts, how.significance / tries, least)

    proof = _proof(attacked, how, bound)
    mu = bound(proof.tries)(proof.counts, 0.0)
    epsilon = curves.epsilon_of_gaussian(mu, how.delta)
    found = [_bounded("one_run_gaussian", epsilon, mu, proof)]
    if mechanism is not None:
        alpha = how.significance / proof.tries
        refused = ceiling.refused_noise(proof.counts, mechanism, how.relation, alpha)
        own = ceiling.epsilon_of(refused, how.delta, how.relation) if refused else 0.0
        found.append(_bounded("one_run_accountant", own, None, proof))
    return found


def _proof(attacked: Attacked, how: How, bound: Callable[[int], Bound]) -> Proof:
    if attacked.validation is None:
        return floor.best_of_all(attacked, how.game, bound, how.shares, how.seed)
    chosen = floor.choose(attacked, how.game, bound(1), how.shares)
    return floor.judge(attacked, how.game, *chosen, how.seed)


def _bounded(method: str, epsilon: float, mu: float | None, proof: Proof) -> Bounded:
    return Bounded(method, epsilon, mu, proof.cell, proof.share, *proof.counts, proof.tries)


def _trials(attacked: Attacked, how: How) -> list[Bounded]:
    """Clopper & Pearson's ε and the μ of Gaussian DP, at thresholds that validation chose."""
    epsilon = _clopper_pearson(how)
    cell, sides = _at_threshold(attacked, epsilon)
    found = float(epsilon(*sides))
    first = Bounded("clopper_pearson", found, None, cell, *_guessed(sides))
    gaussian = partial(bounds.gaussian, significance=how.significance)
    cell, sides = _at_threshold(attacked, gaussian)
    mu = float(gaussian(*sides))
    second = curves.epsilon_of_gaussian(mu, how.delta)
    return [first, Bounded("gaussian", second, mu, cell, *_guessed(sides))]


def _accuracy(attacked: Attacked, how: How) -> list[Bounded]:
    """ε, and μ of Gaussian DP, by the share of right guesses of all trials; bits are fair coins."""
    cell, (true, members, false, others) = _at_threshold(attacked, _share_right)
    trials = members + others
    made = (1.0, trials, trials, true + others - false, 1)
    right = made[3], trials
    epsilon = float(bounds.accuracy_epsilon(*right, how.delta, how.significance))
    mu = float(bounds.accuracy_mu(*right, how.significance))
    second = curves.epsilon_of_gaussian(mu, how.delta)
    return [
        Bounded("accuracy", epsilon, None, cell, *made),
        Bounded("accuracy_gaussian", second, mu, cell, *made),
    ]


def _share_right(true: ArrayLike, members: int, false: ArrayLike, others: int) -> Floats:
    return (np.asarray(true) + others - np.asarray(false)) / (members + others)


def _clopper_pearson(how: How) -> Rates:
    return partial(bounds.clopper_pearson, delta=how.delta, significance=how.significance)


def _at_threshold(attacked: Attacked, bound: Rates) -> tuple[str, tuple[int, ...]]:
    """Cell that validation chose with its threshold, and the targets' counts there."""
    assert attacked.validation is not None
    chosen = {cell: _best_threshold(rows, bound) for cell, rows in attacked.validation.items()}
    cell = max(chosen, key=lambda one: chosen[one][0])
    return cell, _sides(attacked, cell, chosen[cell][1])


def _best_threshold(rows: Rows, bound: Rates) -> tuple[float, float]:
    """Highest bound at any threshold of these models, and that threshold."""
    curve = roc(rows.solution, rows.scores, rows.there)
    members = int(rows.solution[rows.there].sum())
    others = int(rows.there.sum()) - members
    found = bound(curve.tpr * members, members, curve.fpr * others, others)
    place = int(np.argmax(found)) or curve.place(RANKING_FPR)
    return float(found[place]), float(curve.threshold[place])


def _sides(attacked: Attacked, cell: str, threshold: float) -> tuple[int, ...]:
    some = (games.rates(*rows, threshold) for rows in attacked.targets[cell])
    return tuple(map(sum, zip(*some, strict=True)))


def _guessed(sides: Sequence[int]) -> tuple[float, int, int, int, int]:
    """Share, bits, guesses, right ones and tries, of called members."""
    true, members, false, others = sides
    return (true + false) / (members + others), members + others, true + false, true, 1


def estimate(attacked: Attacked, how: How, cell: str) -> Estimated:
    """The posterior of ε by the rates of a cell at one threshold, which validation chose if any."""
    rows = attacked.targets[cell][-1] if attacked.validation is None else attacked.validation[cell]
    threshold = _best_threshold(rows, _clopper_pearson(how))[1]
    true, members, false, others = _sides(attacked, cell, threshold)
    found = posterior.estimate(true, members, false, others, how.delta, how.significance)
    return Estimated(*(one if math.isfinite(one) else None for one in found))


def contradicts(proven: Bounded, claim: Claim, how: How) -> bool:
    """Tell whether what is claimed is refused, of the relation that the bits are of."""
    epsilon, delta = claim.of(how.relation)
    if proven.method != "one_run":
        return proven.epsilon > epsilon and how.delta >= delta
    counts = Counts(proven.bits, proven.guesses, proven.right)
    return one_run.p_value(counts, epsilon, delta) <= how.significance / proven.tries


def shares_of(guesses: int | None, attacked: Attacked, game: str) -> Sequence[float]:
    """Shares of the bits that may be guessed: all of a list, or what was asked for.

    Raises:
        InputError: more guesses are asked for than there are bits.
    """
    if guesses is None:
        return floor.SHARES
    bits = attacked.bits(game)
    if guesses > bits:
        raise InputError(
            f"`guesses` must be at most the {bits} bits that there are, got {guesses}."
        )
    return (guesses / bits,)
