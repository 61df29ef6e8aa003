"""Says how far two scenarios differ, and lays those of a challenge side by side.

``python -m mico_exp.compare digits/digits_inf digits/digits_lo`` prints TPR and AUC of both with
intervals of the difference. ``python -m mico_exp.compare digits`` prints accuracy beside risk of
every scenario, and draws them: what a defence costs and what it gains. Either is written as JSON,
``audits/<first>_<second>_compare.json`` or ``audits/<challenge>_compare.json``, and logged as the
run ``comparison``, that of two challenges in both of their experiments.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from mico_exp.auditing.difference import (
    FIGURES,
    Difference,
    check_tells,
    differences,
    interval_of_tpr,
    mean_figures,
)
from mico_exp.challenge.tree import ModelFolder
from mico_exp.commands.choosing import describe_rule
from mico_exp.commands.documentation import privacy
from mico_exp.commands.known import Known, find_known, named
from mico_exp.common.atomic import write_together
from mico_exp.common.errors import InputError
from mico_exp.common.terminal import as_text, show
from mico_exp.config import statements
from mico_exp.config.statements import Choosing
from mico_exp.results.plots import frontier_plot, png
from mico_exp.results.scoring import RANKING_FPR
from mico_exp.results.statistics import Interval
from mico_exp.runs import provenance
from mico_exp.runs.statements import COMPARISON_FILE, COMPARISON_TABLE, ComparisonRecord
from mico_exp.runs.tracking import Tracker

SHOWN = dict(zip(FIGURES, (f"TPR@{RANKING_FPR}", "AUC"), strict=True))


class Compared(NamedTuple):
    """What a comparison comes to: all that is said, in a table, in a last line, and drawn."""

    said: Mapping[str, Any]
    table: Table
    line: str | None = None
    plots: Mapping[Path, bytes] = MappingProxyType({})


def command(cfg: DictConfig) -> None:
    """Compare two scenarios, or lay a challenge's side by side; print, write and log."""
    sides = statements.comparing(cfg)
    names = dict.fromkeys(how.challenge.name for how in sides)
    trackers = {name: Tracker(name, Path.cwd(), create=False) for name in names}
    found = [find_known(how, trackers[how.challenge.name]) for how in sides]
    if len(sides) == 1:
        compared = _lay_out(sides[0], found[0])
    else:
        compared = _set_apart(*(known[0] for known in found))
    said = {"rule": describe_rule(sides[0].selection), **compared.said}
    contents = {one.setup.path: one.here.identity.content for known in found for one in known}
    records = [ComparisonRecord(name, provenance.code_version(), contents, said) for name in names]
    path = sides[0].folder / f"{_stem(sides, found)}_compare.json"
    write_together({**compared.plots, path: records[0].file})
    files = {plot.name: content for plot, content in compared.plots.items()}
    files[COMPARISON_TABLE] = as_text(compared.table).encode()
    for record in records:
        logged = {**files, COMPARISON_FILE: record.file}
        trackers[record.challenge].log(record.name, record.to_run(), logged)
    show(compared.table)
    if compared.line is not None:
        print(compared.line)
    print(f"Comparison: {path}")
    for plot in compared.plots:
        print(f"Plot: {plot}")


def _stem(sides: Sequence[Choosing], found: Sequence[Sequence[Known]]) -> str:
    """Name a comparison's file: by its challenge, or by both scenarios with theirs."""
    if len(sides) == 1:
        return sides[0].challenge.name
    return "_".join(known.setup.path.replace("/", "_") for (known,) in found)


def _set_apart(first: Known, second: Known) -> Compared:
    """Compare two scenarios."""
    check_comparable(first, second)
    phases = [phase for phase in first.phases if phase in second.phases] or ["train"]
    try:
        found = differences(first.samples(phases), second.samples(phases))
    except InputError as error:
        paths = " and ".join(one.setup.path for one in (first, second))
        raise InputError(f"{paths}, {named(phases)}: {error}") from error
    line = _told(first, second, found[0])
    ends = found[0].over_models or found[0].over_points
    over = "" if ends is None else f", 95 % interval {_ends(ends)}"
    said = {
        "verdict": f"{line} The difference is {found[0].value:+.4f}{over}.",
        "compared": f"{first.setup.path} less {second.setup.path}",
        "phases": named(phases),
        "first": _side(first),
        "second": _side(second),
        "difference": {one.figure: _difference(one) for one in found},
    }
    return Compared(said, _table(first, second, phases, found), line)


def _side(known: Known) -> dict[str, str]:
    return {"scenario": known.setup.path, "cell": known.cell}


def _difference(one: Difference) -> dict[str, Any]:
    """A difference as it is told to programs: intervals as their ends, of the kinds there are."""
    told = asdict(one)
    del told["figure"]
    for key in ("over_models", "over_points"):
        told[key] = None if told[key] is None else Interval(*told[key])._asdict()
    return told


def check_comparable(first: Known, second: Known) -> None:
    """Want two scenarios of the same records.

    Raises:
        InputError: they are of others.
    """
    one, other = (known.setup.records.labels.numpy() for known in (first, second))
    if not np.array_equal(one, other):
        raise InputError(
            f"{first.setup.path} and {second.setup.path} are of different records ({len(one):,} "
            f"and {len(other):,}): a difference of their figures has no meaning."
        )


def _table(
    first: Known, second: Known, phases: Sequence[str], found: Sequence[Difference]
) -> Table:
    drawn = "drawn in pairs" if found[0].paired else "drawn by themselves"
    counts = [sum(len(one.solution) for one in side.samples(phases)) for side in (first, second)]
    caption = (
        f"Figures of {named(phases)}, {counts[0]} and {counts[1]} models, {drawn}; 95 % intervals "
        "of the difference. Cells: "
        f"{first.cell} and {second.cell}."
    )
    result = Table(
        title=f"{first.setup.path} less {second.setup.path}",
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    for title in ("figure", "first", "second", "difference", "over models", "over records"):
        result.add_column(title, justify="left" if title == "figure" else "right")
    for one in found:
        values = (f"{one.first:.4f}", f"{one.second:.4f}", f"{one.value:+.4f}")
        result.add_row(SHOWN[one.figure], *values, _ends(one.over_models), _ends(one.over_points))
    return result


def _ends(one: Interval | None) -> str:
    return "–" if one is None else f"{one.low:+.4f} to {one.high:+.4f}"


def _told(first: Known, second: Known, one: Difference) -> str:
    what = f"{SHOWN[one.figure]} of {first.setup.path}"
    if not one.differs:
        return f"{what} cannot be told from that of {second.setup.path}."
    side = "higher" if one.value > 0 else "lower"
    return f"{what} is {side} than that of {second.setup.path}."


class Point(NamedTuple):
    """A scenario on the frontier; accuracy is None where no model records it."""

    name: str
    cell: str
    privacy: str
    accuracy: float | None
    tpr: float
    tpr_interval: Interval | None
    auc: float
    phases: str


def _lay_out(how: Choosing, found: Sequence[Known]) -> Compared:
    """Lay accuracy beside risk, and draw it where accuracy is known."""
    challenge, points = how.challenge.name, [_point(known) for known in found]
    drawn = {
        f"{one.name}: {one.privacy}": (one.accuracy, one.tpr, one.tpr_interval)
        for one in points
        if one.accuracy is not None
    }
    plots = {}
    if drawn:
        path = how.folder / f"{challenge}_frontier.png"
        plots[path] = png(frontier_plot(f"{challenge}: accuracy beside risk", drawn))
    said: dict[str, Any] = {
        "verdict": f"{'; '.join(map(_in_words, points))}.",
        "compared": challenge,
    }
    said |= {one.name: _of_point(one) for one in points}
    return Compared(said, _frontier(challenge, points), plots=plots)


def _in_words(one: Point) -> str:
    accuracy = "" if one.accuracy is None else f" at accuracy {one.accuracy:.4f}"
    return f"{one.name}: {SHOWN[FIGURES[0]]} {one.tpr:.4f}{accuracy}"


def _of_point(one: Point) -> dict[str, Any]:
    """A scenario on the frontier as it is told to programs."""
    return {
        "cell": one.cell,
        "phases": one.phases,
        "privacy": one.privacy,
        "accuracy": one.accuracy,
        FIGURES[0]: one.tpr,
        "over_models": None if one.tpr_interval is None else one.tpr_interval._asdict(),
        FIGURES[1]: one.auc,
    }


def _point(known: Known) -> Point:
    samples = known.samples(known.phases)
    for one in samples:
        check_tells(one)
    ends = interval_of_tpr(samples)
    models = [model for phase in known.phases for model in known.here.scenario.phases[phase]]
    record = known.chosen.runs[known.chosen.selected.best.run_id].record
    shown = privacy(known.here.scenario, record.epsilon)
    accuracy = _accuracy(models)
    tpr, auc = mean_figures(samples).tolist()
    return Point(known.setup.name, known.cell, shown, accuracy, tpr, ends, auc, named(known.phases))


def _accuracy(models: Iterable[ModelFolder]) -> float | None:
    """Mean accuracy of the models that record theirs; None where none does.

    Raises:
        InputError: one is no number from 0 to 1.
    """
    found = []
    for model in models:
        path = model.path / "accuracy"
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        try:
            value = float(text)
        except ValueError:
            value = -1
        if not 0 <= value <= 1:
            raise InputError(f"{path}: accuracy must be a number in [0, 1], got {text[:40]!r}.")
        found.append(value)
    return statistics.fmean(found) if found else None


def _frontier(challenge: str, points: Sequence[Point]) -> Table:
    result = Table(
        title=f"{challenge}: accuracy beside risk",
        title_justify="left",
        caption="TPR at FPR 0.1 of the chosen cells with 95 % intervals over models.",
        caption_justify="left",
    )
    for title in ("scenario", "privacy", "figures of"):
        result.add_column(title, overflow="fold")
    for title in ("accuracy", SHOWN[FIGURES[0]], "95 %", "AUC"):
        result.add_column(title, justify="right")
    for one in points:
        accuracy = "–" if one.accuracy is None else f"{one.accuracy:.4f}"
        ends = "–" if one.tpr_interval is None else "{:.3f}–{:.3f}".format(*one.tpr_interval)
        numbers = (accuracy, f"{one.tpr:.4f}", ends, f"{one.auc:.4f}")
        result.add_row(one.name, one.privacy, one.phases, *numbers)
    return result
