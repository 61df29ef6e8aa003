"""Arguments as they are typed: option names that Hydra would read as numbers are quoted."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT_OPTIONS = PACKAGE.parent / "conf"
OPTIONS = CHECKOUT_OPTIONS if CHECKOUT_OPTIONS.is_dir() else PACKAGE / "conf"


@cache
def groups() -> set[str]:
    """Names of the config groups."""
    return {path.name for path in OPTIONS.iterdir() if path.is_dir()}


def quote_choices(argument: str, groups: Sequence[str] | set[str]) -> str:
    """Quote the option names in a group's override that Hydra would read as numbers.

    Hydra's grammar takes the options in ``formula=0,1,2`` for integers and ``scenario=inf`` for
    infinity, and then refuses them because an option's name must be a string. All other
    arguments come back unchanged.
    """
    if argument.startswith("-") or "=" not in argument:
        return argument
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return argument  # Hydra itself explains what is wrong with it
    if override.key_or_group not in groups or (names := _option_names(override)) is None:
        return argument
    key = argument.partition("=")[0]
    return f"{key}={','.join(names)}"


def _option_names(override: Override) -> list[str] | None:
    """Names of the options chosen, quoted where needed; None where there is nothing to mend."""
    value: Any = override.value()
    values: list[Any]
    if isinstance(value, ChoiceSweep):
        if value.shuffle or value.tags:
            return None
        values = value.list
    elif isinstance(value, RangeSweep):
        values = list(value.range())
    else:
        values = [value]
    if not any(isinstance(v, (bool, int, float)) for v in values):
        return None
    return [_quoted(v) for v in values]


def _quoted(value: Any) -> str:
    if isinstance(value, QuotedString):
        return value.with_quotes()
    return f"'{value}'" if isinstance(value, (bool, int, float)) else str(value)
