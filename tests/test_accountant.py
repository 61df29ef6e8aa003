"""The accountant against closed forms and Opacus, and at the edges of what it can tell."""

import math
import time
import warnings

import numpy as np
import pytest
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis import prv
from opacus.accountants.utils import get_noise_multiplier
from scipy.optimize import brentq
from scipy.stats import norm

from mico_exp.common.errors import InputError
from mico_exp.training import accountant, pld
from mico_exp.training.accountant import noise_multiplier, spent_epsilon

OURS = 32 / 300, 400  # sample rate and steps of the embedded challenge


def gaussian_delta(epsilon, mu):
    """δ of a Gaussian mechanism of sensitivity μ and noise 1 (Balle & Wang 2018, theorem 8)."""
    least = norm.logcdf(-mu / 2 - epsilon / mu)
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + least)


def one_step_delta(epsilon, sigma, rate):
    """δ of one Poisson-sampled step: the mass by which (1 - q) N(0) + q N(1) exceeds e^ε N(0)."""
    x = sigma**2 * math.log((math.exp(epsilon) - 1 + rate) / rate) + 1 / 2
    without, with_it = norm.sf(x / sigma), norm.sf((x - 1) / sigma)
    return (1 - rate) * without + rate * with_it - math.exp(epsilon) * without


def exact(delta_of, delta):
    return brentq(lambda epsilon: delta_of(epsilon) - delta, 1e-9, 650)


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize(("steps", "mu"), [(1, 0.3), (1, 29), (30, 2), (30, 25), (400, 0.3)])
def test_steps_over_all_records_are_one_gaussian_mechanism(steps, delta, mu):
    """So they spend what the closed form says, or a little more."""
    spent = spent_epsilon(math.sqrt(steps) / mu, delta, 1.0, steps)
    assert 0 <= spent - exact(lambda epsilon: gaussian_delta(epsilon, mu), delta) < 0.025


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5])
@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_one_sampled_step(rate, sigma):
    spent = spent_epsilon(sigma, 1e-5, rate, 1)
    assert 0 <= spent - exact(lambda epsilon: one_step_delta(epsilon, sigma, rate), 1e-5) < 0.025


@pytest.mark.parametrize(
    "asked", [(4.0, 1e-5, 1.0, 400), (30.0, 1e-3, 1.0, 3), (0.5, 1e-6, 0.01, 50)]
)
def test_sigma_and_epsilon_are_those_of_opacus(asked):
    """Bit for bit: another σ would make other models of the same seed."""
    epsilon, delta, rate, steps = asked
    sigma = noise_multiplier(*asked)
    theirs = PRVAccountant()
    theirs.history = [(sigma, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sigma == get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=delta,
            sample_rate=rate,
            steps=steps,
            accountant="prv",
        )
        assert spent_epsilon(sigma, delta, rate, steps) == theirs.get_epsilon(delta)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"),
    [(0.7, 0.001, 1), (1.3, 0.1, 400), (20.0, 0.9, 9), (90.0, 0.02, 70_000)],
)
def test_the_mesh_is_as_wide_as_opacus_has_it(sigma, rate, steps):
    """Though it asks every order."""
    step = prv.PoissonSubsampledGaussianPRV(rate, sigma)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = prv.compute_safe_domain_size([step], [steps], accountant.ERROR, 1e-8)
        assert accountant._widest_loss(sigma, rate, steps, 1e-8) == expected


@pytest.mark.parametrize(
    "asked",
    [
        (0.02, 1e-5, 1.0, 400),
        (500.0, 1e-5, 1.0, 1),
        (10.0, 1e-5, 1 / 120, 20),
        (3.0, 1e-10, 1.0, 20),
        (0.5, 0.9, 1.0, 100),
    ],
)
def test_at_the_edges_the_noise_spends_what_was_asked(asked):
    epsilon, *rest = asked
    assert epsilon - 0.01 <= spent_epsilon(noise_multiplier(*asked), *rest) <= epsilon


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ((300.0, 1e-5, 1.0, 400), "more than the accountant can tell"),
        ((10.0, 0.01, 1e-4, 2), "spends 0 and"),  # δ allows for all draws of a record
        ((1.0, 1e-5, 0.1, 10**8), "`steps` = 100000000"),
        ((1.0, 1e-10, 1.0, 100_000), "`delta` = 1e-10"),  # doubles are not exact enough
        ((0.02, 1e-5, 1.0, 10**9), "a noise multiplier of 6.554e+05"),
    ],
)
def test_what_cannot_be_met_is_said_in_one_line(asked, reason, monkeypatch):
    monkeypatch.setattr(accountant, "MOST_POINTS", 2**18)  # the same edge, sooner reached
    accountant.spent_epsilon.cache_clear()
    with pytest.raises(InputError, match=r"`epsilon` = .* cannot be met") as caught:
        noise_multiplier(*asked)
    accountant.spent_epsilon.cache_clear()
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("sigma", [0.0, 1e-200, 1e-3, 0.05, 0.1])
@pytest.mark.parametrize("rate", [1e-3, 0.1, 1.0])
def test_too_little_noise_is_soon_told(sigma, rate):
    """Opacus's own answer takes gigabytes here, if it comes at all."""
    started = time.process_time()
    assert spent_epsilon(sigma, 1e-5, rate, 10_000) == math.inf
    assert time.process_time() - started < 5


def test_a_delta_that_rounding_would_decide_is_not_believed():
    """Opacus gives an ε there that is below the true one."""
    assert spent_epsilon(158.114, 1e-10, 1.0, 100_000) == math.inf
    spent = spent_epsilon(50.0, 1e-9, 1.0, 10_000)
    assert 0 <= spent - exact(lambda epsilon: gaussian_delta(epsilon, 2), 1e-9) < 0.025


@pytest.mark.parametrize(
    "told",
    [
        lambda sigma, *_: 5.0 if sigma < 3 else 0.1,
        lambda sigma, *_: math.inf if sigma < 7 else 0.5,
        lambda *_: 0.1,
        lambda *_: 5.0,
        lambda *_: math.inf,
    ],
    ids=["jumps", "untold from 7 down", "always below", "always above", "never told"],
)
def test_a_search_ends_whatever_it_is_told(told, monkeypatch):
    calls = []
    monkeypatch.setattr(accountant, "spent_epsilon", lambda *given: calls.append(1) or told(*given))
    with pytest.raises(InputError, match="cannot be met"):
        noise_multiplier(1.0, 1e-5, 0.1, 10)
    assert len(calls) < 1200


def test_more_noise_spends_less():
    spent = [spent_epsilon(sigma, 1e-5, *OURS) for sigma in (1, 8, 100)]
    assert spent == sorted(spent, reverse=True)
    assert np.diff(spent).max() < 0


CIFAR10 = 512 / 50_000, 50 * 98
PURCHASE100 = 512 / 150_000, 30 * 293
SST2 = 1024 / 67_349, 3 * 66


@pytest.mark.parametrize(
    ("run", "sigma", "epsilon"),
    [
        *((CIFAR10, 0.698, 10), (CIFAR10, 1.035, 4), (PURCHASE100, 0.541, 10)),
        *((PURCHASE100, 0.704, 4), (SST2, 0.501, 10), (SST2, 0.686, 4)),
        *((OURS, 1.295, 10), (OURS, 2.472, 4)),
    ],
)
def test_the_noise_of_the_tracks(run, sigma, epsilon):
    """To three digits: half of the last one more or less is beyond ε, or below it."""
    less, more = (pld.epsilon(s, 1e-5, *run, mesh=1e-3) for s in (sigma - 5e-4, sigma + 5e-4))
    assert more < epsilon < less + 0.002


def test_privacy_loss_distributions_of_what_closed_forms_tell():
    whole = exact(lambda epsilon: gaussian_delta(epsilon, 2), 1e-5)
    assert 0 <= pld.epsilon(math.sqrt(30) / 2, 1e-5, 1.0, 30, mesh=1e-3) - whole < 5e-3
    sampled = exact(lambda epsilon: one_step_delta(epsilon, 1.0, 0.1), 1e-5)
    assert 0 <= pld.epsilon(1.0, 1e-5, 0.1, 1, mesh=1e-3) - sampled < 5e-3
    epsilons = np.linspace(0, 3, 7)
    expected = [one_step_delta(one, 1.0, 0.1) for one in epsilons]
    assert np.allclose(pld.deltas(epsilons, 1.0, 0.1, 1, mesh=1e-3), expected, rtol=1e-3, atol=1e-7)
    # Replaced, a record moves the mean of a Gaussian by 2, not by 1.
    twice = exact(lambda epsilon: gaussian_delta(epsilon, 2), 1e-5)
    assert 0 <= pld.epsilon(1.0, 1e-5, 1.0, 1, replace_one=True, mesh=1e-3) - twice < 5e-3


def test_replacing_a_record_is_no_fixed_multiple():
    found = [pld.epsilon(s, 1e-5, *OURS, replace_one=True, mesh=1e-3) for s in (2.472, 1.295)]
    assert found[0] == pytest.approx(8.30, abs=0.01)
    assert found[1] / 10 < 0.91 * found[0] / 4


def test_a_search_by_privacy_loss_distributions(monkeypatch):
    sigma = noise_multiplier(4.0, 1e-5, *OURS, "pld")
    assert sigma == pytest.approx(2.472, abs=5e-4)
    assert 4 - 0.003 < spent_epsilon(sigma, 1e-5, *OURS, "pld") <= 4
    assert spent_epsilon(sigma, 1e-5, *OURS) == pytest.approx(4, abs=0.02)  # by Opacus
    monkeypatch.setattr(pld, "MOST_POINTS", 2**22)  # the same edge, sooner reached
    for asked in [(0.02, 1e-5, 1.0, 10**9), (10.0, 0.01, 1e-4, 2)]:
        with pytest.raises(InputError, match=r"`epsilon` = .* cannot be met") as caught:
            noise_multiplier(*asked, "pld")
        assert len(str(caught.value).splitlines()) == 1
    assert spent_epsilon(0.0, 1e-5, 0.1, 10, "pld") == math.inf
    assert spent_epsilon(1e-3, 1e-5, 0.1, 10, "pld") == math.inf
