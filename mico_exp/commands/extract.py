"""The command that computes a scenario's scores by itself, before any sweep.

``python -m mico_exp.extract dataset=sst2 scenario=inf``
"""

import logging

from omegaconf import DictConfig

from mico_exp.config import compose

log = logging.getLogger("mico_exp.extract")


def command(cfg: DictConfig) -> None:
    """Extract one scenario; Hydra calls this for each."""
    setup, metrics = compose.extracting(cfg)
    setup.build()
    setup.check_content()
    setup.source.check_steady()
    where = setup.workers.describe(setup.processor.device)
    log.info("%s: models run on %s", setup.path, where)
    for line in setup.extraction.checkup.findings:
        log.warning("%s", line)
    for name, metric in metrics.items():
        sight = setup.extraction.sight(metric)
        if sight is not None and sight.left_out:
            log.warning("%s: %s sees %s", setup.path, name, sight)
    passes = setup.extraction.compute(metrics)
    log.info("%s: %s at %d points", setup.path, ", ".join(metrics), len(setup.points.unique))
    for one in passes:
        log.info("  %s: %d models computed (%.1f s)", one.family, one.models, one.seconds)
    if not passes:
        log.info("  nothing was missing")
