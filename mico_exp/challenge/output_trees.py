"""Outputs as other tools leave them on disk; a pickle among them is never opened.

Axes: M models, N records, A augmentations, C classes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mico_exp.challenge.labels import few, number_of, order_of
from mico_exp.challenge.npy import as_mask, read_npy
from mico_exp.challenge.outputs import Outputs, made
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Indices
from mico_exp.common.errors import InputError, first_line, printable

PLACE = "dataset.outputs"
PICKLES = (".pkl", ".pickle", ".p")


def mi_lira_2021(folder: str, values: str = "logits", augmentations: str = "first") -> Outputs:
    """Read the experiments of ``research/mi_lira_2021`` (Carlini et al. 2022), by their numbers.

    Each is a folder ``experiment-I_N``, or ``experiment-SEED``, with ``keep.npy`` (N,) and
    ``logits/EPOCH.npy`` (N, 1, A, C), of which the last epoch is taken, or ``scores/EPOCH.npy``
    (N, A). Beside them is ``y_train.npy``.

    Args:
        folder: that holds the experiments, its ``--logdir``.
        values: ``logits`` or ``scores``.
        augmentations: the ``first``, which is the record as it is, or the ``mean`` over all.

    Raises:
        InputError: names the file that is missing, or is not what it must be.
    """
    for name, told, known in (
        ("values", values, ("logits", "scores")),
        ("augmentations", augmentations, ("first", "mean")),
    ):
        if told not in known:
            raise InputError(f"`{PLACE}.{name}` must be {' or '.join(known)}, got {told!r:.80}.")
    place = require.existing_folder(f"{PLACE}.folder", folder)
    experiments = _experiments(place)
    files = [_last_epoch(one, values) for one in experiments]
    first = _array(files[0])
    axes = (
        "(records, 1, augmentations, classes)" if values == "logits" else "(records, augmentations)"
    )
    for path in files:
        shape = _array(path).shape
        if len(shape) != (4 if values == "logits" else 2) or (len(shape) == 4 and shape[1] != 1):
            raise InputError(f"{path}: must be {axes}, got {shape}.")
        if shape != first.shape:
            raise InputError(f"{path}: must be {first.shape} as {files[0]}, got {shape}.")
    records = len(first)

    def of_model(row: int) -> NDArray[Any]:
        found = _array(files[row]).reshape(records, -1, *first.shape[3:])
        return found[:, 0] if augmentations == "first" else found.mean(axis=1, dtype=np.float64)

    masks = [one / "keep.npy" for one in experiments]
    numbers = [place / "y_train.npy"] if values == "logits" else []  # scores are of the labels
    found = [_labels(path, records) for path in numbers] or [np.zeros(records, dtype=np.int64)]
    return Outputs(
        kind=values,
        values=of_model,
        keep=np.stack([as_mask(path, _array(path), (records,)) for path in masks]),
        labels=found[0],
        phases=("train",) * len(files),
        files=(*files, *masks, *numbers),
        models=tuple(one.name for one in experiments),
    )


def _experiments(place: Path) -> list[Path]:
    """Folders of the experiments, by their numbers."""
    folders = (path for path in place.iterdir() if path.is_dir())
    wanted = "folders named experiment-I_N"
    return _numbered(place, folders, r"experiment-(\d+)(_\d+)?", "experiment", wanted)


def _numbered(
    place: Path, paths: Iterable[Path], pattern: str, what: str, wanted: str
) -> list[Path]:
    """Those whose names are of a pattern, by the number in it.

    Raises:
        InputError: there is none, or two have one number.
    """
    found: dict[int, Path] = {}
    for path in sorted(paths):
        if (named := re.fullmatch(pattern, path.name)) is None:
            continue
        other = found.setdefault(int(named[1]), path)
        if other is not path:
            raise InputError(
                f"{place}: must hold one {what} {named[1]}, got {other.name} and {path.name}."
            )
    if not found:
        raise InputError(f"{place}: must hold {wanted}, got none.")
    return [found[number] for number in sorted(found)]


def _last_epoch(experiment: Path, values: str) -> Path:
    found = [
        path for path in (experiment / values).glob("*.npy") if re.fullmatch(r"\d+", path.stem)
    ]
    if not found:
        script = "inference.py" if values == "logits" else "score.py"
        raise InputError(
            f"{experiment / values}: must hold the {values} of an epoch, such as 0000000100.npy, "
            f"which {script} writes; got none."
        )
    return max(found, key=lambda path: int(path.stem))


def privacy_meter(folder: str, signals: str = "signals/rmia_signals.npy") -> Outputs:
    """Read signals (N, M) of Privacy Meter, probabilities of the records' classes.

    Args:
        folder: its ``log_dir``, with ``models/memberships.npy`` (M, N).
        signals: file in it.

    Raises:
        InputError: names the file that is missing, or is not what it must be.
    """
    place = require.existing_folder(f"{PLACE}.folder", folder)
    path, memberships = place / str(signals), place / "models" / "memberships.npy"
    keep, found = _array(memberships), _array(path)
    if keep.ndim != 2 or keep.dtype != np.bool_:
        raise InputError(
            f"{memberships}: must be a mask of bool (models, records), got {keep.dtype} of shape "
            f"{keep.shape}."
        )
    if found.shape != keep.T.shape:
        why = ""
        if found.ndim == 2 and found.shape[1] == len(keep) and len(found) < keep.shape[1]:
            why = "; which records a sample was of (audit.data_size) is not written anywhere"
        raise InputError(
            f"{path}: must be (records, models), {keep.T.shape} as {memberships} has them, got "
            f"{found.shape}{why}."
        )
    return made(str(path), "p_label", found.T, {"keep": keep}, [path, memberships])


def leakpro(folder: str, labels: str, keep: str | None = None, *, target: bool = False) -> Outputs:
    """Read logits that LeakPro has kept, ``sm_K…_logits.npy``, joined by ``…_indices.npy``.

    Models are shadow models by K; the target comes after them, as a final model.

    Args:
        folder: its ``attack_cache_folder``.
        labels: ``.npy`` of the classes of the whole population.
        keep: ``.npy`` mask of the models by the whole population, as LeakPro tells membership in
            pickles alone.
        target: take the target as well; the mask's last row is its own.

    Raises:
        InputError: names the file that is missing, or is not what it must be.
    """
    place = require.existing_folder(f"{PLACE}.folder", folder)
    files = _shadow_models(place)
    if target:
        files.append(_only(place, "target*_logits.npy", "the target's logits"))
    indices = [_indices(path) for path in files]
    names = np.sort(indices[0])
    for path, of_model in zip(files, indices, strict=True):
        if len(odd := np.setxor1d(names, of_model)):
            raise InputError(
                f"{path}: must be of the records of {files[0]}, but only one of the two has record "
                f"{odd[0]}."
            )
    if keep is None:
        raise InputError(
            f"`{PLACE}.keep` must name a mask (models, population): metadata_K.pkl, in which "
            "LeakPro tells membership, is a pickle, which is not opened. Write their train_indices "
            "as keep.npy."
        )
    path = require.existing_file(f"{PLACE}.labels", labels)
    numbers = _labels(path)
    mask_path = require.existing_file(f"{PLACE}.keep", keep)
    mask = as_mask(mask_path, _array(mask_path), (len(files), len(numbers)))
    if names[0] < 0 or names[-1] >= len(numbers):
        wrong = names[0] if names[0] < 0 else names[-1]
        raise InputError(
            f"{path}: must have a label for record {wrong}, got {len(numbers)} labels."
        )
    orders = [np.argsort(one) for one in indices]
    return Outputs(
        kind="logits",
        values=lambda row: _two_classes(_array(files[row]))[orders[row]],
        keep=mask[:, names],
        labels=numbers[names],
        phases=("train",) * (len(files) - target) + ("final",) * target,
        files=(*files, *map(_beside, files), path, mask_path),
        models=tuple(one.name.removesuffix("_logits.npy") for one in files),
        names=tuple(map(str, names)),
    )


def _shadow_models(place: Path) -> list[Path]:
    """Logits of the shadow models, by their numbers."""
    files = place.glob("sm_*_logits.npy")
    wanted = "files named sm_K_logits.npy"
    return _numbered(place, files, r"sm_(\d+)(_.+)?_logits\.npy", "shadow model", wanted)


def _only(place: Path, pattern: str, what: str) -> Path:
    found = sorted(place.glob(pattern))
    if len(found) != 1:
        raise InputError(
            f"{place}: must hold {what}, one file {pattern}, got "
            f"{few([one.name for one in found]) or 'none'}."
        )
    return found[0]


def _beside(logits: Path) -> Path:
    """File that tells which records logits are of."""
    return logits.with_name(f"{logits.name.removesuffix('_logits.npy')}_indices.npy")


def _indices(logits: Path) -> Indices:
    path = _beside(logits)
    if not path.exists():
        raise InputError(
            f"{path} is missing: nothing else tells which records {logits.name} is of. LeakPro "
            "writes both since June 2026."
        )
    found, count = _array(path), len(_array(logits))
    if found.shape != (count,) or found.dtype.kind not in "iu" or len(np.unique(found)) != count:
        raise InputError(
            f"{path}: must be {count} different record indices, as {logits.name} has rows, got "
            f"{found.dtype} of shape {found.shape}."
        )
    return found.astype(np.int64)


def _two_classes(logits: NDArray[Any]) -> NDArray[Any]:
    """Logits (N, C); one output (N,) is that of class 1 of two."""
    return np.stack([np.zeros_like(logits), logits], axis=1) if logits.ndim == 1 else logits


def sacro(file: str, classes: Sequence[Any] | None = None) -> Outputs:
    """Read one target of SACRO, of which training and test records are known, from CSV arrays.

    Args:
        file: its ``target.yaml``; ``proba_train_path``, ``proba_test_path``, ``y_train_path`` and
            ``y_test_path`` in it name CSV files without a header.
        classes: labels in the order of their numbers; None where they are numbers from 0 on.

    Raises:
        InputError: names the file that is missing, or is not what it must be.
    """
    path = require.existing_file(f"{PLACE}.file", file)
    told = _target(path)
    arrays = {name: _named(path, told, name) for name in ("proba_train", "proba_test")}
    labels = {name: _named(path, told, name) for name in ("y_train", "y_test")}
    tables = [_numbers(one) for one in arrays.values()]
    if tables[0].shape[1] != tables[1].shape[1]:
        raise InputError(
            f"{arrays['proba_test']}: must have {tables[0].shape[1]} columns, as "
            f"{arrays['proba_train']} has, got {tables[1].shape[1]}."
        )
    order = None if classes is None else order_of(classes, f"{PLACE}.classes")
    numbers = [_classes(one, order) for one in labels.values()]
    for place, found, table in zip(labels.values(), numbers, tables, strict=True):
        if len(found) != len(table):
            raise InputError(
                f"{place}: must have a label for each of {len(table)} rows of probabilities, got "
                f"{len(found)}."
            )
    values = np.concatenate(tables)[None]
    keep = np.arange(values.shape[1])[None] < len(tables[0])
    others = {"keep": keep, "labels": np.concatenate(numbers)}
    files = [path, *arrays.values(), *labels.values()]
    return made(str(path), "probabilities", values, others, files)


def _target(path: Path) -> Mapping[str, Any]:
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {first_line(error)}") from error
    if not isinstance(told, Mapping):
        raise InputError(f"{path}: must be a mapping, such as SACRO's target.yaml, got no keys.")
    return told


def _named(path: Path, told: Mapping[str, Any], name: str) -> Path:
    """File of an array that a target names."""
    key, named = f"{name}_path", told.get(f"{name}_path")
    write = f"Write {name}.csv without a header, and name it in {path.name} as `{key}`."
    if not named:
        raise InputError(f"{path}: must name a file as `{key}`, got nothing. {write}")
    found = path.parent / str(named)
    if found.suffix in PICKLES:
        raise InputError(f"{found} is a pickle, which is not opened. {write}")
    if found.suffix != ".csv":
        raise InputError(f"{path}: `{key}` must name a .csv file, got {printable(str(named))!r}.")
    return require.existing_file(key, found)


def _numbers(path: Path) -> Floats:
    """Numbers (N, C) of a CSV file without a header."""
    try:
        found = np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: must hold numbers, separated by commas and without a header: "
            f"{first_line(error)}"
        ) from error
    if found.size == 0 or found.shape[1] < 2:
        raise InputError(f"{path}: must have a column for each class, got shape {found.shape}.")
    return found


def _classes(path: Path, order: dict[str, int] | None) -> Indices:
    """Numbers (N,) of the classes in a CSV file with a label a line."""
    lines = [line.strip().strip('"') for line in _lines(path)]
    numbers = [number_of(_whole(line), order) for line in lines]
    if None in numbers:
        line = lines[numbers.index(None)]
        rule = "a whole number from 0 on, or be in `classes`"
        rule = rule if order is None else f"one of `{PLACE}.classes`, {few([*order])}"
        raise InputError(
            f"{path}: the label in line {numbers.index(None)} must be {rule}, got "
            f"{printable(line, 40)!r}."
        )
    return np.array(numbers, dtype=np.int64)


def _whole(text: str) -> str:
    """A label as whole numbers are written, ``1.000e+00`` and ``1.0`` as 1."""
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text: {first_line(error)}") from error


def _array(path: Path) -> NDArray[Any]:
    """Map an array."""
    if path.suffix in PICKLES:
        raise InputError(f"{path} is a pickle, which is not opened: write an array, `np.save`.")
    return read_npy(path)


def _labels(path: Path, records: int | None = None) -> Indices:
    """Classes of the first records, or of all."""
    found = _array(path)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) < (records or 1):
        least = "" if records is None else f" of at least {records} records"
        raise InputError(
            f"{path}: must be the classes{least}, whole numbers, got {found.dtype} of shape "
            f"{found.shape}."
        )
    return np.array(found[:records], dtype=np.int64)
