"""Chooses the best cell of every scenario by validation, and builds the merged submission.

``python -m mico_exp.select_best`` reads MLflow, prints a table, writes
``submissions/predictions_<challenge>.zip`` with ``selection_<challenge>.json`` beside it, and
logs both as the run ``selection``. Truth of dev and final takes no part in the choice: where it is
here, what the chosen cell gives there is shown after the choice is made.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from mico_exp.commands.choosing import (
    Chosen,
    Here,
    check_selection,
    choice_identity,
    choose,
    describe_rule,
    find_scenarios,
)
from mico_exp.common.errors import InputError
from mico_exp.common.terminal import as_text, show

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mico_exp.runs.tracking import Tracker


def command(cfg: "DictConfig") -> None:
    """Select, package and log."""
    from mico_exp.challenge.phases import SUBMITTED
    from mico_exp.results.submission import write_submission
    from mico_exp.runs.tracking import Tracker

    check_selection(cfg)  # what is wrong with it is said first
    scenarios = find_scenarios(cfg)
    for here in scenarios.values():
        if absent := [phase for phase in SUBMITTED if phase not in here.scenario.phases]:
            raise InputError(
                f"{here.scenario.path} has no {absent[0]} models, which a submission must hold."
            )
    tracker = Tracker(cfg.challenge, Path.cwd(), create=False)
    chosen = choose(cfg, tracker, scenarios)
    folder = Path(cfg.submissions)
    archive = folder / f"predictions_{cfg.challenge}.zip"
    predictions = {name: one.predictions for name, one in chosen.items()}
    write_submission(archive, [here.scenario for here in scenarios.values()], predictions)
    report = folder / f"selection_{cfg.challenge}.json"
    _write_report(report, cfg, chosen, scenarios)
    shown = table(cfg.challenge, chosen)
    _log(tracker, cfg, chosen, [archive, report], as_text(shown))
    show(shown)
    print(f"Submission: {archive}")
    print(f"Runs: {tracker.address()}")


def _write_report(
    path: Path, cfg: "DictConfig", chosen: dict[str, Chosen], scenarios: dict[str, Here]
) -> None:
    from mico_exp.common.atomic import write_text

    identity = choice_identity(cfg, chosen)
    report = {
        "challenge": cfg.challenge,
        "rule": describe_rule(cfg),
        "choice": identity.key,
        "selection": {**asdict(identity), "level_per_cent": identity.level},
        "scenarios": {
            name: {**asdict(one.selected), "came_out": one.came_out} for name, one in chosen.items()
        },
        "contents": {name: here.identity.content for name, here in scenarios.items()},
    }
    write_text(path, json.dumps(report, indent=2, allow_nan=False) + "\n")


def _log(
    tracker: "Tracker",
    cfg: "DictConfig",
    chosen: dict[str, Chosen],
    files: list[Path],
    shown: str,
) -> None:
    """Log the run ``selection`` with the table, the zip and the report."""
    from mico_exp.runs import provenance

    tags = {
        "kind": "selection",
        "challenge": cfg.challenge,
        "code_version": provenance.code_version(),
        "choice": choice_identity(cfg, chosen).key,
    }
    with tracker.run("selection", tags) as run:
        run.params |= {"challenge": cfg.challenge, "rule": describe_rule(cfg)}
        for name, (selected, *_) in chosen.items():
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


def table(challenge: str, chosen: dict[str, Chosen]) -> Table:
    """Lay out the selection for a terminal."""
    caption = (
        "Below each TPR its 95 % interval over models. The nested estimate is of the choice "
        "itself, made on half of the models and scored on the other. Ties are cells that cannot be "
        "told from the chosen one."
    )
    result = Table(
        title=f"Chosen cell of every scenario of {challenge}: TPR@0.1FPR",
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    for title in ("scenario", "cell"):
        result.add_column(title, overflow="fold")  # a cell's name is typed again: never cut
    known = [p for p in ("dev", "final") if any(p in one.came_out for one in chosen.values())]
    figures = ["validation", "nested\nestimate", "P(best)", "ties\nwith", "val\nAUC", *known]
    for title in figures:  # in two lines where the figures below are shorter: 100 columns in all
        result.add_column(title, justify="right")
    for name, one in chosen.items():
        result.add_row(*_row(name, one, known))
    return result


def _row(name: str, chosen: Chosen, phases: list[str]) -> list[str]:
    selected, came = chosen.selected, chosen.came_out
    verdict, others = selected.verdict, len(selected.cells) - 1
    row = [name, verdict.cell, with_interval(verdict.tpr, verdict.tpr_interval)]
    if others and selected.procedure is not None and selected.procedure_interval is not None:
        row.append(with_interval(selected.procedure, selected.procedure_interval))
    else:
        row.append("–")  # nothing was chosen, or there are too few models to halve them
    row += [f"{verdict.probability_best:.0%}" if others else "–"]
    row += [f"{len(selected.alike)} of {others}" if others else "–", f"{verdict.auc:.4f}"]
    return row + [f"{came[phase]['value']:.4f}" if phase in came else "–" for phase in phases]


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """Write a figure, and below it its interval."""
    low, high = (f"{bound:.3f}".removeprefix("0") for bound in interval)
    return f"{value:.4f}\n{low}–{high}"
