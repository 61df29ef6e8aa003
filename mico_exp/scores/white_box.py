"""Running one model after another for its gradients: at reference records first, then at points.

Records of a batch are asked class by class where they are equally long, so that a class is a slice.

Axes: P points.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mico_exp.challenge.records import Inputs, Records
from mico_exp.common.arrays import Floats, Indices
from mico_exp.common.errors import InputError, MetricError
from mico_exp.models.architectures import Alone
from mico_exp.models.backprop import Known, Plan, Trace, trace
from mico_exp.models.batching import Batches, out_of_memory
from mico_exp.models.devices import allow_tf32
from mico_exp.models.planning import plan_of
from mico_exp.models.weights import not_finite
from mico_exp.scores.gradients import GradientMetric, View
from mico_exp.scores.inference import (
    ModelRunner,
    Processor,
    Shard,
    Work,
    asked,
    check_shape,
    named,
    runner_on,
)
from mico_exp.scores.kept import written

CPU_TRACE_BYTES = 64 << 20  # a backward pass is no faster in smaller batches
TRIED = 4  # points at which gradients are set beside those of autograd
LAYERS_OF_A_TRACE = 8  # it keeps about so many times what the largest layer gives out


class Given(NamedTuple):
    """Inputs of some records on the device, and what has been found of them alone."""

    inputs: Inputs
    known: Known


class Reference:
    """What models of one architecture share of the records that metrics refer to.

    The first layer of every model is given the same there: its mean outer product, by far the
    largest, and all pairs of inner products need be computed for one model only. And the ways to
    their gradients, which are compared with autograd's for one model only.
    """

    def __init__(self) -> None:
        self._given: dict[bytes, Given] = {}
        self._plans: dict[str, Plan] = {}
        self._records: dict[int | None, Indices] = {}

    def plan(
        self, runner: ModelRunner, model: nn.Module, records: Records, points: Indices
    ) -> Plan:
        """Plan of a model's architecture, tried at a few points the first time, and kept."""
        shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
        key = f"{model} {shapes}"  # folders may have networks of other shapes
        if key not in self._plans:
            allow_tf32(False)
            wanted = torch.from_numpy(few(records, points, runner.processor.batch_size))
            asked("the model", lambda some: model(runner.inputs(records, some)), wanted)
            self._plans[key] = plan_of(model, runner.inputs(records, wanted))
        return self._plans[key]

    def at(self, runner: ModelRunner, records: Records, points: Indices) -> Given:
        """Inputs of records (P,), kept from the first time on."""
        key = points.tobytes()
        if key not in self._given:
            wanted = torch.from_numpy(points)
            inputs = asked("the model", lambda some: runner.inputs(records, some), wanted)
            self._given[key] = Given(inputs, {})
        return self._given[key]

    def records(self, metric: GradientMetric, among: Records, members: Indices | None) -> Indices:
        """Records that a metric wants to see first, class by class."""
        key = metric.reference
        if metric.disclosed or key not in self._records:
            found = reference_of(metric, len(among.labels), members)
            found = found[_by_class(among, found)]
            if metric.disclosed:
                return found
            self._records[key] = found
        return self._records[key]

    def forget(self, points: Indices) -> None:
        """Drop them, where a model has changed its inputs in place."""
        self._given.pop(points.tobytes(), None)


def few(records: Records, points: Indices, most: int | None = None) -> Indices:
    """Some of the points, the longest first, some of them twice; at most so many."""
    order = np.argsort(-records.sizes(points), kind="stable")
    spread = order[np.linspace(0, len(order) - 1, TRIED).astype(np.int64)]
    return points[spread][:most]


def reference_of(metric: GradientMetric, records: int, members: Indices | None = None) -> Indices:
    """Records (N,) that a metric wants to see first, ascending: always the same of the same.

    Raises:
        MetricError: it is to be told known members, and there are none.
    """
    if metric.disclosed and members is None:
        raise MetricError("a metric of known members needs a scenario that discloses them.")
    among = members if metric.disclosed and members is not None else np.arange(records)
    if metric.reference is None or metric.reference >= len(among):
        return np.sort(among)
    return np.sort(np.random.default_rng(0).permutation(among)[: metric.reference])


class GradientRunner:
    """Asks one model at a time for its gradients, and learns how large a batch may be.

    Args:
        runner: that models run on.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.batches = Batches(runner.device, runner.processor.batch_size, CPU_TRACE_BYTES)

    @torch.no_grad()
    def scores(
        self,
        model: nn.Module,
        records: Records,
        points: Indices,
        metrics: Mapping[str, GradientMetric],
        members: Indices | None = None,
        known: Reference | None = None,
    ) -> dict[str, Floats]:
        """Compute metrics of one model's gradients at points (P,); each metric's scores are (P,).

        Always in float32. Where memory runs out, the batch is halved and the work goes on. Of a
        model whose weights are not finite all scores are NaN.

        Args:
            model: with its weights.
            records: the data set.
            points: where it is asked.
            metrics: of gradients.
            members: records that the model was surely trained on, for metrics that are told them.
            known: what earlier models of the same architecture shared of the reference records.

        Raises:
            InputError: a single point does not fit; or names the first that the model fails at.
            MetricError: the model has no gradients; or a metric fails, or gives another shape.
        """
        if not len(points) or not_finite(model.state_dict()):
            return {name: np.full(points.shape, np.nan) for name in metrics}
        known = Reference() if known is None else known
        plan = self._plan(model, records, points, metrics, known)
        views = _Views(self, model, records, known, plan, self._size(model, records, points, plan))
        prepared = views.prepared(metrics, members)
        asked_at, place = views.around(points)
        found = {name: np.empty(asked_at.shape) for name in metrics}

        def score(some: Indices) -> None:
            try:
                for name, values in _scored(prepared, views.at(asked_at[some]), asked_at[some]):
                    found[name][some] = values.double().cpu().numpy()
            except RuntimeError as error:
                if out_of_memory(error):
                    views.drop()
                raise

        self.batches.run(score, records.sizes(asked_at), views.size)
        return {name: values[place] for name, values in found.items()}

    def _plan(
        self,
        model: nn.Module,
        records: Records,
        points: Indices,
        metrics: Iterable[str],
        known: Reference,
    ) -> Plan:
        """How a model's gradients are found, tried at a few points where that is not known."""
        try:
            return known.plan(self.runner, model, records, points)
        except InputError as error:
            raise MetricError(f"no gradients for {', '.join(metrics)}: {error}") from error

    def _size(self, model: nn.Module, records: Records, points: Indices, plan: Plan) -> int:
        """Bytes that a trace keeps for each token, image or row."""
        sizes = records.sizes(points)
        widest = self.runner.bytes_per_size(Alone(model), records, points, sizes, shared=True)
        return widest * LAYERS_OF_A_TRACE + -(-plan.bytes_of_rows(model) // int(sizes.min()))


@cache
def gradient_runner_on(processor: Processor) -> GradientRunner:
    """Open the one of this process, which remembers what batches fit."""
    return GradientRunner(runner_on(processor))


@dataclass(frozen=True, eq=False)
class GradientWork(Work):
    """What all shards have in common whose metrics look at gradients.

    known: what all models share of the records that metrics refer to.
    """

    known: Reference = field(default_factory=Reference)

    def _scores(self, runner: ModelRunner, shard: Shard) -> dict[str, Floats]:
        rows = []
        for i, (folder, points) in enumerate(zip(shard.folders, shard.points, strict=True)):
            state = shard.states[i] if shard.states else None
            model = runner.load_one(self.architecture, folder, state)
            told = shard.members[i] if shard.members else None
            about = model, self.records, points, self.metrics, told, self.known
            rows.append(gradient_runner_on(self.processor).scores(*about))
        return {name: np.stack([row[name] for row in rows]) for name in self.metrics}


class _Prepared(NamedTuple):
    """A metric, what it knows of the model, and the records that it was told as known members."""

    metric: GradientMetric
    state: Any
    told: Indices

    def score(self, view: View, points: Indices) -> Tensor:
        """Score the points (P,) of a view."""
        told = torch.from_numpy(np.isin(points, self.told)).to(view.labels.device)
        return self.metric.score(replace(view, told=told), self.state)


def _scored(
    prepared: Mapping[str, _Prepared], view: View, points: Indices
) -> Iterator[tuple[str, Tensor]]:
    """Every metric's scores (P,) at the points of a view."""
    for name, one in prepared.items():
        with named(name):
            values = one.score(view, points)
        check_shape(name, values, view.trace.logits)
        yield name, values


class _Views:
    """Views of one model. The last that others may share is kept, and never two are in memory.

    Records that are among those of the last are looked at there: the model is not run again.

    size: bytes that a trace keeps for each token, image or row.
    """

    def __init__(
        self,
        owner: GradientRunner,
        model: nn.Module,
        records: Records,
        known: Reference,
        plan: Plan,
        size: int,
    ) -> None:
        self.runner, self.batches = owner.runner, owner.batches
        self.model, self.records = model, records
        self.known, self.plan, self.size = known, plan, size
        self._last: tuple[Indices, View] | None = None

    def prepared(
        self, metrics: Mapping[str, GradientMetric], members: Indices | None
    ) -> dict[str, _Prepared]:
        """Let metrics look at their reference records, those with the same ones in turn."""
        total = len(self.records.labels)
        wanted = {
            name: self.known.records(one, self.records, members) for name, one in metrics.items()
        }
        observed, found = {}, {}
        # What models share comes last, the largest of it first: the others are some of it.
        order = sorted(wanted, key=lambda name: (not metrics[name].disclosed, -len(wanted[name])))
        for name in order:
            metric, seen = metrics[name], wanted[name]
            count = len(members) if metric.disclosed and members is not None else total
            with named(name):
                if (key := metric.observation) not in observed:
                    observed[key] = self._observed(metric, seen)
                state = metric.prepare(observed[key], count)
            found[name] = _Prepared(metric, state, seen if metric.disclosed else seen[:0])
        return {name: found[name] for name in metrics}

    def _observed(self, metric: GradientMetric, seen: Indices) -> Any:
        """What a metric observes of its reference; from the start where memory runs out."""
        sizes = self.records.sizes(seen)
        while True:
            cuts = list(self.batches.cut(sizes, self.size))
            shared = len(cuts) == 1 and not metric.disclosed  # else it is large, or the model's own
            try:
                return metric.observe(self.at(seen[some], shared=shared) for some in cuts)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            self.drop()
            self.batches.halve(self.size * int(sizes.max()), len(cuts[0]), reason)

    def around(self, points: Indices) -> tuple[Indices, Indices]:
        """Records to ask at for points (P,), each once, and where among them the points are.

        Those of the last view, if they are the points and few others.
        """
        unique, inverse = np.unique(points, return_inverse=True)
        if self._last is not None and len(self._last[0]) <= 2 * len(unique):
            place = _place(unique, self._last[0])
            if place is not None:
                return self._last[0], place[inverse]
        order = _by_class(self.records, unique)
        return unique[order], np.argsort(order)[inverse]

    def at(self, points: Indices, *, shared: bool = False) -> View:
        """View of records (P,); `shared` if other models will be asked at the same.

        Raises:
            InputError: names the first record that the model fails at.
        """
        if self._last is not None:
            seen, view = self._last
            if np.array_equal(seen, points):
                return view
            if (place := _place(points, seen)) is not None:
                some = torch.from_numpy(place).to(view.labels.device)
                return view.at(some, points.tobytes() if shared else None)
        self.drop()
        if not shared:
            return self._view(points)
        self._last = points, self._shared(points)
        return self._last[1]

    def drop(self) -> None:
        """Let go of the last view: its memory is wanted."""
        self._last = None

    def _shared(self, points: Indices) -> View:
        given = self.known.at(self.runner, self.records, points)
        before = written(given.inputs)
        view = self._view(points, given)
        if written(given.inputs) != before:
            self.known.forget(points)
            return self._view(points)
        return view

    def _view(self, points: Indices, given: Given | None = None) -> View:
        """What metrics see of the model at points (P,), of the inputs that are given if any."""
        wanted = torch.from_numpy(points)
        allow_tf32(False)

        def run(some: Tensor) -> Trace:
            if given is not None and some is wanted:
                return trace(self.model, given.inputs, self.plan, given.known)
            return trace(self.model, self.runner.inputs(self.records, some), self.plan)

        labels = self.records.labels[wanted].to(self.runner.device)
        told = torch.zeros_like(labels, dtype=torch.bool)
        return View(asked("the model", run, wanted), labels, told)


def _by_class(records: Records, points: Indices) -> Indices:
    """Order of points (P,) by their classes."""
    return np.argsort(records.labels.numpy()[points], kind="stable")


def _place(points: Indices, among: Indices) -> Indices | None:
    """Where points are among others; None if any is not."""
    order = np.argsort(among)
    near = np.searchsorted(among, points, sorter=order).clip(max=len(among) - 1)
    place: Indices = order[near]
    return place if np.array_equal(among[place], points) else None
