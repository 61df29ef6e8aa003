"""An option with some of its arguments set otherwise: named, written, and read back as data.

What a run of another person says of itself is read here and nowhere else. It can set arguments
that the option file here has, to plain values, and nothing more: no function is named by it, and
nothing of it is composed or made.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import get_object

from mico_exp.common.errors import InputError, printable
from mico_exp.common.fingerprints import definition, digest

SCALARS = (str, int, float, bool, type(None))
Function = Mapping[str, Any]  # `_target_` and its arguments, as an option file has them


def leaves(function: Function, prefix: str = "") -> dict[str, Any]:
    """Arguments of a function by their dotted keys; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in function.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def changed(group: str, name: str, usual: Function, here: Function) -> dict[str, Any]:
    """Arguments that are set otherwise than in an option file.

    Raises:
        InputError: something else is otherwise: a function, or an argument that the file has not.
    """
    expected, given = leaves(usual), leaves(here)
    otherwise = [
        key
        for key in dict.fromkeys([*expected, *given])
        if key not in expected or key not in given or expected[key] != given[key]
    ]
    for key in otherwise:
        if key not in expected or key not in given or not _may_change(key, given[key]):
            raise InputError(
                f"`{group}.function.{key}` must be as conf/{group}/{name}.yaml has it, got "
                f"{given.get(key, 'nothing')}: only arguments in it may be set otherwise, to plain "
                "values. Write an option file of your own."
            )
    return {key: given[key] for key in otherwise}


def _may_change(key: str, value: Any) -> bool:
    """Tell whether a key is that of an argument, and its value plain."""
    flat = value if isinstance(value, list) else [value]
    plain = all(isinstance(one, SCALARS) for one in flat)
    return plain and not any(part.startswith("_") for part in key.split("."))


def label(name: str, changes: Mapping[str, Any]) -> str:
    """Name of a variant, ``offset[w=counts, k=1.0]``."""
    return joined(name, changes) if changes else name


def joined(name: str, changes: Mapping[str, Any]) -> str:
    """Name of a variant with more that is otherwise, ``offset[w=counts, k=1.0]``."""
    texts = [f"{key}={_bare(value)}" for key, value in changes.items()]
    whole = f"{name[:-1]}, " if name.endswith("]") else f"{name}["
    return f"{whole}{', '.join(texts)}]"


def _bare(value: Any) -> str:
    """Value as it is read; plain words without quotes."""
    if isinstance(value, str) and value.isidentifier() and value not in ("null", "true", "false"):
        return value
    return json.dumps(value)


def overrides(group: str, changes: Mapping[str, Any]) -> list[str]:
    """Write a variant as overrides of the command line; each value is JSON."""
    return [f"{group}.function.{key}={json.dumps(value)}" for key, value in changes.items()]


def read(group: str, texts: Sequence[Any], usual: Function) -> dict[str, Any]:
    """Read overrides that `overrides` wrote, for an option that is known here.

    Raises:
        InputError: one is something else, sets what the option has not, or is no plain value.
    """
    found, known, start = {}, leaves(usual), f"{group}.function."
    for text in texts:
        key, equals, value = str(text).removeprefix(start).partition("=")
        parsed = _parsed(value)
        is_change = isinstance(text, str) and text.startswith(start) and equals
        if not is_change or key not in known or not _may_change(key, parsed):
            raise InputError(
                f"a change must be `{start}<key>=<value>`, with a key of the option file and a "
                f"plain value, got {printable(str(text), 80)}."
            )
        found[key] = parsed
    return found


def _parsed(value: str) -> Any:
    """Value of JSON; an object where it is none, which no argument may be."""
    try:
        return json.loads(value, parse_constant=lambda _: {})
    except (ValueError, RecursionError):
        return {}


def applied(function: Function, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set arguments of a function, of a copy of it, otherwise."""
    found = json.loads(json.dumps(function))
    for key, value in changes.items():
        *place, last = key.split(".")
        inner = found
        for part in place:
            inner = inner[part]
        inner[last] = value
    return dict(found)


def code(function: Function) -> str:
    """Hash of what a function does with its arguments; it is imported, and not called."""
    return digest(json.dumps(_described(function)))


def _described(value: Any) -> Any:
    if isinstance(value, Mapping):
        found = {key: _described(one) for key, one in sorted(value.items())}
        if "_target_" in value:
            found["_target_"] = definition(get_object(value["_target_"]))
        return found
    return [_described(one) for one in value] if isinstance(value, list) else value
