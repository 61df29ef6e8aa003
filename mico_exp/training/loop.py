"""Training of any network, with and without differential privacy.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1): a step draws each record at rate
q = batch / n, sums the gradients of those that came, each clipped to norm C over all parameters
that train, adds Gaussian noise of standard deviation σ·C and divides by the *expected* batch
size. No record that was drawn is left out; a step that drew none adds noise alone.

A model's numbers hang on its own generator, which gives batches on the CPU and seeds for what is
drawn on the device: noise, dropout, augmentation.

Axes: M models, n training records of a model, B records of a batch.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mico_exp.challenge.records import Inputs, Records, inputs_at
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError
from mico_exp.models.devices import allow_tf32
from mico_exp.training.per_sample import added, loss_of, way_for
from mico_exp.training.steps import (
    Optimizer,
    Plan,
    Privacy,
    poisson_batches,
    privatise,
    shuffled_batches,
)

log = logging.getLogger(__name__)
SEEDS = 2**63 - 1
PHYSICAL = 64  # records at once under privacy


@dataclass(frozen=True, eq=False)
class Progress:
    """A step that was done.

    models: rows of the networks that made it. step: their number of steps. loss: () mean of the
    batch on the device, which `float` waits for; NaN of an empty batch.
    """

    models: Sequence[int]
    step: int
    loss: Tensor


AfterStep = Callable[[Progress], None]


def train_networks(
    networks: Sequence[nn.Module],
    records: Records,
    own: Sequence[Indices],
    plan: Plan,
    generators: Sequence[torch.Generator],
    privacy: Privacy | None,
    device: torch.device,
    after_step: AfterStep = lambda _: None,
) -> list[str | None]:
    """Train networks in place, and leave them in evaluation mode.

    Args:
        networks: M of one architecture with fresh weights. What of their parameters asks for
            gradients is trained, and nothing else.
        records: the data set.
        own: of each network the records (n,) that it trains on.
        plan: steps, batch size, optimiser, schedule.
        generators: one for each network, on the CPU.
        privacy: train with DP-SGD; on the batch's mean without.
        device: that it is done on, and that the networks are left on.
        after_step: called after every step.

    Returns:
        for each network None, or why it was stopped: the others went on.

    Raises:
        InputError: the batch is larger than the training set, or the network cannot be trained,
            with the reason.
    """
    allow_tf32(False)  # whatever ran before
    for indices in own:
        if plan.batch_size > len(indices):
            raise InputError(
                f"`batch_size` must be at most the {len(indices)} records that a model trains on, "
                f"got {plan.batch_size}."
            )
    stopped: list[str | None] = []
    for row, network in enumerate(networks):
        feed = _Feed(records, own[row], device)
        model = _Model(row, network.to(device), feed, plan, privacy)
        stopped.append(model.train(generators[row], after_step))
    return stopped


class _Feed:
    """A model's own records as batches on a device."""

    def __init__(self, records: Records, own: Indices, device: torch.device) -> None:
        self.records, self.own, self.device = records, torch.as_tensor(own), device

    def __len__(self) -> int:
        return len(self.own)

    def at(self, positions: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and labels at positions (B,) among the model's own records."""
        wanted = self.own[positions]
        labels = self.records.labels[wanted].to(self.device, non_blocking=True)
        inputs = inputs_at(self.records, wanted)
        if isinstance(inputs, Tensor):
            return inputs.to(self.device, non_blocking=True), labels
        return {k: v.to(self.device, non_blocking=True) for k, v in inputs.items()}, labels


class _Model:
    """One network in training."""

    def __init__(
        self, row: int, network: nn.Module, feed: _Feed, plan: Plan, privacy: Privacy | None
    ) -> None:
        self.row, self.network, self.feed = row, network, feed
        self.plan, self.privacy = plan, privacy
        self.parameters = trained(network)
        self.way = way_for(network, self.parameters) if privacy else None
        self.optimizer = Optimizer(plan, list(self.parameters.values()), len(feed))

    def train(self, generator: torch.Generator, after_step: AfterStep) -> str | None:
        """Make all steps; the reason if it was stopped before."""
        noise, seed = self._sources(generator)
        self.network.train()
        with _seeded(seed, self.feed.device):
            for step, positions in enumerate(self._batches(generator), start=1):
                loss = self._step(positions, noise)
                self._same_parameters()
                if len(positions) and not bool(loss.isfinite()):
                    self.network.eval()
                    return f"its loss is {float(loss)} at step {step} of {self.plan.steps}"
                after_step(Progress([self.row], step, loss))
        self.network.eval()
        return None

    def _sources(self, generator: torch.Generator) -> tuple[torch.Generator, int]:
        """A generator of noise on the device, and a seed for what networks draw themselves."""
        drawn = torch.randint(SEEDS, (2,), generator=generator).tolist()
        return torch.Generator(self.feed.device).manual_seed(drawn[0]), drawn[1]

    def _batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Positions (B,) of the records of each step in turn."""
        size, records = self.plan.batch_size, len(self.feed)
        if self.privacy:
            drawn = poisson_batches(1, records, size / records, generator)
        else:
            drawn = shuffled_batches(1, records, size, generator)
        for _, (indices, _) in zip(range(self.plan.steps), drawn, strict=False):
            yield indices[0]

    def _step(self, positions: Tensor, noise: torch.Generator) -> Tensor:
        """Make a step; the mean loss of its batch."""
        if self.privacy:
            loss, sums = self._clipped(positions, self.privacy.clip_norm)
            for parameter, one in zip(self.parameters.values(), sums, strict=True):
                parameter.grad = privatise(one, self.privacy, self.plan.batch_size, noise)
        else:
            inputs, labels = self._batch(positions)
            loss = loss_of(self.network, inputs, labels)
            self.optimizer.inner.zero_grad()
            loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _batch(self, positions: Tensor) -> tuple[Inputs, Tensor]:
        inputs, labels = self.feed.at(positions)
        return self.plan.augment(inputs) if self.plan.augment else inputs, labels

    def _clipped(self, positions: Tensor, clip_norm: float) -> tuple[Tensor, list[Tensor]]:
        """Mean loss and clipped sums of a batch, piece by piece; of an empty one NaN and zeros."""
        assert self.way is not None
        sums, losses = [torch.zeros_like(one) for one in self.parameters.values()], []
        for some in positions.split(PHYSICAL) if len(positions) else ():
            found = self.way(*self._batch(some), clip_norm)
            sums = added(sums, found.sums)
            losses.append(found.losses)
        return torch.cat(losses or [sums[0].new_zeros(0)]).mean(), sums

    def _same_parameters(self) -> None:
        if trained(self.network).keys() != self.parameters.keys():
            raise InputError(
                f"Parameters of {type(self.network).__name__} were frozen or thawed while it "
                "trained: what trains must be settled before."
            )


def trained(network: nn.Module) -> dict[str, Tensor]:
    """Parameters of a network that train: those that ask for gradients, by name."""
    return {name: one for name, one in network.named_parameters() if one.requires_grad}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Give what draws from PyTorch's own generators a seed, and leave these as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
