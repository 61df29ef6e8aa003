"""Models × points × metrics to score columns: only what is needed, only what is missing.

The train models are asked at the unique challenge points of all phases, each dev and final
model at its own. One pass through a model computes all metrics that are asked for.

Axes: M models taken at once, P points, C classes, S train models, U unique points, T targets.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mico_exp.atomic import exclusive
from mico_exp.challenge import ChallengePoints, Indices, ModelFolder, Scenario
from mico_exp.datasets import Inputs, Records
from mico_exp.errors import InputError, MetricError
from mico_exp.fingerprints import FileFingerprints, definition, digest
from mico_exp.models import (
    Architecture,
    Stacked,
    can_stack,
    load_state,
    model_files,
    not_finite,
    stack,
    weights_file,
)
from mico_exp.store import Address, Column, Floats, ScoreStore

log = logging.getLogger(__name__)
Metric = Callable[[Tensor, Tensor], Tensor]
MODELS_AT_ONCE = 50
POINTS_AT_ONCE = 256  # × 50 MLPs × 128 hidden units × 4 bytes = 7 MB a layer, within the cache


@dataclass(frozen=True, eq=False)
class Scores:
    """One metric on one scenario.

    shadow: (S, U) under every train model at every unique challenge point.
    own: phase → (T, P) under each target model at its own challenge points.
    """

    shadow: Floats
    own: dict[str, Floats]

    @property
    def nan_models(self) -> int:
        """How many models of any phase have scores that are not finite."""
        return sum(int((~np.isfinite(rows)).any(axis=1).sum()) for rows in self.own.values())


@dataclass(frozen=True)
class Task:
    """One model of a phase, the points it is needed at, and where its columns lie by metric."""

    folder: ModelFolder
    points: Indices
    addresses: dict[str, Address]


class Extraction:
    """Reads a scenario's scores from the store, and computes what is not there.

    Args:
        scenario: the models.
        points: their challenge points.
        records: the data set.
        architecture: of the models.
        store: where columns are kept.
        device: where models run, as `torch.device` names it.
        allow_nan: go on where models have weights or scores that are not finite. Their scores
            are NaN then, and calibration leaves them out.
    """

    def __init__(
        self,
        scenario: Scenario,
        points: ChallengePoints,
        records: Records,
        architecture: Architecture,
        store: ScoreStore,
        device: str = "cpu",
        *,
        allow_nan: bool = False,
    ) -> None:
        self.scenario, self.points, self.records = scenario, points, records
        self.architecture, self.store, self.device = architecture, store, open_device(device)
        self.allow_nan = allow_nan
        self.name = scenario.path

    def read(self, metric_name: str, metric: Metric) -> Scores | None:
        """Read one metric's scores; None if any is missing.

        Raises:
            InputError: scores are not finite, and `allow_nan` is off.
        """
        own: dict[str, list[Floats]] = {phase: [] for phase in self.points.of_phase}
        shadow: list[Floats] = []
        for phase, task in self._tasks({metric_name: metric}):
            column = self.store.read(task.addresses[metric_name])
            if len(column.lacks(task.points)):
                return None
            if not self.allow_nan and not np.isfinite(column.scores).all():
                raise self._not_finite(task, metric_name, column.scores)
            targets = self.points.of_phase[phase]
            own[phase].append(column.at(targets[len(own[phase])]))
            if phase == "train":
                shadow.append(column.at(self.points.unique))
        return Scores(np.stack(shadow), {phase: np.stack(rows) for phase, rows in own.items()})

    def compute(self, metrics: Mapping[str, Metric]) -> int:
        """Compute what is missing of the metrics' columns, and keep it; says for how many models.

        Every model is checked before the first is run. Finished models stay finished if this is
        interrupted. Of two processes one computes, and the other waits and finds nothing missing.

        Raises:
            InputError: a model cannot be read or does not fit, or is not finite and `allow_nan`
                is off.
        """
        with exclusive(self.store.lock(self.name), f"extracting {self.name}"):
            missing = [
                (task, lacking)
                for _, task in self._tasks(metrics)
                if len(lacking := self._lacking(task))
            ]
            self._check_models([task.folder for task, _ in missing])
            total = len(missing)
            title = f"Extracting {self.name} on {self.device}"
            with tqdm(
                total=total, desc=title, unit="model", disable=None if total else True
            ) as bar:
                for some in self._alike(missing):
                    self._compute_some(some, metrics)
                    bar.update(len(some))
            return total

    def _check_models(self, folders: Sequence[ModelFolder]) -> None:
        """Read every model once, before long work, so that a broken one is found now."""
        sick = {}
        for folder in tqdm(
            folders, desc="Checking models", unit="model", leave=False, disable=None
        ):
            state = load_state(
                weights_file(folder.path), self.architecture.make(folder.path), mapped=True
            )
            if bad := not_finite(state):
                sick[folder.path] = f"{bad} of {sum(t.numel() for t in state.values())}"
        if sick and not self.allow_nan:
            path, share = next(iter(sick.items()))
            raise InputError(
                f"{len(sick)} of {len(folders)} models have weights that are not finite, the first "
                f"{path} ({share} weights). `compute.allow_nan=true` goes on without them."
            )
        for path, share in sick.items():
            log.warning("%s: %s weights are not finite; its scores count for nothing", path, share)

    def _tasks(self, metrics: Mapping[str, Metric]) -> Iterator[tuple[str, Task]]:
        files = FileFingerprints(self.store.fingerprints(self.name))
        common = (self.architecture.key, self.records.fingerprint)
        definitions = {name: definition(metric) for name, metric in metrics.items()}
        with files:
            for phase, targets in self.points.of_phase.items():
                for folder, own in zip(self.scenario.phases[phase], targets, strict=True):
                    content = digest(*(files.of(path) for path in model_files(folder.path)))
                    place = (self.name, phase, folder.path.name)
                    addresses = {
                        name: Address(*place, name, digest(content, *common, defined))
                        for name, defined in definitions.items()
                    }
                    needed = self.points.unique if phase == "train" else np.sort(own)
                    yield phase, Task(folder, needed, addresses)

    def _lacking(self, task: Task) -> Indices:
        """Points of a task that any of its columns lacks."""
        columns = map(self.store.read, task.addresses.values())
        return np.unique(np.concatenate([column.lacks(task.points) for column in columns]))

    def _alike(
        self, missing: Sequence[tuple[Task, Indices]]
    ) -> Iterator[list[tuple[Task, Indices]]]:
        """Cut into runs of models that lack equally many points, and so can be stacked."""
        for _, run in groupby(missing, key=lambda pair: len(pair[1])):
            alike = list(run)
            stackable = can_stack(self.architecture.make(alike[0][0].folder.path))
            size = MODELS_AT_ONCE if stackable else 1
            for start in range(0, len(alike), size):
                yield alike[start : start + size]

    def _compute_some(
        self, some: Sequence[tuple[Task, Indices]], metrics: Mapping[str, Metric]
    ) -> None:
        module = self.architecture.make(some[0][0].folder.path).to(self.device)
        states = [
            {name: tensor.to(self.device) for name, tensor in state.items()}
            for state in (load_state(weights_file(task.folder.path), module) for task, _ in some)
        ]
        points = np.stack([lacking for _, lacking in some])
        scores = evaluate(stack(module, states), self.records, points, metrics, self.device)
        for i, (task, lacking) in enumerate(some):
            for name, address in task.addresses.items():
                values = scores[name][i]
                if not self.allow_nan and not np.isfinite(values).all():
                    raise self._not_finite(task, name, values)
                known = self.store.read(address)
                new = np.isin(lacking, known.points, invert=True)
                self.store.write(address, known.merged(Column(lacking[new], values[new])))

    @staticmethod
    def _not_finite(task: Task, metric_name: str, values: Floats) -> MetricError:
        return MetricError(
            f"{task.folder.path}: metric `{metric_name}` is not finite at "
            f"{(~np.isfinite(values)).sum()} of {len(values)} points. Has the training diverged? "
            "`compute.allow_nan=true` goes on without."
        )


def progress(title: str, total: int) -> "tqdm[Any]":
    """A bar that counts models, silent where there is none or no terminal."""
    return tqdm(total=total, desc=title, unit="model", disable=None if total else True)


def open_device(name: str) -> torch.device:
    """Find a device by its name, ``cpu`` or ``cuda:1``.

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"`compute.device`: {name} cannot be used here: {reason}") from error
    # Full float32: the 10-bit mantissas of TF32, cuDNN's default, move logits by about 1e-3.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Move model inputs to a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _score(name: str, metric: Metric, logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    try:
        values = metric(logits.clone(), labels)  # its own copy, should it work in place
    except Exception as error:
        raise MetricError(f"metric `{name}` fails: {type(error).__name__}: {error}") from error
    if values.shape != logits.shape[:-1]:
        raise MetricError(
            f"metric `{name}` must give shape {tuple(logits.shape[:-1])} for logits "
            f"{tuple(logits.shape)}, got {tuple(values.shape)}."
        )
    return values.double().cpu().numpy()


@torch.inference_mode()
def evaluate(
    models: Stacked,
    records: Records,
    points: Indices,
    metrics: Mapping[str, Metric],
    device: torch.device,
) -> dict[str, NDArray[np.float64]]:
    """Compute metrics of M models at points (M, P); each metric's scores are (M, P) float64."""
    scores = {name: np.empty(points.shape) for name in metrics}
    shared = bool((points == points[0]).all())
    order = records.order(points[0]) if shared else np.arange(points.shape[1])
    for start in range(0, len(order), POINTS_AT_ONCE):
        some = order[start : start + POINTS_AT_ONCE]
        wanted = torch.from_numpy(points[0, some] if shared else points[:, some])
        labels = records.labels[wanted].to(device)
        logits = models(to_device(records.inputs(wanted), device), own=not shared)
        for name, metric in metrics.items():
            scores[name][:, some] = _score(name, metric, logits, labels)
    return scores
