"""Models × points × metrics to score columns: only what is needed, only what is missing.

One pass through a model computes all metrics of a family that are asked for: of its logits, of its
gradients, or of what it gives where inputs are perturbed.

Axes: M models taken at once, P points, S train models and the reference models after them, U unique
points, T targets.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from mico_exp.challenge.phases import SHADOW
from mico_exp.challenge.points import ChallengePoints, KnownSample
from mico_exp.challenge.records import Records, fingerprint_arrays
from mico_exp.challenge.tree import Scenario
from mico_exp.common.arrays import Floats, Indices, padded
from mico_exp.common.atomic import exclusive, remove_leftovers
from mico_exp.common.errors import InputError, MetricError
from mico_exp.common.fingerprints import FileFingerprints, digest
from mico_exp.common.terminal import progress
from mico_exp.models.architectures import Architecture
from mico_exp.models.weights import not_finite
from mico_exp.models.workers import Local, Workers
from mico_exp.scores.addresses import Addresses, Task
from mico_exp.scores.checkup import Checkup
from mico_exp.scores.families import WORKS, Metric, family_of, is_told_members
from mico_exp.scores.gradients import GradientMetric
from mico_exp.scores.inference import Processor, Shard, runner_on
from mico_exp.scores.perturbation import PerturbedMetric
from mico_exp.scores.roster import Roster
from mico_exp.scores.sight import Sight, sight_of
from mico_exp.scores.stacks import Stack, stacks, together
from mico_exp.scores.store import Column, ScoreStore
from mico_exp.scores.table import Scores
from mico_exp.scores.trial import are_finite
from mico_exp.scores.white_box import Reference, few


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
        self.workers, self.known = workers or Local(), dict(known or {})
        self.allow_nan, self.allow_outliers = allow_nan, allow_outliers
        self.name, how = scenario.path, processor or Processor()
        files = files or FileFingerprints(store.fingerprints(self.name))
        about = scenario, points, records, architecture
        self.addresses = Addresses(*about, how.precision, self.known, files)
        self.roster = Roster(architecture, records, how, self.workers, allow_nan=allow_nan)
        self.checkup = Checkup(self.addresses, self.roster, store)

    def read(self, metric_name: str, metric: Metric) -> Scores | None:
        """Read one metric's scores; None if any is missing.

        What was read last is kept: the cells of one metric with several formulas share it.

        Raises:
            InputError: scores are not finite, and `allow_nan` is off.
        """
        tasks = list(self.addresses.tasks({metric_name: metric}))
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
        for family in WORKS:
            some = {name: one for name, one in metrics.items() if family_of(one) == family}
            started = time.perf_counter()
            if some and (models := self._compute_family(some, family)):
                done.append(Pass(family, models, time.perf_counter() - started))
        return done

    def _compute_family(self, metrics: Mapping[str, Metric], family: str) -> int:
        """Compute what is missing of one family; says for how many models."""
        with exclusive(self.store.lock(self.name), f"extracting {self.name}"):
            remove_leftovers(self.store.folder / self.name)
            every = list(self.addresses.tasks(metrics))
            tasks = list(zip(every, self._lacking(every, metrics), strict=True))
            missing = [(task, lacking) for task, lacking in tasks if len(lacking)]
            if missing:
                processor = self.roster.processor
                self.workers.check(processor.device, processor.precision)
                folders = [task.folder.path for task, _ in missing]
                self.roster.check(folders)
                for name, metric in metrics.items():
                    if isinstance(metric, PerturbedMetric):
                        metric.check(name, self.records)
                self.roster.try_out(folders, [points for _, points in missing], metrics.values())
                at_once = together(self.architecture, folders[0], family)
                self._compute_all(stacks(tasks, at_once), metrics, family)
            for name in metrics:
                self.store.pack([task.addresses[name] for task in every])
            return len(missing)

    def _compute_all(
        self,
        some: Sequence[Stack],
        metrics: Mapping[str, Metric],
        family: str,
    ) -> None:
        work = WORKS[family](self.architecture, self.records, metrics, self.roster.processor)
        groups = [stack.pairs for stack in some]
        shards = (self._shard(stack.filled, metrics.values()) for stack in some)
        where = self.workers.describe(self.roster.processor.device)
        title = f"Extracting {family} of {self.name} on {where}"
        with progress(title, sum(map(len, groups))) as bar:
            started, points = time.perf_counter(), 0
            for i, scores in self.workers.map(work, shards):
                self._keep(groups[i], scores)
                points += sum(len(lacking) for _, lacking in groups[i])
                rate = points / (time.perf_counter() - started)
                bar.set_postfix_str(f"{rate:,.0f} points/s", refresh=False)
                bar.update(len(groups[i]))

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
        inputs = runner.inputs(self.records, torch.from_numpy(few(self.records, unique, 1)))
        return sight_of(model, inputs, plan, dense=dense)

    @cached_property
    def _left_out(self) -> set[tuple[str, int]]:
        """Models that are gone on without, for being far from the others."""
        return set(self.checkup.outliers) if self.allow_outliers else set()

    def _lacking(self, tasks: Sequence[Task], metrics: Iterable[str]) -> list[Indices]:
        """Points of each task that any of its columns lacks."""
        wanted = [task.points for task in tasks]
        found: list[list[Indices]] = [[] for _ in tasks]
        for name in metrics:  # one metric's columns in memory at once
            columns = self.store.read_all([task.addresses[name] for task in tasks], wanted)
            for lacks, column, points in zip(found, columns, wanted, strict=True):
                lacks.append(column.lacks(points))
        return list(map(_joined, found))

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
        return Shard(folders, points, self.roster.states(folders), members)

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


def _joined(lacks: Sequence[Indices]) -> Indices:
    """Points that are in any of these; the first itself where all are equal."""
    first, *others = lacks
    if all(one is first or np.array_equal(first, one) for one in others):
        return first
    return np.unique(np.concatenate(lacks))
