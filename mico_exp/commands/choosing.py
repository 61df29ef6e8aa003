"""Which runs of a challenge are compared, and which cell is chosen: read from a configuration.

`select_best` packages the choice, and `report` shows it. Nothing of a run is composed or made:
what it says of itself is compared with what a run of the same cell would hang on now.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mico_exp.common.errors import InputError, printable
from mico_exp.results.selection import RULES, Candidate, Selected, newest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mico_exp.challenge.tree import Scenario
    from mico_exp.common.identity import CellIdentity, ChoiceIdentity
    from mico_exp.results.cell import Membership, Predictions
    from mico_exp.runs.tracking import LoggedRun, Tracker

log = logging.getLogger(__name__)
FIGURE = "tpr_at_fpr_0.1"


@dataclass(frozen=True, eq=False)
class Here:
    """A scenario as it now lies on disk.

    identity: what a cell of it would hang on now, but for its metric and formula.
    disclosed: training sets are, which decides what ``metric=all`` stands for.
    solution: (S, P) membership of the train models' own points.
    truth: phase → (T, P), where it is known; it never chooses.
    """

    scenario: "Scenario"
    identity: "CellIdentity"
    disclosed: bool
    solution: "Membership"
    truth: "Mapping[str, Membership]"

    def expected(self, run: "LoggedRun") -> "CellIdentity":
        """What a run of the same cell would hang on now.

        Raises:
            InputError: the run says of itself what no run from here would.
        """
        from mico_exp.config.options import logged_code

        codes = {}
        for group in ("metric", "formula"):
            written = run.tags.get(f"{group}_changes", "[]")
            label = run.params.get(group, "")
            codes[f"{group}_code"] = logged_code(group, label, written, self.disclosed)
        return replace(self.identity, **codes)


class Chosen(NamedTuple):
    """The chosen cell of a scenario.

    selected: it and all others. predictions: phase → (T, P) of its run. came_out: TPR on dev and
    final models where their truth is known, ``value``, ``low`` and ``high`` of its interval.
    runs: of all compared cells, by their ids.
    """

    selected: Selected
    predictions: "Predictions"
    came_out: dict[str, dict[str, float]]
    runs: "dict[str, LoggedRun]"


def find_scenarios(cfg: "DictConfig") -> dict[str, Here]:
    """Find the challenge's scenarios as they now lie on disk."""
    from mico_exp.challenge.tree import load_scenario, scenario_folder
    from mico_exp.config import compose
    from mico_exp.config.advice import advice

    root = compose.root(cfg)
    configs = compose.of_challenge(cfg)
    places = {name: scenario_folder(root, cfg.challenge, name) for name in configs}
    if absent := [name for name, place in places.items() if not place.is_dir()]:
        raise InputError(f"{places[absent[0]]} does not exist. {advice(cfg, absent)}")
    found = {}
    for name, of_scenario in configs.items():
        sizes = compose.sizes(of_scenario, len(compose.records(of_scenario).labels))
        scenario = load_scenario(root, cfg.challenge, name, sizes)
        found[name] = _here(of_scenario, scenario)
    return found


def _here(cfg: "DictConfig", scenario: "Scenario") -> Here:
    """Look at a scenario: `cfg` is that of its data set."""
    import numpy as np

    from mico_exp.challenge.tree import read_truth
    from mico_exp.config import compose

    identity = compose.cell_identity(cfg, scenario, compose.records(cfg))
    disclosed = compose.discloses(cfg, scenario)
    solutions = [model.solution(scenario.sizes) for model in scenario.phases["train"]]
    if absent := [i for i, one in enumerate(solutions) if one is None]:
        path = scenario.phases["train"][absent[0]].path / "seed_membership"
        raise InputError(f"{path} is missing: a train model must disclose it.")
    solution = np.stack([one for one in solutions if one is not None])
    return Here(scenario, identity, disclosed, solution, read_truth(compose.root(cfg), scenario))


def finished_cells(cfg: "DictConfig", tracker: "Tracker") -> "list[LoggedRun]":
    """All finished cells of the challenge, whatever they hang on."""
    return tracker.finished(_tags(cfg))


def _tags(cfg: "DictConfig") -> dict[str, str]:
    return {"kind": "cell", "challenge": cfg.challenge}


def choose(
    cfg: "DictConfig", tracker: "Tracker", scenarios: Mapping[str, Here]
) -> dict[str, Chosen]:
    """Choose a cell for every scenario among the runs of the present.

    Without a preset by the rule on validation; with one the cell that it names.
    """
    from mico_exp.config.advice import advice
    from mico_exp.runs.cells_alike import scenario_of

    runs = finished_cells(cfg, tracker)
    cells, missing, others = {}, [], 0
    for name, here in scenarios.items():
        of_scenario = [run for run in runs if scenario_of(run) == name]
        cells[name] = _present_cells(cfg, name, here, of_scenario)
        if not cells[name]:
            missing.append(name)
            others += len(of_scenario)
    if missing:
        about = f" ({others} are of other cells, data, models or code)" if others else ""
        raise InputError(
            f"No finished run of {', '.join(missing)} for the challenge {cfg.challenge} in "
            f"{tracker.uri}{about}. {advice(cfg, missing)}"
        )
    _tell_failed(tracker.failed(_tags(cfg)), cells, scenarios)
    by_id = {run.id: run for run in runs}
    return {
        name: _judged(cfg, tracker, scenarios[name], some, by_id) for name, some in cells.items()
    }


def _present_cells(
    cfg: "DictConfig", name: str, here: Here, runs: "Sequence[LoggedRun]"
) -> list[Candidate]:
    """Cells of a scenario that can be compared, in the order of the options; tells of others."""
    from mico_exp.config import compose
    from mico_exp.config.options import option_names
    from mico_exp.runs.cells_alike import cell_of, sort_out

    found = sort_out(runs, here.expected)
    for run, reason in found.broken:
        cell = printable(cell_of(run), 80)
        log.warning("%s: run %s, %s, is left out: %s.", name, run.id, cell, reason)
    if count := sum(found.reasons.values()):
        reasons = ", ".join(f"{reason} ({n})" for reason, n in found.reasons.most_common())
        log.warning("%s: %d of %d runs are left out: %s", name, count, len(runs), reasons)
    wanted = compose.preset_cell(cfg, name)
    present = [one for one in found.present if wanted in (None, one.cell)]
    return newest(present, option_names("metric"), option_names("formula"))


def _judged(
    cfg: "DictConfig",
    tracker: "Tracker",
    here: Here,
    cells: Sequence[Candidate],
    runs: "Mapping[str, LoggedRun]",
) -> Chosen:
    """Choose a cell, and take its predictions."""
    from mico_exp.runs.cells_alike import judge

    how, left = check_selection(cfg), list(cells)
    while True:
        selected = judge(tracker, left, here.solution, **how)
        try:
            predictions = _predictions(tracker, selected.best, here.scenario)
        except InputError as error:
            told = f"{selected.best.scenario}/{selected.best.cell}, which was chosen"
            if not how["allow_unreadable"]:
                raise InputError(
                    f"{told}, cannot be used: {error} Run it again, or go on without it by "
                    "selection.allow_unreadable=true."
                ) from error
            log.warning("%s, is left out: %s Run it again.", told, error)
            left.remove(selected.best)
            continue
        compared = {verdict.run_id: runs[verdict.run_id] for verdict in selected.cells}
        return Chosen(selected, predictions, _came_out(here, selected.best, predictions), compared)


def _predictions(tracker: "Tracker", best: Candidate, scenario: "Scenario") -> "Predictions":
    """Fetch a run's predictions, and check that they are those of the scenario's models."""
    import numpy as np

    from mico_exp.results.cell import PREDICTIONS_FILE, read_predictions

    with tempfile.TemporaryDirectory() as folder:
        found = read_predictions(tracker.artifact(best.run_id, PREDICTIONS_FILE, Path(folder)))
    for phase, models in scenario.phases.items():
        expected = (len(models), 2 * scenario.sizes.challenge)
        shape = found[phase].shape if phase in found else None
        if shape != expected:
            raise InputError(
                f"Run {best.run_id}: {phase} predictions must have shape {expected}, got {shape}."
            )
        inside = np.isfinite(found[phase]) & (found[phase] >= 0) & (found[phase] <= 1)
        if not inside.all():
            raise InputError(
                f"Run {best.run_id}: {phase} predictions must be in [0, 1], got "
                f"{found[phase][~inside][0]}."
            )
    return found


def _came_out(
    here: Here, best: Candidate, predictions: "Predictions"
) -> dict[str, dict[str, float]]:
    """Score the chosen run by the truth that is here; one warning where it logged otherwise."""
    from mico_exp.results.cell import with_both_classes
    from mico_exp.results.scoring import RANKING_FPR, roc
    from mico_exp.results.statistics import intervals

    found: dict[str, dict[str, float]] = {}
    differ = []
    for phase, solution in with_both_classes(here.truth):
        value = roc(solution, predictions[phase]).tpr_at(RANKING_FPR)
        found[phase] = {"value": value}
        if (interval := intervals(solution, predictions[phase]).get(FIGURE)) is not None:
            found[phase] |= interval._asdict()
        logged = best.figures.get(f"{phase}/{FIGURE}")
        if logged is None or not abs(logged - value) < 1e-9:
            told = "nothing" if logged is None else f"{logged:.4f}"
            differ.append(f"{phase} {value:.4f} where the run logged {told}")
    if differ:
        about = "%s: by the truth that is here now, %s gives %s"
        log.warning(about, best.scenario, best.cell, ", ".join(differ))
    return found


def check_selection(cfg: "DictConfig") -> dict[str, Any]:
    """Read the rule and the effort of the comparison."""
    how = cfg.selection
    if how.rule not in RULES:
        raise InputError(f"`selection.rule` must be one of {', '.join(RULES)}, got {how.rule}.")
    if type(how.resamples) is not int or how.resamples < 100:
        raise InputError(
            f"`selection.resamples` must be a whole number ≥ 100, got {how.resamples}."
        )
    if not isinstance(how.allow_unreadable, bool):
        raise InputError(
            f"`selection.allow_unreadable` must be true or false, got {how.allow_unreadable}."
        )
    return {
        "rule": how.rule,
        "simple_metrics": _simplicity(cfg, "metric"),
        "simple_formulas": _simplicity(cfg, "formula"),
        "resamples": how.resamples,
        "allow_unreadable": how.allow_unreadable,
    }


def _simplicity(cfg: "DictConfig", group: str) -> list[str]:
    from mico_exp.config.options import option_names

    names = [str(name) for name in cfg.selection.simplicity[group]]  # 0 is typed as a number
    known = option_names(group)
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"`selection.simplicity.{group}` must name options of {', '.join(known)}, "
            f"got {unknown[0]}."
        )
    return names


def choice_identity(cfg: "DictConfig", chosen: Mapping[str, Chosen]) -> "ChoiceIdentity":
    """What a choice hangs on."""
    from mico_exp.common.fingerprints import definition, digest
    from mico_exp.common.identity import CellIdentity, ChoiceIdentity
    from mico_exp.results.statistics import LEVEL, SEED
    from mico_exp.runs.cells_alike import halvings, judge

    how = check_selection(cfg)
    cells = {}
    for name, one in chosen.items():
        tags = {v.cell: CellIdentity.of_tags(one.runs[v.run_id].tags) for v in one.selected.cells}
        cells[name] = {cell: digest(*identity.tags().values()) for cell, identity in tags.items()}
    return ChoiceIdentity(
        cells=cells,
        rule=how["rule"] if cfg.preset.cells is None else f"preset={cfg.preset.name}",
        simple_metrics=tuple(how["simple_metrics"]),
        simple_formulas=tuple(how["simple_formulas"]),
        resamples=how["resamples"],
        halvings=halvings(how["resamples"]),
        seed=SEED,
        level=LEVEL,
        code=definition(judge),
    )


def _tell_failed(
    failed: "list[LoggedRun]",
    cells: Mapping[str, Sequence[Candidate]],
    scenarios: Mapping[str, Here],
) -> None:
    """Name the cells whose newest run failed, and which the choice goes on without."""
    from mico_exp.runs.cells_alike import cell_of, scenario_of

    told = set()
    for run in failed:
        name, cell = scenario_of(run), cell_of(run)
        there = {one.cell: one.started for one in cells.get(name, [])}
        if name not in cells or (name, cell) in told:
            continue
        # A run without content was refused before it had read any data.
        if run.tags.get("content") != scenarios[name].identity.content:
            continue
        told.add((name, cell))
        if there.get(cell, -1) < run.started:
            what = "an older run of it is taken" if cell in there else "it is left out"
            shown = printable(cell, 80), what, _why(run)
            log.warning("%s: the last run of %s failed, %s: %s", name, *shown)


def _why(run: "LoggedRun") -> str:
    lines = run.tags.get("error", "").splitlines()
    return printable(lines[0]) if lines else "no reason was logged"


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
