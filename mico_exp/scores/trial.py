"""Whether what models give is what it must be: one is asked at a few records, before long work.

Networks are often a user's own. Probabilities where logits belong, or answers that hang on what
else is asked, give figures that are wrong and look right. What is wrong is told in one line, with
the first record that it is wrong of.

Axes: P records of a trial, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mico_exp.challenge.records import Records
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import Alone, Architecture, Stacked, can_stack
from mico_exp.models.batching import out_of_memory
from mico_exp.models.weights import not_finite
from mico_exp.scores.inference import ModelRunner, Processor, Shard, runner_on
from mico_exp.scores.soundness import SAME, check_records, form_of, handful, parts_of

ROUNDING = 1e-3  # of probabilities that add up to 1
# Answers beside other records may differ by so much of the largest value, where sums take another
# order: fifty times what padding moves a RoBERTa of base size by. Where padding or other records
# are seen, it is a hundred times as much.
BESIDE_OTHERS = 1e-3


@dataclass(frozen=True, eq=False)
class Trial:
    """A first look at what models give, wherever they will run; called with a shard of them.

    allow_nan: let logits through that are not finite.
    """

    architecture: Architecture
    records: Records
    processor: Processor
    allow_nan: bool = False

    def __call__(self, shard: Shard) -> str:
        """Ask the first model whose weights are finite at its points.

        Returns how it answers otherwise where records are asked together than alone, which is no
        fault where they are asked one by one; nothing where it does not.

        Raises:
            InputError: names the first record for which it gives what it must not.
        """
        runner = runner_on(replace(self.processor, precision="float32"))
        for folder, points in zip(shard.folders, shard.points, strict=True):
            network = runner.load_one(self.architecture, folder)
            if not not_finite(network.state_dict()):
                one = _Model(runner, Alone(network), self.records, str(folder))
                otherwise = one.check(points, allow_nan=self.allow_nan)
                if can_stack(network):
                    stacked = runner.load(self.architecture, [folder])
                    one.check_stacked(stacked, points)
                return otherwise
        return ""


def trial_of(records: Records, indices: Indices, folders: Sequence[Path]) -> Shard:
    """Some of the records as the points of models, for a `Trial` of the first."""
    some = handful(records, indices)
    return Shard(tuple(folders), np.broadcast_to(some, (len(folders), len(some))))


def check_training(network: nn.Module, records: Records) -> None:
    """Check a data set that networks like one are to be trained on.

    Raises:
        InputError: names the first record that is not what it must be.
    """
    every = np.arange(len(records.labels))
    check_records(records, every)
    points = handful(records, every)
    models = Alone(network.eval())
    _Model(runner_on(Processor("cpu")), models, records, "`dataset.model`").check(points)


def are_finite(architecture: Architecture, folder: Path, records: Records, record: int) -> bool:
    """Tell whether a model's logits of a record are finite, whose score is not."""
    runner = runner_on(Processor("cpu"))
    one = _Model(runner, Alone(runner.load_one(architecture, folder)), records, str(folder))
    return bool(one.logits(np.array([record])).isfinite().all())


@dataclass(frozen=True, eq=False)
class _Model:
    """The first of some models, asked for logits (P, C) in float32; `name` is for messages."""

    runner: ModelRunner
    models: Stacked
    records: Records
    name: str

    def logits(self, points: Indices) -> Tensor:
        """Whatever it gives for records (P,)."""
        return self.runner.logits(self.models, self.records, torch.tensor(points))[0][0]

    def check(self, points: Indices, *, allow_nan: bool = False) -> str:
        """Check what it gives for records (P,), or for fewer where memory runs out.

        Says how it answers otherwise where they are asked together than alone.
        """
        try:
            logits, failure = self._together(points)
            _check_classes(logits, self.records.labels)
            if not allow_nan:
                _check_finite(logits, points)
            _check_no_probabilities(logits, points)
            _check_equal(logits, self._together(points)[0], points, SAME, "whenever it is asked")
            alone = self._alone(points)
            moved = failure or _difference(logits, alone, points, BESIDE_OTHERS)
            if moved and len(points) > 1:
                _check_apart(alone)
            return moved and f"{self.name}: answers otherwise beside other records, {moved}"
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(points) > 1:  # that one alone does not fit is said by the pass
                return self.check(points[: len(points) // 2], allow_nan=allow_nan)
            return ""

    def _together(self, points: Indices) -> tuple[Tensor, str]:
        """Logits (P, C) of records, together; else alone, with what fails of them together."""
        try:
            return self._shaped(points), ""
        except InputError as error:
            try:
                return self._alone(points), str(error)
            except InputError:
                raise error from None

    def _alone(self, points: Indices) -> Tensor:
        """Logits (P, C) of records, each asked by itself."""
        return torch.cat([self._shaped(points[[row]]) for row in range(len(points))])

    def check_stacked(self, models: Stacked, points: Indices) -> None:
        """Compare log-probabilities with those of the same model where many are run as one."""
        other = replace(self, models=models)
        try:
            found, again = (one._shaped(points).log_softmax(dim=1) for one in (self, other))
            _check_equal(found, again, points, BESIDE_OTHERS, "by `forward` as by `stack`")
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error

    def _shaped(self, points: Indices) -> Tensor:
        try:
            logits = self.logits(points)
        except InputError as error:
            form = form_of(parts_of(self.records, points[:1]))
            raise InputError(f"{error} (inputs of record {points[0]}: {form})") from error
        _check_shape(logits, points)
        return logits


def _check_shape(logits: Tensor, points: Indices) -> None:
    shape, count = tuple(logits.shape), len(points)
    if shape in ((count,), (count, 1)):
        raise InputError(
            "a network must give a logit for each of two classes or more, got one for record "
            f"{points[0]}. For one output z before a sigmoid give (0, z), which is the same; "
            "mico_exp.models.interpreted.Interpreted makes it so."
        )
    if len(shape) != 2 or shape[0] != count:
        raise InputError(
            f"a network must give logits (P, C), here ({count}, C), got {shape} from record "
            f"{points[0]} on."
        )


def _check_classes(logits: Tensor, labels: Tensor) -> None:
    classes = logits.shape[1]
    if (labels >= classes).any():
        record = int((labels >= classes).nonzero()[0])
        raise InputError(
            f"labels must be 0 … {classes - 1}, as there are {classes} logits, got "
            f"{labels[record]} for record {record}."
        )


def _check_finite(logits: Tensor, points: Indices) -> None:
    if not logits.isfinite().all():
        row, of_class = (~logits.isfinite()).nonzero()[0].tolist()
        raise InputError(
            f"logits must be finite, got {logits[row, of_class]} for class {of_class} of record "
            f"{points[row]}. A class that is left out can have a low number, as -1e4."
        )


def _check_no_probabilities(logits: Tensor, points: Indices) -> None:
    inside = bool(((logits >= 0) & (logits <= 1)).all())
    if inside and bool(((logits.sum(dim=1) - 1).abs() < ROUNDING).all()):
        raise InputError(
            "a network must give logits, got probabilities that add up to 1 from record "
            f"{points[0]} on. Leave its softmax out, take log_softmax, or say that they are by "
            "`outputs: probabilities` of mico_exp.models.interpreted.Interpreted."
        )


def _check_apart(alone: Tensor) -> None:
    """Refuse logits (P, C) of records, each asked by itself, that are the same of all of them."""
    if torch.allclose(alone, alone[:1].expand_as(alone), rtol=SAME, atol=SAME):
        raise InputError(
            "a network must give something for a record by itself, got the same for every record "
            "that is asked alone: are its logits statistics of a batch?"
        )


def _check_equal(logits: Tensor, other: Tensor, points: Indices, part: float, when: str) -> None:
    """Refuse other logits (P, C) but for rounding, by that part of what logits usually are."""
    if told := _difference(logits, other, points, part):
        raise InputError(f"a network must give the same for a record, {when}, got {told}.")


def _difference(logits: Tensor, other: Tensor, points: Indices, part: float) -> str:
    """Say where logits (P, C) are first others, by more than that part of what they usually are."""
    room = part * (logits.abs() + logits.abs().median()) + 1e-6
    wrong = (other - logits).abs() > room
    if not wrong.any():
        return ""
    row, of_class = wrong.nonzero()[0].tolist()
    return (
        f"{logits[row, of_class]:.4g} and then {other[row, of_class]:.4g} for class {of_class} of "
        f"record {points[row]}"
    )
