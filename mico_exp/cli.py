"""What every door shares: it makes a command a Hydra app, and its errors one line.

A command's module is imported once it runs, so that ``--help`` needs no more than Hydra.
"""

import argparse
import gc
import importlib
import logging
import math
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import hydra._internal.utils as hydra_utils
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from yaml import MarkedYAMLError

from mico_exp.common import process
from mico_exp.common.errors import UnreachableError
from mico_exp.common.process import Refused
from mico_exp.common.signals import end_if_told
from mico_exp.config.typed import (
    OPTIONS,
    check_choice,
    check_folder,
    groups,
    name_challenge,
    quote_choices,
)

log = logging.getLogger(__name__)


class CommandError(CompactHydraException):
    """An `InputError` of a job elsewhere, in the form that Hydra prints without a traceback."""


# Flags that take the next argument.
TAKING = (
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--package", "-p", "--experimental-rerun"),
)
# Commands whose challenge is that of their scenario.
FOLLOW_SCENARIO = ("attack", "build", "extract", "shadow")
_failed: dict[int, str] = {}  # jobs of this process, by their numbers, and why
_unreachable: set[int] = set()  # jobs of this process whose server did not answer


def launch(
    name: str, config: str | None = None, words: Sequence[str] = (), error_status: int = 1
) -> None:
    """Run ``mico_exp.commands.<name>`` over ``conf/<config>.yaml`` and the arguments given.

    Args:
        name: of the command.
        config: the command's own name if None.
        words: keys that words which are no overrides stand for, in their order: of a command that
            has ``("action",)``, ``list`` is ``action=list``.
        error_status: exit status of every error, where `Refused` has a status of its own.
    """
    with _errors_end_with(error_status), process.command():
        sys.argv[1:] = _arranged(sys.argv[1:], words, follows_scenario=name in FOLLOW_SCENARIO)
        app = hydra.main(version_base="1.3", config_path=str(OPTIONS), config_name=config or name)
        gc.disable()  # until all is imported, which stays

        def task(cfg: DictConfig) -> Any:
            return _run(name, cfg)

        try:
            with _refusals_in_one_line(), _mode_where_one_is_set(config or name):
                app(task)()
        except SystemExit:
            end_if_told()
            _finish_sweep()  # Hydra does not, where a job has failed
            raise
        if len(_failed) > 1:
            numbers = ", ".join(f"#{number}" for number in _failed)
            print(f"Jobs {numbers} have failed, for what is said above.", file=sys.stderr)
        if _failed:
            sys.exit(1)


@contextmanager
def _errors_end_with(status: int) -> Iterator[None]:
    """Let a command end with a status of its own where it fails, whatever fails."""
    try:
        yield
    except SystemExit as ended:
        killed = isinstance(ended.code, int) and ended.code > 128
        if ended.code in (None, 0) or killed or isinstance(ended, Refused):
            raise
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        sys.exit(status)
    except Exception:
        traceback.print_exc()
        sys.exit(status)


@contextmanager
def _refusals_in_one_line() -> Iterator[None]:
    """Let what the system refuses to Hydra itself, as a folder of its own, out as it is.

    Hydra ends with a traceback of all that is raised, and has nothing to say otherwise.
    """
    report = hydra_utils.run_and_report

    def reported(func: Any) -> Any:  # named as Hydra names it
        def attempt() -> Any:
            try:
                return func()
            except Exception as error:
                if (message := _message(error)) is None or process.wants_everything():
                    raise
                sys.exit(message)

        return report(attempt)

    hydra_utils.run_and_report = reported
    try:
        yield
    finally:
        hydra_utils.run_and_report = report


@contextmanager
def _mode_where_one_is_set(config: str) -> Iterator[None]:
    """Ask the configuration for `hydra.mode` only where something can set it.

    Hydra composes all of it for that, and then once more: a quarter of a short command.
    """
    mode = Hydra.get_mode
    if not _can_set_mode(config, sys.argv[1:]):
        Hydra.get_mode = _no_mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = mode  # type: ignore[method-assign]


def _no_mode(*_: object, **__: object) -> None:
    """What Hydra finds where none is set."""


def _can_set_mode(config: str, arguments: list[str]) -> bool:
    """Tell whether a command's own file has a mode, or Hydra's keys or a user's options may."""
    flags = {text for text in arguments if text.startswith("-")} - {"-m", "--multirun"}
    own = (OPTIONS / f"{config}.yaml").read_text(encoding="utf-8")
    return bool(flags) or "\n  mode: " in own or any("hydra" in text for text in arguments)


def _run(name: str, cfg: DictConfig) -> Any:
    """Run a command; what is wrong is said once, and a sweep goes on with its other jobs."""
    end_if_told()
    try:
        check_folder(HydraConfig.get())
        command = importlib.import_module(f"mico_exp.commands.{name}").command
        _collect_garbage()
        return command(cfg)
    except Exception as error:
        message = _message(error)
        if message is None or process.wants_everything():
            raise
        job = HydraConfig.get()
        if job.mode == RunMode.RUN:
            sys.exit(message)
        if not _is_plain_sweep():
            log.error("%s", message)
            raise CommandError(message) from None
        _into_files(message)
        if message not in _failed.values():
            print(message, file=sys.stderr)
        _give_up_if_unreachable(error, job.job.num)
        _failed[job.job.num] = message
        return math.nan


def _collect_garbage() -> None:
    """Look for garbage from now on, but never among the million objects that were imported."""
    if not gc.isenabled():
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        gc.enable()


def _message(error: BaseException) -> str | None:
    """One line for what is not a defect: bad input, an option file among it, and refusals."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}: line {mark.line + 1} cannot be read as YAML: {error.problem}."
    if isinstance(error, CompactHydraException):  # Hydra says it in a line; some are an OSError too
        return None
    return process.one_line(error)


def _give_up_if_unreachable(error: Exception, number: int) -> None:
    """End a sweep whose server did not answer twice in a row; each more would cost seconds."""
    if isinstance(error, UnreachableError) and number - 1 in _unreachable:
        sys.exit(
            f"The sweep ends with job #{number}: twice in a row there was no answer. What was "
            "extracted is kept; the same command goes on once the server answers."
        )
    if isinstance(error, UnreachableError):
        _unreachable.add(number)


def _into_files(message: str) -> None:
    """Log an error in the job's own file, and not on the terminal, where it is said once."""
    record = log.makeRecord(log.name, logging.ERROR, "", 0, message, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _is_plain_sweep() -> bool:
    """Tell whether jobs run in this process, for a sweeper that takes nothing from their ends.

    Another sweeper or launcher learns of a failure by what is raised.
    """
    chosen = HydraConfig.get().runtime.choices
    launcher, sweeper = chosen["hydra/launcher"], chosen["hydra/sweeper"]
    return launcher == "basic" and sweeper in ("basic", "grid", "scenarios")


def _arranged(
    arguments: list[str], words: Sequence[str], *, follows_scenario: bool = False
) -> list[str]:
    """Arguments as Hydra takes them.

    argparse refuses overrides on both sides of a flag, so flags that stand alone go first.

    Raises:
        InputError: an option is chosen in a way that cannot be.
    """
    given = [quote_choices(text, groups()) for text in _with_keys(arguments, words)]
    for text in given:
        check_choice(text)
    folders = [OPTIONS, *_config_dirs(arguments)]
    given = [name_challenge(text, follows_scenario, folders) for text in given]
    return sorted(given, key=lambda text: not _stands_alone(text))


def _with_keys(arguments: Sequence[str], words: Sequence[str]) -> list[str]:
    """Arguments, where each of the first words that are no overrides has its key before it."""
    keys, found, before = list(words), [], ""
    for text in arguments:
        is_word = "=" not in text and text[:1] not in ("", "-", "+", "~") and before not in TAKING
        found.append(f"{keys.pop(0)}={text}" if is_word and keys else text)
        before = text
    return found


def _config_dirs(arguments: list[str]) -> list[Path]:
    """Folder of options that is given, in whatever form Hydra takes it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    found = parser.parse_known_args(arguments)[0].config_dir
    return [] if found is None else [Path(found)]


def _stands_alone(argument: str) -> bool:
    """Tell a flag that takes nothing from the next argument."""
    return argument in ("-m", "--multirun") or (argument.startswith("--") and "=" in argument)


def _finish_sweep() -> None:
    if "mico_exp.config.sweep" in sys.modules:
        sys.modules["mico_exp.config.sweep"].finish()
