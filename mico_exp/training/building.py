"""How a scenario is made: a recipe, and the competition's tree that it gives.

The same recipe gives the same files, bit for bit on the same machine and device: a GPU draws other
random numbers, of the same distribution. A model's folder appears whole or not at all, so that an
interrupted build goes on where it stopped.
"""

import json
import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

from mico_exp.challenge.phases import PHASES
from mico_exp.challenge.protocol import MAX_SEED, Sizes, Split, of_seeds
from mico_exp.challenge.records import Records, inputs_at
from mico_exp.challenge.tree import (
    ModelFolder,
    model_folders,
    scenario_folder,
    truth_file,
    truth_folder,
)
from mico_exp.common import cores, pool, require
from mico_exp.common.atomic import exclusive, remove_leftovers, write_text
from mico_exp.common.errors import InputError, first_line
from mico_exp.models.architectures import DP_PREFIX, StackedMLP
from mico_exp.models.devices import describe, open_device
from mico_exp.models.folders import (
    FINGERPRINT,
    RECORD,
    check_built_from,
    compare,
    read_record,
    write_model,
)
from mico_exp.training.accountant import DELTAS, EPSILONS, noise_multiplier, spent_epsilon
from mico_exp.training.stacked import initial_mlps, train
from mico_exp.training.steps import Plan, Privacy

log = logging.getLogger(__name__)
DEVICES = "devices"  # in it, where any is not the CPU: all that models were trained on
CLIP_NORMS = (1e-20, 1e20)  # the noise is σ·C, in single precision
TRAINING = ("widths", "steps", "batch_size", "optimizer", "clip_norm")  # what `dataset` sets of it
COPIES = 2  # of what models train on, while they do
MODELS_AT_ONCE = 50  # trained as one and written as one: what an interruption can cost


@dataclass(frozen=True)
class PrivacyTarget:
    """(ε, δ) that DP-SGD is to meet, as far as the accountant can tell, and its clipping norm C."""

    epsilon: float
    delta: float
    clip_norm: float

    def __post_init__(self) -> None:
        without = "; `scenario.epsilon=null` trains without differential privacy"
        require.within("epsilon", self.epsilon, *EPSILONS, advice=without)
        require.within("delta", self.delta, *DELTAS)
        require.within("clip_norm", self.clip_norm, *CLIP_NORMS)


@dataclass(frozen=True)
class Recipe:
    """All that decides a built scenario.

    models: how many in each phase, numbered through in the order train, dev, final.
    widths: of the MLP, from input to classes.
    disclose_training: dev and final models tell `seed_training`, as in the challenge ``ddp``.
    """

    challenge: str
    scenario: str
    seed: int
    sizes: Sizes
    models: dict[str, int]
    widths: tuple[int, ...]
    plan: Plan
    privacy: PrivacyTarget | None
    disclose_training: bool = False

    def __post_init__(self) -> None:
        require.whole("seed", self.seed, 0)
        if self.plan.batch_size > self.len_training:
            raise InputError(
                f"`batch_size` must be at most `len_training` = {self.len_training}, "
                f"got {self.plan.batch_size}."
            )
        for phase, count in self.models.items():
            require.whole(f"phases.{phase}", count, 0)

    @property
    def len_training(self) -> int:
        """How many records a model trains on."""
        return of_seeds(self.sizes)[0]

    @property
    def sample_rate(self) -> float:
        """Chance of a record to be in a batch."""
        return self.plan.batch_size / self.len_training

    def description(self, records: Records) -> dict[str, Any]:
        """The recipe and its records as they are kept beside the models, and compared with."""
        optimizer = self.plan.optimizer
        arguments = ", ".join(f"{k}={v}" for k, v in getattr(optimizer, "keywords", {}).items())
        name = getattr(getattr(optimizer, "func", optimizer), "__name__", str(optimizer))
        return {
            "seed": self.seed,
            "records": self.sizes.records,
            "len_training": self.sizes.training,
            "len_challenge": self.sizes.challenge,
            "models": self.models,
            "widths": list(self.widths),
            "steps": self.plan.steps,
            "batch_size": self.plan.batch_size,
            "optimizer": f"{name}({arguments})",
            "epsilon": self.privacy and self.privacy.epsilon,
            "delta": self.privacy and self.privacy.delta,
            "clip_norm": self.privacy and self.privacy.clip_norm,
            "disclose_training": self.disclose_training,
            FINGERPRINT: records.fingerprint,
        }


def build(root: Path, recipe: Recipe, records: Records, device: str = "cpu") -> bool:
    """Build what is missing of a scenario under `root`; says whether anything was.

    `scores.soundness.check_training` says beforehand whether records can be trained on.

    Args:
        root: of the tree.
        recipe: all that decides it, but for the device's random numbers and rounding.
        records: the data set.
        device: that models are trained on, as `open_device` takes it.

    Raises:
        InputError: the folder was built by another recipe, from other records, or not by this
            command at all, no noise gives the privacy that is asked for, or the device is not
            here or has too little memory.
    """
    folder = scenario_folder(root, recipe.challenge, recipe.scenario)
    _check_record(folder, recipe, records)
    if not list(_missing(root, recipe)):
        return False
    privacy = _privacy(recipe)  # what cannot be met is said before anything is written
    place = open_device(device)
    lock = folder.with_name(f".{recipe.scenario}.lock")
    with exclusive(lock, f"building {folder}"):
        _check_record(folder, recipe, records)
        told = recipe.description(records) | _devices(folder, place)
        write_text(folder / RECORD, json.dumps(told, indent=2) + "\n")
        _clear(root, recipe)
        try:
            _train_missing(root, recipe, records, privacy, place)
        except BaseException:
            _clear(root, recipe)  # of processes that were ended while they wrote
            raise
    return True


def _clear(root: Path, recipe: Recipe) -> None:
    """Remove what is half written."""
    for place in (root, truth_folder(root)):
        remove_leftovers(scenario_folder(place, recipe.challenge, recipe.scenario))


def _train_missing(
    root: Path, recipe: Recipe, records: Records, privacy: Privacy | None, device: torch.device
) -> None:
    """Train and write what is missing: on a CPU by a process on each core, with one thread."""
    missing, total = frozenset(_missing(root, recipe)), sum(recipe.models.values())
    starts = range(0, total, MODELS_AT_ONCE)
    chunks = [range(start, min(start + MODELS_AT_ONCE, total)) for start in starts]
    chunks = [numbers for numbers in chunks if missing.intersection(numbers)]
    processes = _processes(recipe, len(chunks), device)
    name = f"{recipe.challenge}/{recipe.scenario}"
    how = f"{processes} processes of one thread each" if processes > 1 else describe(device)
    log.info("%s: training %d models on %s", name, len(missing), how)
    if processes > 1:
        recipe.plan.optimizer([torch.zeros(1)])  # imports much, here once for all of them
    with tqdm(
        desc=f"Training {name}",
        total=total,
        initial=total - len(missing),
        disable=None,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} models "
        "[{elapsed}<{remaining}, {rate_fmt}]",
        unit=" models",
    ) as bar:
        work = _Training(root, recipe, records, privacy, _spent(recipe, privacy), device, missing)
        pool.spread(work, chunks, processes, bar.update)


def _processes(recipe: Recipe, chunks: int, device: torch.device) -> int:
    """How many processes train at once: as many as have a core and room for their records."""
    if device.type != "cpu" or chunks < 2:
        return 1
    inputs = MODELS_AT_ONCE * recipe.len_training * recipe.widths[0] * torch.float32.itemsize
    room = psutil.virtual_memory().available // (COPIES * inputs)
    return max(1, min(cores.for_processes(), chunks, room))


def _devices(folder: Path, device: torch.device) -> dict[str, list[str]]:
    """What models of a build were trained on, with those to come; nothing where that is the CPU."""
    begun = any(model_folders(folder / phase) for phase in PHASES)
    before = read_record(folder / RECORD).get(DEVICES, ["cpu"]) if begun else []
    found = sorted({*map(str, before), describe(device)})
    return {} if found == ["cpu"] else {DEVICES: found}


def is_complete(root: Path, recipe: Recipe) -> bool:
    """Tell whether nothing is left to build."""
    return not list(_missing(root, recipe))


def untrained(recipe: Recipe) -> StackedMLP:
    """One network as the recipe will train them."""
    return initial_mlps(1, recipe.widths, torch.Generator())


def _check_record(folder: Path, recipe: Recipe, records: Records) -> None:
    path = folder / RECORD
    if not any(model_folders(folder / phase) for phase in PHASES):
        return  # nothing was built yet, whatever was begun
    if not path.exists():
        raise InputError(
            f"{folder} holds models but no {RECORD}, so `mico_exp.build` did not make it. "
            "Choose another `paths.data`."
        )
    asked = recipe.description(records)
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
    compare(folder, found, {key: wanted[key] for key in TRAINING if found.get(key) is not None})


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
    for number in range(sum(recipe.models.values())):
        folder, truth = _places(root, recipe, number)
        if folder.is_dir() and not (folder / "model.pt").exists():
            raise InputError(f"{folder} lacks model.pt. Delete that folder: it is built anew then.")
        if not folder.is_dir() or (truth and not truth_file(truth.parent).exists()):
            yield number


def _privacy(recipe: Recipe) -> Privacy | None:
    if recipe.privacy is None:
        return None
    target = recipe.privacy
    sigma = noise_multiplier(target.epsilon, target.delta, recipe.sample_rate, recipe.plan.steps)
    log.info("Noise multiplier %.4f for epsilon %g, delta %g", sigma, target.epsilon, target.delta)
    return Privacy(sigma, target.clip_norm)


def _spent(recipe: Recipe, privacy: Privacy | None) -> float | None:
    """The ε that a model's training spends."""
    if privacy is None or recipe.privacy is None:
        return None
    sigma, rate, steps = privacy.noise_multiplier, recipe.sample_rate, recipe.plan.steps
    return spent_epsilon(sigma, recipe.privacy.delta, rate, steps)


@dataclass(frozen=True, eq=False)
class _Training:
    """What all chunks of a build have in common; called with one, it trains and writes its models.

    epsilon: that each spends. missing: numbers of the models that are not there yet.
    """

    root: Path
    recipe: Recipe
    records: Records
    privacy: Privacy | None
    epsilon: float | None
    device: torch.device
    missing: frozenset[int]

    def __call__(self, numbers: range, tell: Callable[[float], None]) -> None:
        lacking = self.missing.intersection(numbers)
        step = len(lacking) / self.recipe.plan.steps
        if pool.is_worker():
            torch.set_num_threads(1)  # another on each core has its own; bits do not hang on it
        chunk = self.chunk(numbers, lambda: tell(step))
        for number in sorted(lacking):
            _write_model(self.root, self.recipe, chunk, number)

    def chunk(self, numbers: range, after_step: Callable[[], None] = lambda: None) -> "_Chunk":
        """Train the models `numbers` together.

        Their randomness depends on nothing but the recipe, and on what the device makes of a seed.
        """
        recipe, records, device = self.recipe, self.records, self.device
        name = zlib.crc32(f"{recipe.challenge}/{recipe.scenario}".encode())
        random = np.random.default_rng(np.random.SeedSequence([recipe.seed, name, numbers[0]]))
        generator = torch.Generator(device).manual_seed(int(random.integers(MAX_SEED)))
        folders = [
            ModelFolder(Path(f"model_{number}"), *map(int, random.integers(MAX_SEED, size=3)))
            for number in numbers
        ]
        splits = [folder.split(recipe.sizes) for folder in folders]
        own = torch.from_numpy(np.stack([np.concatenate([s.member, s.training]) for s in splits]))
        try:
            mlps = initial_mlps(len(numbers), recipe.widths, generator)
            inputs, labels = _features(records, own).to(device), records.labels[own].to(device)
            train(mlps, inputs, labels, recipe.plan, generator, self.privacy, after_step)
            accuracy = _accuracy(mlps, records, splits)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"`compute.device`: {device} has no memory to train {len(numbers)} models at once: "
                f"{first_line(error)} `compute.device=cpu` takes main memory."
            ) from error
        states = StackedMLP([one.cpu() for one in mlps.parameters]).states()
        return _Chunk(numbers[0], folders, splits, states, accuracy, self.epsilon)


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Models trained together, with what is written beside each."""

    first: int
    folders: list[ModelFolder]
    splits: list[Split]
    states: list[dict[str, torch.Tensor]]
    accuracy: list[float]
    epsilon: float | None


def _features(records: Records, indices: torch.Tensor) -> torch.Tensor:
    inputs = inputs_at(records, indices)
    if not isinstance(inputs, torch.Tensor):
        raise InputError("Models are built here for records of numbers only, not for sentences.")
    return inputs


@torch.inference_mode()
def _accuracy(mlps: StackedMLP, records: Records, splits: list[Split]) -> list[float]:
    """Share of the evaluation records that each model gets right."""
    device = mlps.parameters[0].device
    everything = _features(records, torch.arange(len(records.labels))).to(device)
    right = (mlps(everything).argmax(dim=-1).cpu() == records.labels).numpy()
    return [float(row[split.evaluation].mean()) for row, split in zip(right, splits, strict=True)]


def _write_model(root: Path, recipe: Recipe, chunk: _Chunk, number: int) -> None:
    i = number - chunk.first
    prefix = DP_PREFIX if recipe.privacy else ""
    state = {prefix + name: tensor for name, tensor in chunk.states[i].items()}
    told = {"accuracy": f"{chunk.accuracy[i]:.4f}"}
    if chunk.epsilon is not None:
        told["epsilon"] = f"{chunk.epsilon:.4f}"
    folder, truth = _places(root, recipe, number)
    seeds, disclosed = chunk.folders[i], recipe.disclose_training
    write_model(folder, truth, seeds, chunk.splits[i], state, told, disclose_training=disclosed)
