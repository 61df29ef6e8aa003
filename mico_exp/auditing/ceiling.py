"""The ceiling: how much an attack may get of a mechanism, whatever it does.

A mechanism that is (ε, δ(ε))-DP for every ε allows TPR ≤ e^ε FPR + δ(ε), and of the mirrored test
TPR ≤ 1 − e^−ε (1 − δ(ε) − FPR); the ceiling is the least of all of them. One (ε, δ) alone says
little: at FPR 0.1 and ε = 4 it allows 0.98, where the accountant's whole profile allows 0.35.

Axes: E values of ε, K false positive rates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mico_exp.auditing.counts import Counts
from mico_exp.auditing.curves import LARGEST_EPSILON, Inverse, epsilon_of_gaussian, piecewise
from mico_exp.auditing.games import REPLACE_ONE
from mico_exp.auditing.one_run import mu, refuses
from mico_exp.common.arrays import Floats
from mico_exp.results.scoring import OFFICIAL_FPRS
from mico_exp.training import pld
from mico_exp.training.mechanism import Mechanism

LEAST_DELTA = 1e-8  # of a profile: what is less than that decides nothing at the FPRs that are seen
NUMBER = 150  # of ε in a profile, which is finer than anybody sees
MESH = 1e-3  # of its losses: TPRs are right to 1e-4, from above
GUESSED_AT, GUESSES = 1e-3, 4  # δ at which noise is guessed, and how often
STEP = 1.02  # of noise: a bound is up to so much lower than it could be
MOST_STEPS = 200  # of either way


@dataclass(frozen=True, eq=False)
class Profile:
    """δ (E,) of a mechanism at ε (E,) ascending, each from above."""

    epsilons: Floats
    deltas: Floats

    def tpr(self, fpr: ArrayLike) -> Floats:
        """Highest TPR (K,) that is allowed at each FPR (K,)."""
        rates = np.asarray(fpr, dtype=float)[..., np.newaxis]
        epsilons = np.minimum(self.epsilons, LARGEST_EPSILON)
        grown = np.exp(epsilons) * rates + self.deltas
        mirrored = 1 - np.exp(-epsilons) * (1 - self.deltas - rates)
        return np.minimum(np.minimum(grown, mirrored).min(axis=-1), 1.0)

    @property
    def curve(self) -> Inverse:
        """The trade-off that it allows, for `one_run.refuses`."""
        return piecewise(self.epsilons, self.deltas)

    def figures(self) -> dict[str, float]:
        """TPR at the official FPRs, by the figures' names."""
        return {f"tpr_at_fpr_{x}": float(self.tpr(x)) for x in OFFICIAL_FPRS}


def of_claim(epsilon: float, delta: float) -> Profile:
    """What one (ε, δ) alone allows."""
    return Profile(np.array([epsilon]), np.array([delta]))


def of_mechanism(mechanism: Mechanism, relation: str) -> Profile | None:
    """The accountant's whole profile of DP-SGD; None where it cannot tell.

    `relation` says what neighbours are, ``add_remove`` or ``replace_one``.
    """
    told = epsilon_of(mechanism, LEAST_DELTA, relation)
    if not np.isfinite(told):
        return None
    epsilons = np.linspace(0.0, max(told, 1e-3), NUMBER)
    of_loss = pld.deltas(
        epsilons, *mechanism.plain, replace_one=relation == REPLACE_ONE, mesh=mesh_of(told)
    )
    return Profile(epsilons, of_loss)


def epsilon_of(mechanism: Mechanism, delta: float, relation: str) -> float:
    """ε at δ by the accountant, from above; infinite where it cannot tell."""
    sigma, rate, steps = mechanism.plain
    swapped = relation == REPLACE_ONE
    rough = pld.epsilon(sigma, delta, rate, steps, replace_one=swapped, mesh=MESH)
    if not np.isfinite(rough) or mesh_of(rough) == MESH:
        return rough
    return pld.epsilon(sigma, delta, rate, steps, replace_one=swapped, mesh=mesh_of(rough))


def mesh_of(epsilon: float) -> float:
    """How fine a mesh is for such an ε."""
    return pld.mesh_for(epsilon, MESH)


def refused_noise(
    counts: Counts, mechanism: Mechanism, relation: str, significance: float
) -> Mechanism | None:
    """Least noise with which a mechanism otherwise the same is refused; None where none is.

    More noise is refused as well, so the true one is less, and claims of its ε are refused: with
    the accountant's own trade-off, and not a Gaussian one, by which the search begins.
    """
    gaussian = mu(counts, significance)
    if gaussian == 0 or not refuses(counts, float, significance):
        return None
    first = _noise_of(mechanism, gaussian, relation)

    def refused(power: int) -> bool:
        profile = of_mechanism(mechanism.with_noise(first * STEP**power), relation)
        return profile is not None and refuses(counts, profile.curve, significance)

    power = _least_refused(refused)
    return None if power is None else mechanism.with_noise(first * STEP**power)


def _noise_of(mechanism: Mechanism, gaussian: float, relation: str) -> float:
    """Noise with which the ε of a mechanism is about that of a Gaussian one."""
    noise, wanted = mechanism.noise_multiplier, epsilon_of_gaussian(gaussian, GUESSED_AT)
    for _ in range(GUESSES):
        there = epsilon_of(mechanism.with_noise(noise), GUESSED_AT, relation)
        noise *= min(max(there / wanted, 0.25), 4.0) if wanted > 0 else 4.0
    return noise


def _least_refused(refused: Callable[[int], bool]) -> int | None:
    """Least whole number that is refused, as all above it are; None where none is found."""
    jump, high = 1, 0
    while not refused(high):
        if jump > MOST_STEPS:
            return None
        high, jump = high + jump, 2 * jump
    low, jump = high - max(jump // 2, 1), 1
    while low > -MOST_STEPS and refused(low):
        high, low, jump = low, low - jump, 2 * jump
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refused(middle) else (middle, high)
    return high
