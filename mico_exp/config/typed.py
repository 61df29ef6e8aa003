"""Arguments as they are typed: option names that Hydra would read as numbers are quoted."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from mico_exp.common.errors import InputError

CELL_GROUPS = ("metric", "formula", "exposure")  # whose options name a cell
QUOTES = "'\""
MIXED = ("experiment",)  # of which several may be chosen at once
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
    override = _parsed(argument)
    if override is None or override.key_or_group not in groups:
        return argument
    if (names := _option_names(override)) is None:
        return argument
    key = argument.partition("=")[0]
    return f"{key}={','.join(names)}"


@cache  # the grammar takes its time, and an argument is looked at twice
def _parsed(argument: str) -> Override | None:
    """Override that an argument is; None where it is a flag, or nothing that Hydra takes.

    Hydra itself explains what is wrong with it.
    """
    if argument.startswith("-") or "=" not in argument:
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def name_challenge(argument: str, follows_scenario: bool, folders: Sequence[Path]) -> str:
    """Let ``challenge=NAME`` name a challenge that has no option of its own.

    Args:
        argument: as it was typed, or any other, which comes back unchanged.
        follows_scenario: the command takes the challenge from its scenario.
        folders: of options, one after the other.
    """
    key, _, name = argument.partition("=")
    if key != "challenge":
        return argument
    if follows_scenario:
        return f"scenario.challenge={name}"
    known = any(
        (folder / "challenge" / f"{name.strip(QUOTES)}.yaml").exists() for folder in folders
    )
    return argument if known else f"challenge_name={name}"


def check_choice(argument: str) -> None:
    """Refuse an override that chooses a metric or formula in a way that Hydra takes, but no cell.

    Raises:
        InputError: it is a list, or names an option in a subfolder; says what to type instead.
    """
    override = _parsed(argument)
    if override is None or override.key_or_group not in groups() or override.is_delete():
        return
    group, value = override.key_or_group, override.value()
    if isinstance(value, list) and group not in MIXED:
        names = ",".join(map(str, value))
        raise InputError(f"{argument}: a list chooses no option; a sweep takes {group}={names} -m.")
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    if group in CELL_GROUPS and (inside := [str(one) for one in values if "/" in str(one)]):
        raise InputError(
            f"{group}={inside[0]}: an option must lie in {group}/ itself, and not in a folder "
            "there, as its name is half of a cell's."
        )


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


def check_folder(hydra: Any) -> None:
    """Refuse jobs in folders of their own, where each would make data and a database of its own.

    Args:
        hydra: Hydra's own configuration.

    Raises:
        InputError: ``hydra.job.chdir`` is set.
    """
    if hydra.job.chdir:
        raise InputError(
            "`hydra.job.chdir` must be false: data, scores and runs belong to the folder that the "
            "command is started in, got true."
        )
