"""A whole challenge as the commands that look at all of its scenarios work with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mico_exp.common import require
from mico_exp.common.errors import InputError
from mico_exp.config.compose import root, setup
from mico_exp.config.options import option_names
from mico_exp.config.setup import Setup


@dataclass(frozen=True, eq=False)
class Challenge:
    """A whole challenge: its scenarios by their folders."""

    name: str
    root: Path
    setups: Mapping[str, Setup]


def challenge(cfg: DictConfig, *, recipes: bool = False) -> Challenge:
    """Make the scenarios of a challenge, for the commands that look at a whole one.

    With `recipes` they know how they are built, also where nothing of that was typed.

    ``ddp`` is one for several data sets, every other is that of its data set. What was given on
    the command line holds for all of them.
    """
    job = HydraConfig.get()
    given = [text for text in job.overrides.task if not text.startswith("dataset=")]
    scenarios = _scenarios(cfg)
    datasets = _names(cfg.get("datasets")) or [job.runtime.choices["dataset"]]
    found = {}
    for dataset in datasets:
        composed = _on(dataset, given)
        for name in scenarios:
            one = setup(composed, (dataset, name), recipes=recipes)
            found[one.name] = one
    return Challenge(cfg.challenge, root(cfg), found)


def _scenarios(cfg: DictConfig) -> list[str]:
    """Scenarios of a challenge.

    Raises:
        InputError: there is none.
    """
    if scenarios := _names(cfg.get("scenarios")):
        return scenarios
    raise InputError("`scenarios` must name at least one scenario of the challenge, got none.")


def challenge_named(text: str) -> Challenge:
    """A challenge by its name, or one scenario of it: ``digits``, ``digits/digits_lo``.

    Its name is that of a challenge's option, or of a data set's; or of neither, and then of a
    challenge on the data set that is chosen.

    Raises:
        InputError: it has no such scenario.
    """
    name, _, wanted = text.partition("/")
    job = HydraConfig.get()
    sides = ("first=", "second=", "dataset=", "challenge=", "challenge_name=")
    given = [one for one in job.overrides.task if not one.startswith(sides)]
    data = job.runtime.choices["dataset"]
    if name in option_names("challenge"):
        given.append(f"challenge={name}")
    elif name in option_names("dataset"):
        data = name
    else:
        require.name("challenge", name)
        given.append(f"challenge_name={name}")
    cfg = _on(data, given)
    known, found = _scenarios(cfg), {}
    datasets = _names(cfg.get("datasets")) or [data]
    for dataset in datasets:
        composed = _on(dataset, given)
        for one in [wanted.removeprefix(f"{dataset}_")] if wanted else known:
            made = setup(composed, (dataset, one))
            if one in known or made.folder.is_dir():
                found[made.name] = made
    if not found:
        listed = ", ".join(f"{dataset}_{one}" for dataset in datasets for one in known)
        raise InputError(f"{text}: {name} has no such scenario, only {listed}.")
    return Challenge(cfg.challenge, root(cfg), found)


def _on(dataset: str, given: Sequence[str]) -> DictConfig:
    """Compose the configuration of this command on a data set, with some overrides."""
    name = HydraConfig.get().job.config_name
    return compose(name, overrides=[*given, f"dataset={dataset}"])


def _names(value: Any) -> list[str]:
    """Names that were given as a list, or as one."""
    several = isinstance(value, list) or OmegaConf.is_list(value)
    return [str(one) for one in value] if several else [str(value)] * bool(value)
