"""Bounds on ε against jax_privacy's figures, slow definitions, and simulations of known truth."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mico_exp.auditing import bounds, curves, one_run, posterior
from mico_exp.auditing.counts import Counts, each, highest
from mico_exp.common.errors import InputError

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden" / "audit.json").read_text())
ALPHA = 0.05
DELTA = 1e-5


def drawn(sample):
    """Scores of members and of others, as the file says how to draw them."""
    g = np.random.default_rng(sample["seed"])
    inside = g.normal(sample["mu"], 1, sample["n_in"])
    outside = g.normal(0, 1, sample["n_out"])
    assert [inside.sum(), outside.sum()] == pytest.approx(sample["check"], abs=1e-9)
    return inside, outside


def hull(inside, outside):
    """True and false positives at the corners of the convex hull, by the slow definition."""
    thresholds = [*np.unique(np.concatenate([inside, outside])), np.inf]
    points = [((outside >= t).sum(), (inside >= t).sum()) for t in thresholds[::-1]]
    corners = [points[0]]
    for one in points[1:]:
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y1 - y0) * (one[0] - x1) > (one[1] - y1) * (x1 - x0):
                break
            corners.pop()
        corners.append(one)
    return np.array(corners).T


def test_p_values_are_jax_privacys():
    for bits, guesses, right, epsilon, delta, expected in GOLDEN["one_run_p_value"]:
        found = one_run.p_value(Counts(bits, guesses, right), epsilon, delta)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-30)


def test_one_run_bounds_are_jax_privacys():
    for *counts, delta, expected in GOLDEN["one_run_epsilon"]:
        assert one_run.epsilon(Counts(*counts), delta, ALPHA) == pytest.approx(expected, abs=1e-6)


def test_bounds_of_gaussian_curves_are_jax_privacys():
    for *counts, delta, expected in GOLDEN["one_run_fdp_epsilon"]:
        mu = one_run.mu(Counts(*counts), ALPHA)
        found = curves.epsilon_of_gaussian(mu, delta)
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sample", GOLDEN["scores"], ids=lambda one: f"mu={one['mu']}")
def test_bounds_of_scores_are_jax_privacys(sample):
    inside, outside = drawn(sample)
    delta, members, others = sample["delta"], len(inside), len(outside)

    def found(true, false, significance):
        sides = true, members, false, others
        tries = [Counts(members + others, *map(int, row)) for row in np.c_[true + false, true]]
        tries = [one for one in tries if one.guesses]
        mu = highest(lambda c, least: one_run.mu(c, significance, least), tries)[1]
        return {
            "clopper_pearson": bounds.clopper_pearson(*sides, delta, significance).max(),
            "one_run": highest(
                lambda c, least: one_run.epsilon(c, delta, significance, least), tries
            )[1],
            "one_run_fdp": curves.epsilon_of_gaussian(mu, delta),
            "gdp": curves.epsilon_of_gaussian(bounds.gaussian(*sides, significance).max(), delta),
        }

    for threshold in (0.0, 1.0, 2.0):
        sides = [np.array([(one >= threshold).sum()]) for one in (inside, outside)]
        for name, bound in found(*sides, ALPHA).items():
            if name != "gdp":
                assert bound == pytest.approx(sample[f"{name}_at_{threshold}"], abs=1e-6), name
    false, true = hull(inside, outside)
    for name, bound in found(true, false, ALPHA / len(true)).items():
        assert bound == pytest.approx(sample[f"{name}_bonferroni"], abs=1e-6), name


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_p_value_is_its_definition(epsilon, delta):
    bits, guesses, right = 60, 40, 31
    chance = stats.binom(guesses, math.exp(epsilon) / (1 + math.exp(epsilon)))
    tail = chance.sf(right - 1)
    most = max((chance.sf(right - i - 1) - tail) / i for i in range(1, right + 1))
    expected = min(1.0, tail + 2 * bits * delta * most)
    assert one_run.p_value(Counts(bits, guesses, right), epsilon, delta) == pytest.approx(expected)


def test_bounds_are_where_their_statement_ceases_to_be_refused():
    counts = Counts(1000, 300, 250)
    epsilon, mu = one_run.epsilon(counts, DELTA, ALPHA), one_run.mu(counts, ALPHA)
    assert one_run.p_value(counts, epsilon - 2e-8, DELTA) <= ALPHA
    assert one_run.p_value(counts, epsilon + 2e-8, DELTA) > ALPHA
    assert one_run.refuses(counts, curves.gaussian(mu - 2e-8), ALPHA)
    assert not one_run.refuses(counts, curves.gaussian(mu + 2e-8), ALPHA)


def test_limits_of_a_rate_are_those_of_its_binomial():
    count, trials = np.array([0, 3, 60, 100]), 100
    low, high = (limit(count, trials, ALPHA) for limit in (bounds.lower_rate, bounds.upper_rate))
    assert low[0] == 0
    assert high[-1] == 1
    assert stats.binom.sf(count[1:] - 1, trials, low[1:]) == pytest.approx(ALPHA)
    assert stats.binom.cdf(count[:-1], trials, high[:-1]) == pytest.approx(ALPHA)


@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0, 20.0])
def test_gaussian_profile_is_its_integral(mu):
    epsilon = mu * mu / 2
    loss = stats.norm(epsilon, mu)  # privacy loss under the one with the record
    expected = loss.expect(lambda x: -np.expm1(epsilon - x), lb=epsilon, ub=epsilon + 12 * mu)
    assert curves.delta_of_gaussian(epsilon, mu) == pytest.approx(expected, rel=1e-6)
    delta = curves.delta_of_gaussian(epsilon, mu)
    assert curves.epsilon_of_gaussian(mu, delta) == pytest.approx(epsilon, abs=1e-9)


def test_profile_at_its_ends():
    assert curves.epsilon_of_gaussian(0.0, DELTA) == 0
    assert curves.epsilon_of_gaussian(1e-6, DELTA) == 0
    assert curves.epsilon_of_gaussian(0.0, 0.0) == 0
    assert curves.epsilon_of_gaussian(1.0, 0.0) == math.inf
    assert curves.delta_of_gaussian(1.0, 0.0) == 0


def test_piecewise_curve_is_the_highest_of_its_lines():
    epsilons = np.linspace(0, 6, 200)
    deltas = np.array([curves.delta_of_gaussian(one, 1.0) for one in epsilons])
    found, smooth = curves.piecewise(epsilons, deltas), curves.gaussian(1.0)
    for tpr in (0.0, 1e-6, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0):
        lines = np.exp(-epsilons) * (tpr - deltas), 1 - deltas - np.exp(epsilons) * (1 - tpr)
        assert found(tpr) == pytest.approx(max(0.0, np.max(lines)), abs=1e-12)
        assert smooth(tpr) - 3e-4 <= found(tpr) <= smooth(tpr) + 1e-12


def test_a_curve_and_its_lines_refuse_alike():
    counts = Counts(2000, 400, 290)
    mu = one_run.mu(counts, ALPHA)
    epsilons = np.linspace(0, 8, 2000)

    def lines(mu):
        return curves.piecewise(
            epsilons, np.array([curves.delta_of_gaussian(one, mu) for one in epsilons])
        )

    assert one_run.refuses(counts, lines(0.99 * mu), ALPHA)
    assert not one_run.refuses(counts, lines(1.01 * mu), ALPHA)


def test_each_gives_every_audit_its_own_bound():
    def bound(counts):
        return one_run.epsilon(counts, DELTA, ALPHA)

    right = np.array([[80, 50, 99], [60, 61, 80]])
    guesses = np.array([[100], [120]])
    found = each(bound, 1000, guesses, right)
    for place, value in np.ndenumerate(found):
        assert value == bound(Counts(1000, int(guesses[place[0], 0]), int(right[place])))


def test_the_highest_of_several_tries_is_that_of_all():
    g = np.random.default_rng(4)
    tries = [Counts(500, 100, int(v)) for v in g.binomial(100, 0.7, 30)]
    for bound in (
        lambda c, least: one_run.epsilon(c, DELTA, ALPHA, least),
        lambda c, least: one_run.mu(c, ALPHA, least),
    ):
        every = [bound(one, 0.0) for one in tries]
        assert highest(bound, tries) == (int(np.argmax(every)), pytest.approx(max(every), abs=1e-7))


@pytest.mark.parametrize(
    ("counts", "named"),
    [((10, 11, 5), "`guesses`"), ((10, 0, 0), "`guesses`"), ((10, 5, 6), "`right`")],
)
def test_counts_of_no_game_are_refused(counts, named):
    for bound in (lambda c: one_run.epsilon(c, 0.0, ALPHA), lambda c: one_run.mu(c, ALPHA)):
        with pytest.raises(InputError, match=named):
            bound(Counts(*counts))


def test_posterior_is_that_of_drawn_rates():
    true, members, false, others, delta = 60, 100, 12, 110, 1e-3
    g = np.random.default_rng(0)
    fpr = g.beta(false + 0.5, others - false + 0.5, 50_000)
    fnr = g.beta(members - true + 0.5, true + 0.5, 50_000)
    with np.errstate(divide="ignore", invalid="ignore"):
        least = np.nanmax(
            [np.log((1 - delta - x) / y) for x, y in
             ((fpr, fnr), (fnr, fpr), (1 - fpr, 1 - fnr), (1 - fnr, 1 - fpr))], axis=0,
        )  # fmt: skip
    expected = np.quantile(np.maximum(least, 0), [0.5, 0.025, 0.975])
    assert posterior.estimate(true, members, false, others, delta, ALPHA) == pytest.approx(
        expected, abs=0.02
    )
    assert posterior.estimate(100, 100, 0, 100, 0.0, ALPHA).low > 3
    assert posterior.estimate(50, 100, 50, 100, 0.0, ALPHA).low == pytest.approx(0, abs=0.1)


REPETITIONS = 400
TOO_OFTEN = stats.binom.ppf(0.9999, REPETITIONS, ALPHA) / REPETITIONS


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0])
def test_randomised_response_is_bounded_by_its_epsilon(epsilon):
    bits = 10_000
    right = np.random.default_rng(1).binomial(bits, 1 / (1 + math.exp(-epsilon)), REPETITIONS)
    for found in (
        each(lambda c: one_run.epsilon(c, 0.0, ALPHA), bits, bits, right),
        bounds.accuracy_epsilon(right, bits, 0.0, ALPHA),
    ):
        assert (found > epsilon).mean() <= TOO_OFTEN
        assert np.median(found) >= 0.9 * epsilon


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_gaussian_mechanism_is_bounded_by_its_mu(mu):
    bits, g = 10_000, np.random.default_rng(2)
    right = g.binomial(bits, stats.norm.cdf(mu / 2), REPETITIONS)
    few = g.binomial(200, stats.norm.cdf(mu / 2), REPETITIONS)
    false = g.binomial(bits // 2, stats.norm.sf(mu), REPETITIONS)  # the threshold is μ
    true = g.binomial(bits // 2, 0.5, REPETITIONS)
    sides = true, bits // 2, false, bits // 2
    found = {
        "accuracy": bounds.accuracy_mu(right, bits, ALPHA),
        "gaussian": bounds.gaussian(*sides, ALPHA),
        "f-DP": each(lambda c: one_run.mu(c, ALPHA), 200, 200, few),
    }
    for name, bound in found.items():
        assert (bound > mu).mean() <= TOO_OFTEN, name
    assert np.median(found["accuracy"]) >= 0.9 * mu
    claimed = curves.epsilon_of_gaussian(mu, DELTA)
    assert (bounds.clopper_pearson(*sides, DELTA, ALPHA) > claimed).mean() <= TOO_OFTEN


def test_nothing_is_proven_of_noise():
    bits, g = 1000, np.random.default_rng(3)
    guesses = 200
    right = g.binomial(guesses, 0.5, REPETITIONS)
    true, false = g.binomial(bits, 0.1, (2, REPETITIONS))
    sides = true, bits, false, bits
    found = {
        "one run": each(lambda c: one_run.epsilon(c, 0.0, ALPHA), bits, guesses, right),
        "f-DP": each(lambda c: one_run.mu(c, ALPHA), bits, guesses, right),
        "Clopper-Pearson": bounds.clopper_pearson(*sides, 0.0, ALPHA),
        "Gaussian": bounds.gaussian(*sides, ALPHA),
        "accuracy": bounds.accuracy_mu(right, guesses, ALPHA),
    }
    for name, bound in found.items():
        assert (bound >= 0).all()
        assert (bound > 0).mean() <= TOO_OFTEN, name


@pytest.mark.parametrize(
    "bound",
    [
        lambda: bounds.clopper_pearson(0, 10, 0, 10, 0.0, ALPHA),
        lambda: bounds.clopper_pearson(10, 10, 10, 10, 0.0, ALPHA),
        lambda: bounds.gaussian(0, 10, 10, 10, ALPHA),
        lambda: bounds.gaussian(10, 10, 10, 10, ALPHA),
        lambda: bounds.accuracy_mu(0, 10, ALPHA),
        lambda: one_run.epsilon(Counts(10, 10, 0), 0.0, ALPHA),
        lambda: one_run.mu(Counts(10, 10, 0), ALPHA),
    ],
)
def test_an_attack_without_success_proves_nothing(bound):
    assert bound() == 0


def test_perfect_guesses_prove_what_their_number_allows():
    epsilon = one_run.epsilon(Counts(100, 100, 100), 0.0, ALPHA)
    assert epsilon == pytest.approx(math.log(0.05**0.01 / (1 - 0.05**0.01)))
    assert math.isfinite(one_run.mu(Counts(100, 100, 100), ALPHA))
    assert bounds.clopper_pearson(100, 100, 0, 100, 0.0, ALPHA) > 3
    assert math.isfinite(bounds.gaussian(100, 100, 0, 100, ALPHA))
