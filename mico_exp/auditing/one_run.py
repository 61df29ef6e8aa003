"""Bounds from one run with many bits, or from several: guesses may hang on each other.

Every bit was drawn by a fair coin, and the attacker guesses some of them. T models with bits of
their own are together one mechanism, which has in every bit the guarantee that each of them has:
so the bits of all models are pooled.

- (ε, δ): Steinke, Nasr & Jagielski 2023, arXiv 2305.08846.
- f-DP: Mahloujifar, Melis & Chaudhuri 2024, arXiv 2410.22235. It refuses a whole
  trade-off curve, and so is tighter, but speaks of mechanisms with such a curve.

A statement is refused at significance α where what was seen has no more chance than that.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import betainc, betaincinv, expit, gammaln, logit

from mico_exp.auditing.counts import Counts
from mico_exp.auditing.curves import LARGEST_MU, Inverse, gaussian

TOLERANCE = 1e-8  # by which a bound may be lower than it could be


def p_value(counts: Counts, epsilon: float, delta: float) -> float:
    """Chance, at most, of so many right guesses if the mechanism is (ε, δ)-DP in every bit.

    With m bits, r guesses and v right ones it is P[B ≥ v] + 2mδ max over i = 1 … v of
    P[v − i ≤ B < v] / i, where B ~ Binomial(r, e^ε / (1 + e^ε)).
    """
    right, chance = counts.right, float(expit(epsilon))
    if right == 0:
        return 1.0
    tail = float(betainc(right, counts.guesses - right + 1, chance))
    if delta == 0:
        return tail
    below = np.arange(right - 1, -1, -1)
    means = np.cumsum(_binomial(below, counts.guesses, epsilon)) / np.arange(1, right + 1)
    return min(tail + 2 * counts.bits * delta * float(means.max()), 1.0)


def _binomial(k: np.ndarray, n: int, epsilon: float) -> np.ndarray:
    """P[B = k] (K,) of B ~ Binomial(n, e^ε / (1 + e^ε))."""
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.exp(ways + k * epsilon - n * np.logaddexp(0.0, epsilon))


def epsilon(counts: Counts, delta: float, significance: float, least: float = 0.0) -> float:
    """Largest ε with which (ε, δ) is refused; 0 where it is below `least`, or none is refused.

    Raises:
        InputError: the counts are of no game.
    """
    counts.check()
    if p_value(counts, least, delta) > significance:
        return 0.0
    # Without δ the bound is Clopper & Pearson's; δ can only take from it.
    most = float(logit(betaincinv(counts.right, counts.guesses - counts.right + 1, significance)))
    if delta == 0:
        return max(most, 0.0)
    return _largest(lambda x: p_value(counts, x, delta) <= significance, least, most)


def refuses(counts: Counts, curve: Inverse, significance: float) -> bool:
    """Tell whether a trade-off curve is refused by what was seen.

    Going down from the right guesses, the chances of more and of fewer are bounded by each other;
    where all chances come to more than there is, the curve was none of the mechanism's.
    """
    bits, guesses, right = counts
    r, h = significance * right / bits, significance * (guesses - right) / bits
    there_is = guesses / bits
    for i in range(right - 1, -1, -1):
        higher = curve(r)
        if higher <= h:
            break
        r = min(r + i / (guesses - i) * (higher - h), 1.0)
        h = higher
        if r + h > there_is:
            return True
    return r + h > there_is


def mu(counts: Counts, significance: float, least: float = 0.0) -> float:
    """Largest μ with which μ-GDP is refused; 0 where it is below `least`, or none is refused.

    Raises:
        InputError: the counts are of no game.
    """
    counts.check()

    def refused(value: float) -> bool:
        return refuses(counts, gaussian(value), significance)

    if not refused(least):
        return 0.0
    low, high = least, max(0.25, 2 * least)
    while high < LARGEST_MU and refused(high):
        low, high = high, 2 * high
    return _largest(refused, low, high)


def _largest(refused: Callable[[float], bool], low: float, high: float) -> float:
    """Largest value that is refused, as all below it are; `low` is, and `high` is not."""
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if refused(middle) else (low, middle)
    return low
