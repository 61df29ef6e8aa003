"""Which runs of a challenge are compared, and which cell is chosen.

`select_best` packages the choice, and `report` shows it. Nothing of a run is composed or made:
what it says of itself is compared with what a run of the same cell would hang on now.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mico_exp.challenge.points import undisclosed
from mico_exp.challenge.tree import Scenario
from mico_exp.common.arrays import Mask, padded
from mico_exp.common.errors import InputError, printable
from mico_exp.common.fingerprints import definition
from mico_exp.common.identity import OTHER_CONTENT, CellIdentity, ChoiceIdentity
from mico_exp.config.advice import advice
from mico_exp.config.challenges import Challenge
from mico_exp.config.codes import logged_code
from mico_exp.config.options import option_names
from mico_exp.config.selection import Selection
from mico_exp.config.setup import Setup
from mico_exp.results.cell import (
    Membership,
    Predictions,
    read_predictions,
    with_both_classes,
)
from mico_exp.results.scoring import RANKING_FPR
from mico_exp.results.selection import Candidate, Selected, newest
from mico_exp.results.statistics import LEVEL, SEED, Ranked
from mico_exp.runs.cells_alike import Cell, cells, halvings, judge, sort_out
from mico_exp.runs.record import (
    PREDICTIONS,
    CellRecord,
    LoggedRun,
    cells_of,
    error_of,
    of_content,
    of_scenario,
)
from mico_exp.runs.tracking import Tracker
from mico_exp.scores.exposures import EXPOSURES

log = logging.getLogger(__name__)
FIGURE = "tpr_at_fpr_0.1"


@dataclass(frozen=True, eq=False)
class Here:
    """A scenario as it now lies on disk.

    identity: what a cell of it would hang on now, but for its metric and formula.
    disclosed: training sets are, which decides what ``metric=all`` stands for.
    lacks: what the data set does not give, where only outputs are known; which does so as well.
    solution: (S, P) membership of the train models' own points.
    truth: phase → (T, P), where it is known; it never chooses.
    """

    scenario: Scenario
    identity: CellIdentity
    disclosed: bool
    lacks: tuple[str, ...]
    solution: Membership
    truth: Mapping[str, Membership]

    @property
    def num_points(self) -> int:
        """Challenge points of all train models together."""
        return int(self.there["train"].sum())

    @cached_property
    def there(self) -> dict[str, Mask]:
        """Phase → (T, P) True where a model has a challenge point, and not fewer than others."""
        found = {}
        for phase, models in self.scenario.phases.items():
            counts = np.array([model.num_points(self.scenario.sizes) for model in models])
            found[phase] = np.arange(counts.max()) < counts[:, np.newaxis]
        return found

    def expected(self, record: CellRecord) -> CellIdentity:
        """What a run of the same cell would hang on now.

        Raises:
            InputError: the run says of itself what no run from here would.
        """
        told = (
            ("metric", record.metric, record.metric_changes),
            ("formula", record.formula, record.formula_changes),
        )
        codes = (logged_code(*one, self.disclosed, self.lacks) for one in told)
        return self.identity.of_cell(*codes)


class Chosen(NamedTuple):
    """The chosen cell of a scenario.

    selected: it and all others. predictions: phase → (T, P) of its run. came_out: TPR on dev and
    final models where their truth is known, ``value``, ``low`` and ``high`` of its interval.
    runs: all present cells, by the ids of their runs.
    present: these cells, of whatever exposure, in the order of the options.
    """

    selected: Selected
    predictions: Predictions
    came_out: dict[str, dict[str, float]]
    runs: dict[str, Cell]
    present: Sequence[Candidate] = ()

    @property
    def told(self) -> dict[str, Any]:
        """The choice beside all cells, as it is written for programs to read."""
        return {**asdict(self.selected), "came_out": self.came_out}


def find_scenarios(challenge: Challenge, selection: Selection) -> dict[str, Here]:
    """Find the challenge's scenarios as they now lie on disk."""
    setups = challenge.setups
    if absent := [one for one in setups.values() if not one.folder.is_dir()]:
        raise InputError(f"{absent[0].folder} does not exist. {_advice(absent, selection)}")
    return {name: _here(setup) for name, setup in setups.items()}


def _here(setup: Setup) -> Here:
    """Look at a scenario."""
    scenario, identity = setup.found, setup.identity
    train = scenario.phases["train"]
    if absent := [model for model in train if not model.discloses_all]:
        raise InputError(f"{undisclosed(absent[0])} is missing: a train model must disclose it.")
    solutions = [model.solution(scenario.sizes) for model in train]
    solution = padded([one for one in solutions if one is not None], False)
    return Here(scenario, identity, setup.discloses, setup.source.lacks, solution, setup.truth)


def _advice(setups: Sequence[Setup], selection: Selection) -> str:
    """Say what makes the runs that are missing of some scenarios."""
    wanted = [selection.preset_cell(one.name) for one in setups]
    return advice([one.options for one in setups], wanted, selection.exposure)


class Found(NamedTuple):
    """The runs of a challenge that may be compared, by scenario.

    every: cells of the present, of whatever exposure, in the order of the options; candidates:
    those among which one is chosen. runs: all finished ones on what is there now, by their ids.
    """

    every: Mapping[str, Sequence[Candidate]]
    candidates: Mapping[str, Sequence[Candidate]]
    runs: Mapping[str, Cell]


def find_cells(
    challenge: Challenge,
    selection: Selection,
    tracker: Tracker,
    scenarios: Mapping[str, Here],
) -> Found:
    """Find the runs of the present in every scenario.

    Raises:
        InputError: there is none in one of them.
    """
    by_id: dict[str, Cell] = {}
    every, present, missing, others, uncounted = {}, {}, [], 0, False
    for name, here in scenarios.items():
        of_scenario, elsewhere = _finished(challenge, name, here, tracker)
        by_id |= {cell.run.id: cell for cell in of_scenario}
        every[name] = _present_cells(selection, name, here, of_scenario, elsewhere)
        present[name] = _of_exposure(selection, name, every[name], by_id)
        if not present[name]:
            missing.append(challenge.setups[name])
            others += len(of_scenario) + (elsewhere or 0)
            uncounted |= elsewhere is None
    if missing:
        about = f" ({others} are of other cells, exposures, data, models or code)" if others else ""
        if uncounted:
            about = " (there are runs of other data or models)"
        raise InputError(
            f"No finished run of {', '.join(one.name for one in missing)} for the challenge "
            f"{challenge.name} in {tracker.database.shown}{about}. {_advice(missing, selection)}"
        )
    for name, here in scenarios.items():
        tags = cells_of(challenge.name) | of_content(here.identity.content)
        _tell_failed(name, cells(tracker.failed(tags)), present[name])
    return Found(every, present, by_id)


def choose(
    challenge: Challenge,
    selection: Selection,
    tracker: Tracker,
    scenarios: Mapping[str, Here],
) -> dict[str, Chosen]:
    """Choose a cell for every scenario among the runs of the present.

    Without a preset by the rule on validation; with one the cell that it names.
    """
    found = find_cells(challenge, selection, tracker, scenarios)
    return {
        name: _judged(selection, tracker, scenarios[name], some, found.every[name], found.runs)
        for name, some in found.candidates.items()
    }


def _finished(
    challenge: Challenge, name: str, here: Here, tracker: Tracker
) -> tuple[list[Cell], int | None]:
    """Finished cells of a scenario on what is there now, and how many are of something else.

    None for some that a server does not count.

    An experiment may hold thousands of the latter, which nobody needs to read.
    """
    tags, content = cells_of(challenge.name), of_content(here.identity.content)
    found = [one for one in cells(tracker.finished(tags | content)) if one.record.folder == name]
    setup = challenge.setups[name]
    params = of_scenario(setup.dataset, setup.scenario)
    return found, tracker.count_others(tags, params, content)


def _present_cells(
    selection: Selection, name: str, here: Here, some: Sequence[Cell], elsewhere: int | None
) -> list[Candidate]:
    """Cells of a scenario that can be compared, in the order of the options; tells of others."""
    found = sort_out(some, here.expected)
    if elsewhere is None:
        log.warning("%s: runs on %s are left out", name, OTHER_CONTENT)
    found.reasons[OTHER_CONTENT] += elsewhere or 0
    for cell, reason in found.broken:
        shown = printable(cell.record.cell, 80)
        log.warning("%s: run %s, %s, is left out: %s.", name, cell.run.id, shown, reason)
    if count := found.reasons.total():
        reasons = ", ".join(f"{reason} ({n})" for reason, n in found.reasons.most_common() if n)
        every = len(some) + (elsewhere or 0)
        log.warning("%s: %d of %d runs are left out: %s", name, count, every, reasons)
    wanted = selection.preset_cell(name)
    present = [one for one in found.present if wanted in (None, one.cell)]
    return newest(present, option_names("metric"), option_names("formula"))


def _of_exposure(
    selection: Selection, name: str, some: Sequence[Candidate], runs: Mapping[str, Cell]
) -> list[Candidate]:
    """Cells among which one is chosen: those of the wanted exposure; a preset names its own."""
    if selection.exposure is None or selection.cells is not None:
        return list(some)
    wanted = [one for one in some if exposure_of(runs[one.run_id]) == selection.exposure]
    if others := len(some) - len(wanted):
        about = "%s: %d cells of other exposures than %s are no candidates (selection.exposure)"
        log.info(about, name, others, selection.exposure)
    return wanted


def exposure_of(cell: Cell) -> str:
    """Name of the exposure that a cell is of."""
    return cell.record.exposure.partition(",")[0]


def _judged(
    selection: Selection,
    tracker: Tracker,
    here: Here,
    candidates: Sequence[Candidate],
    present: Sequence[Candidate],
    runs: Mapping[str, Cell],
) -> Chosen:
    """Choose one of the candidates, and take its predictions."""
    left = list(candidates)
    while True:
        selected = _compared(selection, tracker, here, left)
        try:
            predictions = predictions_of(tracker, selected.best, here.there)
        except InputError as error:
            told = f"{selected.best.scenario}/{selected.best.cell}, which was chosen"
            if not selection.allow_unreadable:
                raise InputError(
                    f"{told}, cannot be used: {error} Run it again, or go on without it by "
                    "selection.allow_unreadable=true."
                ) from error
            log.warning("%s, is left out: %s Run it again.", told, error)
            left.remove(selected.best)
            continue
        came_out = _came_out(here, selected.best, predictions)
        some = {one.run_id: runs[one.run_id] for one in present}
        return Chosen(selected, predictions, came_out, some, present)


def _compared(
    selection: Selection, tracker: Tracker, here: Here, candidates: Sequence[Candidate]
) -> Selected:
    """Compare cells of a scenario, and choose one."""
    return judge(
        tracker,
        candidates,
        here.solution,
        selection.rule,
        selection.simple_metrics,
        selection.simple_formulas,
        selection.resamples,
        selection.allow_unreadable,
        here.there["train"],
    )


def best_of_exposures(
    selection: Selection, tracker: Tracker, here: Here, chosen: Chosen
) -> dict[str, Selected]:
    """Choose among the cells of each exposure by the same rule, from the one that shows least on.

    A preset has no rule, and so there is none.
    """
    if selection.cells is not None:
        return {}
    groups: dict[str, list[Candidate]] = {}
    for one in chosen.present:
        groups.setdefault(chosen.runs[one.run_id].record.exposure, []).append(one)
    places = {name: place for place, name in enumerate(EXPOSURES)}
    compared = {verdict.run_id for verdict in chosen.selected.cells}
    return {
        shown: chosen.selected
        if {one.run_id for one in groups[shown]} == compared
        else _compared(selection, tracker, here, groups[shown])
        for shown in sorted(
            groups, key=lambda text: (places.get(text.partition(",")[0], len(places)), text)
        )
    }


def predictions_of(tracker: Tracker, best: Candidate, there: Mapping[str, Mask]) -> Predictions:
    """Fetch a run's predictions, and check that they are those of the scenario's models."""
    with tempfile.TemporaryDirectory() as folder:
        found = read_predictions(tracker.artifact(best.run_id, PREDICTIONS, Path(folder)))
    for phase, wanted in there.items():
        shape = found[phase].shape if phase in found else None
        if shape != wanted.shape:
            raise InputError(
                f"Run {best.run_id}: {phase} predictions must have shape {wanted.shape}, got "
                f"{shape}."
            )
        inside = ~wanted | ((found[phase] >= 0) & (found[phase] <= 1))
        if not inside.all():
            raise InputError(
                f"Run {best.run_id}: {phase} predictions must be in [0, 1], got "
                f"{found[phase][~inside][0]}."
            )
    return found


def _came_out(here: Here, best: Candidate, predictions: Predictions) -> dict[str, dict[str, float]]:
    """Score the chosen run by the truth that is here; one warning where it logged otherwise."""
    found: dict[str, dict[str, float]] = {}
    differ = []
    for phase, solution in with_both_classes(here.truth, here.there):
        ranked = Ranked(solution, predictions[phase], here.there[phase])
        value = ranked.curve.tpr_at(RANKING_FPR)
        found[phase] = {"value": value}
        if (interval := ranked.intervals().get(FIGURE)) is not None:
            found[phase] |= interval._asdict()
        logged = best.figures.get(f"{phase}/{FIGURE}")
        if logged is None or not abs(logged - value) < 1e-9:
            told = "nothing" if logged is None else f"{logged:.4f}"
            differ.append(f"{phase} {value:.4f} where the run logged {told}")
    if differ:
        about = "%s: by the truth that is here now, %s gives %s"
        log.warning(about, best.scenario, best.cell, ", ".join(differ))
    return found


def choice_identity(selection: Selection, chosen: Mapping[str, Chosen]) -> ChoiceIdentity:
    """What a choice hangs on."""
    compared = {}
    for name, one in chosen.items():
        records = {verdict.cell: one.runs[verdict.run_id].record for verdict in one.selected.cells}
        compared[name] = {cell: record.identity.key for cell, record in records.items()}
    return ChoiceIdentity(
        cells=compared,
        rule=selection.rule if selection.cells is None else f"preset={selection.preset}",
        simple_metrics=selection.simple_metrics,
        simple_formulas=selection.simple_formulas,
        resamples=selection.resamples,
        halvings=halvings(selection.resamples),
        seed=SEED,
        level=LEVEL,
        code=definition(judge),
    )


def _tell_failed(name: str, failed: Sequence[Cell], present: Sequence[Candidate]) -> None:
    """Name the cells of a scenario whose newest run failed, and which the choice goes on without.

    A run that was refused before it had read any data is of no content, and not among them.
    """
    there = {one.cell: one.started for one in present}
    told = set()
    for run, record in failed:
        if record.folder != name or record.cell in told:
            continue
        told.add(record.cell)
        if there.get(record.cell, -1) < run.started:
            what = "an older run of it is taken" if record.cell in there else "it is left out"
            shown = printable(record.cell, 80), what, _why(run)
            log.warning("%s: the last run of %s failed, %s: %s", name, *shown)


def _why(run: LoggedRun) -> str:
    lines = error_of(run).splitlines()
    return printable(lines[0]) if lines else "no reason was logged"


def describe_rule(selection: Selection) -> str:
    """Say in words how a cell is chosen."""
    if selection.cells is not None:
        return f"the cells of preset={selection.preset}"
    if selection.rule == "one_se":
        formulas, metrics = map(", ".join, (selection.simple_formulas, selection.simple_metrics))
        return (
            "the simplest cell within one standard error of the highest validation TPR@0.1FPR "
            f"(from the simplest on: formulas {formulas}; then metrics {metrics})"
        )
    if selection.rule == "auc_one_se":
        return (
            "the highest validation AUC of the cells within one standard error of the highest "
            "validation TPR@0.1FPR"
        )
    return "highest validation TPR@0.1FPR; ties: higher AUC, then the order of the options"
