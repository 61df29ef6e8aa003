"""Chooses the best cell of every scenario by validation, and builds the merged submission.

``python -m mico_exp.select_best`` reads MLflow, prints a table, writes
``submissions/predictions_<challenge>.zip`` with ``selection_<challenge>.json`` beside it, and
logs both as the run ``selection``. Truth of dev and final is never read here: where a run has
logged ``final`` figures they are shown after the choice is made.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from mico_exp import cli
from mico_exp.choosing import (
    came_out,
    check_selection,
    choose,
    describe_rule,
    find_scenarios,
    finished_cells,
)
from mico_exp.errors import InputError
from mico_exp.selection import Candidate, Selected
from mico_exp.terminal import as_text, show

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mico_exp.challenge import Scenario
    from mico_exp.submission import Predictions
    from mico_exp.tracking import Tracker


def command(cfg: "DictConfig") -> None:
    """Select, package and log."""
    from mico_exp.submission import write_submission
    from mico_exp.tracking import Tracker

    check_selection(cfg)  # what is wrong with it is said first
    scenarios, contents = find_scenarios(cfg)
    tracker = Tracker(cfg.challenge, Path.cwd(), create=False)
    chosen = choose(cfg, tracker, finished_cells(cfg, tracker), contents)
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
    print(f"Runs: {tracker.address()}")


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


def _write_report(
    path: Path, cfg: "DictConfig", chosen: dict[str, Selected], contents: dict[str, str]
) -> None:
    from mico_exp.atomic import write_text
    from mico_exp.grid import halvings
    from mico_exp.statistics import LEVEL

    report = {
        "challenge": cfg.challenge,
        "rule": describe_rule(cfg),
        "selection": {
            **check_selection(cfg),
            "halvings": halvings(cfg.selection.resamples),
            "level_per_cent": LEVEL,
            "seed": 0,
        },
        "scenarios": {
            name: {**asdict(selected), "came_out": came_out(selected)}
            for name, selected in chosen.items()
        },
        "contents": contents,
    }
    write_text(path, json.dumps(report, indent=2, allow_nan=False) + "\n")


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
        run.params |= {"challenge": cfg.challenge, "rule": describe_rule(cfg)}
        for name, selected in chosen.items():
            run.params[f"{name}/cell"] = selected.best.cell
            run.metrics |= {
                f"{name}/{figure}": value for figure, value in selected.best.figures.items()
            }
            run.metrics[f"{name}/probability_best"] = selected.verdict.probability_best
            if selected.procedure is not None and selected.procedure_interval is not None:
                low, high = selected.procedure_interval
                values = {"": selected.procedure, "_low": low, "_high": high}
                run.metrics |= {f"{name}/procedure{end}": v for end, v in values.items()}
        for file in files:
            (run.artifacts / file.name).write_bytes(file.read_bytes())
        (run.artifacts / "selection.txt").write_text(shown, encoding="utf-8")


def table(challenge: str, chosen: dict[str, Selected]) -> Table:
    """Lay out the selection for a terminal."""
    caption = (
        "95 % intervals over models. Honest: chosen on half of the models, scored on the other. "
        "Like it: other cells that cannot be told from the chosen one."
    )
    result = Table(
        title=f"Chosen cell of every scenario of {challenge}: TPR@0.1FPR",
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    for title in ("scenario", "cell"):
        result.add_column(title, overflow="fold")  # a cell's name is typed again: never cut
    known = [
        phase
        for phase in ("dev", "final")
        if any(phase in came_out(selected) for selected in chosen.values())
    ]
    for title in ["validation", "honest", "best in", "like it", "val AUC", *known]:
        result.add_column(title, justify="right")
    for name, selected in chosen.items():
        result.add_row(*_row(name, selected, known))
    return result


def _row(name: str, selected: Selected, phases: list[str]) -> list[str]:
    verdict, others = selected.verdict, len(selected.cells) - 1
    row = [name, verdict.cell, with_interval(verdict.tpr, verdict.tpr_interval)]
    if others and selected.procedure is not None and selected.procedure_interval is not None:
        row.append(with_interval(selected.procedure, selected.procedure_interval))
    else:
        row.append("–")  # nothing was chosen, or there are too few models to halve them
    row += [f"{verdict.probability_best:.0%}" if others else "–"]
    row += [f"{len(selected.alike)} of {others}" if others else "–", f"{verdict.auc:.4f}"]
    came = came_out(selected)
    return row + [f"{came[phase]['value']:.4f}" if phase in came else "–" for phase in phases]


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """Write a figure with its interval."""
    low, high = (f"{bound:.3f}".removeprefix("0") for bound in interval)
    return f"{value:.4f} ({low}–{high})"


if __name__ == "__main__":
    cli.launch(command, "select_best")
