"""A tiny world that tests share: one small challenge of real models, built once a session."""

import copy
import functools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from commands import run, warm
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from mico_exp.attacks import formulas
from mico_exp.challenge import datasets
from mico_exp.challenge.protocol import Sizes
from mico_exp.config.typed import OPTIONS
from mico_exp.training.building import build
from mico_exp.training.recipe import Recipe
from mico_exp.training.steps import Plan

# Whoever starts the tests in the background ignores these, and so would every command of theirs.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

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


@functools.cache
def compose_once(_folder, *overrides):
    """Compose the main configuration in a folder, which takes ten times as long as to copy it."""
    return compose("config", overrides=list(overrides), return_hydra_config=True)


@pytest.fixture
def composed():
    """Compose the main configuration as a job does."""
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):

        def make(*overrides):
            cfg = copy.deepcopy(compose_once(os.getcwd(), *overrides))
            HydraConfig.instance().set_config(cfg)
            return cfg

        yield make


SWEPT_SIZES = ["dataset.len_training=120", "dataset.len_challenge=10"]
SWEPT = [
    *SWEPT_SIZES,
    "dataset.phases.train=10",
    "dataset.phases.dev=3",
    "dataset.phases.final=2",
    "dataset.recipe.steps=200",
]
GRID = ["mico_exp", "metric=loss,confidence", "formula=0,1,2", "-m"]


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """A folder in which the user's three commands ran, and what they printed.

    It is made once for all workers; tests must not change it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, shown = root / "swept", root / "swept.json"
    with FileLock(root / "swept.lock"):
        if not shown.exists():
            folder.mkdir()
            done = (
                run(*GRID, *SWEPT, cwd=folder),
                run("mico_exp.select_best", *SWEPT_SIZES, cwd=folder),
                run("mico_exp.score", "submissions/predictions_digits.zip", cwd=folder),
            )
            shown.write_text(json.dumps([one.stdout for one in done]))
    return folder, *json.loads(shown.read_text())


def pytest_collection_finish(session):
    if any(item.get_closest_marker("commands") for item in session.items):
        warm()


# Files that take longest, which begin first: so two workers end at about the same time.
LONG = (
    *("tracks", "cluster", "pipeline", "null", "survival", "choosing", "examples", "options"),
    *("field", "learning", "report", "exposure", "composing", "accountant", "configs"),
)


def pytest_collection_modifyitems(items):
    """Mark what runs commands, Ray or a browser, which `make test-fast` leaves out.

    What is marked `gpu` is skipped without one; `test_gpu` says how to run it all the same.
    """
    here = torch.cuda.is_available() or os.environ.get("MICO_EXP_TEST_DEVICE") == "cpu"
    names = [f"test_{name}.py" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else 99)
    for item in items:
        if not here and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        known = vars(item.module)
        if {"commands", "run", "ray", "browser", "simulation"} & known.keys():
            item.add_marker(pytest.mark.commands)
