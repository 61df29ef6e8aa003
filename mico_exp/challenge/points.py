"""Challenge points of a scenario, whose members they are, and points whose membership is told.

Axes: T target models, S shadow models, the train models and the reference models after them, P
challenge points of one model, U unique challenge points of a scenario, N records of the data set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mico_exp.challenge.lists import KEEP, MEMBERS
from mico_exp.challenge.phases import SHADOW
from mico_exp.challenge.protocol import Sizes, Split
from mico_exp.challenge.tree import SEEDS, ModelFolder, Scenario, check_solution
from mico_exp.common.arrays import Indices, padded
from mico_exp.common.errors import InputError

NONE = -1  # no point


@dataclass(frozen=True, eq=False)
class ChallengePoints:
    """Where the challenge points of a scenario lie.

    of_phase: phase → (T, P) record indices in the order of the challenge set; a model with fewer
    points than others has `NONE` in the places at the end of its row. Where models share their
    points, all rows are one in memory.
    unique: (U,) the record indices that occur in any phase, ascending.
    is_member: (S, U) True where the shadow model was trained on the point.
    solution: (T, P) True where a train model's own challenge point is a member.
    """

    of_phase: dict[str, Indices]
    unique: Indices
    is_member: NDArray[np.bool_]
    solution: NDArray[np.bool_]

    def there(self, phase: str) -> NDArray[np.bool_]:
        """(T, P) True where a model has a point, False in the places at the end of its row."""
        return self.of_phase[phase] != NONE

    @property
    def is_pool(self) -> bool:
        """Every train model is asked at all unique points, in their order."""
        points = self.of_phase["train"]
        shared = points.strides[0] == 0 or len(points) == 1
        return shared and np.array_equal(points[0], self.unique)

    def thinned(self, most: int) -> "ChallengePoints":
        """The same with at most so many points of each model, evenly spaced in its row."""
        widest = max(points.shape[1] for points in self.of_phase.values())
        if widest <= most:
            return self
        counts = {phase: self.there(phase).sum(axis=1) for phase in self.of_phase}
        kept = {phase: [_spaced(n, most) for n in some] for phase, some in counts.items()}
        of_phase = {
            phase: padded([rows[i][some] for i, some in enumerate(kept[phase])], NONE)
            for phase, rows in self.of_phase.items()
        }
        solution = [self.solution[i][some] for i, some in enumerate(kept["train"])]
        return replace(self, of_phase=of_phase, solution=padded(solution, False))

    def points_of(self, phase: str, row: int) -> Indices:
        """(P,) record indices of one model's challenge points."""
        points = self.of_phase[phase][row]
        return points if points[-1] != NONE else points[points != NONE]

    def columns(self, phase: str) -> Indices:
        """(T, P) positions of the phase's challenge points in `unique`; `NONE` where is none."""
        points = self.of_phase[phase]
        if len(points) > 1 and points.strides[0] == 0:
            return np.broadcast_to(np.searchsorted(self.unique, points[0]), points.shape)
        return np.where(points == NONE, NONE, np.searchsorted(self.unique, points))


def _spaced(count: int, most: int) -> Indices:
    """Evenly spaced places among so many, at most so many of them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _unique(of_phase: Mapping[str, Indices]) -> Indices:
    """Records (U,) that are in any row, ascending; rows that are one in memory count once."""
    rows = [p[:1] if p.strides[0] == 0 else p for p in of_phase.values()]
    found = np.unique(np.concatenate([points.ravel() for points in rows]))
    return found[found != NONE]


def challenge_points(scenario: Scenario) -> ChallengePoints:
    """Derive all challenge points of a scenario and the shadow models' membership of them.

    Raises:
        InputError: a train or reference model lacks a seed or list, or what a folder tells
            disagrees.
    """
    sizes = scenario.sizes
    of_phase, solutions = {}, []
    trained_on = []  # (N,) of each shadow model, as bits: all index arrays would take 200 MB
    for phase, models in scenario.phases.items():
        rows = []
        for model in models:
            if phase == "train":
                split = disclosed(model, sizes)
                assert split.solution is not None
                solutions.append(split.solution)
                trained_on.append(np.packbits(split.trained_on(sizes.records)))
            else:
                split = model.split(sizes)
                check_solution(model, sizes, model.path / "solution.csv")
                model.check_lists(sizes, split)
            rows.append(split.challenge)
        of_phase[phase] = padded(rows, NONE)
    references = (disclosed(model, sizes) for model in scenario.shadow)
    trained_on += [np.packbits(split.trained_on(sizes.records)) for split in references]
    solution = padded(solutions, False)
    unique = _unique(of_phase)
    is_member = np.empty((len(trained_on), len(unique)), dtype=bool)
    for row, bits in enumerate(trained_on):
        is_member[row] = np.unpackbits(bits, count=sizes.records)[unique]
    return ChallengePoints(of_phase, unique, is_member, solution)


@dataclass(frozen=True, eq=False)
class KnownTraining:
    """What the disclosed training sets of target models say of all other records.

    Challenge points are in neither mask: only the secret membership decides them.

    member: (T, N) True where the record was certainly in the model's training set.
    nonmember: (T, N) True where it certainly was not.
    """

    member: NDArray[np.bool_]
    nonmember: NDArray[np.bool_]


def known_training(scenario: Scenario, phase: str) -> KnownTraining:
    """Derive the known members and non-members of each target model of a phase.

    Raises:
        InputError: the scenario does not disclose the training set of a model.
    """
    models = scenario.phases.get(phase, ())
    member = np.zeros((len(models), scenario.sizes.records), dtype=bool)
    nonmember = np.zeros_like(member)
    for row, model in enumerate(models):
        split = model.split(scenario.sizes)
        if split.training is None or split.evaluation is None:
            raise InputError(
                f"{undisclosed(model)} is missing: {scenario.path} does not disclose the training "
                f"sets of its {phase} models."
            )
        member[row, split.training] = True
        nonmember[row, split.evaluation] = True
    return KnownTraining(member, nonmember)


@dataclass(frozen=True, eq=False)
class KnownSample:
    """Records whose membership in one target model's training set is disclosed.

    points: (K,) record indices, ascending. is_member: (K,) True where it was trained on them.
    """

    points: Indices
    is_member: NDArray[np.bool_]


def known_sample(
    scenario: Scenario, points: ChallengePoints, members: int, nonmembers: int
) -> dict[str, list[KnownSample]]:
    """Draw known members and non-members of each model, phase by phase.

    Of train models all is known; they are drawn as if it were not, challenge points left out.
    They are drawn from the unique challenge points, where the train models are asked anyway, and
    by the model's own `seed_challenge`, or by its list, so always the same. Where fewer are known,
    all are taken: of SST-2, some 390 non-members.

    Raises:
        InputError: the scenario does not disclose the training set of a model.
    """
    found: dict[str, list[KnownSample]] = {}
    for phase in points.of_phase:
        known = known_training(scenario, phase)
        found[phase] = []
        for row, model in enumerate(scenario.phases[phase]):
            random = np.random.default_rng(model.draw_seed(scenario.sizes))
            drawn = []
            for mask, wanted in ((known.member, members), (known.nonmember, nonmembers)):
                among = points.unique[mask[row, points.unique]]
                drawn.append(random.permutation(among)[:wanted])
            sample = np.sort(np.concatenate(drawn))
            found[phase].append(KnownSample(sample, known.member[row, sample]))
    return found


def disclosed(model: ModelFolder, sizes: Sizes) -> Split:
    """Index sets of a train or reference model, all of which are known.

    Raises:
        InputError: it lacks a seed or list, or what its folder tells disagrees.
    """
    if not model.discloses_all:
        raise InputError(f"{undisclosed(model)} is missing: a {_kind(model)} must disclose it.")
    split = model.split(sizes)
    check_solution(model, sizes, model.path / "solution.csv", split)
    model.check_lists(sizes, split)
    return split


def _kind(model: ModelFolder) -> str:
    return "reference model" if model.path.parent.name == SHADOW else "train model"


def undisclosed(model: ModelFolder) -> Path:
    """File that a model would have to disclose all that it was trained on."""
    if model.seed_challenge is not None:
        names = [name for name, seed in zip(SEEDS, model.seeds, strict=True) if seed is None]
        return model.path / names[0]
    secret = model.lists is not None and model.lists.secret
    return model.path / f"{MEMBERS}.npy" if secret else model.path.parent / KEEP
