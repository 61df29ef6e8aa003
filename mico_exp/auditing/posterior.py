"""An estimate of ε, and no bound: its posterior from those of the false rates.

Zanella-Béguelin et al. 2022, arXiv 2206.05199. FPR and FNR of a threshold have independent Beta
posteriors (prior: Jeffreys'), and ε is the least with which both lie in what (ε, δ) allows. Where
several points of one model are counted it is a heuristic, for these are not independent; and a
credible interval may miss the truth more often than it says. So it proves nothing, and no verdict
rests on it.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv

from mico_exp.common.arrays import Floats

PRIOR = 0.5  # of both parameters: Jeffreys'
NODES = 1000  # quantiles of FPR over which is summed
LARGEST = 30.0  # e^30 false positives less than true ones are more than anybody counts


class Estimate(NamedTuple):
    """Median of the posterior of ε, and the ends of its middle 1 − α."""

    epsilon: float
    low: float
    high: float


def estimate(
    true: int, members: int, false: int, others: int, delta: float, significance: float
) -> Estimate:
    """Estimate ε from `true` positives of `members` and `false` ones of `others`."""
    chances = (np.arange(NODES) + 0.5) / NODES
    fpr = betaincinv(false + PRIOR, others - false + PRIOR, chances)
    of_fnr = members - true + PRIOR, true + PRIOR
    tails = (0.5, significance / 2, 1 - significance / 2)
    return Estimate(*(_quantile(tail, fpr, of_fnr, delta) for tail in tails))


def _quantile(chance: float, fpr: Floats, of_fnr: tuple[float, float], delta: float) -> float:
    def beyond(epsilon: float) -> float:
        return probability(epsilon, fpr, of_fnr, delta) - chance

    if beyond(0.0) >= 0:
        return 0.0
    return math.inf if beyond(LARGEST) < 0 else float(brentq(beyond, 0.0, LARGEST, xtol=1e-6))


def probability(epsilon: float, fpr: Floats, of_fnr: tuple[float, float], delta: float) -> float:
    """Posterior probability that the rates lie in what (ε, δ) allows.

    Allowed are FPR + e^ε FNR ≥ 1 − δ and e^ε FPR + FNR ≥ 1 − δ, and the same of 1 − FPR, 1 − FNR.

    Args:
        epsilon: ε.
        fpr: (K,) quantiles of its posterior, equally far apart in chance.
        of_fnr: both parameters of the Beta posterior of FNR.
        delta: δ.
    """
    grows = math.exp(epsilon)

    def least(rate: Floats) -> Floats:
        found = np.maximum((1 - delta - rate) / grows, 1 - delta - grows * rate)
        return np.clip(found, 0.0, 1.0)

    inside = betainc(*of_fnr, 1 - least(1 - fpr)) - betainc(*of_fnr, least(fpr))
    return float(np.maximum(inside, 0).mean())
