"""Signs of life of a scenario's models, taken before any score: what seems wrong with which.

Every model is asked at its own challenge points. Members should score higher than non-members, or
records, seeds or sizes are not those of the training (or the models keep their secret); and each
model should be like the others, or it was trained otherwise, or has diverged.

Axes: T models of a phase, P challenge points of one, M models of all phases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mico_exp.common.arrays import Floats, Mask
from mico_exp.common.errors import InputError

Place = tuple[str, int]  # phase and row of a model
BEYOND = -np.inf  # stands for φ where a model has fewer points than others
FEWEST = 5  # models, to say which of them is unlike the others
FAR = 8.0  # robust deviations from the median of all models
NORMAL_MAD = 1.4826  # a normal variable's deviation by its median absolute deviation
NORMAL_IQR = 1.349  # its interquartile range by its deviation
TWO_SIDED = 1.96  # standard errors of a 95 % interval
LOST = 4.0  # standard errors below the other models' AUC


class Told(NamedTuple):
    """How well members are told from non-members: mean AUC of the train models, 95 % interval."""

    auc: float
    low: float
    high: float

    @property
    def apart(self) -> bool:
        """Members score higher, beyond chance."""
        return self.low > 0.5

    def __str__(self) -> str:
        return f"AUC {self.auc:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, eq=False)
class Vitals:
    """What models give at their own challenge points.

    logit: phase → (T, P) φ = log(p_y / (1 − p_y)). right: phase → (T, P) True where the class is.
    A model that is not finite has NaN, one with fewer points than others `BEYOND` at the end.
    """

    logit: Mapping[str, Floats]
    right: Mapping[str, Mask]

    def aucs(self, solution: Mask) -> Floats:
        """AUC (S,) of φ for membership (S, P) of each train model's points; NaN for one class."""
        there = self._there
        beyond = (~there).sum(axis=1, keepdims=True)  # they have the lowest ranks
        rank = np.stack([_ranks(row) for row in self.logit["train"]]) - beyond
        members = solution.sum(axis=1)
        others = there.sum(axis=1) - members
        won = np.where(solution, rank, 0).sum(axis=1) - members * (members + 1) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            return won / (members * others)

    @property
    def _there(self) -> Mask:
        """(S, P) True where a train model has a point."""
        return self.logit["train"] != BEYOND

    def _chance(self, solution: Mask) -> float:
        """Deviation of one model's AUC where membership says nothing (Mann & Whitney 1947)."""
        members = max(float(solution.sum(axis=1).mean()), 1.0)
        others = max(float(self._there.sum(axis=1).mean()) - members, 1.0)
        return float(np.sqrt((members + others + 1) / (12 * members * others)))

    def told(self, solution: Mask) -> Told:
        """Tell whether members score higher than non-members under the train models.

        Where each model has one point, all are looked at together. The error is that of the mean
        over models, at least what chance alone gives it.

        Raises:
            InputError: no model has finite scores and points of both classes.
        """
        aucs = self.aucs(solution)
        aucs = aucs[np.isfinite(aucs)]
        if not len(aucs) and (found := self._together(solution)) is not None:
            return found
        if not len(aucs):
            raise InputError(
                "No train model has finite scores at challenge points of both kinds, members and "
                "non-members: the doctor shows which there are."
            )
        between = aucs.var(ddof=1) if len(aucs) > 1 else 0.0
        error = math.sqrt(max(between, self._chance(solution) ** 2) / len(aucs))
        mean = float(aucs.mean())
        return Told(mean, mean - TWO_SIDED * error, mean + TWO_SIDED * error)

    def _together(self, solution: Mask) -> Told | None:
        """The same of the points of models that have one each; None of others, or of one kind."""
        there = self._there
        values, is_member = self.logit["train"][there], solution[there]
        members, others = int(is_member.sum()), int((~is_member).sum())
        single = (there.sum(axis=1) == 1).all() and np.isfinite(values).all()
        if not single or not members * others:
            return None
        won = _ranks(values)[is_member].sum() - members * (members + 1) / 2
        auc = float(won / (members * others))
        error = math.sqrt((members + others + 1) / (12 * members * others))
        return Told(auc, auc - TWO_SIDED * error, auc + TWO_SIDED * error)

    def lost(self, solution: Mask) -> list[int]:
        """Train models whose members score no higher, while the others' clearly do."""
        aucs = self.aucs(solution)
        usual = np.nanmedian(aucs) if np.isfinite(aucs).any() else np.nan
        spread = NORMAL_MAD * np.nanmedian(np.abs(aucs - usual)) if usual == usual else np.nan
        chance = self._chance(solution)
        far = (usual - aucs) > LOST * max(spread, chance)
        return np.flatnonzero(far & (aucs < 0.5 + 2 * chance)).tolist()

    def outliers(self) -> dict[Place, str]:
        """Models that are far from the others, each with what is unlike.

        Median and spread of φ and accuracy are compared with the median over all models, in units
        of the median absolute deviation, or of a sample's own error where that is larger.
        """
        places, every, right = [], [], []
        for phase, rows in self.logit.items():
            for row, (values, is_right) in enumerate(zip(rows, self.right[phase], strict=True)):
                there = values != BEYOND
                if np.isfinite(values[there]).all():
                    places.append((phase, row))
                    every.append(values[there])
                    right.append(is_right[there].mean())
        if len(every) < FEWEST:
            return {}
        low, median, high = _quartiles(every)
        spread = np.maximum(high - low, np.finfo(float).tiny)
        accuracy, points = np.array(right), np.array([len(values) for values in every])
        usual = float(np.median(spread)) / NORMAL_IQR / np.sqrt(points)
        found: dict[Place, str] = {}
        for name, values, error in (
            ("median of the logit score", median, 1.253 * usual),
            ("spread of the logit score", np.log(spread), 1.166 / np.sqrt(points)),
            ("accuracy", accuracy, 0.5 / np.sqrt(points)),
        ):
            shown = np.exp(values) if name.startswith("spread") else values
            for i in np.flatnonzero(_far(values, error)):
                usually = f"usually {np.median(shown):.3g}"
                found.setdefault(places[i], f"its {name} is {shown[i]:.3g}, {usually}")
        return found


def _quartiles(rows: Sequence[Floats]) -> Floats:
    """Quartiles (3, T) of the rows, which may differ in length."""
    shares = [0.25, 0.5, 0.75]
    if len({len(row) for row in rows}) == 1:  # at once takes a fiftieth of the time
        return np.quantile(np.stack(rows), shares, axis=1)
    return np.stack([np.quantile(row, shares) for row in rows], axis=1)


def _ranks(values: Floats) -> Floats:
    """Rank values (P,) from 1 up, equal ones by their mean; all NaN where one is.

    It is `scipy.stats.rankdata`, whose import would take every command a second.
    """
    if np.isnan(values).any():
        return np.full(values.shape, np.nan)
    ordered = np.sort(values)
    lower, upper = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    found: Floats = (lower + upper + 1) / 2
    return found


def findings(vitals: Vitals, solution: Mask, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Say in a line each what seems wrong.

    Args:
        vitals: of a scenario.
        solution: (S, P) membership of the train models' own points.
        names: of the models, by phase.
    """
    told, found = vitals.told(solution), []
    if not told.apart:
        found.append(
            f"members cannot be told from non-members by the logit score ({told}, mean of "
            f"{len(solution)} train models): either the models keep their secret, or records, "
            "seeds or sizes are not those of their training."
        )
    elif lost := vitals.lost(solution):
        found.append(
            f"under {len(lost)} of {len(solution)} train models members score no higher, as they "
            f"do under the others, the first {names['train'][lost[0]]}: are its seeds its own?"
        )
    if far := vitals.outliers():
        (phase, row), why = next(iter(far.items()))
        count = sum(map(len, names.values()))
        found.append(
            f"{len(far)} of {count} models are far from the others, the first {names[phase][row]}: "
            f"{why}. `compute.allow_outliers=true` goes on without them."
        )
    return found


def _far(values: Floats, error: Floats) -> Mask:
    """Tell (M,) which values are far from the others, given the error (M,) of each."""
    apart = np.abs(values - np.median(values))
    return apart > FAR * np.maximum(NORMAL_MAD * float(np.median(apart)), error)
