"""What happens once for a whole sweep: its jobs are told what they have in common."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from mico_exp.choices import option_names


class Sweep(Callback):
    """Hydra calls this before a sweep's first job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Tell every job the sweep's metrics, which its first pass through a model computes."""
        if config.metrics is None and (names := swept("metric", config)):
            with open_dict(config):
                config.hydra.overrides.hydra.append(f"metrics=[{','.join(names)}]")


def swept(group: str, config: DictConfig) -> list[str]:
    """Names of the options that a sweep takes from a group; empty where it names none.

    The sweep's own parameters come first, so what is typed on the command line wins.
    """
    params = config.hydra.sweeper.params or {}
    texts = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    names: list[str] = []
    for override in OverridesParser.create().parse_overrides(texts):
        if override.key_or_group == group:
            value: Any = override.value()
            if isinstance(value, Glob):
                names = value.filter(option_names(group))
            else:
                values = value.list if isinstance(value, ChoiceSweep) else [value]
                names = [v.text if isinstance(v, QuotedString) else str(v) for v in values]
    return names
