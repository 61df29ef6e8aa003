"""Models made by a recipe: which records each has, its training, and what is told of it.

A *piece* is what is trained at once and lost at once: up to fifty MLPs, stacked, or one network of
any other kind. What comes of it hangs on the recipe, the records, the piece and the device alone,
never on who does it, nor on what else they do.

Axes: M models of a piece, n records of a model, N records.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mico_exp.challenge.records import Records, inputs_at
from mico_exp.common import pool
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import DP_PREFIX, StackedMLP, bare, logits_of
from mico_exp.models.batching import needs_memory
from mico_exp.models.devices import describe, open_device
from mico_exp.models.folders import packed
from mico_exp.training.loop import train_networks
from mico_exp.training.recipe import Recipe
from mico_exp.training.stacked import initial_mlps, train
from mico_exp.training.steps import Plan, Privacy, Progress

log = logging.getLogger(__name__)
MODELS_AT_ONCE = 50  # MLPs, trained as one and written as one: what an interruption can cost
RECORDS_AT_ONCE = 8192  # that stacked MLPs are asked for
NETWORK_RECORDS = 256  # that any other network is
SECONDS_BETWEEN = 0.5  # what is told more often is told together
STEPS_TIMED, SECONDS_TIMED = 5, 10.0


class Wanted(NamedTuple):
    """A model that is to be made: `own` (n,) records that it trains on, `unseen` (k,) others.

    Its accuracy is told on both.
    """

    number: int
    own: Indices
    unseen: Indices


class Piece(NamedTuple):
    """Models that are trained together; the seed is of their weights, batches and noise."""

    seed: int
    models: tuple[Wanted, ...]

    def __str__(self) -> str:
        """The models' names."""
        first, last = self.models[0].number, self.models[-1].number
        return f"model_{first}" if first == last else f"model_{first} to model_{last}"


class Made(NamedTuple):
    """A model that was trained: its file of weights, and more files by name.

    stopped: why it was given up, and then there are none. device: that it was trained on.
    on_members: its accuracy on what it trained on, which plain recipes have no file of.
    """

    number: int
    weights: bytes
    told: dict[str, str]
    stopped: str | None
    device: str
    on_members: str = ""


@dataclass(frozen=True)
class Told:
    """What was done since the last time: models' worth of training, their steps, a loss by now."""

    models: float = 0.0
    steps: int = 0
    loss: float | None = None

    def __add__(self, later: "Told") -> "Told":
        loss = self.loss if later.loss is None else later.loss
        return Told(self.models + later.models, self.steps + later.steps, loss)

    def __neg__(self) -> "Told":
        """What takes it back, where it is done again."""
        return Told(-self.models, -self.steps)


Tell = Callable[[Told], object]


@dataclass(frozen=True, eq=False)
class Making:
    """What all pieces have in common; called with one, it trains its models.

    privacy: that each is trained with, and epsilon what that spends. For records of other numbers
        than the recipe's it is theirs (`Making.of`).
    device: by name, as whoever does the work opens it.
    pause: seconds between what is told, at least.
    """

    recipe: Recipe
    plan: Plan
    records: Records
    privacy: Privacy | None
    epsilon: float | None
    device: str
    pause: float = SECONDS_BETWEEN

    @classmethod
    def of(cls, recipe: Recipe, records: Records, device: str, own: int | None = None) -> "Making":
        """Find out what models take that train on `own` records, or as many as the recipe has.

        Raises:
            InputError: no noise gives the privacy that is asked for.
        """
        privacy = recipe.privacy_for(own)
        if privacy is not None and recipe.privacy is not None:
            log.info(
                "Noise multiplier %.4f for epsilon %g, delta %g",
                *(privacy.noise_multiplier, recipe.privacy.epsilon, recipe.privacy.delta),
            )
        plan = recipe.plan if own is None else recipe.plan_for(own)
        return cls(recipe, plan, records, privacy, recipe.spent(privacy, own), device)

    def __call__(self, piece: Piece, tell: Tell = lambda _: None) -> list[Made]:
        """Train the models of a piece.

        Raises:
            InputError: the device is not here, or has no memory for it; or the network cannot be
                trained so.
        """
        device, telling = open_device(self.device), _Telling(tell, self.plan.steps, self.pause)
        with needs_memory(device, f"training {len(piece.models)} models at once"):
            made = self._with_one_generator if self._is_plain(piece) else self._with_own_generators
            return made(piece, device, telling)

    def _is_plain(self, piece: Piece) -> bool:
        """Tell whether models are made as MLPs were at first, with as many records each."""
        same = len({len(one.own) for one in piece.models}) == 1
        return self.recipe.widths is not None and self.recipe.is_plain and same

    # -------------------------------------------------- MLPs with one stream of random numbers

    def _with_one_generator(
        self, piece: Piece, device: torch.device, telling: "_Telling"
    ) -> list[Made]:
        if pool.is_worker():
            torch.set_num_threads(1)  # another on each core has its own; bits do not hang on it
        assert self.recipe.widths is not None
        count = len(piece.models)
        generator = torch.Generator(device).manual_seed(piece.seed)
        own = torch.from_numpy(np.stack([one.own for one in piece.models]))
        mlps = initial_mlps(count, self.recipe.widths, generator)
        inputs = _features(self.records, own).to(device)
        labels = self.records.labels[own].to(device)
        step = partial(telling.steps_of, count)
        train(mlps, inputs, labels, self.plan, generator, self.privacy, step)
        right = _right_of_stacked(mlps, self.records)
        telling.rest()
        states = StackedMLP([one.cpu() for one in mlps.parameters]).states()
        return [
            self._made(one, state, row, device)
            for one, state, row in zip(piece.models, states, right, strict=True)
        ]

    # -------------------------------------------------- networks, each with a stream of its own

    def _with_own_generators(
        self, piece: Piece, device: torch.device, telling: "_Telling"
    ) -> list[Made]:
        """On a CPU in one thread, for bits hang on their number."""
        seeds = [
            np.random.SeedSequence([piece.seed, one.number]).generate_state(2).tolist()
            for one in piece.models
        ]
        with _threads(1 if device.type == "cpu" else None):
            networks = [self.recipe.fresh.network(of_weights) for of_weights, _ in seeds]
            generators = [torch.Generator().manual_seed(of_batches) for _, of_batches in seeds]
            own = [one.own for one in piece.models]
            run = networks, self.records, own, self.plan, generators, self.privacy
            stopped = train_networks(*run, device, telling.progress)
            telling.rest()
            return [
                self._finished(*one, device)
                for one in zip(piece.models, networks, stopped, strict=True)
            ]

    def _finished(
        self, one: Wanted, network: nn.Module, stopped: str | None, device: torch.device
    ) -> Made:
        if stopped is not None:
            return Made(one.number, b"", {}, stopped, describe(device))
        right = _right_of(network, self.records, np.concatenate([one.own, one.unseen]), device)
        state = {name: value.cpu() for name, value in bare(network).state_dict().items()}
        return self._made(one, state, right, device)

    def _made(
        self,
        one: Wanted,
        state: dict[str, torch.Tensor],
        right: NDArray[np.bool_],
        device: torch.device,
    ) -> Made:
        """Pack a model; `right` (N,) tells of which records it gives the class."""
        if not all(bool(value.isfinite().all()) for value in state.values()):
            why = "its weights are not finite"
            return Made(one.number, b"", {}, why, describe(device))
        told, on_members = {"accuracy": _share(right[one.unseen])}, _share(right[one.own])
        if not self.recipe.is_plain:
            told["accuracy_members"] = on_members
        if self.epsilon is not None:
            told["epsilon"] = f"{self.epsilon:.4f}"
        if self.recipe.network is not None:
            told |= self.recipe.network.files
        prefix = DP_PREFIX if self.recipe.privacy else ""
        named = {prefix + name: value for name, value in state.items()}
        return Made(one.number, packed(named), told, None, describe(device), on_members)


class _Telling:
    """Tells of a piece's progress, not too often; a model makes so many steps in `whole`."""

    def __init__(self, tell: Tell, whole: int, pause: float) -> None:
        self.tell, self.whole, self.pause = tell, whole, pause
        self.steps, self.loss, self.last = 0, torch.tensor(torch.nan), time.monotonic()

    def steps_of(self, models: int) -> None:
        """Take in a step of so many models."""
        self.steps += models
        if time.monotonic() - self.last >= self.pause:
            self.rest()

    def progress(self, found: Progress) -> None:
        """Take in a step with its loss, which is fetched when it is told."""
        self.loss = found.loss
        self.steps_of(len(found.models))

    def rest(self) -> None:
        """Tell what was not told yet."""
        loss = float(self.loss)
        known = None if math.isnan(loss) else loss  # as of a batch without records
        self.tell(Told(self.steps / self.whole, self.steps, known))
        self.steps, self.last = 0, time.monotonic()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if not pool.is_worker():  # one that was forked must not begin others
            torch.set_num_threads(before)


def _share(right: NDArray[np.bool_]) -> str:
    return f"{float(right.mean()):.4f}"


def _features(records: Records, indices: torch.Tensor) -> torch.Tensor:
    inputs = inputs_at(records, indices)
    if not isinstance(inputs, torch.Tensor):
        raise InputError("MLPs are trained on records of numbers only, not on sentences.")
    return inputs


@torch.inference_mode()
def _right_of_stacked(mlps: StackedMLP, records: Records) -> NDArray[np.bool_]:
    """(M, N) whether each model gives a record its class."""
    device, count = mlps.parameters[0].device, len(records.labels)
    found = [
        mlps(_features(records, some).to(device)).argmax(dim=-1).cpu() == records.labels[some]
        for some in torch.arange(count).split(RECORDS_AT_ONCE)
    ]
    return torch.cat(found, dim=1).numpy()


@torch.inference_mode()
def _right_of(
    network: nn.Module, records: Records, indices: Indices, device: torch.device
) -> NDArray[np.bool_]:
    """(N,) whether it gives each of some records its class; False for others."""
    network.eval()
    found = np.zeros(len(records.labels), dtype=bool)
    order = indices[np.argsort(records.sizes(indices), kind="stable")]  # alike ones together
    for some in torch.from_numpy(order).split(NETWORK_RECORDS):
        inputs = inputs_at(records, some)
        if isinstance(inputs, torch.Tensor):
            logits = logits_of(network(inputs.to(device)))
        else:
            logits = logits_of(network({name: one.to(device) for name, one in inputs.items()}))
        found[some.numpy()] = (logits.argmax(dim=-1).cpu() == records.labels[some]).numpy()
    return found


class _EnoughError(Exception):
    """Ends a training that was begun to be timed."""


def step_seconds(making: Making, piece: Piece) -> float:
    """Seconds that a step of a piece takes: the mean of a few after the first, which warms up.

    Raises:
        InputError: as `Making`.
    """
    ends: list[float] = []

    def note(told: Told) -> None:
        ends.extend([time.perf_counter()] * min(told.steps, 1))
        if len(ends) > STEPS_TIMED or (len(ends) > 1 and ends[-1] - ends[0] > SECONDS_TIMED):
            raise _EnoughError

    started = time.perf_counter()
    with suppress(_EnoughError):
        replace(making, pause=0.0)(piece, note)
    ends = ends if len(ends) > 1 else [started, *ends]
    return (ends[-1] - ends[0]) / max(len(ends) - 1, 1)
