"""How a command ends that is told to stop."""

import signal
import sys
from typing import Any

_signals: list[int] = []  # that ended this process


def end_on_signals() -> None:
    """On Ctrl-C or SIGTERM say one line, close runs and exit with 128 + the signal's number.

    Python's own KeyboardInterrupt will not do: where it passes through ``exec`` of a string, as
    in the import of a dataclass, the interpreter kills itself in the end although it was caught.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def ended_by() -> int | None:
    """Tell the signal that ended this process, if one did."""
    return _signals[0] if _signals else None


def _end(number: int, frame: Any) -> None:  # noqa: ARG001
    print("Interrupted; the same command goes on where it stopped.", file=sys.stderr)
    _signals.append(number)
    sys.exit(128 + number)
