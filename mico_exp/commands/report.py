"""Writes one self-contained HTML file about a challenge: its grid, its choice, how sure that is.

``python -m mico_exp.report`` reads MLflow and writes ``reports/<challenge>.html``, which needs no
network and no server, and ``reports/<challenge>.json``, of the same content for programs. The same
runs give the same bytes. Truth of dev and final is shown where it is known, and never chooses.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mico_exp.auditing.limits import limits_of
from mico_exp.challenge.phases import CALLED, PHASES
from mico_exp.commands.choosing import (
    Chosen,
    Here,
    best_of_exposures,
    choose,
    describe_rule,
    find_scenarios,
)
from mico_exp.commands.documentation import (
    LIMITS,
    Documented,
    adversaries,
    counted,
    documented,
    privacy,
    tested,
)
from mico_exp.commands.page import embedded, page
from mico_exp.commands.said import Said, find_said
from mico_exp.common.arrays import Mask
from mico_exp.common.atomic import write_text
from mico_exp.config import advice, statements
from mico_exp.config.challenges import Challenge
from mico_exp.config.options import option_names
from mico_exp.results.cell import Membership, Predicted
from mico_exp.results.plots import (
    SCENARIO_STYLES,
    Curve,
    exposure_plot,
    heatmap,
    png,
    risk_plot,
    roc_plot,
)
from mico_exp.results.scoring import roc
from mico_exp.results.selection import Selected
from mico_exp.runs import provenance
from mico_exp.runs.cells_alike import order_of, sizes_of
from mico_exp.runs.record import CellRecord
from mico_exp.runs.tracking import Tracker

LISTED, GROUPS = 5, 12  # records of a scenario, and groups of a column, that are shown


@dataclass(frozen=True)
class Facts:
    """What a report says of the whole challenge.

    tested: days of the runs that are compared. rule: by which the cell was chosen. resamples: draws
    for intervals. commands: to type to have it again. comparisons, gates: what was said of these
    models, when, and by which run. limits: what the figures do not say.
    """

    challenge: str
    code_version: str
    tested: str
    rule: str
    resamples: int
    commands: Sequence[str]
    comparisons: Sequence[Mapping[str, Any]]
    gates: Sequence[Mapping[str, Any]]
    limits: Sequence[str] = LIMITS


def command(cfg: DictConfig) -> None:
    """Compare, draw and write."""
    how = statements.choosing(cfg, "reports")
    challenge, selection = how.challenge, how.selection
    scenarios = find_scenarios(challenge, selection)
    tracker = Tracker(challenge.name, Path.cwd(), create=False)
    chosen = choose(challenge, selection, tracker, scenarios)
    exposed = {
        name: best_of_exposures(selection, tracker, scenarios[name], one)
        for name, one in chosen.items()
    }
    shown = [_scenario(name, one, scenarios[name]) for name, one in chosen.items()]
    documents = [
        documented(
            challenge.setups[one["name"]],
            scenarios[one["name"]],
            chosen[one["name"]],
            one["privacy"],
        )
        for one in shown
    ]
    contents = {name: here.identity.content for name, here in scenarios.items()}
    said = find_said(tracker, challenge.name, contents)
    facts = Facts(
        challenge=challenge.name,
        code_version=provenance.code_version(),
        tested=tested(chosen.values()),
        rule=describe_rule(selection),
        resamples=selection.resamples,
        commands=_commands(challenge, chosen, exposed),
        comparisons=said.comparisons,
        gates=said.gates,
    )
    rocs = _rocs(challenge.name, scenarios, chosen, said.audits)
    plots = rocs, _exposures(challenge.name, exposed)
    path = how.folder / f"{challenge.name}.html"
    write_text(path, _page(facts, shown, documents, said, *plots))
    write_text(path.with_suffix(".json"), facts_of(facts, chosen, shown, documents, said))
    print(f"Report: {path.absolute().as_uri()}")


def _page(
    facts: Facts,
    scenarios: Sequence[Mapping[str, Any]],
    documents: Sequence[Documented],
    said: Said,
    rocs: Sequence[Mapping[str, str]],
    exposures: Mapping[str, Any] | None,
) -> str:
    """Fill the template."""
    return page(
        "report.html",
        {"interval": _interval, "number": _number, "count": _count},
        **asdict(facts),
        scenarios=scenarios,
        documents=documents,
        adversaries=adversaries(documents),
        phases=[p for p in ("dev", "final") if any(p in one["came_out"] for one in scenarios)],
        rocs=rocs,
        audited=said.audits,
        risk=_risk(facts.challenge, said.risks),
        undone=_undone(facts.challenge, said),
        exposures=exposures,
        versions=[pair for one in scenarios for pair in one["versions"]],
    )


def facts_of(
    facts: Facts,
    chosen: Mapping[str, Chosen],
    scenarios: Sequence[Mapping[str, Any]],
    documents: Sequence[Documented],
    said: Said,
) -> str:
    """The report as JSON, by the schema ``mico_exp/schemas/report.schema.json``."""
    told = [
        {
            "scenario": one.name,
            "privacy": shown["privacy"],
            "protocol": shown["protocol"],
            **chosen[one.name].told,
            "adversary": one.adversary,
            "tried": one.tried,
            "residual_risk": one.remains,
            "elements": one.elements,
            "fingerprints": dict(shown["versions"]),
            "audit": said.audits.get(one.name),
            "risk": said.risks.get(one.name),
        }
        for shown, one in zip(scenarios, documents, strict=True)
    ]
    return json.dumps({**asdict(facts), "scenarios": told}, indent=2, allow_nan=False) + "\n"


def _interval(value: tuple[float, float] | None) -> str:
    return "–" if value is None else f"{value[0]:.3f} – {value[1]:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _count(value: str | int) -> str:
    return f"{int(value):,}" if str(value).isdecimal() else str(value)


def _scenario(name: str, chosen: Chosen, here: Here) -> dict[str, Any]:
    """Gather what the page shows of one scenario."""
    selected, runs = chosen.selected, chosen.runs
    run, record = runs[selected.best.run_id]
    drawn, alt = _heatmap(name, selected, here)
    return {
        "name": name,
        "chosen": selected.verdict,
        "cells": selected.cells,
        "alike": selected.alike,
        "procedure": selected.procedure,
        "procedure_interval": selected.procedure_interval,
        "came_out": chosen.came_out,
        "protocol": _protocol(here, record),
        "privacy": privacy(here.scenario, record.epsilon),
        "heatmap": drawn,
        "heatmap_alt": alt,
        "cost": _cost([runs[verdict.run_id].record for verdict in selected.cells]),
        "versions": [
            (f"{name}: models, records and membership", here.identity.content),
            (f"{name}: metric {record.metric}", record.identity.metric_code),
            (f"{name}: formula {record.formula}", record.identity.formula_code),
            (f"{name}: code of the chosen run", record.code_version or "–"),
            (f"{name}: libraries of the chosen run", record.versions or "–"),
            (f"{name}: the chosen run", run.id),
        ],
    }


def _protocol(here: Here, record: CellRecord) -> dict[str, Any]:
    """What the attack was on, as it lies on disk; a run only says what is not there."""
    scenario, train = here.scenario, here.scenario.phases["train"]
    models = [len(scenario.phases.get(phase, ())) for phase in PHASES]
    references = f" + {len(scenario.shadow)} reference models" if scenario.shadow else ""
    return {
        "dataset": record.dataset,
        "records": scenario.sizes.records,
        "training": counted(model.num_training(scenario.sizes) for model in train),
        "models": " / ".join(str(count or "–") for count in models) + references,
        "points": counted(model.num_points(scenario.sizes) for model in train),
        "unique": "–" if record.unique_points is None else record.unique_points,
    }


def _cost(records: Sequence[CellRecord]) -> dict[str, float]:
    seconds = [record.seconds or 0.0 for record in records]
    return {
        "seconds": sum(seconds),
        "median": statistics.median(seconds),
        "extraction": sum(_sum(record.extraction_seconds) for record in records),
        "models": int(sum(_sum(record.extracted) for record in records)),
    }


def _sum(of_families: Mapping[str, float]) -> float:
    return sum(filter(math.isfinite, of_families.values()))


def _heatmap(name: str, selected: Selected, here: Here) -> tuple[str, str]:
    """Draw a scenario's grid, and say in words what it shows."""
    metrics, formulas = order_of(selected, option_names("metric"), option_names("formula"))
    figure = heatmap(
        name, selected, metrics, formulas, sizes_of(len(here.solution), here.num_points)
    )
    values = "; ".join(f"{one.cell} {one.tpr:.3f}" for one in selected.cells)
    alt = f"Heatmap of {name}, metric by formula, validation TPR at FPR 0.1. {values}. "
    return embedded(png(figure)), f"{alt}Chosen: {selected.verdict.cell}."


def _rocs(
    challenge: str,
    scenarios: Mapping[str, Here],
    chosen: Mapping[str, Chosen],
    audited: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, str]]:
    """Draw the chosen cells of all scenarios, in validation and where final is known."""
    curves: dict[str, list[Curve]] = {"train": [], "final": []}
    limits = {name: limits_of(one) for name, one in audited.items()}
    for place, (name, one) in enumerate(chosen.items()):
        label, here = f"{name}, {one.selected.best.cell}", scenarios[name]
        known = {"train": here.solution}
        known |= {"final": here.truth["final"]} if "final" in one.came_out else {}
        for phase, solution in known.items():
            predictions = one.predictions[phase]
            curve = _curve(label, place, solution, predictions, here.there[phase])
            curves[phase].append(replace(curve, limits=limits.get(name, ())))
    return [_roc(challenge, CALLED[phase], group) for phase, group in curves.items() if group]


def _roc(challenge: str, phase: str, curves: Sequence[Curve]) -> dict[str, str]:
    rates = "; ".join(f"{one.label}: TPR {one.roc.tpr_at(0.1):.3f}" for one in curves)
    return {
        "source": embedded(png(roc_plot(f"{challenge}: chosen cells, {phase}", curves))),
        "alt": f"ROC curves in {phase}, linear and logarithmic. At FPR 0.1, {rates}.",
        "caption": f"{phase.capitalize()}, with 95 % intervals over models; points mark the "
        "official false positive rates on every curve.",
    }


def _curve(
    label: str, place: int, solution: Membership, predictions: Predicted, there: Mask
) -> Curve:
    style = SCENARIO_STYLES[place % len(SCENARIO_STYLES)]
    curve = roc(solution, predictions, there)
    return Curve(label, curve, int(there.sum()), style, solution, predictions, there)


def _risk(challenge: str, risks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Lay out what the page shows of single records; None where nothing is known of them."""
    if not risks:
        return None
    counts = {name: one["histogram"] for name, one in risks.items()}
    fpr = next(iter(risks.values()))["fpr"]
    drawn = risk_plot(f"{challenge}: how the records' TPRs lie", counts, fpr)
    told = "; ".join(f"{name}: mean {one['mean_tpr']:.3f}" for name, one in risks.items())
    columns = dict.fromkeys(column for one in risks.values() for column in one["groups"])
    files: dict[tuple[str, str], list[str]] = {}
    for name, one in risks.items():
        files.setdefault((one["folder"], one["run"]), []).append(name)
    return {
        "scenarios": {name: {**one, "top": one["top"][:LISTED]} for name, one in risks.items()},
        "fpr": fpr,
        "source": embedded(png(drawn)),
        "alt": f"Histogram of the records' TPR at FPR {fpr:g}. {told}.",
        "columns": {column: _by_group(risks, column) for column in columns},
        "files": [(*place, names) for place, names in files.items()],
    }


def _by_group(risks: Mapping[str, Mapping[str, Any]], column: str) -> dict[str, Any]:
    """Groups of a column, those of the highest TPR in any scenario first; of each by scenario."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, one in risks.items():
        for group in one["groups"].get(column, []):
            found.setdefault(group["name"], {})[name] = group
    order = sorted(found, key=lambda name: (-max(g["tpr"] for g in found[name].values()), name))
    rows = {group: found[group] for group in order[:GROUPS]}
    return {"rows": rows, "more": len(order) - len(rows)}


def _undone(challenge: str, said: Said) -> list[tuple[str, str]]:
    """What no run says of these models, and the command that does."""
    typed, plain = _typed(), _typed(*statements.OF_RULES)
    asked = {
        "What the attacks prove of ε": (said.audits, "audit", plain),
        "Which single records are at risk": (said.risks, "risk", typed),
        "How far scenarios differ": (said.comparisons, "compare", [challenge, *typed]),
        "Whether a release keeps limits": (said.gates, "gate", ["max_tpr=0.15", *typed]),
    }
    return [
        (what, advice.command(f"mico_exp.{name}", *words))
        for what, (found, name, words) in asked.items()
        if not found
    ]


def _typed(*but: str) -> list[str]:
    """What was typed here that other commands are to be told as well."""
    return advice.typed("reports", *but)


def _exposures(
    challenge: str, exposed: Mapping[str, Mapping[str, Selected]]
) -> dict[str, Any] | None:
    """Lay out what each exposure gives away; None where there is one exposure alone."""
    if all(len(best) < 2 for best in exposed.values()):
        return None
    best = {
        name: {shown: one.verdict for shown, one in of_one.items()}
        for name, of_one in exposed.items()
    }
    rows = [
        {"scenario": name, "exposure": shown, "best": one.verdict, "cells": len(one.cells)}
        for name, of_one in exposed.items()
        for shown, one in of_one.items()
    ]
    drawn = exposure_plot(f"{challenge}: the best cell of each exposure, validation", best)
    values = "; ".join(
        f"{name}, {shown}: {one.tpr:.3f}"
        for name, of_one in best.items()
        for shown, one in of_one.items()
    )
    alt = f"TPR at FPR 0.1 of the best cell of each exposure. {values}."
    return {"rows": rows, "source": embedded(png(drawn)), "alt": alt}


def _commands(
    challenge: Challenge,
    chosen: Mapping[str, Chosen],
    exposed: Mapping[str, Mapping[str, Selected]],
) -> list[str]:
    """Say what to type to have all this again: the sweeps, then the choice, then this report."""
    sweeps: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name, one in chosen.items():
        compared = [one.selected, *exposed[name].values()]
        for run_id in dict.fromkeys(cell.run_id for some in compared for cell in some.cells):
            record = one.runs[run_id].record
            key = (*challenge.setups[name].options, *_overrides(record))
            metric, formula = (label.partition("[")[0] for label in (record.metric, record.formula))
            sweeps.setdefault(key, {}).setdefault(metric, []).append(formula)
    last = [advice.command(f"mico_exp.{name}", *_typed()) for name in ("select_best", "report")]
    return advice.repeat(sweeps) + last


def _overrides(record: CellRecord) -> list[str]:
    """What a sweep is to be told beside its grid to make a run of it again.

    Changes of the cell's own options have been compared with what these options have.
    """
    changes = json.loads(record.metric_changes) + json.loads(record.formula_changes)
    kept = dict.fromkeys(advice.logged(record.overrides))
    here = [text for text in advice.given() if text.startswith("paths.")]
    return [*kept, *here, *changes]
