"""One scenario as a command works with it: each part is made and checked once, when it is needed.

What a configuration says of it has been read by `compose`; nothing here knows a configuration.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path

from mico_exp.attacks.calibration import Calibrated
from mico_exp.attacks.evidence import Evidence
from mico_exp.challenge.lists import read_indices
from mico_exp.challenge.phases import PHASES, SHADOW
from mico_exp.challenge.points import ChallengePoints, KnownSample, challenge_points, known_sample
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.records import Records
from mico_exp.challenge.tree import (
    NoTrainModelsError,
    Scenario,
    find_scenario,
    load_scenario,
    scenario_folder,
)
from mico_exp.challenge.truth import read_truth, truth_folder
from mico_exp.common.arrays import Mask
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import FileFingerprints, definition, digest
from mico_exp.common.identity import CellIdentity
from mico_exp.config import advice
from mico_exp.config.source import Source
from mico_exp.models.architectures import Architecture
from mico_exp.models.folders import RECORD, check_built_from, check_sizes
from mico_exp.models.recorded import take_in
from mico_exp.models.workers import Local, Workers
from mico_exp.results.cell import evaluate
from mico_exp.runs import provenance
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.families import Metric
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.scores.trial import check_training
from mico_exp.scores.vitals import Vitals
from mico_exp.training.building import (
    Cost,
    build,
    check_built_by,
    cost,
    is_complete,
    untrained,
)
from mico_exp.training.drawing import POINTS, Among, points_of
from mico_exp.training.recipe import Recipe
from mico_exp.training.shadow import Pool, Run, check_asked, groups_for

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Setup:
    """A scenario of a challenge, where everything of it is, and how its models run.

    challenge: the submission that it belongs to.
    dataset, scenario: names of the options.
    epsilon: that its models are said to have been trained with, None without privacy.
    disclosed: whether training sets are, by the scenario's option; None where it has none.
    known_members, known_nonmembers: how many known records of each kind are drawn where training
        sets are disclosed; None for no sample.
    expected: phase → models that there should be.
    recipe: how it is built, given its `sizes`; None where its models come from elsewhere. Where
        none are `expected`, how reference models are trained.
    unasked: whether a command that needs them builds models that are not there.
    options: names of the options of data set and scenario, as they are typed.
    typed: keys of the data set that were set on the command line, ``phases.train``: numbers of
        models and a recipe that were typed are compared with what is there.
    """

    challenge: str
    dataset: str
    scenario: str
    root: Path
    store: ScoreStore
    source: Source
    architecture: Architecture
    len_training: int | None
    len_challenge: int | None
    epsilon: float | None
    disclosed: bool | None
    known_members: int | None
    known_nonmembers: int | None
    expected: Mapping[str, int]
    recipe: Callable[..., Recipe] | None
    options: tuple[str, str]
    typed: frozenset[str]
    unasked: bool = True
    processor: Processor = field(default_factory=Processor)
    workers: Workers = field(default_factory=Local)
    allow_nan: bool = False
    allow_outliers: bool = False

    @property
    def name(self) -> str:
        """Folder of the scenario, such as ``digits_inf``."""
        return f"{self.dataset}_{self.scenario}"

    @property
    def path(self) -> str:
        """Where it lies in the competition's tree: ``digits/digits_inf``."""
        return f"{self.challenge}/{self.name}"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return scenario_folder(self.root, self.challenge, self.name)

    @property
    def truth_folder(self) -> Path:
        """Where the truth of its dev and final models lies, as far as it is known."""
        return scenario_folder(truth_folder(self.root), self.challenge, self.name)

    @property
    def records(self) -> Records:
        """The data set; see `Source.records`."""
        return self.source.records

    def sizes(self, num_records: int | None) -> Sizes:
        """Sizes of the data set, of so many records.

        Raises:
            InputError: there cannot be any like that.
        """
        if type(num_records) is not int:
            raise InputError(
                f"`dataset.num_records` must be a whole number, got {num_records!r}: nothing else "
                "tells how many records there are."
            )
        return Sizes(num_records, self.len_training, self.len_challenge)

    def build(self, *, asked: bool = False) -> bool | None:
        """Build what is missing; says whether anything was, None if it cannot be built here.

        Args:
            asked: also what takes too long to be built by the way.

        Raises:
            InputError: it was built from other records or otherwise, or cannot be built.
        """
        if "found" in vars(self):  # it has been looked at, and so is complete
            return False
        loaded = self.records
        if (outputs := self.source.outputs) is not None:
            with self._files as files:
                key = digest(self.source.option, *map(files.of, outputs.files))
            return take_in(self.folder, self.truth_folder, outputs, key)
        try:
            check_built_from(self.folder, loaded)
            check_built_from(self.folder / SHADOW, loaded)
        except InputError:
            self.source.check_steady()  # which says more, if it is not
            raise
        check_sizes(self.folder, self.sizes(len(loaded.labels)))
        if self.recipe is None or not self.expected:
            return None
        if not (asked or self.unasked):
            self._check_there()
            return None
        how = self.recipe(sizes=self.sizes(len(loaded.labels)))
        if not is_complete(self.root, how):
            self.source.check_steady()
            check_training(untrained(how), loaded)
        return build(self.root, how, loaded, self.processor.device, self.workers)

    def _check_there(self) -> None:
        """Say how models come to be here that no other command builds."""
        if not any((self.folder / phase).is_dir() for phase in PHASES):
            raise InputError(
                f"{self.folder} holds no models: `{advice.download(self.challenge)}` fetches the "
                f"competition's, and `{advice.of_scenario('build', self.options)}` trains such "
                "models here."
            )

    def build_cost(self) -> Cost | None:
        """What it will take to build, from a few steps; None if nothing can be built here.

        Raises:
            InputError: its records are not there, or models cannot be trained on them.
        """
        if self.recipe is None or not any(self.expected.values()):
            return None
        how = self.recipe(sizes=self.sizes(len(self.records.labels)))
        check_training(untrained(how), self.records)
        return cost(how, self.records, self.processor.device)

    @cached_property
    def found(self) -> Scenario:
        """The scenario as it lies on disk.

        Raises:
            InputError: it is not there, or not whole, or was built by other sizes.
        """
        sizes = self.sizes(len(self.records.labels))
        check_sizes(self.folder, sizes)
        try:
            found = load_scenario(self.root, self.challenge, self.name, sizes)
        except NoTrainModelsError as error:
            kind = ["kind=pool"] if error.has_left_out else []
            shadow = advice.of_scenario("shadow", self.options, *kind)
            raise InputError(f"{error} Reference models stand in for them: {shadow}") from error
        self._check_phases(found)
        self.check_recipe()
        return found

    def check_recipe(self) -> None:
        """Compare a recipe that was typed with how the models were made.

        Raises:
            InputError: they were made otherwise, or that is not recorded.
        """
        if self.recipe is None or not any(key.startswith("recipe.") for key in self.typed):
            return
        if self.expected:
            sizes = self.sizes(len(self.records.labels))
            check_built_by(self.folder, self.recipe(sizes=sizes), self.records)
        else:
            count = len(self.records.labels)  # a batch may be of as many as one can have
            how = self.recipe(sizes=Sizes(count, count - 1, 1), models={})
            Pool(self.folder, how.seed).check(how, self.records)

    def train_references(
        self, kind: str, target: str | None, models: int | None, among: str | None, rest: str
    ) -> int:
        """Train what is missing of its reference models; says how many there were.

        Args:
            kind: of `training.drawing.KINDS`.
            target: of leave_out, the model or the phase whose challenge points are left out.
            models: how many of the kind, or for each target, in all; None for the usual number.
            among: list of the records that they are drawn from, or ``points``; None for all.
            rest: whether all other records are ``in`` each of them or ``out``.

        Raises:
            InputError: nothing says how they are trained, none can be like that, or the models
                that are attacked were trained otherwise.
        """
        asked = Run(kind, None, check_asked(kind, target, models))
        self.build()
        if self.recipe is None or self.source.outputs is not None:
            raise InputError(
                f"dataset `{self.dataset}` has no recipe: nothing says how its reference models "
                "are to be trained."
            )
        if not self.folder.is_dir():
            raise InputError(
                f"{self.folder} does not exist: reference models are for a scenario that is there."
            )
        records = self.records
        self.source.check_steady()
        sizes = self.sizes(len(records.labels))
        if self.expected and (self.folder / RECORD).exists():
            check_built_by(self.folder, self.recipe(sizes=sizes), records)
        found = find_scenario(self.root, self.challenge, self.name, sizes)
        some = points_of(found) if among == POINTS else None
        if among is not None and among != POINTS:
            some = read_indices(Path(among), sizes.records)
        drawn = Among.of(sizes.records, some, rest)
        groups = groups_for(found, asked, target, drawn, self.recipe)
        check_training(untrained(groups[0].recipe), records)
        pool = Pool(self.folder, groups[0].recipe.seed)
        return pool.train(groups, records, self.processor.device, self.workers)

    def _check_phases(self, found: Scenario) -> None:
        """Compare the numbers of models that were typed with those that are there."""
        for phase, count in self.expected.items():
            if not {"phases", f"phases.{phase}"} & self.typed:
                continue
            if count != (there := len(found.phases.get(phase, ()))):
                raise InputError(
                    f"`dataset.phases.{phase}` is {count!r}, but {self.folder} holds {there} "
                    f"{phase} models."
                )

    @cached_property
    def truth(self) -> Mapping[str, Mask]:
        """Membership (T, P) of its dev and final models' points, as far as it is known.

        Raises:
            InputError: it is not that of the models.
        """
        return read_truth(self.root, self.found)

    @cached_property
    def points(self) -> ChallengePoints:
        """Its challenge points, found once for all cells in turn: 200 splits take a while."""
        return _points(_SameContent(self.found))

    @cached_property
    def known(self) -> Mapping[str, list[KnownSample]] | None:
        """The sample of known members and non-members, where training sets are disclosed."""
        if self.known_members is None or self.known_nonmembers is None:
            return None
        return _known(_SameContent(self.found), self.known_members, self.known_nonmembers)

    def extraction_at(self, found: Scenario, points: ChallengePoints) -> Extraction:
        """Open the scores of some of its models, at some points."""
        return Extraction(
            found,
            points,
            self.records,
            self.architecture,
            self.store,
            self.processor,
            self.workers,
            self.known,
            files=self._files,
            allow_nan=self.allow_nan,
            allow_outliers=self.allow_outliers,
        )

    @cached_property
    def extraction(self) -> Extraction:
        """Its scores."""
        return self.extraction_at(self.found, self.points)

    @cached_property
    def identity(self) -> CellIdentity:
        """What a cell hangs on, but for its metric and formula."""
        return CellIdentity(
            content=self.check_content(),
            network_code=self.architecture.key,
            metric_code="",
            formula_code="",
            package_code=package_code(),
            precision=self.processor.precision,
            known_sample=self._known_sample,
            allow_nan=json.dumps(self.allow_nan),
            allow_outliers=json.dumps(self.allow_outliers),
        )

    def check_content(self) -> str:
        """Look at all that an attacker is given; says its hash.

        Raises:
            InputError: a model's weights are damaged, or two models hold equal ones.
        """
        return provenance.content(self.found, self.records, self._files)

    @cached_property
    def _files(self) -> FileFingerprints:
        return FileFingerprints(self.store.fingerprints(self.path))

    @property
    def _known_sample(self) -> str:
        """How many known members and non-members are drawn, as JSON."""
        if self.known_members is None:
            return json.dumps(None)
        counts = {"members": self.known_members, "nonmembers": self.known_nonmembers}
        return json.dumps(counts, sort_keys=True)

    @property
    def discloses(self) -> bool:
        """Whether training sets are disclosed, by its option where there is one."""
        return self.found.discloses if self.disclosed is None else self.disclosed

    def evidence(self, metrics: Mapping[str, Metric]) -> Evidence | None:
        """Read what is known of it by some metrics; None if any score is missing."""
        scores = {}
        for name, metric in metrics.items():
            if (found := self.extraction.read(name, metric)) is None:
                return None
            scores[name] = found
        labels = self.records.labels[self.points.unique].numpy()
        return Evidence(scores, self.points, labels, self.extraction.known)

    def scored(self, metrics: Mapping[str, Metric]) -> Evidence:
        """The same; scores that are missing are computed first."""
        if (found := self.evidence(metrics)) is None:
            self.source.check_steady()
            self.extraction.compute(metrics)
            found = self.evidence(metrics)
        assert found is not None
        return found


@cache
def package_code() -> str:
    """Hash of the package's code from scores to figures."""
    parts = (evaluate, Evidence, Calibrated, challenge_points, known_sample, Vitals)
    return definition(parts)  # attributes of what it is given are not followed from a function


class _SameContent:
    """A scenario as a key of a cache: equal where all sizes, folders and seeds are."""

    def __init__(self, found: Scenario) -> None:
        self.scenario = found

    def __hash__(self) -> int:
        return hash(self.scenario.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameContent) and self.scenario == other.scenario


@lru_cache(maxsize=1)
def _points(key: _SameContent) -> ChallengePoints:
    return challenge_points(key.scenario)


@lru_cache(maxsize=1)
def _known(key: _SameContent, members: int, nonmembers: int) -> dict[str, list[KnownSample]] | None:
    try:
        return known_sample(key.scenario, _points(key), members, nonmembers)
    except InputError as error:
        log.warning("%s No sample of known members is taken.", error)
        return None
