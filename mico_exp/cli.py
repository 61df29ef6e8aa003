"""What every door shares: it makes a command a Hydra app, and its errors one line.

A command's module is imported once it runs, so that ``--help`` needs no more than Hydra.
"""

import argparse
import gc
import importlib
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from mico_exp.common.errors import InputError
from mico_exp.common.signals import end_on_signals, ended_by
from mico_exp.config.typed import (
    OPTIONS,
    check_choice,
    groups,
    name_challenge,
    quote_choices,
)

log = logging.getLogger(__name__)


class CommandError(CompactHydraException):
    """An `InputError` of a job elsewhere, in the form that Hydra prints without a traceback."""


FOLLOW_SCENARIO = ("attack", "build", "extract")  # their challenge is that of their scenario
_failed: dict[int, str] = {}  # jobs of this process, by their numbers, and why


def launch(name: str, config: str | None = None, words: str | None = None) -> None:
    """Run ``mico_exp.commands.<name>`` over ``conf/<config>.yaml`` and the arguments given.

    Args:
        name: of the command.
        config: the command's own name if None.
        words: key that a word which is no override stands for: ``list`` is ``action=list``.
    """
    try:
        sys.argv[1:] = _arranged(sys.argv[1:], words, follows_scenario=name in FOLLOW_SCENARIO)
    except InputError as error:
        sys.exit(str(error))
    app = hydra.main(version_base="1.3", config_path=str(OPTIONS), config_name=config or name)
    end_on_signals()
    gc.set_threshold(50_000, 20, 50)  # a million imported objects stay: looking less saves 0.6 s

    def task(cfg: DictConfig) -> Any:
        return _run(name, cfg)

    try:
        app(task)()
    except SystemExit:
        if (number := ended_by()) is not None:  # Ray turns the status into 1
            sys.exit(128 + number)
        _finish_sweep()  # Hydra does not, where a job has failed
        raise
    if _failed:
        if len(_failed) > 1:
            numbers = ", ".join(f"#{number}" for number in _failed)
            print(f"Jobs {numbers} have failed, for what is said above.", file=sys.stderr)
        sys.exit(1)


def _run(name: str, cfg: DictConfig) -> Any:
    """Run a command; what is wrong is said once, and a sweep goes on with its other jobs."""
    try:
        return importlib.import_module(f"mico_exp.commands.{name}").command(cfg)
    except InputError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        job = HydraConfig.get()
        if job.mode == RunMode.RUN:
            sys.exit(str(error))
        if not _is_plain_sweep():
            log.error("%s", error)
            raise CommandError(str(error)) from None
        _into_files(str(error))
        if str(error) not in _failed.values():
            print(error, file=sys.stderr)
        _failed[job.job.num] = str(error)
        return math.nan


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
    return launcher == "basic" and sweeper in ("basic", "grid")


def _arranged(
    arguments: list[str], words: str | None, *, follows_scenario: bool = False
) -> list[str]:
    """Arguments as Hydra takes them.

    argparse refuses overrides on both sides of a flag, so flags that stand alone go first.

    Raises:
        InputError: an option is chosen in a way that cannot be.
    """
    given = [
        f"{words}={text}" if words and text.isidentifier() else quote_choices(text, groups())
        for text in arguments
    ]
    for text in given:
        check_choice(text)
    folders = [OPTIONS, *_config_dirs(arguments)]
    given = [name_challenge(text, follows_scenario, folders) for text in given]
    return sorted(given, key=lambda text: not _stands_alone(text))


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
