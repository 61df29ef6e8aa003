"""From a composed configuration to the objects that it names.

The one place below the commands that reads a configuration: all other modules take plain
arguments.
"""

from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from mico_exp.challenge import PHASES, Scenario, Sizes, load_scenario
from mico_exp.datasets import Records
from mico_exp.errors import InputError
from mico_exp.extraction import Metric
from mico_exp.models import MLP
from mico_exp.recipe import PrivacyTarget, Recipe, build
from mico_exp.training import Plan


def records(cfg: DictConfig) -> Records:
    """Load the data set of `cfg.dataset`."""
    loaded: Records = instantiate(cfg.dataset.records)
    return loaded


def model(cfg: DictConfig) -> nn.Module:
    """Make an untrained model of `cfg.dataset`."""
    made: nn.Module = instantiate(cfg.dataset.model)
    return made


def scenario_name(cfg: DictConfig) -> str:
    """Folder of the chosen scenario, such as ``digits_inf``."""
    return f"{cfg.dataset.name}_{cfg.scenario.name}"


def sizes(cfg: DictConfig, num_records: int) -> Sizes:
    """Sizes of the chosen data set."""
    return Sizes(num_records, cfg.dataset.len_training, cfg.dataset.len_challenge)


def recipe(cfg: DictConfig, num_records: int) -> Recipe | None:
    """How the chosen scenario is built; None for a data set whose models come from elsewhere."""
    how = cfg.dataset.recipe
    if how is None:
        return None
    mlp = model(cfg)
    if not isinstance(mlp, MLP):
        raise InputError(f"`dataset.model` must be an MLP to be built, got {type(mlp).__name__}.")
    if set(how.models) != set(PHASES):
        raise InputError(f"`dataset.recipe.models` must name {PHASES}, got {list(how.models)}.")
    target = None
    if cfg.scenario.epsilon is not None:
        target = PrivacyTarget(cfg.scenario.epsilon, cfg.scenario.delta, how.clip_norm)
    return Recipe(
        challenge=cfg.challenge,
        scenario=scenario_name(cfg),
        seed=cfg.seed,
        sizes=sizes(cfg, num_records),
        models={phase: how.models[phase] for phase in PHASES},
        widths=tuple(mlp.widths),
        plan=Plan(how.steps, how.batch_size, instantiate(how.optimizer)),
        privacy=target,
    )


def scenario(cfg: DictConfig, loaded: Records) -> Scenario:
    """Find the chosen scenario on disk, after building what is missing if it can be built."""
    how = recipe(cfg, len(loaded))
    root = Path(cfg.paths.data)
    if how is not None:
        build(root, how, loaded)
    return load_scenario(root, cfg.challenge, scenario_name(cfg), sizes(cfg, len(loaded)))


def metric(cfg: DictConfig) -> Metric:
    """Make the chosen metric."""
    function: Metric = instantiate(cfg.metric.function)
    return function


def all_metrics(cfg: DictConfig) -> dict[str, Metric]:
    """Make every option of the group `metric`, and the chosen one as it was configured.

    They all come from the same pass through a model, so a later cell finds its scores ready.
    """
    found: dict[str, Any] = {}
    for name in option_names("metric"):
        option = compose(HydraConfig.get().job.config_name, overrides=[f"metric={name}"]).metric
        found[option.name] = instantiate(option.function)
    return {**found, cfg.metric.name: metric(cfg)}


def option_names(group: str) -> list[str]:
    """Names of all options of a config group, in their fixed order."""
    loader = GlobalHydra.instance().config_loader()
    return list(loader.get_group_options(group, ObjectType.CONFIG))


def formula(cfg: DictConfig) -> "partial[Any]":
    """Make the chosen formula."""
    function: partial[Any] = instantiate(cfg.formula.function)
    return function
