"""Files of weights: found, checked, and read without running anything that they hold."""

import hashlib
import math
import os
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mico_exp.common import require
from mico_exp.common.errors import InputError, printable
from mico_exp.common.fingerprints import FileFingerprints, Status
from mico_exp.models.architectures import DP_PREFIX, State, bare, ignored_keys
from mico_exp.models.foreign import what_holds, what_is, why_unusable

WEIGHTS = ("model.pt", "model.safetensors", "pytorch_model.bin")
KEPT_BYTES = 128 << 20  # of models that are read once, to be checked and to be run
SMALL_BYTES = 2 << 20  # of a file that takes longer to unpickle than to read
ZIP_START = b"PK\x03\x04"  # by which torch, too, tells its format since 1.6 from the older one
ZIP_FOLDER = 0x10  # an attribute of an entry


def weights_file(folder: Path) -> Path:
    """Find the file with a model's weights.

    Raises:
        InputError: there is none, or more than one.
    """
    return model_files(folder)[0]


def model_files(folder: Path) -> list[Path]:
    """All files that decide what a model computes: its weights, and its shape if it is told.

    Raises:
        InputError: as `weights_file`.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    found = [name for name in WEIGHTS if name in names]
    if not found:
        raise InputError(f"{folder} holds no weights: expected one of {', '.join(WEIGHTS)}.")
    if len(found) > 1:
        raise InputError(_several(folder, found))
    return [require.file(folder / name) for name in (*found, "config.json") if name in names]


def _several(folder: Path, names: Sequence[str]) -> str:
    """Say that a folder holds several weights files, and which are the older: a copy looks new."""
    times = {name: (folder / name).lstat().st_mtime_ns for name in names}
    older = [name for name in names if times[name] < max(times.values())]
    hint = f" (by its time stamp {' and '.join(older)})" if older else ""
    return (
        f"{folder} must hold one weights file, got {' and '.join(names)}. "
        f"Remove what is stale{hint}."
    )


class Fingerprint(NamedTuple):
    """What a model's folder holds.

    files: SHA-256 of every file that decides what the model computes.
    weights: of its weights, as `check_weights` gives it.
    """

    files: tuple[str, ...]
    weights: str


def fingerprint(folder: Path, files: FileFingerprints) -> Fingerprint:
    """Take a model's fingerprint; its weights are checked when their file is first seen.

    Raises:
        InputError: there are no weights, or they are damaged.
    """
    weights, *others = model_files(folder)
    value, checked = files.checked(weights, check_weights)
    return Fingerprint((value, *map(files.of, others)), checked)


class _JustChecked:
    """Small states that were read for their check, until they are asked for: then not again.

    Reading one is mostly unpickling, and took a tenth of a pass of small models. What is kept is
    no part of what the code does, so `fingerprints.definition` must not see it: hence the property.
    """

    @cached_property
    def _states(self) -> dict[tuple[Path, Status], dict[str, Tensor]]:
        return {}

    def keep(self, path: Path, state: dict[str, Tensor]) -> None:
        """Keep a state, if there is room, and its file has been at rest for a while."""
        status, states = Status.of(path), [*self._states.values(), state]
        size = sum(tensor.nbytes for one in states for tensor in one.values())
        if status.is_at_rest and size <= KEPT_BYTES:
            self._states[path, status] = state

    def take(self, path: Path) -> dict[str, Tensor] | None:
        """Give a state, once; None if it is not kept, or the file is another by now."""
        with suppress(OSError):  # whoever reads it then says so
            return self._states.pop((path, Status.of(path)), None)
        return None


_just_checked = _JustChecked()


def check_weights(path: Path) -> str:
    """Check that a weights file is whole, and give the SHA-256 of its weights alone.

    It is the same for the same weights, in whatever format, order or precision they are written,
    with or without DP training's prefix, and empty where they are not finite. Whole numbers count
    only where there are no others: counters and constant buffers make no other model.

    A zip, torch's format since 1.6, has a checksum of every entry. Of safetensors the header alone
    can be checked, and of the older format what makes it unreadable: neither has any checksum.

    Raises:
        InputError: the file is damaged, or cannot be read as tensors.
    """
    try:
        _check_sums(path)
        small = path.stat().st_size <= SMALL_BYTES
        state = _read_state(path, mapped=not small)
        if small:
            _just_checked.keep(path, state)
        return _digest(state)
    except InputError:
        raise
    except Exception as error:  # whatever zipfile makes of flipped bits, torch of odd tensors
        raise _unreadable(path, what_is(path, error)) from error


def _check_sums(path: Path) -> None:
    """Compare all entries of a zip with their checksums, which `torch.load` does not do.

    Of an entry that is marked as a folder it reads nothing, and takes what lies in memory.
    """
    if not _is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:
        if (entry := archive.testzip()) is not None:
            raise _unreadable(path, f"it is damaged: {printable(entry)} differs from its checksum.")
        for one in archive.infolist():
            name = printable(one.filename)
            if one.external_attr & ZIP_FOLDER and not one.is_dir():
                raise _unreadable(path, f"it is damaged: {name} is marked as a folder.")
            if one.compress_type != zipfile.ZIP_STORED:  # what is mapped would be taken as it lies
                raise ValueError(f"{name} is compressed, which torch does not do.")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP_START)) == ZIP_START


def _digest(state: State) -> str:
    floats = {name: t.float() for name, t in state.items() if t.is_floating_point()}
    if not_finite(floats):
        return ""
    found = hashlib.sha256()
    for name, tensor in sorted((floats or dict(state)).items()):
        values = tensor.contiguous().numpy()
        found.update(repr((name, values.dtype.str, values.shape)).encode())
        found.update(values.data)
    return found.hexdigest()


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: cannot be read as a state dict: {reason}")


def load_state(path: Path, like: nn.Module, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read a state dict without unpickling code, and check that it fits the architecture.

    Keys lose the prefix that DP training adds. With `mapped` the values stay on disk until they
    are used, which makes a check of the shapes cheap.

    Raises:
        InputError: the file cannot be read as tensors, or the first key that is missing,
            unexpected or of another shape.
    """
    state = _just_checked.take(path) or _read_state(path, mapped=mapped)
    for name in ignored_keys(like):
        state.pop(name, None)
    expected = bare(like).state_dict()
    _check_fit(path, state, expected)
    return {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}


def _read_state(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read a state dict of whatever architecture, as `load_state` does.

    Raises:
        InputError: the file cannot be read as tensors, or has a key with and without the prefix.
    """
    try:
        loaded = _read_tensors(path, mapped)
    except Exception as error:  # zip, pickle and OS errors alike mean: this file is no model
        raise _unreadable(path, what_is(path, error)) from error
    tensors = isinstance(loaded, dict) and all(isinstance(v, Tensor) for v in loaded.values())
    if not tensors or not loaded:
        raise InputError(f"{path}: expected a state dict of tensors, got {what_holds(loaded)}.")
    state: dict[str, Tensor] = {}
    for key, tensor in loaded.items():
        name = str(key).removeprefix(DP_PREFIX)
        if name in state:
            raise InputError(
                f"{path}: key `{printable(name)}` must be there once, got it with and without "
                f"`{DP_PREFIX}`."
            )
        if wrong := why_unusable(tensor):
            raise InputError(f"{path}: key `{printable(name)}` {wrong}.")
        state[name] = tensor.detach()  # parameters come as such
    return state


def _read_tensors(path: Path, mapped: bool) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    mapped = mapped and _is_zip(path)  # the format before torch 1.6 cannot be mapped
    with warnings.catch_warnings():  # what is wrong is an error, here or at the next check
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _check_fit(path: Path, state: State, expected: State) -> None:
    for name, tensor in expected.items():
        if name not in state:
            raise InputError(f"{path}: key `{name}` of shape {tuple(tensor.shape)} is missing.")
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise InputError(
                f"{path}: key `{name}` must be {tensor.dtype}, got {state[name].dtype}."
            )
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{path}: key `{name}` must have shape {tuple(tensor.shape)}, "
                f"got {tuple(state[name].shape)}."
            )
    if unexpected := [name for name in state if name not in expected]:
        name = unexpected[0]
        raise InputError(
            f"{path}: key `{printable(name)}` of shape {tuple(state[name].shape)} is unexpected."
        )


def not_finite(state: State) -> int:
    """Count the weights that are NaN or infinite."""
    floats = [tensor for tensor in state.values() if tensor.is_floating_point()]
    if all(math.isfinite(tensor.sum()) for tensor in floats):  # five times as quick as looking
        return 0
    return sum(int((~tensor.isfinite()).sum()) for tensor in floats)
