"""What is a number and what is none, in a table; and that what takes numbers asks so."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mico_exp.attacks.disclosure import DensityRatio
from mico_exp.attacks.formulas import lira_online, offset, rmia_offline, rmia_online
from mico_exp.attacks.learned import Quantile, Stack, StackSearch
from mico_exp.challenge.datasets import purchase_like
from mico_exp.challenge.protocol import Sizes
from mico_exp.common import require
from mico_exp.common.errors import InputError
from mico_exp.models.ray_workers import Ray
from mico_exp.results.scoring import check_fpr
from mico_exp.scores.gradients import GradAlignment, Kronecker, Representer
from mico_exp.scores.inference import Processor
from mico_exp.training.recipe import PrivacyTarget
from mico_exp.training.steps import Plan

NEVER = (True, False, None, "1", "0.9", "", [1], math.nan, 1j)  # what is no number at all
WHOLE = (1.0, 0.5, math.inf, np.int64(2))  # what is no whole one beside

RULES = [
    # function, its bounds, what will do, what will not, what is told that it must be
    (require.whole, (1,), (1, 2, 10**9), (0, -1, *WHOLE), "a whole number of at least 1"),
    (require.whole, (0,), (0, 1), (-1, *WHOLE), "a whole number of at least 0"),
    (require.whole, (3, 5), (3, 4, 5), (2, 6, *WHOLE), "a whole number from 3 to 5"),
    (
        require.above,
        (0,),
        (1, 1e-9, 0.5, 10**400),
        (0, 0.0, -1, math.inf),
        "a finite number above 0",
    ),
    (require.at_least, (1,), (1, 1.0, 7.5), (0.999, -1, math.inf), "a finite number of at least 1"),
    (require.within, (0, 1), (0, 1, 0.5, 1.0), (-1e-9, 1.1, math.inf), "a number in [0, 1]"),
    (require.within, (0.02, 500.0), (0.02, 500), (0.01, 501), "a number in [0.02, 500]"),
    (require.between, (0, 1), (0.5, 1e-9), (0, 1, 0.0, 1.0, -1), "a number in (0, 1)"),
]


@pytest.mark.parametrize(("rule", "bounds", "good", "bad", "words"), RULES)
def test_what_a_number_must_be(rule, bounds, good, bad, words):
    for value in good:
        rule("it", value, *bounds)
    for value in (*bad, *NEVER):
        with pytest.raises(InputError) as caught:
            rule("it", value, *bounds)
        assert str(caught.value) == f"`it` must be {words}, got {value!r}."


def test_a_word_of_several():
    require.one_of("it", "b", ("a", "b"))
    for value in ("c", "", "a, b", None, 1, [1]):
        with pytest.raises(InputError) as caught:
            require.one_of("it", value, {"a": 0, "b": 1})
        assert str(caught.value) == f"`it` must be one of a, b, got {value!r}."


def test_a_switch_is_no_number_and_no_word():
    assert require.switch("it", True) is True
    assert require.switch("it", False) is False
    for value in (1, 0, None, "true", "false", np.bool_(True)):
        with pytest.raises(InputError) as caught:
            require.switch("it", value)
        assert str(caught.value) == f"`it` must be true or false, got {value!r}."


def test_infinity_where_it_need_not_be_finite():
    require.above("fpr", math.inf, 0, finite=False)
    with pytest.raises(InputError, match=r"^`fpr` must be a number above 0, got -inf\.$"):
        require.above("fpr", -math.inf, 0, finite=False)


def test_text_is_in_quotes_and_the_message_is_a_line():
    with pytest.raises(InputError, match=r"^`c` must be .*, got '0\.9'\.$"):
        require.above("c", "0.9", 0)
    with pytest.raises(InputError) as caught:
        require.whole("n", "1\n" * 100, 1, other="null", advice="; leave it out")
    text = str(caught.value)
    assert text.startswith("`n` must be a whole number of at least 1 or null, got '1\\n")
    assert text.endswith("; leave it out.")
    assert "\n" not in text
    assert len(text) < 160


def formula(function, **arguments):
    half = np.full((2, 4), 0.5)
    side = np.array([[True] * 4, [False] * 4])
    return function(half[0], half, side, ~side, **arguments)


# Numbers that a person may choose, each with something else that they may be.
CHOSEN = {
    "steps": lambda x: Plan(x, 1, torch.optim.SGD),
    "batch_size": lambda x: Plan(1, x, torch.optim.SGD),
    "num_records": lambda x: Sizes(x, 1, 1),
    "len_training": lambda x: Sizes(10, x, 1),
    "len_challenge": lambda x: Sizes(10, 2, x),
    "epsilon": lambda x: PrivacyTarget(x, 1e-5, 1.0),
    "delta": lambda x: PrivacyTarget(4.0, x, 1.0),
    "clip_norm": lambda x: PrivacyTarget(4.0, 1e-5, x),
    "records": lambda x: purchase_like(records=x),
    "rank": lambda x: purchase_like(records=1, rank=x),
    "spread": lambda x: purchase_like(records=1, spread=x),
    "noise": lambda x: purchase_like(records=1, noise=x),
    "seed": lambda x: purchase_like(records=1, seed=x),
    "compute.batch_size": lambda x: Processor("cpu", batch_size=x),
    "compute.num_gpus": lambda x: Ray(num_gpus=x),
    "compute.jobs_per_gpu": lambda x: Ray(jobs_per_gpu=x),
    "compute.num_workers": lambda x: Ray(num_workers=x),
    "temperature": lambda x: Representer(temperature=x),
    "damping": lambda x: Kronecker(damping=x),
    "reference": lambda x: GradAlignment(reference=x),
    "w": lambda x: formula(offset, w=x),
    "k": lambda x: formula(offset, k=x),
    "kappa": lambda x: formula(lira_online, variance="bayesian", kappa=x),
    "nu": lambda x: formula(lira_online, variance="bayesian", nu=x),
    "gamma": lambda x: formula(rmia_online, gamma=x),
    "a": lambda x: formula(rmia_offline, a=x),
    "c": lambda x: Stack(c=x),
    "cs": lambda x: StackSearch(cs=(x,)),
    "folds": lambda x: StackSearch(folds=x)(None),
    "inner": lambda x: StackSearch(inner=x)(None),
    "alpha": lambda x: Quantile(alpha=x),
    "strength": lambda x: DensityRatio(strength=x),
    "fpr": check_fpr,
}


@pytest.mark.parametrize("value", [True, "0.9", -1, math.nan])
@pytest.mark.parametrize("name", CHOSEN)
def test_whoever_takes_a_number_asks(name, value):
    with pytest.raises(InputError) as caught:
        CHOSEN[name](value)
    assert str(caught.value).startswith(f"`{name}` must be a ")
    assert f", got {value!r}" in str(caught.value)


def test_true_is_no_size():
    with pytest.raises(InputError, match=r"`steps` must be a whole number .*, got True"):
        Plan(True, True, None)
    with pytest.raises(InputError, match=r"`len_training` must be a whole number .*, got True"):
        Sizes(10, True, True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("data", "data"), (2024, "2024"), ("a?b #c%", "a?b #c%"), ("~/x", str(Path.home() / "x"))],
)
def test_a_folder_of_any_name(given, expected):
    assert require.folder("paths.data", given) == Path(expected)


@pytest.mark.parametrize("given", [None, "", "  ", True, 1.5, ["x"], "a\0b", "~nobody-of-here/x"])
def test_what_is_no_folder(given):
    with pytest.raises(InputError, match=r"^`paths\.store` must name a folder, got "):
        require.folder("paths.store", given)
