"""Models × points × metrics to score columns: only what is needed, only what is missing.

The train and reference models are asked at the unique challenge points of all phases, each dev and
final model at its own and, where its training set is disclosed, at a sample of it. One pass
through a model computes all metrics of a family that are asked for: of its logits, of its
gradients, or of what it gives where inputs are perturbed.

Axes: M models taken at once, P points, S train models and the reference models after them, U unique
points, T targets.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mico_exp.challenge.phases import SHADOW
from mico_exp.challenge.points import ChallengePoints, KnownSample, undisclosed
from mico_exp.challenge.records import Records, fingerprint_arrays, records_key
from mico_exp.challenge.tree import ModelFolder, Scenario
from mico_exp.common.arrays import Floats, Indices, padded
from mico_exp.common.atomic import exclusive, remove_leftovers
from mico_exp.common.errors import InputError, MetricError
from mico_exp.common.fingerprints import FileFingerprints, definition, digest
from mico_exp.common.identity import ScoreIdentity
from mico_exp.models.architectures import Architecture, State, can_stack
from mico_exp.models.weights import (
    KEPT_BYTES,
    fingerprint,
    load_state,
    not_finite,
    weights_bytes,
    weights_file,
)
from mico_exp.models.workers import Local, Workers
from mico_exp.scores.gradients import GradientMetric
from mico_exp.scores.inference import (
    GRADIENTS,
    LOGITS,
    Metric,
    Processor,
    Reference,
    Shard,
    Work,
    is_told_members,
    reference_of,
    runner_on,
)
from mico_exp.scores.metrics import logit, margin
from mico_exp.scores.perturbation import (
    PERTURBATIONS,
    PerturbedMetric,
    PerturbedWork,
    family_of,
)
from mico_exp.scores.sight import Sight, sight_of
from mico_exp.scores.soundness import check_records
from mico_exp.scores.store import Address, Column, ScoreStore, read_vitals, write_vitals
from mico_exp.scores.table import Scores
from mico_exp.scores.trial import Trial, are_finite, trial_of
from mico_exp.scores.vitals import BEYOND, Place, Told, Vitals, findings

log = logging.getLogger(__name__)
VITAL = {"logit": logit, "margin": margin}
VITAL_POINTS = 1000  # of a model, at most, that its vitals are taken at
MODELS_AT_ONCE = 25  # that can stack: more make it no faster, and would only cost memory


@dataclass(frozen=True, eq=False)
class Task:
    """One model of a phase: the points it is needed at, and where its columns lie by metric."""

    phase: str
    row: int
    folder: ModelFolder
    points: Indices
    addresses: dict[str, Address]


class Stack(NamedTuple):
    """Models that are run at once, with what each lacks; and how many there were at first.

    The last bit of a product may hang on how many are made at once. That of a run which goes on
    where it was killed must not, so there are always as many.
    """

    pairs: list[tuple[Task, Indices]]
    size: int

    @property
    def filled(self) -> list[tuple[Task, Indices]]:
        """As many as at first: in place of the finished ones the last again."""
        return self.pairs + self.pairs[-1:] * (self.size - len(self.pairs))


class Pass(NamedTuple):
    """What a family of metrics took: models that were run, and seconds."""

    family: str
    models: int
    seconds: float


_last_read: dict[str, Scores] = {}  # at most one
_sights: dict[
    tuple[str, str, bool], Sight | None
] = {}  # by model, architecture, dense layers alone


class Extraction:
    """Reads a scenario's scores from the store, and computes what is not there.

    Args:
        scenario: the models.
        points: their challenge points.
        records: the data set.
        architecture: of the models.
        store: where columns are kept.
        processor: where and how models run.
        workers: who runs them.
        known: phase → each model's sample of known members and non-members.
        files: what is known of the models' files; its own look at them if None.
        allow_nan: go on where models have weights or scores that are not finite. Their scores
            are NaN then, and calibration leaves them out.
        allow_outliers: go on without models that are far from the others (`Vitals.outliers`),
            in the same way.
    """

    def __init__(
        self,
        scenario: Scenario,
        points: ChallengePoints,
        records: Records,
        architecture: Architecture,
        store: ScoreStore,
        processor: Processor | None = None,
        workers: Workers | None = None,
        known: Mapping[str, Sequence[KnownSample]] | None = None,
        *,
        files: FileFingerprints | None = None,
        allow_nan: bool = False,
        allow_outliers: bool = False,
    ) -> None:
        self.scenario, self.points, self.records = scenario, points, records
        self.architecture, self.store = architecture, store
        self.processor, self.workers = processor or Processor(), workers or Local()
        self.known, self.allow_nan = dict(known or {}), allow_nan
        self.allow_outliers = allow_outliers
        self.name = scenario.path
        self._files = files or FileFingerprints(store.fingerprints(self.name))
        self._sound: set[Path] = set()  # folders of models that have been checked
        self._states: dict[Path, State] = {}  # of small ones, that need not be read again
        self._vitals: Vitals | None = None

    def read(self, metric_name: str, metric: Metric) -> Scores | None:
        """Read one metric's scores; None if any is missing.

        What was read last is kept: the cells of one metric with several formulas share it.

        Raises:
            InputError: scores are not finite, and `allow_nan` is off.
        """
        tasks = list(self.tasks({metric_name: metric}))
        addresses = (task.addresses[metric_name] for task in tasks)
        wanted = (*addresses, self.allow_nan, sorted(self._left_out))
        samples = [sample.points for phase in self.known.values() for sample in phase]
        points = fingerprint_arrays(self.points.unique, *self.points.of_phase.values(), *samples)
        key = digest(repr(wanted), str(self.store.folder.absolute()), points)
        if key not in _last_read:
            _last_read.clear()  # before the next is read: never two in memory
            if (scores := self._read(metric_name, tasks)) is not None:
                _last_read[key] = scores
        return _last_read.get(key)

    def _read(self, metric_name: str, tasks: Sequence[Task]) -> Scores | None:
        own: dict[str, list[Floats]] = {phase: [] for phase in self.points.of_phase}
        known: dict[str, list[Floats]] = {phase: [] for phase in self.known}
        shadow = np.empty((len(self.points.is_member), len(self.points.unique)))
        train = shadow[: len(self.scenario.phases["train"])]
        addresses = [task.addresses[metric_name] for task in tasks]
        columns = self.store.read_all(addresses, [task.points for task in tasks])
        for task, column in zip(tasks, columns, strict=True):
            if len(column.lacks(task.points)):
                return None
            if (task.phase, task.row) in self._left_out:
                column = column.forgotten()
            elif not self.allow_nan and not np.isfinite(column.scores).all():
                raise self._not_finite(task, metric_name, column)
            if task.phase == "train":
                train[task.row] = column.at(self.points.unique)
            if task.phase == SHADOW:
                shadow[len(train) + task.row] = column.at(self.points.unique)
            elif task.phase != "train" or not self.points.is_pool:
                own[task.phase].append(column.at(self.points.points_of(task.phase, task.row)))
            if task.phase in known:
                known[task.phase].append(column.at(self.known[task.phase][task.row].points))
        rows_of = {phase: padded(rows, np.nan) if rows else train for phase, rows in own.items()}
        scores = Scores(shadow, rows_of, known)
        for array in (
            shadow,
            *scores.own.values(),
            *(one for rows in known.values() for one in rows),
        ):
            array.flags.writeable = False  # cells share them
        return scores

    def compute(self, metrics: Mapping[str, Metric]) -> list[Pass]:
        """Compute what is missing of the metrics' columns, and keep it, family by family.

        Every model and record is checked before the first is run, and what a model gives for some
        of the records. Finished models stay finished if this is interrupted. Of two processes one
        computes, and the other waits and finds nothing missing.

        Raises:
            InputError: a model cannot be read or does not fit, or is not finite and `allow_nan`
                is off; records or logits are not what they must be; or a metric needs disclosed
                training sets, and they are not.
        """
        done = []
        for family in (LOGITS, GRADIENTS, PERTURBATIONS):
            some = {name: one for name, one in metrics.items() if family_of(one) == family}
            started = time.perf_counter()
            if some and (models := self._compute_family(some, family)):
                done.append(Pass(family, models, time.perf_counter() - started))
        return done

    def _compute_family(self, metrics: Mapping[str, Metric], family: str) -> int:
        """Compute what is missing of one family; says for how many models."""
        with exclusive(self.store.lock(self.name), f"extracting {self.name}"):
            remove_leftovers(self.store.folder / self.name)
            every = list(self.tasks(metrics))
            tasks = list(zip(every, self._lacking(every, metrics), strict=True))
            missing = [(task, lacking) for task, lacking in tasks if len(lacking)]
            if missing:
                self.workers.check(self.processor.device)
                folders = [task.folder.path for task, _ in missing]
                self._check_models(folders)
                for name, metric in metrics.items():
                    if isinstance(metric, PerturbedMetric):
                        metric.check(name, self.records)
                asked = self._asked([points for _, points in missing], metrics.values())
                self._check_soundness(folders, asked)
                stacks = _stacks(tasks, self._together(folders[0], family))
                self._compute_all(stacks, metrics, family)
            for name in metrics:
                self.store.pack([task.addresses[name] for task in every])
            return len(missing)

    def _compute_all(
        self,
        stacks: Sequence[Stack],
        metrics: Mapping[str, Metric],
        family: str,
    ) -> None:
        kind = PerturbedWork if family == PERTURBATIONS else Work
        work = kind(self.architecture, self.records, metrics, self.processor)
        groups = [stack.pairs for stack in stacks]
        shards = (self._shard(stack.filled, metrics.values()) for stack in stacks)
        where = self.workers.describe(self.processor.device)
        title = f"Extracting {family} of {self.name} on {where}"
        with progress(title, sum(map(len, groups))) as bar:
            started, points = time.perf_counter(), 0
            for i, scores in self.workers.map(work, shards):
                self._keep(groups[i], scores)
                points += sum(len(lacking) for _, lacking in groups[i])
                rate = points / (time.perf_counter() - started)
                bar.set_postfix_str(f"{rate:,.0f} points/s", refresh=False)
                bar.update(len(groups[i]))

    def look(self) -> Vitals:
        """Take the models' vitals, once for models, records and points as they are.

        Raises:
            InputError: as `compute`.
        """
        self._vitals = self._vitals or self.stored_vitals()
        if self._vitals is None:
            with exclusive(self.store.lock(self.name), f"extracting {self.name}"):
                self._vitals = self.stored_vitals() or self.take_vitals()
                write_vitals(self.vitals_path, self._vitals)
        return self._vitals

    @cached_property
    def told(self) -> Told:
        """How well members are told from non-members by the models' vitals."""
        return self.look().told(self.vital.solution)

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
        lines = findings(self.look(), self.vital.solution, names)
        return [f"{self.name}: {line}" for line in lines]

    def sight(self, metric: Metric) -> Sight | None:
        """What a metric of gradients sees of the models; None for others, and where all are NaN.

        Raises:
            MetricError: there are no gradients of such models.
        """
        if not isinstance(metric, GradientMetric):
            return None
        first = str(self.scenario.phases["train"][0].path)  # another's may be of another shape
        key = first, self.architecture.key, metric.dense
        if key not in _sights:
            _sights[key] = self._sight(dense=metric.dense)
        return _sights[key]

    def _sight(self, *, dense: bool) -> Sight | None:
        """What is seen of the first model whose weights are finite, asked here at a point."""
        runner = runner_on(Processor("cpu", batch_size=1))
        paths = (folder.path for folder in self.scenario.phases["train"])
        models = (runner.load_one(self.architecture, path) for path in paths)
        model = next((one for one in models if not not_finite(one.state_dict())), None)
        if model is None:
            return None
        unique = self.points.unique
        try:
            plan = Reference().plan(runner, model, self.records, unique)
        except InputError as error:
            raise MetricError(f"{self.name}: no gradients: {error}") from error
        few = torch.from_numpy(runner.few(self.records, unique))
        inputs = runner.inputs(self.records, few)
        return sight_of(model, inputs, plan, dense=dense)

    def stored_vitals(self) -> Vitals | None:
        """Vitals that have been taken before; None if they have not."""
        return read_vitals(self.vitals_path, list(self.points.of_phase))

    @cached_property
    def vitals_path(self) -> Path:
        """Where they lie for models, records and points as they are."""
        targets = (task for task in self.tasks({"logit": logit}) if task.phase != SHADOW)
        keys = [task.addresses["logit"].key for task in targets]
        key = digest(*keys, fingerprint_arrays(*self.vital.of_phase.values()))
        return self.store.vitals(self.name, key)

    @cached_property
    def vital(self) -> ChallengePoints:
        """Challenge points that vitals are taken at: all of a model's own, or some of many."""
        return self.points.thinned(VITAL_POINTS)

    def take_vitals(self) -> Vitals:
        """Ask every model at its own challenge points, or some of them.

        Raises:
            InputError: as `compute`.
        """
        self.workers.check(self.processor.device)
        folders = [one.path for models in self.scenario.phases.values() for one in models]
        self._check_models(folders)
        vital = self.vital
        own = [
            vital.points_of(phase, row)
            for phase, rows in vital.of_phase.items()
            for row in range(len(rows))
        ]
        self._check_soundness(folders, self._asked(own, ()))
        groups = list(_alike(zip(folders, own, strict=True), self._together(folders[0], LOGITS)))
        work = Work(self.architecture, self.records, VITAL, self.processor)
        found: dict[int, dict[str, Floats]] = {}
        with progress(f"Looking at models of {self.name}", len(own)) as bar:
            for i, scores in self.workers.map(work, map(self._own_shard, groups)):
                found[i] = scores
                bar.update(len(groups[i]))
        rows = iter([row for i in range(len(groups)) for row in _rows(found[i])])
        logits, right = {}, {}
        for phase, models in vital.of_phase.items():
            some = [next(rows) for _ in models]
            logits[phase] = padded([row for row, _ in some], BEYOND)
            right[phase] = padded([row > 0 for _, row in some], False)
        return Vitals(logits, right)

    def _own_shard(self, group: Sequence[tuple[Path, Indices]]) -> Shard:
        """Models at their own points."""
        folders = tuple(folder for folder, _ in group)
        return Shard(folders, np.stack([points for _, points in group]), self._read_states(folders))

    def _read_states(self, folders: Sequence[Path]) -> tuple[State, ...] | None:
        """Weights that have been read already; None where any has not."""
        if not all(folder in self._states for folder in folders):
            return None
        return tuple(self._states[folder] for folder in folders)

    @cached_property
    def _left_out(self) -> set[tuple[str, int]]:
        """Models that are gone on without, for being far from the others."""
        return set(self.outliers) if self.allow_outliers else set()

    def _check_models(self, folders: Sequence[Path]) -> None:
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

    def _check_soundness(self, folders: Sequence[Path], asked: Indices) -> None:
        """Check the records that will be asked for, and what a model gives for a handful."""
        check_records(self.records, asked, self.architecture.make(folders[0]))
        trial = Trial(self.architecture, self.records, self.processor, self.allow_nan)
        for _, otherwise in self.workers.map(trial, [trial_of(self.records, asked, folders)]):
            if otherwise and self.processor.batch_size != 1:
                log.warning("%s: every record is asked by itself, which takes longer", otherwise)
                self.processor = replace(self.processor, batch_size=1)

    def _asked(self, lacking: Sequence[Indices], metrics: Iterable[Metric]) -> Indices:
        """Records, ascending, that any model will be asked at."""
        count = len(self.records.labels)
        asked = np.zeros(count, dtype=bool)
        for points in {id(points): points for points in lacking}.values():
            asked[points] = True
        for metric in metrics:
            if is_told_members(metric):
                asked[:] = True
            elif isinstance(metric, GradientMetric):
                asked[reference_of(metric, count)] = True
        return np.flatnonzero(asked)

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
            precision=self.processor.precision,
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

    def _lacking(self, tasks: Sequence[Task], metrics: Iterable[str]) -> list[Indices]:
        """Points of each task that any of its columns lacks."""
        wanted = [task.points for task in tasks]
        found: list[list[Indices]] = [[] for _ in tasks]
        for name in metrics:  # one metric's columns in memory at once
            columns = self.store.read_all([task.addresses[name] for task in tasks], wanted)
            for lacks, column, points in zip(found, columns, wanted, strict=True):
                lacks.append(column.lacks(points))
        return list(map(_joined, found))

    def _together(self, folder: Path, family: str) -> int:
        """How many models are run at once."""
        stackable = family != GRADIENTS and can_stack(self.architecture.make(folder))
        return MODELS_AT_ONCE if stackable else 1

    def _shard(
        self,
        group: Sequence[tuple[Task, Indices]],
        metrics: Iterable[Metric],
    ) -> Shard:
        first = group[0][1]
        if all(lacking is first for _, lacking in group):  # one array, however many the models
            points = np.broadcast_to(first, (len(group), len(first)))
        else:
            points = np.stack([lacking for _, lacking in group])
        folders = tuple(task.folder.path for task, _ in group)
        members = None
        if any(map(is_told_members, metrics)):
            splits = [task.folder.split(self.scenario.sizes) for task, _ in group]
            members = tuple(np.sort(one.training) for one in splits if one.training is not None)
        return Shard(folders, points, self._read_states(folders), members)

    def _keep(self, group: Sequence[tuple[Task, Indices]], scores: Mapping[str, Floats]) -> None:
        for name, rows in scores.items():
            columns = {}
            for (task, lacking), values in zip(group, rows, strict=False):  # a stack may be filled
                column = columns[task.addresses[name]] = Column(lacking, values)
                if not self.allow_nan and not np.isfinite(values).all():
                    raise self._not_finite(task, name, column)
            self.store.write(columns)

    def _not_finite(self, task: Task, metric_name: str, column: Column) -> MetricError:
        folder, wrong = task.folder.path, column.points[~np.isfinite(column.scores)]
        why = "whose logits are not finite either. Has the training diverged?"
        if are_finite(self.architecture, folder, self.records, wrong[0]):
            why = "whose logits are finite. Does the metric overflow, or is it not defined there?"
        return MetricError(
            f"{folder}: metric `{metric_name}` is not finite at {len(wrong)} of "
            f"{len(column.points)} points, the first record {wrong[0]}, {why} "
            "`compute.allow_nan=true` goes on without."
        )


def _alike(
    pairs: Iterable[tuple[Path, Indices]], together: int
) -> Iterator[list[tuple[Path, Indices]]]:
    """Cut models and their points into runs of at most so many, each of equally many points."""
    for _, run in groupby(pairs, key=lambda pair: len(pair[1])):
        some = list(run)
        yield from (some[start : start + together] for start in range(0, len(some), together))


def _rows(scores: Mapping[str, Floats]) -> Iterator[tuple[Floats, Floats]]:
    """Scores (P,) of each model by the two metrics of vitals."""
    return zip(scores["logit"], scores["margin"], strict=True)


def _joined(lacks: Sequence[Indices]) -> Indices:
    """Points that are in any of these; the first itself where all are equal."""
    first, *others = lacks
    if all(one is first or np.array_equal(first, one) for one in others):
        return first
    return np.unique(np.concatenate(lacks))


def _stacks(tasks: Iterable[tuple[Task, Indices]], together: int) -> list[Stack]:
    """Cut tasks into runs of models that lack equally many points, and so can be stacked.

    Args:
        tasks: all of them, with what they lack; many may lack nothing.
        together: how many models at most. Only those of the same `together` of a phase are, whose
            columns have equally many points, whichever of them are finished.
    """

    def place(pair: tuple[Task, Indices]) -> tuple[str, int, int]:
        task, _ = pair
        return task.phase, task.row // together, len(task.points)

    found = []
    for (*_, whole), run in groupby(tasks, key=place):
        first = list(run)
        missing = [pair for pair in first if len(pair[1])]
        for lacking, alike in groupby(missing, key=lambda pair: len(pair[1])):
            pairs = list(alike)
            found.append(Stack(pairs, len(first) if lacking == whole else len(pairs)))
    return found


@cache
def inference_code(family: str = LOGITS) -> str:
    """Hash of the package's code that runs models and computes what they give."""
    return definition(PerturbedWork if family == PERTURBATIONS else Work)


def progress(title: str, total: int, unit: str = "model") -> "tqdm[Any]":
    """A bar that counts models, silent where there is none or no terminal."""
    return tqdm(total=total, desc=title, unit=unit, disable=None if total else True)
