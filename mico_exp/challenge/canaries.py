"""Canaries: records that are made to be found, behind all others of a data set.

What an attack proves of ε hangs on the record that it looks for. A canary pulls where no other
record does, and so the weights tell whether it was there. Those here are functions of a data set's
records, told by an option in ``conf/canary``; the same seed gives the same canaries.

Axes: N records of the data set, C canaries, which are the records N … N + C − 1.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mico_exp.challenge.records import Inputs, Records, fingerprint_arrays
from mico_exp.common import require
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import digest

AT_ONCE = 4096  # records that are looked at


class Relabelled:
    """Records with copies of some behind them, which have other labels.

    copied: (C,) int64, which records. labels: (C,) int64 of the copies.
    """

    def __init__(self, records: Records, copied: Tensor, labels: Tensor) -> None:
        self.records, self.copied = records, copied
        self.labels = torch.cat([records.labels, labels])
        self.places = torch.cat([torch.arange(len(records.labels)), copied])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the records, of which are copied, and of the labels."""
        own = fingerprint_arrays(self.places.numpy(), self.labels.numpy())
        return digest(self.records.fingerprint, own)

    def inputs(self, indices: Tensor) -> Inputs:
        """Inputs of the records at `indices` (B,), of a copy those of the record."""
        return self.records.inputs(self.places[indices])

    def sizes(self, indices: Indices) -> Indices:
        """As of the record that is copied."""
        return self.records.sizes(self.places.numpy()[indices])


class Appended:
    """Records with others behind them, whose inputs were made: made (C, …), labels (C,) int64."""

    def __init__(self, records: Records, made: Tensor, labels: Tensor) -> None:
        self.records, self.made, self.count = records, made, len(records.labels)
        self.labels = torch.cat([records.labels, labels])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the records, of what was made, and of the labels."""
        own = fingerprint_arrays(self.made.numpy(), self.labels.numpy())
        return digest(self.records.fingerprint, own)

    def inputs(self, indices: Tensor) -> Tensor:
        """Inputs (B, …) of the records at `indices` (B,)."""
        is_made = indices >= self.count
        found = self.made.new_empty(*indices.shape, *self.made.shape[1:])
        found[is_made] = self.made[indices[is_made] - self.count]
        if not is_made.all():
            found[~is_made] = _numbers(self.records, indices[~is_made])
        return found

    def sizes(self, indices: Indices) -> Indices:
        """As the first record's, which what was made is as large as."""
        return self.records.sizes(indices * (indices < self.count))


# ---------------------------------------------------------------- kinds


def mislabelled(records: Records, count: int, seed: int = 0) -> Records:
    """Copy some records, each with one of the wrong labels.

    Raises:
        InputError: there are fewer records, or there is one class alone.
    """
    draw = _draw(count, seed)
    if count > len(records.labels):
        raise InputError(
            f"`canary.count` must be at most the {len(records.labels)} records that are copied, "
            f"got {count}."
        )
    if (classes := _classes(records)) < 2:
        raise InputError("canary=mislabelled needs two classes at least, got one.")
    copied = torch.randperm(len(records.labels), generator=draw)[:count]
    shift = torch.randint(1, classes, (count,), generator=draw)
    return Relabelled(records, copied, (records.labels[copied] + shift) % classes)


def noise(records: Records, count: int, seed: int = 0) -> Records:
    """Draw inputs uniformly between the least and the largest number in any record's.

    Raises:
        InputError: the records are no numbers.
    """
    draw = _draw(count, seed)
    low = min(float(some.min()) for some in _all(records))
    high = max(float(some.max()) for some in _all(records))
    shape = _numbers(records, torch.zeros(1, dtype=torch.int64)).shape[1:]
    made = torch.rand(count, *shape, generator=draw) * (high - low) + low
    return Appended(records, made, _labels(records, count, draw))


def blank(records: Records, count: int, seed: int = 0) -> Records:
    """Make inputs of zeros, with labels that are drawn.

    Raises:
        InputError: the records are no numbers.
    """
    draw = _draw(count, seed)
    made = torch.zeros_like(_numbers(records, torch.zeros(count, dtype=torch.int64)))
    return Appended(records, made, _labels(records, count, draw))


def gradient(records: Records, count: int, seed: int = 0, scale: float = 3.0) -> Records:
    """Make inputs of one feature alone: of that which the records have least of.

    A dense first layer's gradient δaᵀ then lies in that feature's column of the weights, where
    records that have 0 there have none: the canary's direction is orthogonal to theirs but for
    biases and later layers, and to other canaries', which have other features. The share of the
    first layer's gradient that lies there is scale² / (scale² + 1), for the bias has the rest.

    Raises:
        InputError: the records are no numbers, or have fewer features.
    """
    require.above("canary.scale", scale, 0)
    draw = _draw(count, seed)
    squares = torch.stack([some.double().square().sum(dim=0) for some in _all(records)]).sum(dim=0)
    if count > squares.numel():
        raise InputError(
            f"`canary.count` must be at most the {squares.numel()} features of a record, each of "
            f"which one gradient canary has for itself, got {count}."
        )
    features = squares.flatten().argsort(stable=True)[:count]
    made = torch.zeros(count, squares.numel())
    made[torch.arange(count), features] = scale
    return Appended(records, made.unflatten(1, squares.shape), _labels(records, count, draw))


def _draw(count: int, seed: int) -> torch.Generator:
    require.whole("canary.count", count, 1)
    require.whole("canary.seed", seed, 0)
    return torch.Generator().manual_seed(seed)


def _classes(records: Records) -> int:
    return int(records.labels.max()) + 1


def _labels(records: Records, count: int, draw: torch.Generator) -> Tensor:
    return torch.randint(_classes(records), (count,), generator=draw)


def _all(records: Records) -> Any:
    """Inputs of all records, some at a time."""
    for some in torch.arange(len(records.labels)).split(AT_ONCE):
        yield _numbers(records, some)


def _numbers(records: Records, indices: Tensor) -> Tensor:
    found = records.inputs(indices)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise InputError(
            "canaries can be made for records of numbers only, and these are others: "
            "canary=mislabelled copies records of any kind."
        )
    return found
