"""Challenge points of a scenario, whose members they are, and points whose membership is told.

Axes: T target models, S train (shadow) models, P = 2m challenge points of one model, U unique
challenge points of a scenario, N records of the data set.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mico_exp.challenge.protocol import Sizes, Split
from mico_exp.challenge.tree import ModelFolder, Scenario, check_solution
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError


@dataclass(frozen=True, eq=False)
class ChallengePoints:
    """Where the challenge points of a scenario lie.

    of_phase: phase → (T, P) record indices in the order of the challenge set.
    unique: (U,) the record indices that occur in any phase, ascending.
    is_member: (S, U) True where the train model was trained on the point.
    solution: (S, P) True where the train model's own challenge point is a member.
    """

    of_phase: dict[str, Indices]
    unique: Indices
    is_member: NDArray[np.bool_]
    solution: NDArray[np.bool_]

    def columns(self, phase: str) -> Indices:
        """(T, P) positions of the phase's challenge points in `unique`."""
        return np.searchsorted(self.unique, self.of_phase[phase])


def challenge_points(scenario: Scenario) -> ChallengePoints:
    """Derive all challenge points of a scenario and the train models' membership of them.

    Raises:
        InputError: a train model lacks a seed, or its solution.csv disagrees with its seeds.
    """
    sizes = scenario.sizes
    of_phase: dict[str, Indices] = {
        phase: np.empty((len(models), 2 * sizes.challenge), np.int64)
        for phase, models in scenario.phases.items()
    }
    solution = np.empty(of_phase["train"].shape, dtype=bool)
    trained_on = []  # (N,) of each train model, as bits: all index arrays would take 200 MB
    for phase, models in scenario.phases.items():
        for row, model in enumerate(models):
            if phase == "train":
                split = disclosed(model, sizes)
                solution[row] = split.solution
                trained_on.append(np.packbits(split.trained_on(sizes.records)))
            else:
                split = model.split(sizes)
                check_solution(model, sizes, model.path / "solution.csv")
            of_phase[phase][row] = split.challenge
    unique = np.unique(np.concatenate([points.ravel() for points in of_phase.values()]))
    is_member = np.empty((len(trained_on), len(unique)), dtype=bool)
    for row, bits in enumerate(trained_on):
        is_member[row] = np.unpackbits(bits, count=sizes.records)[unique]
    return ChallengePoints(of_phase, unique, is_member, solution)


@dataclass(frozen=True, eq=False)
class KnownTraining:
    """What the disclosed `seed_training` of target models says of all other records.

    Challenge points are in neither mask: only the secret membership decides them.

    member: (T, N) True where the record was certainly in the model's training set.
    nonmember: (T, N) True where it certainly was not.
    """

    member: NDArray[np.bool_]
    nonmember: NDArray[np.bool_]


def known_training(scenario: Scenario, phase: str) -> KnownTraining:
    """Derive the known members and non-members of each target model of a phase.

    Raises:
        InputError: the scenario does not disclose `seed_training` of a model.
    """
    models = scenario.phases.get(phase, ())
    member = np.zeros((len(models), scenario.sizes.records), dtype=bool)
    nonmember = np.zeros_like(member)
    for row, model in enumerate(models):
        split = model.split(scenario.sizes)
        if split.training is None or split.evaluation is None:
            raise InputError(
                f"{model.path / 'seed_training'} is missing: {scenario.path} does not disclose "
                f"the training sets of its {phase} models."
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
    by the model's own `seed_challenge`, so always the same. Where fewer are known, all are taken:
    of SST-2, some 390 non-members.

    Raises:
        InputError: the scenario does not disclose `seed_training` of a model.
    """
    found: dict[str, list[KnownSample]] = {}
    for phase in points.of_phase:
        known = known_training(scenario, phase)
        found[phase] = []
        for row, model in enumerate(scenario.phases[phase]):
            random = np.random.default_rng(model.seed_challenge)
            drawn = []
            for mask, wanted in ((known.member, members), (known.nonmember, nonmembers)):
                among = points.unique[mask[row, points.unique]]
                drawn.append(random.permutation(among)[:wanted])
            sample = np.sort(np.concatenate(drawn))
            found[phase].append(KnownSample(sample, known.member[row, sample]))
    return found


def disclosed(model: ModelFolder, sizes: Sizes) -> Split:
    """Index sets of a train model, all of which are known.

    Raises:
        InputError: it lacks a seed, or its solution.csv disagrees with its seeds.
    """
    for name in ("seed_training", "seed_membership"):
        if getattr(model, name) is None:
            raise InputError(f"{model.path / name} is missing: a train model must disclose it.")
    split = model.split(sizes)
    check_solution(model, sizes, model.path / "solution.csv", split)
    return split
