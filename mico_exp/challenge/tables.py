"""Tables as files have them, and records that are their rows.

Axes: N records, R rows of one file, counted from 0 on after a header, F features.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import csv, parquet

from mico_exp.challenge.labels import WHOLE, numbered
from mico_exp.challenge.records import Features, Records
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError, first_line, printable

PLACE = "dataset.records"
ELSE = f", or be in `{PLACE}.categorical`"
FORMATS = (".csv", ".tsv", ".parquet", ".jsonl")


class Table:
    """Columns of a file, or of several with the same columns, one after another.

    A CSV file has quotes where a field needs them, a TSV file has none; both have a header. In
    them an empty field is missing, and no other is.

    Args:
        file: or files, ``.csv``, ``.tsv``, ``.parquet`` or ``.jsonl`` (a JSON object a line).
        texts: columns of CSV and TSV that are text even where they look like numbers or dates.
        place: of the option that names the file.

    Raises:
        InputError: names the file that cannot be read, or whose columns are not those of the first.
    """

    def __init__(
        self, file: str | Sequence[str], texts: Sequence[str] = (), place: str = PLACE
    ) -> None:
        named = [file] if isinstance(file, (str, Path)) else file
        if not isinstance(named, Sequence) or not named:
            raise InputError(f"`{place}.file` must name a file or several, got {file!r:.80}.")
        paths = [require.existing_file(f"{place}.file", one) for one in named]
        self.parts = [(path, _read(path, texts)) for path in paths]
        self.columns = list(self.parts[0][1].column_names)
        self.where = " and ".join(map(str, paths))
        for path, part in self.parts:
            if odd := set(part.column_names) ^ set(self.columns):
                raise InputError(
                    f"{path}: must have the columns of {paths[0]}, but only one of the two has "
                    f"{printable(min(odd))!r}."
                )

    def named(self, option: str, told: Any) -> list[str]:
        """Columns that an option lists, or the one that it names; a name may be a number.

        Raises:
            InputError: one is not there.
        """
        several = isinstance(told, Sequence | Mapping) and not isinstance(told, str)
        names = [str(one) for one in (told if several else [told])]
        for name in names:
            if name not in self.columns:
                there = printable(", ".join(self.columns))
                raise InputError(
                    f"`{PLACE}.{option}` must name columns of {self.where}, {there}; got {name!r}."
                )
        return names

    def values(self, name: str) -> list[Any]:
        """Values (N,) of a column, none of which may be missing."""
        return [
            value for path, part in self.parts for value in _whole(path, part, name).to_pylist()
        ]

    def numbers(self, name: str, other: str = "", *, lacking: bool = False) -> Floats:
        """Finite numbers (N,) of a column; of truth values 0 and 1.

        Args:
            name: of the column.
            other: what would do as well, as messages have it.
            lacking: a row may have none, and is given that of another.

        Raises:
            InputError: names the first row that has none.
        """
        parts = [
            (path, _filled(path, part, name) if lacking else part) for path, part in self.parts
        ]
        return np.concatenate([_numbers(path, part, name, other) for path, part in parts])

    def lacks(self, name: str) -> Mask:
        """Rows (N,) that have no value in a column."""
        return np.concatenate([pc.is_null(part.column(name)).to_numpy() for _, part in self.parts])

    def coded(self, name: str) -> tuple[list[str], Indices]:
        """Different values of a column as text, and which of them each row (N,) has.

        They ascend, as numbers where all are whole numbers from 0 on.

        Raises:
            InputError: a value is missing, or is no text and nothing that can be written as one.
        """
        chunks = [chunk for path, part in self.parts for chunk in _texts(path, part, name).chunks]
        encoded = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode()
        found = encoded.dictionary.to_pylist()
        whole = all(map(WHOLE.fullmatch, found))
        order = sorted(range(len(found)), key=lambda i: int(found[i]) if whole else found[i])
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        return [found[i] for i in order], places[encoded.indices.to_numpy()]


def _read(path: Path, texts: Sequence[str]) -> pa.Table:
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: must be a table, {', '.join(FORMATS)}, got {path.suffix!r}.")
    try:
        table = _parsed(path, texts)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table: {first_line(error)}") from error
    names = table.column_names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: has more than one column {printable(twice)!r}.")
    if not len(table):
        raise InputError(f"{path}: has no rows.")
    return table


def _parsed(path: Path, texts: Sequence[str]) -> pa.Table:
    if path.suffix == ".parquet":
        return parquet.ParquetFile(path).read()
    if path.suffix == ".jsonl":
        return _parsed_lines(path)
    quoted = path.suffix == ".csv"
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(
            delimiter="," if quoted else "\t",
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
        ),
        convert_options=csv.ConvertOptions(
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["True", "true"],
            false_values=["False", "false"],
            column_types=dict.fromkeys(texts, pa.string()),
        ),
    )


def _parsed_lines(path: Path) -> pa.Table:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict) or set(rows[-1]) != set(rows[0]):
                    keys = f"an object with the keys {', '.join(rows[0])}" if number > 1 else "{…}"
                    raise ValueError(f"line {number} must be {keys}, got {line.strip()!r:.80}")
    return pa.Table.from_pylist(rows)


def _whole(path: Path, part: pa.Table, name: str) -> pa.ChunkedArray:
    """Column (R,) of one file, none of whose values is missing."""
    column = part.column(name)
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise InputError(f"{path}: column {printable(name)!r} is missing a value in row {row}.")
    return column


def _filled(path: Path, part: pa.Table, name: str) -> pa.Table:
    """A column of one file with the first value that is there in place of those that are not."""
    column = part.column(name)
    if column.null_count == len(column):
        raise InputError(f"{path}: column {printable(name)!r} must hold values, got none.")
    return pa.table({name: column.fill_null(column.drop_null()[0])})


def _texts(path: Path, part: pa.Table, name: str) -> pa.ChunkedArray:
    """Values (R,) of a column of one file as text."""
    column = _whole(path, part, name)
    try:
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise InputError(
            f"{path}: column {printable(name)!r} must hold names or numbers, got {column.type}."
        ) from error


def _numbers(path: Path, part: pa.Table, name: str, other: str) -> Floats:
    """Numbers (R,) of a column of one file."""
    column = _whole(path, part, name)
    if not _is_number(column.type):
        values = column.to_pylist()
        row = next((row for row, value in enumerate(values) if not _reads(value)), 0)
        raise InputError(
            f"{path}: column {printable(name)!r} must hold numbers{other}, got "
            f"{values[row]!r:.80} in row {row}."
        )
    plain = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
    numbers: Floats = plain.cast(pa.float64(), safe=False).to_numpy()
    if len(wrong := np.flatnonzero(~(np.abs(numbers) <= np.finfo(np.float32).max))):
        raise InputError(
            f"{path}: column {printable(name)!r} must hold finite numbers of float32, got "
            f"{numbers[wrong[0]]} in row {wrong[0]}."
        )
    return numbers


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def _reads(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def from_file(
    file: str | Sequence[str],
    label: str,
    features: Sequence[str] | None = None,
    without: Sequence[str] = (),
    categorical: Sequence[str] | Mapping[str, Sequence[Any] | None] = (),
    standardise: str | Mapping[str, Sequence[float]] | None = None,
    classes: Sequence[Any] | None = None,
) -> Records:
    """Load records from the rows of a table.

    Args:
        file: or files, one after another, as `Table` takes them.
        label: column of the labels.
        features: columns that models see, in this order; None for all others in the file's order.
        without: columns that are left out of those.
        categorical: columns that become a feature for each category, 1 where the row is of it:
            names, whose categories are those that are found, ascending as text; or categories by
            name, in their order.
        standardise: None leaves numbers as they are; ``records`` takes away the mean of all records
            and divides by their standard deviation, column by column (of a constant by 1);
            [mean, deviation] by column does it with these, and to no other column.
        classes: label values in the order of their numbers; None where they are numbers from 0 on.

    Raises:
        InputError: names the file, column and row that are not what they must be.
    """
    known = _categories(categorical)
    table = Table(file, [*known, str(label)])
    table.named("categorical", known)
    (label,) = table.named("label", str(label))
    others = [name for name in table.columns if name != label]
    chosen = others if features is None else table.named("features", features)
    left_out = table.named("without", without)
    chosen = [name for name in chosen if name not in left_out]
    if not chosen or label in chosen:
        raise InputError(f"`{PLACE}.features` must name columns beside the label, got {chosen!r}.")
    given = _standard(standardise, [name for name in chosen if name not in known])
    as_it_is = (0.0, 1.0)
    columns = [
        _one_hot(table, name, known[name])
        if name in known
        else _scaled(table.numbers(name, ELSE), given.get(name, as_it_is))
        for name in chosen
    ]
    labels = numbered(table.values(label), classes, table.where)
    return Features(torch.from_numpy(np.hstack(columns).astype(np.float32)), labels)


def _categories(told: Any) -> dict[str, list[str] | None]:
    """Categories of each column as text, None for those that are found."""
    if isinstance(told, str) or not isinstance(told, (Sequence, Mapping)):
        raise InputError(f"`{PLACE}.categorical` must be a list or a mapping, got {told!r:.80}.")
    if not isinstance(told, Mapping):
        told = dict.fromkeys(told)
    for name, some in told.items():
        several = isinstance(some, Sequence) and not isinstance(some, str)
        if some is not None and not (several and len(set(map(str, some))) == len(some) > 0):
            raise InputError(
                f"`{PLACE}.categorical.{name}` must list different categories, got {some!r:.80}."
            )
    return {str(name): some and [str(one) for one in some] for name, some in told.items()}


def _one_hot(table: Table, name: str, known: list[str] | None) -> Floats:
    """Features (N, categories) of a categorical column."""
    values = [str(value) for value in table.values(name)]
    order = {one: number for number, one in enumerate(known or sorted(set(values)))}
    for record, value in enumerate(values):
        if value not in order:
            raise InputError(
                f"{table.where}: column {printable(name)!r} must be one of "
                f"`{PLACE}.categorical.{name}`, got {value!r:.80} in record {record}."
            )
    return np.eye(len(order))[[order[value] for value in values]]


def _standard(told: Any, numeric: Sequence[str]) -> dict[str, tuple[float, float] | None]:
    """Mean and deviation of each column that is to be standardised; None for the records' own."""
    if told is None or told == "records":
        return dict.fromkeys(numeric) if told else {}
    if not isinstance(told, Mapping) or set(map(str, told)) - set(numeric):
        raise InputError(
            f"`{PLACE}.standardise` must be records, or [mean, deviation] by column of numbers, "
            f"{printable(', '.join(numeric))}; got {told!r:.80}."
        )
    for name, pair in told.items():
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise InputError(
                f"`{PLACE}.standardise.{name}` must be [mean, deviation], got {pair!r:.80}."
            )
        require.number(f"{PLACE}.standardise.{name}", pair[0])
        require.above(f"{PLACE}.standardise.{name}", pair[1], 0)
    return {str(name): (float(pair[0]), float(pair[1])) for name, pair in told.items()}


def _scaled(numbers: Floats, by: tuple[float, float] | None) -> Floats:
    """Feature (N, 1) of a column of numbers, less a mean and over a deviation."""
    constant = numbers.min() == numbers.max()  # whose deviation is a rounding
    mean, deviation = (numbers.mean(), 1.0 if constant else numbers.std()) if by is None else by
    return ((numbers - mean) / deviation)[:, None]
