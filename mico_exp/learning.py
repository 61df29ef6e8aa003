"""Attacks that learn from the train models' own membership, cross-fitted by model.

A train model's validation scores come from what was learnt from the other folds' models; dev and
final models are scored by what all train models teach. So no figure sees its own answers. (A train
model of one fold does serve as a shadow model of the others', as it does for dev and final.)

Axes: T target models, S train models, P points of a target, F features, N points of any model.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from mico_exp.calibration import Calibrated, shadows_of
from mico_exp.errors import InputError
from mico_exp.evidence import Attack, Evidence, Scores
from mico_exp.features import FEWEST_FORMS, NormalScores, table
from mico_exp.formulas import Floats, Mask, side

Predict = Callable[[Floats], Floats]
Fit = Callable[[Floats, Mask], Predict]


def folds_of(models: int, folds: int) -> NDArray[np.int64]:
    """Fold (S,) of each train model, drawn once and for all.

    Raises:
        InputError: fewer than two folds, or more than models.
    """
    if type(folds) is not int or not 2 <= folds <= models:
        raise InputError(
            f"`folds` must be a whole number from 2 to the number of train models, {models}, "
            f"got {folds}."
        )
    return np.random.default_rng(0).permutation(models) % folds


def cross_fit(
    features: dict[str, Floats], solution: Mask, fit: Fit, folds: int
) -> dict[str, Floats]:
    """Scores (T, P) of every phase from features (T, P, F), learnt from the train models.

    Args:
        features: by phase.
        solution: (S, P) membership of the train models' points.
        fit: learns from features (S, P, F) and membership (S, P) of some models.
        folds: of models, for validation.

    Raises:
        InputError: fewer train models than folds.
    """
    train = features["train"]
    fold = folds_of(len(train), folds)
    found = {"train": np.empty(train.shape[:-1])}
    for one in range(folds):
        held, others = fold == one, fold != one
        found["train"][held] = fit(train[others], solution[others])(train[held])
    learnt = fit(train, solution)
    for phase in features.keys() - {"train"}:
        found[phase] = learnt(features[phase])
    return {phase: found[phase] for phase in features}


def _calibrated(evidence: Evidence, scores: dict[str, Floats]) -> dict[str, Calibrated]:
    """Put learnt scores beside what is known of the shadow models."""
    found = {}
    for phase, values in scores.items():
        if not np.isfinite(values).all():
            raise InputError(f"{(~np.isfinite(values)).sum()} learnt scores are not finite.")
        counts = out_models(evidence, phase)
        found[phase] = Calibrated(values, counts, fallback_rate=float((counts < 2).mean()))
    return found


def out_models(evidence: Evidence, phase: str) -> NDArray[np.int64]:
    """How many shadow models (T, P) were not trained on a target's point."""
    outside = ~evidence.points.is_member
    columns = evidence.points.columns(phase)
    count: NDArray[np.int64] = outside.sum(axis=0)[columns]
    left_out = evidence.left_out(phase)
    return count if left_out is None else count - outside[left_out[:, np.newaxis], columns]


class Logistic:
    """L2-regularised logistic regression; larger `c` regularises less (as in scikit-learn).

    It gives log likelihood ratios: the log odds of what it learnt from are taken out, which
    differ from fold to fold where models do not all have as many members as non-members.
    """

    def __init__(self, c: float, use: Mask | None = None) -> None:
        self.c, self.use = c, slice(None) if use is None else use

    def __call__(self, features: Floats, solution: Mask) -> Predict:
        """Learn from features (T, P, F) and membership (T, P)."""
        model = LogisticRegression(C=self.c, solver="newton-cholesky")
        model.fit(_rows(features)[:, self.use], solution.ravel())
        odds = logit(solution.mean())

        def predict(asked: Floats) -> Floats:
            found: Floats = model.decision_function(_rows(asked)[:, self.use]) - odds
            return found.reshape(asked.shape[:-1])

        return predict


def _rows(features: Floats) -> Floats:
    return features.reshape(-1, features.shape[-1])


class Stack(Attack):
    """All metrics in all calibrated forms, combined by logistic regression on normal quantiles.

    After stacked generalisation (Wolpert 1992). With little regularisation it may weigh features
    against each other; with much it adds up what each says by itself.

    Args:
        c: inverse strength of the L2 penalty, above 0.
        folds: of the train models, for validation.

    Raises:
        InputError: an argument is out of range, or there are fewer train models than folds.
    """

    def __init__(self, c: float = 0.03, folds: int = 10) -> None:
        _check_positive("c", c)
        self.c, self.folds = c, folds

    def __call__(self, evidence: Evidence) -> dict[str, Calibrated]:
        """Calibrated scores of every phase."""
        folds_of(len(evidence.points.solution), self.folds)  # before any work
        names, features = table(evidence)
        normal = NormalScores(features["train"], names)
        kept = [name for name, keep in zip(names, normal.kept, strict=True) if keep]
        scaled = {phase: normal(values) for phase, values in features.items()}
        fit = self.learner(kept)
        solution = evidence.points.solution
        return _calibrated(evidence, cross_fit(scaled, solution, fit, self.folds))

    def learner(self, names: Sequence[tuple[str, str]]) -> Fit:  # noqa: ARG002
        """How it learns from features with these names, (metric, form)."""
        return Logistic(self.c)


def _check_positive(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0 < value < np.inf):
        raise InputError(f"`{name}` must be above 0, got {value}.")


class StackSearch(Stack):
    """As `Stack`, with the penalty and the forms chosen by log loss in an inner cross-fit.

    Whatever is scored took no part in the choice: it is made anew within every fold.

    Args:
        cs: inverse strengths of the penalty to try.
        folds: of the train models, for validation.
        inner: folds of the others, for the choice.

    Raises:
        InputError: an argument is out of range, or there are fewer train models than folds.
    """

    def __init__(
        self, cs: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1), folds: int = 5, inner: int = 3
    ) -> None:
        for c in cs:
            _check_positive("cs", c)
        if not cs:
            raise InputError("`cs` must name at least one strength, got none.")
        self.cs, self.folds, self.inner = tuple(cs), folds, inner

    def learner(self, names: Sequence[tuple[str, str]]) -> Fit:
        """How it learns from features with these names, (metric, form)."""
        few = np.array([form in FEWEST_FORMS for _, form in names])
        subsets = [np.ones(len(names), dtype=bool), few]
        tried = [Logistic(c, use) for use, c in product(subsets, self.cs) if use.any()]

        def fit(features: Floats, solution: Mask) -> Predict:
            losses = np.zeros(len(tried))
            for inner, outer in self._halves(len(features)):
                for i, one in enumerate(tried):
                    scores = one(features[outer], solution[outer])(features[inner])
                    losses[i] += log_loss(solution[inner].ravel(), expit(scores.ravel()))
            return tried[int(losses.argmin())](features, solution)

        return fit

    def _halves(self, models: int) -> Iterator[tuple[Mask, Mask]]:
        fold = folds_of(models, self.inner)
        for one in range(self.inner):
            yield fold == one, fold != one


class Quantile(Attack):
    """s − q̂(x): how far a score is above the 1 − α quantile of non-members' like it.

    Quantile regression (Bertran et al. 2023, arXiv 2307.03694, algorithm 1) by boosted trees under
    the pinball loss, on the train models' own non-members. A point is described by its class and
    by what the shadow models say of it: their means in and out, their deviation, and how many
    they are on either side.

    Args:
        alpha: false positive rate to aim at, in (0, 1).
        folds: of the train models, for validation.

    Raises:
        InputError: an argument is out of range, or there are fewer train models than folds.
    """

    def __init__(self, alpha: float = 0.1, folds: int = 5) -> None:
        if not (isinstance(alpha, float) and 0 < alpha < 1):
            raise InputError(f"`alpha` must be in (0, 1), got {alpha}.")
        self.alpha, self.folds = alpha, folds

    def __call__(self, evidence: Evidence) -> dict[str, Calibrated]:
        """Calibrated scores of every phase."""
        folds_of(len(evidence.points.solution), self.folds)
        scores = evidence.only
        features = {phase: _described(evidence, scores, phase) for phase in evidence.phases}
        found = cross_fit(features, evidence.points.solution, self._fit, self.folds)
        return _calibrated(evidence, found)

    def _fit(self, features: Floats, solution: Mask) -> Predict:
        """Learn from features (T, P, 1 + F), the first of which is the score itself."""
        asked = ~solution & np.isfinite(features[..., 0])
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
            level: Floats = trees.predict(_rows(some)[:, told]).reshape(some.shape[:-1])
            found = some[..., 0] - level
            known = np.isfinite(found)
            return np.where(known, found, np.median(found[known]) if known.any() else 0)

        return predict


MOST_CLASSES = 255  # that trees can tell apart; of more, the rest counts as one


def _described(evidence: Evidence, scores: Scores, phase: str) -> Floats:
    """Score, class and what shadow models say of every point: (T, P, 7)."""
    own, columns = scores.own[phase], evidence.points.columns(phase)
    found = np.empty((*own.shape, 7))
    found[..., 0] = own
    found[..., 1] = np.minimum(evidence.labels[columns], MOST_CLASSES - 1)
    place = columns, evidence.left_out(phase)
    for some, shadow, is_in, is_out in shadows_of(scores.shadow, evidence.points.is_member, *place):
        inside, outside = side(shadow, is_in), side(shadow, is_out)
        both = np.maximum(inside.size + outside.size - 2, 1)
        deviation = np.sqrt((inside.squares + outside.squares) / both)
        above = np.where(inside.size > 0, inside.mean, np.nan)  # trees know what is missing
        below = np.where(outside.size > 0, outside.mean, np.nan)
        parts = (above, below, deviation, inside.size, outside.size)
        found[some, :, 2:] = np.stack(parts, axis=-1)
    return found
