"""Records of a data set by index, in the fixed order that the seeds refer to."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Records:
    """A data set in memory: inputs (N, …) float32 and labels (N,) int64."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shapes and contents: the same records in the same order, or not."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.labels):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()


def digits() -> Records:
    """Load scikit-learn's handwritten digits: 1,797 images of 8 × 8, as 64 features in [0, 1]."""
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy((images / 16).astype(np.float32))
    return Records(inputs, torch.from_numpy(labels.astype(np.int64)))
