"""The truth of dev and final models, which lies in a tree of its own and is read by scoring alone.

Axes: T target models, P = 2m challenge points of one model.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mico_exp.challenge.lists import MEMBERS, List, read_members
from mico_exp.challenge.phases import SUBMITTED
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import (
    ModelFolder,
    Scenario,
    check_solution,
    read_solution,
    scenario_folder,
)
from mico_exp.common.arrays import padded
from mico_exp.common.errors import InputError


def truth_folder(root: Path) -> Path:
    """Folder under `root` whose tree holds solution.csv of dev and final models."""
    return root / "truth"


def truth_file(folder: Path) -> Path:
    """File that tells a model's membership in its folder of the truth, if any does.

    It is the solution of its challenge points, or else the list of all that it was trained on.
    """
    solution = folder / "solution.csv"
    listed = None if solution.exists() else List.named(folder, MEMBERS)
    return solution if listed is None else listed.path


def _truth_of(model: ModelFolder, path: Path, sizes: Sizes) -> NDArray[np.bool_]:
    """(P,) membership of a model's challenge points by such a file."""
    if path.name != "solution.csv":
        members: NDArray[np.bool_] = read_members(path, sizes.records)[model.split(sizes).challenge]
        return members
    check_solution(model, sizes, path)
    return read_solution(path, model.num_points(sizes))


def read_truth(root: Path, scenario: Scenario) -> dict[str, NDArray[np.bool_]]:
    """Read the truth of dev and final models as far as it is known: phase → (T, P) bool.

    It is False beyond the last point of a model with fewer than others.

    A phase with no truth at all is left out; one with a gap is an error, since figures over
    part of a phase would not be the official ones.
    """
    truth = {}
    for phase in SUBMITTED:
        base = scenario_folder(truth_folder(root), scenario.challenge, scenario.name) / phase
        models = scenario.phases.get(phase, ())
        paths = [truth_file(base / model.path.name) for model in models]
        known = [path for path in paths if path.exists()]
        if not known:
            continue
        if missing := sorted(set(paths) - set(known)):
            raise InputError(f"{missing[0]} is missing, while {len(known)} others are there.")
        found = [
            _truth_of(model, path, scenario.sizes)
            for model, path in zip(scenario.phases[phase], paths, strict=True)
        ]
        truth[phase] = padded(found, False)
    return truth
