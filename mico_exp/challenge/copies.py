"""Arrays that are made of files once, and mapped from then on.

Axes: N records.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from mico_exp.challenge.arrays import PLACE, Hashes, opened
from mico_exp.common import require
from mico_exp.common.atomic import write_rows, write_text
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import stamp

log = logging.getLogger(__name__)


class Copied(NamedTuple):
    """Values (N, …) of records, their labels, and the hash of the values."""

    array: NDArray[Any]
    labels: list[int]
    content: str


class Copy:
    """Place of such an array, with a note of what it was made of.

    Args:
        store: folder that holds it, in ``records/``.
        name: of its file; tells apart what is made of the same folders.
        places: folders that it is made of.
    """

    def __init__(self, store: str, name: str, places: Sequence[Path]) -> None:
        place = require.folder(f"{PLACE}.store", store) / "records"
        self.file, self.note = place / f"{name}.npy", place / f"{name}.json"
        self.store, self.places = store, places

    def found(self) -> Copied | None:
        """What was made before, if nothing in the folders has changed since."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            if note["stamp"] != stamp(*self.places):
                return None
            if (content := self._content()) == note["content"]:
                return Copied(opened(self.file), note["labels"], content)
        except (OSError, ValueError, KeyError, TypeError, InputError):
            pass
        if self.note.exists():
            log.warning("%s is damaged and will be made anew", self.file)
        return None

    def make(self, rows: Iterable[NDArray[Any]], count: int, labels: list[int]) -> Copied:
        """Write rows (…) of so many records, and note what they were made of.

        Args:
            rows: of equal shape and type.
            count: how many.
            labels: theirs, which are there once all rows are.
        """
        before = stamp(*self.places)
        write_rows(self.file, rows, count)
        content = self._content()
        if before is not None and before == stamp(*self.places):
            note = {"stamp": before, "content": content, "labels": labels}
            write_text(self.note, json.dumps(note), durable=False)
        return Copied(opened(self.file), labels, content)

    def _content(self) -> str:
        hashes = Hashes(self.store)  # anew, for the file may be another by now
        content: str = json.loads(hashes.of(self.file))[""]
        hashes.save()
        return content
