"""What is known of a scenario's models: the phases that figures come from, and their samples."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mico_exp.auditing.difference import Sample
from mico_exp.challenge.phases import CALLED
from mico_exp.commands.choosing import Chosen, Here, choose, find_scenarios
from mico_exp.config.setup import Setup
from mico_exp.config.statements import Choosing
from mico_exp.results.cell import with_both_classes
from mico_exp.runs.tracking import Tracker


class Known(NamedTuple):
    """A scenario: where it lies, how it is there now, and its chosen cell.

    phases: dev and final models whose membership is known, which took no part in the choice; or
    validation, where of neither is.
    """

    setup: Setup
    here: Here
    chosen: Chosen
    phases: Sequence[str]

    @property
    def cell(self) -> str:
        """Name of the chosen cell."""
        return self.chosen.selected.best.cell

    def samples(self, phases: Iterable[str]) -> list[Sample]:
        """Samples of some phases."""
        solutions = {"train": self.here.solution, **self.here.truth}
        points = self.setup.points.of_phase
        return [Sample(solutions[p], self.chosen.predictions[p], points[p]) for p in phases]


def find_known(how: Choosing, tracker: Tracker) -> list[Known]:
    """Choose a cell in every scenario, and say which phases its figures come from."""
    scenarios = find_scenarios(how.challenge, how.selection)
    chosen = choose(how.challenge, how.selection, tracker, scenarios)
    found = []
    for name, here in scenarios.items():
        phases = [phase for phase, _ in with_both_classes(here.truth, here.there)] or ["train"]
        found.append(Known(how.challenge.setups[name], here, chosen[name], phases))
    return found


def named(phases: Sequence[str]) -> str:
    """Phases in words: ``dev and final``."""
    return " and ".join(CALLED[phase] for phase in phases)
