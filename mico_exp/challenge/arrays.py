"""Records that lie in arrays, and how what is stored becomes what models see.

Axes: N records, B indices asked for, C channels; the others of a record are as they are stored.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mico_exp.challenge.labels import numbered
from mico_exp.challenge.records import Records, fingerprint_arrays
from mico_exp.common import require
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError, first_line
from mico_exp.common.fingerprints import FileFingerprints, digest

PLACE = "dataset.records"
CHUNK_BYTES = 64 << 20  # that are hashed at once


@dataclass(frozen=True)
class Form:
    """What models see of stored values: ``(values / scale − mean) / std`` in float32, or integers.

    dtype: ``float32``, or ``int64`` for whole numbers that are given as they are.
    layout: a letter for each axis, ``N`` first, such as NHWC: its ``C`` becomes axis 1, and where
        it has none, as NHW, an axis of one channel is put there. None leaves axes as they are.
    scale: that values are divided by; None for 1, which whole numbers must be told.
    mean, std: a number, or one for each channel.
    """

    dtype: str = "float32"
    layout: str | None = None
    scale: float | None = None
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None

    @classmethod
    def told(cls, dtype: Any, layout: Any, scale: Any, mean: Any, std: Any) -> "Form":
        """Make one of what an option says.

        Raises:
            InputError: names what cannot be meant.
        """
        if dtype not in ("float32", "int64"):
            raise InputError(f"`{PLACE}.dtype` must be float32 or int64, got {dtype!r:.80}.")
        if layout is not None and not _is_layout(layout):
            raise InputError(
                f"`{PLACE}.layout` must be a letter for each axis, N first, such as NHWC, NCHW or "
                f"NHW, got {layout!r:.80}."
            )
        if scale is not None:
            require.above(f"{PLACE}.scale", scale, 0)
        return cls(dtype, layout, scale, _numbers("mean", mean), _numbers("std", std))

    def check(self, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> None:
        """Compare it with stored values (N, …).

        Raises:
            InputError: they do not go together; names where they are stored.
        """
        if dtype.kind not in "fiub":
            raise InputError(f"{where}: must hold numbers, got {dtype}.")
        if self.dtype == "int64":
            self._check_whole(dtype, where)
        elif dtype.kind in "iu" and self.scale is None:
            raise InputError(
                f"{where}: holds whole numbers, {dtype}: say `{PLACE}.scale`, which they are "
                "divided by (255 for pixels, 1 for none), or `dtype: int64`, as embeddings want."
            )
        if self.layout is not None and len(self.layout) != len(shape):
            raise InputError(
                f"{where}: must have {len(self.layout)} axes, as `{PLACE}.layout` {self.layout} "
                f"says, got {shape}."
            )
        for name in ("mean", "std"):
            self._check_channels(name, shape, where)

    def _check_whole(self, dtype: np.dtype[Any], where: str) -> None:
        if not np.can_cast(dtype, np.int64):
            raise InputError(f"{where}: must hold whole numbers for `dtype: int64`, got {dtype}.")
        for name in ("scale", "mean", "std"):
            if getattr(self, name) is not None:
                raise InputError(f"`{PLACE}.{name}` is for `dtype: float32`, got `dtype: int64`.")

    def _check_channels(self, name: str, shape: tuple[int, ...], where: str) -> None:
        """Compare a list of numbers with the channels of a record."""
        numbers = getattr(self, name)
        if not isinstance(numbers, tuple):
            return
        if self.layout is None and len(shape) != 2:
            raise InputError(
                f"`{PLACE}.{name}` is one for each channel, so `{PLACE}.layout` must say which "
                f"axis that is of {where}, {shape}: NHWC or NCHW."
            )
        if (channels := self.seen(shape)[1]) != len(numbers):
            raise InputError(
                f"`{PLACE}.{name}` must have a number for each of the {channels} channels of "
                f"{where}, got {len(numbers)}."
            )

    def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape that models see of stored values (N, …)."""
        if self.layout is None:
            return shape
        axis = self.layout.find("C")
        rest = [size for place, size in enumerate(shape) if place not in (0, axis)]
        return (shape[0], 1 if axis < 0 else shape[axis], *rest)

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """Inputs (B, …) of stored values (B, …)."""
        if self.layout is not None:
            axis = self.layout.find("C")
            values = values[:, None] if axis < 0 else np.moveaxis(values, axis, 1)
        given = torch.from_numpy(np.ascontiguousarray(values, dtype=self.dtype))
        if self.scale is not None:
            given = given / self.scale
        if self.mean is not None:
            given = given - _by_channel(self.mean, given)
        return given if self.std is None else given / _by_channel(self.std, given)


def _is_layout(layout: Any) -> bool:
    letters = isinstance(layout, str) and layout.isascii() and layout.isalpha()
    return letters and layout.isupper() and layout[0] == "N" and len({*layout}) == len(layout) > 1


def _numbers(name: str, told: Any) -> float | tuple[float, ...] | None:
    """Read a number, or one for each channel."""
    if told is None:
        return None
    several = isinstance(told, Sequence) and not isinstance(told, str)
    for number in told if several else [told]:
        require.number(f"{PLACE}.{name}", number)
        if name == "std":
            require.above(f"{PLACE}.{name}", number, 0)
    return tuple(map(float, told)) if several else float(told)


def _by_channel(numbers: float | tuple[float, ...], given: Tensor) -> Tensor:
    several = numbers if isinstance(numbers, tuple) else (numbers,)
    return torch.tensor(several).view(-1, *[1] * (given.ndim - 2))


class Joined:
    """Arrays (…, …) one after another along their first axis, none of which is copied."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.dtype = parts[0].dtype
        self.shape = (int(self.ends[-1]), *parts[0].shape[1:])

    def __getitem__(self, indices: Indices) -> NDArray[Any]:
        """Rows at `indices` (B,), from 0 on."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.shape[0]:
            raise IndexError(f"there are {self.shape[0]} records, got {indices.max()}")
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        place = np.searchsorted(self.ends, indices, side="right")
        for number in np.unique(place):
            here, part = place == number, self.parts[number]
            found[here] = part[indices[here] - (self.ends[number] - len(part))]
        return found


class Arrays:
    """Records that are stored as rows of an array, of any number of axes.

    Args:
        values: (N, …) numbers, in memory or mapped.
        labels: (N,) int64.
        form: what models see of them.
        content: hash of the values.
    """

    def __init__(
        self, values: NDArray[Any] | Joined, labels: Tensor, form: Form, content: str
    ) -> None:
        self.values, self.labels, self.form, self.content = values, labels, form, content

    @property
    def fingerprint(self) -> str:
        """Hash of values, labels and form."""
        labels = fingerprint_arrays(self.labels.numpy())
        return digest(self.content, labels, json.dumps(asdict(self.form)))

    def inputs(self, indices: Tensor) -> Tensor:
        """Inputs (B, …) of indices (B,)."""
        return self.form(np.asarray(self.values[indices.numpy()]))

    def sizes(self, indices: Indices) -> Indices:
        """All the same size."""
        return np.ones_like(indices)


def from_files(
    inputs: str | Sequence[str],
    labels: str | Sequence[str],
    classes: Sequence[Any] | None = None,
    layout: str | None = None,
    dtype: str = "float32",
    scale: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    store: str | None = None,
) -> Records:
    """Load records from arrays in NumPy's format; nothing is unpickled.

    A ``.npy`` file of inputs is mapped, so that it may be larger than memory; an array of a
    ``.npz`` file is read.

    Args:
        inputs: file of inputs (N, …), ``images.npy`` or ``data.npz:images``; or several, one
            after another.
        labels: file of labels (N,), or as many as of inputs.
        classes: label values in the order of their numbers; None where they are numbers from 0 on.
        layout: of the axes, such as NHWC or NCHW; None leaves them as they are.
        dtype: that models see, float32 or int64.
        scale: that inputs are divided by, which whole numbers must be told.
        mean: that is then taken away, a number or one for each channel.
        std: that the rest is divided by, as `mean`.
        store: where the hashes of large files are remembered; None hashes them every time.

    Raises:
        InputError: names the file that is not what it must be.
    """
    form = Form.told(dtype, layout, scale, mean, std)
    hashes = Hashes(store)
    values, content, where = _joined("inputs", inputs, hashes)
    form.check(values.dtype, values.shape, where)
    numbers, _, place = _joined("labels", labels, hashes)
    found = numbers[np.arange(numbers.shape[0])]
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise InputError(f"{place}: labels must have one axis, got {found.shape}.")
    hashes.save()
    if len(found) != values.shape[0]:
        raise InputError(
            f"{place}: must have a label for each record, got {len(found)} for the "
            f"{values.shape[0]} of {where}."
        )
    return Arrays(values, numbered(found, classes, place), form, content)


class Hashes:
    """Hashes of arrays in files, remembered where there is a store.

    Args:
        store: folder that holds them, in ``records/``; None for none.
    """

    def __init__(self, store: str | None) -> None:
        self.files = None
        if store is not None:
            place = require.folder(f"{PLACE}.store", store) / "records"
            self.files = FileFingerprints(place / "fingerprints.json")

    def of(self, path: Path) -> str:
        """Hash of each array in a file, as JSON."""
        return contents(path) if self.files is None else self.files.checked(path, contents)[1]

    def save(self) -> None:
        """Remember what was hashed."""
        if self.files is not None:
            self.files.save()


def contents(path: Path) -> str:
    """Hash of each array in a file, as JSON, by name; a ``.npy`` file's has none."""
    found = {}
    for name in _names(path):
        with suppress(InputError):  # another array of the file may be none of numbers
            found[name] = hash_of(_read(path, name))
    return json.dumps(found)


def hash_of(array: NDArray[Any]) -> str:
    """SHA-256 of an array's type, shape and content, read a part at a time."""
    rows = np.atleast_1d(array)
    step = max(1, len(rows) * CHUNK_BYTES // max(rows.nbytes, 1))
    parts = [fingerprint_arrays(rows[at : at + step]) for at in range(0, len(rows), step)]
    return digest(str(array.dtype), str(array.shape), *parts)


def _joined(
    name: str, told: str | Sequence[str], hashes: Hashes
) -> tuple[NDArray[Any] | Joined, str, str]:
    """Arrays that an option names, one after another; their hash, and what messages call them."""
    named = [told] if isinstance(told, (str, Path)) else told
    if not isinstance(named, Sequence) or not named:
        raise InputError(f"`{PLACE}.{name}` must name a file or several, got {told!r:.80}.")
    parts, found = [], []
    for text in named:
        path, key = _place(name, text)
        parts.append(opened(path, key))
        found.append(json.loads(hashes.of(path))[key])
        if parts[-1].shape[1:] != parts[0].shape[1:] or parts[-1].dtype != parts[0].dtype:
            raise InputError(
                f"{text}: must hold records as {named[0]} does, {parts[0].shape[1:]} of "
                f"{parts[0].dtype}, got {parts[-1].shape[1:]} of {parts[-1].dtype}."
            )
    where = " and ".join(map(str, named))
    return (
        (parts[0], found[0], where) if len(parts) == 1 else (Joined(parts), digest(*found), where)
    )


def _place(name: str, text: str) -> tuple[Path, str]:
    """File that an option names, and which array of it: ``data.npz:images``."""
    file, found, key = str(text).partition(".npz:")
    path = require.existing_file(f"{PLACE}.{name}", f"{file}.npz" if found else text)
    names = _names(path)
    if key not in names:
        there = ", ".join(f"{path.name}:{one}" for one in names)
        raise InputError(f"`{PLACE}.{name}` must name an array of {path}, {there}; got {text}.")
    return path, key


def _names(path: Path) -> list[str]:
    """Names of the arrays in a file."""
    if path.suffix != ".npz":
        return [""]
    with _plainly(path), np.load(path, allow_pickle=False) as found:
        return list(found.files)


def opened(path: Path, name: str = "") -> NDArray[Any]:
    """Map the array of a ``.npy`` file, or read one of a ``.npz`` file, with a row for each record.

    Raises:
        InputError: it is none, or holds Python objects.
    """
    array = _read(path, name)
    if not array.ndim or not len(array):
        raise InputError(f"{path}: must hold a row for each record, got {array.shape}.")
    return array


def _read(path: Path, name: str) -> NDArray[Any]:
    with _plainly(path):
        if path.suffix != ".npz":
            return np.lib.format.open_memmap(path, mode="r")
        with np.load(path, allow_pickle=False) as found:
            return found[name]


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever NumPy and zip make of it
        raise InputError(
            f"{path}: holds no array of numbers in NumPy's format, and Python objects are never "
            f"unpickled: {first_line(error)}"
        ) from error
