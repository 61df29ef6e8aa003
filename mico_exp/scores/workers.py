"""Who does the shards of an extraction: this process; `ray_workers` has others do them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

from mico_exp.common import cores
from mico_exp.scores.inference import Processor, Shard, Work, runner_on

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers(Protocol):
    """Does shards of work, here or elsewhere."""

    def check(self, processor: Processor) -> None:
        """Find out, before any long work, whether work can be done.

        Raises:
            InputError: it cannot, and why.
        """

    def describe(self, processor: Processor) -> str:
        """Name where the work is done, for a progress bar."""

    def map(
        self, work: Callable[[Shard], Result], shards: Iterable[Shard]
    ) -> Iterator[tuple[int, Result]]:
        """Give the position of each shard and its result as they are finished, in any order."""


class Local:
    """One shard after another in this process."""

    def check(self, processor: Processor) -> None:
        """Open the device; a processor's threads are as many as a container gives cores."""
        if runner_on(processor).device.type == "cpu" and cores.usable() < torch.get_num_threads():
            torch.set_num_threads(cores.usable())

    def describe(self, processor: Processor) -> str:
        """Name the device, and a processor's threads."""
        device = runner_on(processor).device
        return f"cpu, threads: {torch.get_num_threads()}" if device.type == "cpu" else str(device)

    def map(
        self, work: Callable[[Shard], Result], shards: Iterable[Shard]
    ) -> Iterator[tuple[int, Result]]:
        """Do the shards in turn; while a GPU does one, the models of the next are read."""
        if isinstance(work, Work) and runner_on(work.processor).device.type == "cuda":
            shards = one_ahead(work.read, shards)
        for i, shard in enumerate(shards):
            yield i, work(shard)


def one_ahead(prepare: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Prepare items in turn, in a thread: each while the one before it is made use of."""
    coming: Future[Result] | None = None
    with ThreadPoolExecutor(max_workers=1) as pool:
        for item in items:
            ready, coming = coming, pool.submit(prepare, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
