"""Who does pieces of work with models: this process and others on its cores; `ray_workers` others.

A *piece* is whatever a work is called with: some models to be asked, or to be trained.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol, TypeVar

import torch

from mico_exp.common import cores, pool
from mico_exp.models.devices import FLOAT32, check_precision, open_device

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Hear = Callable[[Any], Any]


class Workers(Protocol):
    """Does pieces of work, here or elsewhere."""

    def check(self, device: str, precision: str = FLOAT32) -> None:
        """Find out, before any long work, whether work can be done on a device, named as usual.

        Args:
            device: its name.
            precision: of the products there, one of `devices.PRECISIONS`.

        Raises:
            InputError: it cannot, and why.
        """

    def describe(self, device: str) -> str:
        """Name where the work is done, for a progress bar."""

    def map(
        self,
        work: Callable[..., Result],
        pieces: Iterable[Piece],
        hear: Hear | None = None,
        processes: int = 1,
    ) -> Generator[tuple[int, Result], None, None]:
        """Give the position of each piece and its result as they are finished, in any order.

        Whoever stops listening closes it.

        Args:
            work: what is done; called with a piece, and where somebody hears with a function too,
                by which it tells of its progress in what can be added up, and taken back.
            pieces: in the order in which they are begun.
            hear: called here with what is told.
            processes: of this machine that may share the work, where it is done here.
        """


class Local:
    """One piece after another in this process, or in several, a core each."""

    def check(self, device: str, precision: str = FLOAT32) -> None:
        """Open the device; a processor's threads are as many as a container gives cores."""
        kind = open_device(device).type
        check_precision(precision, kind)
        if kind == "cpu" and cores.usable() < torch.get_num_threads():
            torch.set_num_threads(cores.usable())

    def describe(self, device: str) -> str:
        """Name the device, and a processor's threads."""
        found = open_device(device)
        return f"cpu, threads: {torch.get_num_threads()}" if found.type == "cpu" else str(found)

    def map(
        self,
        work: Callable[..., Result],
        pieces: Iterable[Piece],
        hear: Hear | None = None,
        processes: int = 1,
    ) -> Generator[tuple[int, Result], None, None]:
        """Do the pieces in turn; a work with a function `ahead` prepares the next meanwhile."""
        if hear is not None:
            with closing(pool.spread(work, list(pieces), processes, hear)) as done:
                yield from done
            return
        ahead = getattr(work, "ahead", None)
        for i, piece in enumerate(pieces if ahead is None else one_ahead(ahead, pieces)):
            yield i, work(piece)


def one_ahead(prepare: Callable[[Piece], Result], items: Iterable[Piece]) -> Iterator[Result]:
    """Prepare items in turn, in a thread: each while the one before it is made use of."""
    coming: Future[Result] | None = None
    with ThreadPoolExecutor(max_workers=1) as threads:
        for item in items:
            ready, coming = coming, threads.submit(prepare, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
