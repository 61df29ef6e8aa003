"""Which runs of a challenge are compared, and which cell is chosen: read from a configuration.

`select_best` packages the choice, and `report` shows it.
"""

import json
import logging
import shlex
from typing import TYPE_CHECKING, Any

from mico_exp.errors import InputError
from mico_exp.selection import RULES, Candidate, Selected, newest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mico_exp.challenge import Scenario
    from mico_exp.tracking import LoggedRun, Tracker

log = logging.getLogger(__name__)
FIGURE = "tpr_at_fpr_0.1"


def find_scenarios(cfg: "DictConfig") -> tuple[dict[str, "Scenario"], dict[str, str]]:
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


def finished_cells(cfg: "DictConfig", tracker: "Tracker") -> "list[LoggedRun]":
    """All finished cells of the challenge, whatever their content."""
    return tracker.finished(_tags(cfg))


def _tags(cfg: "DictConfig") -> dict[str, str]:
    return {"kind": "cell", "challenge": cfg.challenge}


def choose(
    cfg: "DictConfig", tracker: "Tracker", runs: "list[LoggedRun]", contents: dict[str, str]
) -> dict[str, Selected]:
    """Choose a cell for every scenario among the runs of its present content.

    Without a preset by the rule on validation; with one the cell that it names.
    """
    from mico_exp.grid import candidate, judge, scenario_of
    from mico_exp.options import option_names

    chosen, missing = {}, []
    stale = 0
    for name, content in contents.items():
        of_scenario = [run for run in runs if scenario_of(run) == name]
        wanted = _preset_cell(cfg, name)
        current = [
            one
            for one in map(candidate, filter(_is_present_code, of_scenario))
            if one.content == content and wanted in (None, one.cell)
        ]
        if not current:
            missing.append(name)
            stale += len(of_scenario)
            continue
        if wanted is None and (others := len(of_scenario) - len(current)):
            about = f"{others} of {len(of_scenario)} runs are of other data, models or code"
            log.warning("%s: %s, and left out", name, about)
        chosen[name] = newest(current, option_names("metric"), option_names("formula"))
    if missing:
        about = f" ({stale} are of other cells, data, models or code)" if stale else ""
        raise InputError(
            f"No finished run of {', '.join(missing)} for the challenge {cfg.challenge} in "
            f"{tracker.uri}{about}. {_advice(cfg, missing)}"
        )
    _tell_failed(tracker.failed(_tags(cfg)), chosen, contents)
    how = check_selection(cfg)
    return {name: judge(tracker, cells, **how) for name, cells in chosen.items()}


def check_selection(cfg: "DictConfig") -> dict[str, Any]:
    """Read the rule and the effort of the comparison."""
    rule, resamples = cfg.selection.rule, cfg.selection.resamples
    if rule not in RULES:
        raise InputError(f"`selection.rule` must be one of {', '.join(RULES)}, got {rule}.")
    if type(resamples) is not int or resamples < 100:
        raise InputError(f"`selection.resamples` must be a whole number ≥ 100, got {resamples}.")
    return {
        "rule": rule,
        "simple_metrics": _simplicity(cfg, "metric"),
        "simple_formulas": _simplicity(cfg, "formula"),
        "resamples": resamples,
    }


def _simplicity(cfg: "DictConfig", group: str) -> list[str]:
    from mico_exp.options import option_names

    names = [str(name) for name in cfg.selection.simplicity[group]]  # 0 is typed as a number
    known = option_names(group)
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"`selection.simplicity.{group}` must name options of {', '.join(known)}, "
            f"got {unknown[0]}."
        )
    return names


def came_out(selected: Selected) -> dict[str, dict[str, float]]:
    """TPR of the chosen run on dev and final models where their truth is known, with intervals."""
    figures = selected.best.figures
    found = {}
    for phase in ("dev", "final"):
        names = {"value": "", "low": "_low", "high": "_high"}
        values = {key: figures.get(f"{phase}/{FIGURE}{end}") for key, end in names.items()}
        known = {key: value for key, value in values.items() if value is not None}
        if "value" in known:
            found[phase] = known
    return found


def _tell_failed(
    failed: "list[LoggedRun]", cells: dict[str, list[Candidate]], contents: dict[str, str]
) -> None:
    """Name the cells whose newest run failed, and which the choice goes on without."""
    from mico_exp.grid import cell_of, scenario_of

    told = set()
    for run in failed:
        name, cell = scenario_of(run), cell_of(run)
        there = {one.cell: one.started for one in cells.get(name, [])}
        # A run without content was refused before it had read any data.
        other = run.tags.get("content") != contents.get(name)
        if name not in cells or other or (name, cell) in told:
            continue
        told.add((name, cell))
        if there.get(cell, -1) < run.started:
            what = "an older run of it is taken" if cell in there else "it is left out"
            log.warning("%s: the last run of %s failed, %s: %s", name, cell, what, _why(run))


def _why(run: "LoggedRun") -> str:
    return next(iter(run.tags.get("error", "").splitlines()), "no reason was logged")


def _is_present_code(run: "LoggedRun") -> bool:
    """Tell whether a run's metric and formula still do what they did."""
    from mico_exp.options import present_code

    for group in ("metric", "formula"):
        name = run.params.get(group, "").partition("[")[0]
        changed = tuple(json.loads(run.tags.get(f"{group}_changes", "[]")))
        if run.tags.get(f"{group}_code") != present_code(group, name, changed):
            return False
    return True


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


def describe_rule(cfg: "DictConfig") -> str:
    """Say in words how a cell is chosen."""
    if cfg.preset.cells is not None:
        return f"the cells of preset={cfg.preset.name}"
    if cfg.selection.rule == "one_se":
        order = [", ".join(map(str, cfg.selection.simplicity[g])) for g in ("formula", "metric")]
        return (
            "the simplest cell within one standard error of the highest validation TPR@0.1FPR "
            f"(from the simplest on: formulas {order[0]}; then metrics {order[1]})"
        )
    if cfg.selection.rule == "auc_one_se":
        return (
            "the highest validation AUC of the cells within one standard error of the highest "
            "validation TPR@0.1FPR"
        )
    return "highest validation TPR@0.1FPR; ties: higher AUC, then the order of the options"
