"""The competition's submission: one zip with a prediction file for every dev and final model.

``predictions_<challenge>.zip`` holds ``<challenge>/<scenario>/{dev,final}/model_K/prediction.csv``
and nothing else; each file is one line of comma-separated numbers in [0, 1], one for each of the
model's challenge points: 2m in the competition.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mico_exp.challenge.archive import DAMAGED
from mico_exp.challenge.phases import SUBMITTED
from mico_exp.challenge.tree import Scenario, split_line
from mico_exp.common import require
from mico_exp.common.errors import InputError, first_line

Predictions = Mapping[str, NDArray[np.float32]]
NAME = r"(?!\.\.?/)[^/\x00-\x1f]+"
ENTRY = re.compile(rf"({NAME})/({NAME})/(dev|final)/model_([0-9]+)/prediction\.csv")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # float() takes 0_1
LONGEST = 1 << 14  # values of one model, where nobody says how many there must be
VALUE_BYTES = 64  # more than the longest decimals of a float32, 47 digits and a comma
ENCRYPTED = 0x1  # among the flags of a zip's entry
EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date, so that equal predictions make equal files


def pack_submission(
    path: Path, scenarios: Sequence[Scenario], predictions: Mapping[str, Predictions]
) -> bytes:
    """Make the zip, and check it by reading it back.

    Args:
        path: that it is for, which errors name.
        scenarios: all scenarios of the challenge.
        predictions: scenario name → phase → (T, P) in [0, 1], in the order of the models.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for scenario in scenarios:
            for phase in SUBMITTED:
                models = scenario.phases[phase]
                rows = predictions[scenario.name][phase]
                for model, row in zip(models, rows, strict=True):
                    name = f"{scenario.path}/{phase}/{model.path.name}/prediction.csv"
                    entry = zipfile.ZipInfo(name, EPOCH)  # it has a compression of its own
                    own = row[: model.num_points(scenario.sizes)]
                    archive.writestr(entry, _line(own), zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    expected = _lengths(scenarios)
    longest = max(expected.values())
    _check_complete(_read(path, io.BytesIO(content), longest), expected, path)
    return content


def _line(row: NDArray[np.float32]) -> str:
    """One line with the shortest decimals that read back as the same float32."""
    return ",".join(np.format_float_positional(value, trim="-") for value in row) + "\n"


def read_submission(path: Path, longest: int = LONGEST) -> dict[str, NDArray[np.float64]]:
    """Read a zip: folder within it (``digits/digits_inf/dev/model_100``) → (P,) predictions.

    Args:
        path: of the zip.
        longest: how many values a file may hold; a far larger one is not even unpacked.

    Raises:
        InputError: no zip, another layout, a model twice, or a value that is no number in [0, 1].
    """
    return _read(path, path, longest)


def submitted_models(path: Path) -> list[str]:
    """List the folders of a zip, in its order, and read none of their predictions.

    Raises:
        InputError: no zip, another layout, or a model twice.
    """
    with _opened(path, path) as archive:
        return list(_entries(path, archive))


@contextmanager
def _opened(path: Path, source: Path | io.BytesIO) -> Iterator[zipfile.ZipFile]:
    if source is path and not require.file(path).exists():
        raise InputError(f"{path} does not exist.")
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except (*DAMAGED, OSError) as error:
        raise InputError(f"{path}: cannot be read as a zip: {first_line(error)}") from error


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Folder → entry, in the order of the zip: of one challenge, and every model once."""
    found: dict[str, zipfile.ZipInfo] = {}
    same: dict[tuple[str, ...], str] = {}
    for entry in archive.infolist():
        name = entry.filename
        if name.endswith("/") and not name.endswith("/prediction.csv/"):
            continue
        if not (match := ENTRY.fullmatch(name)):
            raise InputError(
                f"{path}: {repr(name)[1:-1]} is not of the form "
                "<challenge>/<scenario>/{dev,final}/model_K/prediction.csv."
            )
        challenge, scenario, phase, number = match.groups()
        model = (challenge.casefold(), scenario.casefold(), phase, number.lstrip("0"))
        if model in same:
            raise InputError(f"{path}: holds one model twice: {same[model]} and {name}.")
        same[model] = name
        found[name.rpartition("/")[0]] = entry
    if len(challenges := sorted({name.split("/")[0] for name in found})) > 1:
        raise InputError(f"{path}: must hold one challenge, got {', '.join(challenges)}.")
    if not found:
        raise InputError(f"{path}: holds no prediction.csv.")
    return found


def _read(path: Path, source: Path | io.BytesIO, longest: int) -> dict[str, NDArray[np.float64]]:
    with _opened(path, source) as archive:
        return {
            folder: _values(f"{path}: {entry.filename}", _content(path, archive, entry, longest))
            for folder, entry in _entries(path, archive).items()
        }


def _content(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, longest: int) -> bytes:
    """Read an entry whose header promises that it is small; no more than that is unpacked."""
    name, most = f"{path}: {entry.filename}", longest * VALUE_BYTES
    if entry.flag_bits & ENCRYPTED:
        raise InputError(f"{name} is encrypted.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # else it unpacks all
        raise InputError(f"{name} must be stored or deflated, got method {entry.compress_type}.")
    if entry.file_size > most:
        raise InputError(
            f"{name} must be at most {most:,} bytes, which {longest:,} values take, "
            f"got {entry.file_size:,}."
        )
    with archive.open(entry) as file:
        return file.read(entry.file_size + 1)


def _values(name: str, content: bytes) -> NDArray[np.float64]:
    texts = split_line(name, content)
    if not texts:
        raise InputError(f"{name}: is empty.")
    for place, text in enumerate(texts, start=1):
        if not (NUMBER.fullmatch(text) and 0 <= float(text) <= 1):
            raise InputError(
                f"{name}: expected comma-separated numbers, each of which must be in [0, 1], "
                f"got {text[:40]!r} as value {place}."
            )
    return np.array([float(text) for text in texts])


def _lengths(scenarios: Sequence[Scenario]) -> dict[str, int]:
    """Folder within the zip → how many values its model has."""
    return {
        f"{scenario.path}/{phase}/{model.path.name}": model.num_points(scenario.sizes)
        for scenario in scenarios
        for phase in SUBMITTED
        for model in scenario.phases[phase]
    }


def _check_complete(
    found: Mapping[str, NDArray[np.float64]], expected: Mapping[str, int], path: Path
) -> None:
    if wrong := sorted(expected.keys() ^ found.keys()):
        raise InputError(f"{path}: {wrong[0]} is missing or does not belong there.")
    for name, length in expected.items():
        if len(found[name]) != length:
            raise InputError(f"{path}: {name} has {len(found[name])} values, expected {length}.")
