"""The grid of a scenario, read back from its runs: which cells there are, and how they compare."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mico_exp.cell import PREDICTIONS_FILE, Membership, Predicted, read_validation
from mico_exp.errors import InputError
from mico_exp.selection import Candidate, Selected, make_rule, selected
from mico_exp.statistics import RESAMPLES, compare
from mico_exp.tracking import LoggedRun, Tracker

log = logging.getLogger(__name__)


def scenario_of(run: LoggedRun) -> str:
    """Folder of the scenario that a run attacked, such as ``digits_inf``."""
    return f"{run.params.get('dataset')}_{run.params.get('scenario')}"


def cell_of(run: LoggedRun) -> str:
    """Cell of a run within its scenario, ``loss/1``."""
    return f"{run.params.get('metric')}/{run.params.get('formula')}"


def candidate(run: LoggedRun) -> Candidate:
    """Take a finished run as a candidate."""
    return Candidate(
        run_id=run.id,
        scenario=scenario_of(run),
        metric=run.params["metric"],
        formula=run.params["formula"],
        started=run.started,
        content=run.tags.get("content", ""),
        figures=run.metrics,
    )


def judge(
    tracker: Tracker,
    candidates: Sequence[Candidate],
    rule: str = "max",
    simple_metrics: Sequence[str] = (),
    simple_formulas: Sequence[str] = (),
    resamples: int = RESAMPLES,
) -> Selected:
    """Compare the cells of one scenario by their validation predictions, and choose.

    Args:
        tracker: where the predictions are.
        candidates: one for each cell, in the order of the options.
        rule: one of `selection.RULES`.
        simple_metrics: for ``one_se``, from the simplest on.
        simple_formulas: the same.
        resamples: draws of models.

    Raises:
        InputError: no run's predictions can be read (some that cannot are left out with a
            warning), or the rule is not known.
    """
    readable, validation = [], []
    for one in candidates:
        try:
            validation.append(_validation(tracker, one))
            readable.append(one)
        except InputError as error:
            log.warning("%s/%s is left out: %s Run it again.", one.scenario, one.cell, error)
    choose = make_rule(rule, readable, simple_metrics, simple_formulas)
    comparison = compare(validation, choose, resamples, halvings(resamples))
    return selected(readable, comparison)


def halvings(resamples: int) -> int:
    """How many random halvings of the models go with so many draws of them."""
    return resamples // 2


def _validation(tracker: Tracker, one: Candidate) -> tuple[Membership, Predicted]:
    """Read membership and validation predictions of a cell."""
    with tempfile.TemporaryDirectory() as folder:
        return read_validation(tracker.artifact(one.run_id, PREDICTIONS_FILE, Path(folder)))


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


def sizes_of(run: LoggedRun) -> str:
    """Say how many points of how many models a run's validation pools."""
    models = int(run.params["train_models"])
    points = models * 2 * int(run.params["len_challenge"])
    return f"n = {points:,} points of {models} models"
