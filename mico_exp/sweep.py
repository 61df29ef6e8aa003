"""What happens once for a whole sweep: jobs learn what they share, and the grid is drawn."""

import logging
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from mico_exp.errors import InputError

if TYPE_CHECKING:
    from mico_exp.selection import Candidate
    from mico_exp.tracking import LoggedRun, Tracker

log = logging.getLogger(__name__)


class Sweep(Callback):
    """Hydra calls this before a sweep's first job and after its last."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Stop where MLflow does not answer; tell every job the metrics of the sweep.

        The first pass through a model computes them all.
        """
        from mico_exp.tracking import reach

        try:
            reach(Path.cwd())
        except InputError as error:  # Hydra would only warn of it, and go on
            print(error, file=sys.stderr)
            sys.exit(1)
        if config.metrics is None and (names := swept("metric", config)):
            with open_dict(config):
                config.hydra.overrides.hydra.append(f"metrics=[{','.join(names)}]")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Draw the sweep's heatmaps, and say where the runs are."""
        from mico_exp.choices import plots
        from mico_exp.tracking import Tracker

        folder = Path(config.hydra.sweep.dir).absolute()
        try:
            for challenge in _challenges(folder):
                tracker = Tracker(challenge, Path.cwd(), create=False)
                if plots(config):
                    draw_heatmaps(tracker, challenge, folder, config)
                print(f"Runs: {tracker.address()}")
        except InputError as error:  # the runs themselves are there
            log.warning("%s", error)


def _challenges(folder: Path) -> list[str]:
    """Challenges that the jobs of a sweep belong to, from the configurations that they left."""
    configs = [OmegaConf.load(path) for path in sorted(folder.glob("*/.hydra/config.yaml"))]
    return list(dict.fromkeys(str(one.challenge) for one in configs))


def draw_heatmaps(tracker: "Tracker", challenge: str, folder: Path, config: DictConfig) -> None:
    """Draw the grid of every scenario of a sweep, beside its jobs and in a run of its own."""
    from mico_exp import provenance
    from mico_exp.grid import judge, scenario_of

    runs = tracker.finished({"kind": "cell", "sweep": str(folder)})
    runs.sort(key=scenario_of)
    scenarios = {name: list(group) for name, group in groupby(runs, key=scenario_of)}
    if not any(len(group) > 1 for group in scenarios.values()):
        return
    tags = {"kind": "sweep", "challenge": challenge, "sweep": str(folder)}
    tags["code_version"] = provenance.code_version()
    with tracker.run("sweep", tags) as run:
        for name, group in scenarios.items():
            cells = _in_order(group, config)
            selected = judge(tracker, cells)
            path = folder / f"heatmap_{name}.png"
            _draw(selected, group[0], cells, path)
            (run.artifacts / path.name).write_bytes(path.read_bytes())
            run.params[f"{name}/cells"] = len(cells)
            run.metrics[f"{name}/tpr_at_fpr_0.1"] = selected.verdict.tpr
    log.info("Heatmaps: %s", folder / "heatmap_*.png")


def _in_order(runs: "Sequence[LoggedRun]", config: DictConfig) -> "list[Candidate]":
    """Take cells in the order in which the sweep names metrics and formulas."""
    from mico_exp.grid import candidate
    from mico_exp.selection import newest

    return newest(map(candidate, runs), swept("metric", config), swept("formula", config))


def _draw(selected: Any, run: "LoggedRun", cells: "Sequence[Candidate]", path: Path) -> None:
    from mico_exp.figures import heatmap

    models = int(run.params["train_models"])
    points = models * 2 * int(run.params["len_challenge"])
    heatmap(
        f"{selected.best.scenario}: validation TPR at FPR 0.1",
        selected,
        list(dict.fromkeys(one.metric for one in cells)),
        list(dict.fromkeys(one.formula for one in cells)),
        f"± half of the 95 % interval over models; n = {points:,} points of {models} models",
    ).savefig(path)


def swept(group: str, config: DictConfig) -> list[str]:
    """Names of the options that a sweep takes from a group; empty where it names none.

    The sweep's own parameters come first, so what is typed on the command line wins.
    """
    params = config.hydra.sweeper.params or {}
    texts = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    names: list[str] = []
    for override in OverridesParser.create().parse_overrides(texts):
        if override.key_or_group == group:
            value: Any = override.value()
            if isinstance(value, Glob):
                from mico_exp.choices import option_names

                names = value.filter(option_names(group))
            else:
                values = value.list if isinstance(value, ChoiceSweep) else [value]
                names = [v.text if isinstance(v, QuotedString) else str(v) for v in values]
    return names
