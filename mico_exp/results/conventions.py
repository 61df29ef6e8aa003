"""TPR at an FPR as other tools read it off the same scores, beside the official rule.

docs/figures.md says which tool follows which. On scores without ties the first two are the same
but where an FPR of exactly x is reached, and the others lie above them.

Axes: T models, P points of a model, K points of a curve.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from mico_exp.common.arrays import Floats, Mask
from mico_exp.results.scoring import OFFICIAL_FPRS, check_fpr, curve_of, rank

CONVENTIONS = ("strictly below", "at most", "interpolated", "hull")


def by_convention(
    solution: ArrayLike,
    predictions: ArrayLike,
    fprs: Sequence[float] = OFFICIAL_FPRS,
    there: Mask | None = None,
) -> Mapping[str, list[float]]:
    """Read TPRs off pooled predictions (T, P) for membership (T, P), by each convention.

    ``strictly below`` is the official rule, on scikit-learn's curve; ``at most`` the highest TPR
    of any threshold whose FPR is at most x; ``interpolated`` lies on the straight lines between
    all thresholds, which no attack reaches without drawing lots; ``hull`` on the upper convex
    hull of these, which takes lots between thresholds chosen by the truth.

    Raises:
        InputError: as `scoring.roc` has it, or an FPR is not above 0.
    """
    for x in fprs:
        check_fpr(x)
    _, is_member, ranked, last = rank(solution, predictions, there)
    curve = curve_of(is_member, ranked, last)
    members = np.append(0, np.cumsum(is_member)[last])
    others = np.append(0, last + 1) - members
    tpr, fpr = members / members[-1], others / others[-1]
    within = [int(np.searchsorted(fpr, x, side="right")) - 1 for x in fprs]
    corners = upper_hull(fpr, tpr)
    return {
        "strictly below": [curve.tpr_at(x) for x in fprs],
        "at most": [float(tpr[place]) for place in within],
        "interpolated": [_on_lines(x, fpr, tpr) for x in fprs],
        "hull": [_on_lines(x, fpr[corners], tpr[corners]) for x in fprs],
    }


def _on_lines(x: float, fpr: Floats, tpr: Floats) -> float:
    """TPR at an FPR on the lines between a curve's points (K,), the higher one where it jumps."""
    if (place := int(np.searchsorted(fpr, x, side="right"))) == len(fpr):
        return float(tpr[-1])
    share = (x - fpr[place - 1]) / (fpr[place] - fpr[place - 1])
    return float(tpr[place - 1] + share * (tpr[place] - tpr[place - 1]))


def upper_hull(fpr: Floats, tpr: Floats) -> list[int]:
    """Places among a curve's points (K,), ascending, that its upper convex hull goes through."""
    kept: list[int] = []
    for place in range(len(fpr)):
        while len(kept) > 1 and not _turns_right(fpr, tpr, kept[-2], kept[-1], place):
            kept.pop()
        kept.append(place)
    return kept


def _turns_right(fpr: Floats, tpr: Floats, first: int, second: int, third: int) -> bool:
    along = (fpr[second] - fpr[first]) * (tpr[third] - tpr[first])
    return bool(along < (fpr[third] - fpr[first]) * (tpr[second] - tpr[first]))
