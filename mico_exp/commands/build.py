"""The command that makes a challenge: trains its models and writes the competition's tree.

``python -m mico_exp.build dataset=digits`` builds all scenarios, ``scenario=hi`` one of them.
"""

import logging

from omegaconf import DictConfig

from mico_exp.config import compose

log = logging.getLogger("mico_exp.build")


def command(cfg: DictConfig) -> None:
    """Build one scenario; Hydra calls this for each."""
    setup = compose.building(cfg)
    done = setup.build(asked=True)
    log.info("%s: %s", setup.folder, "built" if done else "complete, nothing to do")
