"""All that an attack may use on one scenario: scores, who trained on what, classes, what is told.

Axes: T target models of a phase, S shadow models, the train models and the reference models after
them, P challenge points of a target, U unique points, K points of one model whose membership is
disclosed. Where models have unequal numbers of
points, rows (T, P) end in NaN, and in False for membership; `points.there` says where.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mico_exp.attacks.calibration import Calibrated, Formula, calibrate
from mico_exp.challenge.points import ChallengePoints, KnownSample
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError
from mico_exp.scores.table import Scores


class Known(NamedTuple):
    """One model's scores at its challenge points and at points whose membership is disclosed.

    own: (P,) at its challenge points. scores: (K,) at the disclosed ones. is_member: (K,).
    All are calibrated together, so that a formula that looks at all points of a target looks at
    the same for either.
    """

    own: Floats
    scores: Floats
    is_member: Mask


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known on a scenario.

    scores: by metric, in a fixed order. points: where the challenge points lie. labels: (U,)
    classes of the unique points. known: phase → each model's sample of known members and
    non-members; empty where training sets are not disclosed.
    """

    scores: Mapping[str, Scores]
    points: ChallengePoints
    labels: NDArray[np.int64]
    known: Mapping[str, Sequence[KnownSample]] = field(default_factory=dict)

    @property
    def phases(self) -> list[str]:
        """Phases with models, ``train`` first."""
        return list(self.points.of_phase)

    @property
    def only(self) -> Scores:
        """Scores of the one metric that there is.

        Raises:
            InputError: there are several.
        """
        if len(self.scores) != 1:
            raise InputError(f"One metric is needed, got {', '.join(self.scores)}.")
        return next(iter(self.scores.values()))

    def left_out(self, phase: str) -> Indices | None:
        """Shadow model that takes no part for each target: train models leave themselves out."""
        return np.arange(len(self.points.of_phase[phase])) if phase == "train" else None

    def calibrated(self, formula: Formula, scores: Scores, phase: str) -> Calibrated:
        """Calibrate a metric's scores of a phase by a formula."""
        return calibrate(
            formula,
            scores.own[phase],
            scores.shadow,
            self.points.is_member,
            self.points.columns(phase),
            left_out=self.left_out(phase),
        )

    def known_calibrated(
        self,
        formula: Formula,
        scores: Scores,
        phase: str,
        targets: Indices | None = None,
        shadows: Indices | None = None,
    ) -> list[Known]:
        """Calibrate models' scores at their challenge points and at their known ones, together.

        Args:
            formula: plain, or one that sees gaps.
            scores: of one metric.
            phase: of the models.
            targets: which of them; None for all.
            shadows: models that they are judged by; None for all but the target itself.

        Raises:
            InputError: training sets are not disclosed.
        """
        if phase not in self.known:
            raise InputError(
                "The attack needs known members and non-members of every model, and the scenario "
                "does not disclose training sets (scenario=ddp does)."
            )
        every = np.arange(len(self.points.is_member))
        found = []
        for row in range(len(self.known[phase])) if targets is None else targets:
            points, sample = self.points.points_of(phase, row), self.known[phase][row]
            own = scores.own[phase][row, : len(points)]
            asked = np.concatenate([points, sample.points])
            columns = np.searchsorted(self.points.unique, asked)
            others = shadows if shadows is not None else every[(every != row) | (phase != "train")]
            cut = np.ix_(others, columns)  # not all, to be looked through for every model
            calibrated = calibrate(
                formula,
                np.concatenate([own, scores.known[phase][row]])[np.newaxis],
                scores.shadow[cut],
                self.points.is_member[cut],
                np.arange(len(columns))[np.newaxis],
            )
            first, second = np.split(calibrated.scores[0], [len(own)])
            found.append(Known(first, second, sample.is_member))
        return found


class Attack(ABC):
    """A formula that looks at more than one point at a time, or learns from the train models.

    What other formulas there are is said at `calibration.Formula`. Where it learns, validation
    scores are cross-fitted: no train model is scored by what was learnt from its own membership.
    """

    @abstractmethod
    def __call__(self, evidence: Evidence) -> dict[str, Calibrated]:
        """Calibrated scores of every phase.

        Raises:
            InputError: something that it needs is not there.
        """
