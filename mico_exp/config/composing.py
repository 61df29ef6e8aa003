"""The configurations of a sweep's jobs, which differ in a few options.

Hydra composes every job anew, from some twenty files: as long as a cell's formula and its figures
take together. Where a job differs from one before in its metric, formula or scenario alone, and
nothing but these options' own files says what they are, it is the same but for them.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import ConfigDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, flag_override

from mico_exp.config.cells import CELL, is_of
from mico_exp.config.options import file_of


class SweepLoader(ConfigLoader):
    """Hydra's own loader, but for jobs that are one before with other options.

    Args:
        loader: Hydra's own.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = cast(ConfigLoaderImpl, loader)
        self._first: dict[Any, DictConfig] = {}  # one job of each kind, as Hydra composed it

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Compose a job, whose overrides these are beside those of the whole sweep."""
        chosen = {text.partition("=")[0]: text for text in sweep_overrides if _chooses(text)}
        kind = tuple(text.partition("=")[0] if _chooses(text) else text for text in sweep_overrides)
        told = *master_config.hydra.overrides.hydra, master_config.hydra.job.config_name
        first = self._first.get((kind, told))
        if first is not None and (found := self._alike(first, chosen)) is not None:
            OmegaConf.copy_cache(from_config=master_config, to_config=found)
            return found
        found = self._loader.load_sweep_config(master_config, sweep_overrides)
        if first is None and self._is_plain(found, [*told[:-1], *kind]):
            self._first[kind, told] = copy.deepcopy(found)
        return found

    def _alike(self, first: DictConfig, chosen: Mapping[str, str]) -> DictConfig | None:
        """Give a job's configuration with other options; None where it needs Hydra."""
        found = copy.deepcopy(first)
        before = {text.partition("=")[0]: text for text in first.hydra.overrides.task}
        with flag_override(found, ["struct", "readonly"], [False, False]):
            for group, text in chosen.items():
                if text == before[group]:
                    continue
                name = _name(text)
                option = None if name is None else file_of(self._loader, group, name)
                if option is None:
                    return None
                found[group] = option
                found.hydra.runtime.choices[group] = name
                task = found.hydra.overrides.task
                task[list(task).index(before[group])] = text
            _name_folder(found)
        return found

    def _is_plain(self, composed: DictConfig, overrides: Sequence[str]) -> bool:
        """Tell whether nothing hangs on a cell's options, nor has a say in them, but their files.

        Args:
            composed: a job's configuration.
            overrides: of it, but for those that choose its cell.
        """
        if composed.hydra.job.env_copy:
            return False
        if any("=" in text and is_of(CELL, text) for text in overrides):
            return False
        choices = composed.hydra.runtime.choices
        for group in CELL:
            option = file_of(self._loader, group, str(choices[group]))
            if option is None or option != composed.get(group):
                return False
        used = [composed.hydra.job.config_name]
        others = [(group, name) for group, name in choices.items() if group not in CELL]
        used += [f"{group}/{name}" for group, name in others if name is not None]
        return not any(self._has_a_say(path) for path in used)

    def _has_a_say(self, path: str) -> bool:
        """Tell whether a configuration, or what it includes, may say what a cell's options are."""
        found = self._loader.repository.load_config(path)
        if found is None:  # `hydra.searchpath` has it, or it is several
            return True
        defaults = found.defaults_list or []
        places = [found.header.get("package"), *(default.package for default in defaults)]
        keys = found.config if isinstance(found.config, DictConfig) else ()
        named = {*keys, *(part for place in places if place for part in place.split("."))}
        if named & set(CELL) or any("${" in str(default) for default in defaults):
            return True
        group = path.rpartition("/")[0]
        included = [d for d in defaults if isinstance(d, ConfigDefault) and not d.is_self()]
        return any(self._has_a_say(_path(group, str(one.path))) for one in included)

    # The rest is Hydra's.

    def load_configuration(self, *arguments: Any, **options: Any) -> DictConfig:
        """Compose a configuration."""
        return self._loader.load_configuration(*arguments, **options)

    def get_search_path(self) -> Any:
        """Where configurations are looked for."""
        return self._loader.get_search_path()

    def get_sources(self) -> Any:
        """What they are looked for in."""
        return self._loader.get_sources()

    def list_groups(self, parent_name: str) -> list[str]:
        """Names of config groups."""
        return self._loader.list_groups(parent_name)

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Names of a group's options."""
        return self._loader.get_group_options(group_name, results_filter, config_name, overrides)

    def compute_defaults_list(self, *arguments: Any, **options: Any) -> Any:
        """List what a configuration is composed of."""
        return self._loader.compute_defaults_list(*arguments, **options)


def _path(group: str, included: str) -> str:
    """Path of what an option of a group includes: beside it, or from the root."""
    return included.lstrip("/") if included.startswith("/") or not group else f"{group}/{included}"


def _chooses(override: str) -> bool:
    """Tell an override that chooses a cell's option: ``metric=loss``."""
    return override.partition("=")[0] in CELL


def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _name(override: str) -> str | None:
    """Name of the option that an override chooses; None where it is not a single one."""
    value = _parsed(override).value()
    return value if isinstance(value, str) else None


def _name_folder(config: DictConfig) -> None:
    """Put a job's overrides together as a folder may be named after them."""
    how = config.hydra.job.config.override_dirname
    config.hydra.job.override_dirname = get_overrides_dirname(
        [_parsed(text) for text in config.hydra.overrides.task],
        exclude_keys=how.exclude_keys,
        item_sep=how.item_sep,
        kv_sep=how.kv_sep,
    )
