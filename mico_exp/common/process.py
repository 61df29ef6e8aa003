"""The process that a command is: what holds for each, whichever library carries it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mico_exp.common import signals, streams
from mico_exp.common.errors import InputError, of_system, refusal


class Refused(SystemExit):
    """What a command was asked for permission is refused: that is its answer, and no error."""

    def __init__(self) -> None:
        super().__init__(1)


@contextmanager
def command() -> Iterator[None]:
    """Run a command: it can be told to stop, printing does not fail it, its errors are a line.

    What the operating system refuses is a line too: a full disk, a folder that may not be read.
    """
    os.environ.pop("MPLBACKEND", None)  # a notebook's, which draws on no file
    streams.never_fail()
    signals.end_on_signals()
    try:
        yield
    except SystemExit:
        signals.end_if_told()  # Ray turns the status into 1
        raise
    except Exception as error:
        signals.end_if_told()  # what broke off may have been a library's own clean-up
        if (message := one_line(error)) is None or wants_everything():
            raise
        sys.exit(message)
    signals.end_if_told()


def one_line(error: BaseException) -> str | None:
    """What is said of an error that is no defect: of bad input, or what the system refuses."""
    if isinstance(error, InputError):
        return str(error)
    refused = of_system(error)
    return None if refused is None else refusal(refused)


def wants_everything() -> bool:
    """Tell whether whoever runs this wants a traceback of whatever goes wrong."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def run(main: Callable[[], int]) -> None:
    """Run a command that is a function which gives its exit status."""
    with command():
        sys.exit(main())
