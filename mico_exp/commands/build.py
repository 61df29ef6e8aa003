"""The command that makes a challenge: trains its models and writes the competition's tree.

``python -m mico_exp.build dataset=digits`` builds all scenarios, ``scenario=hi`` one of them.
"""

import logging

from omegaconf import DictConfig

from mico_exp.common.errors import InputError
from mico_exp.config import compose

log = logging.getLogger("mico_exp.build")


def command(cfg: DictConfig) -> None:
    """Build one scenario; Hydra calls this for each."""
    setup = compose.setup(cfg)
    if setup.recipe is None and cfg.dataset.get("outputs") is None:
        raise InputError(
            f"dataset `{setup.dataset}` has no recipe: it cannot be built here, its models come "
            "from elsewhere."
        )
    done = setup.build()
    log.info("%s: %s", setup.folder, "built" if done else "complete, nothing to do")
