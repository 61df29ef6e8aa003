"""What a run stands on: the challenge's content and the code's version."""

import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import mico_exp
from mico_exp.challenge.records import Records, records_key
from mico_exp.challenge.tree import ModelFolder, Scenario, equal_weights
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import FileFingerprints, digest
from mico_exp.models.weights import fingerprint

LIBRARIES = ("torch", "numpy", "mlflow", "hydra-core", "transformers")


def content(scenario: Scenario, records: Records, files: FileFingerprints) -> str:
    """SHA-256 of all that an attacker is given: models, seeds, lists, solutions, records and sizes.

    Runs may be compared, and a submission built from them, only where this is the same.

    Raises:
        InputError: a model's weights are damaged, or two models hold equal ones.
    """
    parts = [scenario.challenge, scenario.name, repr(scenario.sizes), records_key(records)]
    weights = []
    with files:
        for phase, model in scenario.models():
            found, solution = fingerprint(model.path, files), model.path / "solution.csv"
            weights.append((model.path, found.weights))
            parts += [
                phase,
                model.path.name,
                repr(model.seeds),
                *found.files,
                files.of(solution) if solution.exists() else "",
                *_listed(model, files),
            ]
    if same := equal_weights(weights):
        raise InputError(same)
    return digest(*parts)


def _listed(model: ModelFolder, files: FileFingerprints) -> list[str]:
    """What lists tell of a model, if it has any."""
    if model.lists is None:
        return []
    return ["lists", str(model.lists.row), *map(files.of, model.lists.files())]


@functools.cache
def versions() -> str:
    """Versions of Python and of the libraries that figures may hang on."""
    found = [f"python {platform.python_version()}"]
    found += [f"{name} {version(name)}" for name in LIBRARIES]
    return ", ".join(found)


@functools.cache
def code_version() -> str:
    """Version of the package, with the commit when it runs from a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return mico_exp.__version__
    try:
        git = functools.partial(
            subprocess.run, cwd=root, capture_output=True, text=True, check=True
        )
        commit = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return mico_exp.__version__
    return f"{mico_exp.__version__}+{commit}{'-changed' if changed else ''}"
