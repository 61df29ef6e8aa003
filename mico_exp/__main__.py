"""The main command: one cell of the grid, or with ``-m`` the grid.

``python -m mico_exp metric=loss,confidence formula=0,1,2 -m`` sweeps the three scenarios too.
"""

import logging
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mico_exp import cli

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mico_exp.cell import Result
    from mico_exp.challenge import Scenario
    from mico_exp.datasets import Records
    from mico_exp.evaluation import Metric
    from mico_exp.extraction import Extraction
    from mico_exp.tracking import Run

log = logging.getLogger("mico_exp")


def command(cfg: "DictConfig") -> None:
    """Run one cell, as one MLflow run."""
    from hydra.core.hydra_config import HydraConfig

    from mico_exp import choices, provenance  # what is heavy is imported once a command runs
    from mico_exp.tracking import Tracker

    started = time.perf_counter()
    tracker = Tracker(cfg.challenge, Path.cwd())
    # In a challenge of several data sets the scenario alone does not tell them apart.
    scenario_label = cfg.scenario.name
    if cfg.challenge != cfg.dataset.name:
        scenario_label = choices.scenario_name(cfg)
    cell = f"{scenario_label}/{cfg.metric.name}/{cfg.formula.name}"
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
        plots = choices.plots(cfg)
        choices.workers(cfg)  # what is wrong with them is said before anything is read or built
        choices.named_metrics(cfg)
        records = choices.records(cfg)
        scenario = choices.scenario(cfg, records)
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


def _log_choices(cfg: "DictConfig", run: "Run") -> None:
    from omegaconf import OmegaConf

    from mico_exp import choices

    for group in ("dataset", "scenario", "metric", "formula"):
        run.params[group] = cfg[group].name
    run.params["len_training"] = cfg.dataset.len_training
    run.params["len_challenge"] = cfg.dataset.len_challenge
    run.params["seed"] = cfg.seed
    run.params["epsilon"] = cfg.scenario.epsilon
    for group, made in (("metric", choices.metric(cfg)), ("formula", choices.formula(cfg))):
        run.tags[f"{group}_code"] = choices.code_of(made)
    resolved = OmegaConf.to_yaml(cfg, resolve=True)
    (run.artifacts / "config.yaml").write_text(resolved, encoding="utf-8")


def _evaluate(cfg: "DictConfig", records: "Records", scenario: "Scenario", run: "Run") -> "Result":
    from mico_exp import choices, provenance
    from mico_exp.cell import evaluate
    from mico_exp.challenge import read_truth
    from mico_exp.errors import InputError
    from mico_exp.fingerprints import FileFingerprints

    truth = read_truth(choices.root(cfg), scenario)
    points = choices.points(scenario)
    run.params["num_records"] = len(records.labels)
    run.params["unique_points"] = len(points.unique)
    for phase, targets in points.of_phase.items():
        run.params[f"{phase}_models"] = len(targets)
    store = choices.store(cfg)
    files = FileFingerprints(store.fingerprints(scenario.path))
    run.tags["content"] = provenance.content(scenario, records, files)
    extraction = choices.extraction(cfg, scenario, points, records)
    scores = extraction.read(cfg.metric.name, choices.metric(cfg))
    if scores is None:
        started = time.perf_counter()
        computed = _compute(extraction, choices.pass_metrics(cfg), cfg.metric.name)
        run.metrics["extracted_models"] = computed
        run.metrics["extraction_seconds"] = time.perf_counter() - started
        scores = extraction.read(cfg.metric.name, choices.metric(cfg))
        assert scores is not None
    run.metrics["nan_models"] = scores.nan_models
    try:
        return evaluate(scores, points, choices.formula(cfg), truth)
    except InputError as error:
        raise InputError(f"{cfg.metric.name}/{cfg.formula.name}: {error}") from error


def _compute(extraction: "Extraction", metrics: "dict[str, Metric]", chosen: str) -> int:
    """Compute metrics in one pass, or the chosen one alone if another is broken.

    Says for how many models.
    """
    from mico_exp.errors import MetricError

    try:
        return extraction.compute(metrics)
    except MetricError as error:
        if metrics.keys() == {chosen}:
            raise
        log.warning("%s; %s is tried alone", error, chosen)
        return extraction.compute({chosen: metrics[chosen]})


def _log_result(result: "Result", run: "Run") -> None:
    from mico_exp.cell import PREDICTIONS_FILE, write_predictions

    run.metrics |= result.figures
    path = run.artifacts / PREDICTIONS_FILE
    write_predictions(path, result.predictions, result.truth["train"])


def _log_figures(cfg: "DictConfig", scenario: "Scenario", result: "Result", run: "Run") -> None:
    from mico_exp.figures import PHASE_STYLE, Curve, roc_figure, scores_figure
    from mico_exp.scoring import RANKING_FPR

    title = f"{scenario.name}: metric {cfg.metric.name}, formula {cfg.formula.name}"
    solution, predictions = result.truth["train"], result.predictions["train"]
    curves = []
    for name, curve in result.curves.items():
        shown = (solution, predictions) if name == "validation" else (None, None)
        phase = "train" if name == "validation" else name
        points = result.predictions[phase].size
        curves.append(Curve(name, curve, points, PHASE_STYLE[name], *shown))
    roc_figure(title, curves).savefig(run.artifacts / "roc.png")
    curve = result.curves["validation"]
    threshold = float(curve.threshold[curve.place(RANKING_FPR)])
    figure = scores_figure(
        f"{title} (validation)", solution, predictions, result.out_models, threshold
    )
    figure.savefig(run.artifacts / "scores.png")


if __name__ == "__main__":
    cli.launch(command)
