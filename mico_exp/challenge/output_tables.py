"""Outputs of models in tables, joined by what models and records are called there.

`long` reads a row for each model and record, `wide` a row for each record. The order of rows and
columns means nothing: models and records ascend by name, as numbers where all names are.

Axes: M models, N records, C classes, R rows of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mico_exp.challenge.labels import few, number_of, order_of
from mico_exp.challenge.npy import as_mask, read_npy
from mico_exp.challenge.outputs import KINDS, OF_LABEL, Outputs
from mico_exp.challenge.tables import Table
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError, printable

PLACE = "dataset.outputs"


def long(
    file: str | Sequence[str],
    kind: str,
    values: str | Sequence[str] | None = None,
    model: str = "model",
    record: str = "record",
    member: str = "member",
    label: str | None = None,
    phase: str | None = None,
    classes: Sequence[Any] | None = None,
) -> Outputs:
    """Read a table with a row for each model and record.

    A train model must have a row for every record, a dev or final model is asked about those that
    it has rows for.

    Args:
        file: or files, one after another, as `Table` takes them.
        kind: of the values, one of `KINDS`.
        values: their column; None for that named as the kind. Of every class: a column of lists
            (parquet, JSON lines), all columns that begin with a text, ``p_*``, whose rest names
            the class, or a list of columns in the order of the classes.
        model: column of what models are called.
        record: column of what records are called.
        member: column that is true, or 1, where the model was trained on the record.
        label: column of the records' classes, which only values of every class need; None for
            ``label`` then.
        phase: column of the models' phases; None for ``phase`` if there is one, else all are train.
        classes: labels in the order of their numbers; None where they are numbers from 0 on.

    Raises:
        InputError: names the file, and the column, model or record that is not what it must be.
    """
    _check_kind(kind, KINDS)
    of_label = kind in OF_LABEL
    for name, told in (("label", label), ("classes", classes)):
        if of_label and told is not None:
            raise InputError(f"`{PLACE}.{name}` is for values of every class, got kind {kind}.")
    ids = [str(one) for one in (model, record, label or "label", phase or "phase")]
    table = Table(file, ids, PLACE)
    columns = {"model": ids[0], "record": ids[1], "member": str(member)}
    columns |= {} if of_label else {"label": ids[2]}
    columns |= {"phase": ids[3]} if phase is not None or ids[3] in table.columns else {}
    for option, name in columns.items():
        _check_has(table, option, [name])
    grid = Grid.of(table, columns["model"], columns["record"])
    numbers = order_of(classes, f"{PLACE}.classes") if classes is not None else None
    found = _values(table, kind, kind if values is None else values, numbers)
    phases = grid.phases(columns["phase"]) if "phase" in columns else ("train",) * len(grid.models)
    none = np.zeros(len(grid.records), dtype=np.int64)
    return Outputs(
        kind=kind,
        values=lambda row: found[grid.rows[row]],
        keep=grid.members(columns["member"]),
        labels=none if of_label else grid.labels(columns["label"], numbers),
        phases=phases,
        files=_files(table),
        models=tuple(grid.models),
        names=tuple(grid.records),
        lacking=grid.lacking(phases),
    )


@dataclass(frozen=True, eq=False)
class Grid:
    """Which row of a long table is of which model and record.

    models: M names. records: N names. rows: (M, N), −1 where there is none.
    """

    table: Table
    models: list[str]
    records: list[str]
    rows: Indices

    @classmethod
    def of(cls, table: Table, model: str, record: str) -> "Grid":
        """Find them by the columns of names.

        Raises:
            InputError: a model has a record twice.
        """
        (models, of_model), (records, of_record) = table.coded(model), table.coded(record)
        place = of_model * len(records) + of_record
        counts = np.bincount(place, minlength=len(models) * len(records))
        if (most := counts.max()) > 1:
            one, other = divmod(int(counts.argmax()), len(records))
            raise InputError(
                f"{table.where}: must have a row for each model and record, got {most} of "
                f"{_pair(models[one], records[other])}."
            )
        rows = np.full(len(counts), -1)
        rows[place] = np.arange(len(place))
        return cls(table, models, records, rows.reshape(len(models), len(records)))

    def members(self, column: str) -> Mask:
        """Membership (M, N); none where there is no row."""
        return np.asarray((self.rows >= 0) & _flags(self.table, column)[self.rows])

    def labels(self, column: str, numbers: dict[str, int] | None) -> Indices:
        """Classes (N,), in which all models must agree."""
        texts, codes = self.table.coded(column)
        of_pair = np.where(self.rows >= 0, codes[self.rows], -1)
        of_record = of_pair.max(axis=0)
        if len(wrong := np.argwhere((of_pair >= 0) & (of_pair != of_record))):
            model, record = wrong[0]
            other = self.models[of_pair[:, record].argmax()]
            raise InputError(
                f"{self.table.where}: a record must have one label, got "
                f"{printable(texts[of_pair[model, record]], 40)!r} with "
                f"{_pair(self.models[model], self.records[record])} and "
                f"{printable(texts[of_record[record]], 40)!r} with model {printable(other, 40)}."
            )
        classes = [number_of(text, numbers) for text in texts]
        for record, code in enumerate(of_record):
            if classes[code] is None:
                rule = "a whole number from 0 on, or be in `classes`"
                rule = rule if numbers is None else f"one of `{PLACE}.classes`, {few([*numbers])}"
                raise InputError(
                    f"{self.table.where}: label of record {printable(self.records[record], 40)} "
                    f"must be {rule}, got {printable(texts[code], 40)!r}."
                )
        return np.array(classes, dtype=np.int64)[of_record]

    def phases(self, column: str) -> tuple[str, ...]:
        """Phase of each model."""
        texts, codes = self.table.coded(column)
        of_pair = codes[self.rows]
        of_model = np.where(self.rows >= 0, of_pair, -1).max(axis=1)
        if len(wrong := np.argwhere((self.rows >= 0) & (of_pair != of_model[:, None]))):
            model, record = wrong[0]
            raise InputError(
                f"{self.table.where}: model {printable(self.models[model], 40)} must be of one "
                f"phase, got {texts[of_model[model]]} and {texts[of_pair[model, record]]}."
            )
        return tuple(texts[code] for code in of_model)

    def lacking(self, phases: Sequence[str]) -> dict[int, Indices]:
        """Records that dev and final models have no row for, by the place of the model.

        Raises:
            InputError: a train model has none for a record.
        """
        found = {}
        for model in np.flatnonzero((self.rows < 0).any(axis=1)):
            found[int(model)] = none = np.flatnonzero(self.rows[model] < 0)
            if phases[int(model)] == "train":
                pair = _pair(self.models[model], self.records[none[0]])
                raise InputError(
                    f"{self.table.where}: must have a row for every train model and record, got "
                    f"none of {pair} ({np.count_nonzero(self.rows < 0)} pairs have none)."
                )
        return found


def _pair(model: str, record: str) -> str:
    return f"model {printable(model, 40)} and record {printable(record, 40)}"


def _values(
    table: Table, kind: str, values: str | Sequence[str], numbers: dict[str, int] | None
) -> NDArray[Any]:
    """Values (R,), or (R, C) of every class."""
    if kind in OF_LABEL:
        _check_has(table, "values", [str(values)])
        return table.numbers(str(values))
    columns = _columns(table, values, numbers)
    if len(columns) == 1:
        found = _lists(table, columns[0])
    else:
        found = np.stack([table.numbers(name) for name in columns], axis=1)
    if numbers is not None and found.shape[1] != len(numbers):
        raise InputError(
            f"`{PLACE}.classes` must name as many classes as {table.where} has values of, "
            f"{found.shape[1]}, got {len(numbers)}."
        )
    return found


def _columns(
    table: Table, values: str | Sequence[str], numbers: dict[str, int] | None
) -> list[str]:
    """Columns of the classes in their order, or the one that has lists."""
    if not isinstance(values, str):
        listed = [str(one) for one in values]
        _check_has(table, "values", listed)
        _check_order(listed, numbers)
        return listed
    if not values.endswith("*"):
        _check_has(table, "values", [values])
        return [values]
    prefix = values[:-1]
    found = {one.removeprefix(prefix): one for one in table.columns if one.startswith(prefix)}
    expected = list(numbers) if numbers is not None else [str(i) for i in range(len(found))]
    if set(found) != set(expected) or len(found) < 2:
        there = few(list(found)) or "none"
        raise InputError(
            f"{table.where}: columns {printable(values)} must end in the classes, "
            f"{few(expected) if found else '0, 1, …'}, got {there}."
        )
    return [found[name] for name in expected]


def _check_order(listed: Sequence[str], numbers: dict[str, int] | None) -> None:
    """Compare columns that are listed with the classes, where their names end in them."""
    names = list(numbers) if numbers is not None else [str(i) for i in range(len(listed))]
    stems = {one.removesuffix(name) for one in listed for name in names if one.endswith(name)}
    for stem in stems:
        found = [one.removeprefix(stem) for one in listed]
        if set(found) == set(names) and found != names:
            raise InputError(
                f"`{PLACE}.values` must list columns in the order of the classes, {few(names)}, "
                f"got {few(listed)}."
            )


def _lists(table: Table, name: str) -> Floats:
    """Values (R, C) of a column of lists, all of one length."""
    parts: list[Floats] = []
    for path, part in table.parts:
        column = part.column(name)
        if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
            raise InputError(
                f"{path}: column {printable(name)!r} must hold lists of numbers, one for each "
                f"class, got {column.type}; or `{PLACE}.values` must list columns, or be p_*."
            )
        lengths = pc.list_value_length(column).to_numpy()
        length = lengths[0] if not parts else parts[0].shape[1]
        if len(wrong := np.flatnonzero(lengths != length)):
            raise InputError(
                f"{path}: column {printable(name)!r} must hold lists of one length, {length:g} as "
                f"the first, got {_length(lengths[wrong[0]])} in row {wrong[0]}."
            )
        flat = pc.list_flatten(column)
        try:
            parts.append(flat.cast(pa.float64()).to_numpy().reshape(len(column), int(length)))
        except (pa.ArrowException, ValueError) as error:
            raise InputError(
                f"{path}: column {printable(name)!r} must hold lists of numbers, got {column.type}."
            ) from error
    return np.concatenate(parts)


def _length(length: float) -> str:
    return "none" if np.isnan(length) else f"{length:g}"


def wide(
    file: str | Sequence[str],
    kind: str,
    members: str | None = None,
    suffix: str | None = None,
    record: str = "record",
    models: Sequence[str] | None = None,
    phases: Mapping[str, str] | None = None,
) -> Outputs:
    """Read a table with a row for each record, and in it a column for each model.

    A train model must have a value for every record; where a dev or final model has none, it is
    not asked.

    Args:
        file: or files, one after another, as `Table` takes them.
        kind: of the values: ``p_label``, ``loss`` or ``scores``.
        members: a table of the same form, whose values are true, or 1, for members; or a ``.npy``
            mask (M, N) in the order of the table's columns and rows.
        suffix: instead, what the names of columns of members end in: ``a_in`` for ``a``.
        record: column of what records are called.
        models: columns of the models; None for all others.
        phases: of models that are not train, by name.

    Raises:
        InputError: names the file, and the column, model or record that is not what it must be.
    """
    _check_kind(kind, OF_LABEL)
    record = str(record)
    table = Table(file, [record], PLACE)
    _check_has(table, "record", [record])
    listed = _models(table, record, suffix, models)
    place = _places(table, record)
    of_model = _phases_of(listed, phases)
    order = _ascending(listed)
    found = np.stack(
        [table.numbers(listed[i], lacking=of_model[i] != "train")[place] for i in order]
    )
    lacking = {row: np.flatnonzero(table.lacks(listed[i])[place]) for row, i in enumerate(order)}
    keep = _keep(table, listed, record, members, suffix)
    names, _ = table.coded(record)
    return Outputs(
        kind=kind,
        values=lambda row: found[row],
        keep=keep[order][:, place],
        labels=np.zeros(len(names), dtype=np.int64),
        phases=tuple(of_model[i] for i in order),
        files=(*_files(table), *([] if members is None else [Path(members).expanduser()])),
        models=tuple(listed[i] for i in order),
        names=tuple(names),
        lacking={row: records for row, records in lacking.items() if len(records)},
    )


def _models(
    table: Table, record: str, suffix: str | None, models: Sequence[str] | None
) -> list[str]:
    """Columns of the models."""
    if models is not None:
        listed = [str(one) for one in models]
        _check_has(table, "models", listed)
        return list(dict.fromkeys(listed))
    others = [one for one in table.columns if one != record]
    listed = [one for one in others if not suffix or not one.endswith(suffix)]
    if not listed:
        raise InputError(f"{table.where}: must have a column for each model, got none.")
    return listed


def _places(table: Table, record: str) -> Indices:
    """Row of each record (N,), in the order of their names.

    Raises:
        InputError: a record has several.
    """
    names, codes = table.coded(record)
    counts = np.bincount(codes)
    if counts.max() > 1:
        raise InputError(
            f"{table.where}: must have a row for each record, got {counts.max()} of record "
            f"{printable(names[counts.argmax()], 40)}."
        )
    return np.argsort(codes)


def _ascending(names: Sequence[str]) -> list[int]:
    """Places of names in their order."""
    whole = all(number_of(name, None) is not None for name in names)
    return sorted(range(len(names)), key=lambda i: int(names[i]) if whole else names[i])


def _phases_of(models: Sequence[str], told: Mapping[str, str] | None) -> list[str]:
    """Phase of each model."""
    if told is not None and not isinstance(told, Mapping):
        raise InputError(f"`{PLACE}.phases` must name a phase by model, got {told!r:.80}.")
    phases = {str(name): str(phase) for name, phase in (told or {}).items()}
    if unknown := [name for name in phases if name not in models]:
        raise InputError(
            f"`{PLACE}.phases` must name models, {few(models)}, got {printable(unknown[0])!r}."
        )
    return [phases.get(name, "train") for name in models]


def _keep(
    table: Table, models: Sequence[str], record: str, members: str | None, suffix: str | None
) -> Mask:
    """Membership (M, R), in the order of columns and rows."""
    if (members is None) == (suffix is None):
        raise InputError(
            f"`{PLACE}` must tell `members`, a file, or `suffix`, that of columns, got "
            f"{'neither' if members is None else 'both'}."
        )
    if suffix is not None:
        columns = [f"{name}{suffix}" for name in models]
        _check_has(table, "suffix", columns)
        return np.stack([_flags(table, name) for name in columns])
    path = require.existing_file(f"{PLACE}.members", members)
    if path.suffix == ".npy":
        return as_mask(path, read_npy(path), (len(models), len(table.values(record))))
    other = Table(str(path), [record], PLACE)
    _check_has(other, "record", [record])
    _check_has(other, "members", models)
    places, (names, codes) = _places(other, record), table.coded(record)
    if odd := set(names) ^ set(other.coded(record)[0]):
        raise InputError(
            f"{path}: must have the records of {table.where}, but only one of the two has "
            f"{printable(min(odd), 40)!r}."
        )
    return np.stack([_flags(other, name)[places][codes] for name in models])


def _flags(table: Table, name: str) -> Mask:
    """Truth values (R,) of a column, 0 and 1 among them."""
    numbers = table.numbers(name, ", 1 or true for members and 0 or false for others")
    if len(wrong := np.flatnonzero((numbers != 0) & (numbers != 1))):
        raise InputError(
            f"{table.where}: column {printable(name)!r} must be 1 or true for members and 0 or "
            f"false for others, got {numbers[wrong[0]]:g} in row {wrong[0]}."
        )
    return np.asarray(numbers == 1)


def _check_kind(kind: Any, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise InputError(f"`{PLACE}.kind` must be one of {', '.join(kinds)}, got {kind!r:.80}.")


def _check_has(table: Table, option: str, names: Sequence[str]) -> None:
    """Want columns that an option names."""
    for name in names:
        if name not in table.columns:
            raise InputError(
                f"{table.where}: must have column {printable(name)!r}, by `{PLACE}.{option}`, got "
                f"{few(table.columns)}."
            )


def _files(table: Table) -> tuple[Path, ...]:
    return tuple(path for path, _ in table.parts)
