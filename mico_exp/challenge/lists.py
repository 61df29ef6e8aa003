"""Membership by lists: who trained on what, where no seeds tell it.

Beside or in place of its three seeds a model's folder may hold

- ``members.npy`` or ``members.csv``: the records that it was trained on, as indices or, in an
  array, as a mask over all records. In a dev or final model's folder it tells the records beside
  the challenge points alone; of these the truth lies apart, as for everybody.
- ``challenge.npy`` or ``challenge.csv``: indices of the records that it is asked about, in the
  order of its predictions. One in the scenario's folder holds for all models that have none.
  Without either a train model is asked about every record.

``train/keep.npy`` (M, N) tells the members of a whole pool at once; row i is that of the i-th
model in the order of their numbers. A reference model, in ``shadow/``, tells its members in the
same ways, and is asked about nothing of its own.

Axes: M models of a pool, N records of the data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mico_exp.challenge.npy import read_npy
from mico_exp.challenge.phases import SUBMITTED
from mico_exp.challenge.protocol import Split
from mico_exp.common import require
from mico_exp.common.arrays import Indices, Mask
from mico_exp.common.errors import InputError, first_line, printable
from mico_exp.common.fingerprints import Status

MEMBERS, CHALLENGE, KEEP = "members", "challenge", "keep.npy"
SUFFIXES = (".npy", ".csv")
KEPT_LISTS = 4  # of challenge points, which models share


@dataclass(frozen=True)
class List:
    """A file with record indices or a mask, as it was found."""

    path: Path
    status: Status

    @classmethod
    def at(cls, path: Path) -> "List | None":
        """The file at a path; None if there is none."""
        return cls(path, Status.of(path)) if require.file(path).exists() else None

    @classmethod
    def named(cls, folder: Path, name: str) -> "List | None":
        """The file of a name, whichever its suffix; None if there is none.

        Raises:
            InputError: there are both.
        """
        found = [one for suffix in SUFFIXES if (one := cls.at(folder / f"{name}{suffix}"))]
        if len(found) > 1:
            names = " and ".join(one.path.name for one in found)
            raise InputError(f"{folder} must hold one list of {name}, got {names}.")
        return found[0] if found else None


@dataclass(frozen=True)
class Lists:
    """What is listed of one model.

    members, challenge: its lists; None where there is none. keep: its pool's mask. row: the
    model's place in that. secret: a dev or final model, whose challenge points are not told.
    asked: challenge points of a reference model, in place of what is listed.
    """

    members: List | None
    challenge: List | None
    keep: List | None
    row: int
    secret: bool
    asked: tuple[int, ...] | None = None

    @classmethod
    def of(cls, folder: Path, row: int) -> "Lists | None":
        """Look for the lists of a model's folder ``SCENARIO/PHASE/model_K``; None without any.

        Args:
            folder: of the model.
            row: its place among the models of its phase.

        Raises:
            InputError: a list is there as two files.
        """
        phase = folder.parent
        members, keep = List.named(folder, MEMBERS), List.at(phase / KEEP)
        shared = List.named(phase.parent, CHALLENGE)
        challenge = List.named(folder, CHALLENGE) or shared
        if members is None and keep is None and challenge is None:
            return None
        return cls(members, challenge, keep, row, phase.name in SUBMITTED)

    @property
    def tells_members(self) -> bool:
        """Whether any list says which records the model was trained on."""
        return self.members is not None or self.keep is not None

    def files(self) -> Iterator[Path]:
        """All files that tell something of the model."""
        for one in (self.members, self.challenge, self.keep):
            if one is not None:
                yield one.path

    def length(self, records: int) -> int:
        """How many challenge points there are."""
        if self.asked is not None:
            return len(self.asked)
        return records if self.challenge is None else len(read_points(self.challenge, records))

    def points(self, records: int) -> Indices:
        """(P,) challenge points in their order; the same array for all models that share them.

        Raises:
            InputError: the list cannot be read, repeats a record or names one that is not there.
        """
        if self.asked is not None:
            return _array(self.asked)
        return _every(records) if self.challenge is None else read_points(self.challenge, records)

    def members_of(self, records: int) -> Mask:
        """(N,) True where the model was trained on the record, as far as lists tell.

        Raises:
            InputError: a list cannot be read, names a record that is not there or one twice, or
                a list and the pool's mask disagree.
        """
        if self.members is None:
            assert self.keep is not None
            return _row(self.keep.path, self.row)
        found = read_members(self.members.path, records)
        if self.keep is not None:
            kept = _row(self.keep.path, self.row)
            if differ := np.count_nonzero(found != kept):
                raise InputError(
                    f"{self.members.path} disagrees with row {self.row} of {self.keep.path} at "
                    f"{differ} records."
                )
        return found

    def split(self, records: int, challenge: Indices | None = None) -> Split:
        """Index sets as far as they are told.

        Args:
            records: how many there are.
            challenge: points that seeds tell; None for those that are listed.

        Raises:
            InputError: a list is not what it must be, or that of a dev or final model tells the
                membership of its challenge points.
        """
        points = self.points(records) if challenge is None else challenge
        if not self.tells_members:
            return Split(points, None, None, None, None)
        mask, others = self.members_of(records), np.ones(records, dtype=bool)
        inside, others[points] = mask[points], False
        training, evaluation = np.flatnonzero(mask & others), np.flatnonzero(~mask & others)
        if not self.secret:
            return Split(points, points[inside], points[~inside], training, evaluation)
        if inside.any():
            raise InputError(
                f"{next(self.files())} must tell nothing of the model's challenge points, got "
                f"{np.count_nonzero(inside)} of {len(points)}: attacks read this folder. Their "
                "truth belongs to truth/ under `paths.data`, as docs/own_models.md has it."
            )
        return Split(points, None, None, training, evaluation)


@lru_cache(maxsize=KEPT_LISTS)
def _every(records: int) -> Indices:
    return _fixed(np.arange(records))


@lru_cache(maxsize=KEPT_LISTS)
def _array(points: tuple[int, ...]) -> Indices:
    return _fixed(np.array(points, dtype=np.int64))


@lru_cache(maxsize=KEPT_LISTS)
def read_points(file: List, records: int) -> Indices:
    """Read challenge points (P,); what was read last is kept, for all models that share them.

    Raises:
        InputError: as `read_indices`, or it is empty.
    """
    found = read_indices(file.path, records)
    if not len(found):
        raise InputError(f"{file.path} must name at least one challenge point, got none.")
    return _fixed(found)


def _fixed(found: Indices) -> Indices:
    found.flags.writeable = False  # models share it
    return found


def read_members(path: Path, records: int) -> Mask:
    """Read a list of members or a mask over records: (N,) True for a member.

    Raises:
        InputError: as `read_indices`, or a mask is not of one value for every record.
    """
    array = read_npy(path) if path.suffix == ".npy" else None
    if array is not None and array.dtype == np.bool_:
        if array.shape != (records,):
            raise InputError(
                f"{path}: a mask must have one value for each of {records} records, got shape "
                f"{array.shape}."
            )
        return np.array(array)
    mask = np.zeros(records, dtype=bool)
    mask[read_indices(path, records)] = True
    return mask


def check_keep(phase: Path, models: int, records: int) -> None:
    """Check that a pool's mask has a row for each of its models, if there is one.

    Raises:
        InputError: it has not, has not a column for each record, or cannot be read.
    """
    if not (path := phase / KEEP).exists():
        return
    keep = read_npy(path)
    if keep.ndim != 2 or keep.dtype != np.bool_:
        raise InputError(
            f"{path} must be a mask (models, records) of bool, got {keep.dtype} of shape "
            f"{keep.shape}."
        )
    if len(keep) != models:
        raise InputError(
            f"{path} must have a row for each of {models} models in {phase}, got {len(keep)} rows."
        )
    if keep.shape[1] != records:
        raise InputError(
            f"{path} must have a row for each model and a column for each of {records} records, "
            f"got shape {keep.shape}."
        )


def _row(path: Path, row: int) -> Mask:
    """A model's row of a pool's mask, which `check_keep` has looked at."""
    return np.array(read_npy(path)[row])


def read_indices(path: Path, records: int) -> Indices:
    """Read record indices (n,) from an array or from lines of text, in their order.

    Raises:
        InputError: it cannot be read, or an index is none, is out of range or is there twice.
    """
    found = _of_array(path) if path.suffix == ".npy" else _of_lines(path)
    if len(wrong := found[(found < 0) | (found >= records)]):
        raise InputError(
            f"{path}: indices must be in [0, {records - 1}], since there are {records} records, "
            f"got {wrong[0]}."
        )
    counts = np.bincount(found, minlength=records)
    if (counts > 1).any():
        raise InputError(
            f"{path}: every record must be there once, got {counts.argmax()} "
            f"{counts.max()} times (and {np.count_nonzero(counts > 1) - 1} more)."
        )
    return found


def _of_array(path: Path) -> Indices:
    array = read_npy(path)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{path} must hold record indices, whole numbers (n,), got {array.dtype} of shape "
            f"{array.shape}."
        )
    return array.astype(np.int64)


def _of_lines(path: Path) -> Indices:
    """Read one index a line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {first_line(error)}.") from error
    for number, line in enumerate(lines, start=1):
        if not (line.isascii() and line.removeprefix("-").isdigit() and len(line) < 19):
            raise InputError(
                f"{path}: each line must be a record's index, got {printable(line, 40)!r} as value "
                f"{number}."
            )
    return np.array([int(line) for line in lines], dtype=np.int64)
