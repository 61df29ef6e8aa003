"""State dicts as others write them, made to fit the module that is to have them.

What a module's own `load_state_dict` makes of a state is what counts: its hooks know the keys of
older releases. A state that has the module's keys as they are needs none of this.
"""

import copy
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mico_exp.common.errors import InputError, printable
from mico_exp.models.architectures import DP_PREFIX, State
from mico_exp.models.foreign import NESTED

log = logging.getLogger(__name__)
DEEPEST = 3  # of one entry within another
ALWAYS = (DP_PREFIX, "_orig_mod.")  # of DP-SGD and of `torch.compile`: no attribute is called so
WRAPPED = "module."  # of data-parallel training, where all keys have it; also a fair attribute
HALF = (torch.float16, torch.bfloat16)
HALF_ROUNDING = 1e-2  # of a buffer that is saved in half precision
MASKED = -1e4  # what attention gave to masked positions, or less


@cache
def say(text: str) -> None:
    """Log a line, once in this process."""
    log.info("%s", text)


def innermost(path: Path, loaded: Any) -> Any:
    """Take a state dict out of a checkpoint that has it as an entry; anything else as it is.

    Raises:
        InputError: there are two.
    """
    for _ in range(DEEPEST):
        if not isinstance(loaded, Mapping):
            break
        found = [key for key in NESTED if isinstance(loaded.get(key), Mapping)]
        if len(found) > 1:
            names = " and ".join(f"`{key}`" for key in found)
            raise InputError(f"{path}: must hold one state dict, got {names}: save one by itself.")
        if not found:
            break
        say(f"State dicts are taken out of the entry `{found[0]}` of their files.")
        loaded = loaded[found[0]]
    return loaded


def unwrapped(names: Collection[str]) -> dict[str, str]:
    """Keys of a state → the same without what wraps a module in training."""
    found = {name: name for name in names}
    while True:
        prefixes = (*ALWAYS, WRAPPED) if _all_start(found.values()) else ALWAYS
        shorter = {name: _without(one, prefixes) for name, one in found.items()}
        if shorter == found:
            return found
        found = shorter


def _all_start(names: Iterable[str]) -> bool:
    return all(name.startswith(WRAPPED) for name in names)


def _without(name: str, prefixes: Iterable[str]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def unwrap(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without what wraps its module's keys.

    Raises:
        InputError: a key is there with and without.
    """
    names = unwrapped(state.keys())
    found: dict[str, Tensor] = {}
    for key, name in names.items():
        if name in found:
            short, long = sorted((one for one in names if names[one] == name), key=len)[:2]
            raise InputError(
                f"{path}: key `{printable(name)}` must be there once, got it with and without "
                f"`{printable(long.removesuffix(short))}`."
            )
        if key != name:
            say(f"Keys of weights lose `{printable(key.removesuffix(name))}` in their files.")
        found[name] = state[key]
    return found


def fitted(path: Path, state: State, network: nn.Module) -> dict[str, Tensor]:
    """A state with the keys, shapes and types that a network's own `state_dict` has.

    Args:
        path: of its file, for messages.
        state: as `unwrap` gives it.
        network: which is left as it is.

    Raises:
        InputError: the first key that is missing, unexpected, or of another shape or kind.
    """
    expected = network.state_dict()
    own = {name: key for key, name in unwrapped(expected.keys()).items()}
    state = {own.get(name, name): tensor for name, tensor in state.items()}
    state = _with_ties(path, state, network)
    if state.keys() != expected.keys():
        state = _without_constants(path, state, network)
    for name in expected:
        if name in state:
            _check_form(path, name, state[name], expected[name])
    if state.keys() != expected.keys():
        state = _by_hooks(path, state, network)
    if any(tensor.dtype in HALF for tensor in state.values()):
        say("Weights that are kept in half precision are run in float32.")
    return {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}


def _with_ties(path: Path, state: State, network: nn.Module) -> dict[str, Tensor]:
    """With each name of a parameter that has several, of which files often have one."""
    found = dict(state)
    for names in _ties(network):
        known = [name for name in names if name in state]
        for name in known[1:]:
            if not torch.equal(state[name], state[known[0]]):
                raise InputError(
                    f"{path}: keys `{known[0]}` and `{name}` must be the same, as they are one "
                    "parameter of the network, got other values."
                )
        found |= {name: state[known[0]] for name in names if known}
    return found


def _ties(network: nn.Module) -> list[list[str]]:
    """Names of each parameter that has more than one."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _without_constants(path: Path, state: State, network: nn.Module) -> dict[str, Tensor]:
    """Without what older releases saved and newer ones make themselves."""
    modules, expected = dict(network.named_modules()), network.state_dict().keys()
    told = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()  # of transformers
    dropped = []
    for name in (name for name in state if name not in expected):
        place, _, last = name.rpartition(".")
        owner = modules.get(place)
        if owner is not None and last in owner._non_persistent_buffers_set:
            _check_same(path, name, state[name], owner._buffers[last])
        elif not (any(re.search(one, name) for one in told) or _is_constant(last, state[name])):
            continue
        dropped.append(name)
        say(f"Keys of weights that a network makes itself are left out: `{printable(last)}`.")
    return {name: tensor for name, tensor in state.items() if name not in dropped}


def _check_same(path: Path, name: str, given: Tensor, own: Tensor | None) -> None:
    same = own is not None and given.shape == own.shape
    if (
        own is None
        or not same
        or not torch.allclose(
            given.double(), own.detach().cpu().double(), rtol=HALF_ROUNDING, atol=0
        )
    ):
        raise InputError(
            f"{path}: key `{printable(name)}` must be what the network makes itself, as it cannot "
            "be set, got other values."
        )


def _is_constant(name: str, tensor: Tensor) -> bool:
    """Tell what `transformers` saved by its values: positions, a causal mask, what masks."""
    if name == "position_ids":
        return tensor.ndim > 0 and bool((tensor == torch.arange(tensor.shape[-1])).all())
    if name == "bias":
        is_square = tensor.ndim == 4 and tensor.shape[-1] == tensor.shape[-2]
        return is_square and torch.equal(tensor.float(), torch.ones(tensor.shape).tril())
    return name == "masked_bias" and tensor.numel() == 1 and bool(tensor <= MASKED)


def _check_form(path: Path, name: str, given: Tensor, expected: Tensor) -> None:
    if given.is_floating_point() != expected.is_floating_point():
        raise InputError(f"{path}: key `{name}` must be {expected.dtype}, got {given.dtype}.")
    if given.shape != expected.shape:
        raise InputError(
            f"{path}: key `{name}` must have shape {tuple(expected.shape)}, "
            f"got {tuple(given.shape)}."
        )


def _by_hooks(path: Path, state: State, network: nn.Module) -> dict[str, Tensor]:
    """What a network's own `load_state_dict` makes of a state, by a copy of the network."""
    twin = copy.deepcopy(network)
    try:
        twin.load_state_dict(dict(state))  # strictly; some take nothing but a state
    except Exception as error:  # whatever a module's own way makes of it
        raise InputError(f"{path}: {_misfit(str(error), state, network)}") from error
    return {name: tensor.cpu() for name, tensor in twin.state_dict().items()}


def _misfit(told: str, state: State, network: nn.Module) -> str:
    """Name the first key that torch says is missing or unexpected, or else what it says."""
    for kind, known in (("Missing", network.state_dict()), ("Unexpected", state)):
        if line := re.search(rf"{kind} key\(s\) in state_dict: (.*)", told):
            name, *others = re.findall('"([^"]*)"', line[1])
            shape = f" of shape {tuple(known[name].shape)}" if name in known else ""
            more = f", and so are {len(others)} more" if others else ""
            return f"key `{printable(name)}`{shape} is {kind.lower()}{more}."
    _, _, after = told.partition("Error(s) in loading state_dict for")
    return printable(" ".join(after.splitlines()[1:] or told.splitlines()).strip(), 300)
