"""Inputs that stay on a GPU while models are asked at the same points, one after another.

To prepare a batch on a processor and to copy it takes a GPU as long as a model's pass, and longer.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mico_exp.challenge.records import Inputs, Records, inputs_at
from mico_exp.common.arrays import Indices

SHARE = 4  # of the free memory a quarter, at most


class KeptInputs:
    """Batches of the points that models were asked at last, as they lie on a device.

    Args:
        device: where they are wanted.
        layout: of images in its memory.
        most: bytes to keep; None for a share of what is free on a GPU. A processor keeps none.
    """

    def __init__(
        self, device: torch.device, layout: torch.memory_format, most: int | None = None
    ) -> None:
        self.device, self.layout = device, layout
        self.most = _room(device) if most is None else most
        self._records: Records | None = None
        self._points = b""
        self._forget()

    def _forget(self) -> None:
        self._batches: dict[bytes, _Kept] = {}
        self.bytes = 0

    def turn_to(self, records: Records, points: Indices) -> None:
        """Keep batches of these points (P,) from now on, and no longer those of others."""
        if records is not self._records or points.tobytes() != self._points:
            self._forget()
            self._records, self._points = records, points.tobytes()

    def give_way(self) -> None:
        """Let go of all, and keep half as much from now on: memory has run out."""
        self._forget()
        self.most //= 2

    def at(self, records: Records, wanted: Tensor) -> Inputs:
        """Inputs on the device of records (P,), or of (M, P) for each model its own."""
        if not self.most or wanted.ndim > 1 or records is not self._records:
            return self.moved(inputs_at(records, wanted))
        key = wanted.numpy().tobytes()
        if (known := self._batches.get(key)) is not None:
            if known.versions == written(known.inputs):
                return known.inputs
            self._forget()  # a network of a user's own writes into what it is given
        found = self.moved(inputs_at(records, wanted))
        size = sum(one.nbytes for one in _tensors(found))
        if self.bytes + size <= self.most and (versions := written(found)) is not None:
            self._batches[key], self.bytes = _Kept(found, versions), self.bytes + size
        return found

    def moved(self, inputs: Inputs) -> Inputs:
        """Inputs on the device; on a GPU, images in the layout of the network's weights.

        A convolution runs in the layout of either, and may be slow in the other one.
        """
        if isinstance(inputs, Tensor):
            return self._moved(inputs)
        return {name: self._moved(tensor) for name, tensor in inputs.items()}

    def _moved(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self.device)
        is_image = moved.ndim == 4 and moved.is_floating_point()
        if self.device.type == "cpu" or not is_image:
            return moved
        return moved.contiguous(memory_format=self.layout)


class _Kept(NamedTuple):
    """A batch, and how often its tensors had been written into."""

    inputs: Inputs
    versions: list[int]


def _room(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // SHARE if device.type == "cuda" else 0


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs.values())


def written(inputs: Inputs) -> list[int] | None:
    """How often tensors have been written into; None where they do not tell."""
    tensors = _tensors(inputs)
    return None if any(map(Tensor.is_inference, tensors)) else [one._version for one in tensors]
