"""Score columns on disk: one small file for each model and metric, found by content.

A column's key is the hash of the model file, the model's code, the data set and the metric's
definition. Change one of them, and exactly the columns concerned are computed anew; the mere
existence of a file means nothing. A file holds the record indices that were evaluated and their
scores, so that new challenge points are added without redoing the old.
"""

import io
import logging
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mico_exp.atomic import write_bytes
from mico_exp.challenge import Indices

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
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
        """Those of `points` that are not in the column."""
        return np.setdiff1d(points, self.points)

    def at(self, points: Indices) -> Floats:
        """Scores at `points`, all of which must be in the column; same shape."""
        found: Floats = self.scores[np.searchsorted(self.points, points)]
        return found

    def merged(self, other: "Column") -> "Column":
        """Both columns together; they share no point."""
        points = np.concatenate([self.points, other.points])
        order = np.argsort(points)
        return Column(points[order], np.concatenate([self.scores, other.scores])[order])


EMPTY = Column(np.empty(0, dtype=np.int64), np.empty(0))


class ScoreStore:
    """The columns under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, address: Address) -> Path:
        """File of a column."""
        name = f"{address.metric}-{address.key[:KEY_IN_NAME]}.npz"
        return self.folder / address.scenario / address.phase / address.model / name

    def fingerprints(self, scenario: str) -> Path:
        """Where the fingerprints of a scenario's files are remembered."""
        return self.folder / scenario / "fingerprints.json"

    def lock(self, scenario: str) -> Path:
        """Lock that whoever extracts a scenario holds."""
        return self.folder / scenario / ".lock"

    def read(self, address: Address) -> Column:
        """Read a column; an empty one if it is not there or its file is damaged."""
        path = self.path(address)
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                if str(file["key"]) == address.key:
                    return Column(file["points"], file["scores"])
        except FileNotFoundError:
            pass
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            log.warning("%s is damaged and will be computed anew: %s", path, error)
        return EMPTY

    def write(self, address: Address, column: Column) -> None:
        """Write a column in one piece. The zip's checksums tell a torn file when it is read."""
        buffer = io.BytesIO()
        np.savez(buffer, key=np.array(address.key), points=column.points, scores=column.scores)
        write_bytes(self.path(address), buffer.getvalue(), durable=False)
