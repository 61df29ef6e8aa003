"""Models × points × metrics to score columns: only what is needed, only what is missing.

The train models are asked at the unique challenge points of all phases, each dev and final
model at its own. One pass through a model computes all metrics that are asked for.

Axes: M models taken at once, P points, C classes, S train models, U unique points, T targets.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from mico_exp.atomic import exclusive
from mico_exp.challenge import ChallengePoints, Indices, ModelFolder, Scenario
from mico_exp.datasets import Records
from mico_exp.errors import InputError
from mico_exp.fingerprints import FileFingerprints, definition, digest
from mico_exp.models import Stacked, load_state, stack
from mico_exp.store import Address, Column, Floats, ScoreStore

log = logging.getLogger(__name__)
Metric = Callable[[Tensor, Tensor], Tensor]
MODELS_AT_ONCE = 50
POINTS_AT_ONCE = 1024  # × 50 models × 128 hidden units × 4 bytes = 26 MB a layer


@dataclass(frozen=True, eq=False)
class Scores:
    """One metric on one scenario.

    shadow: (S, U) under every train model at every unique challenge point.
    own: phase → (T, P) under each target model at its own challenge points.
    """

    shadow: Floats
    own: dict[str, Floats]


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
        model: an instance of the architecture.
        store: where columns are kept.
        device: where models run, as `torch.device` names it.
    """

    def __init__(
        self,
        scenario: Scenario,
        points: ChallengePoints,
        records: Records,
        model: nn.Module,
        store: ScoreStore,
        device: str = "cpu",
    ) -> None:
        self.scenario, self.points, self.records = scenario, points, records
        self.model, self.store, self.device = model, store, torch.device(device)
        self.name = scenario.path
        self._model_key = digest(definition(type(model)), repr(model), records.fingerprint)

    def read(self, metric_name: str, metric: Metric) -> Scores | None:
        """Read one metric's scores; None if any is missing."""
        own: dict[str, list[Floats]] = {phase: [] for phase in self.points.of_phase}
        shadow: list[Floats] = []
        for phase, task in self._tasks({metric_name: metric}):
            column = self.store.read(task.addresses[metric_name])
            if len(column.lacks(task.points)):
                return None
            targets = self.points.of_phase[phase]
            own[phase].append(column.at(targets[len(own[phase])]))
            if phase == "train":
                shadow.append(column.at(self.points.unique))
        return Scores(np.stack(shadow), {phase: np.stack(rows) for phase, rows in own.items()})

    def compute(self, metrics: Mapping[str, Metric]) -> None:
        """Compute what is missing of the metrics' columns, and keep it.

        Finished models stay finished if this is interrupted. Of two processes one computes,
        and the other waits and then finds nothing missing.
        """
        with exclusive(self.store.lock(self.name), f"extracting {self.name}"):
            missing = [
                (task, lacking)
                for _, task in self._tasks(metrics)
                if len(lacking := self._lacking(task))
            ]
            if not missing:
                return
            total = len(missing)
            with tqdm(
                total=total, desc=f"Extracting {self.name}", unit="model", disable=None
            ) as bar:
                for some in _alike(missing):
                    self._compute_some(some, metrics)
                    bar.update(len(some))

    def _tasks(self, metrics: Mapping[str, Metric]) -> Iterator[tuple[str, Task]]:
        files = FileFingerprints(self.store.fingerprints(self.name))
        definitions = {name: definition(metric) for name, metric in metrics.items()}
        for phase, targets in self.points.of_phase.items():
            for folder, own in zip(self.scenario.phases[phase], targets, strict=True):
                content = files.of(folder.path / "model.pt")
                addresses = {
                    name: Address(
                        self.name,
                        phase,
                        folder.path.name,
                        name,
                        digest(content, self._model_key, defined),
                    )
                    for name, defined in definitions.items()
                }
                needed = self.points.unique if phase == "train" else np.sort(own)
                yield phase, Task(folder, needed, addresses)
        files.save()

    def _lacking(self, task: Task) -> Indices:
        """Points of a task that any of its columns lacks."""
        columns = map(self.store.read, task.addresses.values())
        return np.unique(np.concatenate([column.lacks(task.points) for column in columns]))

    def _compute_some(
        self, some: Sequence[tuple[Task, Indices]], metrics: Mapping[str, Metric]
    ) -> None:
        states = [load_state(task.folder.path / "model.pt", self.model) for task, _ in some]
        on_device = [{k: v.to(self.device) for k, v in state.items()} for state in states]
        models = stack(self.model.to(self.device), on_device)
        points = np.stack([lacking for _, lacking in some])
        scores = evaluate(models, self.records, points, metrics, self.device)
        for i, (task, lacking) in enumerate(some):
            for name, address in task.addresses.items():
                values = scores[name][i]
                if not np.isfinite(values).all():
                    raise InputError(
                        f"{task.folder.path}: metric `{name}` is not finite at "
                        f"{(~np.isfinite(values)).sum()} of {len(values)} points. "
                        "Has the training diverged?"
                    )
                known = self.store.read(address)
                new = np.isin(lacking, known.points, invert=True)
                self.store.write(address, known.merged(Column(lacking[new], values[new])))


def _alike(
    missing: Sequence[tuple[Task, Indices]],
) -> Iterator[list[tuple[Task, Indices]]]:
    """Cut into runs of models that lack equally many points, and so can be stacked."""
    for _, run in groupby(missing, key=lambda pair: len(pair[1])):
        alike = list(run)
        for start in range(0, len(alike), MODELS_AT_ONCE):
            yield alike[start : start + MODELS_AT_ONCE]


@torch.inference_mode()
def evaluate(
    models: Stacked,
    records: Records,
    points: Indices,
    metrics: Mapping[str, Metric],
    device: torch.device,
) -> dict[str, NDArray[np.float64]]:
    """Compute metrics of M models at points (M, P); each metric's scores are (M, P) float64."""
    parts: dict[str, list[Tensor]] = {name: [] for name in metrics}
    shared = bool((points == points[0]).all())
    wanted = torch.from_numpy(points[0] if shared else points)
    for some in wanted.split(POINTS_AT_ONCE, dim=-1):
        inputs, labels = records.inputs[some].to(device), records.labels[some].to(device)
        logits = models(inputs, own=not shared)
        for name, metric in metrics.items():
            parts[name].append(metric(logits, labels).double().cpu())
    return {name: torch.cat(columns, dim=1).numpy() for name, columns in parts.items()}
