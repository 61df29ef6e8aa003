"""Which cell of the grid is best in each scenario, by its validation figures alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TPR = "val/tpr_at_fpr_0.1"
AUC = "val/auc"


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
class Selected:
    """The best cell of a scenario, the next best, and among how many it was chosen."""

    best: Candidate
    runner_up: Candidate | None
    compared: int


def newest(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Keep the latest run of every cell."""
    latest: dict[tuple[str, str], Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: c.started):
        latest[candidate.scenario, candidate.cell] = candidate
    return list(latest.values())


def select(
    candidates: Iterable[Candidate], metrics: Sequence[str], formulas: Sequence[str]
) -> Selected:
    """Take the cell of one scenario with the highest validation TPR at FPR 0.1.

    Ties go to the higher AUC, then to the earlier metric and formula in the order of the
    options, so that the choice never hangs on the order of the runs.

    Args:
        candidates: at least one, all of the same scenario and the same challenge content.
        metrics: the options in their fixed order; those not listed come after, by name.
        formulas: the same for formulas.
    """

    def place(options: Sequence[str], name: str) -> tuple[int, str]:
        return (options.index(name) if name in options else len(options), name)

    ranked = sorted(
        newest(candidates),
        key=lambda c: (
            -c.figures[TPR],
            -c.figures[AUC],
            place(metrics, c.metric),
            place(formulas, c.formula),
        ),
    )
    return Selected(ranked[0], ranked[1] if len(ranked) > 1 else None, len(ranked))
