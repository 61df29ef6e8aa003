"""What DP-SGD gives away, δ for every ε, by dp-accounting's privacy loss distributions.

A step is a Gaussian mechanism of noise multiplier σ over a Poisson sample of rate q. Its privacy
loss is laid on a mesh so that δ is never less than the true one (Doroshenko et al. 2022, arXiv
2207.04380), and composed by FFT. *Neighbours* are sets of records of which one has one more than
the other, or with `replace_one` another in its place; then ε is larger, and by no fixed factor.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from mico_exp.common.arrays import Floats

MESH = 1e-4  # between losses: ε is right to about as much, from above
COARSE = 1e-3
FINE, ROUGH = 2.5e-4, 1e-5  # of ε: for small ones, and for large ones
MOST_POINTS, LARGEST_LOSS = 2**26, 5000.0  # gigabytes beyond


@lru_cache(maxsize=4)
def loss_distribution(
    sigma: float, sample_rate: float, steps: int, *, replace_one: bool = False, mesh: float = MESH
) -> Any:
    """The distribution of the privacy loss of `steps` of DP-SGD; None beyond what is computed.

    dp-accounting's own object: `get_delta_for_epsilon` and `get_epsilon_for_delta` ask it.
    """
    from dp_accounting import NeighboringRelation  # seconds that only privacy needs
    from dp_accounting.pld import privacy_loss_distribution as library

    if not sigma > 0 or not _is_within(sigma, sample_rate, steps, mesh):
        return None
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    step = library.from_gaussian_mechanism(
        sigma,
        sampling_prob=sample_rate,
        value_discretization_interval=mesh,
        neighboring_relation=NeighboringRelation.REPLACE_ONE if replace_one else relation,
    )
    return step.self_compose(steps)


def _is_within(sigma: float, sample_rate: float, steps: int, mesh: float) -> bool:
    """Tell whether what the library lays out is not too large.

    A step takes as many points as twenty deviations and a mean; all steps some seventy times as
    many, and beyond 20,000 steps more, for its bounds on their sum widen with their number.
    """
    mean = 1 / (2 * sigma**2)
    points = (20 / sigma + mean) / mesh * (70 + steps / 300)
    return points <= MOST_POINTS and steps * sample_rate * mean <= LARGEST_LOSS


def deltas(
    epsilons: Floats,
    sigma: float,
    sample_rate: float,
    steps: int,
    *,
    replace_one: bool = False,
    mesh: float = MESH,
) -> Floats:
    """The δ, from above, at each of `epsilons` (E,); 1 where it cannot be told."""
    found = loss_distribution(sigma, sample_rate, steps, replace_one=replace_one, mesh=mesh)
    if found is None:
        return np.ones_like(epsilons, dtype=float)
    return np.minimum(1.0, found.get_delta_for_epsilon(np.asarray(epsilons, dtype=float)))


def epsilon(
    sigma: float,
    delta: float,
    sample_rate: float,
    steps: int,
    *,
    replace_one: bool = False,
    mesh: float | None = None,
) -> float:
    """The ε, from above, at δ; infinite where it cannot be told.

    `mesh` None is fine enough for the ε that is found.
    """
    options = {"replace_one": replace_one}
    first = loss_distribution(sigma, sample_rate, steps, **options, mesh=mesh or COARSE)
    if first is None:
        return math.inf
    found = float(first.get_epsilon_for_delta(delta))
    if mesh is not None or not math.isfinite(found):
        return found
    return epsilon(sigma, delta, sample_rate, steps, **options, mesh=mesh_for(found, MESH))


def mesh_for(target: float, coarsest: float = COARSE) -> float:
    """How fine a mesh is for such an ε."""
    return max(min(coarsest, target * FINE), target * ROUGH, 1e-7)
