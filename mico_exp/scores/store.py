"""Score columns on disk: one small file for each model and metric, found by content.

A column's key is the hash of all that its scores hang on (`identity.ScoreIdentity`): the model's
files, its network, the data set, the metric, the code that runs models. Change one of them, and
exactly the columns concerned are computed anew; the mere existence of a file means nothing. A file
holds the records that the model was asked at and their scores, so that new challenge points are
added without redoing the old.
"""

import io
import logging
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mico_exp.common.arrays import Floats, Indices
from mico_exp.common.atomic import write_bytes
from mico_exp.common.errors import first_line
from mico_exp.scores.vitals import Vitals

log = logging.getLogger(__name__)
DAMAGED = (  # whatever numpy and zipfile make of flipped bits
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
KEY_IN_NAME = 16  # hexadecimal digits of the key in a file's name; the file holds all of it


@dataclass(frozen=True)
class Address:
    """Where a column lies: ``digits/digits_inf``, ``train``, ``model_7``, ``loss`` and its key."""

    scenario: str
    phase: str
    model: str
    metric: str
    key: str


@dataclass(frozen=True, eq=False)
class Column:
    """Scores (K,) of one metric under one model at the records `points` (K,), ascending."""

    points: Indices
    scores: Floats

    def lacks(self, points: Indices) -> Indices:
        """Those of `points`, which ascend, that are not in the column."""
        if not len(self.points):
            return points
        if np.array_equal(points, self.points):
            return points[:0]
        return points[~self.holds(points)]

    def holds(self, points: Indices) -> NDArray[np.bool_]:
        """True where the column has the point; shape of `points`."""
        if not len(self.points):
            return np.zeros(points.shape, dtype=bool)
        place = np.searchsorted(self.points, points).clip(max=len(self.points) - 1)
        found: NDArray[np.bool_] = self.points[place] == points
        return found

    def at(self, points: Indices) -> Floats:
        """Scores at `points`, all of which must be in the column; same shape."""
        if np.array_equal(points, self.points):
            return self.scores
        found: Floats = self.scores[np.searchsorted(self.points, points)]
        return found

    def forgotten(self) -> "Column":
        """The same points without their scores, NaN."""
        return Column(self.points, np.full(self.scores.shape, np.nan))

    def merged(self, other: "Column") -> "Column":
        """Both columns together; they share no point."""
        if not len(self.points):
            return other
        points = np.concatenate([self.points, other.points])
        order = np.argsort(points)
        return Column(points[order], np.concatenate([self.scores, other.scores])[order])


@dataclass(frozen=True)
class StoredFile:
    """A file of the store, as its name tells."""

    path: Path
    scenario: str
    phase: str
    model: str
    metric: str
    size: int

    def damage(self) -> str | None:
        """Read all of it; what is wrong with it, or None."""
        try:
            key, _ = _read(self.path)
        except DAMAGED as error:
            return first_line(error)
        short = self.path.stem.rpartition("-")[2]
        return None if key[:KEY_IN_NAME] == short else f"its key is {key[:KEY_IN_NAME]}"


EMPTY = Column(np.empty(0, dtype=np.int64), np.empty(0))


class ScoreStore:
    """The columns under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, address: Address) -> Path:
        """File of a column."""
        place = f"{address.scenario}/{address.phase}/{address.model}"
        return self.folder / f"{place}/{address.metric}-{address.key[:KEY_IN_NAME]}.npz"

    def fingerprints(self, scenario: str) -> Path:
        """Where the fingerprints of a scenario's files are remembered."""
        return self.folder / scenario / "fingerprints.json"

    def lock(self, scenario: str) -> Path:
        """Lock that whoever extracts a scenario holds."""
        return self.folder / scenario / ".lock"

    def vitals(self, scenario: str, key: str) -> Path:
        """File of the vitals of a scenario's models."""
        return self.folder / scenario / f"vitals_{key[:KEY_IN_NAME]}.npz"

    def read(self, address: Address) -> Column:
        """Read a column; an empty one if it is not there or its file is damaged."""
        path = self.path(address)
        try:
            key, column = _read(path)
            return column if key == address.key else EMPTY
        except FileNotFoundError:
            pass
        except DAMAGED as error:
            log.warning("%s is damaged and will be computed anew: %s", path, error)
        return EMPTY

    def files(self, scenario: str = "") -> Iterator[StoredFile]:
        """Every file of the store, or of one scenario, ``digits/digits_inf``."""
        for path in sorted((self.folder / scenario).rglob("*-*.npz")):
            *place, phase, model, name = path.relative_to(self.folder).parts
            metric = name.rpartition("-")[0]
            yield StoredFile(path, "/".join(place), phase, model, metric, path.stat().st_size)

    def write(self, address: Address, column: Column) -> None:
        """Write a column in one piece. The zip's checksums tell a torn file when it is read."""
        buffer = io.BytesIO()
        points = column.points.astype(np.uint32)
        np.savez(buffer, key=np.array(address.key), points=points, scores=column.scores)
        write_bytes(self.path(address), buffer.getbuffer(), durable=False)


def _read(path: Path) -> tuple[str, Column]:
    """Key and column of a file, all of whose checksums are verified."""
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        column = Column(file["points"].astype(np.int64), file["scores"])
        if column.points.shape != column.scores.shape or column.points.ndim != 1:
            raise ValueError(f"{column.points.shape} points, {column.scores.shape} scores")
        return str(file["key"]), column


def read_vitals(path: Path, phases: Sequence[str]) -> Vitals | None:
    """Read vitals; None if they are not there or the file is damaged."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            parts = [
                {phase: file[f"{name}_{phase}"] for phase in phases} for name in ("logit", "right")
            ]
            return Vitals(*parts)
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        log.warning("%s is damaged and will be made anew: %s", path, error)
        return None


def write_vitals(path: Path, found: Vitals) -> None:
    """Write vitals in one piece."""
    buffer = io.BytesIO()
    arrays = {
        f"{name}_{phase}": rows
        for name, part in (("logit", found.logit), ("right", found.right))
        for phase, rows in part.items()
    }
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getbuffer(), durable=False)
