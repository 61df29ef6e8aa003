"""What happens once for a whole sweep: jobs learn what they share, and the grid is drawn."""

import json
import logging
import sys
import uuid
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from mico_exp.common import beside
from mico_exp.common.errors import InputError
from mico_exp.config.compose import plots
from mico_exp.config.options import option_names, option_of
from mico_exp.config.typed import check_folder
from mico_exp.results.plots import heatmap, png
from mico_exp.results.selection import newest
from mico_exp.runs import provenance
from mico_exp.runs.cells_alike import Cell, candidate, cells, judge, order_of, sizes_of
from mico_exp.runs.record import SweepRecord, cells_of
from mico_exp.runs.tracking import Tracker, reach

log = logging.getLogger(__name__)
QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # OmegaConf's own takes thirty times as long


@dataclass(frozen=True)
class Grid:
    """A sweep of this process: its name, its folder, its options in order, and whether to draw."""

    name: str
    folder: Path
    metrics: list[str]
    formulas: list[str]
    plots: bool


_running: list[Grid] = []  # at most one


class Sweep(Callback):
    """Hydra calls this before a sweep's first job, and after its last if none has failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Stop where MLflow does not answer; tell every job the sweep's name and its metrics.

        The first pass through a model computes them all.
        """
        try:
            check_folder(config.hydra)
            reach(Path.cwd())
            shown = plots(config)
        except InputError as error:  # Hydra would only warn of it, and go on
            print(error, file=sys.stderr)
            sys.exit(1)
        metrics, formulas = swept("metric", config), swept("formula", config)
        grid = Grid(uuid.uuid4().hex[:12], Path(config.hydra.sweep.dir), metrics, formulas, shown)
        _running[:] = [grid]
        with open_dict(config):
            config.hydra.overrides.hydra.append(f"sweep='{grid.name}'")
            if config.metrics is None and metrics:
                config.hydra.overrides.hydra.append(f"metrics=[{','.join(metrics)}]")
            exposures = swept("exposure", config)
            if config.exposures is None and exposures:
                config.hydra.overrides.hydra.append(f"exposures=[{','.join(exposures)}]")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Finish the sweep."""
        finish()


def is_here() -> bool:
    """Tell whether this process runs the jobs of a sweep, one after the other."""
    return bool(_running)


def finish() -> None:
    """Draw the heatmaps of this process's sweep, if there is one, and say where its runs are."""
    while _running:
        grid = _running.pop()
        beside.finish()
        try:
            for challenge in _challenges(grid.folder):
                tracker = Tracker(challenge, Path.cwd(), create=False)
                if grid.plots:
                    draw_heatmaps(tracker, challenge, grid)
                print(f"Runs: {tracker.address()}")
        except InputError as error:  # the runs themselves are there
            log.warning("%s", error)


def _challenges(folder: Path) -> list[str]:
    """Challenges that the jobs of a sweep belong to, from the configurations that they left.

    Jobs are many, and what tells their challenge apart from others is the same in most of them.
    """
    configs = {}
    for path in sorted(folder.rglob(".hydra/config.yaml")):
        told = yaml.load(path.read_bytes(), QUICK)
        if isinstance(told, dict):  # of a full disk they may be cut
            told = {key: one for key, one in told.items() if key not in ("metric", "formula")}
            configs[json.dumps(told, default=str)] = told
    names = (OmegaConf.create(told).get("challenge") for told in configs.values())
    return [str(name) for name in dict.fromkeys(names) if name]


def draw_heatmaps(tracker: Tracker, challenge: str, grid: Grid) -> None:
    """Draw the grid of every scenario of a sweep, beside its jobs and in a run of its own."""
    found = sorted(cells(tracker.finished(cells_of(challenge, grid.name))), key=_folder)
    scenarios = {name: list(group) for name, group in groupby(found, key=_folder)}
    if not any(len(group) > 1 for group in scenarios.values()):
        return
    record = SweepRecord(challenge, grid.name, provenance.code_version())
    drawn = {}
    with tracker.run(record.name, record.to_run().tags) as run:
        for name, group in scenarios.items():
            candidates = newest(map(candidate, group), grid.metrics, grid.formulas)
            selected = judge(tracker, candidates, allow_unreadable=True)  # it only draws
            path = grid.folder / f"heatmap_{name}.png"
            rows, columns = order_of(selected, grid.metrics, grid.formulas)
            one = group[0].record
            sizes = sizes_of(one.models["train"], one.validation_points or 0)
            drawing = png(heatmap(name, selected, rows, columns, sizes))
            path.write_bytes(drawing)
            (run.artifacts / path.name).write_bytes(drawing)
            drawn[name] = selected
        counts = {name: len(one.cells) for name, one in drawn.items()}
        best = {name: one.verdict.tpr for name, one in drawn.items()}
        run.note(replace(record, cells=counts, best=best).to_run())
    log.info("Heatmaps: %s", grid.folder / "heatmap_*.png")


def _folder(cell: Cell) -> str:
    return cell.record.folder


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
                names = value.filter(option_names(group))
            else:
                values = value.list if isinstance(value, ChoiceSweep) else [value]
                names = [v.text if isinstance(v, QuotedString) else str(v) for v in values]
    return list(dict.fromkeys(_real_name(group, name) for name in names))


def _real_name(group: str, name: str) -> str:
    """Name that an option gives itself: ``formula=midpoint`` is 0."""
    if name not in option_names(group):
        return name  # Hydra itself will refuse it
    return str(option_of(group, name).get("name") or name)
