"""Chooses the best cell of every scenario by validation, and builds the merged submission.

``python -m mico_exp.select_best`` reads MLflow, prints a table, writes
``submissions/predictions_<challenge>.zip`` with ``selection_<challenge>.json`` beside it, and
logs both as the run ``selection``. Truth of dev and final is never read here: where a run has
logged ``final`` figures they are shown after the choice is made.
"""

import json
import logging
import shlex
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from mico_exp import cli
from mico_exp.errors import InputError
from mico_exp.selection import AUC, TPR, Candidate, Selected, select
from mico_exp.terminal import as_text, show

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mico_exp.challenge import Scenario
    from mico_exp.submission import Predictions
    from mico_exp.tracking import LoggedRun, Tracker

log = logging.getLogger(__name__)
FINAL = "final/tpr_at_fpr_0.1"


def command(cfg: "DictConfig") -> None:
    """Select, package and log."""
    from mico_exp.submission import write_submission
    from mico_exp.tracking import Tracker

    scenarios, contents = _scenarios(cfg)
    tracker = Tracker(cfg.challenge, Path.cwd(), create=False)
    chosen = choose(cfg, tracker, contents)
    predictions = {
        name: _predictions(tracker, chosen[name].best, scenario)
        for name, scenario in scenarios.items()
    }
    folder = Path(cfg.submissions)
    archive = folder / f"predictions_{cfg.challenge}.zip"
    write_submission(archive, list(scenarios.values()), predictions)
    report = folder / f"selection_{cfg.challenge}.json"
    _write_report(report, cfg, chosen, contents)
    shown = table(cfg.challenge, chosen)
    _log(tracker, cfg, chosen, [archive, report], as_text(shown))
    show(shown)
    print(f"Submission: {archive}")


def _scenarios(cfg: "DictConfig") -> tuple[dict[str, "Scenario"], dict[str, str]]:
    """Find the challenge's scenarios as they now lie on disk, and the hash of their content."""
    from mico_exp import choices, provenance
    from mico_exp.challenge import load_scenario, scenario_folder
    from mico_exp.fingerprints import FileFingerprints

    root, store = choices.root(cfg), choices.store(cfg)
    configs = choices.of_challenge(cfg)
    places = {name: scenario_folder(root, cfg.challenge, name) for name in configs}
    if absent := [name for name, place in places.items() if not place.is_dir()]:
        raise InputError(f"{places[absent[0]]} does not exist. {_advice(cfg, absent)}")
    scenarios, contents = {}, {}
    for name, of_scenario in configs.items():
        records = choices.records(of_scenario)
        sizes = choices.sizes(of_scenario, len(records.labels))
        scenarios[name] = load_scenario(root, cfg.challenge, name, sizes)
        files = FileFingerprints(store.fingerprints(scenarios[name].path))
        contents[name] = provenance.content(scenarios[name], records, files)
    return scenarios, contents


def choose(cfg: "DictConfig", tracker: "Tracker", contents: dict[str, str]) -> dict[str, Selected]:
    """Choose a cell for every scenario among the runs of its present content.

    Without a preset the best by validation; with one the cell that it names.
    """
    from mico_exp.choices import code_of_cells, option_names

    runs = tracker.finished({"kind": "cell", "challenge": cfg.challenge})
    metrics, formulas = option_names("metric"), option_names("formula")
    code = code_of_cells()
    chosen, missing = {}, []
    stale = 0
    for name, content in contents.items():
        of_scenario = [run for run in runs if _scenario_of(run) == name]
        present = [run for run in of_scenario if _is_present_code(run, code)]
        wanted = _preset_cell(cfg, name)
        current = [
            candidate
            for candidate in map(_candidate, present)
            if candidate.content == content and wanted in (None, candidate.cell)
        ]
        if current:
            chosen[name] = select(current, metrics, formulas)
        else:
            missing.append(name)
            stale += len(of_scenario)
    if missing:
        about = f" ({stale} are of other cells, data, models or code)" if stale else ""
        raise InputError(
            f"No finished run of {', '.join(missing)} for the challenge {cfg.challenge} in "
            f"{tracker.uri}{about}. {_advice(cfg, missing)}"
        )
    return chosen


def _is_present_code(run: "LoggedRun", code: dict[str, str]) -> bool:
    """Tell whether a run's metric and formula still do what they did."""
    return all(
        run.tags.get(f"{group}_code") == code.get(f"{group}/{run.params.get(group)}")
        for group in ("metric", "formula")
    )


def _preset_cell(cfg: "DictConfig", scenario: str) -> str | None:
    """Cell that the preset names for a scenario; None without a preset."""
    cells = cfg.preset.cells
    if cells is None:
        return None
    if scenario not in cells:
        raise InputError(
            f"preset={cfg.preset.name} has no cell for {scenario}, only for {', '.join(cells)}."
        )
    return str(cells[scenario])


def _advice(cfg: "DictConfig", missing: list[str]) -> str:
    """Command that makes the runs that are missing."""
    from hydra.core.hydra_config import HydraConfig

    datasets = list(dict.fromkeys(name.rpartition("_")[0] for name in missing))
    scenarios = list(dict.fromkeys(name.rpartition("_")[2] for name in missing))
    words = ["python -m mico_exp"]
    words += [] if datasets == ["digits"] else [f"dataset={','.join(datasets)}"]
    if cfg.preset.cells is None:
        words += ["metric=loss,confidence formula=0,1,2"]
    else:
        cells = [str(_preset_cell(cfg, name)).split("/") for name in missing]
        for group, names in zip(("metric", "formula"), zip(*cells, strict=True), strict=True):
            words += [f"{group}={','.join(dict.fromkeys(names))}"]
    words += [] if scenarios == ["inf", "hi", "lo"] else [f"scenario={','.join(scenarios)}"]
    given = HydraConfig.get().overrides.task
    words += [shlex.quote(text) for text in given if text.startswith(("dataset.", "paths."))]
    return f"Run: {' '.join(words)} -m"


def _scenario_of(run: "LoggedRun") -> str:
    return f"{run.params.get('dataset')}_{run.params.get('scenario')}"


def _candidate(run: "LoggedRun") -> Candidate:
    return Candidate(
        run_id=run.id,
        scenario=_scenario_of(run),
        metric=run.params["metric"],
        formula=run.params["formula"],
        started=run.started,
        content=run.tags.get("content", ""),
        figures=run.metrics,
    )


def _predictions(tracker: "Tracker", best: Candidate, scenario: "Scenario") -> "Predictions":
    """Fetch a run's predictions, and check that they are those of the scenario's models."""
    from mico_exp.cell import PREDICTIONS_FILE, read_predictions
    from mico_exp.submission import PHASES

    with tempfile.TemporaryDirectory() as folder:
        found = read_predictions(tracker.artifact(best.run_id, PREDICTIONS_FILE, Path(folder)))
    for phase in PHASES:
        if phase not in scenario.phases:
            raise InputError(
                f"{scenario.path} has no {phase} models, which a submission must hold."
            )
        expected = (len(scenario.phases[phase]), 2 * scenario.sizes.challenge)
        shape = found[phase].shape if phase in found else None
        if shape != expected:
            raise InputError(
                f"Run {best.run_id}: {phase} predictions must have shape {expected}, got {shape}."
            )
    return found


def _rule(cfg: "DictConfig") -> str:
    if cfg.preset.cells is not None:
        return f"the cells of preset={cfg.preset.name}"
    return f"highest {TPR}; ties: higher {AUC}, then the order of the options"


def _write_report(
    path: Path, cfg: "DictConfig", chosen: dict[str, Selected], contents: dict[str, str]
) -> None:
    from mico_exp.atomic import write_text

    report = {
        "challenge": cfg.challenge,
        "rule": _rule(cfg),
        "scenarios": {name: asdict(selected) for name, selected in chosen.items()},
        "contents": contents,
    }
    write_text(path, json.dumps(report, indent=2) + "\n")


def _log(
    tracker: "Tracker",
    cfg: "DictConfig",
    chosen: dict[str, Selected],
    files: list[Path],
    shown: str,
) -> None:
    """Log the run ``selection`` with the table, the zip and the report."""
    from mico_exp import provenance

    tags = {
        "kind": "selection",
        "challenge": cfg.challenge,
        "code_version": provenance.code_version(),
    }
    with tracker.run("selection", tags) as run:
        run.params |= {"challenge": cfg.challenge, "rule": _rule(cfg)}
        for name, selected in chosen.items():
            run.params[f"{name}/cell"] = selected.best.cell
            run.metrics |= {
                f"{name}/{figure}": value for figure, value in selected.best.figures.items()
            }
        for file in files:
            (run.artifacts / file.name).write_bytes(file.read_bytes())
        (run.artifacts / "selection.txt").write_text(shown, encoding="utf-8")


def table(challenge: str, chosen: dict[str, Selected]) -> Table:
    """Lay out the selection for a terminal."""
    result = Table(title=f"Chosen cell of every scenario of {challenge}", title_justify="left")
    for title in ("scenario", "metric", "formula"):
        result.add_column(title)
    known = all(FINAL in selected.best.figures for selected in chosen.values())
    titles = ["val TPR@0.1", "val AUC", "cells", "runner-up", "its TPR@0.1"]
    for title in [*titles, *(["final TPR@0.1"] if known else [])]:
        result.add_column(title, justify="left" if title == "runner-up" else "right")
    for name, selected in chosen.items():
        best, second = selected.best, selected.runner_up
        row = [name, best.metric, best.formula]
        row += [f"{best.figures[TPR]:.4f}", f"{best.figures[AUC]:.4f}", str(selected.compared)]
        row += [second.cell, f"{second.figures[TPR]:.4f}"] if second else ["–", "–"]
        row += [f"{best.figures[FINAL]:.4f}"] if known else []
        result.add_row(*row)
    return result


if __name__ == "__main__":
    cli.launch(command, "select_best")
