"""What a guarantee lets an attack reach: Gaussian differential privacy, and curves of δ(ε).

A mechanism is μ-GDP if telling two neighbouring data sets apart is no easier than telling N(0, 1)
from N(μ, 1) (Dong, Roth & Su 2019, arXiv 1905.02383). An accountant tells δ(ε) instead; both are
trade-off curves, and a curve here is what the attack's TPR is when its FPR is x: x ↦ 1 − f(x),
concave, from TPR δ(∞) at FPR 0 to 1 at FPR 1. f is symmetric, so the inverse of that curve is
y ↦ f(1 − y), which the one-run bound asks for thousands of times, and which is given as a plain
function of one number.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr

from mico_exp.common.arrays import Floats, Indices

Inverse = Callable[[float], float]  # TPR ↦ the least FPR that a guarantee allows with it
LARGEST_EPSILON = 700.0  # e^ε is a double
LARGEST_MU = 37.0  # whose ε at any δ that a double tells from 0 is below that
_quantile = NormalDist().inv_cdf
_ROOT_2 = math.sqrt(2.0)


def gaussian(mu: float) -> Inverse:
    """Trade-off of a μ-GDP mechanism: y ↦ Φ(Φ⁻¹(y) − μ)."""

    def least_fpr(tpr: float) -> float:
        if not 0.0 < tpr < 1.0:
            return float(tpr >= 1.0)
        return 0.5 * math.erfc((mu - _quantile(tpr)) / _ROOT_2)

    return least_fpr


def piecewise(epsilons: Floats, deltas: Floats) -> Inverse:
    """Trade-off that δ(ε) at ε (K,) ≥ 0 allows, from below: y ↦ max over ε of its two lines.

    At each ε it is FPR ≥ e^−ε (TPR − δ) and FPR ≥ 1 − δ − e^ε (1 − TPR). What is between the ε
    that are given is left out, which allows more.
    """
    epsilons = np.minimum(epsilons, LARGEST_EPSILON)
    slopes = np.concatenate([np.exp(-epsilons), np.exp(epsilons), [0.0]])
    heights = np.concatenate([-np.exp(-epsilons) * deltas, 1 - deltas - np.exp(epsilons), [0.0]])
    knots, kept = _envelope(slopes, heights)
    a, b, starts = slopes[kept].tolist(), heights[kept].tolist(), knots.tolist()

    def least_fpr(tpr: float) -> float:
        line = bisect_right(starts, tpr)
        return max(a[line] * tpr + b[line], 0.0)

    return least_fpr


def _envelope(slopes: Floats, heights: Floats) -> tuple[Floats, Indices]:
    """Upper envelope of lines: where each ends and the next begins (L − 1,), and which (L,)."""
    kept: list[int] = []
    ends: list[float] = []
    for one in np.lexsort((heights, slopes)):  # of two parallels the higher comes second
        while kept and (end := _meet(slopes, heights, kept[-1], one)) <= (ends or [-math.inf])[-1]:
            kept.pop()
            ends = ends[: len(kept) - 1] if kept else []
        if kept:
            ends.append(end)
        kept.append(int(one))
    return np.array(ends), np.array(kept)


def _meet(slopes: Floats, heights: Floats, first: int, second: int) -> float:
    if slopes[first] == slopes[second]:
        return -math.inf
    return float((heights[first] - heights[second]) / (slopes[second] - slopes[first]))


def delta_of_gaussian(epsilon: float, mu: float) -> float:
    """δ(ε) of a μ-GDP mechanism (Dong, Roth & Su 2019, corollary 2.13)."""
    return math.exp(_log_delta(epsilon, mu)) if mu > 0 else 0.0


def epsilon_of_gaussian(mu: float, delta: float) -> float:
    """ε at δ of a μ-GDP mechanism; 0 where even δ(0) is no more, infinite at δ = 0."""
    if mu <= 0:
        return 0.0
    if delta <= 0:
        return math.inf
    if _log_delta(0.0, mu) <= math.log(delta):
        return 0.0
    most = mu * mu / 2 + 40 * mu  # where δ is below every double
    return float(brentq(lambda x: _log_delta(x, mu) - math.log(delta), 0.0, most, xtol=1e-13))


def _log_delta(epsilon: float, mu: float) -> float:
    """Log of Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ), without a difference of nearly equal numbers."""
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return first + math.log(-math.expm1(second - first)) if second < first else -math.inf
