"""Ceilings against closed forms and figures of dp-accounting, and what noise a game refuses."""

import json

import numpy as np
import pytest
from scipy import stats

from mico_exp.auditing import ceiling, curves, one_run
from mico_exp.auditing.ceiling import Profile
from mico_exp.auditing.counts import Counts
from mico_exp.auditing.games import ADD_REMOVE, REPLACE_ONE
from mico_exp.common.errors import InputError
from mico_exp.training.mechanism import Mechanism, of_build, told_by

DIGITS_LO = Mechanism(2.48046875, 32 / 300, 400)
FPRS = np.array([0.001, 0.01, 0.1])


def test_gaussian_mechanism_allows_what_telling_two_gaussians_apart_does():
    """One step without sampling: add/remove moves the sum by C, replace-one by 2 C."""
    alone = Mechanism(2.0, 1.0, 1)
    for relation, mu in ((ADD_REMOVE, 0.5), (REPLACE_ONE, 1.0)):
        found = ceiling.of_mechanism(alone, relation).tpr(FPRS)
        exact = stats.norm.cdf(stats.norm.ppf(FPRS) + mu)
        assert found == pytest.approx(exact, rel=2e-3)
        assert (found >= exact - 1e-12).all()
        assert ceiling.epsilon_of(alone, 1e-5, relation) == pytest.approx(
            curves.epsilon_of_gaussian(mu, 1e-5), abs=2e-3
        )


def test_embedded_challenge_has_the_ceilings_of_its_training():
    """Of digits_lo, as dp-accounting tells them, to three figures."""
    swapped, added = (ceiling.of_mechanism(DIGITS_LO, one) for one in (REPLACE_ONE, ADD_REMOVE))
    assert added.tpr(FPRS) == pytest.approx([0.0145, 0.077, 0.349], rel=5e-3)
    assert swapped.tpr(FPRS) == pytest.approx([0.084, 0.269, 0.666], rel=5e-3)
    assert ceiling.epsilon_of(DIGITS_LO, 1e-5, ADD_REMOVE) == pytest.approx(3.98, abs=0.01)
    assert ceiling.epsilon_of(DIGITS_LO, 1e-5, REPLACE_ONE) == pytest.approx(8.26, abs=0.01)
    assert added.figures()["tpr_at_fpr_0.1"] == added.tpr(0.1)


def test_ceiling_is_the_least_of_both_inequalities():
    profile = Profile(np.array([0.0, 1.0, 3.0]), np.array([0.4, 0.1, 0.0]))
    for fpr in (0.0, 0.01, 0.3, 0.9, 1.0):
        allowed = [1.0]
        for epsilon, delta in zip(profile.epsilons, profile.deltas, strict=True):
            allowed.append(np.exp(epsilon) * fpr + delta)
            allowed.append(1 - np.exp(-epsilon) * (1 - delta - fpr))
        assert profile.tpr(fpr) == pytest.approx(min(allowed))
        assert profile.curve(float(profile.tpr(fpr))) <= fpr + 1e-12


def test_one_claim_alone_says_little():
    assert ceiling.of_claim(4.0, 1e-5).tpr(0.1) == pytest.approx(0.98, abs=0.01)


def test_noise_that_is_refused_is_refused_by_its_own_curve():
    counts = Counts(5000, 500, 307)
    found = ceiling.refused_noise(counts, DIGITS_LO, REPLACE_ONE, 0.05)
    less = found.with_noise(found.noise_multiplier / ceiling.STEP)
    assert one_run.refuses(counts, ceiling.of_mechanism(found, REPLACE_ONE).curve, 0.05)
    assert not one_run.refuses(counts, ceiling.of_mechanism(less, REPLACE_ONE).curve, 0.05)
    about = curves.epsilon_of_gaussian(one_run.mu(counts, 0.05), 1e-5)  # so many steps look alike
    assert ceiling.epsilon_of(found, 1e-5, REPLACE_ONE) == pytest.approx(about, rel=0.03)
    assert ceiling.refused_noise(Counts(5000, 500, 251), DIGITS_LO, REPLACE_ONE, 0.05) is None


@pytest.mark.parametrize("first", [-7, -1, 0, 1, 9, 60])
def test_least_refused_number_is_found_from_either_side(first):
    assert ceiling._least_refused(lambda number: number >= first) == first


def test_mechanism_of_a_build_is_what_its_record_tells(tmp_path):
    assert of_build(tmp_path) is None
    told = {"steps": 400, "batch_size": 32, "len_training": 300, "epsilon": None, "delta": None}
    (tmp_path / "build.json").write_text(json.dumps(told))
    assert of_build(tmp_path) is None
    told |= {"steps": 4, "batch_size": 300, "epsilon": 4.0, "delta": 1e-5, "accountant": "pld"}
    (tmp_path / "build.json").write_text(json.dumps(told))
    found = of_build(tmp_path)  # four looks at all records are one of half the noise
    spent = curves.epsilon_of_gaussian(2 / found.noise_multiplier, 1e-5)
    assert (spent, found.sample_rate, found.steps) == (pytest.approx(4, abs=2e-3), 1, 4)
    (tmp_path / "build.json").write_text(
        json.dumps(told | {"noise_multiplier": 3.0, "sample_rate": 0.5})
    )
    assert of_build(tmp_path) == Mechanism(3.0, 0.5, 4)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"noise_multiplier": 1.0, "steps": 3}, "`mechanism` must give"),
        ({"noise_multiplier": 0, "sample_rate": 0.1, "steps": 3}, "`noise_multiplier`"),
        ({"noise_multiplier": 1.0, "sample_rate": 1.5, "steps": 3}, "`sample_rate`"),
        ({"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 0}, "`steps`"),
    ],
)
def test_what_is_no_mechanism_is_refused(given, named):
    with pytest.raises(InputError, match=named):
        told_by(given, "mechanism")
    assert (
        told_by({"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 3}, "mechanism").steps == 3
    )


def test_a_guarantee_beyond_all_numbers_allows_all():
    found = ceiling.of_claim(800.0, 1e-5)
    assert found.tpr([0.0, 1e-3, 0.1]) == pytest.approx([1e-5, 1, 1])
    assert found.curve(0.999) == pytest.approx(0)
