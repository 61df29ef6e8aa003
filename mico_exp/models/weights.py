"""Files of weights: found, checked, and read without running anything that they hold."""

import hashlib
import json
import math
import os
import re
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
from mico_exp.common.errors import InputError, first_line, printable
from mico_exp.common.fingerprints import FileFingerprints, Status, digest
from mico_exp.models.architectures import State, bare, ignored_keys
from mico_exp.models.foreign import what_holds, what_is, why_unusable
from mico_exp.models.states import fitted, innermost, unwrap

INDEX = ".index.json"  # of weights that lie in several files, shards
WHOLE = ("model.safetensors", "pytorch_model.bin")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # of `peft`
WEIGHTS = ("model.pt", *WHOLE, *(f"{name}{INDEX}" for name in WHOLE), *ADAPTERS)
SHAPES = ("config.json", "adapter_config.json")
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

    The first is that of the weights, or the index of their shards, which come next.

    Raises:
        InputError: as `weights_file`.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    found = [name for name in WEIGHTS if name in names]
    if not found:
        raise InputError(f"{folder} holds no weights: expected one of {', '.join(WEIGHTS)}.")
    if len(found) > 1:
        raise InputError(_several(folder, found))
    parts = [*found, *_shards(folder / found[0]), *SHAPES]
    return [require.file(folder / name) for name in parts if name in names]


def weights_bytes(folder: Path) -> int:
    """Bytes on disk of all that decides what a model computes.

    Raises:
        InputError: as `weights_file`.
    """
    return sum(path.stat().st_size for path in model_files(folder))


def _shards(index: Path) -> list[str]:
    """Names of the files that an index refers to, ascending; none where it is no index.

    Raises:
        InputError: it is no index, or a name is none of a file of weights beside it.
    """
    if not index.name.endswith(INDEX):
        return []
    names = sorted(set(_places(index).values()))
    whole = Path(index.name.removesuffix(INDEX))
    shard = re.compile(rf"{re.escape(whole.stem)}-[\w-]+{re.escape(whole.suffix)}", re.ASCII)
    for name in names:
        if not shard.fullmatch(name):
            raise InputError(
                f"{index}: must name files as {whole.stem}-00001-of-00002{whole.suffix} beside "
                f"it, got {printable(repr(name), 80)}."
            )
        if not (index.parent / name).is_file():
            raise InputError(f"{index.parent / name} is missing: {index.name} names it.")
    return names


def _places(index: Path) -> dict[str, str]:
    """Key → name of the file that holds it, as an index has them."""
    try:
        told = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        places = {str(key): str(name) for key, name in told.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{index}: must hold a `weight_map` of keys and names of files: {first_line(error)}."
        ) from error
    if not places:
        raise InputError(f"{index}: must name at least one file of weights, got none.")
    return places


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
    every = model_files(folder)
    shards = [folder / name for name in _shards(every[0])]
    checked = {path: files.checked(path, check_weights) for path in shards or every[:1]}
    values = (checked[path][0] if path in checked else files.of(path) for path in every)
    return Fingerprint(tuple(values), _of_parts([said for _, said in checked.values()]))


def _of_parts(checked: Sequence[str]) -> str:
    """What `check_weights` says of weights by what it says of each of their files."""
    return checked[0] if len(checked) == 1 else digest(*checked) * all(checked)


class _JustChecked:
    """Small states that were read for their check, until they are asked for: then not again.

    Reading one is mostly unpickling, and took a tenth of a pass of small models. What is kept is
    no part of what the code does, so `fingerprints.definition` must not see it: hence the property.
    """

    @cached_property
    def _states(self) -> dict[tuple[Path, Status], tuple[int, dict[str, Tensor]]]:
        return {}

    def keep(self, path: Path, state: dict[str, Tensor]) -> None:
        """Keep a state, if there is room, and its file has been at rest for a while."""
        status, size = Status.of(path), sum(tensor.nbytes for tensor in state.values())
        kept = sum(one for one, _ in self._states.values())
        if status.is_at_rest and kept + size <= KEPT_BYTES:
            self._states[path, status] = size, state

    def take(self, path: Path) -> dict[str, Tensor] | None:
        """Give a state, once; None if it is not kept, or the file is another by now."""
        with suppress(OSError):  # whoever reads it then says so
            return self._states.pop((path, Status.of(path)), (0, None))[1]
        return None


_just_checked = _JustChecked()


def check_weights(path: Path) -> str:
    """Check that a weights file is whole, and give the SHA-256 of its weights alone.

    It is the same for the same weights, in whatever format, order or precision they are written,
    with or without DP training's prefix, and empty where they are not finite. Whole numbers count
    only where there are no others: counters and constant buffers make no other model.

    A zip, torch's format since 1.6, has a checksum of every entry. Of safetensors the header alone
    can be checked, and of the older format what makes it unreadable: neither has any checksum.
    Of an index every shard is checked; the same weights in one file have another SHA-256.

    Raises:
        InputError: the file is damaged, or cannot be read as tensors.
    """
    if shards := _shards(path):
        return _of_parts([check_weights(path.parent / name) for name in shards])
    try:
        _check_sums(path)
        small = path.stat().st_size <= SMALL_BYTES
        state = read_state(path, mapped=not small)
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

    What wraps the keys of a module in training, `_module.` and the like, is taken off; a module's
    own `load_state_dict` says what older keys mean. With `mapped` the values stay on disk until
    they are used, which makes a check of the shapes cheap.

    Raises:
        InputError: the file cannot be read as tensors, or the first key that is missing,
            unexpected or of another shape.
    """
    state = _just_checked.take(path) or read_state(path, mapped=mapped)
    for name in ignored_keys(like):
        state.pop(name, None)
    return fitted(path, state, bare(like))


def read_state(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read a state dict of whatever architecture, as `load_state` does, under its own keys.

    Raises:
        InputError: the file cannot be read as tensors, or has a key with and without the prefix.
    """
    try:
        loaded = _read_tensors(path, mapped)
    except InputError:
        raise
    except Exception as error:  # zip, pickle and OS errors alike mean: this file is no model
        raise _unreadable(path, what_is(path, error)) from error
    loaded = innermost(path, loaded)
    tensors = isinstance(loaded, dict) and all(isinstance(v, Tensor) for v in loaded.values())
    if not tensors or not loaded:
        raise InputError(f"{path}: expected a state dict of tensors, got {what_holds(loaded)}.")
    for key, tensor in loaded.items():
        if wrong := why_unusable(tensor):
            raise InputError(f"{path}: key `{printable(str(key))}` {wrong}.")
    # Parameters come as such.
    return unwrap(path, {str(key): tensor.detach() for key, tensor in loaded.items()})


def _read_shards(index: Path, mapped: bool) -> dict[str, Any]:
    """Tensors of all shards; whatever else one holds is no state dict, and comes as it is."""
    found: dict[str, Any] = {}
    for name in _shards(index):
        path = index.parent / name
        try:
            found |= _read_tensors(path, mapped)
        except Exception as error:
            raise _unreadable(path, what_is(path, error)) from error
    if lacking := sorted(_places(index).keys() - found.keys()):
        raise InputError(
            f"{index}: its files must hold key `{printable(lacking[0])}`, got none of that name."
        )
    return found


def _read_tensors(path: Path, mapped: bool) -> Any:
    if path.name.endswith(INDEX):
        return _read_shards(path, mapped)
    if path.suffix == ".safetensors":
        return load_file(path)
    mapped = mapped and _is_zip(path)  # the format before torch 1.6 cannot be mapped
    with warnings.catch_warnings():  # what is wrong is an error, here or at the next check
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def not_finite(state: State) -> int:
    """Count the weights that are NaN or infinite."""
    floats = [tensor for tensor in state.values() if tensor.is_floating_point()]
    if all(math.isfinite(tensor.sum()) for tensor in floats):  # five times as quick as looking
        return 0
    return sum(int((~tensor.isfinite()).sum()) for tensor in floats)
