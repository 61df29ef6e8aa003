"""Makes what an option names."""

import re
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mico_exp.common.errors import InputError, first_line, of_system
from mico_exp.config.moved import check_places


def make(option: Any, **settings: Any) -> Any:
    """Make what an option's `_target_` names.

    `settings` are Hydra's own, as ``_convert_``.

    Raises:
        InputError: there is nothing of that name, or it refuses what it is given; one of its own
            stays as it is.
        OSError: of the system, behind Hydra's error.
    """
    check_places(OmegaConf.to_container(option) if OmegaConf.is_config(option) else option)
    try:
        return instantiate(option, **settings)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if of_system(error) is not None:
            raise
        raise InputError(_told(error)) from error


def _told(error: InstantiationException) -> str:
    """Hydra's error in a line: the key, and what was first wrong."""
    said, _, key = str(error).partition("\nfull_key: ")
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    if found := re.match("Error locating target '(.*)', set env", said):
        reason = f"{found[1]} cannot be imported: {first_line(first)}"
    elif first is error:
        reason = first_line(error)
    else:
        reason = f"{type(first).__name__}: {first_line(first)}"
    return f"`{key}`: {reason}." if key else f"{reason}."
