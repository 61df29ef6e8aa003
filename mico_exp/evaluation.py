"""Running models at points on one device: batches that fit, and the metrics of their logits.

Axes: M models taken at once, P points, C classes.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mico_exp.datasets import Indices, Inputs, Records
from mico_exp.errors import InputError, MetricError
from mico_exp.metrics import OfScaledLogit, scaled_logit
from mico_exp.models import Architecture, Stacked, State, load_state, stack, weights_file

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Metric = Callable[[Tensor, Tensor], Tensor]
PRECISIONS = ("float32", "tf32", "bfloat16")
# A batch is as large as lets its largest layer's output take so much. On a CPU that is what stays
# in the cache: within some per cent of the best for all three model families here, 640 rows of
# 25 MLPs, 56 images (benchmarks/cifar10_scale.py) and 680 tokens of a RoBERTa of base size.
CPU_LAYER_BYTES = 8 << 20
GPU_LAYER_BYTES = 1 << 30  # more makes no GPU faster
GPU_LAYERS_AT_ONCE = 16  # the free memory is to hold so many of them
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True)
class Processor:
    """Where and how models run.

    device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for CUDA if it is here.
    precision: ``float32``, or ``tf32`` or ``bfloat16``, which are faster and coarser.
    batch_size: points at once; None finds it, by the memory at hand.
    """

    device: str = "auto"
    precision: str = "float32"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"`compute.precision` must be one of {', '.join(PRECISIONS)}, got {self.precision}."
            )
        size = self.batch_size
        if size is not None and (type(size) is not int or size < 1):
            raise InputError(f"`compute.batch_size` must be a positive whole number, got {size}.")


def open_device(name: str) -> torch.device:
    """Find a device by its name, ``cpu`` or ``cuda:1``; ``auto`` is CUDA if it is here.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("expected auto, cpu, cuda or cuda:1")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"`compute.device`: {name} cannot be used here: {reason}") from error
    return device


@dataclass(frozen=True, eq=False)
class Shard:
    """Models that run at once.

    folders: of the M models. points: (M, P) records that each is asked at. states: their weights,
    where they have been read already.
    """

    folders: tuple[Path, ...]
    points: Indices
    states: tuple[State, ...] | None = None


@dataclass(frozen=True, eq=False)
class Work:
    """What all shards of an extraction have in common; called with one, it gives its scores."""

    architecture: Architecture
    records: Records
    metrics: Mapping[str, Metric]
    processor: Processor

    def __call__(self, shard: Shard) -> dict[str, Floats]:
        """Scores (M, P) of the shard by metric."""
        evaluator = evaluator_on(self.processor)
        models = evaluator.load(self.architecture, shard.folders, shard.states)
        return evaluator.scores(models, self.records, shard.points, self.metrics)


class Evaluator:
    """Runs models on one device, and learns how large a batch may be.

    Raises:
        InputError: the device is not here.
    """

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.device = open_device(processor.device)
        self.layer_bytes: float = self._layer_bytes()

    def _layer_bytes(self) -> float:
        if self.processor.batch_size is not None:
            return math.inf
        if self.device.type == "cpu":
            return CPU_LAYER_BYTES
        free, _ = torch.cuda.mem_get_info(self.device)
        return min(GPU_LAYER_BYTES, free // GPU_LAYERS_AT_ONCE)

    def load(
        self,
        architecture: Architecture,
        folders: Sequence[Path],
        states: Sequence[State] | None = None,
    ) -> Stacked:
        """Load models as one; several only where the architecture can stack."""
        module = architecture.make(folders[0]).to(self.device)
        if self.device.type == "cpu":  # oneDNN's convolutions are 1.6 times as fast this way
            module = module.to(memory_format=torch.channels_last)
        if states is None:
            states = [load_state(weights_file(folder), module) for folder in folders]
        return stack(module, [{k: v.to(self.device) for k, v in s.items()} for s in states])

    @torch.no_grad()
    def scores(
        self, models: Stacked, records: Records, points: Indices, metrics: Mapping[str, Metric]
    ) -> dict[str, Floats]:
        """Compute metrics of M models at points (M, P); each metric's scores are (M, P) float64.

        Where memory runs out, the batch is halved and the work goes on.

        Raises:
            InputError: a single point does not fit.
            MetricError: a metric fails, gives another shape or changes the logits.
        """
        found = {name: np.empty(points.shape) for name in metrics}
        shared = len(points) == 1 or bool((points == points[0]).all())
        sizes = records.sizes(points[0])
        # Largest first: a batch has little padding, and memory runs short at once or never.
        order = np.argsort(-sizes, kind="stable")
        per_size = self._bytes_per_size(models, records, points[0, order[:2]], shared)
        start = 0
        while start < len(order):
            bytes_each = per_size * int(sizes[order[start]])
            some = order[start : start + self._count(bytes_each)]
            wanted = torch.from_numpy(points[0, some] if shared else points[:, some])
            reason = self._score(models, records, wanted, metrics, found, some)
            if reason is None:
                start += len(some)
            else:
                self._halve(bytes_each, len(some), reason)
        return found

    def _score(
        self,
        models: Stacked,
        records: Records,
        wanted: Tensor,
        metrics: Mapping[str, Metric],
        found: dict[str, Floats],
        some: Indices,
    ) -> str | None:
        """Score one batch; the reason if memory ran out, when all that the batch took is free."""
        try:
            logits, labels = self._logits(models, records, wanted)
            for name, values in compute_metrics(metrics, logits, labels):
                found[name][:, some] = values.double().cpu().numpy()
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            return str(error).splitlines()[0]
        return None

    def _bytes_per_size(
        self, models: Stacked, records: Records, probe: Indices, shared: bool
    ) -> int:
        """Bytes that the largest layer gives out for each token, image or row."""
        if not len(probe):
            return 1
        inputs = to_device(records.inputs(torch.from_numpy(probe)), self.device)
        widest = models.widest(inputs)
        if not shared and isinstance(inputs, Tensor):  # each model has inputs of its own
            widest = max(widest, inputs.numel() * inputs.element_size() * models.count)
        return -(-widest // int(len(probe) * records.sizes(probe).max()))

    def _count(self, bytes_each: int) -> int:
        """How many points go into a batch."""
        most = self.processor.batch_size
        if most is not None and math.isinf(self.layer_bytes):
            return most
        count = max(1, int(self.layer_bytes) // bytes_each)
        count -= count % 64 if count > 64 else 0  # whole vectors and tiles
        return count if most is None else min(count, most)

    def _halve(self, bytes_each: int, tried: int, reason: str) -> None:
        if tried == 1:
            raise InputError(f"{self.device} has no memory for a single point: {reason}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.layer_bytes = bytes_each * (tried // 2)
        log.warning("%s is out of memory with %d points at once: halved", self.device, tried)

    def _logits(self, models: Stacked, records: Records, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M, P, C), and labels (P,) or (M, P), of records (P,) for all or (M, P)."""
        inputs = to_device(records.inputs(wanted), self.device)
        # TF32, cuDNN's default, would move logits by about 1e-3.
        tf32 = self.processor.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        coarse = self.processor.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=coarse):
            logits = models(inputs, own=wanted.ndim > 1)
        return logits.float(), records.labels[wanted].to(self.device)


@cache
def evaluator_on(processor: Processor) -> Evaluator:
    """Open the one evaluator of this process, which remembers what batches fit."""
    return Evaluator(processor)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        message in str(error) for message in OUT_OF_MEMORY
    )


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Move model inputs to a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def compute_metrics(
    metrics: Mapping[str, Metric], logits: Tensor, labels: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Compute metrics of the same logits (M, P, C), each (M, P); what they share only once."""
    phi = None
    version = _version(logits)
    for name, metric in metrics.items():
        bare = metric.func if isinstance(metric, partial) and not metric.keywords else metric
        try:
            if isinstance(bare, OfScaledLogit):
                phi = scaled_logit(logits, labels) if phi is None else phi
                values = bare.function(phi)
            else:
                values = metric(logits, labels)
        except Exception as error:
            if isinstance(error, RuntimeError) and _out_of_memory(error):
                raise
            raise MetricError(f"metric `{name}` fails: {type(error).__name__}: {error}") from error
        if _version(logits) != version:
            raise MetricError(f"metric `{name}` changes the logits, which others need as they are.")
        if values.shape != logits.shape[:-1]:
            raise MetricError(
                f"metric `{name}` must give shape {tuple(logits.shape[:-1])} for logits "
                f"{tuple(logits.shape)}, got {tuple(values.shape)}."
            )
        yield name, values


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not tell."""
    return 0 if tensor.is_inference() else tensor._version
