"""Whether records, and what models give for them, are what they must be: asked before long work.

Data sets and networks are often a user's own. Labels that no logit stands for, or probabilities
where logits belong, give figures that are wrong and look right. What is wrong is told in one
line, with the first record that it is wrong of.

Axes: N records of the data set, B records asked at once, P records of a trial, C classes.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mico_exp.challenge.records import Inputs, Records
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError, first_line
from mico_exp.models.architectures import Alone, Architecture, Stacked, bare, can_stack
from mico_exp.models.batching import out_of_memory
from mico_exp.models.weights import not_finite
from mico_exp.scores.inference import ModelRunner, Processor, Shard, asked, runner_on

CHUNK_BYTES = 8 << 20  # of inputs that are looked at together
CHUNK_RECORDS = 1024
TRIED = 8  # records of a trial
SAME = 1e-4  # what is asked again may differ by so much of the largest value
# And so much beside other records, where sums take another order: fifty times what padding moves a
# RoBERTa of base size by. Where padding or other records are seen, it is a hundred times as much.
BESIDE_OTHERS = 1e-3
ROUNDING = 1e-3  # of probabilities that add up to 1


class Room(NamedTuple):
    """What a network's embeddings hold: token ids below `tokens`, sentences of `positions`."""

    tokens: int | None = None
    positions: int | None = None

    @classmethod
    def of(cls, network: nn.Module) -> "Room":
        """Ask a network of `transformers`; others do not tell."""
        inner = bare(network)
        try:
            tokens = inner.get_input_embeddings().num_embeddings  # type: ignore[operator]
        except (AttributeError, NotImplementedError):
            return cls()
        rooms = [
            # RoBERTa and its kin count positions on from the padding's.
            table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
            for name, table in inner.named_modules()
            if name.endswith("position_embeddings") and isinstance(table, nn.Embedding)
        ]
        return cls(tokens, min(rooms, default=None))


def check_records(
    records: Records, indices: Indices | None = None, network: nn.Module | None = None
) -> None:
    """Check a data set, and the inputs of those of its records that will be asked for.

    Args:
        records: whatever is to serve as a data set.
        indices: (B,) ascending. Without, only what is quick whatever the data set.
        network: that will be asked, for what its embeddings hold.

    Raises:
        InputError: names the first record that is not what it must be.
    """
    try:
        _check_labels(records)
        _check_count(records)
        _check_fingerprint(records)
        if indices is not None and len(indices):
            room = Room() if network is None else Room.of(network)
            form = _form(_parts(records, indices[:1]))
            for some in _chunks(records, indices):
                _asked(lambda few: _check_inputs(records, few, form, room), some)
            _check_same(records, handful(records, indices))
    except InputError as error:
        raise InputError(f"`dataset.records`: {error}") from error


def handful(records: Records, indices: Indices) -> Indices:
    """Some of the records (P,), ascending: the largest, the smallest, and others spread evenly."""
    sizes = records.sizes(indices)
    spread = np.linspace(0, len(indices) - 1, TRIED - 2).astype(np.int64)
    return indices[np.unique([sizes.argmin(), sizes.argmax(), *spread])]


def trial_of(records: Records, indices: Indices, folders: Sequence[Path]) -> Shard:
    """Some of the records as the points of models, for a `Trial` of the first."""
    some = handful(records, indices)
    return Shard(tuple(folders), np.broadcast_to(some, (len(folders), len(some))))


def _told(records: Records, name: str) -> Any:
    """What a data set has by a name."""
    try:
        return getattr(records, name)
    except Exception as error:  # a property of a user's may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"a data set must have `{name}`, got {reason}") from error


def _what(value: Any) -> str:
    """Say what a value is: ``a tensor (1797,) of float32``."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {_name(value.dtype)} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array {value.shape} of {value.dtype}"
    return f"a {type(value).__name__}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_labels(records: Records) -> None:
    labels = _told(records, "labels")
    sound = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.ndim == 1
    if not sound or labels.device.type != "cpu":
        raise InputError(
            "`labels` must be a tensor (N,) of int64 on cpu, the number of each record's class, "
            f"got {_what(labels)} from record 0 on."
        )
    if not len(labels):
        raise InputError("`labels` must have one for each record, got none for record 0.")
    if (labels < 0).any():
        record = int((labels < 0).nonzero()[0])
        raise InputError(f"labels must be at least 0, got {labels[record]} for record {record}.")


def _check_count(records: Records) -> None:
    """Compare how many labels there are with how many inputs."""
    count = len(records.labels)
    _told(records, "inputs")
    _told(records, "sizes")
    _parts(records, np.arange(1))

    def fails(record: int) -> bool:
        try:
            _parts(records, np.array([record]))
        except InputError:
            return True
        return False

    if fails(count - 1):
        first = bisect_left(range(count), True, key=fails)
        try:
            _parts(records, np.array([first]))
        except InputError as error:
            raise InputError(f"there are {count} `labels`, but {error}") from error
    if not fails(count):
        raise InputError(
            f"there are {count} `labels`, but `inputs` has a record {count}, where it must fail."
        )


def _check_fingerprint(records: Records) -> None:
    found = _told(records, "fingerprint")
    if not isinstance(found, str) or not found:
        raise InputError(f"`fingerprint` must be a text, a hash of all records, got {found!r:.40}.")


def _asked(ask: Callable[[Tensor], Any], indices: Indices) -> Any:
    return asked("`inputs`", ask, torch.tensor(indices))


def _parts(records: Records, indices: Indices) -> dict[str, Tensor]:
    """Inputs of records (B,) by name; a tensor by itself has none."""
    found: Inputs = _asked(records.inputs, indices)
    parts = dict(found) if isinstance(found, Mapping) else {"": found}
    for tensor in parts.values():
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
            raise InputError(
                "`inputs` must give a tensor on cpu, or a dictionary of such, got "
                f"{_what(tensor)} for record {indices[0]}."
            )
        if tensor.shape[:1] != indices.shape:
            raise InputError(
                f"`inputs` must give a row for each index, got {_what(tensor)} for {len(indices)} "
                f"from record {indices[0]} on."
            )
    return parts


def _form(parts: Mapping[str, Tensor]) -> str:
    """Say what a record's inputs are, which is the same for all records: ``float32 (64,)``.

    The parts of a dictionary may be as long as the longest record of a batch.
    """
    return ", ".join(
        f"{name} {_name(part.dtype)}" if name else f"{_name(part.dtype)} {tuple(part.shape[1:])}"
        for name, part in parts.items()
    )


def _chunks(records: Records, indices: Indices) -> Iterator[Indices]:
    """Cut records so that the inputs of some of them take little memory."""
    one = sum(part.nbytes for part in _parts(records, indices[:1]).values())
    count = min(CHUNK_RECORDS, max(1, CHUNK_BYTES // max(one, 1)))
    for start in range(0, len(indices), count):
        yield indices[start : start + count]


def _check_inputs(records: Records, few: Tensor, form: str, room: Room) -> None:
    """Check the inputs of records (B,), all of which are to have the form of the first."""
    indices = few.numpy()
    parts = _parts(records, indices)
    for name, part in parts.items():
        if part.is_complex() or (part.is_floating_point() and part.dtype != torch.float32):
            raise InputError(
                f"inputs that are no whole numbers must be float32, got {_name(part.dtype)} for "
                f"record {indices[0]}."
            )
        if part.is_floating_point() and not part.sum().isfinite():  # twice as quick as looking
            _refuse(~part.isfinite(), part, indices, "inputs must be finite")
        if name == "input_ids" and room.tokens is not None:
            rule = f"token ids must be 0 … {room.tokens - 1}, as the network's vocabulary has it"
            _refuse((part < 0) | (part >= room.tokens), part, indices, rule)
    if _form(parts) != form:
        raise InputError(
            f"inputs must be {form}, as those of the first record, got {_form(parts)} for record "
            f"{indices[0]}."
        )
    _check_sizes(records, indices, room.positions)


def _refuse(wrong: Tensor, part: Tensor, indices: Indices, rule: str) -> None:
    """Refuse inputs (B, …) where any is wrong; names the first."""
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise InputError(f"{rule}, got {part[place].item()} in record {indices[place[0]]}.")


def _check_sizes(records: Records, indices: Indices, most: int | None) -> None:
    """Check sizes (B,) of records, which are of `most` tokens if there are positions for more."""
    sizes = asked("`sizes`", lambda few: records.sizes(few.numpy()), torch.tensor(indices))
    if not isinstance(sizes, np.ndarray) or sizes.shape != indices.shape or sizes.dtype.kind != "i":
        raise InputError(
            "`sizes` must give a NumPy array of a whole number for each index, got "
            f"{_what(sizes)} for {len(indices)} from record {indices[0]} on."
        )
    if (sizes < 1).any():
        at = (sizes < 1).argmax()
        raise InputError(f"`sizes` must be at least 1, got {sizes[at]} for record {indices[at]}.")
    if most is not None and (sizes > most).any():
        at = (sizes > most).argmax()
        raise InputError(
            f"sentences must be of {most} tokens at most, for which the network has positions, got "
            f"{sizes[at]} for record {indices[at]}."
        )


def _check_same(records: Records, some: Indices) -> None:
    """Ask for records (P,) again, and alone: `inputs` must be a function of the index."""
    some = np.append(some[::-1], some[-1:])  # in any order, and more than once
    once, again = _parts(records, some), _parts(records, some)
    for row, record in enumerate(some):
        alone = _parts(records, some[row : row + 1])
        for name in once:
            asked_so = [once[name][row], again[name][row]]
            asked_so += [alone[name][0]] if not name else []  # a dictionary's may be padded
            if not all(_close(asked_so[0], other) for other in asked_so[1:]):
                raise InputError(
                    "`inputs` must give the same for a record whenever and beside whichever others "
                    f"it is asked, got another for record {record}."
                )


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=SAME, atol=SAME)


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
            form = _form(_parts(self.records, points[:1]))
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
