"""Games: which bits there are, which are guessed, and that their coins are fair."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mico_exp.auditing import bounds, coins, games, one_run
from mico_exp.auditing.counts import Counts, each
from mico_exp.auditing.games import Bits
from mico_exp.common.errors import InputError


def everywhere(solution):
    return np.ones_like(solution, dtype=bool)


def test_pairs_are_of_one_model_and_of_both_classes():
    solution = np.array([[1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1]], dtype=bool)
    scores = np.array([[1, 2, 4, 8, 16, 32], [100, 200, 400, 800, 1600, 3200]], dtype=float)
    found = games.paired(solution, scores, everywhere(solution), seed=0)
    assert found.relation == "replace_one"
    for margins, members, row in zip(np.split(found.margin, 2), solution, scores, strict=True):
        possible = {
            tuple(sorted(row[members] - row[~members][list(order)]))
            for order in itertools.permutations(range(3))
        }
        assert tuple(sorted(margins)) in possible


def test_all_matchings_are_equally_likely():
    solution, scores = np.array([[True, True, True, False, False, False]]), np.arange(6.0)
    scores = scores[np.newaxis] ** 3
    drawn = [
        tuple(sorted(games.paired(solution, scores, everywhere(solution), seed).margin))
        for seed in range(600)
    ]
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_points_that_are_not_there_and_are_left_over_are_no_bits():
    solution = np.array([[True, True, True, False], [True, False, False, False]])
    scores = np.array([[5.0, 5.0, 5.0, 1.0], [9.0, 2.0, np.nan, np.nan]])
    there = np.isfinite(scores)
    assert games.paired(solution, scores, there, seed=0).margin.tolist() == [4.0, 7.0]


def test_independent_bits_are_guessed_about_their_median():
    solution = np.array([[True, False, False], [True, True, False]])
    scores = np.array([[5.0, 1.0, 9.0], [4.0, 0.0, np.nan]])
    found = games.independent(solution, scores, np.isfinite(scores))
    assert found.relation == "add_remove"
    assert found.margin.tolist() == [1.0, 3.0, -5.0, 0.0, -4.0]


@pytest.mark.parametrize("game", [lambda *a: games.paired(*a, seed=0), games.independent])
@pytest.mark.parametrize("only", [True, False])
def test_one_class_is_refused(game, only):
    solution = np.full((2, 3), only)
    with pytest.raises(InputError, match="one class"):
        game(solution, np.zeros((2, 3)), everywhere(solution))


@pytest.mark.parametrize(
    ("members", "points", "words"),
    [
        ([1] * 90 + [0] * 10, 1, "90 of 100 are in"),
        ([30, 35, 33], 100, "98 of 300 are in"),
        ([50] * 5, 100, "all 5 models are so near to half"),
        ([50, 51] * 10, 101, "fixed"),
    ],
)
def test_membership_that_no_fair_coins_drew_is_refused(members, points, words):
    with pytest.raises(InputError, match=words):
        coins.check(np.array(members), np.full(len(members), points))


def test_membership_of_fair_coins_is_refused_in_one_of_a_thousand_cases():
    """Half of the cases have too few points for any number of members to be unlikely."""
    random, refused = np.random.default_rng(4), 0
    for points in (1, 2, 3, 50) * 100:
        try:
            coins.check(random.binomial(points, 0.5, size=8), np.full(8, points))
        except InputError:
            refused += 1
    assert refused <= stats.binom.ppf(0.9999, 400, 0.002)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.01, (8, 1, 0)), (0.25, (8, 2, 1)), (0.5, (8, 4, 2)), (0.75, (8, 6, 3)), (1, (8, 7, 4))],
)
def test_the_largest_margins_are_guessed_and_blank_ones_never(share, expected):
    """Of equal margins the wrong guess counts first, so that ties never make an attack better."""
    found = Bits(np.array([4.0, -4.0, 3.0, -2.5, 1.0, -1.0, 0.0, 0.5]), "replace_one")
    assert found.guessed(share) == [Counts(*expected)]
    assert found.guessed(0.5, share)[1:] == [Counts(*expected)]


def test_tied_scores_leave_nothing_to_guess_by():
    assert Bits(np.zeros(5), "replace_one").blank
    assert Bits(np.zeros(5), "replace_one").guessed(1.0) == [(5, 1, 0)]


def test_parts_of_other_scales_are_guessed_by_themselves():
    parts = [Bits(np.array([3.0, -2.0, 1.0, 0.5]), "a"), Bits(np.array([900.0, -100.0]), "a")]
    assert games.pooled(parts, 0.5, 1.0) == [(6, 3, 2), (6, 6, 4)]


def test_rates_at_a_threshold():
    solution = np.array([[True, False, True, False]])
    scores = np.array([[0.5, 0.5, 0.1, 0.9]])
    there = np.array([[True, True, True, False]])
    assert games.rates(solution, scores, there, 0.5) == (1, 2, 1, 1)


def test_a_model_that_gives_nothing_away_is_never_contradicted():
    """Membership of fixed size and scores that models share: bits that hang on each other."""
    g, found = np.random.default_rng(0), []
    for repetition in range(300):
        solution = g.permuted(np.tile(np.arange(40) < 20, (5, 1)), axis=1)
        scores = g.normal(size=40) + 3 * g.normal(size=(5, 1)) + g.normal(size=(5, 40)) / 9
        bits = games.paired(solution, scores, everywhere(solution), repetition)
        found += bits.guessed(0.3)
    for bound in (lambda c: one_run.epsilon(c, 0.0, 0.05), lambda c: one_run.mu(c, 0.05)):
        assert (each(bound, *np.transpose(found)) > 0).mean() <= stats.binom.ppf(
            0.9999, 300, 0.05
        ) / 300


def test_swapped_records_are_bounded_by_what_swapping_costs():
    """Each model answers every pair by randomised response: replace-one ε is what pairs prove."""
    g, epsilon, found = np.random.default_rng(1), 1.5, []
    for repetition in range(200):
        solution = g.permuted(np.tile(np.arange(20) < 10, (30, 1)), axis=1)
        honest = g.random(solution.shape) < 1 / (1 + np.exp(-epsilon / 2))
        scores = np.where(honest, solution, ~solution) + g.uniform(0, 1e-9, solution.shape)
        bits = games.paired(solution, scores, everywhere(solution), repetition)
        found += bits.guessed(0.4)
    bound = each(lambda c: one_run.epsilon(c, 0.0, 0.05), *np.transpose(found))
    assert (bound > epsilon).mean() <= stats.binom.ppf(0.9999, 200, 0.05) / 200
    assert np.median(bound) > 0.6 * epsilon


def test_one_canary_a_model_allows_the_bounds_of_independent_trials():
    g, mu, found = np.random.default_rng(2), 1.0, []
    for _ in range(200):
        solution = g.random((2000, 1)) < 0.5
        scores = mu * solution + g.normal(size=solution.shape)
        found.append(games.rates(solution, scores, everywhere(solution), mu))
    bound = bounds.gaussian(*np.transpose(found), 0.05)
    assert (bound > mu).mean() <= stats.binom.ppf(0.9999, 200, 0.05) / 200
    assert np.median(bound) > 0.8 * mu
