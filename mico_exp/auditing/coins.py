"""Whether fair coins drew a membership, as the bits of `games` need where each is by itself.

Axes: T models.
"""

import numpy as np
from scipy.stats import binom, binomtest

from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError

UNLIKELY = 1e-3  # chance of a membership below which no fair coins drew it


def is_fair(members: Indices, points: Indices) -> bool:
    """Tell whether fair coins may have drawn so many members (T,) of so many points (T,)."""
    return bool(binomtest(int(members.sum()), int(points.sum())).pvalue >= UNLIKELY)


def is_of_fixed_size(members: Indices, points: Indices) -> bool:
    """Tell whether all models are nearer to half members (T,) than coins of their own bring them.

    The chance is that of every model's being as near as the farthest is.
    """
    apart = np.abs(2 * members - points).max()
    near = 1 - 2 * binom.cdf((points - apart - 1) / 2, points, 0.5)
    return bool(near.prod() < UNLIKELY)


def check(members: Indices, points: Indices) -> None:
    """Refuse membership (T,) of points (T,) that no fair coin of each point's own drew.

    Raises:
        InputError: it is such.
    """
    if not is_fair(members, points):
        raise InputError(
            f"`game=independent` needs each record in by a fair coin of its own, and "
            f"{members.sum()} of {points.sum()} are in."
        )
    if is_of_fixed_size(members, points):
        raise InputError(
            "`game=independent` needs each record in by a fair coin of its own; all "
            f"{len(members)} models are so near to half members that their number was fixed: take "
            "`game=paired`."
        )
