"""The command that computes a scenario's scores by itself, before any sweep.

``python -m mico_exp.extract dataset=sst2 scenario=inf``
"""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("mico_exp.extract")


def command(cfg: "DictConfig") -> None:
    """Extract one scenario; Hydra calls this for each."""
    from mico_exp.common.fingerprints import FileFingerprints
    from mico_exp.config import compose, options
    from mico_exp.runs import provenance

    compose.workers(cfg)
    compose.privacy(cfg)
    metrics = options.extracted_metrics(cfg)
    records = compose.records(cfg)
    scenario = compose.scenario(cfg, records)
    points = compose.points(scenario)
    files = FileFingerprints(compose.store(cfg).fingerprints(scenario.path))
    provenance.content(scenario, records, files)  # refuses what is damaged or there twice
    compose.check_steady(cfg)
    extraction = compose.extraction(cfg, scenario, points, records)
    for line in extraction.findings():
        log.warning("%s", line)
    passes = extraction.compute(metrics)
    log.info("%s: %s at %d points", scenario.path, ", ".join(metrics), len(points.unique))
    for one in passes:
        log.info("  %s: %d models computed (%.1f s)", one.family, one.models, one.seconds)
    if not passes:
        log.info("  nothing was missing")
