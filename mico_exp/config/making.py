"""Makes what an option names."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mico_exp.common.errors import InputError
from mico_exp.config.moved import check_places


def make(option: Any, **settings: Any) -> Any:
    """Make what an option's `_target_` names; a user's mistake in it stays an `InputError`.

    `settings` are Hydra's own, as ``_convert_``.
    """
    check_places(OmegaConf.to_container(option) if OmegaConf.is_config(option) else option)
    try:
        return instantiate(option, **settings)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
