"""What every command shares: where the options are, the arguments as typed, errors as one line."""

import gc
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from mico_exp.errors import InputError

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parent
CHECKOUT_OPTIONS = PACKAGE.parent / "conf"
OPTIONS = CHECKOUT_OPTIONS if CHECKOUT_OPTIONS.is_dir() else PACKAGE / "conf"


class CommandError(CompactHydraException):
    """An `InputError` in the form that Hydra prints as one line."""


def launch(command: Callable[[DictConfig], Any], config_name: str = "config") -> None:
    """Run a command as a Hydra app over ``conf/<config_name>.yaml`` and the arguments given."""
    arguments = [quote_choices(argument, groups()) for argument in sys.argv[1:]]
    # argparse refuses overrides on both sides of a flag, so flags that stand alone go first.
    sys.argv[1:] = sorted(arguments, key=lambda argument: not _stands_alone(argument))
    app = hydra.main(version_base="1.3", config_path=str(OPTIONS), config_name=config_name)
    end_on_signals()
    gc.set_threshold(50_000, 20, 50)  # a million imported objects stay: looking less saves 0.6 s
    try:
        app(_one_line_errors(command))()
    except SystemExit:
        if _signals:  # Ray turns the status into 1
            sys.exit(128 + _signals[0])
        _finish_sweep()  # Hydra does not, where a job has failed
        raise


def _finish_sweep() -> None:
    if "mico_exp.sweep" in sys.modules:
        sys.modules["mico_exp.sweep"].finish()


_signals: list[int] = []  # that ended this process


def end_on_signals() -> None:
    """On Ctrl-C or SIGTERM say one line, close runs and exit with 128 + the signal's number.

    Python's own KeyboardInterrupt will not do: where it passes through ``exec`` of a string, as
    in the import of a dataclass, the interpreter kills itself in the end although it was caught.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, frame: Any) -> None:  # noqa: ARG001
    print("Interrupted; the same command goes on where it stopped.", file=sys.stderr)
    _signals.append(number)
    sys.exit(128 + number)


def _stands_alone(argument: str) -> bool:
    """Tell a flag that takes nothing from the next argument."""
    return argument in ("-m", "--multirun") or (argument.startswith("--") and "=" in argument)


def _one_line_errors(command: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    @wraps(command)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return command(cfg)
        except InputError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                log.error(
                    "%s", error
                )  # Hydra goes on with the sweep, and reports one error at its end
            raise CommandError(str(error)) from None

    return wrapped


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
