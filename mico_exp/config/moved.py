"""Where functions are now that option files may still name by their old places."""

from collections.abc import Mapping
from typing import Any

from mico_exp.common.errors import InputError

MOVED = {  # old module → new one, of all that an option can name
    "cluster": "models.ray_workers",
    "datasets": "challenge.datasets",
    "disclosure": "attacks.disclosure",
    "formulas": "attacks.formulas",
    "gradients": "scores.gradients",
    "learning": "attacks.learned",
    "metrics": "scores.metrics",
    "models": "models.architectures",
    "sweep": "config.sweep",
    "scores.ray_workers": "models.ray_workers",
    "scores.workers": "models.workers",
    "workers": "models.workers",
}


def check_places(option: Any) -> None:
    """Look at every `_target_` of an option, as plain containers.

    Raises:
        InputError: one names a place that something has moved from; says where it is now.
    """
    if isinstance(option, Mapping):
        _check_place(str(option.get("_target_", "")))
        option = list(option.values())
    for part in option if isinstance(option, list) else ():
        check_places(part)


def _check_place(target: str) -> None:
    module, _, name = target.rpartition(".")
    package, _, old = module.partition(".")
    if package == "mico_exp" and old in MOVED:
        raise InputError(f"`_target_: {target}` has moved: write mico_exp.{MOVED[old]}.{name}.")
