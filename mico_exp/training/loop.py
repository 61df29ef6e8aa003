"""Training of any network, with and without differential privacy.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1): a step draws each record at rate
q = batch / n, sums the gradients of those that came, each clipped to norm C over all parameters
that train, adds Gaussian noise of standard deviation σ·C and divides by the *expected* batch
size. No record that was drawn is left out; a step that drew none adds noise alone.

Where memory is short a batch is gone through in pieces, which changes nothing but the last bits.

Axes: M models, n training records of a model, B records of a batch.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mico_exp.challenge.records import Inputs, Records, inputs_at
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError, first_line
from mico_exp.models.architectures import MLP, Alone
from mico_exp.models.batching import Batches, needs_memory, out_of_memory
from mico_exp.models.devices import allow_tf32, check_precision
from mico_exp.training import stacked
from mico_exp.training.graphed import Graphed, graphed
from mico_exp.training.per_sample import Make, check_padding, coarse, loss_of, study
from mico_exp.training.steps import (
    AfterStep,
    Draws,
    Optimizer,
    Plan,
    Privacy,
    Progress,
    Watch,
    privatise,
)

log = logging.getLogger(__name__)
FEW = 3  # records that a network is tried at before its first step
GPU_LAYER_BYTES = 256 << 20  # of a layer in a piece of a batch: those of all layers are kept
HELD = 4  # a device holds inputs that take so small a part of its free memory


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

    MLPs that train on equally many records, or at one sample rate, are trained as one, all others
    in turn.

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
        InputError: the batch is larger than the training set, the device has too little memory,
            or the network cannot be trained, with the reason.
    """
    allow_tf32(False)  # whatever ran before
    _check(networks, own, plan, device)
    shelf = _Shelf(records, own, device)
    draws = [Draws(generator, device) for generator in generators]
    for network in networks:
        network.to(device).train()
    try:
        if _can_stack(networks, own, plan):
            return _train_stacked(networks, shelf, plan, draws, privacy, after_step)
        return _train_in_turn(networks, shelf, plan, draws, privacy, after_step)
    finally:
        for network in networks:
            network.eval()


def _check(
    networks: Sequence[nn.Module], own: Sequence[Indices], plan: Plan, device: torch.device
) -> None:
    check_precision(plan.precision, device.type)
    least = min(map(len, own))
    if plan.batch_size > least:
        raise InputError(
            f"`batch_size` must be at most the {least} records that a model trains on, "
            f"got {plan.batch_size}."
        )
    for network in networks:
        if not trained(network):
            raise InputError(f"{type(network).__name__} has no parameters that ask for gradients.")


def trained(network: nn.Module) -> dict[str, Tensor]:
    """Parameters of a network that train: those that ask for gradients, by name."""
    return {name: one for name, one in network.named_parameters() if one.requires_grad}


class _Shelf:
    """Records that models train on, as batches on a device.

    A GPU holds them all where there is room, for to prepare and copy a batch takes longer than a
    small network's step.
    """

    def __init__(self, records: Records, own: Sequence[Indices], device: torch.device) -> None:
        self.records, self.device = records, device
        self.own = [torch.as_tensor(np.asarray(one), dtype=torch.int64) for one in own]
        self.held = self._held() if device.type == "cuda" else None

    def _held(self) -> tuple[Tensor, Tensor] | None:
        """Inputs and labels of all records, if the inputs are a tensor for which there is room."""
        count = len(self.records.labels)
        one = self.records.inputs(torch.zeros(1, dtype=torch.int64))
        room = torch.cuda.mem_get_info(self.device)[0] // HELD
        if not isinstance(one, Tensor) or one.nbytes * count > room:
            return None
        parts = torch.arange(count).split(4096)
        inputs = [self._moved(inputs_at(self.records, some)) for some in parts]
        return torch.cat(inputs), self.records.labels.to(self.device)

    def at(self, wanted: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and labels of the records `wanted`, whatever axes these have."""
        if self.held is not None:
            there = wanted.to(self.device, non_blocking=True)
            return self.held[0][there], self.held[1][there]
        labels, inputs = self.records.labels[wanted], inputs_at(self.records, wanted)
        return self._moved(inputs), self._moved(labels)

    def _moved(self, inputs: Any) -> Any:
        if isinstance(inputs, Tensor):
            return inputs.to(self.device, non_blocking=True)
        return {name: self._moved(one) for name, one in inputs.items()}


# ---------------------------------------------------------------- many as one


def _can_stack(networks: Sequence[nn.Module], own: Sequence[Indices], plan: Plan) -> bool:
    are_mlps = all(
        type(one) is MLP and len(trained(one)) == 2 * len(one.widths) - 2 for one in networks
    )
    alike = len({*map(len, own)}) == 1 or plan.sample_rate is not None
    return are_mlps and alike and plan.augment is None


def _train_stacked(
    networks: Sequence[nn.Module],
    shelf: _Shelf,
    plan: Plan,
    draws: Sequence[Draws],
    privacy: Privacy | None,
    after_step: AfterStep,
) -> list[str | None]:
    mlp = networks[0]
    assert isinstance(mlp, MLP)
    mlps = mlp.stack([one.state_dict() for one in networks])
    own, counts = pad_sequence(shelf.own, batch_first=True), [len(one) for one in shelf.own]

    def batch_at(positions: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = shelf.at(own.gather(1, positions))
        assert isinstance(inputs, Tensor)
        return inputs, labels

    with needs_memory(shelf.device, f"{len(networks)} models at once"):
        done = stacked.train_each(mlps, batch_at, counts, plan, draws, privacy, after_step)
    for network, state in zip(networks, mlps.states(), strict=True):
        network.load_state_dict(state)
    return done


# ---------------------------------------------------------------- one after another


def _train_in_turn(
    networks: Sequence[nn.Module],
    shelf: _Shelf,
    plan: Plan,
    draws: Sequence[Draws],
    privacy: Privacy | None,
    after_step: AfterStep,
) -> list[str | None]:
    clipping = None
    if privacy:
        with _seeded(0, shelf.device):
            clipping = _Clipping.of(networks[0], shelf, privacy)
    stopped = []
    for row, (network, own) in enumerate(zip(networks, draws, strict=True)):
        model = _Model(row, network, shelf, plan, clipping)
        with _seeded(own.seed, shelf.device):
            stopped.append(model.train(own, after_step))
    return stopped


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Give what draws from PyTorch's own generators a seed, and leave these as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True, eq=False)
class _Clipping:
    """How gradients are clipped, for all networks of an architecture.

    per_size: bytes that a piece of a batch takes for each token, or record, of its widest layer.
    """

    privacy: Privacy
    make: Make
    per_size: int
    batches: Batches

    @classmethod
    def of(cls, network: nn.Module, shelf: _Shelf, privacy: Privacy) -> "_Clipping":
        """Try a network at a few of its records, the longest first."""
        own = shelf.own[0]
        sizes = shelf.records.sizes(own.numpy())
        order = np.argsort(-sizes, kind="stable")
        few = order[np.linspace(0, len(order) - 1, min(FEW, len(order))).astype(int)]
        inputs, labels = shelf.at(own[torch.from_numpy(few)])
        with needs_memory(shelf.device, "a few records"):
            parameters = trained(network)
            make = study(network, parameters, inputs, labels)
            if not isinstance(inputs, Tensor):
                check_padding(network, inputs, [shelf.at(own[[i]])[0] for i in few])
            with torch.no_grad():
                widest = Alone(network).widest(inputs) // len(few)
        written = make(network, parameters).bytes_each
        per_size = max(1, max(widest, written) // int(sizes[few].max()))
        batches = Batches(shelf.device, None)
        if shelf.device.type == "cuda":
            batches.layer_bytes = min(batches.layer_bytes, GPU_LAYER_BYTES)
        return cls(privacy, make, per_size, batches)


class _Model:
    """One network in training."""

    def __init__(
        self,
        row: int,
        network: nn.Module,
        shelf: _Shelf,
        plan: Plan,
        clipping: _Clipping | None,
    ) -> None:
        self.row, self.network, self.shelf = row, network, shelf
        self.own, self.plan, self.clipping = shelf.own[row], plan, clipping
        self.parameters = trained(network)
        self.way = clipping.make(network, self.parameters) if clipping else None
        self.optimizer = Optimizer(plan, list(self.parameters.values()), len(self.own))
        self.graphed: Graphed | None = None

    def train(self, draws: Draws, after_step: AfterStep) -> str | None:
        """Make all steps; the reason if it was stopped before."""
        watch = Watch(1, self.plan.steps, self.shelf.device)
        with coarse(self.network, self.plan.precision):
            self._make_steps(draws, watch, after_step)
        return watch.reasons()[0]

    def _make_steps(self, draws: Draws, watch: Watch, after_step: AfterStep) -> None:
        privacy = self.clipping.privacy if self.clipping else None
        batches = draws.batches(self.plan, len(self.own), privacy)
        self._record()
        for step, positions in enumerate(batches, start=1):
            loss = self._step(self.own[positions], draws)
            self._same_parameters()
            watch.see(step, loss if len(positions) else torch.zeros_like(loss))
            if not watch.going:
                break
            after_step(Progress([self.row], step, loss))

    def _step(self, wanted: Tensor, draws: Draws) -> Tensor:
        """Make a step with these records; the mean loss ()."""
        if self.clipping is None:
            loss = self._backward(wanted)
        else:
            loss, sums = self._clipped(wanted, self.clipping)
            size, privacy = self.plan.batch_size, self.clipping.privacy
            for parameter, one in zip(self.parameters.values(), sums, strict=True):
                parameter.grad = privatise(one, privacy, size, draws.noise)
        self.optimizer.step()
        return loss

    def _record(self) -> None:
        """Record the step on a GPU, where it is without privacy and can be."""
        if self.shelf.device.type == "cuda" and self.clipping is None:
            some = self._batch(self.own[: self.plan.batch_size])
            self.graphed = graphed(self.network, self.parameters, loss_of, *some)

    def _backward(self, wanted: Tensor) -> Tensor:
        with needs_memory(self.shelf.device, f"a batch of {len(wanted)} records"):
            inputs, labels = self._batch(wanted)
            if self.graphed is not None and self.graphed.fits(inputs):
                return self.graphed(inputs, labels)
            loss = loss_of(self.network, inputs, labels)
            self.optimizer.inner.zero_grad()
            loss.backward()
        return loss.detach()

    def _batch(self, wanted: Tensor) -> tuple[Inputs, Tensor]:
        inputs, labels = self.shelf.at(wanted)
        return self.plan.augment(inputs) if self.plan.augment else inputs, labels

    def _clipped(self, wanted: Tensor, clipping: _Clipping) -> tuple[Tensor, list[Tensor]]:
        """Mean loss and clipped sums of a batch; from the start again where memory runs out."""
        sizes = self.shelf.records.sizes(wanted.numpy())
        while True:
            sums = [torch.zeros_like(one) for one in self.parameters.values()]
            losses = [sums[0].new_zeros(0)]
            for some in clipping.batches.cut(sizes, clipping.per_size):
                found = self._piece(wanted[torch.from_numpy(some)], clipping, sums)
                if isinstance(found, str):
                    largest = clipping.per_size * int(sizes[some].max())
                    clipping.batches.halve(largest, len(some), found)
                    break
                losses.append(found)
            else:
                return torch.cat(losses).mean(), sums

    def _piece(self, wanted: Tensor, clipping: _Clipping, sums: list[Tensor]) -> Tensor | str:
        """Losses of a piece, whose clipped gradients are added; the reason if memory ran out."""
        assert self.way is not None
        try:
            return self.way(*self._batch(wanted), clipping.privacy.clip_norm, sums)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return first_line(error)

    def _same_parameters(self) -> None:
        if trained(self.network).keys() != self.parameters.keys():
            raise InputError(
                f"Parameters of {type(self.network).__name__} were frozen or thawed while it "
                "trained: what trains must be settled before."
            )
