"""What a file is that should hold weights, and does not: said in a line, nothing of it is run."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mico_exp.common.errors import first_line, printable

SAVE = "save its `state_dict()`"
NESTED = ("state_dict", "model_state_dict", "module_state_dict", "model")  # where others keep it
OPACUS = "a checkpoint of Opacus before 1.6, which holds code: save its `module_state_dict` alone"
LOOK = 512  # bytes that tell a text
REFUSED = re.compile(r"GLOBAL ([\w.]+)")  # what torch says that a pickle asks for


def what_is(path: Path, error: BaseException) -> str:
    """Say what a file is that `error` was raised for, as far as its content tells."""
    if isinstance(error, MemoryError):
        return "it wants more memory than there is."
    try:
        with path.open("rb") as file:
            start = file.read(LOOK)
    except OSError as refused:
        return f"{refused.strerror}."
    if told := _text(start):
        return told
    if start.startswith(b"PK"):
        return _zip(path, error)
    return _pickle(error)


def _text(start: bytes) -> str:
    if not start:
        return "it is empty."
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`."
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not the file itself: does its address ask to sign in?"
    if start.startswith(b"\x93NUMPY"):
        return "it is an array of NumPy, not a state dict."
    return ""


def _zip(path: Path, error: BaseException) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "it has no end: was it cut off?"
    except Exception as damage:  # whatever zipfile makes of flipped bits
        return f"it is damaged: {first_line(damage)}."
    if any(name.endswith((".npy", ".npz")) for name in names):
        return "it holds arrays of NumPy, not a state dict."
    if any("/code/" in f"/{name}" or name.endswith("constants.pkl") for name in names):
        return f"it is TorchScript, which carries code of its own: {SAVE}."
    if not any(name.endswith("data.pkl") for name in names):
        return f"it is a zip, but none of torch's: it holds {printable(', '.join(names[:3]))}."
    return _pickle(error)


def _pickle(error: BaseException) -> str:
    found = REFUSED.findall(str(error))
    if any(name.startswith("opacus.") for name in found) or "getattr" in found:
        return f"it is {OPACUS}."
    if any(name.startswith("numpy.") for name in found):
        return "it holds arrays of NumPy: save them as tensors."
    if found:
        return f"it is a pickled {printable(found[0])}, which is not unpickled: {SAVE}."
    # torch's own words go on to recommend loading without a check, which nobody should
    line = first_line(error).partition("(1)")[0].strip()
    return line if line and "weights_only" not in line else "it is no file of torch."


def what_holds(loaded: Any) -> str:
    """Say what was loaded that is no state dict, and where in it one might be."""
    if not isinstance(loaded, Mapping):
        return _kind(loaded)
    for key in NESTED:
        if isinstance(loaded.get(key), Mapping):
            return f"a dict with one as its `{key}`: save that by itself"
    wrong = next((key for key, value in loaded.items() if not isinstance(value, Tensor)), None)
    if wrong is None:
        return "an empty dict"
    return f"a dict with {_kind(loaded[wrong])} as its {printable(repr(wrong), 80)}"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "one tensor"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of the type {type(value).__name__}"


def why_unusable(tensor: Tensor) -> str:
    """Say why a tensor cannot be a weight as it is; nothing where it can."""
    if tensor.is_sparse or tensor.layout is not torch.strided:
        return f"is sparse ({printable(str(tensor.layout))}): save it by `to_dense()`"
    if tensor.is_meta:
        return "has no values, only a shape (device meta)"
    if tensor.is_complex():
        return f"is complex ({tensor.dtype})"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}): save it by `dequantize()`"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "repeats what it holds: save it by `contiguous()`"
    return ""
