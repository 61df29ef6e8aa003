"""The competition's submission: one zip with a prediction file for every dev and final model.

``predictions_<challenge>.zip`` holds ``<challenge>/<scenario>/{dev,final}/model_K/prediction.csv``
and nothing else; each file is one line of 2m comma-separated numbers in [0, 1].
"""

import io
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mico_exp.atomic import write_bytes
from mico_exp.challenge import Scenario
from mico_exp.errors import InputError

Predictions = Mapping[str, NDArray[np.float32]]
PHASES = ("dev", "final")
ENTRY = re.compile(
    r"(?P<challenge>[^/]+)/(?P<scenario>[^/]+)/(?P<phase>dev|final)/(?P<model>model_\d+)"
    r"/prediction\.csv"
)
EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date, so that equal predictions make equal files


def write_submission(
    path: Path, scenarios: Sequence[Scenario], predictions: Mapping[str, Predictions]
) -> None:
    """Write the zip, and check it by reading it back.

    Args:
        path: of the zip.
        scenarios: all scenarios of the challenge.
        predictions: scenario name → phase → (T, 2m) in [0, 1], in the order of the models.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for scenario in scenarios:
            for phase in PHASES:
                models = scenario.phases[phase]
                rows = predictions[scenario.name][phase]
                for model, row in zip(models, rows, strict=True):
                    name = f"{scenario.path}/{phase}/{model.path.name}/prediction.csv"
                    archive.writestr(zipfile.ZipInfo(name, EPOCH), _line(row))
    content = buffer.getvalue()
    _check_complete(_read(path, io.BytesIO(content)), scenarios, path)
    write_bytes(path, content)


def _line(row: NDArray[np.float32]) -> str:
    """One line with the shortest decimals that read back as the same float32."""
    return ",".join(np.format_float_positional(value, trim="-") for value in row) + "\n"


def read_submission(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read a zip: folder within it (``digits/digits_inf/dev/model_100``) → (2m,) predictions.

    Raises:
        InputError: no zip, another layout, or a value that is no number in [0, 1].
    """
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    return _read(path, path)


def _read(path: Path, source: Path | io.BytesIO) -> dict[str, NDArray[np.float64]]:
    found = {}
    try:
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                if name.endswith("/"):
                    continue
                if not ENTRY.fullmatch(name):
                    raise InputError(
                        f"{path}: {name} is not of the form "
                        "<challenge>/<scenario>/{dev,final}/model_K/prediction.csv."
                    )
                found[name.rpartition("/")[0]] = _values(f"{path}: {name}", archive.read(name))
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as a zip: {error}") from error
    if not found:
        raise InputError(f"{path}: holds no prediction.csv.")
    return found


def _values(name: str, content: bytes) -> NDArray[np.float64]:
    try:
        lines = content.decode("ascii").strip().splitlines()
        values = np.array([float(text) for line in lines for text in line.split(",")])
    except ValueError as error:
        raise InputError(f"{name}: expected comma-separated numbers: {error}") from error
    if len(lines) != 1:
        raise InputError(f"{name}: expected one line, got {len(lines)}.")
    if not ((values >= 0) & (values <= 1)).all():  # false for NaN as well
        worst = values[~((values >= 0) & (values <= 1))][0]
        raise InputError(f"{name}: every prediction must be in [0, 1], got {worst}.")
    return values


def _check_complete(
    found: Mapping[str, NDArray[np.float64]], scenarios: Sequence[Scenario], path: Path
) -> None:
    expected = {
        f"{scenario.path}/{phase}/{model.path.name}": 2 * scenario.sizes.challenge
        for scenario in scenarios
        for phase in PHASES
        for model in scenario.phases[phase]
    }
    if wrong := sorted(expected.keys() ^ found.keys()):
        raise InputError(f"{path}: {wrong[0]} is missing or does not belong there.")
    for name, length in expected.items():
        if len(found[name]) != length:
            raise InputError(f"{path}: {name} has {len(found[name])} values, expected {length}.")
