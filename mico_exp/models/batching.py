"""How many points fit into a batch on a device, as learnt by running out of its memory."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError, first_line

log = logging.getLogger(__name__)
# A batch is as large as lets its largest layer's output take so much. On a CPU that is what stays
# in the cache: within some per cent of the best for all three model families here, 640 rows of
# 25 MLPs, 56 images (benchmarks/cifar10_scale.py) and 680 tokens of a RoBERTa of base size.
CPU_LAYER_BYTES = 8 << 20
GPU_LAYER_BYTES = 1 << 30  # more makes no GPU faster
GPU_LAYERS_AT_ONCE = 16  # the free memory is to hold so many of them
OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED"),
    "unable to find an engine",  # that finds room for what it works with: cuDNN's convolutions
)


class Batches:
    """Cuts points into batches that fit.

    Args:
        device: that the batches are for.
        most: points at once; None finds it, by the memory at hand.
        cpu_bytes: that the largest layer of a batch may give out on a CPU.
    """

    def __init__(
        self, device: torch.device, most: int | None, cpu_bytes: int = CPU_LAYER_BYTES
    ) -> None:
        self.device, self.most = device, most
        self.layer_bytes = self._layer_bytes(cpu_bytes)

    def _layer_bytes(self, cpu_bytes: int) -> float:
        if self.most is not None:
            return math.inf
        if self.device.type == "cpu":
            return cpu_bytes
        free, _ = torch.cuda.mem_get_info(self.device)
        return min(GPU_LAYER_BYTES, free // GPU_LAYERS_AT_ONCE)

    def cut(self, sizes: Indices, per_size: int) -> Iterator[Indices]:
        """Cut the positions of records of these sizes, the largest first.

        A batch then has little padding, and memory runs short at once or never.

        Args:
            sizes: (P,) tokens of a sentence, or 1.
            per_size: bytes that the largest layer gives out for each of them.
        """
        order = np.argsort(-sizes, kind="stable")
        start = 0
        while start < len(order):
            count = self._count(per_size * int(sizes[order[start]]))
            yield order[start : start + count]
            start += count

    def run(self, work: Callable[[Indices], None], sizes: Indices, per_size: int) -> None:
        """Do work for all positions; where memory runs out, the batch is halved and it goes on.

        Raises:
            InputError: a single point does not fit.
        """
        left = np.arange(len(sizes))
        while len(left):
            done: list[Indices] = []
            for some in self.cut(sizes[left], per_size):
                reason = _tried(work, left[some])
                if reason is not None:
                    self.halve(per_size * int(sizes[left[some]].max()), len(some), reason)
                    break
                done.append(some)
            left = np.delete(left, np.concatenate(done)) if done else left

    def _count(self, bytes_each: int) -> int:
        if self.most is not None and math.isinf(self.layer_bytes):
            return self.most
        count = max(1, int(self.layer_bytes) // bytes_each)
        count -= count % 64 if count > 64 else 0  # whole vectors and tiles
        return count if self.most is None else min(count, self.most)

    def halve(self, bytes_each: int, tried: int, reason: str) -> None:
        """Take half of the points that were tried from now on.

        Raises:
            InputError: it was a single one.
        """
        if tried == 1:
            raise InputError(f"{self.device} has no memory for a single point: {reason}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.layer_bytes = bytes_each * (tried // 2)
        log.warning("%s is out of memory with %d points at once: halved", self.device, tried)


@contextmanager
def needs_memory(device: torch.device, what: object) -> Iterator[None]:
    """Tell in one line where a device has no memory for what no batch can be smaller than.

    Raises:
        InputError: it has none.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"{device} has no memory for {what}: {first_line(error)}") from error


def _tried(work: Callable[[Indices], None], some: Indices) -> str | None:
    """Do work; the reason if memory ran out, when all that it took is free again."""
    try:
        work(some)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return str(error).splitlines()[0]
    return None


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )
