"""Where the columns of a scenario's models lie in the store, and at which points each is needed.

The train and reference models are asked at the unique challenge points of all phases, each dev and
final model at its own and, where its training set is disclosed, at a sample of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from mico_exp.challenge.phases import SHADOW
from mico_exp.challenge.points import ChallengePoints, KnownSample, undisclosed
from mico_exp.challenge.records import Records, fingerprint_arrays, records_key
from mico_exp.challenge.tree import ModelFolder, Scenario
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import FileFingerprints, definition, digest
from mico_exp.common.identity import ScoreIdentity
from mico_exp.models.architectures import Architecture
from mico_exp.models.weights import fingerprint
from mico_exp.scores.families import LOGITS, WORKS, Metric, family_of, is_told_members
from mico_exp.scores.store import Address


@dataclass(frozen=True, eq=False)
class Task:
    """One model of a phase: the points it is needed at, and where its columns lie by metric."""

    phase: str
    row: int
    folder: ModelFolder
    points: Indices
    addresses: dict[str, Address]


class Addresses:
    """Finds the columns of a scenario's models, by what their scores hang on.

    Args:
        scenario: the models.
        points: their challenge points.
        records: the data set.
        architecture: of the models.
        precision: in which they run.
        known: phase → each model's sample of known members and non-members.
        files: what is known of the models' files.
    """

    def __init__(
        self,
        scenario: Scenario,
        points: ChallengePoints,
        records: Records,
        architecture: Architecture,
        precision: str,
        known: Mapping[str, Sequence[KnownSample]],
        files: FileFingerprints,
    ) -> None:
        self.scenario, self.points, self.records = scenario, points, records
        self.architecture, self.precision = architecture, precision
        self.known, self._files = known, files
        self.name = scenario.path

    def tasks(self, metrics: Mapping[str, Metric]) -> Iterator[Task]:
        """Every model with the points that it is needed at, and the present addresses."""
        definitions = {name: definition(metric) for name, metric in metrics.items()}
        codes = {name: inference_code(family_of(one)) for name, one in metrics.items()}
        packs = {
            name: self._identity("", one, "", codes[name]).shared
            for name, one in definitions.items()
        }
        for phase, folders in self.scenario.every.items():
            for row, folder in enumerate(folders):
                content, addresses = self._contents[phase][row], {}
                for name, defined in definitions.items():
                    told = self._told(folder, metrics[name])
                    key = self._identity(content, defined, told, codes[name]).key
                    place = self.name, phase, folder.path.name
                    addresses[name] = Address(*place, name, key, packs[name])
                yield Task(phase, row, folder, self._needed(phase, row), addresses)

    @cached_property
    def _contents(self) -> dict[str, list[str]]:
        """Phase → hash of the files of each model, which are looked at once."""
        with self._files as files:
            return {
                phase: [digest(*fingerprint(folder.path, files).files) for folder in folders]
                for phase, folders in self.scenario.every.items()
            }

    def _identity(self, model: str, metric: str, told: str, code: str) -> ScoreIdentity:
        return ScoreIdentity(
            model=model,
            network=self.architecture.key,
            records=self._records_key,
            metric=metric,
            told=told,
            precision=self.precision,
            inference=code,
        )

    @cached_property
    def _records_key(self) -> str:
        return records_key(self.records)

    def _told(self, folder: ModelFolder, metric: Metric) -> str:
        """What of a model's training set a metric is told."""
        if not is_told_members(metric):
            return ""
        if not folder.discloses_training:
            raise InputError(
                f"{undisclosed(folder)} is missing: {self.name} does not disclose training sets, "
                "which the metric needs."
            )
        if folder.seed_training is not None:
            return repr((folder.seed_challenge, folder.seed_training, self.scenario.sizes))
        training = folder.split(self.scenario.sizes).training
        assert training is not None
        return fingerprint_arrays(training)

    def _needed(self, phase: str, row: int) -> Indices:
        if phase in ("train", SHADOW):
            return self.points.unique
        own = self.points.points_of(phase, row)
        if phase not in self.known:
            return np.sort(own)
        return np.union1d(own, self.known[phase][row].points)


@cache
def inference_code(family: str = LOGITS) -> str:
    """Hash of the package's code that runs models for metrics of a family."""
    return definition(WORKS[family])
