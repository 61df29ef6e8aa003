"""The vitals of a scenario's models: asked for once, kept in the store, and what they tell.

Axes: P points.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mico_exp.challenge.phases import SHADOW
from mico_exp.challenge.points import ChallengePoints
from mico_exp.challenge.records import fingerprint_arrays
from mico_exp.common.arrays import Floats, Indices, padded
from mico_exp.common.atomic import exclusive
from mico_exp.common.fingerprints import digest
from mico_exp.common.terminal import progress
from mico_exp.scores.addresses import Addresses
from mico_exp.scores.families import LOGITS
from mico_exp.scores.inference import Shard, Work
from mico_exp.scores.metrics import logit, margin
from mico_exp.scores.roster import Roster
from mico_exp.scores.stacks import alike, together
from mico_exp.scores.store import ScoreStore, read_vitals, write_vitals
from mico_exp.scores.vitals import BEYOND, Place, Told, Vitals, findings

VITAL = {"logit": logit, "margin": margin}
VITAL_POINTS = 1000  # of a model, at most, that its vitals are taken at


class Checkup:
    """Takes the vitals of a scenario's models, or reads those that have been taken.

    Args:
        addresses: of the models' columns, by which vitals are kept.
        roster: the models.
        store: where vitals are kept.
    """

    def __init__(self, addresses: Addresses, roster: Roster, store: ScoreStore) -> None:
        self._addresses, self._roster, self._store = addresses, roster, store
        self.scenario, self.name = addresses.scenario, addresses.name
        self._taken: Vitals | None = None

    def look(self) -> Vitals:
        """Take the models' vitals, once for models, records and points as they are.

        Raises:
            InputError: as `Extraction.compute`.
        """
        self._taken = self._taken or self.stored()
        if self._taken is None:
            with exclusive(self._store.lock(self.name), f"extracting {self.name}"):
                self._taken = self.stored() or self.take()
                write_vitals(self.path, self._taken)
        return self._taken

    @cached_property
    def told(self) -> Told:
        """How well members are told from non-members by the models' vitals."""
        return self.look().told(self.points.solution)

    @cached_property
    def outliers(self) -> Mapping[Place, str]:
        """Models whose vitals are far from the others', by phase and row, and what is unlike."""
        return self.look().outliers()

    @cached_property
    def findings(self) -> list[str]:
        """In a line each what seems wrong with the models; nothing is refused for it."""
        names = {
            phase: [str(model.path) for model in models]
            for phase, models in self.scenario.phases.items()
        }
        lines = findings(self.look(), self.points.solution, names)
        return [f"{self.name}: {line}" for line in lines]

    def stored(self) -> Vitals | None:
        """Vitals that have been taken before; None if they have not."""
        return read_vitals(self.path, list(self.points.of_phase))

    @cached_property
    def path(self) -> Path:
        """Where they lie for models, records and points as they are."""
        targets = (task for task in self._addresses.tasks({"logit": logit}) if task.phase != SHADOW)
        keys = [task.addresses["logit"].key for task in targets]
        key = digest(*keys, fingerprint_arrays(*self.points.of_phase.values()))
        return self._store.vitals(self.name, key)

    @cached_property
    def points(self) -> ChallengePoints:
        """Challenge points that vitals are taken at: all of a model's own, or some of many."""
        return self._addresses.points.thinned(VITAL_POINTS)

    def take(self) -> Vitals:
        """Ask every model at its own challenge points, or some of them.

        Raises:
            InputError: as `Extraction.compute`.
        """
        roster, points = self._roster, self.points
        roster.workers.check(roster.processor.device, roster.processor.precision)
        folders = [one.path for models in self.scenario.phases.values() for one in models]
        roster.check(folders)
        own = [
            points.points_of(phase, row)
            for phase, rows in points.of_phase.items()
            for row in range(len(rows))
        ]
        roster.try_out(folders, own)
        at_once = together(roster.architecture, folders[0], LOGITS)
        groups = list(alike(zip(folders, own, strict=True), at_once))
        work = Work(roster.architecture, roster.records, VITAL, roster.processor)
        found: dict[int, dict[str, Floats]] = {}
        with progress(f"Looking at models of {self.name}", len(own)) as bar:
            for i, scores in roster.workers.map(work, map(self._shard, groups)):
                found[i] = scores
                bar.update(len(groups[i]))
        rows = iter([row for i in range(len(groups)) for row in _rows(found[i])])
        logits, right = {}, {}
        for phase, models in points.of_phase.items():
            some = [next(rows) for _ in models]
            logits[phase] = padded([row for row, _ in some], BEYOND)
            right[phase] = padded([row > 0 for _, row in some], False)
        return Vitals(logits, right)

    def _shard(self, group: Sequence[tuple[Path, Indices]]) -> Shard:
        """Models at their own points."""
        folders = tuple(folder for folder, _ in group)
        return Shard(
            folders, np.stack([points for _, points in group]), self._roster.states(folders)
        )


def _rows(scores: Mapping[str, Floats]) -> Iterator[tuple[Floats, Floats]]:
    """Scores (P,) of each model by the two metrics of vitals."""
    return zip(scores["logit"], scores["margin"], strict=True)
