"""How the models of a scenario are trained, as the options of data set and scenario tell."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from mico_exp.challenge.phases import PHASES
from mico_exp.common.errors import InputError
from mico_exp.config.dataset import canaries
from mico_exp.config.keys import check_known, typed_of_dataset
from mico_exp.config.making import make
from mico_exp.config.scenario import epsilon
from mico_exp.models.architectures import MLP
from mico_exp.training.recipe import Fresh, PrivacyTarget, Recipe, planned

OF_TRAINING = (  # keys of a recipe, and of its `private`
    *("steps", "epochs", "batch_size", "optimizer", "schedule", "schedule_each", "augment"),
    *("precision", "clip_norm", "accountant"),
)
LENGTHS = ("steps", "epochs")  # of which one takes the other's place
OF_RECIPE = (*OF_TRAINING, "network", "private", "unasked")


def recipe(cfg: DictConfig, option: DictConfig, model: Any) -> Callable[..., Recipe] | None:
    """How a scenario of an option is built; None for a data set whose models come from elsewhere.

    Raises:
        InputError: no build can be like that, or meet the privacy that is asked for.
    """
    how = cfg.dataset.get("recipe")
    if how is None:
        return None
    phases = cfg.dataset.get("phases") or {}  # without any it is for reference models alone
    if phases and set(phases) != set(PHASES):
        raise InputError(f"`dataset.phases` must name {PHASES}, got {list(phases)}.")
    asked = epsilon(option)
    told = _training(how, private=asked is not None, typed=typed_of_dataset())
    accountant, clip_norm = told.pop("accountant", "prv"), told.pop("clip_norm", None)
    privacy = None
    if asked is not None:
        privacy = PrivacyTarget(asked, option.delta, clip_norm, accountant)
    stacked = isinstance(model, MLP) and how.get("network") is None
    return partial(
        planned,
        challenge=cfg.challenge,
        scenario=f"{cfg.dataset.name}_{option.name}",
        seed=cfg.get("seed", 0),  # which other commands do not compare
        models={phase: phases.get(phase, 0) for phase in PHASES},
        widths=tuple(model.widths) if stacked else None,
        network=None if stacked else _fresh(cfg.dataset, model),
        privacy=privacy,
        disclose_training=option.disclose_training,
        canaries=canaries(cfg),
        **told,
    )


def _training(how: DictConfig, *, private: bool, typed: Iterable[str]) -> dict[str, Any]:
    """What a recipe tells of training; with privacy what its `private` tells in its place.

    There null takes a key away; of `steps` and `epochs` one takes the other's place.
    """
    plain = {str(key): value for key, value in how.items()}
    other = {str(key): value for key, value in (how.get("private") or {}).items()}
    check_known("dataset.recipe", plain, OF_RECIPE)
    check_known("dataset.recipe.private", other, OF_TRAINING)
    told = {key: plain[key] for key in OF_TRAINING if plain.get(key) is not None}
    if private:
        hidden = set(other)
        if any(other.get(key) is not None for key in LENGTHS):
            hidden |= {*LENGTHS}
        _check_seen(hidden, other, typed)
        told = {key: value for key, value in told.items() if key not in hidden}
        told |= {key: value for key, value in other.items() if value is not None}
    for key in ("batch_size", "optimizer"):
        if key not in told:
            raise InputError(f"`dataset.recipe.{key}` must be told, got null.")
    made = ("optimizer", "schedule", "augment")
    return {key: make(value) if key in made else value for key, value in told.items()}


def _check_seen(hidden: Iterable[str], other: Mapping[str, Any], typed: Iterable[str]) -> None:
    """Refuse what was typed where `private` has something else in its place.

    Raises:
        InputError: there is such a key.
    """
    of_private = {key.split(".")[2] for key in typed if key.startswith("recipe.private.")}
    for key in sorted(typed):
        first, _, name = key.partition(".")
        part, _, rest = name.partition(".")
        alike = LENGTHS if part in LENGTHS else (part,)
        if first != "recipe" or part not in hidden or of_private.intersection(alike):
            continue
        own = part if part in other else next(one for one in LENGTHS if one in other)
        meant = ".".join(filter(None, ("dataset.recipe.private", own, rest)))
        raise InputError(
            f"`dataset.{key}` has no meaning for a scenario with an epsilon, where "
            f"`dataset.recipe.private.{own}` takes its place: set `{meant}`."
        )


def _fresh(dataset: DictConfig, model: Any) -> Fresh:
    """How a network begins: as the recipe says, or as `dataset.model` makes one."""
    option = dataset.recipe.get("network")
    if option is None and not isinstance(model, nn.Module):
        raise InputError(
            "`dataset.recipe.network` must say how a network begins where `dataset.model` is a "
            "function of a model's folder, got null."
        )
    option = dataset.model if option is None else option
    made = make(option) if OmegaConf.is_config(option) else option
    if not callable(made):
        raise InputError(
            "`dataset.recipe.network` must be a torch module, or a function that makes one, got "
            f"{made!r:.80}."
        )
    told: Any = OmegaConf.to_container(option, resolve=True)
    return Fresh(partial(make, told) if isinstance(made, nn.Module) else made, told)
