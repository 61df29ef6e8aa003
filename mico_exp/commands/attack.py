"""The main command: one cell of the grid, or with ``-m`` the grid.

``python -m mico_exp metric=loss,confidence formula=0,1,2 -m`` sweeps the three scenarios too.
"""

import json
import logging
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mico_exp.challenge.datasets import Records
    from mico_exp.challenge.tree import Scenario
    from mico_exp.results.cell import Result
    from mico_exp.runs.tracking import Run
    from mico_exp.scores.extraction import Extraction, Pass
    from mico_exp.scores.inference import Metric

log = logging.getLogger("mico_exp")


def command(cfg: "DictConfig") -> float:
    """Run one cell, as one MLflow run; gives its validation TPR@0.1FPR to Hydra's sweeper."""
    from hydra.core.hydra_config import HydraConfig

    # what is heavy is imported once a command runs
    from mico_exp.config import compose, options
    from mico_exp.runs import provenance
    from mico_exp.runs.tracking import Tracker

    started = time.perf_counter()
    tracker = Tracker(cfg.challenge, Path.cwd())
    # In a challenge of several data sets the scenario alone does not tell them apart.
    scenario_label = cfg.scenario.name
    if cfg.challenge != cfg.dataset.name:
        scenario_label = compose.scenario_name(cfg)
    options.check_cell(cfg)
    cell = f"{scenario_label}/{options.label(cfg, 'metric')}/{options.label(cfg, 'formula')}"
    tags = {
        "kind": "cell",
        "challenge": cfg.challenge,
        "code_version": provenance.code_version(),
        "versions": provenance.versions(),
        "overrides": shlex.join(HydraConfig.get().overrides.task),
        "sweep": cfg.sweep or HydraConfig.get().runtime.output_dir,
    }
    with tracker.run(cell, tags) as run:
        _log_choices(cfg, run)
        plots = compose.plots(cfg)
        compose.workers(cfg)  # what is wrong with them is said before anything is read or built
        options.named_metrics(cfg)
        compose.privacy(cfg)
        records = compose.records(cfg)
        scenario = compose.scenario(cfg, records)
        _log_epsilon(cfg, scenario, run)
        result = _evaluate(cfg, records, scenario, run)
        _log_result(result, run)
        if plots:
            _log_figures(cfg, scenario, result, run)
        run.metrics["seconds"] = time.perf_counter() - started
    log.info(
        "%s  %s: validation TPR@0.1FPR %.4f, AUC %.4f  (%.1f s)",
        cfg.challenge,
        cell,
        result.figures["val/tpr_at_fpr_0.1"],
        result.figures["val/auc"],
        time.perf_counter() - started,
    )
    return result.figures["val/tpr_at_fpr_0.1"]


def _log_choices(cfg: "DictConfig", run: "Run") -> None:
    from omegaconf import OmegaConf

    from mico_exp.config import options

    for group in ("dataset", "scenario"):
        run.params[group] = cfg[group].name
    for group in ("metric", "formula"):
        run.params[group] = options.label(cfg, group)
    run.params["len_training"] = cfg.dataset.len_training
    run.params["len_challenge"] = cfg.dataset.len_challenge
    run.params["seed"] = cfg.seed
    run.params["epsilon"] = cfg.scenario.epsilon
    options.metrics_of_cell(cfg)
    options.formula(cfg)
    for group in ("metric", "formula"):
        run.tags[f"{group}_code"] = options.code(cfg, group)
        run.tags[f"{group}_changes"] = json.dumps(options.changes(cfg, group))
    resolved = OmegaConf.to_yaml(cfg, resolve=True)
    (run.artifacts / "config.yaml").write_text(resolved, encoding="utf-8")


def _log_epsilon(cfg: "DictConfig", scenario: "Scenario", run: "Run") -> None:
    """Log the ε that the models themselves record, and warn where it is not the scenario's."""
    from mico_exp.common.terminal import warn_once
    from mico_exp.scores.estimate import check_epsilon

    recorded, odd = check_epsilon(scenario, cfg.scenario.epsilon)
    if recorded:
        run.params["recorded_epsilon"] = recorded
    if odd:
        warn_once(odd.message)


def _evaluate(cfg: "DictConfig", records: "Records", scenario: "Scenario", run: "Run") -> "Result":
    from mico_exp.challenge.tree import read_truth
    from mico_exp.common.errors import InputError
    from mico_exp.config import compose, options
    from mico_exp.results.cell import evaluate

    truth = read_truth(compose.root(cfg), scenario)
    points = compose.points(scenario)
    run.params["num_records"] = len(records.labels)
    run.params["unique_points"] = len(points.unique)
    for phase, targets in points.of_phase.items():
        run.params[f"{phase}_models"] = len(targets)
    codes = {name: run.tags[name] for name in ("metric_code", "formula_code")}
    run.tags |= replace(compose.cell_identity(cfg, scenario, records), **codes).tags()
    extraction = compose.extraction(cfg, scenario, points, records)
    _log_vitals(extraction, run)
    metrics = options.metrics_of_cell(cfg)
    evidence = compose.evidence(extraction, records, metrics)
    if evidence is None:
        compose.check_steady(cfg)
        for one in _compute(extraction, options.pass_metrics(cfg), metrics):
            run.metrics[f"extracted_models/{one.family}"] = one.models
            run.metrics[f"extraction_seconds/{one.family}"] = one.seconds
        evidence = compose.evidence(extraction, records, metrics)
        assert evidence is not None
    run.metrics["nan_models"] = max(one.nan_models for one in evidence.scores.values())
    try:
        return evaluate(evidence, options.formula(cfg), truth)
    except InputError as error:
        raise InputError(f"{cfg.metric.name}/{cfg.formula.name}: {error}") from error


def _log_vitals(extraction: "Extraction", run: "Run") -> None:
    """Log whether the models seem to be what they should be; what seems wrong refuses nothing."""
    from mico_exp.common.terminal import warn_once

    vitals = extraction.look()
    told = vitals.told(extraction.points.solution)
    run.tags["members_told"] = "yes" if told.apart else "no"
    run.metrics |= {f"members_{name}": value for name, value in told._asdict().items()}
    run.metrics["outlier_models"] = len(vitals.outliers())
    for line in extraction.findings():
        warn_once(line)


def _compute(
    extraction: "Extraction", metrics: "dict[str, Metric]", chosen: "dict[str, Metric]"
) -> "list[Pass]":
    """Compute metrics together, or the chosen ones alone if another is broken."""
    from mico_exp.common.errors import MetricError

    try:
        return extraction.compute(metrics)
    except MetricError as error:
        if metrics.keys() == chosen.keys():
            raise
        log.warning("%s; %s is tried alone", error, ", ".join(chosen))
        return extraction.compute(chosen)


def _log_result(result: "Result", run: "Run") -> None:
    from mico_exp.results.cell import PREDICTIONS_FILE, write_predictions

    run.metrics |= result.figures
    path = run.artifacts / PREDICTIONS_FILE
    write_predictions(path, result.predictions, result.truth["train"])


def _log_figures(cfg: "DictConfig", scenario: "Scenario", result: "Result", run: "Run") -> None:
    from mico_exp.challenge.phases import CALLED
    from mico_exp.config import options
    from mico_exp.results.plots import PHASE_STYLE, Curve, roc_plot, scores_plot
    from mico_exp.results.scoring import RANKING_FPR

    names = (options.label(cfg, group) for group in ("metric", "formula"))
    title = "{}: metric {}, formula {}".format(scenario.name, *names)
    solution, predictions = result.truth["train"], result.predictions["train"]
    curves = []
    for phase, curve in result.curves.items():
        shown = (solution, predictions) if phase == "train" else (None, None)
        points = result.predictions[phase].size
        curves.append(Curve(CALLED[phase], curve, points, PHASE_STYLE[phase], *shown))
    roc_plot(title, curves).savefig(run.artifacts / "roc.png")
    curve = result.curves["train"]
    threshold = float(curve.threshold[curve.place(RANKING_FPR)])
    figure = scores_plot(
        f"{title} (validation)", solution, predictions, result.out_models, threshold
    )
    figure.savefig(run.artifacts / "scores.png")
