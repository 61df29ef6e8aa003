"""The main command: one cell of the grid, or with ``-m`` the grid.

``python -m mico_exp metric=loss,confidence formula=0,1,2 -m`` sweeps the three scenarios too.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mico_exp.auditing.limits import limit_of_claim
from mico_exp.challenge.phases import CALLED
from mico_exp.common import beside
from mico_exp.common.atomic import write_bytes
from mico_exp.common.errors import InputError, MetricError, printable
from mico_exp.common.terminal import warn_once
from mico_exp.config import cells, choices, compose, sweep
from mico_exp.config.compose import Cell
from mico_exp.results.cell import Result, evaluate, write_predictions
from mico_exp.results.plots import PHASE_STYLE, Curve, Limit, png, roc_plot, scores_plot
from mico_exp.results.scoring import RANKING_FPR, flat
from mico_exp.runs.record import (
    CONFIGURATION,
    PREDICTIONS,
    ROC_PLOT,
    SCORES_PLOT,
    VALIDATED_AUC,
    VALIDATED_TPR,
    CellRecord,
)
from mico_exp.runs.tracking import Run, Tracker
from mico_exp.scores.checkup import Checkup
from mico_exp.scores.estimate import check_epsilon
from mico_exp.scores.extraction import Pass
from mico_exp.scores.families import Metric

log = logging.getLogger("mico_exp")


def command(cfg: DictConfig) -> float:
    """Run one cell, as one MLflow run; gives its validation TPR@0.1FPR to Hydra's sweeper."""
    started = time.perf_counter()
    cells.check_cell(cfg)
    metric, formula = choices.choice(cfg, "metric"), choices.choice(cfg, "formula")
    record = compose.record(cfg, metric, formula)
    with Tracker(record.challenge, Path.cwd()).run(record.name, record.to_run().tags) as run:
        run.note(record.to_run())
        _write_configuration(cfg, run)
        record = _attack(compose.cell(cfg, metric, formula), record, run)
        _noted(run, replace(record, seconds=time.perf_counter() - started))
    if not sweep.is_here():
        beside.finish()
    tpr, auc = record.figures[VALIDATED_TPR], record.figures[VALIDATED_AUC]
    log.info(
        "%s  %s: validation TPR@0.1FPR %.4f, AUC %.4f  (%.1f s)",
        record.challenge,
        record.name,
        tpr,
        auc,
        time.perf_counter() - started,
    )
    return tpr


def _write_configuration(cfg: DictConfig, run: Run) -> None:
    text = OmegaConf.to_yaml(cfg, resolve=True)
    (run.artifacts / CONFIGURATION).write_text(text, encoding="utf-8")


def _attack(cell: Cell, record: CellRecord, run: Run) -> CellRecord:
    """Build and extract what is missing, calibrate, score, and note all of it."""
    codes = record.identity.of_cell(cell.metric_code, cell.formula_code)
    record = _noted(run, replace(record, identity=codes))
    cell.setup.build()
    truth = cell.setup.truth  # before the long pass
    record = _noted(run, _about_models(cell, record))
    record = _noted(run, _about_vitals(cell.setup.extraction.checkup, record))
    record = _noted(run, _about_gradients(cell, record))
    evidence = cell.setup.evidence(cell.metrics)
    if evidence is None:
        cell.setup.source.check_steady()
        record = _noted(run, _about_passes(record, _compute(cell)))
        evidence = cell.setup.evidence(cell.metrics)
        assert evidence is not None
    there = {phase: evidence.points.there(phase) for phase in evidence.phases}
    nan_models = max(one.nan_models(there) for one in evidence.scores.values())
    record = _noted(run, replace(record, nan_models=nan_models))
    try:
        result = evaluate(evidence, cell.formula, truth)
    except InputError as error:
        raise InputError(f"{record.cell}: {error}") from error
    for warning in result.warnings:
        log.warning("%s: %s", record.name, warning)
    record = _noted(run, replace(record, figures=result.figures))
    write_predictions(run.artifacts / PREDICTIONS, result.predictions, result.truth["train"])
    if cell.plots:
        _draw_beside(cell, record, result, run)
    return record


def _noted(run: Run, record: CellRecord) -> CellRecord:
    run.note(record.to_run())
    return record


def _about_models(cell: Cell, record: CellRecord) -> CellRecord:
    """What a cell is run on, as it lies on disk; warns of an ε that is not the scenario's."""
    setup = cell.setup
    recorded, odd = check_epsilon(setup.found, setup.epsilon)
    if odd:
        warn_once(odd.message)
    return replace(
        record,
        recorded_epsilon=str(recorded) if recorded else None,
        num_records=len(setup.records.labels),
        unique_points=len(setup.points.unique),
        validation_points=int(setup.points.there("train").sum()),
        models={phase: len(models) for phase, models in setup.found.every.items()},
        identity=setup.identity.of_cell(cell.metric_code, cell.formula_code),
    )


def _about_vitals(checkup: Checkup, record: CellRecord) -> CellRecord:
    """Whether the models seem to be what they should be; what seems wrong refuses nothing."""
    for line in checkup.findings:
        warn_once(line)
    return replace(
        record,
        told=checkup.told._asdict(),
        members_told="yes" if checkup.told.apart else "no",
        outlier_models=len(checkup.outliers),
    )


def _about_gradients(cell: Cell, record: CellRecord) -> CellRecord:
    """How much of the networks metrics of gradients see: the least, where there are several."""
    told = {name: cell.setup.extraction.sight(one) for name, one in cell.metrics.items()}
    sights = {name: one for name, one in told.items() if one is not None}
    for name, one in sights.items():
        if one.left_out:
            warn_once(f"{cell.setup.name}: {name} sees {one}.")
    if not sights:
        return record
    least = min(sights.values(), key=lambda one: one.share)
    return replace(
        record, parameters_seen=least.share, left_out=printable(", ".join(least.left_out), 1000)
    )


def _compute(cell: Cell) -> list[Pass]:
    """Compute the sweep's metrics together, or the chosen ones alone if another is broken."""
    extraction = cell.setup.extraction
    chosen: Mapping[str, Metric] = cell.metrics
    try:
        return extraction.compute(cell.pass_metrics)
    except MetricError as error:
        if cell.pass_metrics.keys() == chosen.keys():
            raise
        log.warning("%s; %s is tried alone", error, ", ".join(chosen))
        return extraction.compute(chosen)


def _about_passes(record: CellRecord, passes: list[Pass]) -> CellRecord:
    return replace(
        record,
        extracted={one.family: one.models for one in passes},
        extraction_seconds={one.family: one.seconds for one in passes},
    )


def _draw_beside(cell: Cell, record: CellRecord, result: Result, run: Run) -> None:
    """Draw the plots while the run and the next cell go on, where artifacts lie on this machine.

    They take as long as all else in a cell.
    """
    limits = [] if cell.claim is None else [limit_of_claim(*cell.claim)]
    work = partial(_draw, cell.setup.name, record, result, limits, run.place or run.artifacts)
    if run.place is None:
        work()
    else:
        beside.do(work, f"{record.name}: {ROC_PLOT} or {SCORES_PLOT}")


def _draw(
    scenario: str, record: CellRecord, result: Result, limits: Sequence[Limit], folder: Path
) -> None:
    """Draw the ROC curves with what is allowed, and how the validation's scores lie."""
    title = f"{scenario}: metric {record.metric}, formula {record.formula}"
    there = result.there["train"]
    rows = result.truth["train"], result.predictions["train"], there
    curves = []
    for phase, curve in result.curves.items():
        shown = rows if phase == "train" else (None, None, None)
        points = int(result.there[phase].sum())
        curves.append(Curve(CALLED[phase], curve, points, PHASE_STYLE[phase], *shown))
    write_bytes(folder / ROC_PLOT, png(roc_plot(title, curves, limits)), durable=False)
    curve = result.curves["train"]
    threshold = float(curve.threshold[curve.place(RANKING_FPR)])
    solution, predictions, out_models = (
        flat(one, there)
        for one in (result.truth["train"], result.predictions["train"], result.out_models)
    )
    figure = scores_plot(f"{title} (validation)", solution, predictions, out_models, threshold)
    write_bytes(folder / SCORES_PLOT, png(figure), durable=False)
