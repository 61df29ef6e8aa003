"""How a scenario is made: the competition's tree, by a recipe.

The same recipe gives the same files, bit for bit on the same machine and device: a GPU draws other
random numbers, of the same distribution. A model's folder appears whole or not at all, so that an
interrupted build goes on where it stopped. Whoever trains the models, one process writes them.
"""

import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from tqdm import tqdm

from mico_exp.challenge.lists import CHALLENGE
from mico_exp.challenge.phases import PHASES
from mico_exp.challenge.protocol import MAX_SEED, Split
from mico_exp.challenge.records import Records
from mico_exp.challenge.tree import ModelFolder, model_folders, scenario_folder
from mico_exp.challenge.truth import truth_file, truth_folder
from mico_exp.common import cores
from mico_exp.common.atomic import exclusive, remove_leftovers, write_array, write_text
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import bare
from mico_exp.models.devices import open_device
from mico_exp.models.folders import (
    FINGERPRINT,
    NOISE,
    RATE,
    RECORD,
    check_built_from,
    compare,
    read_record,
    write_listed,
    write_model,
)
from mico_exp.models.workers import Local, Workers
from mico_exp.training.making import (
    MODELS_AT_ONCE,
    Made,
    Making,
    Piece,
    Told,
    Wanted,
    step_seconds,
)
from mico_exp.training.recipe import OF_LATE, Recipe
from mico_exp.training.steps import Privacy

log = logging.getLogger(__name__)
DEVICES = "devices"  # in it, where any is not the CPU: all that models were trained on
TRAINING = ("widths", "steps", "batch_size", "optimizer", "clip_norm", *OF_LATE)
COPIES = 2  # of what models train on, while they do
NETWORK_COPIES = 8  # of a network: its gradients, an optimiser's averages, a record's gradients
NETWORK_BYTES = 2**30  # of a process that trains any network, with its libraries


def build(
    root: Path,
    recipe: Recipe,
    records: Records,
    device: str = "cpu",
    workers: Workers | None = None,
) -> bool:
    """Build what is missing of a scenario under `root`; says whether anything was.

    `scores.trial.check_training` says beforehand whether records can be trained on.

    Args:
        root: of the tree.
        recipe: all that decides it, but for the device's random numbers and rounding.
        records: the data set.
        device: that models are trained on, as `open_device` takes it.
        workers: who trains them.

    Raises:
        InputError: the folder was built by another recipe, from other records, or not by this
            command at all, no noise gives the privacy that is asked for, or the device is not
            here or has too little memory; or a model's training went wrong, and the others are
            there.
    """
    folder, workers = scenario_folder(root, recipe.challenge, recipe.scenario), workers or Local()
    if _is_from_elsewhere(root, recipe):
        log.info("%s holds all models, made elsewhere: they stay as they are", folder)
        return False
    _check_record(folder, recipe, records)
    if is_complete(root, recipe):
        return False
    making = Making.of(recipe, records, device)  # what cannot be met is said before any writing
    workers.check(device, recipe.plan.precision)
    lock = folder.with_name(f".{recipe.scenario}.lock")
    with exclusive(lock, f"building {folder}"):
        _check_record(folder, recipe, records)
        told = recipe.description(records) | _noise(making) | _devices(folder)
        write_text(folder / RECORD, json.dumps(told, indent=2) + "\n")
        if (canaries := recipe.canaries) and canaries.are_shared:
            write_array(folder / f"{CHALLENGE}.npy", canaries.points(recipe.sizes.records, 0))
        _clear(root, recipe)
        try:
            _train_missing(root, making, workers)
        except BaseException:
            _clear(root, recipe)  # of processes that were ended while they wrote
            raise
    return True


class Cost(NamedTuple):
    """What a build will take: models and steps of each, seconds in so many processes, bytes."""

    models: int
    steps: int
    step_seconds: float
    seconds: float
    processes: int
    disk_bytes: int


def cost(recipe: Recipe, records: Records, device: str) -> Cost:
    """Estimate what a whole build takes on a device, from a few steps of the first models.

    Raises:
        InputError: as `Making`.
    """
    plans = list(planned_pieces(recipe))
    processes = _processes(recipe, len(plans), open_device(device))
    # How much noise there is makes no step longer; to find out how much takes a while.
    privacy = Privacy(1.0, recipe.privacy.clip_norm) if recipe.privacy else None
    each = step_seconds(Making(recipe, recipe.plan, records, privacy, None, device), plans[0].piece)
    seconds = each * recipe.plan.steps * len(plans) / processes
    state = bare(untrained(recipe)).state_dict().values()
    disk = recipe.total * sum(one.nbytes for one in state)
    return Cost(recipe.total, recipe.plan.steps, each, seconds, processes, disk)


def _clear(root: Path, recipe: Recipe) -> None:
    """Remove what is half written."""
    for place in (root, truth_folder(root)):
        remove_leftovers(scenario_folder(place, recipe.challenge, recipe.scenario))


def _train_missing(root: Path, making: Making, workers: Workers) -> None:
    """Train and write what is missing."""
    recipe = making.recipe
    missing = frozenset(_missing(root, recipe))
    plans = [one for one in planned_pieces(recipe) if missing.intersection(one.numbers)]
    writer = Writer(root, recipe, {n: one for one in plans for n in one.numbers}, missing)
    with Progress(recipe.path, recipe.total, recipe.total - len(missing)) as progress:
        pieces = [one.piece for one in plans]
        stopped = train_pieces(making, pieces, workers, progress, writer.write)
    check_stopped(recipe.path, stopped)


def train_pieces(
    making: Making,
    pieces: Sequence[Piece],
    workers: Workers,
    progress: "Progress",
    write: Callable[[Made], None],
) -> list[str]:
    """Train pieces by workers, and write what comes of each as it is finished.

    Here a CPU's cores have a process each, of one thread.

    Returns:
        names of models that were stopped, each with the reason; all others are written.

    Raises:
        InputError: as `Making` does.
    """
    recipe, stopped = making.recipe, list[str]()
    here = isinstance(workers, Local)
    processes = _processes(recipe, len(pieces), open_device(making.device)) if here else 1
    where = workers.describe(making.device)
    if processes > 1:
        where = f"{processes} processes of one thread each"
    log.info("%s: training %d models on %s", progress.name, progress.missing, where)
    if processes > 1:
        recipe.plan.optimizer([torch.zeros(1)])  # imports much, here once for all of them
    with closing(workers.map(making, pieces, progress.hear, processes)) as done:
        for _, models in done:
            for made in models:
                if made.stopped is not None:
                    stopped.append(f"model_{made.number}: {made.stopped}")
                    continue
                write(made)
                progress.done(made)
    return stopped


def check_stopped(name: str, stopped: Sequence[str]) -> None:
    """Say which models of a scenario could not be trained.

    Raises:
        InputError: there are any.
    """
    if stopped:
        raise InputError(
            f"{len(stopped)} of {name}'s models could not be trained, all others are "
            f"written: {'; '.join(stopped[:5])}{' …' if len(stopped) > 5 else ''}. The same "
            "command trains them alike; a smaller learning rate makes another challenge, in "
            "another `paths.data`."
        )


@dataclass(frozen=True, eq=False)
class Planned:
    """A piece of a build: what is trained, and beside it what is written of each model."""

    numbers: range
    folders: list[ModelFolder]
    splits: list[Split]
    piece: Piece


def planned_pieces(recipe: Recipe) -> Iterator[Planned]:
    """All pieces of a build in turn.

    Their randomness depends on nothing but the recipe, and on what a device makes of a seed.
    """
    together, name = _together(recipe), zlib.crc32(recipe.path.encode())
    for start in range(0, recipe.total, together):
        numbers = range(start, min(start + together, recipe.total))
        random = np.random.default_rng(np.random.SeedSequence([recipe.seed, name, start]))
        seed = int(random.integers(MAX_SEED))
        folders = [
            ModelFolder(Path(f"model_{number}"), *map(int, random.integers(MAX_SEED, size=3)))
            for number in numbers
        ]
        splits = [_split(recipe, folder) for folder in folders]
        wanted = tuple(_wanted(number, one) for number, one in zip(numbers, splits, strict=True))
        yield Planned(numbers, folders, splits, Piece(seed, wanted))


def _split(recipe: Recipe, folder: ModelFolder) -> Split:
    if recipe.canaries is None:
        return folder.split(recipe.sizes)
    _, training, membership = folder.seeds
    assert training is not None
    assert membership is not None
    return recipe.canaries.split(recipe.sizes, folder.number, training, membership)


def _wanted(number: int, split: Split) -> Wanted:
    assert split.member is not None
    assert split.training is not None
    assert split.evaluation is not None
    return Wanted(number, np.concatenate([split.member, split.training]), split.evaluation)


def _together(recipe: Recipe) -> int:
    """How many models are trained as one."""
    return MODELS_AT_ONCE if recipe.widths is not None else 1


def _processes(recipe: Recipe, pieces: int, device: torch.device) -> int:
    """How many processes train at once: as many as have a core and room for what they need."""
    if device.type != "cpu" or pieces < 2:
        return 1
    room = psutil.virtual_memory().available // _needed(recipe)
    return max(1, min(cores.for_processes(), pieces, room))


def _needed(recipe: Recipe) -> int:
    """Bytes that a process takes: for copies of its models' records, or of a network."""
    if recipe.widths is not None and recipe.is_plain:
        inputs = recipe.len_training * recipe.widths[0] * torch.float32.itemsize
        return COPIES * _together(recipe) * inputs
    state = bare(untrained(recipe)).state_dict().values()
    return NETWORK_BYTES + NETWORK_COPIES * _together(recipe) * sum(one.nbytes for one in state)


@dataclass(frozen=True, eq=False)
class Writer:
    """Writes the models of a build, each as it is made; `missing` are those that are not there."""

    root: Path
    recipe: Recipe
    plans: dict[int, Planned]
    missing: frozenset[int]

    def write(self, made: Made) -> None:
        """Write a model's folder, and its truth apart."""
        if made.number not in self.missing:
            return
        plan = self.plans[made.number]
        row = made.number - plan.numbers[0]
        folder, truth = _places(self.root, self.recipe, made.number)
        note_device(folder.parents[1], made.device)
        where, what = (folder, truth), (made.weights, made.told)
        disclosed, canaries = self.recipe.disclose_training, self.recipe.canaries
        if canaries is None:
            seeds = plan.folders[row]
            write_model(*where, seeds, plan.splits[row], *what, disclose_training=disclosed)
        else:
            alone = not canaries.are_shared
            write_listed(*where, plan.splits[row], *what, alone=alone, disclose_training=disclosed)


class Progress:
    """A bar of models with their training so far: steps a second, the time left, a loss by now."""

    def __init__(self, name: str, total: int, there: int) -> None:
        self.name = name
        self.started, self.steps, self.finished = time.monotonic(), 0, there
        self.missing = total - there
        self.loss: float | None = None
        self.bar = tqdm(
            desc=f"Training {name}",
            total=total,
            initial=there,
            disable=None,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} models "
            "[{elapsed}<{remaining}{postfix}]",
            unit=" models",
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def hear(self, told: Told) -> None:
        """Take in what was trained since the last time."""
        self.steps += told.steps
        self.loss = self.loss if told.loss is None else told.loss
        self.bar.set_postfix_str(self.described, refresh=False)
        self.bar.update(told.models)

    def done(self, made: Made) -> None:
        """Take in a model that is written, and say what came of it."""
        self.finished += 1
        spent = made.told.get("epsilon")
        log.info(
            "model_%d: accuracy %s on its members, %s on others%s",
            *(made.number, made.on_members, made.told["accuracy"]),
            "" if spent is None else f", epsilon {spent}",
        )

    @property
    def described(self) -> str:
        """What stands behind the bar."""
        rate = self.steps / max(time.monotonic() - self.started, 1e-9)
        loss = "" if self.loss is None else f", loss {self.loss:.3f}"
        return f"{self.finished} done, {rate:,.1f} steps/s{loss}"


def _noise(making: Making) -> dict[str, float]:
    """How much noise models are trained with, which takes a search to find again."""
    if making.privacy is None:
        return {}
    return {NOISE: making.privacy.noise_multiplier, RATE: making.recipe.sample_rate}


def _devices(folder: Path) -> dict[str, list[str]]:
    """What models of a build were trained on before; nothing where that is the CPU, or nothing."""
    begun = any(model_folders(folder / phase) for phase in PHASES)
    before = read_record(folder / RECORD).get(DEVICES, ["cpu"]) if begun else []
    found = sorted(map(str, before))
    return {} if found in ([], ["cpu"]) else {DEVICES: found}


def note_device(folder: Path, device: str, phases: Sequence[str] = PHASES) -> None:
    """Record beside a scenario's models what one is trained on, if that is new."""
    record = read_record(folder / RECORD)
    begun = any(model_folders(folder / phase) for phase in phases)
    before = record.get(DEVICES, ["cpu"] if begun else [])
    found = sorted({*map(str, before), device})
    if found not in (["cpu"], record.get(DEVICES)):
        write_text(folder / RECORD, json.dumps(record | {DEVICES: found}, indent=2) + "\n")


def is_complete(root: Path, recipe: Recipe) -> bool:
    """Tell whether nothing is left to build."""
    return _is_from_elsewhere(root, recipe) or not list(_missing(root, recipe))


def untrained(recipe: Recipe) -> torch.nn.Module:
    """One network as the recipe will train them.

    Raises:
        InputError: there can be none.
    """
    recipe.fresh.check()
    return recipe.fresh.network(0)


def _is_from_elsewhere(root: Path, recipe: Recipe) -> bool:
    """Tell whether all models are there that no build has made: the competition's, or own ones."""
    folder = scenario_folder(root, recipe.challenge, recipe.scenario)
    if (folder / RECORD).exists():
        return False
    places = (_places(root, recipe, number)[0] for number in range(recipe.total))
    return recipe.total > 0 and all(place.is_dir() for place in places)


def _check_record(folder: Path, recipe: Recipe, records: Records) -> None:
    path = folder / RECORD
    if not any(model_folders(folder / phase) for phase in PHASES):
        return  # nothing was built yet, whatever was begun
    if not path.exists():
        raise InputError(
            f"{folder} holds models but no {RECORD}, so `mico_exp.build` did not make it. "
            "Choose another `paths.data`."
        )
    asked = dict.fromkeys(OF_LATE) | recipe.description(records)
    del asked[FINGERPRINT]  # older builds have none, and `check_built_from` says more
    compare(folder, read_record(path), asked)
    check_built_from(folder, records)


def check_built_by(folder: Path, recipe: Recipe, records: Records) -> None:
    """Compare how a recipe trains with how a build did; privacy is the scenario's matter.

    Raises:
        InputError: it is another one, or none is recorded.
    """
    path = folder / RECORD
    if not path.exists():
        raise InputError(
            f"{folder} holds no {RECORD}: `dataset.recipe` cannot be compared with how its models "
            "were made."
        )
    found, wanted = read_record(path), recipe.description(records)
    known = [key for key in TRAINING if found.get(key) is not None]
    compare(folder, found, {key: wanted.get(key) for key in known})


def _phase_of(recipe: Recipe, number: int) -> str:
    bounds = np.cumsum([recipe.models[phase] for phase in PHASES])
    return PHASES[int(np.searchsorted(bounds, number, side="right"))]


def _places(root: Path, recipe: Recipe, number: int) -> tuple[Path, Path | None]:
    """Folder of a model, and the file that keeps its truth apart (None for train models)."""
    phase = _phase_of(recipe, number)
    within = Path(phase) / f"model_{number}"
    folder = scenario_folder(root, recipe.challenge, recipe.scenario) / within
    if phase == "train":
        return folder, None
    truth = scenario_folder(truth_folder(root), recipe.challenge, recipe.scenario)
    return folder, truth / within / "solution.csv"


def _missing(root: Path, recipe: Recipe) -> Iterator[int]:
    for number in range(recipe.total):
        folder, truth = _places(root, recipe, number)
        if folder.is_dir() and not (folder / "model.pt").exists():
            raise InputError(f"{folder} lacks model.pt. Delete that folder: it is built anew then.")
        if not folder.is_dir() or (truth and not truth_file(truth.parent).exists()):
            yield number
