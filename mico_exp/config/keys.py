"""Keys of a configuration: which were typed, and which there are."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig

from mico_exp.common.errors import InputError


def typed_keys() -> set[str]:
    """Keys that were set on the command line."""
    return {key_of(text) for text in HydraConfig.get().overrides.task}


def key_of(override: str) -> str:
    """Key that an override sets."""
    return override.lstrip("+").partition("=")[0]


def is_among(key: str, keys: Iterable[str]) -> bool:
    """Tell whether a key is one of several, or below one."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def typed_of_dataset() -> frozenset[str]:
    """Keys of the data set that were set on the command line, such as ``recipe.steps``."""
    keys = (key for key in typed_keys() if key.startswith("dataset."))
    return frozenset(key.removeprefix("dataset.") for key in keys)


def check_unused(who: str, keys: Iterable[str]) -> None:
    """Refuse keys that were typed and that a command has no use for."""
    for key in typed_keys():
        if is_among(key, keys):
            raise InputError(f"`{key}` is of no use to {who}.")


def check_known(place: str, told: Iterable[Any], known: Sequence[str]) -> None:
    """Refuse keys that nothing reads.

    Args:
        place: where they are, as it is typed: ``dataset.recipe``.
        told: the keys.
        known: those that there are.

    Raises:
        InputError: there is one; the message names it.
    """
    if unknown := [str(key) for key in told if key not in known]:
        key, listed = f"{place}.{unknown[0]}", ", ".join(known)
        raise InputError(f"`{key}` must be one of {listed}.{meant(unknown[0], known)}")


def meant(unknown: str, known: Sequence[str]) -> str:
    """Ask whether the key that is most alike is meant, as the end of a message; or nothing."""
    alike = difflib.get_close_matches(unknown, known, n=1)
    return f" Is `{alike[0]}` meant?" if alike else ""
