"""The grid of a scenario, read back from its runs: which cells there are, and how they compare."""

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mico_exp.common.arrays import Mask
from mico_exp.common.errors import InputError
from mico_exp.common.identity import CellIdentity
from mico_exp.results.cell import Membership, Predicted, read_validation
from mico_exp.results.scoring import RANKING_FPR, roc
from mico_exp.results.selection import Candidate, Selected, make_rule, selected
from mico_exp.results.statistics import RESAMPLES, compare
from mico_exp.runs.record import PREDICTIONS, VALIDATED_TPR, CellRecord, LoggedRun
from mico_exp.runs.tracking import Tracker

log = logging.getLogger(__name__)


class Cell(NamedTuple):
    """A run of a cell, and its record."""

    run: LoggedRun
    record: CellRecord


def cells(runs: Iterable[LoggedRun]) -> list[Cell]:
    """Read the record of each run."""
    return [Cell(run, CellRecord.from_run(run)) for run in runs]


def candidate(cell: Cell) -> Candidate:
    """Take the run of a finished cell as a candidate."""
    run, record = cell
    return Candidate(
        run_id=run.id,
        scenario=record.folder,
        metric=record.metric,
        formula=record.formula,
        started=run.started,
        content=record.identity.content,
        figures={name: one for name, one in run.metrics.items() if math.isfinite(one)},
    )


class Sorted(NamedTuple):
    """Runs of a scenario that are of the present, and why others are not.

    reasons: how many runs are left out for what. broken: cells that say what none from here would,
    and what that is.
    """

    present: list[Candidate]
    reasons: Counter[str]
    broken: list[tuple[Cell, str]]


def sort_out(some: Iterable[Cell], expected: Callable[[CellRecord], CellIdentity]) -> Sorted:
    """Tell runs of the present from others; `expected` gives what a run hangs on if it is one.

    That raises an `InputError` where a run says what no run from here would.
    """
    found = Sorted([], Counter(), [])
    for cell in some:
        try:
            others = expected(cell.record).differences(cell.record.identity)
        except InputError as error:
            found.broken.append((cell, str(error)))
            continue
        if others:
            found.reasons[" and ".join(others)] += 1
        else:
            found.present.append(candidate(cell))
    return found


def judge(
    tracker: Tracker,
    candidates: Sequence[Candidate],
    solution: Membership | None = None,
    rule: str = "max",
    simple_metrics: Sequence[str] = (),
    simple_formulas: Sequence[str] = (),
    resamples: int = RESAMPLES,
    allow_unreadable: bool = False,
    there: Mask | None = None,
) -> Selected:
    """Compare the cells of one scenario by their validation predictions, and choose.

    Args:
        tracker: where the predictions are.
        candidates: one for each cell, in the order of the options.
        solution: (T, P) membership that the predictions must be for; None for what their file says.
        rule: one of `selection.RULES`.
        simple_metrics: for ``one_se``, from the simplest on.
        simple_formulas: the same.
        resamples: draws of models.
        allow_unreadable: go on without the best cell where its predictions cannot be used.
        there: (T, P) False where a model has no point; None where it has all.

    Raises:
        InputError: no run's predictions can be used, or not those of the best cell as it was
            logged (others that cannot are left out with a warning); or the rule is not known.
    """
    usable, validation = [], []
    unusable: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:  # for what a server sends
        for one in candidates:
            try:
                place = Path(folder) / one.run_id
                validation.append(_validation(tracker, one, solution, there, place))
                usable.append(one)
            except InputError as error:
                unusable[one.run_id] = str(error)
                log.warning("%s/%s is left out: %s Run it again.", one.scenario, one.cell, error)
    if unusable and not allow_unreadable:
        _check_best(candidates, unusable, rule)
    choose = make_rule(rule, usable, simple_metrics, simple_formulas)
    comparison = compare(validation, choose, resamples, halvings(resamples), there=there)
    return selected(usable, comparison)


def halvings(resamples: int) -> int:
    """How many random halvings of the models go with so many draws of them."""
    return resamples // 2


def _check_best(candidates: Sequence[Candidate], unusable: Mapping[str, str], rule: str) -> None:
    """Stop where a cell that the rule might take, as it was logged, cannot be used."""
    best = max(candidates, key=lambda one: _logged(one, VALIDATED_TPR))
    enough = _logged(best, VALIDATED_TPR) - (0 if rule == "max" else _logged_error(best))
    for one in sorted(candidates, key=lambda one: -_logged(one, VALIDATED_TPR)):
        if one.run_id in unusable and not _logged(one, VALIDATED_TPR) < enough:
            standing = "the best" if one is best else "one within a standard error of the best"
            raise InputError(
                f"{one.scenario}: {standing} cell as it was logged, {one.cell} with TPR "
                f"{_logged(one, VALIDATED_TPR):.4f}, cannot be used: {unusable[one.run_id]} Run it "
                "again, or go on without it by selection.allow_unreadable=true."
            )


def _logged_error(one: Candidate) -> float:
    """Standard error of a cell's TPR by its logged 95 % interval; infinite without one."""
    low, high = (one.figures.get(f"{VALIDATED_TPR}_{end}", math.nan) for end in ("low", "high"))
    return math.inf if math.isnan(high - low) else (high - low) / (2 * 1.96)


def _logged(one: Candidate, figure: str) -> float:
    value = one.figures.get(figure, math.nan)
    return -math.inf if math.isnan(value) else value


def _validation(
    tracker: Tracker,
    one: Candidate,
    solution: Membership | None,
    there: Mask | None,
    folder: Path,
) -> tuple[Membership, Predicted]:
    """Read membership and validation predictions of a cell, and compare them with what is known.

    Raises:
        InputError: they cannot be read, are of other models, or give another TPR than was logged.
    """
    told, found = read_validation(tracker.artifact(one.run_id, PREDICTIONS, folder))
    expected = told if solution is None else solution
    if found.shape != expected.shape:
        raise InputError(
            f"its validation predictions must have shape {expected.shape}, got {found.shape}."
        )
    if not np.array_equal(told, expected):
        raise InputError("its predictions are for another membership than the train models have.")
    logged = _logged(one, VALIDATED_TPR)
    value = roc(expected, found, there).tpr_at(RANKING_FPR)
    if not abs(logged - value) < 1e-9:
        raise InputError(
            f"its predictions give TPR {value:.4f} in validation, where it logged {logged:.4f}."
        )
    return expected, found


def order_of(
    selected: Selected, metrics: Sequence[str], formulas: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Metrics and formulas of the cells, in the order of the options given; others come last."""
    cells = [verdict.cell.split("/") for verdict in selected.cells]
    present = [list(dict.fromkeys(names)) for names in zip(*cells, strict=True)]
    found = []
    for names, order in zip(present, (metrics, formulas), strict=True):
        places = {name: place for place, name in enumerate(order)}
        found.append(sorted(names, key=lambda name: places.get(name, len(places))))
    return found[0], found[1]


def sizes_of(models: int, points: int) -> str:
    """Say how many points of how many models a validation pools."""
    return f"n = {points:,} points of {models} models"
