"""Models of which only the outputs are known: a table in place of a network.

The tree that is made of them is like any other: a folder for each model, whose weights file holds
its logits for every record.

Axes: N records, P points, C classes.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from mico_exp.challenge.lists import CHALLENGE, KEEP
from mico_exp.challenge.outputs import ROUNDED, Outputs
from mico_exp.challenge.phases import PHASES
from mico_exp.challenge.tree import write_solution
from mico_exp.common.atomic import (
    exclusive,
    new_folder,
    remove_leftovers,
    write_array,
    write_text,
)
from mico_exp.common.errors import InputError, first_line

log = logging.getLogger(__name__)
WEIGHTS, TABLE = "model.safetensors", "outputs"
RECORD = "outputs.json"  # beside the phases: what the tree was made of
DTYPES = {"F64": torch.float64, "F32": torch.float32}


class Recorded(nn.Module):
    """A model as the table of its logits: outputs (N, C)."""

    outputs: Tensor

    def __init__(self, records: int, classes: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer(TABLE, torch.zeros(records, classes, dtype=dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (P, C) of records by number (P, 1)."""
        return self.outputs[inputs.squeeze(-1)]


def recorded(folder: Path) -> nn.Module:
    """Make the table that a model's folder holds, without its values.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            table = file.get_slice(TABLE)
            records, classes = table.get_shape()
            return Recorded(records, classes, DTYPES[table.get_dtype()])
    except Exception as error:  # whatever safetensors makes of it
        raise InputError(f"{path}: cannot be read as outputs: {first_line(error)}") from error


def take_in(folder: Path, truth: Path, outputs: Outputs, key: str) -> bool:
    """Make a scenario's tree of outputs; says whether anything was missing.

    Args:
        folder: of the scenario.
        truth: where the membership of its dev and final models lies.
        outputs: what its models gave.
        key: hash of all that they were read from.

    Raises:
        InputError: the folder was made of other outputs, or otherwise; or a value is none.
    """
    asked = {"outputs": key, "kind": outputs.kind, "models": len(outputs.phases)}
    if _is_whole(folder, asked):
        return False
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"taking in {folder}"):
        if _is_whole(folder, asked):
            return False
        write_text(folder / RECORD, json.dumps(asked, indent=2) + "\n")
        remove_leftovers(folder)
        saturated = sum(_write_all(folder, truth, outputs))
        _tell_sums(folder, outputs)
        _write_membership(folder, outputs)
    if saturated:
        count = len(outputs.phases) * len(outputs.labels)
        log.warning(
            "%s: %d of %d probabilities of records' classes are exactly 0 or 1: they tie, and no "
            "threshold tells them apart",
            folder,
            saturated,
            count,
        )
    return True


def _is_whole(folder: Path, asked: dict[str, object]) -> bool:
    """Compare with what a tree was made of; says whether nothing is missing."""
    path = folder / RECORD
    if not path.exists():
        if any((folder / phase).is_dir() for phase in PHASES):
            raise InputError(
                f"{folder} holds models but no {RECORD}, so it was not made of outputs. Choose "
                "another `paths.data`."
            )
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    whole = (folder / "train" / KEEP).exists()  # it is written last
    if found != asked and not whole:  # a value was none, perhaps, and has been mended
        for phase in PHASES:
            shutil.rmtree(folder / phase, ignore_errors=True)
    elif found != asked:
        raise InputError(
            f"{folder} was made of other outputs than `dataset.outputs` has now. Choose another "
            "`paths.data`, or delete that folder to have it made anew."
        )
    return whole


def _write_all(folder: Path, truth: Path, outputs: Outputs) -> Iterator[int]:
    """Write what lacks of the models' folders; gives how many values of each are saturated."""
    rows = list(enumerate(outputs.phases))
    for row, phase in tqdm(rows, desc=f"Taking in {folder.name}", unit="model", disable=None):
        place = Path(phase) / f"model_{row}"
        if phase != "train":
            solution = write_solution(outputs.keep[row, outputs.points(row)])
            write_text(truth / place / "solution.csv", solution)
        if not (folder / place).is_dir():
            table = torch.from_numpy(np.array(outputs.logits(row)))
            with new_folder(folder / place) as unfinished:
                (unfinished / WEIGHTS).write_bytes(save({TABLE: table}))
                if row in outputs.lacking:
                    write_array(unfinished / f"{CHALLENGE}.npy", outputs.points(row))
        yield outputs.saturated(row)


def _tell_sums(folder: Path, outputs: Outputs) -> None:
    """Warn once where probabilities do not sum to one, and say where they are off the most."""
    off, where = max(outputs.off_sum(row) for row in range(len(outputs.phases)))
    if off > ROUNDED:
        about = "%s: probabilities do not sum to one, off by at most %.3g, in %s"
        log.warning(about, folder, off, where)


def _write_membership(folder: Path, outputs: Outputs) -> None:
    is_train = np.array([phase == "train" for phase in outputs.phases])
    if outputs.challenge is not None or not is_train.all():
        points = np.arange(len(outputs.labels)) if outputs.challenge is None else outputs.challenge
        write_array(folder / f"{CHALLENGE}.npy", points)
    write_array(folder / "train" / KEEP, outputs.keep[is_train])
