"""Writes one self-contained HTML file about a challenge: its grid, its choice, how sure that is.

``python -m mico_exp.report`` reads MLflow and writes ``reports/<challenge>.html``, which needs no
network and no server. Truth of dev and final is shown where it is known, and never chooses.
"""

import base64
import io
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

CELL = ("metric", "formula")

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from omegaconf import DictConfig

    from mico_exp.challenge.tree import Scenario
    from mico_exp.commands.choosing import Chosen, Here
    from mico_exp.results.cell import Membership, Predicted
    from mico_exp.results.plots import Curve
    from mico_exp.results.selection import Selected
    from mico_exp.runs.tracking import LoggedRun


def command(cfg: "DictConfig") -> None:
    """Compare, draw and write."""
    from mico_exp.commands.choosing import check_selection, choose, find_scenarios
    from mico_exp.common.atomic import write_text
    from mico_exp.runs.tracking import Tracker

    check_selection(cfg)
    scenarios = find_scenarios(cfg)
    tracker = Tracker(cfg.challenge, Path.cwd(), create=False)
    chosen = choose(cfg, tracker, scenarios)
    shown = [_scenario(name, one, scenarios[name]) for name, one in chosen.items()]
    path = Path(cfg.reports) / f"{cfg.challenge}.html"
    write_text(path, _page(cfg, shown, _rocs(cfg, scenarios, chosen), _commands(chosen)))
    print(f"Report: {path.absolute().as_uri()}")


def _page(
    cfg: "DictConfig",
    scenarios: Sequence[Mapping[str, Any]],
    rocs: Sequence[Mapping[str, str]],
    commands: Sequence[str],
) -> str:
    """Fill the template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from mico_exp.commands.choosing import describe_rule
    from mico_exp.runs import provenance

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
        commands=commands,
        versions=[pair for one in scenarios for pair in one["versions"]],
    )


def _interval(value: tuple[float, float] | None) -> str:
    return "–" if value is None else f"{value[0]:.3f} – {value[1]:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _count(value: str | int) -> str:
    return f"{int(value):,}" if str(value).isdecimal() else str(value)


def _scenario(name: str, chosen: "Chosen", here: "Here") -> dict[str, Any]:
    """Gather what the page shows of one scenario."""
    selected, runs = chosen.selected, chosen.runs
    best = runs[selected.best.run_id]
    heatmap, alt = _heatmap(name, selected, here)
    return {
        "name": name,
        "chosen": selected.verdict,
        "cells": selected.cells,
        "alike": selected.alike,
        "procedure": selected.procedure,
        "procedure_interval": selected.procedure_interval,
        "came_out": chosen.came_out,
        "protocol": _protocol(here, best),
        "privacy": privacy(here.scenario, best.params.get("epsilon", "None")),
        "heatmap": heatmap,
        "heatmap_alt": alt,
        "cost": _cost([runs[verdict.run_id] for verdict in selected.cells]),
        "versions": [
            (f"{name}: models, records and seeds", here.identity.content),
            (f"{name}: metric {selected.best.metric}", best.tags["metric_code"]),
            (f"{name}: formula {selected.best.formula}", best.tags["formula_code"]),
            (f"{name}: code of the chosen run", best.tags.get("code_version", "–")),
            (f"{name}: libraries of the chosen run", best.tags.get("versions", "–")),
            (f"{name}: the chosen run", best.id),
        ],
    }


def _protocol(here: "Here", run: "LoggedRun") -> dict[str, Any]:
    """What the attack was on, as it lies on disk; a run only says what is not there."""
    scenario = here.scenario
    models = [len(scenario.phases.get(phase, ())) for phase in ("train", "dev", "final")]
    return {
        "dataset": run.params["dataset"],
        "num_records": scenario.sizes.records,
        "len_training": scenario.sizes.training,
        "models": " / ".join(str(count or "–") for count in models),
        "points": 2 * scenario.sizes.challenge,
        "unique_points": run.params.get("unique_points", "–"),
    }


def privacy(scenario: "Scenario", epsilon: str) -> str:
    """Say the ε of the option that a run had, and the one that the models record."""
    from mico_exp.scores.estimate import check_epsilon

    try:
        asked = None if epsilon == "None" else float(epsilon)
    except ValueError:  # of a run that was not logged from here
        asked = math.nan
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
        "extraction": sum(_of_families(run, "extraction_seconds") for run in runs),
        "models": int(sum(_of_families(run, "extracted_models") for run in runs)),
    }


def _of_families(run: "LoggedRun", name: str) -> float:
    """Sum of what a run logs for each family of metrics, as ``extracted_models/logits``."""
    found = (value for key, value in run.metrics.items() if key.startswith(f"{name}/"))
    return sum(filter(math.isfinite, found))


def _heatmap(name: str, selected: "Selected", here: "Here") -> tuple[str, str]:
    """Draw a scenario's grid, and say in words what it shows."""
    from mico_exp.config.options import option_names
    from mico_exp.results.plots import heatmap
    from mico_exp.runs.cells_alike import order_of, sizes_of

    metrics, formulas = order_of(selected, option_names("metric"), option_names("formula"))
    figure = heatmap(name, selected, metrics, formulas, sizes_of(*here.solution.shape))
    values = "; ".join(f"{one.cell} {one.tpr:.3f}" for one in selected.cells)
    alt = f"Heatmap of {name}, metric by formula, validation TPR at FPR 0.1. {values}. "
    return _embedded(figure), f"{alt}Chosen: {selected.verdict.cell}."


def _rocs(
    cfg: "DictConfig", scenarios: Mapping[str, "Here"], chosen: Mapping[str, "Chosen"]
) -> list[dict[str, str]]:
    """Draw the chosen cells of all scenarios, in validation and where final is known."""
    from mico_exp.challenge.phases import CALLED

    curves: dict[str, list[Curve]] = {"train": [], "final": []}
    for place, (name, one) in enumerate(chosen.items()):
        label, here = f"{name}, {one.selected.best.cell}", scenarios[name]
        known = {"train": here.solution}
        known |= {"final": here.truth["final"]} if "final" in one.came_out else {}
        for phase, solution in known.items():
            predictions = one.predictions[phase]
            curves[phase].append(_curve(label, place, solution, predictions))
    return [_roc(cfg.challenge, CALLED[phase], group) for phase, group in curves.items() if group]


def _roc(challenge: str, phase: str, curves: Sequence["Curve"]) -> dict[str, str]:
    from mico_exp.results.plots import roc_plot

    rates = "; ".join(f"{one.label}: TPR {one.roc.tpr_at(0.1):.3f}" for one in curves)
    return {
        "source": _embedded(roc_plot(f"{challenge}: chosen cells, {phase}", curves)),
        "alt": f"ROC curves in {phase}, linear and logarithmic. At FPR 0.1, {rates}.",
        "caption": f"{phase.capitalize()}, with 95 % intervals over models; points mark the "
        "official false positive rates on every curve.",
    }


def _curve(label: str, place: int, solution: "Membership", predictions: "Predicted") -> "Curve":
    from mico_exp.results.plots import SCENARIO_STYLES, Curve
    from mico_exp.results.scoring import roc

    style = SCENARIO_STYLES[place % len(SCENARIO_STYLES)]
    curve = roc(solution, predictions)
    return Curve(label, curve, solution.size, style, solution, predictions)


def _embedded(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _commands(chosen: Mapping[str, "Chosen"]) -> list[str]:
    """Say what to type to have all this again: the sweeps, then the choice, then this report."""
    from hydra.core.hydra_config import HydraConfig

    from mico_exp.config import advice

    sweeps: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for one in chosen.values():
        for verdict in one.selected.cells:
            run = one.runs[verdict.run_id]
            key = run.params["dataset"], run.params["scenario"], *_overrides(run)
            metric, formula = (
                run.params[group].partition("[")[0] for group in ("metric", "formula")
            )
            sweeps.setdefault(key, {}).setdefault(metric, []).append(formula)
    typed = [text for text in HydraConfig.get().overrides.task if not text.startswith("reports=")]
    last = [advice.command(f"mico_exp.{name}", *typed) for name in ("select_best", "report")]
    return advice.repeat(sweeps) + last


def _overrides(run: "LoggedRun") -> list[str]:
    """What a sweep is to be told beside its grid to make a run of it again.

    Changes of the cell's own options have been compared with what these options have.
    """
    from mico_exp.config import advice

    changes = [
        json.loads(run.tags.get(f"{group}_changes", "[]")) for group in ("metric", "formula")
    ]
    kept = dict.fromkeys(advice.logged(run.tags.get("overrides", "")))
    here = [text for text in advice.given() if text.startswith("paths.")]
    return [*kept, *here, *changes[0], *changes[1]]
