"""The exception whose message is meant for the user, and the first line of all others."""

import errno
import re
import tempfile
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class InputError(ValueError):
    """A file, folder or choice that the user gave cannot be used.

    The message names it, says what was expected and what was found. Commands print it as one
    line and exit with status 1; every other exception is a defect and keeps its traceback.
    """


class MetricError(InputError):
    """A metric cannot be computed; another metric of the same pass perhaps can."""


class UnreachableError(InputError):
    """A server does not answer; the next call will not be answered either."""


def first_line(error: BaseException) -> str:
    """Give the first line of an error's message, or its kind where it has none.

    It may hold what is in a file, and so is shown as `printable` has it, without colours.
    """
    lines = COLOURS.sub("", str(error)).splitlines()
    return printable(lines[0] if lines else type(error).__name__, 500)


def printable(text: str, longest: int = 200) -> str:
    """Show a text of somebody else's in a line: control characters as escapes, and cut."""
    shown = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text[:longest])
    return shown if len(text) <= longest else f"{shown}…"


def of_system(error: BaseException | None) -> OSError | None:
    """Find what the operating system refused among an error and its causes, if it was that."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error


def refusal(error: OSError) -> str:
    """Say in one line what the operating system refuses, and at which path where it says so."""
    reason = error.strerror or first_line(error)
    names = [printable(str(one), 1000) for one in (error.filename, error.filename2) if one]
    if not names and error.errno in FULL:
        return f"{reason}: in {Path.cwd()}, or in {tempfile.gettempdir()} for temporary files."
    if not names:
        return f"{reason[:1].upper()}{reason[1:]}."
    return f"{' → '.join(names)} cannot be used: {reason}."
