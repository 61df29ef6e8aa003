"""Reference models for a scenario that is there: which there are to be, and their training.

All hangs on the seed, the scenario, the kind and target of a reference and its place among those of
its kind: that there are more of them, or others, changes none.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mico_exp.challenge.lists import MEMBERS
from mico_exp.challenge.phases import SHADOW
from mico_exp.challenge.protocol import MAX_SEED, Sizes
from mico_exp.challenge.records import Records
from mico_exp.challenge.tree import LEFT_OUT, ModelFolder, Scenario, model_folders
from mico_exp.common import require
from mico_exp.common.atomic import exclusive, new_folder, remove_leftovers, write_text
from mico_exp.common.errors import InputError
from mico_exp.models.folders import RECORD, compare, read_record
from mico_exp.models.workers import Workers
from mico_exp.training.building import (
    DEVICES,
    Progress,
    check_stopped,
    note_device,
    train_pieces,
)
from mico_exp.training.drawing import (
    KINDS,
    LEAVE_OUT,
    LIKE_TRAIN,
    POOL,
    Among,
    Draw,
    draw_for,
    targets_of,
)
from mico_exp.training.making import Made, Making, Piece, Wanted
from mico_exp.training.recipe import OF_LATE, Recipe

USUAL = {POOL: 64, LIKE_TRAIN: 64, LEAVE_OUT: 1}  # how many, where that is not told
RUNS = "runs"  # in the record
OF_SCENARIO = ("len_training", "len_challenge", "models", "steps", "disclose_training")


@dataclass(frozen=True)
class Run:
    """References that were asked for together, numbered one after another.

    kind: one of `KINDS`. target: ``final/model_0``, whose points are left out; None of other kinds.
    count: of models. among: what tells the records that they are drawn from; None of all.
    """

    kind: str
    target: str | None
    count: int
    among: str | None = None

    def is_like(self, other: "Run") -> bool:
        """Tell whether both are of the same kind and target."""
        return (self.kind, self.target) == (other.kind, other.target)


def with_more(runs: Sequence[Run], asked: Run) -> list[Run]:
    """Runs with so many of a kind and target in all; those that are there keep their numbers.

    Raises:
        InputError: there are more already, or they were trained among other records.
    """
    alike = [one for one in runs if one.is_like(asked)]
    there, what = sum(one.count for one in alike), f"kind={asked.kind}"
    what += f" target={asked.target}" if asked.target else ""
    if alike and alike[0].among != asked.among:
        known, got = (one.among or "all records" for one in (alike[0], asked))
        raise InputError(
            f"`among` must be what it was for the {there} reference models of {what} that are "
            f"there, {known}, got {got}: choose another `paths.data`, or delete their folder."
        )
    if asked.count < there:
        raise InputError(
            f"`models` must be at least {there}, as so many reference models of {what} were asked "
            f"for, got {asked.count}."
        )
    more = replace(asked, count=asked.count - there)
    if not more.count:
        return list(runs)
    if runs and runs[-1].is_like(asked):
        return [*runs[:-1], replace(more, count=runs[-1].count + more.count)]
    return [*runs, more]


@dataclass(frozen=True)
class Reference:
    """One of them: its number, what it is, and its place among those that are the same."""

    number: int
    kind: str
    target: str | None
    place: int

    def is_of(self, run: Run) -> bool:
        """Tell whether it is of a run's kind and target."""
        return (self.kind, self.target) == (run.kind, run.target)


def references(runs: Iterable[Run]) -> Iterator[Reference]:
    """All references of some runs in the order of their numbers."""
    places: Counter[tuple[str, str | None]] = Counter()
    number = 0
    for run in runs:
        for _ in range(run.count):
            key = run.kind, run.target
            yield Reference(number, *key, places[key])
            places[key] += 1
            number += 1


@dataclass(frozen=True, eq=False)
class Group:
    """References of one kind and target, in all, and how they are drawn and trained."""

    asked: Run
    draw: Draw
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class _Work:
    """References that are trained alike: `runs` says of each number what it is."""

    making: Making
    runs: Mapping[int, Run]
    pieces: Sequence[Piece]


class Pool:
    """The reference models of a scenario, as they lie in its folder ``shadow``.

    Args:
        folder: of the scenario.
        seed: that all is drawn by.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder / SHADOW, seed
        self.name = f"{folder.parent.name}/{folder.name}/{SHADOW}"

    def train(
        self, groups: Sequence[Group], records: Records, device: str, workers: Workers
    ) -> int:
        """Train what is missing of some groups; says how many there were.

        Raises:
            InputError: those that are there were trained otherwise or from other records, or are
                more; as `Making`; or models were stopped, when all others are written.
        """
        lock = self.folder.parent.with_name(f".{self.folder.parent.name}.lock")
        with exclusive(lock, f"training {self.folder}"):
            runs = self._runs(groups, records)
            works = self._works(groups, runs, records, device)
            if not works:
                return 0
            workers.check(device, groups[0].recipe.plan.precision)
            self._write_record(groups[0].recipe, records, runs)
            remove_leftovers(self.folder)
            missing = sum(len(work.pieces) for work in works)
            with Progress(self.name, missing, 0) as progress:
                stopped = [one for work in works for one in self._train(work, workers, progress)]
            check_stopped(self.name, stopped)
        return missing

    def check(self, recipe: Recipe, records: Records) -> None:
        """Compare a recipe with how the references that are there were trained.

        Raises:
            InputError: they were trained otherwise, or from other records.
        """
        told = self._description(recipe, records)
        compare(self.folder, read_record(self.folder / RECORD), dict.fromkeys(OF_LATE) | told)

    def _runs(self, groups: Sequence[Group], records: Records) -> list[Run]:
        """All runs with those that are asked for."""
        path = self.folder / RECORD
        there = model_folders(self.folder)
        if there and not path.exists():
            raise InputError(
                f"{self.folder} holds models but no {RECORD}, so `mico_exp.shadow` did not make "
                "them: it can add none."
            )
        found = read_record(path) if there else {}
        if there:
            self.check(groups[0].recipe, records)
        runs = [Run(**one) for one in found.get(RUNS, ())]
        for group in groups:
            runs = with_more(runs, group.asked)
        return runs

    def _description(self, recipe: Recipe, records: Records) -> dict[str, Any]:
        told = {k: v for k, v in recipe.description(records).items() if k not in OF_SCENARIO}
        steps = None if recipe.epochs else recipe.plan.steps
        return told | {"steps": steps, "epochs": recipe.epochs, "seed": self.seed}

    def _write_record(self, recipe: Recipe, records: Records, runs: Sequence[Run]) -> None:
        path, told = self.folder / RECORD, self._description(recipe, records)
        before = read_record(path) if path.exists() else {}
        told |= {name: one for name, one in before.items() if name == DEVICES}
        told[RUNS] = [asdict(one) for one in runs]
        write_text(path, json.dumps(told, indent=2) + "\n")

    def _place(self, number: int) -> Path:
        return self.folder / f"model_{number}"

    def _works(
        self, groups: Sequence[Group], runs: Sequence[Run], records: Records, device: str
    ) -> list["_Work"]:
        """What is to be trained, groups of one recipe together.

        Raises:
            InputError: as `Making`, or one has fewer records than a batch.
        """
        alike: dict[str, tuple[Recipe, dict[int, Run], list[Piece]]] = {}
        for group in groups:
            key = json.dumps(group.recipe.description(records))
            _, runs_of, pieces = alike.setdefault(key, (group.recipe, {}, []))
            for one in self._missing(group, runs):
                runs_of[one.number] = group.asked
                pieces.append(self._piece(one, group, len(records.labels)))
        return [
            _Work(Making.of(recipe, records, device), runs_of, pieces)
            for recipe, runs_of, pieces in alike.values()
            if pieces
        ]

    def _missing(self, group: Group, runs: Sequence[Run]) -> list[Reference]:
        """References of a group that are not there."""
        every = (one for one in references(runs) if one.is_of(group.asked))
        return [one for one in every if not self._place(one.number).is_dir()]

    def _train(self, work: "_Work", workers: Workers, progress: Progress) -> list[str]:
        """Train and write; names those that were stopped."""
        return train_pieces(work.making, work.pieces, workers, progress, self._writer(work))

    def _piece(self, one: Reference, group: Group, records: int) -> Piece:
        """What a reference is trained on, and its seed."""
        name = zlib.crc32(f"{self.name}/{one.kind}/{one.target}".encode())
        random = np.random.default_rng(np.random.SeedSequence([self.seed, name, one.place]))
        seed, own = int(random.integers(MAX_SEED)), group.draw.own(random)
        unseen = np.setdiff1d(np.arange(records), own)
        if not len(unseen):
            raise InputError(f"kind={one.kind} must leave some record out, got all {records}.")
        if len(own) < (batch := group.recipe.plan.batch_size):
            raise InputError(
                f"`batch_size` must be at most the {len(own)} records that reference model "
                f"model_{one.number} trains on, got {batch}."
            )
        return Piece(seed, (Wanted(one.number, own, unseen),))

    def _writer(self, work: "_Work") -> Callable[[Made], None]:
        """Writes a model's folder, whole or not at all."""
        making, count = work.making, len(work.making.records.labels)
        wanted = {one.number: one for piece in work.pieces for one in piece.models}

        def write(made: Made) -> None:
            note_device(self.folder, made.device, phases=("",))
            own, told = wanted[made.number].own, dict(made.told)
            if making.epsilon is not None:  # its own number of records, its own ε
                run = making.privacy, len(own), making.plan.steps
                told["epsilon"] = f"{making.recipe.spent(*run):.4f}"
            if (target := work.runs[made.number].target) is not None:
                told[LEFT_OUT] = target
            mask = np.zeros(count, dtype=bool)
            mask[own] = True
            with new_folder(self._place(made.number)) as unfinished:
                (unfinished / "model.pt").write_bytes(made.weights)
                np.save(unfinished / f"{MEMBERS}.npy", mask)
                for name, content in told.items():
                    (unfinished / name).write_text(content + "\n", encoding="utf-8")

        return write


def groups_for(
    scenario: Scenario,
    asked: Run,
    target: str | None,
    among: Among,
    recipe: Callable[..., Recipe],
) -> list[Group]:
    """What references are asked for: one group, or of leave_out one for each target.

    Args:
        scenario: that they are for, as far as it is there.
        asked: their kind and how many there are to be, of each group.
        target: name of the targets, of leave_out.
        among: records that they are drawn from.
        recipe: how models are trained that have as many records as `sizes` says.

    Raises:
        InputError: as `targets_of` and `draw_for`, or no model can be trained so.
    """
    chosen: dict[str | None, ModelFolder | None] = {None: None}
    if asked.kind == LEAVE_OUT:
        chosen = dict(targets_of(scenario, target).items())
    found = []
    for name, model in chosen.items():
        draw = draw_for(scenario, asked.kind, model, among)
        sizes = Sizes(scenario.sizes.records, draw.usual, 1)
        one = replace(asked, target=name, among=among.told)
        found.append(Group(one, draw, recipe(sizes=sizes, models={})))
    return found


def check_asked(kind: str, target: str | None, models: int | None) -> int:
    """Check what references are asked for; says how many.

    Raises:
        InputError: there is no such kind, a target is named for another one, or it is no number.
    """
    require.one_of("kind", kind, KINDS)
    if target is not None and kind != LEAVE_OUT:
        raise InputError(f"`target` must be null but for kind={LEAVE_OUT}, got {target!r:.80}.")
    count = USUAL[kind] if models is None else models
    require.whole("models", count, 1)
    return count
