"""Writes one self-contained HTML file about a challenge: its grid, its choice, how sure that is.

``python -m mico_exp.report`` reads MLflow and writes ``reports/<challenge>.html``, which needs no
network and no server. Truth of dev and final is shown where it is known, and never chooses.
"""

import base64
import io
import shlex
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mico_exp import cli

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from omegaconf import DictConfig

    from mico_exp.cell import Membership, Predicted
    from mico_exp.challenge import Scenario
    from mico_exp.figures import Curve
    from mico_exp.selection import Candidate, Selected
    from mico_exp.tracking import LoggedRun, Tracker

# Overrides that a repeated sweep says by itself, or need not say.
SWEPT = {"dataset", "scenario", "metric", "formula", "metrics", "plots", "sweep"}


def command(cfg: "DictConfig") -> None:
    """Compare, draw and write."""
    from mico_exp.atomic import write_text
    from mico_exp.choosing import check_selection, choose, find_scenarios, finished_cells
    from mico_exp.tracking import Tracker

    check_selection(cfg)
    scenarios, contents = find_scenarios(cfg)
    tracker = Tracker(cfg.challenge, Path.cwd(), create=False)
    runs = finished_cells(cfg, tracker)
    chosen = choose(cfg, tracker, runs, contents)
    by_id = {run.id: run for run in runs}
    shown = [
        _scenario(scenarios[name], selected, by_id, contents[name])
        for name, selected in chosen.items()
    ]
    rocs = _rocs(cfg, tracker, scenarios, chosen)
    path = Path(cfg.reports) / f"{cfg.challenge}.html"
    write_text(path, _page(cfg, shown, rocs))
    print(f"Report: {path.absolute().as_uri()}")


def _page(
    cfg: "DictConfig", scenarios: Sequence[Mapping[str, Any]], rocs: Sequence[Mapping[str, str]]
) -> str:
    """Fill the template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from mico_exp import provenance
    from mico_exp.choosing import describe_rule

    pages = Environment(
        loader=PackageLoader("mico_exp"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    pages.filters |= {"interval": _interval, "number": _number, "count": _count}
    return pages.get_template("report.html").render(
        challenge=cfg.challenge,
        written=time.strftime("%Y-%m-%d %H:%M"),
        code_version=provenance.code_version(),
        rule=describe_rule(cfg),
        resamples=f"{cfg.selection.resamples:,}",
        scenarios=scenarios,
        phases=[p for p in ("dev", "final") if any(p in one["came_out"] for one in scenarios)],
        rocs=rocs,
        commands=_commands(scenarios),
        versions=[pair for one in scenarios for pair in one["versions"]],
    )


def _interval(value: tuple[float, float] | None) -> str:
    return "–" if value is None else f"{value[0]:.3f} – {value[1]:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _count(value: str | int) -> str:
    return f"{int(value):,}"


def _scenario(
    scenario: "Scenario", selected: "Selected", runs: Mapping[str, "LoggedRun"], content: str
) -> dict[str, Any]:
    """Gather what the page shows of one scenario."""
    from mico_exp.choosing import came_out

    name = scenario.name
    of_cells = [runs[verdict.run_id] for verdict in selected.cells]
    best = runs[selected.best.run_id]
    heatmap, alt = _heatmap(name, selected, best)
    return {
        "name": name,
        "chosen": selected.verdict,
        "cells": selected.cells,
        "alike": selected.alike,
        "procedure": selected.procedure,
        "procedure_interval": selected.procedure_interval,
        "came_out": came_out(selected),
        "params": {"dev_models": None, "final_models": None, **best.params},
        "privacy": privacy(scenario, best.params.get("epsilon", "None")),
        "heatmap": heatmap,
        "heatmap_alt": alt,
        "cost": _cost(of_cells),
        "overrides": [run.tags.get("overrides", "") for run in of_cells],
        "versions": [
            (f"{name}: models, records and seeds", content),
            (f"{name}: metric {selected.best.metric}", best.tags["metric_code"]),
            (f"{name}: formula {selected.best.formula}", best.tags["formula_code"]),
            (f"{name}: code of the chosen run", best.tags["code_version"]),
            (f"{name}: libraries of the chosen run", best.tags.get("versions", "–")),
            (f"{name}: the chosen run", best.id),
        ],
    }


def privacy(scenario: "Scenario", epsilon: str) -> str:
    """Say the ε of the option that a run had, and the one that the models record."""
    from mico_exp.diagnosis import check_epsilon

    asked = None if epsilon == "None" else float(epsilon)
    recorded, odd = check_epsilon(scenario, asked)
    option = "none" if asked is None else f"DP-SGD, ε = {asked:g}"
    if recorded is None:
        return option
    return f"{option} (recorded: {recorded}{', which differs' if odd else ''})"


def _cost(runs: Sequence["LoggedRun"]) -> dict[str, float]:
    seconds = [run.metrics.get("seconds", 0.0) for run in runs]
    return {
        "seconds": sum(seconds),
        "median": statistics.median(seconds),
        "extraction": sum(run.metrics.get("extraction_seconds", 0.0) for run in runs),
        "models": int(sum(run.metrics.get("extracted_models", 0) for run in runs)),
    }


def _heatmap(name: str, selected: "Selected", run: "LoggedRun") -> tuple[str, str]:
    """Draw a scenario's grid, and say in words what it shows."""
    from mico_exp.figures import heatmap
    from mico_exp.grid import order_of, sizes_of
    from mico_exp.options import option_names

    metrics, formulas = order_of(selected, option_names("metric"), option_names("formula"))
    figure = heatmap(name, selected, metrics, formulas, sizes_of(run))
    values = "; ".join(f"{one.cell} {one.tpr:.3f}" for one in selected.cells)
    alt = f"Heatmap of {name}, metric by formula, validation TPR at FPR 0.1. {values}. "
    return _embedded(figure), f"{alt}Chosen: {selected.verdict.cell}."


def _rocs(
    cfg: "DictConfig",
    tracker: "Tracker",
    scenarios: Mapping[str, "Scenario"],
    chosen: Mapping[str, "Selected"],
) -> list[dict[str, str]]:
    """Draw the chosen cells of all scenarios, in validation and where final is known."""
    curves: dict[str, list[Curve]] = {"validation": [], "final": []}
    for name, selected in chosen.items():
        place = len(curves["validation"])
        label = f"{name}, {selected.best.cell}"
        found = _predicted(cfg, tracker, scenarios[name], selected.best)
        for phase, (solution, predictions) in found.items():
            curves[phase].append(_curve(label, place, solution, predictions))
    return [_roc(cfg.challenge, phase, group) for phase, group in curves.items() if group]


def _roc(challenge: str, phase: str, curves: Sequence["Curve"]) -> dict[str, str]:
    from mico_exp.figures import roc_figure

    rates = "; ".join(f"{one.label}: TPR {one.roc.tpr_at(0.1):.3f}" for one in curves)
    return {
        "source": _embedded(roc_figure(f"{challenge}: chosen cells, {phase}", curves)),
        "alt": f"ROC curves in {phase}, linear and logarithmic. At FPR 0.1, {rates}.",
        "caption": f"{phase.capitalize()}, with 95 % intervals over models; points mark the "
        "official false positive rates on every curve.",
    }


def _predicted(
    cfg: "DictConfig", tracker: "Tracker", scenario: "Scenario", best: "Candidate"
) -> "dict[str, tuple[Membership, Predicted]]":
    """Membership and predictions of a chosen run in validation, and in final where it is known."""
    from mico_exp import choices
    from mico_exp.cell import PREDICTIONS_FILE, read_predictions, read_validation
    from mico_exp.challenge import read_truth

    with tempfile.TemporaryDirectory() as folder:
        path = tracker.artifact(best.run_id, PREDICTIONS_FILE, Path(folder))
        found = {"validation": read_validation(path)}
        truth = read_truth(choices.root(cfg), scenario).get("final")
        if truth is not None and truth.any() and not truth.all():
            found["final"] = truth, read_predictions(path)["final"]
    return found


def _curve(label: str, place: int, solution: "Membership", predictions: "Predicted") -> "Curve":
    from mico_exp.figures import SCENARIO_STYLES, Curve
    from mico_exp.scoring import roc

    style = SCENARIO_STYLES[place % len(SCENARIO_STYLES)]
    curve = roc(solution, predictions)
    return Curve(label, curve, solution.size, style, solution, predictions)


def _embedded(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _commands(scenarios: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what to type to have all this again: the sweeps, then the choice, then this report."""
    from hydra.core.hydra_config import HydraConfig

    sweeps: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for one in scenarios:
        parameters = one["params"]
        for verdict, given in zip(one["cells"], one["overrides"], strict=True):
            others = [text for text in _words(given) if text.split("=")[0] not in SWEPT]
            key = (parameters["dataset"], shlex.join(others), parameters["scenario"])
            metric, formula = verdict.cell.split("/")
            sweeps.setdefault(key, {}).setdefault(metric, []).append(formula)
    rectangles: dict[tuple[str, str, str, str], list[str]] = {}
    for (dataset, more, scenario), grid in sweeps.items():
        for formulas in dict.fromkeys(map(tuple, grid.values())):
            metrics = ",".join(name for name, have in grid.items() if tuple(have) == formulas)
            key_of = (dataset, metrics, ",".join(formulas), more)
            rectangles.setdefault(key_of, []).append(scenario)
    commands = [
        f"python -m mico_exp dataset={dataset} scenario={','.join(names)} metric={metrics} "
        f"formula={formulas} {more} -m".replace("  ", " ")
        for (dataset, metrics, formulas, more), names in rectangles.items()
    ]
    typed = [text for text in HydraConfig.get().overrides.task if not text.startswith("reports=")]
    last = [f"python -m mico_exp.{name}" for name in ("select_best", "report")]
    return commands + [f"{command} {shlex.join(typed)}".rstrip() for command in last]


def _words(given: str) -> list[str]:
    try:
        return shlex.split(given)
    except ValueError:  # of a version that joined them with blanks
        return given.split()


if __name__ == "__main__":
    cli.launch(command, "report")
