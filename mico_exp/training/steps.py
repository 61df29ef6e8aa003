"""What training takes: how many steps on which batches, by which optimiser, and DP-SGD's numbers.

Steps are counted, not epochs: with Poisson sampling a record is in a batch at rate q = batch / n,
and an epoch is no more than a name for ⌈n / batch⌉ steps, after which a schedule may move.

Axes: M models, B batch positions, n training records of a model.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mico_exp.challenge.records import Inputs
from mico_exp.common import require
from mico_exp.common.errors import InputError
from mico_exp.models.devices import FLOAT32, PRECISIONS

EPOCH, STEP = "epoch", "step"
SEEDS = 2**63 - 1
LOOKS_EVERY = 64  # steps


@dataclass(frozen=True)
class Privacy:
    """DP-SGD's two numbers: noise multiplier σ and clipping norm C."""

    noise_multiplier: float
    clip_norm: float


@dataclass(frozen=True)
class Plan:
    """How long and how a model is trained.

    steps: that each model makes.
    batch_size: of each; with privacy the expected one, which is q · n and divides the sum.
    optimizer: makes one from a list of parameters.
    schedule: of the learning rate, from `torch.optim.lr_scheduler`, made from the optimiser.
    schedule_each: what it moves after, an ``epoch`` of ⌈n / batch⌉ steps or a ``step``.
    augment: gives other inputs for those of a batch (B, …), each record by itself.
    sample_rate: with privacy, however many records a model has; None for batch / n.
    precision: of the products of forward and backward passes; all else is in float32.
    """

    steps: int
    batch_size: int
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None
    schedule_each: str = EPOCH
    augment: Callable[[Inputs], Inputs] | None = None
    sample_rate: float | None = None
    precision: str = FLOAT32

    def __post_init__(self) -> None:
        require.whole("steps", self.steps, 1)
        require.whole("batch_size", self.batch_size, 1)
        if self.schedule_each not in (EPOCH, STEP):
            raise InputError(
                f"`schedule_each` must be {EPOCH} or {STEP}, got {self.schedule_each!r:.80}."
            )
        require.one_of("precision", self.precision, PRECISIONS)

    def rate(self, records: int) -> float:
        """Chance of a record to be in a batch of Poisson's, of a model with so many."""
        return self.batch_size / records if self.sample_rate is None else self.sample_rate

    def epoch(self, records: int) -> int:
        """Steps of an epoch, of a model with so many records."""
        if self.sample_rate is None:
            return math.ceil(records / self.batch_size)
        return math.ceil(1 / self.sample_rate)


class Optimizer:
    """A plan's optimiser and schedule over the parameters of a model, or of many stacked ones.

    Args:
        plan: that has them.
        parameters: that it moves, by their `grad`.
        records: n, which an epoch is of.
    """

    def __init__(self, plan: Plan, parameters: list[Tensor], records: int) -> None:
        self.inner = plan.optimizer(parameters)
        self.schedule = plan.schedule(self.inner) if plan.schedule else None
        self.every = plan.epoch(records) if plan.schedule_each == EPOCH else 1
        self.done = 0

    def step(self) -> None:
        """Move the parameters, and the learning rate where it is time."""
        self.inner.step()
        self.done += 1
        if self.schedule is not None and self.done % self.every == 0:
            self.schedule.step()


@dataclass(frozen=True, eq=False)
class Progress:
    """A step that was done.

    models: rows of the networks that made it. step: how many they have made. loss: () mean over
    their batches, on the device, which `float` waits for; NaN of an empty batch.
    """

    models: Sequence[int]
    step: int
    loss: Tensor


AfterStep = Callable[[Progress], None]


class Watch:
    """Watches whether the losses of models stay finite; a GPU is asked now and then only.

    Args:
        models: M.
        steps: of all training.
        device: that the losses are on.
    """

    def __init__(self, models: int, steps: int, device: torch.device) -> None:
        self.steps, self.every = steps, 1 if device.type == "cpu" else LOOKS_EVERY
        self.first = torch.zeros(models, dtype=torch.int64, device=device)
        self.going = list(range(models))

    def see(self, step: int, losses: Tensor) -> None:
        """Take the losses (M,) of a step; of an empty batch 0."""
        is_new = ~losses.isfinite() & (self.first == 0)
        self.first = torch.where(is_new, step, self.first)
        if step % self.every == 0:
            self.going = [row for row, first in enumerate(self.first.tolist()) if first == 0]

    def reasons(self) -> list[str | None]:
        """For each model None, or what is wrong with it."""
        return [
            f"its loss is not finite at step {first} of {self.steps}" if first else None
            for first in self.first.tolist()
        ]


def poisson_batches(
    models: int, records: int, rate: float, generator: torch.Generator
) -> Iterable[tuple[Tensor, Tensor]]:
    """Draw batches without end: every record of every model comes independently at `rate`.

    Yields indices (M, B) and present (M, B) float, 0 where a model drew fewer than B records.
    """
    while True:
        drawn = torch.rand(models, records, generator=generator, device=generator.device) < rate
        row, column = drawn.nonzero(as_tuple=True)
        position = drawn.cumsum(dim=1)[row, column] - 1
        widest = int(drawn.sum(dim=1).max())
        indices = torch.zeros(models, widest, dtype=torch.int64, device=generator.device)
        present = torch.zeros(models, widest, device=generator.device)
        indices[row, position] = column
        present[row, position] = 1
        yield indices, present


def shuffled_batches(
    models: int, records: int, size: int, generator: torch.Generator
) -> Iterable[tuple[Tensor, Tensor]]:
    """Draw batches without end: every epoch a new order for each model, the last batch smaller."""
    while True:
        drawn = torch.rand(models, records, generator=generator, device=generator.device)
        for indices in drawn.argsort(dim=1).split(size, dim=1):
            yield indices, torch.ones(indices.shape, device=generator.device)


class Draws:
    """All that a model draws, from one generator on the CPU.

    It gives the batches, which are the same on all devices, and seeds of two others: `noise`, on
    the device, and `seed`, for what the network draws itself (dropout) and augmentation.

    Args:
        generator: of this model alone.
        device: that the noise is drawn on: another draws other numbers of the same distribution.
    """

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self.generator = generator
        noise, self.seed = torch.randint(SEEDS, (2,), generator=generator).tolist()
        self.noise = torch.Generator(device).manual_seed(noise)

    def batches(self, plan: Plan, records: int, privacy: Privacy | None) -> Iterator[Tensor]:
        """Positions (B,) among n records, of each step in turn."""
        if privacy:
            drawn = poisson_batches(1, records, plan.rate(records), self.generator)
        else:
            drawn = shuffled_batches(1, records, plan.batch_size, self.generator)
        for _, (indices, _) in zip(range(plan.steps), drawn, strict=False):
            yield indices[0]


def privatise(
    clipped_sum: Tensor, privacy: Privacy, expected_batch_size: float, generator: torch.Generator
) -> Tensor:
    """Add Gaussian noise of standard deviation σ·C to a sum of clipped gradients, then average."""
    noise = torch.empty_like(clipped_sum).normal_(generator=generator)
    noise *= privacy.noise_multiplier * privacy.clip_norm
    return (clipped_sum + noise) / expected_batch_size
