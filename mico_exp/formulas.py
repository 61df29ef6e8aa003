"""Calibration formulas: a target's score at a point against its shadow models' scores there.

Every formula takes

    score   (…, P)     the target model's score at each of its points, higher = more member-like
    shadow  (…, S, P)  the same metric under the shadow models
    is_in   (…, S, P)  True where the shadow model was trained on the point
    is_out  (…, S, P)  True where it serves as one that was not

and returns (…, P), again higher = more member-like. Who is left out, and who stands in where
there are too few, is decided by `calibration`: a formula sees arrays alone, and at least one
model on either side. One small file in ``conf/formula`` makes a formula a choice.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def masked_mean(values: Floats, mask: Mask) -> Floats:
    """Mean of (…, S, P) over S where `mask` holds; at least one must in every column."""
    mean: Floats = np.sum(values, axis=-2, where=mask) / np.count_nonzero(mask, axis=-2)
    return mean


def uncalibrated(score: Floats, shadow: Floats, is_in: Mask, is_out: Mask) -> Floats:  # noqa: ARG001
    """s, the metric itself: no shadow model is asked."""
    return score


def midpoint(score: Floats, shadow: Floats, is_in: Mask, is_out: Mask) -> Floats:
    """s − (mean(in) + mean(out)) / 2, the winner's formula 0."""
    return score - (masked_mean(shadow, is_in) + masked_mean(shadow, is_out)) / 2


def in_mean(score: Floats, shadow: Floats, is_in: Mask, is_out: Mask) -> Floats:  # noqa: ARG001
    """s − mean(in), the winner's formula 1."""
    return score - masked_mean(shadow, is_in)


def standardized(score: Floats, shadow: Floats, is_in: Mask, is_out: Mask) -> Floats:
    """(s − mean(in ∪ out)) / std(in ∪ out) with n − 1, the winner's formula 2.

    A model that stands on both sides counts twice. Where the shadow models all agree there is
    no scale, and the result is 0, neither member-like nor not.
    """
    weight = is_in.astype(float) + is_out
    count = weight.sum(axis=-2)
    mean = np.einsum("...sp,...sp->...p", weight, shadow) / count
    spread = weight * np.square(shadow - mean[..., np.newaxis, :])
    deviation = np.sqrt(spread.sum(axis=-2) / np.maximum(count - 1, 1))
    return np.divide(score - mean, deviation, out=np.zeros_like(mean), where=deviation > 0)
