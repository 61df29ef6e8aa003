"""The command that trains reference models for a scenario that is there.

``python -m mico_exp.shadow dataset=digits scenario=inf kind=pool models=64`` says that there are to
be 64 of that kind in all.
"""

import logging

from omegaconf import DictConfig

from mico_exp.config import compose

log = logging.getLogger("mico_exp.shadow")


def command(cfg: DictConfig) -> None:
    """Train what is missing for one scenario; Hydra calls this for each."""
    how = compose.referring(cfg)
    setup = how.setup
    count = setup.train_references(how.kind, how.target, how.models, how.among, how.rest)
    done = f"{count} reference models trained" if count else "complete, nothing to do"
    log.info("%s: %s", setup.folder, done)
