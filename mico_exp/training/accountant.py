"""How much noise DP-SGD needs for (ε, δ), and what ε it has spent.

``pld`` asks dp-accounting (`training.pld`), ``prv`` Opacus. The latter's accountant (Gopi et al.
2021, arXiv 2106.02848) lays a mesh over a step's privacy loss in ± L and composes the steps by one
FFT. L grows with 1/σ², the mesh with L·√steps, both without bound, so here every question is asked
within limits, and ε counts as infinite beyond them:

- L ≤ 700, for e^L must be a double, which ends at e^709. So ε ends between 200 and 600.
- 2²³ points, which take 3 GB and a quarter of a minute. At δ = 1e-5 that is ε up to 300 for 1,000
  steps, 80 for 10,000, 25 for 100,000 and 7 for a million, and no ε at all beyond 10⁷ steps.
- points · 2⁻⁵² ≤ δ, for δ is a difference of sums of so many doubles. (Opacus asks the same of
  long doubles, in which it does not compute: after 100,000 steps its ε at δ = 1e-10 is too low.)
  So δ = 2e-9 is always possible, and 1e-10 where the mesh is not large.

Within them ε is right to 0.02, from above, and a search ends after some thirty questions. The ε of
``pld`` is right to about 0.001, from above, and has no such edges but at very little noise.
"""

import logging
import math
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from mico_exp.common.errors import InputError
from mico_exp.training import pld

log = logging.getLogger(__name__)
ACCOUNTANTS = ("prv", "pld")
EPSILONS = (0.02, 500.0)  # below, what the accountant adds to be safe is all that there is
DELTAS = (1e-10, 0.9)  # 1 - e^-L is the largest that has an ε
ERROR = 0.01  # that the accountant may make in ε, which it adds
TOLERANCE = 0.01  # how far below its target a search may end
FINE_TOLERANCE = 0.001  # with ``pld``, which can tell so much
LARGEST_LOSS = 700.0
MOST_POINTS = 2**23
MANY_POINTS = 2**21  # which take seconds
LARGEST_SIGMA = 1e6


def noise_multiplier(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str = "prv"
) -> float:
    """Find a noise multiplier σ with which DP-SGD spends ε or at most 0.01 less (``pld`` 0.001).

    It halves the same intervals as Opacus's own search, and finds the same σ; but that one goes
    on for ever, or until memory ends, where the accountant cannot tell.

    Raises:
        InputError: no such σ is found.
    """
    asked = f"`delta` = {delta:g}, `steps` = {steps} and a sample rate of {sample_rate:.4g}"
    unmet = f"`epsilon` = {epsilon:g} cannot be met with {asked}"
    if accountant == "pld":
        mesh = pld.mesh_for(epsilon)
        ask = partial(pld.epsilon, delta=delta, sample_rate=sample_rate, steps=steps, mesh=mesh)
        return _search(epsilon, min(FINE_TOLERANCE, epsilon / 20), ask, unmet)
    return _search(
        epsilon, TOLERANCE, lambda sigma: spent_epsilon(sigma, delta, sample_rate, steps), unmet
    )


def _search(
    epsilon: float, tolerance: float, spent_by: Callable[[float], float], unmet: str
) -> float:
    low, high = 0.0, 20.0
    most, least = math.inf, spent_by(high)
    while least > epsilon:
        if 2 * high > LARGEST_SIGMA:
            raise InputError(f"{unmet}: {_spends(high, least)}.")
        low, high, most = high, 2 * high, least
        least = spent_by(high)
    while epsilon - least > tolerance:
        # Where ε jumps, or is more than can be told, the interval shrinks and nothing is met.
        if high - low <= high * (1e-9 if math.isfinite(most) else 0.01):
            raise InputError(f"{unmet}: {_spends(high, least)} and {_spends(low, most)}.")
        middle = (low + high) / 2
        spent = spent_by(middle)
        if spent < epsilon:
            high, least = middle, spent
        else:
            low, most = middle, spent
    return high


def _spends(sigma: float, epsilon: float) -> str:
    known = f"{epsilon:.4g}" if math.isfinite(epsilon) else "more than the accountant can tell"
    return f"a noise multiplier of {sigma:.4g} spends {known}"


@cache
def spent_epsilon(
    sigma: float, delta: float, sample_rate: float, steps: int, accountant: str = "prv"
) -> float:
    """Give the ε, from above, that `steps` of DP-SGD with noise multiplier σ spend at δ.

    It is infinite where the accountant cannot tell.
    """
    if accountant == "pld":
        return pld.epsilon(sigma, delta, sample_rate, steps)
    # numpy and the accountant's first guess, an RDP accountant's, warn of what is checked here
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            spent = _composed(sigma, delta, sample_rate, steps)
        except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
            log.debug("No ε at σ = %g: %s", sigma, error)
            return math.inf
    return max(spent, 0.0) if math.isfinite(spent) else math.inf


def _composed(sigma: float, delta: float, sample_rate: float, steps: int) -> float:
    """Do what Opacus's `PRVAccountant.get_epsilon` does, if the mesh is within the limits."""
    from opacus.accountants.analysis import prv  # 1.5 s that only a DP build needs

    step = prv.PoissonSubsampledGaussianPRV(sample_rate, sigma)
    delta_error = delta / 1000
    widest = _widest_loss(sigma, sample_rate, steps, delta_error)
    width = ERROR / np.sqrt(steps * np.log(12 / delta_error) / 2)
    points = 2 * widest / width
    if not (widest <= LARGEST_LOSS and points <= MOST_POINTS and points * 2**-52 <= delta):
        return math.inf
    if points > MANY_POINTS:
        log.info("Composing %.0f million points for σ = %.4f", points / 1e6, sigma)
    domain = prv.Domain.create_aligned(-widest, widest, width)
    truncated = prv.TruncatedPrivacyRandomVariable(step, domain.t_min, domain.t_max)
    total = prv.compose_heterogeneous([prv.discretize(truncated, domain)], [steps])
    return float(total.compute_epsilon(delta, delta_error, ERROR)[2])


def _widest_loss(sigma: float, sample_rate: float, steps: int, delta_error: float) -> float:
    """Do what Opacus's `compute_safe_domain_size` does, at a tenth of the orders.

    It takes two Rényi bounds on ε, each at the order where it is least, which took three quarters
    of a search. Over the orders a bound falls, then rises, so halving finds that one; at another it
    would hold as well, and the mesh only be wider.
    """
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis import rdp

    orders = RDPAccountant.DEFAULT_ALPHAS

    @cache
    def of_step(i: int) -> Any:
        one = [orders[i]]
        return rdp.compute_rdp(q=sample_rate, noise_multiplier=sigma, steps=1, orders=one)

    def bound(composed: int, delta: float, i: int) -> float:
        one = [orders[i]]
        spent, _ = rdp.get_privacy_spent(orders=one, rdp=of_step(i) * composed, delta=delta)
        return math.inf if math.isnan(spent) else float(spent)

    def least(composed: int, delta: float) -> float:
        low, high = 0, len(orders) - 1
        while low < high:
            middle = (low + high) // 2
            rises = bound(composed, delta, middle) <= bound(composed, delta, middle + 1)
            low, high = (low, middle) if rises else (middle + 1, high)
        return bound(composed, delta, low)

    whole, single = least(steps, delta_error / 4), least(1, delta_error / (8 * steps))
    return max(whole, single, ERROR) + 3
