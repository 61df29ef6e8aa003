"""How a cell is chosen, as the configuration tells."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig

from mico_exp.common import require
from mico_exp.common.errors import InputError
from mico_exp.config.options import option_names
from mico_exp.results.selection import RULES
from mico_exp.runs.record import USUAL_EXPOSURE


@dataclass(frozen=True)
class Selection:
    """How a cell is chosen.

    rule: one of `RULES`. preset: name of the preset, and cells: scenario → the cell that it names;
    None where the rule chooses.
    simple_metrics, simple_formulas: from the simplest on.
    resamples: draws of models.
    allow_unreadable: go on without the best cells where their predictions cannot be used.
    exposure: name of the one whose cells are candidates; None for all.
    """

    rule: str
    preset: str
    cells: Mapping[str, str] | None
    simple_metrics: tuple[str, ...]
    simple_formulas: tuple[str, ...]
    resamples: int
    allow_unreadable: bool
    exposure: str | None = USUAL_EXPOSURE

    def preset_cell(self, scenario: str) -> str | None:
        """Cell that the preset names for a scenario; None without a preset."""
        if self.cells is None:
            return None
        if scenario not in self.cells:
            raise InputError(
                f"preset={self.preset} has no cell for {scenario}, only for "
                f"{', '.join(self.cells)}."
            )
        return self.cells[scenario]


def selection(cfg: DictConfig) -> Selection:
    """Read the rule and the effort of the comparison."""
    how, cells = cfg.selection, cfg.preset.cells
    if how.rule not in RULES:
        raise InputError(f"`selection.rule` must be one of {', '.join(RULES)}, got {how.rule}.")
    if type(how.resamples) is not int or how.resamples < 100:
        raise InputError(
            f"`selection.resamples` must be a whole number ≥ 100, got {how.resamples!r}."
        )
    return Selection(
        rule=how.rule,
        preset=str(cfg.preset.name),
        cells=None if cells is None else {str(name): str(one) for name, one in cells.items()},
        simple_metrics=_simplicity(how, "metric"),
        simple_formulas=_simplicity(how, "formula"),
        resamples=how.resamples,
        allow_unreadable=require.switch("selection.allow_unreadable", how.allow_unreadable),
        exposure=_exposure(how.exposure),
    )


def _exposure(wanted: Any) -> str | None:
    known = option_names("exposure")
    if wanted is not None and wanted not in known:
        raise InputError(
            f"`selection.exposure` must be null or one of {', '.join(known)}, got {wanted}."
        )
    return wanted


def _simplicity(how: DictConfig, group: str) -> tuple[str, ...]:
    names = tuple(str(name) for name in how.simplicity[group])  # 0 is typed as a number
    known = option_names(group)
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"`selection.simplicity.{group}` must name options of {', '.join(known)}, "
            f"got {unknown[0]}."
        )
    return names


def of_cell(how: Selection, cell: Any, scenarios: Iterable[str]) -> Selection:
    """Take one cell in all scenarios instead of a choice, where one is typed: ``confidence/1``."""
    if cell is None:
        return how
    if not isinstance(cell, str) or not all(cell.partition("/")):
        raise InputError(f"`cell` must be null or a metric and a formula, loss/1, got {cell!r}.")
    return replace(how, preset=f"cell={cell}", cells=dict.fromkeys(scenarios, cell))
