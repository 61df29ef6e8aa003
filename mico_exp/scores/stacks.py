"""Which models are run at once: those of one architecture, each asked at equally many points.

Axes: P points.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mico_exp.common.arrays import Indices
from mico_exp.models.architectures import Architecture, can_stack
from mico_exp.scores.addresses import Task
from mico_exp.scores.families import GRADIENTS

MODELS_AT_ONCE = 25  # that can stack: more make it no faster, and would only cost memory


class Stack(NamedTuple):
    """Models that are run at once, with what each lacks; and how many there were at first.

    The last bit of a product may hang on how many are made at once. That of a run which goes on
    where it was killed must not, so there are always as many.
    """

    pairs: list[tuple[Task, Indices]]
    size: int

    @property
    def filled(self) -> list[tuple[Task, Indices]]:
        """As many as at first: in place of the finished ones the last again."""
        return self.pairs + self.pairs[-1:] * (self.size - len(self.pairs))


def stacks(tasks: Iterable[tuple[Task, Indices]], at_once: int) -> list[Stack]:
    """Cut tasks into runs of models that lack equally many points, and so can be stacked.

    Args:
        tasks: all of them, with what they lack; many may lack nothing.
        at_once: how many models at most. Only those of the same `at_once` of a phase are, whose
            columns have equally many points, whichever of them are finished.
    """

    def place(pair: tuple[Task, Indices]) -> tuple[str, int, int]:
        task, _ = pair
        return task.phase, task.row // at_once, len(task.points)

    found = []
    for (*_, whole), run in groupby(tasks, key=place):
        first = list(run)
        missing = [pair for pair in first if len(pair[1])]
        for lacking, some in groupby(missing, key=lambda pair: len(pair[1])):
            pairs = list(some)
            found.append(Stack(pairs, len(first) if lacking == whole else len(pairs)))
    return found


def alike(
    pairs: Iterable[tuple[Path, Indices]], at_once: int
) -> Iterator[list[tuple[Path, Indices]]]:
    """Cut models and their points into runs of at most so many, each of equally many points."""
    for _, run in groupby(pairs, key=lambda pair: len(pair[1])):
        some = list(run)
        yield from (some[start : start + at_once] for start in range(0, len(some), at_once))


def together(architecture: Architecture, folder: Path, family: str) -> int:
    """How many models like that of a folder are run at once."""
    stackable = family != GRADIENTS and can_stack(architecture.make(folder))
    return MODELS_AT_ONCE if stackable else 1
