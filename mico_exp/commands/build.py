"""The command that makes a challenge: trains its models and writes the competition's tree.

``python -m mico_exp.build dataset=digits`` builds all scenarios, ``scenario=hi`` one of them.
"""

import logging
from typing import TYPE_CHECKING

from mico_exp.common.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("mico_exp.build")


def command(cfg: "DictConfig") -> None:
    """Build one scenario; Hydra calls this for each."""
    from mico_exp.config import compose

    compose.privacy(cfg)  # what is wrong with it is said before anything is read
    done = compose.built(cfg, compose.records(cfg))
    if done is None:
        raise InputError(f"dataset `{cfg.dataset.name}` has no recipe: it cannot be built here.")
    log.info("%s: %s", compose.folder(cfg), "built" if done else "complete, nothing to do")
