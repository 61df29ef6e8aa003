"""Chooses the best cell of every scenario by validation, and builds the merged submission.

``python -m mico_exp.select_best`` reads MLflow, prints a table, writes
``submissions/predictions_<challenge>.zip`` with ``selection_<challenge>.json`` beside it, and
logs both as the run ``selection``. Where a scenario has no dev or no final models, such as a pool,
there is a choice and no submission. Truth of dev and final takes no part in the choice: where it is
here, what the chosen cell gives there is shown after the choice is made.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from mico_exp.challenge.phases import SUBMITTED
from mico_exp.commands.choosing import (
    Chosen,
    Here,
    choice_identity,
    choose,
    describe_rule,
    find_scenarios,
)
from mico_exp.common.atomic import write_together
from mico_exp.common.terminal import as_text, show
from mico_exp.config import statements
from mico_exp.config.selection import Selection
from mico_exp.results.submission import pack_submission
from mico_exp.runs import provenance
from mico_exp.runs.record import TABLE, SelectionRecord
from mico_exp.runs.tracking import Tracker


def command(cfg: DictConfig) -> None:
    """Select, package and log."""
    how = statements.choosing(cfg, "submissions")
    challenge, selection = how.challenge, how.selection
    scenarios = find_scenarios(challenge, selection)
    tracker = Tracker(challenge.name, Path.cwd(), create=False)
    chosen = choose(challenge, selection, tracker, scenarios)
    archive = how.folder / f"predictions_{challenge.name}.zip"
    report = how.folder / f"selection_{challenge.name}.json"
    told = _report(challenge.name, selection, chosen, scenarios)
    files, absent = {}, _absent(scenarios)
    if not absent:
        predictions = {name: one.predictions for name, one in chosen.items()}
        found = [here.scenario for here in scenarios.values()]
        files[archive] = pack_submission(archive, found, predictions)
        sha256 = hashlib.sha256(files[archive]).hexdigest()
        told["submission"] = {"file": archive.name, "sha256": sha256}
    files[report] = (json.dumps(told, indent=2, allow_nan=False) + "\n").encode()
    write_together(files)
    shown = table(challenge.name, chosen)
    record = _record(challenge.name, selection, chosen)
    logged = {file.name: content for file, content in files.items()}
    tracker.log(record.name, record.to_run(), {**logged, TABLE: as_text(shown).encode()})
    show(shown)
    print(f"No submission: {absent} The choice: {report}" if absent else f"Submission: {archive}")
    print(f"Runs: {tracker.address()}")


def _absent(scenarios: Mapping[str, Here]) -> str:
    """Say what a submission lacks; nothing if it has all."""
    for here in scenarios.values():
        phases = [phase for phase in SUBMITTED if phase not in here.scenario.phases]
        if phases:
            return f"{here.scenario.path} has no {' and no '.join(phases)} models."
    return ""


def _report(
    challenge: str,
    selection: Selection,
    chosen: Mapping[str, Chosen],
    scenarios: Mapping[str, Here],
) -> dict[str, Any]:
    identity = choice_identity(selection, chosen)
    return {
        "challenge": challenge,
        "rule": describe_rule(selection),
        "choice": identity.key,
        "selection": {**asdict(identity), "level_per_cent": identity.level},
        "scenarios": {name: one.told for name, one in chosen.items()},
        "contents": {name: here.identity.content for name, here in scenarios.items()},
    }


def _record(challenge: str, selection: Selection, chosen: Mapping[str, Chosen]) -> SelectionRecord:
    """What the run ``selection`` tells."""
    best = {name: one.selected for name, one in chosen.items()}
    return SelectionRecord(
        challenge=challenge,
        rule=describe_rule(selection),
        choice=choice_identity(selection, chosen).key,
        code_version=provenance.code_version(),
        cells={name: one.best.cell for name, one in best.items()},
        figures={name: one.best.figures for name, one in best.items()},
        probability_best={name: one.verdict.probability_best for name, one in best.items()},
        procedure={
            name: (one.procedure, *one.procedure_interval)
            for name, one in best.items()
            if one.procedure is not None and one.procedure_interval is not None
        },
    )


def table(challenge: str, chosen: Mapping[str, Chosen]) -> Table:
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


def _row(name: str, chosen: Chosen, phases: Sequence[str]) -> list[str]:
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
