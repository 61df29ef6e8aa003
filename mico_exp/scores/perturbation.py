"""Membership signals of the label alone: whether it holds where a record's inputs are perturbed.

Members lie farther from the decision boundary. Who sees nothing but predicted classes finds out
how far by asking for perturbed copies of a record, and counting. A `PerturbedMetric` says what the
copies are; its score is the share of them that the model gives the record's own label. It is
given no logits: every exposure shows as much as it sees.

Axes: M models taken at once, N records, B inputs asked for, P points, V copies of a record.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mico_exp.challenge.records import Records
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Indices
from mico_exp.common.errors import InputError, MetricError
from mico_exp.common.fingerprints import definition, digest
from mico_exp.scores.inference import ModelRunner, Shard, Work
from mico_exp.scores.metrics import correct


class PerturbedMetric(ABC):
    """A metric of predicted classes of perturbed inputs; what others there are is said elsewhere.

    That is at `metrics.LogitMetric`. A copy must be a function of the record, of its own number
    and of nothing else, so that it is the same whenever and beside whichever others it is asked.
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """Copies V of each record."""

    @abstractmethod
    def perturbed(self, inputs: Tensor, records: Tensor, copies: Tensor) -> Tensor:
        """Copies (B, …) of the inputs (B, …) float32 of records (B,), by their numbers (B,) < V.

        Raises:
            InputError: inputs like these cannot be perturbed so.
        """

    def check(self, name: str, records: Records) -> None:
        """Try it on the first record.

        Raises:
            MetricError: it cannot be perturbed.
        """
        try:
            Copies(records, self).inputs(torch.zeros(1, dtype=torch.int64))
        except InputError as error:
            raise MetricError(f"metric `{name}` {error}") from error


@dataclass(frozen=True)
class Agreement(PerturbedMetric):
    """Share of noisy copies whose predicted class is the label: distance to the boundary, by votes.

    Copies have Gaussian noise of `scales` times the standard deviation of the record's own inputs,
    `copies` of each; images may be moved by up to `shift` pixels either way, edges repeated, and
    flipped left to right, one copy in two. What noise that is follows from `seed` and the record's
    number alone (Choquette-Choo et al. 2021, arXiv 2007.14321, §4).
    """

    scales: Sequence[float] = (0.25, 0.5, 1.0)
    copies: int = 8
    shift: int = 0
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.scales, (str, float, int)) or not len(self.scales):
            raise InputError(f"`scales` must be a list of numbers, got {self.scales!r}.")
        for scale in self.scales:
            require.at_least("scales", scale, 0)
        object.__setattr__(self, "scales", tuple(map(float, self.scales)))
        require.whole("copies", self.copies, 1)
        require.whole("shift", self.shift, 0)
        require.whole("seed", self.seed, 0)
        if not isinstance(self.flip, bool):
            raise InputError(f"`flip` must be true or false, got {self.flip!r}.")

    @property
    def count(self) -> int:
        """Copies of all scales."""
        return len(self.scales) * self.copies

    def perturbed(self, inputs: Tensor, records: Tensor, copies: Tensor) -> Tensor:
        """Noisy copies (B, …)."""
        if (self.shift or self.flip) and inputs.ndim != 4:
            raise InputError(
                "moves and flips images (P, C, H, W) alone (`shift`, `flip`), got inputs of "
                f"{inputs.ndim - 1} axes."
            )
        unique, place = records.unique(return_inverse=True)
        drawn = [self._drawn(int(record), inputs.shape[1:]) for record in unique]
        noise = torch.from_numpy(np.stack([one for one, _ in drawn]))[place, copies]
        moves = torch.from_numpy(np.stack([one for _, one in drawn]))[place, copies]
        if self.shift or self.flip:
            inputs = _moved(inputs, moves)
        spread = inputs.flatten(1).std(dim=1, correction=0)
        scale = torch.tensor(self.scales)[copies // self.copies] * spread
        return inputs + noise * scale.view(-1, *[1] * (inputs.ndim - 1))

    def _drawn(
        self, record: int, shape: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Noise (V, …) of one record, and moves of each copy: down, right, flipped (V, 3)."""
        random = np.random.default_rng((self.seed, record))
        noise = random.standard_normal((self.count, *shape), dtype=np.float32)
        moves = random.integers(-self.shift, self.shift, (self.count, 2), endpoint=True)
        flips = random.integers(0, 1, (self.count, 1), endpoint=True) * self.flip
        return noise, np.concatenate([moves, flips], axis=1)


def _moved(images: Tensor, moves: Tensor) -> Tensor:
    """Images (B, C, H, W) moved down and right, with edges repeated, then flipped (B, 3)."""
    channels, height, width = images.shape[1:]
    down, right, flip = moves.unbind(dim=1)
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)
    columns = torch.where(flip[:, None] == 1, columns.flip(dims=[1]), columns)
    every = torch.arange(len(images))[:, None, None, None]
    of_channel = torch.arange(channels)[None, :, None, None]
    return images[every, of_channel, rows[:, None, :, None], columns[:, None, None, :]]


class Copies:
    """The perturbed copies of all records as records: copy v of record i is number i·V + v."""

    def __init__(self, records: Records, metric: PerturbedMetric) -> None:
        self.records, self.metric = records, metric
        self.labels = records.labels.repeat_interleave(metric.count)

    @property
    def fingerprint(self) -> str:
        """Hash of the records and of what is done with them."""
        return digest(self.records.fingerprint, definition(self.metric))

    def inputs(self, indices: Tensor) -> Tensor:
        """Perturbed inputs (B, …).

        Raises:
            InputError: the records' inputs are no numbers.
        """
        records, copies = indices // self.metric.count, indices % self.metric.count
        given = self.records.inputs(records)
        if not isinstance(given, Tensor) or not given.is_floating_point():
            what = "whole numbers" if isinstance(given, Tensor) else ", ".join(given)
            raise InputError(f"perturbs inputs that are float32, and these are {what}.")
        return self.metric.perturbed(given, records, copies)

    def sizes(self, indices: Indices) -> Indices:
        """Those of the records themselves."""
        return self.records.sizes(indices // self.metric.count)

    def of(self, points: Indices) -> Indices:
        """Numbers (M, P·V) of all copies of points (M, P)."""
        count = self.metric.count
        return (points[..., None] * count + np.arange(count)).reshape(len(points), -1)


class PerturbedWork(Work):
    """What all shards have in common whose metrics perturb inputs."""

    def _scores(self, runner: ModelRunner, shard: Shard) -> dict[str, Floats]:
        models = runner.load(self.architecture, shard.folders, shard.states)
        found = {}
        for name, metric in self.metrics.items():
            copies = Copies(self.records, metric)
            votes = runner.scores(models, copies, copies.of(shard.points), {name: correct})[name]
            found[name] = votes.reshape(*shard.points.shape, metric.count).mean(axis=-1)
        return found
