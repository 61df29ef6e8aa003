"""Choices that cost a bound nothing, or are paid for; halves of the train models."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mico_exp.attacks.evidence import Evidence
from mico_exp.auditing import floor, methods, one_run
from mico_exp.auditing.floor import INDEPENDENT, ONE_PER_MODEL, PAIRED, Attacked, Rows
from mico_exp.auditing.halves import SHADOWS, TARGETS, halve, is_balanced, of_halves
from mico_exp.auditing.methods import How
from mico_exp.auditing.statement import Claim
from mico_exp.challenge.points import ChallengePoints
from mico_exp.common.errors import InputError
from mico_exp.scores.table import Scores
from mico_exp.training.mechanism import Mechanism

HOW = How(delta=1e-5, significance=0.05, game=PAIRED, shares=floor.SHARES, seed=0)
NULL = 80  # repetitions


def rows(g, models=6, points=40, tells=0.0):
    """Models of which scores tell members apart by so many deviations."""
    solution = g.permuted(np.tile(np.arange(points) < points // 2, (models, 1)), axis=1)
    there = np.ones_like(solution)
    return Rows(solution, g.normal(size=solution.shape) + tells * solution, there)


def attacked(g, tells, **options):
    """Cells by how much they tell."""
    validation = {f"cell/{tell}": rows(g, tells=tell, **options) for tell in tells}
    targets = {
        cell: [rows(g, tells=t, **options)] * 1 for cell, t in zip(validation, tells, strict=True)
    }
    return Attacked(validation, targets, "final", "validation")


def test_what_tells_most_on_validation_is_chosen_and_judged_once_on_the_targets():
    found = attacked(np.random.default_rng(0), (0.0, 2.0, 0.5), models=20)
    bounded = methods.prove(found, HOW, Mechanism(1.0, 0.1, 100))
    assert [one.method for one in bounded] == ["one_run", "one_run_gaussian", "one_run_accountant"]
    for one in bounded:
        counts = found.targets["cell/2.0"][0].bits(PAIRED, 0).guessed(one.share)[0]
        assert (one.cell, one.bits, one.guesses, one.right, one.tries) == ("cell/2.0", *counts, 1)
        assert one.epsilon > 0.5
    assert bounded[0].epsilon == one_run.epsilon(counts_of(bounded[0]), 1e-5, 0.05)
    assert bounded[1].mu == one_run.mu(counts_of(bounded[1]), 0.05)


def counts_of(one):
    return floor.Counts(one.bits, one.guesses, one.right)


def test_without_validation_the_best_of_all_is_taken_and_paid_for():
    found = attacked(np.random.default_rng(1), (0.0, 2.0), models=20)
    paid = methods.prove(Attacked(None, found.targets, "final", "final"), HOW, None)[0]
    tries = 2 * len(floor.SHARES)
    assert (paid.cell, paid.tries) == ("cell/2.0", tries)
    assert paid.epsilon == one_run.epsilon(counts_of(paid), 1e-5, 0.05 / tries)
    best = found.targets["cell/2.0"][0].bits(PAIRED, 0).guessed(*floor.SHARES)
    every = [one_run.epsilon(one, 1e-5, 0.05 / tries) for one in best]
    assert paid.epsilon == pytest.approx(max(every), abs=1e-7)


@pytest.mark.parametrize("chooses", [True, False], ids=["validation", "Bonferroni"])
@pytest.mark.parametrize("game", [PAIRED, INDEPENDENT])
def test_choosing_among_cells_that_tell_nothing_proves_nothing(chooses, game):
    """A bound that chose on the targets themselves and did not pay would prove in most of them."""
    g, how = np.random.default_rng(2), How(1e-5, 0.05, game, (0.1, 1.0), 0)
    proven = np.zeros(2)
    for _ in range(NULL):
        found = attacked(g, (0.0, 1e-9, 2e-9), models=2)
        if not chooses:
            found = Attacked(None, found.targets, "final", "final")
        one, curve = methods.prove(found, how, None)
        proven += one.epsilon > 0, curve.mu > 0
    assert (proven <= stats.binom.ppf(0.9999, NULL, 0.05)).all()


def test_one_canary_a_model_is_bounded_by_limits_of_its_rates():
    g, mu = np.random.default_rng(3), 1.5

    def trials():
        solution = g.random((3000, 1)) < 0.5
        return Rows(solution, mu * solution + g.normal(size=(3000, 1)), np.ones_like(solution))

    found = Attacked({"a/1": trials()}, {"a/1": [trials()]}, "final", "validation")
    how = How(1e-5, 0.05, ONE_PER_MODEL, floor.SHARES, 0)
    bounded = {one.method: one for one in methods.prove(found, how, None)}
    assert next(iter(bounded)) == "clopper_pearson"
    assert 0.75 * mu < bounded["gaussian"].mu < mu
    assert bounded["clopper_pearson"].epsilon > 1
    assert 0.9 * mu < bounded["accuracy_gaussian"].mu < mu
    # Halfway between the means a guess is right with Φ(μ/2).
    share = stats.norm.cdf(mu / 2)
    assert 0.8 < bounded["accuracy"].epsilon / np.log(share / (1 - share)) < 1
    assert bounded["accuracy"].right == pytest.approx(3000 * share, abs=4 * 3000**0.5 / 2)
    told = methods.estimate(found, how, "a/1")
    assert told.low < told.epsilon < told.high


@pytest.mark.parametrize("chooses", [True, False], ids=["validation", "Bonferroni"])
def test_an_unfair_coin_proves_nothing_by_guessing_it(chooses):
    """Of 400 models 90 % have their record in; a skewed score is above its median half the time."""
    g = np.random.default_rng(7)

    def trials():
        solution = g.random((400, 1)) < 0.9
        return Rows(solution, g.exponential(size=(400, 1)), np.ones_like(solution))

    found = Attacked({"a/1": trials()} if chooses else None, {"a/1": [trials()]}, "a", "b")
    how = How(1e-5, 0.05, ONE_PER_MODEL, floor.SHARES, 0)
    if not chooses:
        with pytest.raises(InputError, match="which no fair coin is"):
            methods.prove(found, how, None)
        return
    bounded = methods.prove(found, how, None)
    assert [one.method for one in bounded] == ["clopper_pearson", "gaussian"]
    assert bounded[0].epsilon == 0
    with pytest.raises(InputError, match="needs each record in by a fair coin"):
        methods.prove(found, replace(how, game=INDEPENDENT), None)


def test_a_claim_is_contradicted_where_it_is_refused():
    found = attacked(np.random.default_rng(4), (2.0,), models=20)
    proven = methods.prove(found, HOW, None)[0]
    known = {"delta": 1e-5, "accounted": 0.1}
    for epsilon, expected in ((proven.epsilon - 1e-6, True), (proven.epsilon + 1e-6, False)):
        claim = Claim(0.1, replace_one=epsilon, **known)
        assert methods.contradicts(proven, claim, HOW) == expected
    # Of add/remove alone, a swap is two steps.
    assert not methods.contradicts(proven, Claim(proven.epsilon / 2, 1e-5), HOW)
    assert methods.contradicts(proven, Claim(proven.epsilon / 2 - 0.05, 1e-5), HOW)


def test_tied_scores_are_refused():
    solution = np.array([[True, False]] * 3)
    tied = Rows(solution, np.zeros((3, 2)), np.ones_like(solution))
    with pytest.raises(InputError, match="all scores of a/1 are tied"):
        methods.prove(Attacked({"a/1": tied}, {"a/1": [tied]}, "final", "validation"), HOW, None)


def test_more_guesses_than_bits_are_refused():
    found = attacked(np.random.default_rng(5), (0.0,))
    assert methods.shares_of(30, found, PAIRED) == (0.25,)
    with pytest.raises(InputError, match="`guesses` must be at most the 120 bits"):
        methods.shares_of(121, found, PAIRED)


@pytest.mark.parametrize("shared", [True, False])
def test_halves_know_nothing_of_each_others_membership(shared):
    g, models, points = np.random.default_rng(6), 9, 8
    solution = g.permuted(np.tile(np.arange(points) < points // 2, (models, 1)), axis=1)
    row = np.arange(points)
    own = np.broadcast_to(row, (models, points)) if shared else np.tile(row, (models, 1))
    is_member = np.concatenate([solution, solution[:2]])  # and two reference models
    shadow = g.normal(size=is_member.shape)
    evidence = Evidence(
        {"loss": Scores(shadow, {"train": shadow[:models], "final": shadow[:2]})},
        ChallengePoints({"train": own, "final": own[:2]}, row, is_member, solution),
        np.zeros(points, dtype=int),
    )
    halves = halve(models, 0, "here")
    assert sorted([*halves.shadows, *halves.targets]) == list(range(models))
    found, truth = of_halves(evidence, halves)
    kept = [*halves.shadows, models, models + 1]
    assert found.phases == [SHADOWS, TARGETS]
    assert np.array_equal(truth, solution[halves.targets])
    assert np.array_equal(found.points.is_member, is_member[kept])
    assert np.array_equal(found.only.shadow, shadow[kept])
    assert np.array_equal(found.only.own[TARGETS], shadow[halves.targets])
    assert np.array_equal(found.points.solution, solution[halves.shadows])
    assert found.points.is_pool == shared


@pytest.mark.parametrize(("last", "balanced"), [([False, True], True), ([True, True], False)])
def test_a_pool_whose_records_are_each_in_half_of_the_models_is_known(last, balanced):
    is_member = np.array([[True, False], [False, True], [True, False], last, [True, True]])
    points = ChallengePoints(
        {"train": np.tile(np.arange(2), (4, 1))}, np.arange(2), is_member, None
    )
    assert is_balanced(points) == balanced  # the fifth is a reference model


def test_three_models_cannot_be_halved():
    with pytest.raises(InputError, match="here: the truth of dev and final models is not known"):
        halve(3, 0, "here")
