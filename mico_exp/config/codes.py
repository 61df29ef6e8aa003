"""Hashes of what metrics and formulas do, by which runs are told apart.

What does otherwise is another experiment, whatever it is called: so runs logged before are compared
with what their metric and formula do now.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from mico_exp.common.errors import InputError, first_line, printable
from mico_exp.common.fingerprints import digest
from mico_exp.config import variants
from mico_exp.config.choices import (
    Choice,
    combined_label,
    exposed_by,
    function_with,
    is_combined,
    narrowed_by,
)
from mico_exp.config.exposing import USUAL, Exposure
from mico_exp.config.metrics import combined, computable, usable
from mico_exp.config.options import function_of, option_names


def code(chosen: Choice, metrics: Iterable[str] = ()) -> str:
    """Hash of what a chosen metric or formula does, arguments included.

    Runs of other code are other experiments, whatever they are called.

    Args:
        chosen: what.
        metrics: names of those that were made for it, where it is ``metric=all``.
    """
    if chosen.function is None:
        names = tuple(name.partition("[")[0] for name in metrics)
        return chosen.exposure.code(_combined_code(names))
    return chosen.exposure.code(variants.code(chosen.function))


@cache
def _combined_code(names: tuple[str, ...]) -> str:
    return digest(*(f"{name} {variants.code(function_of('metric', name))}" for name in names))


@cache
def present_code(
    group: str,
    name: str,
    changes: tuple[str, ...] = (),
    disclosed: bool = False,
    lacks: tuple[str, ...] = (),
) -> str:
    """Hash of what an option does now, with some of its arguments set otherwise.

    Args:
        group: metric or formula.
        name: of the option.
        changes: overrides, which need not be from here.
        disclosed: the scenario discloses training sets, which decides what ``all`` stands for.
        lacks: what the data set does not give, which does so as well.

    Raises:
        InputError: there is no such option here, a change is no change of an argument of it, or
            what it names cannot be imported; or the exposure does not give what it needs.
    """
    if name not in option_names(group):
        raise InputError(f"there is no {group}={printable(name, 80)} here")
    if group == "metric":
        own, exposure = exposed_by(changes)
        found = _code_seen(name, own, disclosed, replace(exposure, lacks=lacks))
        return exposure.code(found)
    return _code_of(group, name, changes)


def _code_seen(name: str, changes: Sequence[Any], disclosed: bool, exposure: Exposure) -> str:
    """Hash of what a metric does that an exposure lets be computed."""
    several = is_combined("metric", name)
    narrowed = narrowed_by(changes) if several else [name]
    if narrowed and computable(narrowed, True, exposure) != narrowed:
        raise InputError(f"exposure={exposure.name} does not show what metric={name} needs")
    if several:
        return _combined_code(tuple(narrowed or usable(combined(disclosed, exposure))))
    return _code_of("metric", name, changes)


def _code_of(group: str, name: str, changes: Sequence[Any]) -> str:
    """Hash of what an option of one function does."""
    function = function_with(group, name, changes)
    try:
        return variants.code(function)
    except Exception as error:  # whatever the import of it raises
        raise InputError(f"{group}={name} cannot be used: {first_line(error)}") from error


def logged_code(
    group: str, labelled: str, written: str, disclosed: bool, lacks: tuple[str, ...] = ()
) -> str:
    """Hash of what a run's metric or formula does now, by what the run says of itself.

    Args:
        group: metric or formula.
        labelled: its name, ``rmia_offline[a=0.5]``.
        written: its changes, a JSON list of overrides.
        disclosed: as in `present_code`.
        lacks: as there.

    Raises:
        InputError: the run says what no run from here would.
    """
    name = labelled.partition("[")[0]
    try:
        texts = json.loads(written)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"its changes must be a list of texts, got {printable(written, 80)}")
    found = present_code(group, name, tuple(texts), disclosed, lacks)
    texts, exposure = exposed_by(texts) if group == "metric" else (texts, USUAL)
    if is_combined(group, name):
        expected = exposure.named(combined_label(narrowed_by(texts)))
    else:
        changes = variants.read(group, texts, function_of(group, name))
        expected = exposure.named(variants.label(name, changes))
    if labelled != expected:
        raise InputError(
            f"it is called {printable(labelled, 80)}, but its changes make it {expected}"
        )
    return found
