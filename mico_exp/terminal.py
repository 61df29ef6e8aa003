"""Tables for a person: in the terminal's width, or in full where nobody looks."""

import io
from typing import Any

from rich.console import Console
from rich.table import Table

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
