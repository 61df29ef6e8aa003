"""Records of a data set by index, in the fixed order that the seeds refer to.

A data set stays compact in memory (or on disk) and gives model inputs for the indices asked for.
Axes: N records, B indices asked for.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mico_exp.common.arrays import Indices
from mico_exp.common.fingerprints import definition, digest

Inputs = Tensor | Mapping[str, Tensor]


class Records(Protocol):
    """What every data set offers, on the CPU; `mico_exp.scores.soundness` checks it.

    labels: (N,) int64, the number of each record's class from 0 on.
    """

    labels: Tensor

    @property
    def fingerprint(self) -> str:
        """Hash of all that models see: the same records in the same order, or not."""

    def inputs(self, indices: Tensor) -> Inputs:
        """Model inputs of the records at `indices` (B,), in that order; floats are float32.

        Always the same of the same record, and an error beyond the last one.
        """

    def sizes(self, indices: Indices) -> Indices:
        """How large the inputs of the records at `indices` (B,) are: tokens of a sentence, or 1."""


def records_key(records: Records) -> str:
    """Hash of the records and of the code that gives them as inputs."""
    return digest(records.fingerprint, definition(type(records)))


def inputs_at(records: Records, indices: Tensor) -> Inputs:
    """Model inputs of the records at `indices`, whatever axes these have."""
    inputs = records.inputs(indices.flatten())
    if isinstance(inputs, Tensor):
        return inputs.unflatten(0, indices.shape)
    return {name: tensor.unflatten(0, indices.shape) for name, tensor in inputs.items()}


def fingerprint_arrays(*arrays: NDArray[Any]) -> str:
    """SHA-256 of shapes and contents."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(f"{array.dtype}{array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


class Features:
    """Records as rows of numbers: features (N, F) float32."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of features and labels."""
        return fingerprint_arrays(self.features.numpy(), self.labels.numpy())

    def inputs(self, indices: Tensor) -> Tensor:
        """Features (…, F) of indices (…)."""
        return self.features[indices]

    def sizes(self, indices: Indices) -> Indices:
        """All the same size."""
        return np.ones_like(indices)
