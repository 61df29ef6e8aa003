"""What a number, a file or a folder that a person gives must be, said in one way.

Text is no number, nor is `True`, which Python takes for 1. Where a value is something else than
each function says, an `InputError` tells what was expected and what was found, text in quotes.
`other` names what would do as well, as ``null``, and `advice` ends the message.
"""

import math
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mico_exp.common.errors import InputError


def whole(
    name: str, value: Any, least: int, most: int | None = None, *, other: str = "", advice: str = ""
) -> None:
    """Want a whole number from `least` on, and to `most` where there is one."""
    rule = f"a whole number of at least {least}"
    if most is not None:
        rule = f"a whole number from {least} to {most}"
    if type(value) is not int or not least <= value <= (math.inf if most is None else most):
        raise _refused(name, rule, value, other, advice)


def number(name: str, value: Any) -> None:
    """Want a finite number."""
    if not _is_number(value) or not math.isfinite(value):
        raise _refused(name, "a finite number", value)


def above(name: str, value: Any, bound: float, *, finite: bool = True) -> None:
    """Want a number above `bound`; infinity counts as one where it need not be finite."""
    if not _is_number(value) or not value > bound or (finite and value == math.inf):
        rule = f"a {'finite ' if finite else ''}number above {bound:g}"
        raise _refused(name, rule, value)


def at_least(name: str, value: Any, least: float) -> None:
    """Want a finite number from `least` on."""
    if not _is_number(value) or not least <= value < math.inf:
        raise _refused(name, f"a finite number of at least {least:g}", value)


def within(
    name: str, value: Any, least: float, most: float, *, other: str = "", advice: str = ""
) -> None:
    """Want a number in [least, most]."""
    if not _is_number(value) or not least <= value <= most:
        raise _refused(name, f"a number in [{least:g}, {most:g}]", value, other, advice)


def between(name: str, value: Any, low: float, high: float) -> None:
    """Want a number in (low, high), neither of which will do."""
    if not _is_number(value) or not low < value < high:
        raise _refused(name, f"a number in ({low:g}, {high:g})", value)


def switch(name: str, value: Any) -> bool:
    """Want true or false."""
    if not isinstance(value, bool):
        raise _refused(name, "true or false", value)
    return value


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Want one of several words."""
    if value not in (listed := list(known)):
        raise _refused(name, f"one of {', '.join(listed)}", value)


def name(key: str, value: Any) -> None:
    """Want a name that serves as a folder's and an option's: letters, digits, _ and -."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", value):
        rule = "a name of letters (a to z), digits, _ and -, and no number"
        raise _refused(key, rule, value)


def file(path: Path) -> Path:
    """Want a plain file, if anything is there: a pipe would be waited for, and a device read on."""
    try:
        kind = path.stat().st_mode
    except OSError:  # whoever opens it says why
        return path
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise InputError(f"{path} must be a file, got a pipe, a socket or a device.")
    return path


def folder(name: str, value: Any) -> Path:
    """Want the path of a folder, which need not be there; ``~`` is the user's own.

    A folder named 2024 comes as a number.
    """
    return _path(name, value, "folder")


def existing_file(name: str, value: Any) -> Path:
    """Want the path of a file that is there; ``~`` is the user's own folder."""
    path = file(_path(name, value, "file"))
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'missing'}: see `{name}`.")
    return path


def existing_folder(name: str, value: Any) -> Path:
    """Want the path of a folder that is there; ``~`` is the user's own."""
    path = folder(name, value)
    if not path.is_dir():
        raise InputError(f"{path} is {'no folder' if path.exists() else 'missing'}: see `{name}`.")
    return path


def _path(name: str, value: Any, kind: str) -> Path:
    text = str(value) if type(value) in (str, int) or isinstance(value, Path) else ""
    if not text.strip() or "\0" in text:
        raise InputError(f"`{name}` must name a {kind}, got {repr(value) if value else 'nothing'}.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # of a user that is not there
        raise InputError(f"`{name}` must name a {kind}, got {value!r}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refused(name: str, rule: str, value: Any, other: str = "", advice: str = "") -> InputError:
    rule = f"{rule} or {other}" if other else rule
    return InputError(f"`{name}` must be {rule}, got {value!r:.80}{advice}.")
