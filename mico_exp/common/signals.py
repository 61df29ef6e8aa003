"""How a command ends that is told to stop: by Ctrl-C, SIGTERM, or a terminal that is closed."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STOPPING = [getattr(signal, one) for one in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, one)]
SAME = 0.5  # seconds in which a signal that comes twice was sent once: to a group and to its head
_told: list[tuple[int, float]] = []  # the signal that told this process to end, and when
_holding = 0  # blocks that are not to be cut off


def end_on_signals() -> None:
    """On the first signal say one line, close runs and exit with 128 + its number.

    A second one ends the process at once. What is ignored when the process starts, as ``nohup``
    ignores SIGHUP and a shell's ``&`` SIGINT, stays ignored.

    Python's own KeyboardInterrupt will not do: where it passes through ``exec`` of a string, as
    in the import of a dataclass, the interpreter kills itself in the end although it was caught.
    """
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def leave_to_head() -> None:
    """Let the head of a group of processes answer them, in one that it will end itself."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def end_if_told() -> None:
    """Exit if a signal came before: a library may have caught the exit that it led to."""
    if _told and not _holding:
        sys.exit(128 + _told[0][0])


@contextmanager
def whole() -> Iterator[None]:
    """Let a signal end the process after this block only, which must be short."""
    global _holding
    _holding += 1
    try:
        yield
    finally:
        _holding -= 1
    end_if_told()


def _end(number: int, frame: Any) -> None:  # noqa: ARG001
    now = time.monotonic()
    if not _told:
        _told.append((number, now))
        with suppress(OSError):  # not by `print`, which may be what was interrupted
            os.write(2, b"Interrupted; the same command goes on where it stopped.\n")
        end_if_told()
    elif now - _told[0][1] > SAME:
        os._exit(128 + number)
