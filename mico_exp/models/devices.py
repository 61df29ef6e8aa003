"""Devices: found by their names, and how exactly a GPU multiplies."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from mico_exp.common.errors import InputError

FLOAT32, TF32, BFLOAT16 = PRECISIONS = "float32", "tf32", "bfloat16"


def open_device(name: str) -> torch.device:
    """Find a device by its name, ``cpu`` or ``cuda:1``; ``auto`` is CUDA if it is here.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("expected auto, cpu, cuda or cuda:1")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"`compute.device`: {name} cannot be used here: {reason}") from error
    if device.type == "cuda":
        _open_backwards(device)
    return device


@cache
def _open_backwards(device: torch.device) -> None:
    """Do a first product backwards: PyTorch does so in a thread of its own, and warns of that."""
    one = torch.ones(1, 1, device=device, requires_grad=True)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", message=".*there was no current CUDA context")
        (one @ one).backward()


def describe(device: torch.device) -> str:
    """Name what computes: ``cpu``, or the card."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def check_precision(precision: str, kind: str) -> None:
    """Refuse TF32 on what is no GPU: it would change nothing, and be told of what comes out.

    Raises:
        InputError: so it is.
    """
    if precision == TF32 and kind != "cuda":
        raise InputError(f"`precision` = {TF32} is of CUDA's products, not of {kind}'s.")


def allow_tf32(allowed: bool) -> None:
    """Let a GPU's products have ten bits after the point, or all 23 of a float32.

    cuDNN's convolutions have ten unless told otherwise, which would move logits by about 1e-3.
    Convolutions are repeatable besides: what runs again gives the same bits.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.deterministic = True


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where products are computed in bfloat16, if that is the precision; else nothing changes."""
    if precision != BFLOAT16:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def in_float32(values: torch.Tensor) -> torch.Tensor:
    """Values that `autocast` left in bfloat16 in float32, all others as they are."""
    return values.float() if values.dtype is torch.bfloat16 else values
