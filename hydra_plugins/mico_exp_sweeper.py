"""Hydra's own sweeper, but for the scenarios that a data set has, and for cells without meaning.

The latter are refused before the first job, or left out.

Hydra takes sweepers from this package alone, which it imports at every start: what is heavy waits.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class ScenarioSweeper(BasicSweeper):
    """Sweeps the scenarios of the data set, where its option says which there are."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what a sweep works with."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if scenarios := config.dataset.get("scenarios"):  # of a data set of one's own
            several = scenarios if OmegaConf.is_list(scenarios) else [scenarios]
            names = ",".join(f"'{name}'" for name in several)
            self.params = {**(self.params or {}), "scenario": names}


class GridSweeper(ScenarioSweeper):
    """Sweeps the product of all choices.

    Args:
        max_batch_size: jobs that are launched at once; None for all.
        params: what is swept unless the command line says otherwise.
        meaningless: ``refuse`` the whole sweep where a cell has no meaning, or ``skip`` the cell.
    """

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None, meaningless: str
    ) -> None:
        super().__init__(max_batch_size, params)
        self.meaningless = meaningless

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what a sweep works with; its jobs are composed one from the other."""
        from mico_exp.config.composing import SweepLoader

        loader = SweepLoader(hydra_context.config_loader)
        context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def split_arguments(  # type: ignore[override]  # Hydra calls it on the instance
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """List each job's overrides, in batches."""
        from mico_exp.common.errors import InputError
        from mico_exp.config.cells import sensible_cells
        from mico_exp.config.typed import groups, quote_choices

        (split,) = BasicSweeper.split_arguments(overrides, None)
        # glob(*) gives the options 0 and inf bare, which would be numbers
        jobs = [[quote_choices(text, groups()) for text in job] for job in split]
        try:
            sensible = sensible_cells(jobs, self.meaningless)
        except InputError as error:
            sys.exit(str(error))
        return list(BasicSweeper.split_overrides_to_chunks(sensible, max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose one job of each kind: cells' own options were composed to see their meaning."""
        from mico_exp.config.cells import CELL, is_of

        kinds = {tuple(text for text in job if not is_of(CELL, text)): job for job in batch}
        super().validate_batch_is_legal(list(kinds.values()))


@dataclass
class ScenarioSweeperOption:
    """``hydra/sweeper=scenarios``."""

    _target_: str = "hydra_plugins.mico_exp_sweeper.ScenarioSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default_factory=dict)


@dataclass
class GridSweeperOption(ScenarioSweeperOption):
    """``hydra/sweeper=grid``."""

    _target_: str = "hydra_plugins.mico_exp_sweeper.GridSweeper"
    meaningless: str = "refuse"


for name, option in (("scenarios", ScenarioSweeperOption), ("grid", GridSweeperOption)):
    ConfigStore.instance().store(name, option, "hydra/sweeper", provider="mico_exp")
