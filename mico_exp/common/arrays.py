"""Arrays as annotations have them; shapes stand in docstrings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


def padded(rows: Sequence[NDArray[Any]], fill: Any) -> NDArray[Any]:
    """Rows (P,) of several lengths as one array (T, longest), with `fill` beyond each one's end.

    Rows that are one and the same array are not repeated in memory.
    """
    if all(row is rows[0] for row in rows):
        return np.broadcast_to(rows[0], (len(rows), *rows[0].shape))
    found = np.full((len(rows), max(map(len, rows))), fill, dtype=rows[0].dtype)
    for place, row in zip(found, rows, strict=True):
        place[: len(row)] = row
    return found
