"""The command that computes a scenario's scores by itself, before any sweep.

``python -m mico_exp.extract dataset=sst2 scenario=inf``
"""

import logging
import time
from typing import TYPE_CHECKING

from mico_exp import cli

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("mico_exp.extract")


def command(cfg: "DictConfig") -> None:
    """Extract one scenario; Hydra calls this for each."""
    from mico_exp import choices

    started = time.perf_counter()
    choices.workers(cfg)
    records = choices.records(cfg)
    scenario = choices.scenario(cfg, records)
    points = choices.points(scenario)
    metrics = choices.all_metrics()
    computed = choices.extraction(cfg, scenario, points, records).compute(metrics)
    log.info(
        "%s: %s at %d points, %d models computed (%.1f s)",
        scenario.path,
        ", ".join(metrics),
        len(points.unique),
        computed,
        time.perf_counter() - started,
    )


if __name__ == "__main__":
    cli.launch(command, "extract")
