"""Every option file composes, and what it names can be made and used."""

import inspect
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mico_exp.attacks.calibration import copes_with_gaps
from mico_exp.attacks.evidence import Attack
from mico_exp.config.typed import OPTIONS
from mico_exp.models.architectures import MLP
from mico_exp.scores.gradients import GradientMetric
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.perturbation import PerturbedMetric
from mico_exp.scores.white_box import GradientRunner

GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in Path(OPTIONS).iterdir()
    if folder.is_dir()
}
EVERY = [(group, option) for group, options in GROUPS.items() for option in options]


@pytest.fixture
def composed():
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        yield lambda *overrides, name="config": compose_once(name, *overrides)


@cache
def compose_once(name, *overrides):
    """Each is looked at by several tests, which leave it as it is."""
    return compose(name, overrides=list(overrides))


def test_the_groups_are_those_the_user_asked_for():
    assert {"dataset", "scenario", "metric", "formula"} <= GROUPS.keys()


@pytest.mark.parametrize(("group", "option"), EVERY)
def test_every_option_composes(composed, group, option):
    command = "select_best" if group in ("preset", "challenge") else "config"
    cfg = composed(f"{group}='{option}'", name=command)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if group == "challenge":
        assert cfg.challenge
        assert len(cfg.scenarios) > 0
    elif group != "experiment":  # which changes others, and has no key
        assert cfg[group].name


@pytest.mark.parametrize("option", sorted(set(GROUPS["metric"]) - {"all"}))
def test_every_metric_gives_a_score_for_each_point(composed, option, digits):
    cfg = composed(f"metric='{option}'")
    metric = instantiate(cfg.metric.function)
    assert cfg.metric.name == option
    torch.manual_seed(0)
    if isinstance(metric, GradientMetric):
        model = MLP([64, 8, 10]).eval().requires_grad_(False)
        known = np.arange(0, 1797, 3) if metric.disclosed else None
        points = np.arange(50, 90)
        scores = GradientRunner(ModelRunner(Processor("cpu"))).scores(
            model, digits, points, {option: metric}, known
        )[option]
        assert scores.shape == (40,)
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) == 40
        documented = type(metric)
    elif isinstance(metric, PerturbedMetric):
        copies = metric.perturbed(digits.inputs(torch.arange(6)), torch.arange(6), torch.arange(6))
        assert copies.shape == (6, 64)
        documented = type(metric)
    else:
        assert option == metric.func.__name__
        scores = metric(torch.randn(3, 5, 4), torch.randint(4, (5,)))
        assert scores.shape == (3, 5)
        assert torch.isfinite(scores).all()
        documented = metric.func
    assert "arXiv" in inspect.getdoc(documented)


@pytest.mark.parametrize("option", GROUPS["formula"])
def test_every_formula_is_a_function_of_arrays_or_an_attack(composed, option):
    formula = instantiate(composed(f"formula='{option}'").formula.function)
    if isinstance(formula, Attack):
        assert inspect.getdoc(type(formula))
        return
    random = np.random.default_rng(0)
    is_in = np.tile([[True], [False]], (4, 5))
    found = formula(random.random(size=5), random.random(size=(8, 5)), is_in, ~is_in)
    scores, fell_back = found if copes_with_gaps(formula) else (found, np.zeros(5, bool))
    assert scores.shape == fell_back.shape == (5,)
    assert np.isfinite(scores).all()
    assert not fell_back.any()
    assert inspect.getdoc(formula.func)


@pytest.mark.parametrize(
    ("readable", "number"),
    [("midpoint", "0"), ("in_mean", "1"), ("standardized", "2"), ("uncalibrated", "none")],
)
def test_readable_names_are_the_same_formula(composed, readable, number):
    assert composed(f"formula='{readable}'").formula == composed(f"formula='{number}'").formula
    assert composed(f"formula='{readable}'").formula.name == number


@pytest.mark.parametrize("option", ["digits"])
def test_every_data_set_loads_and_fits_its_model(composed, option):
    cfg = composed(f"dataset='{option}'")
    records = instantiate(cfg.dataset.records)
    model = instantiate(cfg.dataset.model)
    logits = model(records.inputs(torch.arange(7)))
    assert logits.shape[0] == 7
    assert logits.shape[1] > records.labels.max()
    assert isinstance(model, MLP)


def test_digits_are_scikit_learns(digits):
    assert digits.features.shape == (1797, 64)
    assert (digits.features.min(), digits.features.max()) == (0, 1)
    assert torch.bincount(digits.labels).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip


def test_the_sweep_and_the_submission_have_the_same_scenarios():
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        grid = compose("config", return_hydra_config=True)
        build = compose("build", return_hydra_config=True)
        selection = compose("select_best")
    swept = [name.strip("'") for name in grid.hydra.sweeper.params.scenario.split(",")]
    assert swept == list(selection.scenarios)
    assert build.hydra.sweeper.params.scenario == grid.hydra.sweeper.params.scenario
    assert set(swept) <= set(GROUPS["scenario"])
