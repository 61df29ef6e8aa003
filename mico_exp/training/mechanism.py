"""DP-SGD as an accountant sees it: how much noise, how often a record is seen, how many steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from mico_exp.common import require
from mico_exp.common.errors import InputError
from mico_exp.models.folders import NOISE, RATE, RECORD, read_record
from mico_exp.training.accountant import noise_multiplier

KEYS = (NOISE, RATE, "steps")
# What a builder starts from, whose first records told no more.
SEARCHED = ("steps", "batch_size", "len_training", "epsilon", "delta")


@dataclass(frozen=True)
class Mechanism:
    """Steps of the Gaussian mechanism over Poisson samples.

    noise_multiplier: deviation of the noise by the clipping norm. sample_rate: chance of a record
    to be in a batch.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        require.above("noise_multiplier", self.noise_multiplier, 0)
        require.above("sample_rate", self.sample_rate, 0)
        require.within("sample_rate", self.sample_rate, 0, 1)
        require.whole("steps", self.steps, 1)

    @property
    def plain(self) -> tuple[float, float, int]:
        """As the accountants take it."""
        return self.noise_multiplier, self.sample_rate, self.steps

    def with_noise(self, noise_multiplier: float) -> "Mechanism":
        """The same with other noise."""
        return replace(self, noise_multiplier=noise_multiplier)

    def is_like(self, other: "Mechanism") -> bool:
        """Tell whether it is another's to 1 %, with the same steps."""
        near = all(
            math.isclose(*pair, rel_tol=0.01) for pair in zip(self.plain, other.plain, strict=True)
        )
        return near and self.steps == other.steps


def told_by(given: Mapping[str, Any], name: str) -> Mechanism:
    """Make the mechanism that a person tells, by its three keys.

    Raises:
        InputError: a key is missing, unknown or holds something that cannot be.
    """
    if set(given) != set(KEYS):
        raise InputError(f"`{name}` must give {', '.join(KEYS)}, got {', '.join(map(str, given))}.")
    return Mechanism(**{str(key): value for key, value in given.items()})


def of_build(folder: Path) -> Mechanism | None:
    """The mechanism that a scenario's models were built with here; None where that is not told.

    Raises:
        InputError: the record of the build cannot be read.
    """
    told = read_record(folder / RECORD) if (folder / RECORD).exists() else {}
    if all(_is_positive(told.get(key)) for key in KEYS):
        return told_by({key: told[key] for key in KEYS}, str(folder / RECORD))
    values: list[Any] = [told.get(key) for key in SEARCHED]
    if not all(map(_is_positive, values)):
        return None
    steps, batch, length, epsilon, delta = values
    return _searched(epsilon, delta, batch / length, steps, told.get("accountant", "prv"))


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


@cache
def _searched(epsilon: float, delta: float, rate: float, steps: int, accountant: str) -> Mechanism:
    """What the builder finds by the same search."""
    sigma = noise_multiplier(epsilon, delta, rate, steps, accountant)
    return Mechanism(sigma, rate, steps)
