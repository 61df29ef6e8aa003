"""The competition's tree: scenarios, and each model's folder with what is known of it.

A *scenario* such as ``digits_inf`` has up to three *phases* (train, dev, final), each a list of
models in the order of their numbers. Beside them may lie reference models (shadow), which tell what
is usual and are attacked by nobody.
What is known of a model lies in its folder; the truth of dev and final models lies apart
(`truth.read_truth`) and is read by scoring alone.

Axes: P = 2m challenge points of one model.
"""

import codecs
import hashlib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mico_exp.challenge.lists import KEEP, Lists, check_keep
from mico_exp.challenge.phases import PHASES, SHADOW, SUBMITTED
from mico_exp.challenge.protocol import MAX_SEED, Sizes, Split, of_seeds, permutation, split
from mico_exp.common import require
from mico_exp.common.errors import InputError

SEEDS = ("seed_challenge", "seed_training", "seed_membership")
LEFT_OUT = "left_out"  # file of a reference model: the target whose points it was trained without


@dataclass(frozen=True)
class ModelFolder:
    """One model on disk with the seeds that its folder discloses, or lists in their place."""

    path: Path
    seed_challenge: int | None = None
    seed_training: int | None = None
    seed_membership: int | None = None
    lists: Lists | None = field(default=None, kw_only=True)

    @property
    def number(self) -> int:
        """K of ``model_K``."""
        return model_number(self.path)

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """All three, None where one is not disclosed."""
        return self.seed_challenge, self.seed_training, self.seed_membership

    @property
    def discloses_training(self) -> bool:
        """Tells which records it was trained on, but for its challenge points perhaps."""
        listed = self.lists is not None and self.lists.tells_members
        return self.seed_training is not None or listed

    @property
    def discloses_all(self) -> bool:
        """Tells all records that it was trained on."""
        listed = self.lists is not None and self.lists.tells_members and not self.lists.secret
        return None not in self.seeds or listed

    def split(self, sizes: Sizes) -> Split:
        """Index sets of this model, as far as its seeds and lists disclose them.

        Raises:
            InputError: a list is not what it must be.
        """
        if self.seed_challenge is None:
            assert self.lists is not None
            return self.lists.split(sizes.records)
        found = split(sizes, self.seed_challenge, self.seed_training, self.seed_membership)
        if self.lists is None or None not in self.seeds:
            return found
        return found.filled(self.lists.split(sizes.records, found.challenge))

    def check_lists(self, sizes: Sizes, drawn: Split | None = None) -> None:
        """Compare lists with seeds where both tell; `drawn` is the model's split.

        Raises:
            InputError: they disagree, or a list is not what it must be.
        """
        if self.seed_challenge is None or self.lists is None:
            return
        found = drawn or self.split(sizes)
        told = self.lists.split(sizes.records, found.challenge)
        same = found.agrees(told)
        if self.lists.challenge is not None:
            same &= np.array_equal(found.challenge, self.lists.points(sizes.records))
        if not same:
            names = ", ".join(str(file) for file in self.lists.files())
            raise InputError(f"{names} disagrees with the seeds of {self.path.name}.")

    def num_points(self, sizes: Sizes) -> int:
        """How many challenge points it has, P."""
        if self.seed_challenge is None:
            assert self.lists is not None
            return self.lists.length(sizes.records)
        return 2 * of_seeds(sizes)[1]

    def solution(self, sizes: Sizes) -> NDArray[np.bool_] | None:
        """(P,) as that of its split, which need not be drawn for it where a seed tells."""
        if self.seed_challenge is None or self.seed_membership is None:
            return None if self.lists is None else self.split(sizes).solution
        found = np.zeros(self.num_points(sizes), dtype=bool)
        found[permutation(self.seed_membership, len(found))[len(found) // 2 :]] = True
        return found

    def num_training(self, sizes: Sizes) -> int | None:
        """How many records it was trained on, where that is told."""
        if self.lists is None or not self.lists.tells_members:
            return sizes.training
        return int(np.count_nonzero(self.lists.members_of(sizes.records)))

    def draw_seed(self, sizes: Sizes) -> int:
        """Seed of what is drawn for this model: that of its challenge, or of the list of it."""
        if self.seed_challenge is not None:
            return self.seed_challenge
        points = self.split(sizes).challenge
        told = hashlib.sha256(points.astype("<i8").tobytes() + self.path.name.encode())
        return int.from_bytes(told.digest()[:8], "little") % MAX_SEED


@dataclass(frozen=True)
class Scenario:
    """The models of one scenario by phase, in the order of their numbers.

    `challenge` is the submission it belongs to (``digits``), `name` its folder (``digits_inf``).
    `shadow` are reference models beside the train models, which have no challenge points.
    """

    challenge: str
    name: str
    sizes: Sizes
    phases: dict[str, tuple[ModelFolder, ...]]
    shadow: tuple[ModelFolder, ...] = ()

    @property
    def every(self) -> dict[str, tuple[ModelFolder, ...]]:
        """All models by phase, reference models last."""
        return {**self.phases, **({SHADOW: self.shadow} if self.shadow else {})}

    @property
    def discloses(self) -> bool:
        """All of its models tell the records that they were trained on."""
        return all(model.discloses_training for _, model in self.models())

    @property
    def path(self) -> str:
        """Where it lies in the competition's tree: ``digits/digits_inf``."""
        return f"{self.challenge}/{self.name}"

    def models(self) -> Iterator[tuple[str, ModelFolder]]:
        """Every model with the name of its phase, reference models last."""
        for phase, models in self.every.items():
            for model in models:
                yield phase, model


def check_solution(
    model: ModelFolder, sizes: Sizes, path: Path, drawn: Split | None = None
) -> None:
    """Compare a solution.csv with a model's seeds, where both are there; `drawn` is its split.

    Raises:
        InputError: they disagree, or the file is malformed.
    """
    if not path.exists():
        return
    found = read_solution(path, model.num_points(sizes))
    expected = (drawn or model.split(sizes)).solution
    if expected is not None and not np.array_equal(found, expected):
        raise InputError(f"{path} disagrees with {_what_else_tells(model, sizes)}.")


def _what_else_tells(model: ModelFolder, sizes: Sizes) -> str:
    if model.seed_challenge is None:
        return f"the lists of {model.path.name}"
    return (
        f"the seeds of {model.path.name}. Check `len_training` ({sizes.training}), "
        f"`len_challenge` ({sizes.challenge}) and the number of records ({sizes.records}), or "
        "fetch the folder anew"
    )


def read_solution(path: Path, length: int | None = None) -> NDArray[np.bool_]:
    """Read one line of zeros and ones, `length` of them if given; returns (length,) bool.

    Raises:
        InputError: it cannot be read, or holds another number of values or other values.
    """
    try:
        values = split_line(path, require.file(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error
    expected = f"expected one line of {'' if length is None else f'{length} '}values 0 or 1"
    if not values or length not in (None, len(values)):
        raise InputError(f"{path}: {expected}, got {len(values)}.")
    if wrong := [value for value in values if value not in ("0", "1")]:
        raise InputError(f"{path}: {expected}, got {wrong[0][:40]!r} among them.")
    return np.array([value == "1" for value in values])


def split_line(origin: object, content: bytes) -> list[str]:
    """Split a file's one line of comma-separated values; an empty file has none.

    Blanks around a value, a newline at the end and Windows' line ends do not matter.

    Raises:
        InputError: more lines, or no plain text; `origin` says which file it is.
    """
    if content.startswith(codecs.BOM_UTF8):
        raise InputError(f"{origin}: must be plain text, got a byte-order mark at its start.")
    if not content.isascii():
        raise InputError(f"{origin}: must be plain text, got bytes that are not ASCII.")
    lines = content.decode().strip(" \t\r\n").replace("\r\n", "\n").split("\n")
    if len(lines) != 1:
        raise InputError(f"{origin}: expected one line, got {len(lines)}.")
    return [value.strip(" \t") for value in lines[0].split(",")] if lines[0] else []


def write_solution(solution: NDArray[np.bool_]) -> str:
    """Text of a solution.csv for a (2m,) membership vector."""
    return ",".join(str(int(value)) for value in solution) + "\n"


def scenario_folder(root: Path, challenge: str, name: str) -> Path:
    """Folder of a scenario in the competition's tree under `root`."""
    return root / challenge / name


def model_number(path: Path) -> int:
    """K of a folder named ``model_K``."""
    return int(path.name.removeprefix("model_"))


def model_folders(folder: Path) -> list[Path]:
    """Folders ``model_K`` in `folder` in the order of K; empty if there is no such folder.

    Numbers may have gaps.

    Raises:
        InputError: a folder is named ``model_`` and something else, or two have one number.
    """
    found, faults = look_for_models(folder)
    if faults:
        raise InputError(faults[0])
    return found


def look_for_models(folder: Path) -> tuple[list[Path], list[str]]:
    """Folders ``model_K`` in `folder` in the order of K, and what is wrong with the names there.

    A number is a model's name within its phase: another phase may have it too.
    """
    if not folder.is_dir():
        return [], []
    named = [path for path in folder.iterdir() if path.name.startswith("model_") and path.is_dir()]
    found = [path for path in named if re.fullmatch(r"model_[0-9]+", path.name)]
    faults = [
        f"{path}: a model's folder must be named model_0, model_1, …"
        for path in sorted(set(named) - set(found))
    ]
    found = sorted(found, key=lambda path: (model_number(path), path.name))
    if same := _twice(((path, model_number(path)) for path in found), "have the same number"):
        faults.append(same)
    return found, faults


def _twice(keyed: Iterable[tuple[Path, Hashable]], what: str) -> str | None:
    """Say that models which should differ have one key, and which are the first; None if none."""
    first: dict[Hashable, Path] = {}
    pairs = [(first[key], path) for path, key in keyed if first.setdefault(key, path) is not path]
    if not pairs:
        return None
    others = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
    return f"{pairs[0][0]} and {pairs[0][1]} {what}{others}: every model must be there only once."


def equal_seeds(models: Iterable[ModelFolder]) -> str | None:
    """Say which models have equal seeds; None if none.

    Only all three together mean that it is one model, trained again perhaps: models may share
    points or training records by design.
    """
    known = ((model.path, model.seeds) for model in models if None not in model.seeds)
    return _twice(known, "have the same seed_challenge, seed_training and seed_membership")


def equal_weights(weights: Iterable[tuple[Path, str]]) -> str | None:
    """Say which models have equal weights, by their digests; None if none.

    An empty digest is no model's: weights that are not finite are alike, and count for nothing.
    """
    return _twice(((path, digest) for path, digest in weights if digest), "hold equal weights")


class NoTrainModelsError(InputError):
    """A scenario has neither train models nor any that stand in for them.

    has_left_out: it has reference models that leave out a target's points.
    """

    def __init__(self, folder: Path, *, has_left_out: bool) -> None:
        self.has_left_out = has_left_out
        others = "none either"
        if has_left_out:
            others = "none but such that leave out a target's points, of which nobody is a member"
        super().__init__(
            f"{folder / 'train'} holds no folder named model_0, model_1, …, and {folder / SHADOW} "
            f"{others}: there is nothing to compare with."
        )


def load_scenario(root: Path, challenge: str, name: str, sizes: Sizes) -> Scenario:
    """Find a scenario's models and read their seeds; phases without models are left out.

    Raises:
        NoTrainModelsError: nor reference models that stand in for them.
        InputError: a seed is missing or out of range, or a model there twice.
    """
    scenario = find_scenario(root, challenge, name, sizes)
    if "train" not in scenario.phases:
        folder = scenario_folder(root, challenge, name)
        raise NoTrainModelsError(folder, has_left_out=bool(scenario.shadow))
    if same := equal_seeds(model for _, model in scenario.models()):
        raise InputError(same)
    return scenario


def find_scenario(root: Path, challenge: str, name: str, sizes: Sizes) -> Scenario:
    """Find as much of a scenario as is there, and it may be nothing.

    Raises:
        InputError: a seed is missing or out of range, or a list is there twice.
    """
    folder = scenario_folder(root, challenge, name)
    found = {one: read_models(folder / one, sizes.records) for one in (*PHASES, SHADOW)}
    return arranged(challenge, name, sizes, found)


def arranged(
    challenge: str, name: str, sizes: Sizes, found: Mapping[str, tuple[ModelFolder, ...]]
) -> Scenario:
    """Arrange the models found in every phase, `SHADOW` among them.

    Reference models are asked about nothing of their own. Where there are no train models, an
    attack has to be validated on something all the same: then they stand in for them, each of them
    left out in turn, and are asked at the points of all dev and final models. Those that leave out
    the points of one target do not, as nobody is a member there.
    """
    phases = {phase: found[phase] for phase in PHASES if found.get(phase)}
    shadow = found.get(SHADOW, ())
    stand_ins: tuple[ModelFolder, ...] = ()
    if "train" not in phases and shadow:
        stand_ins = _asked([one for one in shadow if not left_out(one)], _points(phases, sizes))
        phases = {**({"train": stand_ins} if stand_ins else {}), **phases}
    others = [one for one in shadow if not stand_ins or left_out(one)]
    return Scenario(challenge, name, sizes, phases, _asked(others, ()))


def left_out(model: ModelFolder) -> bool:
    """Tell whether a reference model was trained on all but one target's challenge points."""
    return (model.path / LEFT_OUT).exists()


def _asked(
    models: Iterable[ModelFolder], points: tuple[int, ...] | None
) -> tuple[ModelFolder, ...]:
    """The same reference models, with these challenge points in place of what lists say."""
    return tuple(
        one if one.lists is None else replace(one, lists=replace(one.lists, asked=points))
        for one in models
    )


def _points(phases: Mapping[str, tuple[ModelFolder, ...]], sizes: Sizes) -> tuple[int, ...] | None:
    """Challenge points of all models, ascending; None where there are none."""
    asked = [one.split(sizes).challenge for models in phases.values() for one in models]
    return tuple(np.unique(np.concatenate(asked)).tolist()) if asked else None


def read_models(phase: Path, records: int) -> tuple[ModelFolder, ...]:
    """Read what the folders of a phase's models disclose, in the order of their numbers."""
    found = model_folders(phase)
    check_keep(phase, len(found), records)
    return tuple(read_model(path, row) for row, path in enumerate(found))


def read_model(path: Path, row: int) -> ModelFolder:
    """Read the seeds that a model's folder discloses, and find its lists.

    Args:
        path: of the folder.
        row: its place among the models of its phase.

    Raises:
        InputError: a seed is missing that no list stands for, or is none.
    """
    lists = Lists.of(path, row)
    found = {name: read_seed(path / name) for name in SEEDS if (path / name).exists()}
    if lists is None and not found:
        raise InputError(_untold(path))
    if lists is None or found:
        found["seed_challenge"] = read_seed(path / "seed_challenge")
    elif lists.secret and lists.challenge is None:
        raise InputError(
            f"{path} tells no challenge points: expected seed_challenge, or challenge.npy or .csv "
            f"in it or in {path.parent.parent}."
        )
    return ModelFolder(path, **found, lists=lists)


def _untold(path: Path) -> str:
    """Say what is missing of a model of which nothing is told."""
    phase, scenario = path.parent, path.parent.parent
    if phase.name in SUBMITTED:
        return (
            f"{path} tells no challenge points: expected seed_challenge, or challenge.npy or .csv "
            f"in it or in {scenario}."
        )
    misplaced = f", which lies in {scenario}" if (scenario / KEEP).exists() else ""
    return (
        f"{path} tells no membership: expected {phase / KEEP}{misplaced}, or members.npy or .csv "
        "in it, or the competition's seeds (seed_challenge, seed_training, seed_membership)."
    )


def read_seed(path: Path) -> int:
    """Read one integer in [0, 2^63 - 1] from a text file."""
    try:
        text = require.file(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a seed must be readable as text, got: {error}.") from error
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > MAX_SEED:
        raise InputError(f"{path}: a seed must be an integer in [0, 2^63 - 1], got {text[:40]!r}.")
    return int(text)
