"""The option files as they lie in ``conf/`` and in folders of the user's."""

from functools import cache
from typing import Any, cast

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from mico_exp.config.moved import check_places
from mico_exp.config.typed import quote_choices

NEVER_ASKED = ("challenge",)  # of an option of a scenario: it is the whole configuration's


def option_names(group: str) -> list[str]:
    """Names of all options of a config group, in their fixed order."""
    return list(_names(GlobalHydra.instance().config_loader(), group))


@cache  # it takes some 30 ms, too
def _names(loader: ConfigLoader, group: str) -> list[str]:
    return list(loader.get_group_options(group, ObjectType.CONFIG))


@cache  # it takes some 30 ms, and options do not change while a process lives
def composed(*overrides: str) -> Any:
    """Compose the main configuration with some overrides."""
    return compose("config", overrides=list(overrides))


@cache
def option_of(group: str, name: str) -> DictConfig:
    """An option of a group, as the main configuration has it where it is chosen."""
    if (alone := _alone(group, name)) is not None:
        return alone
    typed = f"{group}={name}" if name.isidentifier() else f"{group}='{name}'"
    option: DictConfig = composed(quote_choices(typed, [group]))[group]  # as a sweep's jobs have it
    return option


@cache
def said_by(group: str, name: str, key: str) -> Any:
    """What an option says under a key; None where it says nothing, or cannot be composed."""
    try:
        return option_of(group, name).get(key)
    except Exception:  # whoever makes it will say what is wrong with it
        return None


def _alone(group: str, name: str) -> DictConfig | None:
    """An option whose file says all of it; None where others have a say, or there is none.

    Composing the whole configuration for it would take ten times as long.
    """
    option = file_of(cast(ConfigLoaderImpl, GlobalHydra.instance().config_loader()), group, name)
    if option is None:
        return None
    told: Any = OmegaConf.to_container(option)
    if "${" in str({key: value for key, value in told.items() if key not in NEVER_ASKED}):
        return None
    OmegaConf.set_struct(option, True)
    return option


def file_of(loader: ConfigLoaderImpl, group: str, name: str) -> DictConfig | None:
    """What the file of an option says; None where it includes others, or there is none."""
    found = loader.repository.load_config(f"{group}/{name}")
    if found is None or found.defaults_list or found.header.get("package"):
        return None
    return found.config if isinstance(found.config, DictConfig) else None


def function_of(group: str, name: str) -> Any:
    """`_target_` and arguments of an option, as its file has them."""
    return plain(option_of(group, name).function)


def plain(option: Any) -> Any:
    """An option as plain lists and dictionaries.

    Raises:
        InputError: it names a place that something has moved from.
    """
    found = OmegaConf.to_container(option, resolve=True) if OmegaConf.is_config(option) else option
    check_places(found)
    return found
