"""The models of a scenario as they are asked: each is checked once, and small ones stay loaded."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mico_exp.challenge.records import Records
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import Architecture, State
from mico_exp.models.weights import KEPT_BYTES, load_state, not_finite, weights_bytes, weights_file
from mico_exp.models.workers import Workers
from mico_exp.scores.families import Metric, is_told_members
from mico_exp.scores.gradients import GradientMetric
from mico_exp.scores.inference import Processor
from mico_exp.scores.soundness import check_records
from mico_exp.scores.trial import Trial, trial_of
from mico_exp.scores.white_box import reference_of

log = logging.getLogger(__name__)


class Roster:
    """Models of one architecture, before and while they are run.

    Args:
        architecture: of the models.
        records: the data set.
        processor: where and how models run.
        workers: who runs them.
        allow_nan: go on with models whose weights are not finite.
    """

    def __init__(
        self,
        architecture: Architecture,
        records: Records,
        processor: Processor,
        workers: Workers,
        *,
        allow_nan: bool,
    ) -> None:
        self.architecture, self.records = architecture, records
        self.processor, self.workers, self.allow_nan = processor, workers, allow_nan
        self._sound: set[Path] = set()  # folders of models that have been checked
        self._states: dict[Path, State] = {}  # of small ones, that need not be read again

    def check(self, folders: Sequence[Path]) -> None:
        """Read every model once, before long work, so that a broken one is found now.

        Where all of them are small they are kept, and need not be read again.
        """
        folders = [folder for folder in folders if folder not in self._sound]
        sick: dict[Path, str] = {}
        keep = sum(map(weights_bytes, folders)) <= KEPT_BYTES
        for folder in tqdm(
            folders, desc="Checking models", unit="model", leave=False, disable=None
        ):
            made = self.architecture.make(folder)
            state = load_state(weights_file(folder), made, mapped=not keep)
            if keep:
                self._states[folder] = state
            if bad := not_finite(state):
                sick[folder] = f"{bad} of {sum(t.numel() for t in state.values())}"
        if sick and not self.allow_nan:
            path, share = next(iter(sick.items()))
            raise InputError(
                f"{len(sick)} of {len(folders)} models have weights that are not finite, the first "
                f"{path} ({share} weights). `compute.allow_nan=true` goes on without them."
            )
        for path, share in sick.items():
            log.warning("%s: %s weights are not finite; its scores count for nothing", path, share)
        self._sound |= set(folders)

    def try_out(
        self, folders: Sequence[Path], points: Iterable[Indices], metrics: Iterable[Metric] = ()
    ) -> None:
        """Check the records that will be asked for, and what a model gives for a handful.

        Args:
            folders: of the models.
            points: that each will be asked at.
            metrics: that may ask for more.
        """
        asked = self._asked(points, metrics)
        check_records(self.records, asked, self.architecture.make(folders[0]))
        trial = Trial(self.architecture, self.records, self.processor, self.allow_nan)
        for _, otherwise in self.workers.map(trial, [trial_of(self.records, asked, folders)]):
            if otherwise and self.processor.batch_size != 1:
                log.warning("%s: every record is asked by itself, which takes longer", otherwise)
                self.processor = replace(self.processor, batch_size=1)

    def _asked(self, points: Iterable[Indices], metrics: Iterable[Metric]) -> Indices:
        """Records, ascending, that any model will be asked at."""
        count = len(self.records.labels)
        asked = np.zeros(count, dtype=bool)
        for some in {id(some): some for some in points}.values():
            asked[some] = True
        for metric in metrics:
            if is_told_members(metric):
                asked[:] = True
            elif isinstance(metric, GradientMetric):
                asked[reference_of(metric, count)] = True
        return np.flatnonzero(asked)

    def states(self, folders: Sequence[Path]) -> tuple[State, ...] | None:
        """Weights that have been read already; None where any has not."""
        if not all(folder in self._states for folder in folders):
            return None
        return tuple(self._states[folder] for folder in folders)
