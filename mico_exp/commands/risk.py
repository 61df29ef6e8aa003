"""Says whose membership shows: every challenge record by the train models that were asked about it.

``python -m mico_exp.risk`` takes the metric of the cell that `select_best` chooses, or of
``cell=confidence/1``, writes ``audits/<challenge>_risk.csv``, beside it a page, ``.html``, and what
is said of all records, ``.json``, and logs them as the run ``risk``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.table import Table

from mico_exp.auditing.metadata import Metadata
from mico_exp.auditing.risk import (
    Asked,
    Group,
    Risks,
    by_group,
    everywhere,
    histogram,
    judge_records,
    recurring,
)
from mico_exp.commands.choosing import Chosen, Here, choose, describe_rule, find_scenarios
from mico_exp.commands.page import embedded, page
from mico_exp.common.atomic import write_together
from mico_exp.common.errors import InputError
from mico_exp.common.terminal import show
from mico_exp.config import statements
from mico_exp.config.choices import logged_choice
from mico_exp.config.metrics import metrics_of
from mico_exp.config.setup import Setup
from mico_exp.config.statements import Risking
from mico_exp.results.plots import png, risk_plot
from mico_exp.runs import provenance
from mico_exp.runs.statements import RISK_FILE, RiskRecord
from mico_exp.runs.tracking import Tracker

SHOWN = ("models", "in_mean", "out_mean", "tpr", "rank", "low", "high", "exposed")
COLUMNS = ("scenario", "record", "in_mean", "out_mean", "tpr", "rank", "low", "high")
EVERYWHERE, RECURRING = "all train models", "the models that have it as a challenge point"


@dataclass(frozen=True, eq=False)
class Judged:
    """The records of a scenario.

    cell: by which they are judged. asked: which models. labels: (R,) classes. groups: by class,
    and by each of the user's columns.
    """

    name: str
    cell: str
    asked: str
    risks: Risks
    labels: NDArray[np.int64]
    groups: Mapping[str, list[Group]]

    def told(self, count: int) -> dict[str, Any]:
        """What is written for programs, with so many of the first records."""
        found = self.risks
        return {
            "scenario": self.name,
            "cell": self.cell,
            "asked": self.asked,
            "fpr": found.fpr,
            "records": len(found.records),
            "unjudged": found.left_out,
            "exposed": int(found.exposed.sum()),
            "mean_tpr": float(found.tpr.mean()),
            "summary": self.summary,
            "histogram": histogram(found.tpr).tolist(),
            "top": self.listed(count),
            "groups": {name: [one._asdict() for one in some] for name, some in self.groups.items()},
        }

    def listed(self, count: int) -> list[dict[str, Any]]:
        """The first records by rank, what is told of each by name."""
        found, order = self.risks, self.order[:count]
        told = {name: getattr(found, name)[order].tolist() for name in SHOWN}
        told |= {"record": found.records[order].tolist(), "label": self.labels[order].tolist()}
        return [dict(zip(told, values, strict=True)) for values in zip(*told.values(), strict=True)]

    @property
    def order(self) -> NDArray[np.int64]:
        """Places (R,) by rank; of equal ranks the lowest index first."""
        return np.lexsort((self.risks.records, self.risks.rank))

    @property
    def summary(self) -> str:
        """What is said of all records together."""
        found = self.risks
        counts = dict.fromkeys((int(found.models.min()), int(found.models.max())))
        told = (
            f"{self.name}, {self.cell}: {found.exposed.sum()} of {len(found.records)} records are "
            f"exposed, each judged by {self.asked} ({'–'.join(map(str, counts))})"
        )
        if found.left_out:
            told += f"; {found.left_out} others lack models that were, or were not, trained on them"
        return f"{told}."


def command(cfg: DictConfig) -> None:
    """Choose, judge and write."""
    how = statements.risking(cfg)
    challenge = how.challenge
    metadata = None if how.metadata is None else Metadata(how.metadata)
    scenarios = find_scenarios(challenge, how.selection)
    tracker = Tracker(challenge.name, Path.cwd(), create=False)
    chosen = choose(challenge, how.selection, tracker, scenarios)
    judged = [
        _judged(challenge.setups[name], scenarios[name], one, how.fpr, metadata)
        for name, one in chosen.items()
    ]
    table = how.folder / f"{challenge.name}_risk.csv"
    shown, told = (table.with_suffix(end) for end in (".html", ".json"))
    files = {table: _csv(judged).encode(), shown: _page(how, judged).encode()}
    record = _record(how, scenarios, judged)
    write_together({**files, told: record.file})
    logged = {path.name: content for path, content in files.items()}
    tracker.log(record.name, record.to_run(), {**logged, RISK_FILE: record.file})
    for one in judged:
        show(top_table(one, how.top))
        print(one.summary)
    print(f"Records: {table}")
    print(f"Summary: {told}")
    print(f"Page: {shown.absolute().as_uri()}")


def _record(how: Risking, scenarios: Mapping[str, Here], judged: Sequence[Judged]) -> RiskRecord:
    """What the run ``risk`` tells."""
    said: dict[str, Any] = {"rule": describe_rule(how.selection), "folder": str(how.folder)}
    said |= {one.name: one.told(how.top) for one in judged}
    contents = {name: here.identity.content for name, here in scenarios.items()}
    return RiskRecord(how.challenge.name, provenance.code_version(), contents, said)


def _judged(
    setup: Setup, here: Here, chosen: Chosen, fpr: float, metadata: Metadata | None
) -> Judged:
    """Judge the records of a scenario.

    Raises:
        InputError: its scores tell nothing of any record; the message names the scenario.
    """
    asked, by = _asked(setup, here, chosen)
    try:
        risks = judge_records(asked, fpr)
    except InputError as error:
        raise InputError(f"{setup.name}: {error}") from error
    labels = setup.records.labels[risks.records].numpy()
    columns: dict[str, NDArray[Any]] = {"class": labels}
    columns |= {} if metadata is None else metadata.groups(risks.records)
    groups = {name: by_group(risks, names) for name, names in columns.items()}
    return Judged(setup.name, chosen.selected.best.cell, by, risks, labels, groups)


def _asked(setup: Setup, here: Here, chosen: Chosen) -> tuple[Asked, str]:
    """Scores of records, and in words which models gave them.

    A record's own threshold stands in for the formula of the cell, one that learns too. Where a
    cell takes several metrics its predictions are looked at, which are at the models' own challenge
    points alone.
    """
    record = chosen.runs[chosen.selected.best.run_id].record
    metric = logged_choice("metric", record.metric, record.metric_changes, here.lacks)
    if metric.function is None:
        points = setup.points.of_phase["train"]
        return recurring(points, chosen.predictions["train"], here.solution), RECURRING
    metrics = metrics_of(metric, setup.scenario, setup.discloses)
    return everywhere(setup.scored(metrics).only, setup.points), EVERYWHERE


def _csv(judged: Sequence[Judged]) -> str:
    """One line a record, the scenarios one after the other, each by rank."""
    lines = [",".join(COLUMNS)]
    for one in judged:
        found, order = one.risks, one.order
        means = (found.in_mean, found.out_mean, found.tpr)
        numbers = ([f"{value:.6g}" for value in values[order]] for values in means)
        ranks = (values[order].tolist() for values in (found.rank, found.low, found.high))
        rows = zip(found.records[order].tolist(), *numbers, *ranks, strict=True)
        lines += [f"{one.name},{','.join(map(str, row))}" for row in rows]
    return "\n".join(lines) + "\n"


def top_table(one: Judged, count: int) -> Table:
    """Lay out the most exposed records of a scenario for a terminal."""
    caption = (
        f"TPR at the record's own FPR {one.risks.fpr:g}. Intervals of the ranks hold for all "
        "records together in 95 % of cases; with at most 5 % chance is any record wrongly exposed."
    )
    result = Table(
        title=f"{one.name}: most exposed records",
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    for title in ("record", "class", "models", "in mean", "out mean", "TPR", "rank", "exposed"):
        result.add_column(title, justify="right")
    for row in one.listed(count):
        numbers = [f"{row[name]:.4g}" for name in ("in_mean", "out_mean", "tpr")]
        rank = f"{row['rank']} ({row['low']}–{row['high']})"
        names = [str(row[name]) for name in ("record", "label", "models")]
        result.add_row(*names, *numbers, rank, "yes" if row["exposed"] else "–")
    return result


def _page(how: Risking, judged: Sequence[Judged]) -> str:
    """Fill the template."""
    challenge, tprs = how.challenge.name, {one.name: one.risks.tpr for one in judged}
    counts = {name: histogram(values).tolist() for name, values in tprs.items()}
    drawn = png(risk_plot(f"{challenge}: how the records' TPRs lie", counts, how.fpr))
    highest = "; ".join(f"{name}: {values.max():.2f}" for name, values in tprs.items())
    return page(
        "risk.html",
        {},
        challenge=challenge,
        code_version=provenance.code_version(),
        rule=describe_rule(how.selection),
        fpr=how.fpr,
        top=how.top,
        scenarios=judged,
        histogram=embedded(drawn),
        alt=f"Histogram of the records' TPR at FPR {how.fpr:g}. Highest: {highest}.",
    )
