"""Attacks by disclosed training sets against literal definitions."""

import re
from dataclasses import replace

import leaky
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from mico_exp.attacks import formulas
from mico_exp.attacks.disclosure import Conformal, DensityRatio, DisclosedRMIA, _terms
from mico_exp.attacks.evidence import Evidence
from mico_exp.attacks.folds import Folds
from mico_exp.common.errors import InputError
from mico_exp.results.scoring import roc

PHASES = ("train", "dev")


@pytest.fixture(scope="module")
def world():
    return leaky.evidence({"one": 1.0}, known=40)


def calibrated(evidence, phase, row, columns, values, formula):
    """One target's scores by a formula on plain arrays; a train model leaves itself out."""
    others = np.delete(np.arange(24), row) if phase == "train" else np.arange(24)
    shadow = evidence.only.shadow[others][:, columns]
    is_in = evidence.points.is_member[others][:, columns]
    found = formula(values, shadow, is_in, ~is_in)
    return found[0] if isinstance(found, tuple) else found


def both(evidence, phase, row, formula):
    """Scores at a target's challenge points, at its known points, and their membership."""
    columns = evidence.points.columns(phase)[row]
    own = calibrated(evidence, phase, row, columns, evidence.only.own[phase][row], formula)
    sample = evidence.known[phase][row]
    places = np.searchsorted(evidence.points.unique, sample.points)
    told = evidence.only.known[phase][row]
    return own, calibrated(evidence, phase, row, places, told, formula), sample.is_member


def test_conformal_p_values(world):
    evidence, _ = world
    found = Conformal()(evidence)
    for phase in PHASES:
        for row, scores in enumerate(found[phase].scores):
            own, told, is_member = both(evidence, phase, row, formulas.offset)
            others = told[~is_member].tolist()
            for score, a in zip(scores, own, strict=True):
                above = sum(other >= a for other in others)
                assert score == -(1 + above) / (1 + len(others))


def test_a_known_non_member_that_scores_the_same_counts():
    """Scores are rounded, and all shadow models agree, so that challenge points tie with others."""
    evidence, _ = leaky.evidence({"one": 1.0}, known=40)
    one = evidence.only
    coarse = {phase: own.round() for phase, own in one.own.items()}
    told = {phase: [row.round() for row in rows] for phase, rows in one.known.items()}
    flat = replace(one, shadow=np.zeros_like(one.shadow), own=coarse, known=told)
    found = Conformal()(replace(evidence, scores={"one": flat}))["dev"].scores
    for row, scores in enumerate(found):
        others = told["dev"][row][~evidence.known["dev"][row].is_member].tolist()
        for score, a in zip(scores, coarse["dev"][row], strict=True):
            assert score == -(1 + sum(other >= a for other in others)) / 41


def test_conformal_p_values_are_uniform_for_non_members():
    evidence, truth = leaky.evidence({"one": 1.0}, known=100, unique=400, targets=40, points=50)
    p = -Conformal()(evidence)["dev"].scores
    for level in (0.1, 0.3, 0.5):
        assert (p[~truth] <= level).mean() == pytest.approx(level, abs=0.04)
    assert (p[truth] <= 0.1).mean() > 0.2


@pytest.mark.parametrize("gamma", [1.0, 1.2])
def test_rmia_by_true_non_members(world, gamma):
    evidence, _ = world
    scores = evidence.only
    chance = replace(
        scores,
        shadow=expit(scores.shadow),
        own={phase: expit(own) for phase, own in scores.own.items()},
        known={phase: [expit(row) for row in rows] for phase, rows in scores.known.items()},
    )
    evidence = replace(evidence, scores={"confidence": chance})
    found = DisclosedRMIA(gamma)(evidence)
    for phase in PHASES:
        for row, scores in enumerate(found[phase].scores):
            own, told, is_member = both(evidence, phase, row, formulas.ratio_online)
            expected = [np.mean(told[~is_member] <= a / gamma) for a in own]
            np.testing.assert_allclose(scores, expected, atol=1e-12)


def hardness(score, shadow, is_in, is_out):
    return np.where(is_out, shadow, 0).sum(axis=0) / np.maximum(is_out.sum(axis=0), 1)


def terms(pairs, pooled):
    a, h = ((pairs - pooled.mean(axis=0)) / pooled.std(axis=0)).clip(-5, 5).T
    return np.stack([np.ones_like(a), a, a * a, h, a * h], axis=1)


def test_a_base_that_looks_at_all_points_looks_at_the_same_for_all_of_them(world):
    """Challenge points and known ones are calibrated together, so their scores can be compared."""
    evidence, _ = world
    found = Conformal(formulas.lira_shrunk)(evidence)
    columns = evidence.points.columns("dev")[2]
    sample = evidence.known["dev"][2]
    places = np.concatenate([columns, np.searchsorted(evidence.points.unique, sample.points)])
    values = np.concatenate([evidence.only.own["dev"][2], evidence.only.known["dev"][2]])
    together = calibrated(evidence, "dev", 2, places, values, formulas.lira_shrunk)
    own, told = together[:30], together[30:]
    others = told[~sample.is_member]
    expected = [-(1 + (others >= a).sum()) / (1 + len(others)) for a in own]
    np.testing.assert_allclose(found["dev"].scores[2], expected, atol=1e-12)


@pytest.mark.parametrize("apart", [False, True], ids=["shared points", "own points"])
def test_density_ratio_is_a_penalised_logistic_regression(world, apart):
    """Every target's coefficients by a general optimiser, drawn to the common ones.

    A train model by those of the other folds' models at other points, a dev model by all; each
    judged by the shadow models outside its own fold and, in turn, one other.
    """
    evidence, _ = world
    if apart:
        size = {"models": 12, "targets": 5, "points": 10, "unique": 170, "known": (30, 12)}
        evidence, _ = leaky.evidence({"one": 1.0}, **size, shared=False)
    found = DensityRatio(strength=5.0, folds=3)(evidence)
    folds = Folds.of(evidence.points, 3)
    unique, scores = evidence.points.unique, evidence.only

    def pair(phase, row, hidden):
        shadows = ~np.isin(folds.of_model, hidden)
        sample = evidence.known[phase][row]
        places = evidence.points.columns(phase)[row], np.searchsorted(unique, sample.points)
        both = []
        for columns, values in zip(
            places, (scores.own[phase][row], scores.known[phase][row]), strict=True
        ):
            shadow, is_in = scores.shadow[shadows][:, columns], evidence.points.is_member
            is_in = is_in[shadows][:, columns]
            sides = is_in | ~is_in.any(axis=0), ~is_in
            sides[1][:, (~is_in).sum(axis=0) < 2] = is_in[:, (~is_in).sum(axis=0) < 2]  # stand in
            forms = (formulas.offset, hardness)
            both.append(np.stack([f(values, shadow, *sides) for f in forms], axis=1))
        return *both, sample.is_member, places[1]

    def fit(x, is_member, pull, centre):
        odds = np.log(is_member.mean() / (1 - is_member.mean()))

        def loss(w):
            z = x @ w + odds
            return np.logaddexp(0, z).sum() - z[is_member].sum() + (pull * (w - centre) ** 2).sum()

        return minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-6}).x

    def expected(phase, row, hidden, point_fold):
        kept = [fold for fold in range(3) if fold not in hidden]
        learnt = [
            pair("train", other, [*hidden, fold]) for fold in kept for other in folds.models(fold)
        ]
        where = folds.of_point[np.concatenate([columns for *_, columns in learnt])] != point_fold
        where |= apart  # then no point is another model's
        pooled = np.concatenate([told for _, told, *_ in learnt])[where]
        members = np.concatenate([is_member for *_, is_member, _ in learnt])[where]
        odds = np.log(members.mean() / (1 - members.mean()))
        # scikit-learn's own penalty, ½‖w‖² on the coefficients with the odds among them
        shift = np.array([odds, 0, 0, 0, 0])
        common = fit(terms(pooled, pooled), members, 0.5 * np.ones(5), -shift)
        turns = []
        for fold in kept:
            own, told, is_member, _ = pair(phase, row, [*hidden, fold])
            weights = fit(terms(told, pooled), is_member, 2.5 * np.ones(5), common)
            turns.append(terms(own, pooled) @ weights)
        return np.mean(turns, axis=0)

    assert folds.point_folds == (1 if apart else 2)
    for row, point_fold in ((0, 0), (11, 0) if apart else (13, 1)):
        here = folds.of_point[evidence.points.columns("train")[row]] == point_fold
        one = expected("train", row, [folds.of_model[row]], point_fold)
        np.testing.assert_allclose(found["train"].scores[row][here], one[here], atol=2e-3)
    np.testing.assert_allclose(found["dev"].scores[4], expected("dev", 4, [], None), atol=2e-3)


def test_terms_are_standardised_and_lie_within_five_deviations():
    """Those of points far out, whose coefficients are learnt from others."""
    pairs = np.array([[3.0, -1.0], [1e6, 0.0], [-9.0, 99.0], [19.9, 12.4]])
    found = _terms(pairs, centre=np.array([1.0, 0.0]), spread=np.array([2.0, 4.0]))
    standardised = [(1.0, -0.25), (5.0, 0.0), (-5.0, 5.0), (5.0, 3.1)]
    np.testing.assert_allclose(found, [[1, a, a * a, h, a * h] for a, h in standardised])
    found = _terms(pairs, centre=np.array([1.0, 0.0]), spread=np.array([4.0, 4.0]))
    assert found[3, 1] == pytest.approx(18.9 / 4)  # nothing within is moved


def test_density_ratio_of_constant_scores_says_nothing(world):
    evidence, _ = world
    flat = replace(
        evidence.only,
        shadow=np.full_like(evidence.only.shadow, 0.4),
        own={phase: np.full_like(own, 0.4) for phase, own in evidence.only.own.items()},
        known={
            p: [np.full_like(row, 0.4) for row in rows] for p, rows in evidence.only.known.items()
        },
    )
    for one in DensityRatio(folds=3)(replace(evidence, scores={"one": flat})).values():
        assert np.abs(one.scores).max() < 1e-2


def test_density_ratio_finds_what_the_hardness_hides():
    """Members of hard points score lower, those of easy points higher than others: A·h tells."""
    evidence, truth = leaky.evidence({"one": 1.0}, known=200, unique=600, points=60, targets=30)
    found = DensityRatio()(evidence)["dev"].scores
    plain = evidence.calibrated(formulas.offset, evidence.only, "dev").scores
    assert roc(truth, found).auc > roc(truth, plain).auc - 0.01


ATTACKS = [Conformal(), DensityRatio()]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_scenario_that_discloses_nothing(attack):
    evidence, _ = leaky.evidence({"one": 1.0})
    with pytest.raises(InputError, match="does not disclose training sets"):
        attack(evidence)


def told(evidence, kind):
    """Keep only known members, or only known non-members, of the first dev model."""
    samples, scores = list(evidence.known["dev"]), list(evidence.only.known["dev"])
    keep = samples[0].is_member == kind
    samples[0] = replace(
        samples[0], points=samples[0].points[keep], is_member=samples[0].is_member[keep]
    )
    scores[0] = scores[0][keep]
    one = replace(evidence.only, known={**evidence.only.known, "dev": scores})
    return Evidence(
        {"one": one}, evidence.points, evidence.labels, {**evidence.known, "dev": samples}
    )


def test_a_model_without_known_non_members(world):
    with pytest.raises(InputError, match="no known non-member"):
        Conformal()(told(world[0], True))
    with pytest.raises(InputError, match="All 40 known points of a model are of one class"):
        DensityRatio()(told(world[0], False))
    with pytest.raises(InputError, match="All 40 known points of a model are of one class"):
        DensityRatio()(told(world[0], True))


def test_arguments_out_of_range(world):
    for strength in (0, -1.0, np.inf, np.nan, "5"):
        told = re.escape(f"`strength` must be a finite number above 0, got {strength!r}")
        with pytest.raises(InputError, match=told):
            DensityRatio(strength=strength)
    with pytest.raises(InputError, match="`gamma` must be a finite number of at least 1"):
        DisclosedRMIA(0.9)(positive(world[0]))
    with pytest.raises(InputError, match="scores must be in"):
        DisclosedRMIA()(world[0])


def positive(evidence):
    scores = evidence.only
    return replace(
        evidence,
        scores={
            "confidence": replace(
                scores,
                shadow=expit(scores.shadow),
                own={phase: expit(own) for phase, own in scores.own.items()},
                known={p: [expit(row) for row in rows] for p, rows in scores.known.items()},
            )
        },
    )
