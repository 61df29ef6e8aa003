"""Records that are the items of a data set as torch has them, each an input and its label.

Axes: N items, B indices asked for; an item's own axes are any.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mico_exp.challenge.arrays import PLACE
from mico_exp.challenge.labels import numbered
from mico_exp.challenge.records import Inputs, Records, fingerprint_arrays
from mico_exp.common import require
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError, first_line
from mico_exp.common.fingerprints import digest

TWICE = 64  # items that are asked for twice
ALONE = ""  # name of an input that is a tensor, and no dictionary of such


class Item(NamedTuple):
    """Parts of an input by name, and its label."""

    parts: Mapping[str, Tensor]
    label: Any

    @property
    def form(self) -> str:
        """What the parts are, which is the same for all items: ``float32 (3, 8, 8)``."""
        return ", ".join(
            f"{name} {part.dtype} {tuple(part.shape)}".replace("torch.", "").strip()
            for name, part in self.parts.items()
        )

    def room(self, count: int) -> dict[str, Tensor]:
        """Tensors (N, …) for the parts of so many items."""
        return {name: part.new_empty(count, *part.shape) for name, part in self.parts.items()}

    def is_same(self, other: "Item") -> bool:
        """Whether both are the same to the last bit."""
        return (
            self.form == other.form
            and self.label == other.label
            and all(
                part.numpy().tobytes() == other.parts[name].numpy().tobytes()
                for name, part in self.parts.items()
            )
        )


class Items:
    """Records that are asked of a data set one by one, or kept.

    Args:
        reader: gives `Item` i as ``reader[i]``.
        labels: (N,) int64.
        content: hash of all inputs.
        kept: parts (N, …) of all inputs by name; None asks for them whenever they are needed.
    """

    def __init__(
        self, reader: "Reader", labels: Tensor, content: str, kept: Mapping[str, Tensor] | None
    ) -> None:
        self.reader, self.labels, self.content, self.kept = reader, labels, content, kept

    @cached_property
    def fingerprint(self) -> str:
        """Hash of inputs and labels."""
        return digest(self.content, fingerprint_arrays(self.labels.numpy()))

    def inputs(self, indices: Tensor) -> Inputs:
        """Inputs (B, …) of indices (B,)."""
        if self.kept is not None:
            found = {name: part[indices] for name, part in self.kept.items()}
        else:
            items = [self.reader[number].parts for number in indices.tolist()]
            found = {name: torch.stack([parts[name] for parts in items]) for name in items[0]}
        return found.get(ALONE, found)

    def sizes(self, indices: Indices) -> Indices:
        """All the same size."""
        return np.ones_like(indices)


class Reader:
    """Items of a data set, each of which is looked at as it comes.

    Raises:
        InputError: the data set has no length or no items.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.name = dataset, type(dataset).__name__
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise InputError(
                f"`{PLACE}.dataset` must have `__len__` and `__getitem__`, as torch's map-style "
                f"data sets have, got {self.name}."
            )
        self.count = len(dataset)
        if not self.count:
            raise InputError(f"`{PLACE}.dataset`: {self.name} has no items.")

    def __getitem__(self, number: int) -> Item:
        """Item of a number from 0 on."""
        if not 0 <= number < self.count:
            raise IndexError(f"there are {self.count} records, got {number}")
        where = f"item {number} of {self.name}"
        try:
            item = self.dataset[number]
        except Exception as error:  # of a user's code
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{where}: cannot be had: {reason}") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise InputError(f"{where}: must be an input and its label, got {_what(item)}.")
        given, label = item
        several = given if isinstance(given, Mapping) and given else {ALONE: given}
        parts = {str(name): _tensor(part, where) for name, part in several.items()}
        return Item(parts, label.item() if _is_scalar(label) else label)

    def __iter__(self) -> Iterator[Item]:
        numbers = tqdm(range(self.count), desc=f"Reading {self.name}", unit="item", disable=None)
        return (self[number] for number in numbers)


def from_dataset(dataset: Any, keep: bool = True, classes: Any = None) -> Records:
    """Load records from any data set as torch has them: ``dataset[i]`` is an input and its label.

    An input is a tensor, an array, an image of Pillow's, or a dictionary of such. Floats are
    given as float32, whole numbers and truth values as int64, and images as torchvision's
    `ToTensor` gives them. All items are read once, for their labels and their hash.

    Args:
        dataset: whatever has `__len__` and `__getitem__`.
        keep: whether inputs stay in memory; else they are asked for whenever they are needed.
        classes: label values in the order of their numbers; None where they are numbers from 0 on.

    Raises:
        InputError: names the first item that is not what it must be, or another when asked again.
    """
    require.switch(f"{PLACE}.keep", keep)
    reader = Reader(dataset)
    first = reader[0]
    kept = first.room(reader.count) if keep else None
    labels, content = _gathered(reader, first, kept)
    return Items(reader, numbered(labels, classes, reader.name), content, kept)


def _gathered(
    reader: Reader, first: Item, kept: Mapping[str, Tensor] | None
) -> tuple[list[Any], str]:
    """Labels of all items and the hash of their inputs, which are put where they are kept."""
    spread = set(np.linspace(0, reader.count - 1, TWICE).astype(int).tolist())
    labels, seen, hashed = [], {}, hashlib.sha256(first.form.encode())
    for number, item in enumerate(reader):
        if item.form != first.form:
            raise InputError(
                f"item {number} of {reader.name}: must be {first.form}, as item 0, got {item.form}."
            )
        labels.append(item.label)
        for name, part in item.parts.items():
            hashed.update(part.numpy().tobytes())
            if kept is not None:
                kept[name][number] = part
        if number in spread:
            seen[number] = item
    _check_same(reader, seen)
    return labels, hashed.hexdigest()


def _check_same(reader: Reader, seen: Mapping[int, Item]) -> None:
    """Ask for some items again."""
    for number, item in seen.items():
        if not item.is_same(reader[number]):
            raise InputError(
                f"item {number} of {reader.name}: must be the same whenever it is asked for, got "
                "another: leave out random transforms."
            )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0


def _tensor(value: Any, where: str) -> Tensor:
    """Part of an input as models are given it."""
    if isinstance(value, Image.Image):
        value = _of_image(value, where)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor) or value.is_complex() or value.layout != torch.strided:
        raise InputError(
            f"{where}: input must be a tensor, an array, an image or a dictionary of such, got "
            f"{_what(value)}."
        )
    if value.dtype == torch.uint8:
        raise InputError(
            f"{where}: input is of uint8, which no network takes: make it float32, as `ToTensor` "
            "does, or int64."
        )
    kind = torch.float32 if value.is_floating_point() else torch.int64
    return value.detach().to("cpu", kind).contiguous()


def _of_image(image: Image.Image, where: str) -> Tensor:
    """An image as torchvision's `ToTensor` gives it: (C, H, W) in [0, 1]."""
    if image.mode not in ("L", "RGB"):
        raise InputError(f"{where}: image must be of mode L or RGB, got {image.mode}.")
    pixels = np.atleast_3d(np.asarray(image, np.uint8))
    return torch.from_numpy(pixels.astype(np.float32)).movedim(2, 0) / 255


def _what(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} of {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    return type(value).__name__
