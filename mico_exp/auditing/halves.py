"""Halves of the train models: one half are shadows, and the other the models that are judged.

Where the truth of dev and final models is not known, train models tell their own. All that is
learnt and chosen is of the first half; nothing of the second half's membership is in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mico_exp.attacks.evidence import Evidence
from mico_exp.challenge.points import ChallengePoints
from mico_exp.common.arrays import Indices, Mask
from mico_exp.common.errors import InputError
from mico_exp.scores.table import Scores

SHADOWS, TARGETS = "train", "final"  # phases of the evidence of halves
FEWEST = 4  # train models: two shadows and two targets
FEWEST_TO_CHOOSE = 8  # shadows, of which each in turn is judged by the others


@dataclass(frozen=True)
class Halves:
    """Which train models are shadows, and which are targets."""

    shadows: Indices
    targets: Indices


def halve(models: int, seed: int, name: str) -> Halves:
    """Draw halves of so many train models of a scenario.

    Raises:
        InputError: there are too few.
    """
    if models < FEWEST:
        raise InputError(
            f"{name}: the truth of dev and final models is not known, and {models} train models "
            f"are too few to be halved: {FEWEST} are needed."
        )
    order = np.random.default_rng(seed).permutation(models)
    return Halves(np.sort(order[: models // 2]), np.sort(order[models // 2 :]))


def is_balanced(points: ChallengePoints) -> bool:
    """Tell whether each record is in exactly half of the train models.

    Then membership of one half of them tells that of the other.
    """
    trained = len(points.of_phase["train"])
    inside = np.count_nonzero(points.is_member[:trained], axis=0)
    return bool((2 * inside == trained).all())


def of_halves(evidence: Evidence, halves: Halves) -> tuple[Evidence, Mask]:
    """Evidence on the targets with shadows alone, and the targets' membership (T, P).

    Reference models stay among the shadows; no training set is disclosed.
    """
    points = evidence.points
    trained = len(points.of_phase["train"])
    rows = np.concatenate([halves.shadows, np.arange(trained, len(points.is_member))])
    of_phase = {
        SHADOWS: _rows(points.of_phase["train"], halves.shadows),
        TARGETS: _rows(points.of_phase["train"], halves.targets),
    }
    halved = replace(
        points,
        of_phase=of_phase,
        is_member=points.is_member[rows],
        solution=points.solution[halves.shadows],
    )
    scores: Mapping[str, Scores] = {
        name: Scores(
            one.shadow[rows],
            {
                SHADOWS: one.own["train"][halves.shadows],
                TARGETS: one.own["train"][halves.targets],
            },
        )
        for name, one in evidence.scores.items()
    }
    return Evidence(scores, halved, evidence.labels), points.solution[halves.targets]


def _rows(points: Indices, some: Indices) -> Indices:
    """Some rows (T, P); rows that are one and the same in memory stay so."""
    if points.strides[0] == 0:
        return np.broadcast_to(points[0], (len(some), points.shape[1]))
    return points[some]
