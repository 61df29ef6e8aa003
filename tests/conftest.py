"""A tiny world that tests share: one small challenge of real models, built once a session."""

import functools
from pathlib import Path

import pytest
import torch

from mico_exp import datasets, formulas
from mico_exp.challenge import Sizes
from mico_exp.recipe import Recipe, build
from mico_exp.training import Plan

GOLDEN = Path(__file__).parent / "data" / "golden"
WINNER = {  # the winner's formulas by his numbers
    "0": functools.partial(formulas.offset, w=0.5),
    "1": functools.partial(formulas.offset, w=1.0),
    "2": functools.partial(formulas.offset, w="counts", k=1.0, scale="all"),
}
SIZES = Sizes(records=1797, training=120, challenge=10)


def tiny_recipe(scenario="digits_inf", privacy=None, seed=0, **changes):
    plan = Plan(
        steps=200, batch_size=16, optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    )
    values = {
        "challenge": "digits",
        "scenario": scenario,
        "seed": seed,
        "sizes": SIZES,
        "models": {"train": 12, "dev": 3, "final": 2},
        "widths": (64, 16, 10),
        "plan": plan,
        "privacy": privacy,
    }
    return Recipe(**{**values, **changes})


@pytest.fixture(scope="session")
def digits():
    return datasets.digits()


@pytest.fixture(scope="session")
def built(tmp_path_factory, digits):
    """Root of a tree with the scenario digits_inf; tests must not change it."""
    root = tmp_path_factory.mktemp("built") / "data"
    build(root, tiny_recipe(), digits)
    return root
