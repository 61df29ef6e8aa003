"""Running models at points on one device: batches that fit, and the metrics of their logits.

Many models can be taken at once. What looks at gradients is in `white_box`, what changes the inputs
in `perturbation`: scores are known by the code that computes them, and those of one family are not
to be computed anew when another's changes.

Axes: M models taken at once, P points, C classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mico_exp.challenge.records import Inputs, Records, inputs_at
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Indices
from mico_exp.common.errors import InputError, MetricError, first_line
from mico_exp.models.architectures import Alone, Architecture, Stacked, State, fill, stack
from mico_exp.models.batching import Batches, needs_memory, out_of_memory
from mico_exp.models.devices import PRECISIONS, allow_tf32, open_device
from mico_exp.models.states import HALF
from mico_exp.models.weights import load_state, weights_file
from mico_exp.scores.kept import KeptInputs, written
from mico_exp.scores.metrics import LogitMetric, OfSoftmax, Softmax

Answer = TypeVar("Answer")


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
        if self.batch_size is not None:
            require.whole("compute.batch_size", self.batch_size, 1, other="null")


@dataclass(frozen=True, eq=False)
class Shard:
    """Models that run at once.

    folders: of the M models. points: (M, P) records that each is asked at. states: their weights,
    where they have been read already. members: records that each was surely trained on, where a
    metric is to be told them.
    """

    folders: tuple[Path, ...]
    points: Indices
    states: tuple[State, ...] | None = None
    members: tuple[Indices, ...] | None = None


@dataclass(frozen=True, eq=False)
class Work:
    """What all shards of an extraction have in common; called with one, it gives its scores.

    metrics: all of the same family, here of logits.
    """

    architecture: Architecture
    records: Records
    metrics: Mapping[str, Any]
    processor: Processor

    def __call__(self, shard: Shard) -> dict[str, Floats]:
        """Scores (M, P) of the shard by metric.

        Raises:
            InputError: as `ModelRunner.scores`; or there is no memory for the models.
        """
        runner = runner_on(self.processor)
        with needs_memory(runner.device, shard.folders[0]):
            return self._scores(runner, shard)

    @property
    def ahead(self) -> Callable[[Shard], Shard] | None:
        """What may be done for a shard while the one before is: for a GPU models are read."""
        return self.read if runner_on(self.processor).device.type == "cuda" else None

    def read(self, shard: Shard) -> Shard:
        """The shard with its models' weights, in memory that a GPU copies from by itself.

        Raises:
            InputError: as `load_state`.
        """
        if shard.states is not None:
            return shard
        made = ((folder, self.architecture.make(folder)) for folder in shard.folders)
        states = [load_state(weights_file(folder), module) for folder, module in made]
        if runner_on(self.processor).device.type == "cuda":
            states = [{name: one.pin_memory() for name, one in state.items()} for state in states]
        return replace(shard, states=tuple(states))

    def _scores(self, runner: "ModelRunner", shard: Shard) -> dict[str, Floats]:
        models = runner.load(self.architecture, shard.folders, shard.states)
        return runner.scores(models, self.records, shard.points, self.metrics)


class ModelRunner:
    """Runs models on one device, and learns how large a batch may be.

    Raises:
        InputError: the device is not here.
    """

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.device = open_device(processor.device)
        self.batches = Batches(self.device, processor.batch_size)
        # oneDNN's convolutions are 1.6 times as fast with the channels last, and those of tensor
        # cores work so; without these a GPU's are better with the channels first.
        exact_gpu = self.device.type == "cuda" and processor.precision == "float32"
        self.layout = torch.contiguous_format if exact_gpu else torch.channels_last
        self.kept = KeptInputs(self.device, self.layout)
        self._tried: _Tried | None = None

    def load(
        self,
        architecture: Architecture,
        folders: Sequence[Path],
        states: Sequence[State] | None = None,
    ) -> Stacked:
        """Load models as one; several only where the architecture can stack."""
        module = self._make(architecture, folders[0])
        if states is None:
            states = [load_state(weights_file(folder), module) for folder in folders]
        there = partial(Tensor.to, device=self.device, non_blocking=True)
        return stack(module, [{name: there(one) for name, one in s.items()} for s in states])

    def load_one(
        self, architecture: Architecture, folder: Path, state: State | None = None
    ) -> nn.Module:
        """Load one model by itself."""
        module = self._make(architecture, folder)
        return fill(module, state or load_state(weights_file(folder), module))

    def _make(self, architecture: Architecture, folder: Path) -> nn.Module:
        module = architecture.make(folder).to(self.device)
        if any(weights.dtype in HALF for weights in module.parameters()):
            module.float()  # the inputs are float32, and so are all figures
        for weights in module.parameters():
            if weights.ndim == 4:  # others know no such layout
                weights.data = weights.data.to(memory_format=self.layout)
        return module

    @torch.no_grad()
    def scores(
        self,
        models: Stacked,
        records: Records,
        points: Indices,
        metrics: Mapping[str, LogitMetric],
    ) -> dict[str, Floats]:
        """Compute metrics of M models at points (M, P); each metric's scores are (M, P) float64.

        Where memory runs out, the batch is halved and the work goes on.

        Raises:
            InputError: a single point does not fit; or names the first that the models fail at.
            MetricError: a metric fails, gives another shape or changes the logits.
        """
        found = {name: np.empty(points.shape) for name in metrics}
        shared = len(points) == 1 or bool((points == points[0]).all())
        self.kept.turn_to(records, points[0])
        there: list[tuple[str, Indices, Tensor]] = []  # brought here once a GPU has done them all

        def score(some: Indices) -> None:
            wanted = torch.from_numpy(points[0, some] if shared else points[:, some])
            try:
                logits, labels = self.logits(models, records, wanted)
                for name, values in compute_metrics(metrics, logits, labels):
                    there.append((name, some, values.double()))
            except RuntimeError as error:
                if out_of_memory(error):
                    self.kept.give_way()
                raise

        sizes = records.sizes(points[0])
        per_size = self.bytes_per_size(models, records, points[0], sizes, shared)
        self.batches.run(score, sizes, per_size)
        for name, some, values in there:
            found[name][:, some] = values.cpu().numpy()
        return found

    def inputs(self, records: Records, wanted: Tensor) -> Inputs:
        """Inputs of records (P,), on the device."""
        return self.kept.moved(inputs_at(records, wanted))

    def bytes_per_size(
        self, models: Stacked, records: Records, points: Indices, sizes: Indices, shared: bool
    ) -> int:
        """Bytes that the largest layer gives out for each token, image or row.

        A network that serves for many models is tried at the same points once.
        """
        if isinstance(models, Alone):
            where = models.model, records, points.tobytes()
            if self._tried is None or not self._tried.is_of(*where):
                found = self._probed(models, records, points, sizes, shared)
                self._tried = _Tried(*where, found)
            return self._tried.size
        return self._probed(models, records, points, sizes, shared)

    def _probed(
        self, models: Stacked, records: Records, points: Indices, sizes: Indices, shared: bool
    ) -> int:
        together = min(self.processor.batch_size or 2, 2)
        probe = points[np.argsort(-sizes, kind="stable")[:together]]
        if not len(probe):
            return 1

        def widest(some: Tensor) -> int:
            inputs = self.kept.moved(inputs_at(records, some))
            found = models.widest(inputs)
            if not shared and isinstance(inputs, Tensor):  # each model has inputs of its own
                found = max(found, inputs.numel() * inputs.element_size() * models.count)
            return found

        found = asked("the model", widest, torch.from_numpy(probe))
        return -(-found // int(len(probe) * records.sizes(probe).max()))

    @torch.no_grad()
    def logits(self, models: Stacked, records: Records, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M, P, C), and labels (P,) or (M, P), of records (P,) for all or (M, P).

        Raises:
            InputError: names the first record that the models fail at.
        """
        labels = records.labels[wanted].to(self.device)  # a copy waits for what a GPU has begun
        return asked("the model", lambda some: self._logits(models, records, some), wanted), labels

    def _logits(self, models: Stacked, records: Records, wanted: Tensor) -> Tensor:
        inputs = self.kept.at(records, wanted)
        allow_tf32(self.processor.precision == "tf32")
        coarse = self.processor.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=coarse):
            logits = models(inputs, own=wanted.ndim > 1)
        return logits.float()


class _Tried(NamedTuple):
    """What a network gave out at some points for each token, image or row, in bytes."""

    network: nn.Module
    records: Records
    points: bytes
    size: int

    def is_of(self, network: nn.Module, records: Records, points: bytes) -> bool:
        same = self.network is network and self.records is records
        return same and self.points == points


@cache
def runner_on(processor: Processor) -> ModelRunner:
    """Open the one runner of this process, which remembers what batches fit."""
    return ModelRunner(processor)


def asked(who: str, ask: Callable[[Tensor], Answer], points: Tensor) -> Answer:
    """Ask at points (P,) or (M, P); what fails is told in one line, with the first point of it.

    Raises:
        InputError: as `ask` does at the first point that it fails at by itself.
    """
    try:
        return ask(points)
    except Exception as error:  # whatever a user's own records or network make of it
        if out_of_memory(error):
            raise
        if points.shape[-1] > 1:
            for alone in points.split(1, dim=-1):
                asked(who, ask, alone)
        if isinstance(error, InputError):
            raise
        first, last = int(points.min()), int(points.max())
        where = f"record {first}" if points.shape[-1] == 1 else f"records {first} … {last} together"
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{who} fails at {where}: {reason}") from error


def compute_metrics(
    metrics: Mapping[str, LogitMetric], logits: Tensor, labels: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Compute metrics of the same logits (M, P, C), each (M, P); what they share only once."""
    softmax = Softmax(logits, labels)
    version = written(logits)
    for name, metric in metrics.items():
        bare = metric.func if isinstance(metric, partial) and not metric.keywords else metric
        with named(name):
            shared = bare.of(softmax) if isinstance(bare, OfSoftmax) else None
            values = metric(logits, labels) if shared is None else shared
        if written(logits) != version:
            raise MetricError(f"metric `{name}` changes the logits, which others need as they are.")
        check_shape(name, values, logits)
        yield name, values


@contextmanager
def named(name: str) -> Iterator[None]:
    """Name the metric in whatever goes wrong in it, but for a lack of memory."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        raise MetricError(f"metric `{name}` fails: {type(error).__name__}: {error}") from error


def check_shape(name: str, values: Any, logits: Tensor) -> None:
    """Refuse what is no score for each point.

    Raises:
        MetricError: it is no tensor of real numbers, or of another shape than the points.
    """
    if not isinstance(values, Tensor) or values.is_complex():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise MetricError(f"metric `{name}` must give a tensor of real numbers, got {kind}.")
    if values.shape != logits.shape[:-1]:
        raise MetricError(
            f"metric `{name}` must give shape {tuple(logits.shape[:-1])} for logits "
            f"{tuple(logits.shape)}, got {tuple(values.shape)}."
        )
