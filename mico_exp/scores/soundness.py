"""Whether records are what they must be: looked at before long work.

Data sets are often a user's own. Labels that no logit stands for give figures that are wrong and
look right. What is wrong is told in one line, with the first record that it is wrong of.

Axes: N records of the data set, B records asked at once, P records of a trial.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mico_exp.challenge.records import Inputs, Records
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError, first_line
from mico_exp.models.architectures import bare
from mico_exp.scores.inference import asked

CHUNK_BYTES = 8 << 20  # of inputs that are looked at together
CHUNK_RECORDS = 1024
TRIED = 8  # records of a trial
SAME = 1e-4  # what is asked again may differ by so much of the largest value


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
            form = form_of(parts_of(records, indices[:1]))
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
    parts_of(records, np.arange(1))

    def fails(record: int) -> bool:
        try:
            parts_of(records, np.array([record]))
        except InputError:
            return True
        return False

    if fails(count - 1):
        first = bisect_left(range(count), True, key=fails)
        try:
            parts_of(records, np.array([first]))
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


def parts_of(records: Records, indices: Indices) -> dict[str, Tensor]:
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


def form_of(parts: Mapping[str, Tensor]) -> str:
    """Say what a record's inputs are, which is the same for all records: ``float32 (64,)``.

    The parts of a dictionary may be as long as the longest record of a batch.
    """
    return ", ".join(
        f"{name} {_name(part.dtype)}" if name else f"{_name(part.dtype)} {tuple(part.shape[1:])}"
        for name, part in parts.items()
    )


def _chunks(records: Records, indices: Indices) -> Iterator[Indices]:
    """Cut records so that the inputs of some of them take little memory."""
    one = sum(part.nbytes for part in parts_of(records, indices[:1]).values())
    count = min(CHUNK_RECORDS, max(1, CHUNK_BYTES // max(one, 1)))
    for start in range(0, len(indices), count):
        yield indices[start : start + count]


def _check_inputs(records: Records, few: Tensor, form: str, room: Room) -> None:
    """Check the inputs of records (B,), all of which are to have the form of the first."""
    indices = few.numpy()
    parts = parts_of(records, indices)
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
    if form_of(parts) != form:
        raise InputError(
            f"inputs must be {form}, as those of the first record, got {form_of(parts)} for record "
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
    once, again = parts_of(records, some), parts_of(records, some)
    for row, record in enumerate(some):
        alone = parts_of(records, some[row : row + 1])
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
