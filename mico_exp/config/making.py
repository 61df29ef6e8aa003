"""Makes what an option names."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mico_exp.common.errors import InputError
from mico_exp.config.moved import check_places


def make(option: Any) -> Any:
    """Make what an option's `_target_` names; a user's mistake in it stays an `InputError`."""
    check_places(OmegaConf.to_container(option) if OmegaConf.is_config(option) else option)
    try:
        return instantiate(option)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
