"""The grid of a scenario, read back from its runs: which cells there are, and how they compare."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mico_exp.cell import PREDICTIONS_FILE, Membership, Predicted, read_validation
from mico_exp.errors import InputError
from mico_exp.selection import Candidate, Selected, make_rule, selected
from mico_exp.statistics import RESAMPLES, compare
from mico_exp.tracking import LoggedRun, Tracker


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
        rule: ``max`` or ``one_se``.
        simple_metrics: for ``one_se``, from the simplest on.
        simple_formulas: the same.
        resamples: draws of models.

    Raises:
        InputError: a run's predictions cannot be read, or the rule is not known.
    """
    choose = make_rule(rule, candidates, simple_metrics, simple_formulas)
    comparison = compare(_validation(tracker, candidates), choose, resamples, resamples // 2)
    return selected(candidates, comparison)


def _validation(
    tracker: Tracker, candidates: Iterable[Candidate]
) -> Iterator[tuple[Membership, Predicted]]:
    """Read membership and validation predictions of cells, one at a time."""
    for one in candidates:
        with tempfile.TemporaryDirectory() as folder:
            path = tracker.artifact(one.run_id, PREDICTIONS_FILE, Path(folder))
            try:
                found = read_validation(path)
            except InputError as error:
                raise InputError(
                    f"Run {one.run_id} ({one.scenario}/{one.cell}): {error} Run the cell again."
                ) from error
        yield found
