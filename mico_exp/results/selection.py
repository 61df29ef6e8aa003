"""Which cell of the grid is chosen in each scenario, by its validation predictions alone.

A rule sees the cells in the order of the options. `highest` is the competition's; `within_one_se`
takes the simplest cell that is not clearly worse (Breiman et al. 1984, §3.4.3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mico_exp.common.arrays import Floats
from mico_exp.common.errors import InputError
from mico_exp.results.statistics import Choose, Comparison, Interval

RULES = ("max", "one_se", "auc_one_se")


@dataclass(frozen=True)
class Candidate:
    """A finished cell: the run that holds it, its choice, what it was run on and its figures."""

    run_id: str
    scenario: str
    metric: str
    formula: str
    started: int
    content: str
    figures: dict[str, float]

    @property
    def cell(self) -> str:
        """Name of the cell within its scenario, ``loss/1``."""
        return f"{self.metric}/{self.formula}"


@dataclass(frozen=True)
class Verdict:
    """What the comparison says of one cell: TPR is at FPR 0.1, in validation.

    tpr_interval, difference_interval: 95 %, over models. difference: TPR of the chosen cell less
    its own. like_chosen: the interval of the difference holds 0.
    """

    cell: str
    run_id: str
    tpr: float
    tpr_interval: Interval
    auc: float
    difference: float
    difference_interval: Interval
    probability_best: float
    like_chosen: bool


@dataclass(frozen=True)
class Selected:
    """The chosen cell of a scenario beside all others.

    cells: in the order of the options. procedure: TPR of choosing by the rule on half of the
    models and scoring on the other half; with its 95 % interval; None for too few models.
    """

    best: Candidate
    verdict: Verdict
    cells: list[Verdict]
    procedure: float | None
    procedure_interval: Interval | None

    @property
    def alike(self) -> list[str]:
        """Other cells that cannot be told from the chosen one."""
        return [v.cell for v in self.cells if v.like_chosen and v is not self.verdict]


def highest(tpr: Floats, auc: Floats, error: Floats) -> NDArray[np.int64]:  # noqa: ARG001
    """Cell (R,) with the highest TPR of (R, C); ties go to the higher AUC, then to the first."""
    best = tpr == tpr.max(axis=-1, keepdims=True)
    return np.where(best, auc, -np.inf).argmax(axis=-1)


def within_one_se(
    tpr: Floats, auc: Floats, error: Floats, simplicity: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Take the simplest cell (R,) whose TPR is within one standard error of the highest one's.

    simplicity: (C,) ranks, each once, the simplest 0.
    """
    alike = _within_one_se(tpr, auc, error)
    return np.where(alike, simplicity, len(simplicity)).argmin(axis=-1)


def auc_within_one_se(tpr: Floats, auc: Floats, error: Floats) -> NDArray[np.int64]:
    """Take the cell (R,) of highest AUC whose TPR is within one standard error of the highest."""
    return np.where(_within_one_se(tpr, auc, error), auc, -np.inf).argmax(axis=-1)


def _within_one_se(tpr: Floats, auc: Floats, error: Floats) -> NDArray[np.bool_]:
    """Cells (R, C) that are not clearly worse than the highest."""
    top = highest(tpr, auc, error)[:, np.newaxis]
    return tpr >= np.take_along_axis(tpr - error, top, axis=-1)


def make_rule(
    name: str,
    candidates: Sequence[Candidate],
    simple_metrics: Sequence[str],
    simple_formulas: Sequence[str],
) -> Choose:
    """Make a rule of `RULES` for cells.

    Args:
        name: of the rule.
        candidates: in the order in which the rule will see them.
        simple_metrics: from the simplest on; what is not listed comes after.
        simple_formulas: the same, and it counts first.

    Raises:
        InputError: there is no such rule.
    """
    if name not in RULES:
        raise InputError(f"`selection.rule` must be one of {', '.join(RULES)}, got {name}.")
    if name == "max":
        return highest
    if name == "auc_one_se":
        return auc_within_one_se
    places = [
        (_place(simple_formulas, c.formula), _place(simple_metrics, c.metric)) for c in candidates
    ]
    ranks = np.empty(len(places), dtype=np.int64)
    ranks[sorted(range(len(places)), key=places.__getitem__)] = np.arange(len(places))
    return partial(within_one_se, simplicity=ranks)


def _place(options: Sequence[str], name: str) -> tuple[int, str]:
    return (options.index(name) if name in options else len(options), name)


def newest(
    candidates: Iterable[Candidate], metrics: Sequence[str], formulas: Sequence[str]
) -> list[Candidate]:
    """Keep the latest run of every cell, in the order of the options.

    Args:
        candidates: all of the same scenario.
        metrics: the options in their fixed order; those not listed come after, by name.
        formulas: the same for formulas.
    """
    latest = {c.cell: c for c in sorted(candidates, key=lambda c: c.started)}
    return sorted(
        latest.values(), key=lambda c: (_place(metrics, c.metric), _place(formulas, c.formula))
    )


def selected(candidates: Sequence[Candidate], comparison: Comparison) -> Selected:
    """Say which of the compared candidates was chosen, and how it stands to the others."""
    cells = [
        Verdict(
            cell=candidate.cell,
            run_id=candidate.run_id,
            tpr=float(comparison.tpr[i]),
            tpr_interval=Interval(*map(float, comparison.tpr_interval[i])),
            auc=float(comparison.auc[i]),
            difference=float(comparison.difference[i]),
            difference_interval=Interval(*map(float, comparison.difference_interval[i])),
            probability_best=float(comparison.probability_best[i]),
            like_chosen=bool(comparison.like_chosen[i]),
        )
        for i, candidate in enumerate(candidates)
    ]
    procedure = comparison.procedure
    return Selected(
        best=candidates[comparison.chosen],
        verdict=cells[comparison.chosen],
        cells=cells,
        procedure=procedure.value if procedure else None,
        procedure_interval=procedure.interval if procedure else None,
    )
