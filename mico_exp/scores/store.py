"""Score columns on disk, found by content: one file for each scenario and metric.

A column's key is the hash of all that its scores hang on (`identity.ScoreIdentity`): the model's
files, its network, the data set, the metric, the code that runs models. Change one of them, and
exactly the columns concerned are computed anew; the mere existence of a file means nothing. A
column has the records that the model was asked at and their scores, so that new challenge points
are added without redoing the old.

While models run, those that ran at once are written as a part, ``packs/loss-KEY.0000.npz``; after
the pass the parts and what was there become one file, ``packs/loss-KEY.npz``, which a cell reads
at once. A part counts until then, as does a file for each column, which is how stores used to be.
"""

import io
import json
import logging
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mico_exp.common.arrays import Floats, Indices
from mico_exp.common.atomic import write_bytes
from mico_exp.common.errors import InputError, first_line
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
KEY_IN_NAME = 16  # hexadecimal digits of a key in a file's name; the file holds all of it
PACKS = "packs"  # folder of a scenario


class Place(NamedTuple):
    """Whose column it is, and its key: ``train``, ``model_7``."""

    phase: str
    model: str
    key: str


@dataclass(frozen=True)
class Address:
    """Where a column lies: ``digits/digits_inf``, ``train``, ``model_7``, ``loss`` and its key.

    pack: key of what it shares with the columns of other models, and so of their file.
    """

    scenario: str
    phase: str
    model: str
    metric: str
    key: str
    pack: str

    @property
    def place(self) -> Place:
        """What it is found by within a file."""
        return Place(self.phase, self.model, self.key)


@dataclass(frozen=True, eq=False)
class Column:
    """Scores (K,) of one metric under one model at the records `points` (K,), ascending."""

    points: Indices
    scores: Floats

    def lacks(self, points: Indices) -> Indices:
        """Those of `points`, which ascend, that are not in the column."""
        if not len(self.points):
            return points
        if points is self.points or np.array_equal(points, self.points):
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
        """The column, and of another one the points that it lacks."""
        if not len(self.points):
            return other
        new = ~self.holds(other.points)
        if not new.any():
            return self
        points = np.concatenate([self.points, other.points[new]])
        order = np.argsort(points)
        return Column(points[order], np.concatenate([self.scores, other.scores[new]])[order])


Columns = dict[Place, Column]
EMPTY = Column(np.empty(0, dtype=np.int64), np.empty(0))


@dataclass(frozen=True)
class StoredFile:
    """A file of the store, as its name tells: a pack, a part, or a column by itself.

    alone: phase and model of a column by itself.
    """

    path: Path
    scenario: str
    metric: str
    size: int
    alone: tuple[str, str] | None

    def columns(self) -> Columns:
        """Read all of it.

        Raises:
            Exception: one of `DAMAGED`.
        """
        if self.alone is None:
            return _read_pack(self.path)
        key, column = _read(self.path)
        if key[:KEY_IN_NAME] != self.path.stem.rpartition("-")[2]:
            raise ValueError(f"its key is {key[:KEY_IN_NAME]}")
        return {Place(*self.alone, key): column}

    def models(self) -> list[tuple[str, str]]:
        """Phase and model of each of its columns, which are not read.

        Raises:
            Exception: one of `DAMAGED`.
        """
        if self.alone is not None:
            return [self.alone]
        with self.path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return [(phase, model) for phase, model, _ in json.loads(file["names"].tobytes())]

    def damage(self) -> str | None:
        """Read all of it; what is wrong with it, or None."""
        try:
            self.columns()
        except DAMAGED as error:
            return first_line(error)
        return None

    def keep(self, columns: Columns) -> int:
        """Let it hold these alone; says how large it then is. Without any it goes."""
        if not columns:
            self.path.unlink()
            return 0
        _write_pack(self.path, columns, durable=True)
        return self.path.stat().st_size


class ScoreStore:
    """The columns under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[Path, int] = {}  # parts of each pack

    def path(self, address: Address) -> Path:
        """File of a column by itself."""
        place = f"{address.scenario}/{address.phase}/{address.model}"
        return self.folder / f"{place}/{address.metric}-{address.key[:KEY_IN_NAME]}.npz"

    def pack_path(self, address: Address) -> Path:
        """File of all models' columns, once they are packed."""
        name = f"{address.metric}-{address.pack[:KEY_IN_NAME]}.npz"
        return self.folder / address.scenario / PACKS / name

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
        packed = self._packed(address).get(address.place, EMPTY)
        return packed.merged(self._alone(address))

    def read_all(self, addresses: Sequence[Address], wanted: Sequence[Indices]) -> list[Column]:
        """Read columns of one metric, of a pass; what lacks of the `wanted` points is not there."""
        if not addresses:
            return []
        packed = self._packed(addresses[0])
        found = []
        for address, points in zip(addresses, wanted, strict=True):
            column = packed.get(address.place, EMPTY)
            if len(column.lacks(points)):
                column = column.merged(self._alone(address))
            found.append(column)
        return found

    def write(self, columns: Mapping[Address, Column]) -> None:
        """Write columns of one metric in one piece, a part, to be packed with the others.

        Whoever does holds the lock.
        """
        whole = self.pack_path(next(iter(columns)))
        if whole not in self._written:
            numbers = [int(path.suffixes[-2][1:]) for path in _parts(whole)]
            self._written[whole] = max(numbers, default=-1)
        self._written[whole] += 1
        named = {address.place: column for address, column in columns.items()}
        _write_pack(whole.with_suffix(f".{self._written[whole]:04d}.npz"), named, durable=False)

    def pack(self, addresses: Sequence[Address]) -> None:
        """Make one file of the columns of one metric, and of those that their file has already.

        It appears whole or not at all, and what it is made of goes after that. Where it cannot be
        written the parts stay, which do as well.
        """
        whole = self.pack_path(addresses[0])
        parts = _parts(whole)
        alone = {address: self.path(address) for address in addresses}
        alone = {address: path for address, path in alone.items() if path.exists()}
        if not parts and not alone:
            return
        packed = self._packed(addresses[0])
        for address in alone:
            packed[address.place] = packed.get(address.place, EMPTY).merged(self._alone(address))
        try:
            _write_pack(whole, packed, durable=True)
        except InputError as error:
            log.warning("%s What is in its parts is not lost.", error)
            return
        self._written.pop(whole, None)
        for path in (*parts, *alone.values()):
            path.unlink(missing_ok=True)
        folders = {folder for path in alone.values() for folder in path.parents[:2]}
        for folder in sorted(folders, reverse=True):  # a model's before its phase's
            with suppress(OSError):  # there is something else in it
                folder.rmdir()

    def files(self, scenario: str = "") -> Iterator[StoredFile]:
        """Every file of the store, or of one scenario, ``digits/digits_inf``."""
        for path in sorted((self.folder / scenario).rglob("*-*.npz")):
            *place, phase, model, name = path.relative_to(self.folder).parts
            alone = None if model == PACKS else (phase, model)
            here = "/".join(place if alone else [*place, phase])
            metric = name.rpartition("-")[0]
            yield StoredFile(path, here, metric, path.stat().st_size, alone)

    def _packed(self, address: Address) -> Columns:
        """Columns of a metric's pack, and of parts that are not in it yet."""
        whole = self.pack_path(address)
        while True:
            parts, found = _parts(whole), _told(whole)
            try:
                for path in parts:
                    for place, column in _told(path, strict=True).items():
                        found[place] = found.get(place, EMPTY).merged(column)
            except FileNotFoundError:  # it has just been packed
                continue
            return found

    def _alone(self, address: Address) -> Column:
        """A column from a file by itself; an empty one if it is not there or damaged."""
        path = self.path(address)
        try:
            key, column = _read(path)
            return column if key == address.key else EMPTY
        except FileNotFoundError:
            pass
        except DAMAGED as error:
            log.warning("%s is damaged and will be computed anew: %s", path, error)
        return EMPTY


def _parts(whole: Path) -> list[Path]:
    """Parts that are still to be packed, the oldest first."""
    return sorted(whole.parent.glob(f"{escape(whole.stem)}.[0-9]*.npz"))


def _told(path: Path, *, strict: bool = False) -> Columns:
    """Columns of a pack or a part; none if it is damaged, or not there and not `strict`."""
    try:
        return _read_pack(path)
    except FileNotFoundError:
        if strict:
            raise
    except DAMAGED as error:
        log.warning("%s is damaged and will be computed anew: %s", path, error)
    return {}


def _read_pack(path: Path) -> Columns:
    """Columns of a pack, all of whose checksums are verified."""
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        names = json.loads(file["names"].tobytes())
        spans, scores = file["spans"].tolist(), file["scores"]
        points = file["points"].astype(np.int64)
    found: Columns = {}
    some: dict[int, Indices] = {}  # columns that share points share the array
    start = 0
    for (phase, model, key), (first, count) in zip(names, spans, strict=True):
        here = some.setdefault(first, points[first : first + count])
        values = scores[start : start + count]
        if not len(here) == len(values) == count:
            raise ValueError(f"{count} points, {len(here)} of them and {len(values)} scores there")
        found[Place(phase, model, key)] = Column(here, values)
        start += count
    return found


def _write_pack(path: Path, columns: Columns, *, durable: bool) -> None:
    """Write columns in one piece. The zip's checksums tell a torn file when it is read.

    names: phase, model and key of each column, as JSON. spans: (columns, 2) where its points begin
    and how many there are. points: those of all columns, once where neighbours share them. scores:
    of one column after another.
    """
    names = sorted(columns)
    points: list[Indices] = []
    spans: list[tuple[int, int]] = []
    first = 0
    for one in (columns[name].points for name in names):
        if not points or not (one is points[-1] or np.array_equal(one, points[-1])):
            first += len(points[-1]) if points else 0
            points.append(one)
        spans.append((first, len(one)))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.frombuffer(json.dumps(names).encode(), np.uint8),
        spans=np.array(spans, dtype=np.int64),
        points=np.concatenate(points).astype(np.uint32),
        scores=np.concatenate([columns[name].scores for name in names]),
    )
    write_bytes(path, buffer.getbuffer(), durable=durable)


def _read(path: Path) -> tuple[str, Column]:
    """Key and column of a file by itself, all of whose checksums are verified."""
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
