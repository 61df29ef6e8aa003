"""The process that a command is: what holds for each, whichever library carries it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mico_exp.common import signals, streams
from mico_exp.common.errors import InputError, of_system, refusal


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
    except InputError as error:
        sys.exit(str(error))
    except Exception as error:
        signals.end_if_told()  # what broke off may have been a library's own clean-up
        if (refused := of_system(error)) is None:
            raise
        sys.exit(refusal(refused))
    signals.end_if_told()


def run(main: Callable[[], int]) -> None:
    """Run a command that is a function which gives its exit status."""
    with command():
        sys.exit(main())
