"""A model's folder, written whole or not at all, and what is told of how its scenario was made."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mico_exp.challenge.lists import CHALLENGE, MEMBERS
from mico_exp.challenge.phases import PHASES
from mico_exp.challenge.protocol import Sizes, Split
from mico_exp.challenge.records import Records
from mico_exp.challenge.tree import ModelFolder, model_folders, write_solution
from mico_exp.common.arrays import Indices
from mico_exp.common.atomic import new_folder, write_text
from mico_exp.common.errors import InputError

RECORD = "build.json"
FINGERPRINT, CANARIES = "records_fingerprint", "canaries"  # in it
NOISE, RATE = "noise_multiplier", "sample_rate"  # in it, of models with differential privacy


def begin(folder: Path, asked: Mapping[str, Any]) -> None:
    """Record how models of one's own are asked for, or compare with what was recorded.

    Raises:
        InputError: they were asked for otherwise, or are there without a record.
    """
    path = folder / RECORD
    if not path.exists():
        if any(model_folders(folder / phase) for phase in PHASES):
            raise InputError(f"{folder} holds models but no {RECORD}: choose another folder.")
        write_text(path, json.dumps(dict(asked), indent=2) + "\n")
        return
    compare(folder, read_record(path), asked)


def check_built_from(folder: Path, records: Records) -> None:
    """Compare the records with those that a scenario was built from, where that is recorded.

    Raises:
        InputError: they are others.
    """
    found = read_record(folder / RECORD) if (folder / RECORD).exists() else {}
    if FINGERPRINT in found and found[FINGERPRINT] != records.fingerprint:
        raise InputError(
            f"{folder} was built from other records than are loaded now (fingerprints "
            f"{str(found[FINGERPRINT])[:12]} and {records.fingerprint[:12]}). Were they changed, "
            "or put in another order? Choose another `paths.data`, or delete that folder to build "
            "it anew."
        )


def check_sizes(folder: Path, sizes: Sizes) -> None:
    """Compare sizes with those that a scenario's seeds were drawn by, where they are recorded.

    Raises:
        InputError: they are others, and so seeds would mean other members.
    """
    path = folder / RECORD
    if not path.exists() or not any(model_folders(folder / phase) for phase in PHASES):
        return  # nothing was built yet, whatever was begun
    found, names = read_record(path), ("records", "len_training", "len_challenge")
    asked = zip(names, (sizes.records, sizes.training, sizes.challenge), strict=True)
    compare(folder, found, {k: v for k, v in asked if None not in (v, found.get(k))})


def has_canaries(folder: Path) -> bool:
    """Tell whether a scenario was built with canaries, each in by a coin of its own."""
    path = folder / RECORD
    return path.exists() and read_record(path).get(CANARIES) is not None


def compare(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Compare what a folder's record says with what is asked for."""
    for key, value in json.loads(json.dumps(dict(asked))).items():
        if found.get(key) != value:
            raise InputError(
                f"{folder} was built with {key} = {found.get(key)!r}, but {value!r} is asked for. "
                "Choose another `paths.data`, or delete that folder to build it anew."
            )


def read_record(path: Path) -> dict[str, Any]:
    """What a file tells of how a scenario's models were made.

    Raises:
        InputError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected an object, got {type(found).__name__}.")
    return found


def write_model(
    folder: Path,
    truth: Path | None,
    seeds: ModelFolder,
    split: Split,
    weights: bytes,
    told: Mapping[str, str],
    *,
    disclose_training: bool,
) -> None:
    """Write a model's folder, whole or not at all, and apart the truth of a dev or final one.

    Args:
        folder: ``…/train/model_K``; one that is there stays as it is.
        truth: file of a dev or final model's solution; None for a train model, which discloses it.
        seeds: of its membership.
        split: what they mean.
        weights: its file of weights, as `packed` makes it.
        told: more files by their names, ``accuracy`` and ``epsilon``.
        disclose_training: also where there is a truth to be told.
    """
    assert split.solution is not None
    files = {"seed_challenge": str(seeds.seed_challenge), **told}
    if disclose_training or not truth:
        files["seed_training"] = str(seeds.seed_training)
    if not truth:
        files["seed_membership"] = str(seeds.seed_membership)
        files["solution.csv"] = write_solution(split.solution).strip()
    _write(folder, truth, split, weights, files, {})


def write_listed(
    folder: Path,
    truth: Path | None,
    split: Split,
    weights: bytes,
    told: Mapping[str, str],
    *,
    alone: bool,
    disclose_training: bool,
) -> None:
    """Write the folder of a model whose membership no seeds tell, but lists.

    Args:
        folder: as of `write_model`.
        truth: the same.
        split: its membership.
        weights: as of `write_model`.
        told: the same.
        alone: its challenge points are its own, and not the scenario's.
        disclose_training: also where there is a truth to be told; but for the challenge points.
    """
    assert split.member is not None
    assert split.training is not None
    lists, files = {}, dict(told)
    if alone:
        lists[CHALLENGE] = split.challenge
    if not truth:
        lists[MEMBERS] = np.sort(np.concatenate([split.training, split.member]))
        assert split.solution is not None
        files["solution.csv"] = write_solution(split.solution).strip()
    elif disclose_training:
        lists[MEMBERS] = np.sort(split.training)
    _write(folder, truth, split, weights, files, lists)


def _write(
    folder: Path,
    truth: Path | None,
    split: Split,
    weights: bytes,
    files: Mapping[str, str],
    lists: Mapping[str, Indices],
) -> None:
    assert split.solution is not None
    if truth:
        write_text(truth, write_solution(split.solution))
    if folder.is_dir():
        return
    with new_folder(folder) as unfinished:
        (unfinished / "model.pt").write_bytes(weights)
        for name, content in files.items():
            (unfinished / name).write_text(content + "\n", encoding="utf-8")
        for name, indices in lists.items():
            np.save(unfinished / f"{name}.npy", indices)


def packed(state: Mapping[str, torch.Tensor]) -> bytes:
    """What a file of weights holds: a state dict, as `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()
