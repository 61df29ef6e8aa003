"""Standard output and error that never fail a command, whatever becomes of them."""

import codecs
import io
import logging
import sys
from typing import Any

PLAIN = {  # what a terminal without the letter shows instead
    "–": "-",
    "—": "-",
    "…": "...",
    "×": "x",
    "±": "+/-",
    "≈": "~",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "ε": "epsilon",
    "δ": "delta",
    "μ": "mu",
    "σ": "sigma",
    "²": "^2",
}
ERRORS = "mico_exp.plain"


class _Forgiving(io.FileIO):
    """A file that loses what cannot be written: its reader went away, its terminal or disk is."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes


def never_fail() -> None:
    """Make printing and logging of this process harmless; what they cannot show is replaced."""
    codecs.register_error(ERRORS, _plain)
    logging.raiseExceptions = False  # a log on a full disk says so thirty lines at a time
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:  # of a test or a notebook it is another
            setattr(sys, name, _forgiving(stream))


def _forgiving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Forgiving(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace letters that an encoding lacks, by something of the same meaning if there is one."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(one, "?") for one in lacking), error.end
