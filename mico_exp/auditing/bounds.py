"""Bounds from independent trials: one canary a model, and many models.

Whatever happens within a model, its trial hangs on no other one's; so false and true positives are
binomial, and Clopper and Pearson's limits of their rates hold. Of several points of one model they
do not, and the bounds of `one_run` are to be taken.

A bound at significance α may be above the truth with a chance of α. It is of a threshold that was
fixed before the scores were seen; of the best of n thresholds it is one at α / n.

Arrays broadcast: one entry an audit.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, ndtri

from mico_exp.common.arrays import Floats


def upper_rate(count: ArrayLike, trials: ArrayLike, significance: float) -> Floats:
    """Highest rate with which so few are no less likely than α (Clopper & Pearson 1934)."""
    k, n = np.broadcast_arrays(np.asarray(count, float), np.asarray(trials, float))
    inside = betaincinv(k + 1, np.maximum(n - k, 1), 1 - significance)
    return np.where(k < n, inside, 1.0)


def lower_rate(count: ArrayLike, trials: ArrayLike, significance: float) -> Floats:
    """Lowest rate with which so many are no less likely than α (Clopper & Pearson 1934)."""
    return 1 - upper_rate(np.subtract(trials, count), trials, significance)


def clopper_pearson(
    true: ArrayLike,
    members: ArrayLike,
    false: ArrayLike,
    others: ArrayLike,
    delta: float,
    significance: float,
) -> Floats:
    """ε ≥ log((TPR − δ) / FPR), of the lower limit of TPR and the upper one of FPR at α/2 each.

    Nasr et al. 2021, arXiv 2101.04535. 0 where nothing is proven.

    Args:
        true: members that score as high as the threshold, of `members`.
        members: trials with the canary.
        false: others that do, of `others`.
        others: trials without it.
        delta: of the claim.
        significance: α.
    """
    tpr = lower_rate(true, members, significance / 2)
    fpr = upper_rate(false, others, significance / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(tpr - delta) - np.log(fpr)
    return np.where(tpr - delta > fpr, found, 0.0)


def gaussian(
    true: ArrayLike, members: ArrayLike, false: ArrayLike, others: ArrayLike, significance: float
) -> Floats:
    """μ ≥ Φ⁻¹(1 − FPR) − Φ⁻¹(FNR), of the upper limits of both at α/2 each.

    Dong, Roth & Su 2019, arXiv 1905.02383, equation 6. 0 where nothing is proven. The arguments
    are those of `clopper_pearson`.
    """
    fnr = upper_rate(np.subtract(members, true), members, significance / 2)
    fpr = upper_rate(false, others, significance / 2)
    return np.maximum(-ndtri(fpr) - ndtri(fnr), 0.0)


def accuracy_epsilon(right: ArrayLike, trials: ArrayLike, delta: float,
                     significance: float) -> Floats:  # fmt: skip
    """ε ≥ log((a − δ) / (1 − a)) of the lower limit a of the share of right guesses.

    Every trial is guessed, and its bit was a fair coin: then a ≤ (e^ε + δ) / (1 + e^ε).
    """
    a = lower_rate(right, trials, significance)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(a - delta) - np.log1p(-a)
    return np.where(a - delta > 1 - a, found, 0.0)


def accuracy_mu(right: ArrayLike, trials: ArrayLike, significance: float) -> Floats:
    """μ ≥ 2 Φ⁻¹(a) of the lower limit a of the share of right guesses.

    Every trial is guessed, and its bit was a fair coin: no guess is right with more than Φ(μ/2).
    One limit at α instead of two at α/2 makes it tighter than `gaussian` about the middle.
    """
    return np.maximum(2 * ndtri(lower_rate(right, trials, significance)), 0.0)
