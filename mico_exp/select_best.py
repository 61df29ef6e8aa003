"""Chooses the best cell of every scenario by validation, and builds the merged submission.

``python -m mico_exp.select_best`` reads MLflow, prints a table, writes
``submissions/predictions_<challenge>.zip`` with ``selection.json`` beside it, and logs both as
the run ``selection``. Truth of dev and final is never read here: where a run has logged ``final``
figures they are shown after the choice is made.
"""

import json
import logging
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
    from mico_exp import provenance
    from mico_exp.submission import write_submission
    from mico_exp.tracking import Tracker

    scenarios, contents = _scenarios(cfg)
    tracker = Tracker(cfg.challenge, Path.cwd(), create=False)
    chosen = choose(cfg, tracker, contents)
    predictions = {
        scenario.name: _predictions(tracker, chosen[name].best, scenario)
        for name, scenario in scenarios.items()
    }
    folder = Path(cfg.submissions)
    archive = folder / f"predictions_{cfg.challenge}.zip"
    write_submission(archive, list(scenarios.values()), predictions)
    report = _report(cfg.challenge, chosen, contents)
    _write_json(folder / "selection.json", report)
    shown = table(cfg.challenge, chosen)
    tags = {
        "kind": "selection",
        "challenge": cfg.challenge,
        "code_version": provenance.code_version(),
    }
    with tracker.run("selection", tags) as run:
        run.params["challenge"] = cfg.challenge
        for name, selected in chosen.items():
            run.params[f"{name}/cell"] = selected.best.cell
            run.metrics |= {
                f"{name}/{figure}": value for figure, value in selected.best.figures.items()
            }
        for file in (archive, folder / "selection.json"):
            (run.artifacts / file.name).write_bytes(file.read_bytes())
        (run.artifacts / "selection.txt").write_text(as_text(shown), encoding="utf-8")
    show(shown)
    print(f"Submission: {archive}")


def _scenarios(cfg: "DictConfig") -> tuple[dict[str, "Scenario"], dict[str, str]]:
    """Find the challenge's scenarios as they now lie on disk, and the hash of their content."""
    from mico_exp import choices, provenance
    from mico_exp.challenge import load_scenario, scenario_folder
    from mico_exp.fingerprints import FileFingerprints
    from mico_exp.store import ScoreStore

    records = choices.records(cfg)
    sizes = choices.sizes(cfg, len(records.labels))
    store = ScoreStore(Path(cfg.paths.store))
    root = Path(cfg.paths.data)
    folders = {name: f"{cfg.dataset.name}_{name}" for name in cfg.scenarios}
    absent = {
        n: f for n, f in folders.items() if not scenario_folder(root, cfg.challenge, f).is_dir()
    }
    if absent:
        first = scenario_folder(root, cfg.challenge, next(iter(absent.values())))
        raise InputError(f"{first} does not exist. {_advice(cfg, list(absent))}")
    scenarios, contents = {}, {}
    for name, folder in folders.items():
        scenarios[name] = load_scenario(root, cfg.challenge, folder, sizes)
        files = FileFingerprints(store.fingerprints(scenarios[name].path))
        contents[name] = provenance.content(scenarios[name], records, files)
    return scenarios, contents


def choose(cfg: "DictConfig", tracker: "Tracker", contents: dict[str, str]) -> dict[str, Selected]:
    """Choose the best cell of every scenario among the runs of its present content."""
    from mico_exp.choices import option_names

    runs = tracker.finished({"kind": "cell", "challenge": cfg.challenge})
    metrics, formulas = option_names("metric"), option_names("formula")
    chosen, missing = {}, []
    stale = 0
    for name, content in contents.items():
        of_scenario = [run for run in runs if run.params.get("scenario") == name]
        current = [run for run in of_scenario if run.tags.get("content") == content]
        if current:
            chosen[name] = select(map(_candidate, current), metrics, formulas)
        else:
            missing.append(name)
            stale += len(of_scenario)
    if missing:
        about = f" ({stale} are of other data or models)" if stale else ""
        raise InputError(
            f"No finished run of scenario {', '.join(missing)} for the challenge "
            f"{cfg.challenge} in {tracker.uri}{about}. {_advice(cfg, missing)}"
        )
    return chosen


def _advice(cfg: "DictConfig", missing: list[str]) -> str:
    everything = len(missing) == len(cfg.scenarios)
    scenario = "" if everything else f" scenario={','.join(missing)}"
    dataset = "" if cfg.dataset.name == "digits" else f" dataset={cfg.dataset.name}"
    return f"Run: python -m mico_exp{dataset} metric=loss,confidence formula=0,1,2{scenario} -m"


def _candidate(run: "LoggedRun") -> Candidate:
    return Candidate(
        run_id=run.id,
        scenario=run.params["scenario"],
        metric=run.params["metric"],
        formula=run.params["formula"],
        started=run.started,
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


def _report(
    challenge: str, chosen: dict[str, Selected], contents: dict[str, str]
) -> dict[str, object]:
    return {
        "challenge": challenge,
        "rule": f"highest {TPR}; ties: higher {AUC}, then the order of the options",
        "scenarios": {
            name: {**asdict(selected), "content": contents[name]}
            for name, selected in chosen.items()
        },
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    from mico_exp.atomic import write_text

    write_text(path, json.dumps(content, indent=2) + "\n")


def table(challenge: str, chosen: dict[str, Selected]) -> Table:
    """Lay out the selection for a terminal."""
    result = Table(title=f"Best cell of every scenario of {challenge}", title_justify="left")
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
