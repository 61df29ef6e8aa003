"""What a person sees: tables in the width of the terminal or in full, bars, and warnings."""

import io
import logging
from functools import cache
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

# Names are shown as they are: ``[a=0.5]`` is no markup, ``:key:`` no picture.
LITERAL: dict[str, Any] = {"markup": False, "emoji": False}
UNSEEN_WIDTH = 120  # of a pipe or a file, which have no width of their own


def show(table: Table) -> None:
    """Print a table to standard output."""
    console = Console(**LITERAL)
    if not console.is_terminal:
        console = Console(width=UNSEEN_WIDTH, **LITERAL)
    console.print(table)


def as_text(table: Table) -> str:
    """Lay out a table as plain text."""
    console = Console(width=UNSEEN_WIDTH, file=io.StringIO(), record=True, **LITERAL)
    console.print(table)
    return console.export_text()


@cache
def warn_once(message: str) -> None:
    """Warn of what is the same for all cells of a sweep."""
    logging.getLogger("mico_exp").warning("%s", message)


def progress(title: str, total: int, unit: str = "model") -> "tqdm[Any]":
    """A bar that counts models, silent where there is none or no terminal."""
    return tqdm(total=total, desc=title, unit=unit, disable=None if total else True)
