"""The competition's official rule: membership and predictions to figures.

All models of a scenario and phase are pooled before the curve is drawn, never averaged per
model. TPR at FPR x is the highest TPR at an FPR *strictly below* x, on the curve that
scikit-learn's `roc_curve` draws, without the points that lie on a straight line between others;
public code has other readings ("at most", interpolated) that differ.

Models may have unequal numbers of points. Rows (T, P) then end in places that are none, which
`there` (T, P) marks by False; without it all are points, and a prediction that is NaN is an error.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mico_exp.common import require
from mico_exp.common.arrays import Mask
from mico_exp.common.errors import InputError

OFFICIAL_FPRS = (0.001, 0.01, 0.05, 0.1, 0.15, 0.2)
RANKING_FPR = 0.1


@dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve: false and true positive rates (K,), both ascending from 0 to 1.

    threshold: (K,) descending from infinity; whoever scores as high or higher is called a member.
    """

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    threshold: NDArray[np.float64]

    def tpr_at(self, fpr: float) -> float:
        """Highest TPR at an FPR strictly below `fpr`, which is above 0; 1 where that is above 1."""
        return float(self.tpr[self.place(fpr)])

    def place(self, fpr: float) -> int:
        """Where on the curve the highest TPR at an FPR strictly below `fpr` lies.

        Raises:
            InputError: `fpr` is not above 0: nothing lies strictly below it.
        """
        check_fpr(fpr)
        return int(np.searchsorted(self.fpr, fpr)) - 1

    @property
    def auc(self) -> float:
        """Area under the curve: the chance that a member scores higher, a tie counting half."""
        return float(np.trapezoid(self.tpr, self.fpr))


def check_fpr(fpr: float) -> None:
    """Refuse an FPR that nothing lies strictly below.

    Raises:
        InputError: it is not above 0.
    """
    require.above("fpr", fpr, 0, finite=False)


def roc(solution: ArrayLike, predictions: ArrayLike, there: Mask | None = None) -> Roc:
    """Draw the pooled ROC curve of predictions (T, P) for membership (T, P).

    Raises:
        InputError: shapes differ, values are not finite, or one class is missing.
    """
    _, is_member, ranked, last = rank(solution, predictions, there)
    return curve_of(is_member, ranked, last)


def curve_of(
    is_member: NDArray[np.bool_], ranked: NDArray[np.floating], last: NDArray[np.int64]
) -> Roc:
    """Draw the curve of what `rank` gives: membership and predictions (N,), and ends of runs."""
    members = np.cumsum(is_member, dtype=np.int64)[last]
    others = last + 1 - members
    corners = np.ones(len(last), dtype=bool)  # none lies on a line between others
    corners[1:-1] = (np.diff(members, 2) != 0) | (np.diff(others, 2) != 0)
    tpr, fpr = (np.append(0, count[corners]) / count[-1] for count in (members, others))
    return Roc(fpr, tpr, np.append(np.inf, ranked[last[corners]]))


def rank(
    solution: ArrayLike, predictions: ArrayLike, there: Mask | None = None
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.floating], NDArray[np.int64]]:
    """Put pooled predictions in descending order, and members first where they are equal.

    Returns the order (N,) of the points in the flattened arrays, membership and predictions in it,
    and the last place (K,) of every run of equal predictions.

    Raises:
        InputError: shapes differ, values are not finite, or one class is missing.
    """
    truth, scores = np.asarray(solution, dtype=bool), np.asarray(predictions)
    if truth.shape != scores.shape:
        raise InputError(f"solution has shape {truth.shape}, but predictions {scores.shape}.")
    truth, scores = flat(truth, there), flat(scores, there)
    if not np.isfinite(scores).all():
        raise InputError(f"{(~np.isfinite(scores)).sum()} of {scores.size} predictions are NaN.")
    if truth.all() or not truth.any():
        raise InputError("Members and non-members are needed, got one class only.")
    order = _descending(scores, truth)
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)
    return order, truth[order], ranked, last


def flat(values: NDArray[Any], there: Mask | None) -> NDArray[Any]:
    """Give the values (N,) of an array (T, P) where there is a point."""
    return values.ravel() if there is None or there.all() else values[there]


PLACE_BITS = 31  # of a key, which hold a place among fewer than 2³¹ predictions


def _descending(scores: NDArray[Any], first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Order (N,) of scores, the highest first, and of equal ones those that are to come first.

    float32 fits into one whole number together with its place, and such are sorted several times
    as fast as places by their scores.
    """
    if scores.dtype != np.float32 or scores.size >= 1 << PLACE_BITS:
        places = np.concatenate([np.flatnonzero(first), np.flatnonzero(~first)])
        return places[np.argsort(-scores[places], kind="stable")]
    bits = (scores + np.float32(0)).view(np.int32)  # with no −0, which equals 0
    keys = -np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    keys <<= PLACE_BITS + 1
    keys += ~first * (1 << PLACE_BITS) + np.arange(scores.size)
    keys.sort()
    keys &= (1 << PLACE_BITS) - 1
    return keys


def figures(
    solution: ArrayLike, predictions: ArrayLike, there: Mask | None = None
) -> dict[str, float]:
    """Compute all official figures of predictions (T, P) for membership (T, P), by name."""
    return figures_of(roc(solution, predictions, there))


def figures_of(curve: Roc) -> dict[str, float]:
    """Read all official figures off a curve, by name.

    ``tpr_at_fpr_<x>`` for every official x, ``auc``, ``advantage`` = max(TPR − FPR) and
    ``accuracy`` = max(1 − (FPR + 1 − TPR)/2).
    """
    result = {f"tpr_at_fpr_{x}": curve.tpr_at(x) for x in OFFICIAL_FPRS}
    result["auc"] = curve.auc
    result["advantage"] = float((curve.tpr - curve.fpr).max())
    result["accuracy"] = float((1 - (curve.fpr + 1 - curve.tpr) / 2).max())
    return result


def operating_points(
    curve: Roc, predictions: ArrayLike, there: Mask | None = None
) -> dict[str, float]:
    """Say what the official TPRs of a curve stand on, by name, for every official FPR x.

    ``fpr_below_<x>`` the FPR really reached; ``threshold_at_fpr_<x>`` the lowest prediction that
    is called a member, left out where none is; ``tied_at_fpr_<x>`` the share of all predictions
    that equal the threshold.
    """
    scores = flat(np.asarray(predictions), there)
    found = {}
    for x in OFFICIAL_FPRS:
        place = curve.place(x)
        threshold = float(curve.threshold[place])
        found[f"fpr_below_{x}"] = float(curve.fpr[place])
        found[f"tied_at_fpr_{x}"] = float((scores == curve.threshold[place]).mean())
        if np.isfinite(threshold):
            found[f"threshold_at_fpr_{x}"] = threshold
    return found
