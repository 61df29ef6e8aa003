"""Attacks that use disclosed training sets, as the DP-distinguisher track gives them away.

Of every target model some records are known to be members and others known not to be, all but
its challenge points. So any score can be judged under the very target: against its own
non-members, or by how its members and non-members differ. Train models are treated alike, from
their own disclosed sets without their challenge points, which gives the validation score.

Axes: T target models, P challenge points of a target, K known points of one, F features.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from mico_exp.attacks.calibration import Calibrated, Formula, OfSides
from mico_exp.attacks.evidence import Attack, Evidence, Known
from mico_exp.attacks.folds import Folds, Hidden
from mico_exp.attacks.formulas import offset, ratio_online
from mico_exp.attacks.sides import Models, share_below
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Indices, Mask, padded
from mico_exp.common.errors import InputError

MIDPOINT: Formula = partial(offset, w=0.5)
STEPS = 25  # of Newton's method, which needs about five
ENOUGH = 1e-8  # a step this short ends it


class _ByTarget(Attack):
    """Judges each target's calibrated scores by those of its own known points."""

    base: Formula

    def __call__(self, evidence: Evidence) -> dict[str, Calibrated]:
        """Calibrated scores of every phase."""
        found = {}
        for phase in evidence.phases:
            known = evidence.known_calibrated(self.base, evidence.only, phase)
            own = evidence.calibrated(self.base, evidence.only, phase)
            rows = [self.judge(one) for one in known]
            found[phase] = replace(own, scores=padded(rows, np.nan), keeps_order=True)
        return found

    @abstractmethod
    def judge(self, known: Known) -> Floats:
        """Judge one target's challenge points (P,)."""


def _others(known: Known) -> Floats:
    """Scores at the known non-members (n,)."""
    others = known.scores[~known.is_member]
    if not len(others):
        raise InputError("A model has no known non-member to compare with.")
    return others


class Conformal(_ByTarget):
    """−p, p = (1 + #{known non-members j: A(j) ≥ A(x)}) / (1 + n): conformal p-values.

    Each target has its own threshold, and a false positive rate that holds for it (Vovk et al.
    2005, §2.2), as far as its challenge points are like its known non-members.

    Args:
        base: formula that gives A.

    Raises:
        InputError: training sets are not disclosed, or a model has no known non-member.
    """

    def __init__(self, base: Formula = MIDPOINT) -> None:
        self.base = base

    def judge(self, known: Known) -> Floats:
        """Negated p-values (P,)."""
        others = np.sort(_others(known))
        above = len(others) - np.searchsorted(others, known.own, side="left")
        return -(1 + above) / (1 + len(others))


class DisclosedRMIA(_ByTarget):
    """RMIA with true non-members of the target for its population z (`formulas.rmia_online`).

    Args:
        gamma: how many times likelier x must be than z; at least 1.

    Raises:
        InputError: training sets are not disclosed, a model has no known non-member, γ is below
            1, or scores are no probabilities.
    """

    base = staticmethod(ratio_online)

    def __init__(self, gamma: float = 1.0) -> None:
        self.gamma = gamma

    def judge(self, known: Known) -> Floats:
        """Share (P,) of the known non-members that x beats."""
        return share_below(known.own, _others(known), self.gamma)


class DensityRatio(Attack):
    """log p(A, h | member) − log p(A, h | non-member) under each very target, by its known points.

    A is a calibrated score and h the point's hardness, the mean score of its out models. The
    ratio is a logistic regression on A, A², h and A·h (both standardised), less the log odds of
    the sample. Each target's coefficients are drawn to those of all train models' known points
    together: a thousand points tell little of one model where members hardly differ. These common
    coefficients are learnt from other models, cross-fitted as `folds` has it.

    Args:
        base: formula that gives A.
        strength: of the L2 pull of a target's coefficients to the common ones, above 0.
        folds: of the train models, for validation, at least 3.

    Raises:
        InputError: training sets are not disclosed, a model's known points are of one class, or
            there are fewer train models than folds.
    """

    def __init__(self, base: Formula = MIDPOINT, strength: float = 100.0, folds: int = 5) -> None:
        require.above("strength", strength, 0)
        self.base, self.strength, self.folds = base, float(strength), folds

    def __call__(self, evidence: Evidence) -> dict[str, Calibrated]:
        """Calibrated scores of every phase."""
        told = _Told(evidence, self.base, Folds.of(evidence.points, self.folds))
        found = {}
        for phase, of_phase in evidence.points.of_phase.items():
            own = evidence.calibrated(self.base, evidence.only, phase)
            if phase == "train":
                scores = self._validated(told, evidence.points.columns(phase))
            else:
                scores = self._ratios(told, phase, np.arange(len(of_phase)))
            found[phase] = replace(own, scores=scores, keeps_order=True)
        return found

    def _validated(self, told: "_Told", columns: Indices) -> Floats:
        """Ratios of the train models' own points, which lie in columns (S, P)."""
        folds, found = told.folds, np.full(columns.shape, np.nan)
        for fold in range(folds.count):
            targets = folds.models(fold)
            for point_fold in range(folds.point_folds):
                some = self._ratios(told, "train", targets, frozenset({fold}), point_fold)
                here = folds.of_point[columns[targets]] == point_fold
                found[targets] = np.where(here, some, found[targets])
        return found

    def _ratios(
        self,
        told: "_Told",
        phase: str,
        targets: Indices,
        hidden: Hidden = frozenset(),
        point_fold: int | None = None,
    ) -> Floats:
        """Ratios (t, P) of targets, by what is learnt from models and points elsewhere.

        NaN where a target has no point.
        """
        terms, common = told.common(hidden, point_fold)
        turns = [
            [
                terms(one.own) @ self._drawn(terms(one.known), one.is_member, common)
                for one in told(phase, targets, hidden | {fold})
            ]
            for fold in told.folds.shown(hidden)
        ]
        found = np.full((len(targets), told.width(phase)), np.nan)
        for row, of_target in zip(found, zip(*turns, strict=True), strict=True):
            row[: len(of_target[0])] = np.mean(of_target, axis=0)
        return found

    def _drawn(self, terms: Floats, is_member: Mask, common: Floats) -> Floats:
        """Coefficients (F,) of one target, by Newton's method on its penalised log likelihood.

        The sample's log odds are put in and left out again, so the first term needs no pull.
        """
        odds = _odds(is_member)
        weights = common.copy()
        pull = self.strength * np.eye(len(common))
        for _ in range(STEPS):
            chance = expit(terms @ weights + odds)
            slope = terms.T @ (is_member - chance) - pull @ (weights - common)
            curvature = (terms * (chance * (1 - chance))[:, np.newaxis]).T @ terms + pull
            step = np.linalg.solve(curvature, slope)
            weights += step
            if np.abs(step).max() < ENOUGH:
                break
        return weights


class _Pairs(NamedTuple):
    """(A, h) of a model at its challenge points and at its known points.

    own: (P, 2). known: (K, 2). is_member: (K,) of the known ones. columns: (K,) where they lie.
    """

    own: Floats
    known: Floats
    is_member: Mask
    columns: Indices


class _Told:
    """What models tell by their known points, judged by the shadow models of some folds."""

    def __init__(self, evidence: Evidence, base: Formula, folds: Folds) -> None:
        self.evidence, self.base, self.folds = evidence, base, folds
        self._seen: dict[tuple[str, bytes, Hidden], list[_Pairs]] = {}

    def width(self, phase: str) -> int:
        """The most points of any model."""
        return self.evidence.points.of_phase[phase].shape[1]

    def __call__(self, phase: str, targets: Indices, hidden: Hidden) -> list[_Pairs]:
        """Pairs of each target; what one fold tells the others is asked for twice."""
        key = phase, targets.tobytes(), hidden
        if key not in self._seen:
            self._seen[key] = self._pairs(phase, targets, hidden)
        return self._seen[key]

    def _pairs(self, phase: str, targets: Indices, hidden: Hidden) -> list[_Pairs]:
        shadows = np.flatnonzero(~np.isin(self.folds.of_model, list(hidden)))
        both = [
            self.evidence.known_calibrated(one, self.evidence.only, phase, targets, shadows)
            for one in (self.base, _hardness)
        ]
        unique = self.evidence.points.unique
        return [
            _Pairs(
                np.stack([a.own, h.own], axis=-1),
                np.stack([a.scores, h.scores], axis=-1),
                a.is_member,
                np.searchsorted(unique, self.evidence.known[phase][target].points),
            )
            for target, a, h in zip(targets, *both, strict=True)
        ]

    def common(
        self, hidden: Hidden, point_fold: int | None
    ) -> tuple[Callable[[Floats], Floats], Floats]:
        """How pairs become terms, and the coefficients (F,) of all shown models together."""
        pairs = [
            one
            for fold in self.folds.shown(hidden)
            for one in self("train", self.folds.models(fold), hidden | {fold})
        ]
        known = np.concatenate([one.known for one in pairs])
        is_member = np.concatenate([one.is_member for one in pairs])
        if point_fold is not None and self.folds.point_folds > 1:
            columns = np.concatenate([one.columns for one in pairs])
            elsewhere = self.folds.of_point[columns] != point_fold
            known, is_member = known[elsewhere], is_member[elsewhere]
        centre, spread = known.mean(axis=0), np.maximum(known.std(axis=0), 1e-12)
        terms = partial(_terms, centre=centre, spread=spread)
        return terms, _common(terms(known), is_member)


def _odds(is_member: Mask) -> float:
    if is_member.all() or not is_member.any():
        raise InputError(f"All {is_member.size} known points of a model are of one class.")
    return float(np.log(is_member.mean() / (1 - is_member.mean())))


def _terms(pairs: Floats, centre: Floats, spread: Floats) -> Floats:
    """1, A, A², h and A·h (…, 5) of (A, h) (…, 2), standardised and within ±5 deviations."""
    score, hardness = np.moveaxis(((pairs - centre) / spread).clip(-5, 5), -1, 0)
    one = np.ones_like(score)
    return np.stack([one, score, np.square(score), hardness, score * hardness], axis=-1)


def _common(terms: Floats, is_member: Mask) -> Floats:
    """Coefficients (F,) of all models' known points together, without the sample's log odds."""
    model = LogisticRegression(fit_intercept=False).fit(terms, is_member)
    weights: Floats = model.coef_[0].copy()
    weights[0] -= _odds(is_member)
    return weights


@OfSides
def _hardness(score: Floats, inside: Models, outside: Models) -> Floats:  # noqa: ARG001
    """Mean score of the out models."""
    return outside.mean
