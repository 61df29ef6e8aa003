"""What a user knows of records beside: a CSV file with a column ``record`` and any others."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError, first_line, printable

KEY, UNKNOWN = "record", "–"
MOST_VALUES = 12  # of numbers; more are put into quarters


class Metadata:
    """Columns of records, by their indices.

    Raises:
        InputError: the file cannot be read, has no other column, or names a record twice.
    """

    def __init__(self, path: Path) -> None:
        try:
            found = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (OSError, ValueError, pd.errors.ParserError) as error:
            raise InputError(f"{path}: cannot be read as CSV: {first_line(error)}") from error
        if KEY not in found or found.shape[1] < 2:
            there = printable(", ".join(map(str, found.columns)))
            raise InputError(f"{path}: must have a column {KEY} and others, got {there}.")
        keys = found.pop(KEY).str.strip()
        if not (whole := keys.str.fullmatch(r"[0-9]{1,18}")).all():
            raise InputError(
                f"{path}: a record must be its index, a whole number from 0 on, got "
                f"{printable(keys[~whole].iloc[0], 40)!r}."
            )
        if (twice := keys.astype(int).duplicated()).any():
            raise InputError(f"{path}: record {keys[twice].iloc[0]} must be there once.")
        self.path, self.table = path, found.set_index(keys.astype(int))

    def groups(self, records: Indices) -> Mapping[str, NDArray[Any]]:
        """Of each column a name for each of the records (R,), ``–`` where nothing is told.

        Numbers of many values are put into quarters of the records.

        Raises:
            InputError: none of the records is in the file.
        """
        if not self.table.index.isin(records).any():
            raise InputError(
                f"{self.path}: none of its records is among those that models were asked about, "
                f"as {records[0]}."
            )
        rows = self.table.reindex(records)
        return {printable(str(name), 40): _names(rows[name]) for name in rows}


def _names(column: "pd.Series[str]") -> NDArray[Any]:
    told = (column.notna() & (column != "")).to_numpy()
    texts = column.where(told, UNKNOWN).astype(str).to_numpy(dtype=object)
    numbers = pd.to_numeric(column[told], errors="coerce").to_numpy(dtype=float)
    if np.isfinite(numbers).all() and len(np.unique(numbers)) > MOST_VALUES:
        ends = np.unique(np.quantile(numbers, np.linspace(0, 1, 5)))
        parts = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(ends)]
        texts[told] = np.array(parts, dtype=object)[np.searchsorted(ends[1:-1], numbers)]
    return np.array([printable(one, 60) for one in texts])
