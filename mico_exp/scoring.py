"""The competition's official rule: membership and predictions to figures.

All models of a scenario and phase are pooled before the curve is drawn, never averaged per
model. TPR at FPR x is the highest TPR at an FPR *strictly below* x, on scikit-learn's curve with
its default arguments; public code has other readings ("at most", interpolated) that differ.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from mico_exp.errors import InputError

OFFICIAL_FPRS = (0.001, 0.01, 0.05, 0.1, 0.15, 0.2)
RANKING_FPR = 0.1


@dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve: false and true positive rates (K,), both ascending from 0 to 1."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]

    def tpr_at(self, fpr: float) -> float:
        """Highest TPR at an FPR strictly below `fpr`."""
        return float(self.tpr[self.fpr < fpr].max())


def roc(solution: ArrayLike, predictions: ArrayLike) -> Roc:
    """Draw the pooled ROC curve of predictions (T, P) for membership (T, P).

    Raises:
        InputError: shapes differ, values are not finite, or one class is missing.
    """
    truth, scores = np.asarray(solution), np.asarray(predictions)
    if truth.shape != scores.shape:
        raise InputError(f"solution has shape {truth.shape}, but predictions {scores.shape}.")
    if not np.isfinite(scores).all():
        raise InputError(f"{(~np.isfinite(scores)).sum()} of {scores.size} predictions are NaN.")
    if truth.all() or not truth.any():
        raise InputError("A ROC curve needs members and non-members, got one class only.")
    fpr, tpr, _ = roc_curve(truth.ravel(), scores.ravel())
    return Roc(fpr, tpr)


def figures(solution: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """Compute all official figures of predictions (T, P) for membership (T, P), by name.

    ``tpr_at_fpr_<x>`` for every official x, ``auc``, ``advantage`` = max(TPR − FPR) and
    ``accuracy`` = max(1 − (FPR + 1 − TPR)/2).
    """
    curve = roc(solution, predictions)
    result = {f"tpr_at_fpr_{x}": curve.tpr_at(x) for x in OFFICIAL_FPRS}
    result["auc"] = float(roc_auc_score(np.ravel(solution), np.ravel(predictions)))
    result["advantage"] = float((curve.tpr - curve.fpr).max())
    result["accuracy"] = float((1 - (curve.fpr + 1 - curve.tpr) / 2).max())
    return result
