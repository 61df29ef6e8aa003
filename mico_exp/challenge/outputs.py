"""Models that are known by their outputs alone: what each gave for every record, and an in-mask.

`arrays` reads what NumPy wrote; other modules read tables and the folders of other tools. All give
`Outputs`, from which `models.recorded` makes a tree like any other.

Axes: M models, N records, C classes.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mico_exp.challenge.npy import as_mask, read_npy
from mico_exp.challenge.phases import PHASES
from mico_exp.challenge.records import fingerprint_arrays
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError, first_line, printable

log = logging.getLogger(__name__)
OF_CLASSES = ("logits", "probabilities")  # kinds with a value for each class
OF_LABEL = ("p_label", "loss", "scores")  # kinds with one value a record
KINDS = (*OF_CLASSES, *OF_LABEL)
OTHERS = ("keep", "labels", "challenge", "phases")
TINY = np.finfo(np.float64).tiny  # what stands for a probability of 0 under a logarithm
ALMOST_ONE = 1 - 2.0**-53  # what stands for one of 1
ROUNDED = 1.01e-4  # a sum of probabilities may be off by, without a word: of four decimals
FAR_OFF = 0.05  # and by this it is none


class Numbered:
    """Records of which nothing is known but their number and their class."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the classes."""
        return fingerprint_arrays(self.labels.numpy())

    def inputs(self, indices: Tensor) -> Tensor:
        """Numbers (B, 1) int64 of the records at indices (B,)."""
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.labels):
            raise IndexError(f"there are {len(self.labels)} records")
        return indices.unsqueeze(-1)

    def sizes(self, indices: Indices) -> Indices:
        """All the same size."""
        return np.ones_like(indices)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What M models gave for N records.

    kind: ``logits`` or ``probabilities``, of every class; or one number a record: ``p_label``, the
    probability of its class, ``loss``, the cross-entropy, or ``scores``, whatever is higher for
    members.
    values: gives those of the model in a row, (N, C) or (N,).
    keep: (M, N) True where the model was trained on the record.
    labels: (N,) classes from 0 on.
    phases: of each model. challenge: records that models are asked about; None for all.
    files: that all this was read from.
    models, names: what models and records are called there; by number where they have no names.
    lacking: records for which the dev or final model in a row gave nothing, and about which it is
        not asked. It has some value for these, too.
    """

    kind: str
    values: Callable[[int], NDArray[Any]]
    keep: Mask
    labels: Indices
    phases: tuple[str, ...]
    challenge: Indices | None = None
    files: tuple[Path, ...] = field(default=())
    models: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    lacking: Mapping[int, Indices] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"`kind` must be one of {', '.join(KINDS)}, got {self.kind}.")
        if wrong := sorted(set(self.phases) - set(PHASES)):
            raise InputError(f"`phases` must be of {', '.join(PHASES)}, got {wrong[0]!r}.")
        if "train" not in self.phases:
            raise InputError("`phases` must hold train models, got none.")

    @property
    def records(self) -> Numbered:
        """The records, by number."""
        return Numbered(torch.from_numpy(self.labels))

    def points(self, row: int) -> Indices:
        """Records (P,) that the model in a row is asked about, in the order of its predictions."""
        points = np.arange(len(self.labels)) if self.challenge is None else self.challenge
        return points[~np.isin(points, self.lacking[row])] if row in self.lacking else points

    @property
    def gives_classes(self) -> bool:
        """Every class has a value, and not the record's own alone."""
        return self.kind in OF_CLASSES

    def logits(self, row: int) -> NDArray[np.floating]:
        """Logits (N, C) of the model in a row, or what softmax makes its probabilities of.

        Where one number a record is known there are two classes, the record's own, which is 0
        then, and all others together: φ and 0.

        Raises:
            InputError: a value is none that its kind can have; names model and record.
        """
        values = np.asarray(self.values(row))
        self._check(row, values)
        if self.kind == "logits":
            return values if values.dtype == np.float64 else values.astype(np.float32)
        if self.kind == "probabilities":
            return np.log(np.maximum(values.astype(np.float64), TINY))
        phi = _phi(self.kind, values.astype(np.float64))
        return np.stack([phi, np.zeros_like(phi)], axis=1)

    def _check(self, row: int, values: NDArray[Any]) -> None:
        expected = "(N, C)" if self.gives_classes else "(N,)"
        if values.dtype.kind not in "fiu" or values.ndim != 1 + self.gives_classes:
            raise InputError(
                f"{self._named(row)}: `{self.kind}` must be numbers {expected}, got "
                f"{values.dtype} of shape {values.shape}."
            )
        if len(values) != len(self.labels):
            raise InputError(
                f"{self._named(row)}: `{self.kind}` must be of {len(self.labels)} records, got "
                f"{len(values)}."
            )
        if self.gives_classes and self.labels.max() >= values.shape[1]:
            record = int((self.labels >= values.shape[1]).argmax())
            raise InputError(
                f"{self._named(row)}: labels must be in [0, {values.shape[1] - 1}], since there "
                f"are {values.shape[1]} classes, got {self.labels[record]} for "
                f"{self._record(record)}."
            )
        rule, wrong = self._refused(values)
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            raise InputError(
                f"{self._named(row)}: `{self.kind}` must be {rule}, got {values[place]} for "
                f"{self._record(place[0])}."
            )
        if self.kind == "probabilities":
            self._check_sums(row, values.astype(np.float64).sum(axis=1))

    def _refused(self, values: NDArray[Any]) -> tuple[str, Mask]:
        if self.kind in ("probabilities", "p_label"):
            return "in [0, 1]", ~((values >= 0) & (values <= 1))
        if self.kind == "loss":
            return "finite numbers of at least 0", ~(np.isfinite(values) & (values >= 0))
        return "finite", ~np.isfinite(values)

    def _check_sums(self, row: int, sums: Floats) -> None:
        off = np.abs(sums - 1)
        record = int(off.argmax())
        if off[record] > FAR_OFF:
            raise InputError(
                f"{self._named(row)}: probabilities must sum to one, got {sums[record]:.4g} for "
                f"{self._record(record)}, the farthest."
            )

    def off_sum(self, row: int) -> tuple[float, str]:
        """How far a model's probabilities are from summing to one, at most, and where."""
        if self.kind != "probabilities":
            return 0.0, ""
        points = self.points(row)
        off = np.abs(np.asarray(self.values(row))[points].sum(axis=1, dtype=float) - 1)
        return float(off.max()), f"{self._named(row)}, {self._record(int(points[off.argmax()]))}"

    def _named(self, row: int) -> str:
        where = f"{self.files[0]}: " if self.files else ""
        return f"{where}model {printable(self.models[row]) if self.models else row}"

    def _record(self, record: int) -> str:
        return f"record {printable(self.names[record]) if self.names else record}"

    def saturated(self, row: int) -> int:
        """How many probabilities of records' classes are exactly 0 or 1, and so tie."""
        if self.kind not in ("probabilities", "p_label"):
            return 0
        values = np.asarray(self.values(row))
        if self.gives_classes:
            values = values[np.arange(len(values)), self.labels]
        return int(np.count_nonzero((values <= 0) | (values >= 1)))


def _phi(kind: str, values: Floats) -> Floats:
    """φ = log(p/(1 − p)) of one number a record; scores are taken as they are."""
    if kind == "scores":
        return values
    if kind == "loss":  # p = exp(−loss), 1 − p = −expm1(−loss)
        rest = np.maximum(-np.expm1(-values), 1 - ALMOST_ONE)
        return -values - np.log(rest)
    p = np.clip(values, TINY, ALMOST_ONE)
    return np.log(p) - np.log1p(-p)


def arrays(file: str, labels: str | None = None, keep: str | None = None) -> Outputs:
    """Read arrays of one ``.npz``, or the ``.npy`` of a folder, by their names.

    One of `KINDS` holds what the models gave: ``logits`` or ``probabilities`` (M, N, C), or
    ``p_label``, ``loss`` or ``scores`` (M, N). ``keep`` (M, N) bool says who was trained on what,
    ``labels`` (N,) the classes, which one number a record does without. ``challenge`` (K,) names
    the records that are asked about, where that is not all, and ``phases`` (M,) says which models
    are ``dev`` or ``final``, whose membership is kept apart, and not train.

    Args:
        file: the archive, or a folder; arrays of a folder are memory-mapped.
        labels: another file with the labels alone.
        keep: another file with the mask alone.

    Raises:
        InputError: an array is missing, or is not what it must be.
    """
    place = require.folder("dataset.outputs.file", file)
    found = _arrays_of(place)
    for name, path in (("labels", labels), ("keep", keep)):
        if path is not None:
            found[name] = read_npy(require.folder(f"dataset.outputs.{name}", path))
    kinds = [name for name in KINDS if name in found]
    if len(kinds) != 1:
        raise InputError(
            f"{place} must hold one of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}"
            f"{_there(found) if not kinds else ''}."
        )
    values = found[kinds[0]]
    files = [place] if place.is_file() else sorted(place.glob("*.npy"))
    files += [Path(one).expanduser() for one in (labels, keep) if one is not None]
    return made(str(place), kinds[0], values, found, files)


def made(
    origin: str,
    kind: str,
    values: NDArray[Any],
    found: Mapping[str, NDArray[Any]],
    files: list[Path],
) -> Outputs:
    """Check arrays against each other, and make outputs of them.

    Args:
        origin: what errors name.
        kind: of the values.
        values: (M, N) or (M, N, C).
        found: ``keep``, ``labels``, ``challenge`` and ``phases`` as far as they are there.
        files: that all this was read from.

    Raises:
        InputError: one is missing, or does not go with the others.
    """
    axes = 3 if kind in OF_CLASSES else 2
    if values.ndim != axes or not values.size:
        shape = "(models, records, classes)" if axes == 3 else "(models, records)"
        raise InputError(f"{origin}: `{kind}` must be {shape}, got shape {values.shape}.")
    models, records = values.shape[:2]
    if "keep" not in found:
        raise InputError(f"{origin}: `keep` is missing, (models, records) True for members.")
    return Outputs(
        kind=kind,
        values=lambda row: values[row],
        keep=as_mask(f"{origin}: `keep`", found["keep"], (models, records)),
        labels=_labels(origin, kind, found.get("labels"), records),
        phases=_phases(origin, found.get("phases"), models),
        challenge=_challenge(origin, found.get("challenge"), records),
        files=tuple(files),
    )


def _labels(origin: str, kind: str, labels: NDArray[Any] | None, records: int) -> Indices:
    if kind in OF_LABEL:
        return np.zeros(records, dtype=np.int64)  # the record's own class is the first of two
    if labels is None:
        raise InputError(f"{origin}: `labels` is missing, the class of each record from 0 on.")
    whole = labels.dtype.kind in "iu" or (
        labels.dtype.kind == "f" and bool((labels == np.round(labels)).all())
    )
    if labels.shape != (records,) or not whole or (np.asarray(labels) < 0).any():
        raise InputError(
            f"{origin}: `labels` must be whole numbers from 0 on ({records},), got {labels.dtype} "
            f"of shape {labels.shape}{', some below 0' if whole else ''}."
        )
    return np.asarray(labels).astype(np.int64)


def _phases(origin: str, phases: NDArray[Any] | None, models: int) -> tuple[str, ...]:
    if phases is None:
        return ("train",) * models
    if phases.shape != (models,) or phases.dtype.kind != "U":
        raise InputError(
            f"{origin}: `phases` must name a phase for each of {models} models, got "
            f"{phases.dtype} of shape {phases.shape}."
        )
    return tuple(map(str, phases))


def _challenge(origin: str, challenge: NDArray[Any] | None, records: int) -> Indices | None:
    if challenge is None:
        return None
    points = np.asarray(challenge)
    sound = points.ndim == 1 and points.dtype.kind in "iu" and len(np.unique(points)) == len(points)
    if not sound or not len(points) or points.min() < 0 or points.max() >= records:
        raise InputError(
            f"{origin}: `challenge` must be different record indices in [0, {records - 1}], got "
            f"{points.dtype} of shape {points.shape}{_worst(points, records)}."
        )
    return points.astype(np.int64)


def _worst(points: NDArray[Any], records: int) -> str:
    if points.ndim != 1 or points.dtype.kind not in "iu" or not len(points):
        return ""
    if len(wrong := points[(points < 0) | (points >= records)]):
        return f" with {wrong[0]}"
    values, counts = np.unique(points, return_counts=True)
    return f" with {values[counts.argmax()]} {counts.max()} times"


def _arrays_of(place: Path) -> dict[str, NDArray[Any]]:
    """Arrays by name that are of use; of a folder they stay on disk."""
    names = (*KINDS, *OTHERS)
    if place.is_dir():
        paths = {name: place / f"{name}.npy" for name in names}
        return {name: read_npy(path) for name, path in paths.items() if path.exists()}
    try:
        with require.file(place).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names if name in archive.files}
    except InputError:
        raise
    except Exception as error:  # whatever numpy and zipfile make of damage
        raise InputError(f"{place}: cannot be read as arrays: {first_line(error)}") from error


def _there(found: Mapping[str, Any]) -> str:
    return f", only {', '.join(found)}" if found else ""
