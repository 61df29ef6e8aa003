"""All that decides a built scenario: how its models begin, how they are trained, their privacy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mico_exp.challenge.protocol import Sizes, Split, of_seeds, permutation
from mico_exp.challenge.records import Records
from mico_exp.common import require
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import MLP
from mico_exp.models.devices import FLOAT32
from mico_exp.models.folders import CANARIES, FINGERPRINT
from mico_exp.training.accountant import (
    ACCOUNTANTS,
    DELTAS,
    EPSILONS,
    noise_multiplier,
    spent_epsilon,
)
from mico_exp.training.steps import EPOCH, Plan, Privacy

CLIP_NORMS = (1e-20, 1e20)  # the noise is σ·C, in single precision
# What builds of before have none of, so that it is told only where it is another.
OF_LATE = ("network", "schedule", "augment", "precision", "accountant", CANARIES)


@dataclass(frozen=True)
class PrivacyTarget:
    """(ε, δ) that DP-SGD is to meet, as far as the accountant can tell, and its clipping norm C."""

    epsilon: float
    delta: float
    clip_norm: float
    accountant: str = "prv"

    def __post_init__(self) -> None:
        without = "; `scenario.epsilon=null` trains without differential privacy"
        require.within("epsilon", self.epsilon, *EPSILONS, advice=without)
        require.within("delta", self.delta, *DELTAS)
        require.within("clip_norm", self.clip_norm, *CLIP_NORMS)
        require.one_of("accountant", self.accountant, ACCOUNTANTS)


@dataclass(frozen=True, eq=False)
class Fresh:
    """How a network begins.

    make: gives a new one, drawing from PyTorch's own generator on the CPU. It may have `files`,
        name → text of what lies beside the weights, and `described`, what tells it from others.
    told: of which option it was made.
    """

    make: Callable[[], nn.Module]
    told: Mapping[str, Any] = field(default_factory=dict)

    def network(self, seed: int) -> nn.Module:
        """Make one, by a seed.

        Raises:
            InputError: it is no module.
        """
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            made: Any = self.make()
        if not isinstance(made, nn.Module):
            raise InputError(
                f"`dataset.recipe.network` must give a torch module, got {type(made).__name__}."
            )
        return made.float().requires_grad_(True) if _has_no_grad(made) else made.float()

    def check(self) -> None:
        """Want another network every time, for they are trained in place.

        Raises:
            InputError: it is the same one.
        """
        if self.network(0) is self.network(0):
            raise InputError(
                "`dataset.recipe.network` must give another network every time, got the same one: "
                "all models would be trained in it, one after another."
            )

    @property
    def files(self) -> dict[str, str]:
        """Name → text of what lies beside a model's weights."""
        return dict(getattr(self.make, "files", {}))

    @property
    def described(self) -> Any:
        """What tells it from others, as it is recorded."""
        return getattr(self.make, "described", dict(self.told))


def _has_no_grad(network: nn.Module) -> bool:
    """Tell whether nothing of it trains, as of a network that was read to be asked."""
    return not any(one.requires_grad for one in network.parameters())


@dataclass(frozen=True)
class Canaries:
    """The last `count` of the records, each in a model's training set by a coin of its own.

    They are the models' challenge points, in place of those that seeds draw: all of them, or with
    `one_per_model` a single one, of which alone a coin is tossed.
    """

    count: int
    one_per_model: bool = False

    def __post_init__(self) -> None:
        require.whole("canary.count", self.count, 1)
        require.switch("canary.one_per_model", self.one_per_model)

    @property
    def are_shared(self) -> bool:
        """All models are asked about the same ones."""
        return not self.one_per_model or self.count == 1

    def points(self, records: int, number: int) -> Indices:
        """Which of the records, canaries included, the model of a number is asked about."""
        every = np.arange(records - self.count, records)
        return every[[number % self.count]] if self.one_per_model else every

    def split(self, sizes: Sizes, number: int, seed_training: int, seed_membership: int) -> Split:
        """Draw what a model is trained on: its records and, coin by coin, its canaries."""
        points = self.points(sizes.records, number)
        coins = np.random.default_rng(seed_membership).random(len(points)) < 0.5
        others = permutation(seed_training, sizes.records - self.count)
        training, _ = of_seeds(sizes)
        drawn = others[:training], others[training:]
        return Split(points, points[coins], points[~coins], *drawn)


@dataclass(frozen=True)
class Recipe:
    """All that decides a built scenario.

    models: how many in each phase, numbered through in the order train, dev, final.
    plan: how each is trained, of `epochs` where it is told by them.
    widths: of MLPs, from input to classes, which are trained many at once.
    network: of any other kind, in place of `widths`.
    disclose_training: dev and final models tell `seed_training`, as in the challenge ``ddp``.
    canaries: among the records, which a model has beside its `len_training`.
    """

    challenge: str
    scenario: str
    seed: int
    sizes: Sizes
    models: dict[str, int]
    plan: Plan
    privacy: PrivacyTarget | None
    widths: tuple[int, ...] | None = None
    network: Fresh | None = None
    epochs: int | None = None
    disclose_training: bool = False
    canaries: Canaries | None = None

    def __post_init__(self) -> None:
        require.whole("seed", self.seed, 0)
        if self.plan.batch_size > self.len_training:
            raise InputError(
                f"`batch_size` must be at most `len_training` = {self.len_training}, "
                f"got {self.plan.batch_size}."
            )
        for phase, count in self.models.items():
            require.whole(f"phases.{phase}", count, 0)
        if self.canaries and (others := self.sizes.records - self.canaries.count) < (
            self.len_training
        ):
            raise InputError(
                f"`len_training` must be at most the {others} records beside the canaries, "
                f"got {self.len_training}."
            )

    @property
    def fresh(self) -> Fresh:
        """How its networks begin; MLPs too, where each is made by itself."""
        if self.network is not None:
            return self.network
        assert self.widths is not None
        widths = self.widths
        return Fresh(lambda: MLP(widths))

    @property
    def path(self) -> str:
        """Where its scenario lies in the competition's tree."""
        return f"{self.challenge}/{self.scenario}"

    @property
    def total(self) -> int:
        """How many models there are in all."""
        return sum(self.models.values())

    @property
    def len_training(self) -> int:
        """How many records a model trains on."""
        return of_seeds(self.sizes)[0]

    @property
    def sample_rate(self) -> float:
        """Chance of a record to be in a batch."""
        return self.plan.batch_size / self.len_training

    @property
    def is_plain(self) -> bool:
        """Tell whether it says no more than recipes at first: their trees stay as they are."""
        late = self._late()
        return not any(late.values())

    def plan_for(self, records: int) -> Plan:
        """How a model is trained that has so many records: as many steps, or epochs."""
        plan = replace(self.plan, sample_rate=None)
        if self.epochs is None:
            return plan
        return replace(plan, steps=steps_of(self.epochs, records, self.plan.batch_size))

    def privacy_for(self, records: int | None = None) -> Privacy | None:
        """The noise and the clipping norm of a model that trains on so many records.

        Raises:
            InputError: no noise gives what is asked for.
        """
        if (target := self.privacy) is None:
            return None
        asked = target.epsilon, target.delta, *self._run(records), target.accountant
        return Privacy(noise_multiplier(*asked), target.clip_norm)

    def spent(
        self, privacy: Privacy | None, records: int | None = None, steps: int | None = None
    ) -> float | None:
        """The ε that such a model's training spends; None without privacy.

        `steps` are those that it makes, where they are others than of a plan for its `records`.
        """
        if privacy is None or (target := self.privacy) is None:
            return None
        rate, usual = self._run(records)
        sigma, run = privacy.noise_multiplier, (rate, usual if steps is None else steps)
        return spent_epsilon(sigma, target.delta, *run, target.accountant)

    def _run(self, records: int | None) -> tuple[float, int]:
        """Sample rate and steps."""
        count = self.len_training if records is None else records
        return self.plan.batch_size / count, self.plan_for(count).steps

    def description(self, records: Records) -> dict[str, Any]:
        """The recipe and its records as they are kept beside the models, and compared with."""
        told = {
            "seed": self.seed,
            "records": self.sizes.records,
            "len_training": self.sizes.training,
            "len_challenge": self.sizes.challenge,
            "models": self.models,
            "widths": self.widths and list(self.widths),
            "steps": self.plan.steps,
            "batch_size": self.plan.batch_size,
            "optimizer": _call(self.plan.optimizer),
            "epsilon": self.privacy and self.privacy.epsilon,
            "delta": self.privacy and self.privacy.delta,
            "clip_norm": self.privacy and self.privacy.clip_norm,
            "disclose_training": self.disclose_training,
            FINGERPRINT: records.fingerprint,
        }
        return told | {name: value for name, value in self._late().items() if value is not None}

    def _late(self) -> dict[str, Any]:
        """What recipes could not say at first; None where it is as it was then."""
        plan, target = self.plan, self.privacy
        schedule = plan.schedule and f"{_call(plan.schedule)} each {plan.schedule_each}"
        found = {
            "network": self.network and self.network.described,
            "schedule": schedule,
            "augment": plan.augment and _call(plan.augment),
            "precision": plan.precision if plan.precision != FLOAT32 else None,
            "accountant": target.accountant if target and target.accountant != "prv" else None,
            CANARIES: self.canaries and asdict(self.canaries),
        }
        assert found.keys() == {*OF_LATE}
        return found


def steps_of(epochs: int, records: int, batch_size: int) -> int:
    """How many steps so many epochs are: ⌈n / batch⌉ each."""
    return epochs * math.ceil(records / batch_size)


def planned(
    *,
    sizes: Sizes,
    batch_size: int,
    optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    steps: int | None = None,
    epochs: int | None = None,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    schedule_each: str = EPOCH,
    augment: Callable[..., Any] | None = None,
    precision: str = FLOAT32,
    canaries: Canaries | None = None,
    **others: Any,
) -> Recipe:
    """Make a recipe of what is told of it, in steps or in epochs; `others` are of `Recipe`.

    With canaries a record's chance to be in a batch is batch / `len_training`, whoever has how many
    of them: what is trained then tells of a canary by its gradients alone.

    Raises:
        InputError: it tells neither, or both, or something that cannot be.
    """
    if (steps is None) == (epochs is None):
        got = "neither" if steps is None else f"{steps} steps and {epochs} epochs"
        raise InputError(f"`dataset.recipe` must tell `steps` or `epochs`, got {got}.")
    require.whole("batch_size", batch_size, 1)
    if epochs is not None:
        require.whole("epochs", epochs, 1)
        steps = steps_of(epochs, of_seeds(sizes)[0], batch_size)
    assert steps is not None
    rate = batch_size / of_seeds(sizes)[0] if canaries else None
    plan = Plan(steps, batch_size, optimizer, schedule, schedule_each, augment, rate, precision)
    return Recipe(sizes=sizes, plan=plan, epochs=epochs, canaries=canaries, **others)


def _call(made: Any) -> str:
    """Name of a function and the arguments that it will be given."""
    arguments = ", ".join(f"{k}={v}" for k, v in getattr(made, "keywords", {}).items())
    name = getattr(getattr(made, "func", made), "__name__", str(made))
    return f"{name}({arguments})"
