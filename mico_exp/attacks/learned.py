"""Attacks that learn from the train models' own membership, cross-fitted as `folds` has it.

Axes: T target models, S train models, P points of a target, F features, N rows (a target at a
point).
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from mico_exp.attacks.calibration import Calibrated
from mico_exp.attacks.evidence import Attack, Evidence
from mico_exp.attacks.features import FEWEST_FORMS, Forms, NormalScores, check_scored
from mico_exp.attacks.folds import (
    FEWEST_FOLDS,
    Folds,
    FoldSides,
    Hidden,
    Learn,
    Learner,
    Lessons,
    Predict,
    cross_fit,
)
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError


def _calibrated(evidence: Evidence, scores: dict[str, Floats]) -> dict[str, Calibrated]:
    """Put learnt scores beside what is known of the shadow models."""
    found = {}
    for phase, values in scores.items():
        there = evidence.points.there(phase)
        if (bad := there & ~np.isfinite(values)).any():
            raise InputError(f"{bad.sum()} learnt scores are not finite.")
        counts = out_models(evidence, phase)
        lacking = float((counts[there] < 2).mean())
        found[phase] = Calibrated(values, counts, there, fallback_rate=lacking)
    return found


def out_models(evidence: Evidence, phase: str) -> NDArray[np.int64]:
    """How many shadow models (T, P) were not trained on a target's point; 0 where there is none."""
    outside = ~evidence.points.is_member
    columns = evidence.points.columns(phase)
    count: NDArray[np.int64] = outside.sum(axis=0)[columns]
    left_out = evidence.left_out(phase)
    if left_out is not None:
        count = count - outside[left_out[:, np.newaxis], columns]
    return np.where(evidence.points.there(phase), count, 0)


class Logistic:
    """L2-regularised logistic regression; larger `c` regularises less (as in scikit-learn).

    It gives log likelihood ratios: the log odds of what it learnt from are taken out, which
    differ from fold to fold where models do not all have as many members as non-members.
    """

    def __init__(self, c: float, use: Mask | None = None) -> None:
        self.c, self.use = c, slice(None) if use is None else use

    def __call__(self, features: Floats, is_member: Mask) -> Predict:
        """Learn from features (N, F) and membership (N,)."""
        if is_member.all() or not is_member.any():
            return lambda asked: np.zeros(len(asked))  # one class teaches nothing
        model = LogisticRegression(C=self.c, solver="newton-cholesky")
        model.fit(features[:, self.use], is_member)
        odds = logit(is_member.mean())
        return lambda asked: model.decision_function(asked[:, self.use]) - odds


class Stack(Attack):
    """All metrics in all calibrated forms, combined by logistic regression on normal quantiles.

    After stacked generalisation (Wolpert 1992). With little regularisation it may weigh features
    against each other; with much it adds up what each says by itself.

    Args:
        c: inverse strength of the L2 penalty, above 0.
        folds: of the train models, for validation, at least 3.

    Raises:
        InputError: an argument is out of range, or there are fewer train models than folds.
    """

    fewest_folds = FEWEST_FOLDS

    def __init__(self, c: float = 0.03, folds: int = 5) -> None:
        require.above("c", c, 0)
        self.c, self.folds = c, folds

    def __call__(self, evidence: Evidence) -> dict[str, Calibrated]:
        """Calibrated scores of every phase."""
        folds = Folds.of(evidence.points, self.folds, self.fewest_folds)
        check_scored(evidence)
        forms = Forms(evidence, folds)
        lessons = Lessons(evidence.points, folds, forms, NormalScores)
        return _calibrated(evidence, cross_fit(lessons, self.learner(forms.names)))

    def learner(self, names: Sequence[tuple[str, str]]) -> Learn:  # noqa: ARG002
        """How it learns from features with these names, (metric, form)."""
        one = Logistic(self.c)
        return lambda lessons: lambda point_fold: one(*lessons.rows(point_fold))


class StackSearch(Stack):
    """As `Stack`, with the penalty and the forms chosen by log loss on folds held out for it.

    Whatever is scored took no part in the choice: it is made anew for every fold.

    Args:
        cs: inverse strengths of the penalty to try.
        folds: of the train models, for validation, at least 4.
        inner: how many of the other folds are held out in turn for the choice.

    Raises:
        InputError: an argument is out of range, or there are fewer train models than folds.
    """

    fewest_folds = FEWEST_FOLDS + 1  # one more is held out for the choice

    def __init__(
        self, cs: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1), folds: int = 5, inner: int = 2
    ) -> None:
        for c in cs:
            require.above("cs", c, 0)
        if not cs:
            raise InputError("`cs` must name at least one strength, got none.")
        self.cs, self.folds, self.inner = tuple(cs), folds, inner

    def __call__(self, evidence: Evidence) -> dict[str, Calibrated]:
        """Calibrated scores of every phase."""
        require.whole("folds", self.folds, self.fewest_folds)
        require.whole("inner", self.inner, 1, self.folds - 1)
        return super().__call__(evidence)

    def learner(self, names: Sequence[tuple[str, str]]) -> Learn:
        """How it learns from features with these names, (metric, form)."""
        few = np.array([form in FEWEST_FORMS for _, form in names])
        subsets = [np.ones(len(names), dtype=bool), few]
        tried = [Logistic(c, use) for use, c in product(subsets, self.cs) if use.any()]

        def learn(lessons: Lessons) -> Learner:
            trials = [_Trial(lessons, fold) for fold in lessons.shown[: self.inner]]

            def learner(point_fold: int | None) -> Predict:
                losses = [sum(trial.loss(one, point_fold) for trial in trials) for one in tried]
                return tried[int(np.argmin(losses))](*lessons.rows(point_fold))

            return learner

        return learn


class _Trial:
    """A fold of lessons that is held out, to see how well a learner does on it."""

    def __init__(self, lessons: Lessons, fold: int) -> None:
        targets = lessons.folds.models(fold)
        self.rest = lessons.hiding(fold)
        there = lessons.points.there("train")[targets]
        self.solution = lessons.points.solution[targets][there]
        self.of_row = lessons.of_row[targets][there]
        self.turns = [features[there] for features in self.rest.asked("train", targets)]

    def loss(self, one: Logistic, point_fold: int | None) -> float:
        """Log loss of what is learnt from the rest, at points outside a fold of points."""
        predict = one(*self.rest.rows(point_fold))
        scores = np.mean([predict(features) for features in self.turns], axis=0)
        asked = self.of_row != point_fold  # all of them for None, and where there is one fold
        asked |= not asked.any()
        chance = expit(scores[asked])
        return float(log_loss(self.solution[asked], chance, labels=[False, True]))


class Quantile(Attack):
    """s − q̂(x): how far a score is above the 1 − α quantile of non-members' like it.

    Quantile regression (Bertran et al. 2023, arXiv 2307.03694, algorithm 1) by boosted trees under
    the pinball loss, on the train models' own non-members. A point is described by its class and
    by what the shadow models say of it: their means in and out, their deviation, and how many
    they are on either side.

    Args:
        alpha: false positive rate to aim at, in (0, 1).
        folds: of the train models, for validation, at least 3.

    Raises:
        InputError: an argument is out of range, or there are fewer train models than folds.
    """

    def __init__(self, alpha: float = 0.1, folds: int = 5) -> None:
        require.between("alpha", alpha, 0, 1)
        self.alpha, self.folds = alpha, folds

    def __call__(self, evidence: Evidence) -> dict[str, Calibrated]:
        """Calibrated scores of every phase."""
        check_scored(evidence)
        folds = Folds.of(evidence.points, self.folds)
        lessons = Lessons(evidence.points, folds, _Described(evidence, folds))
        return _calibrated(evidence, cross_fit(lessons, self._learn))

    def _learn(self, lessons: Lessons) -> Learner:
        return lambda point_fold: self._fit(*lessons.rows(point_fold))

    def _fit(self, features: Floats, is_member: Mask) -> Predict:
        """Learn from features (N, 1 + F), the first of which is the score itself."""
        asked = ~is_member & np.isfinite(features[:, 0])
        if not asked.any():
            return lambda some: np.zeros(len(some))  # no non-members teach nothing
        told = np.asarray(
            np.isfinite(features[asked]).any(axis=0)
        )  # trees do not take what is always missing
        told[0] = False  # the score itself is what they learn
        trees = HistGradientBoostingRegressor(
            loss="quantile",
            quantile=1 - self.alpha,
            categorical_features=[0],
            max_leaf_nodes=15,
            min_samples_leaf=40,
            random_state=0,
        )
        with threadpool_limits(1):  # with so few rows, more threads only wait for each other
            trees.fit(features[asked][:, told], features[asked][:, 0])

        def predict(some: Floats) -> Floats:
            found = some[:, 0] - trees.predict(some[:, told])
            known = np.isfinite(found)
            return np.where(known, found, np.median(found[known]) if known.any() else 0)

        return predict


MOST_CLASSES = 255  # that trees can tell apart; of more, the rest counts as one


class _Described:
    """Score, class and what shadow models say of every point: a `folds.Describe`."""

    def __init__(self, evidence: Evidence, folds: Folds) -> None:
        self.evidence, self.scores = evidence, evidence.only
        self.sides = FoldSides(self.scores.shadow, evidence.points.is_member, folds)

    def __call__(self, phase: str, targets: Indices, hidden: Hidden) -> Floats:
        """Features (t, P, 7)."""
        columns = self.evidence.points.columns(phase)[targets]
        inside, outside = self.sides.without(hidden, columns)
        classes = np.minimum(self.evidence.labels[columns], MOST_CLASSES - 1)
        both = np.maximum(inside.size + outside.size - 2, 1)
        deviation = np.sqrt((inside.squares + outside.squares) / both)
        above = np.where(inside.size > 0, inside.mean, np.nan)  # trees know what is missing
        below = np.where(outside.size > 0, outside.mean, np.nan)
        own = self.scores.own[phase][targets]
        parts = (own, classes, above, below, deviation, inside.size, outside.size)
        return np.stack(parts, axis=-1)
