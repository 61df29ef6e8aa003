"""How sure the figures are: a bootstrap over models, the same for all cells, and nested choices.

The points of one model share the randomness of its training, so models are drawn, never points
(the cluster bootstrap; Davison & Hinkley 1997, §3.8). A draw is a row of weights, how often each
model is in it; an interval holds the middle 95 % of the draws' figures (the percentile method).

Axes: R draws, T models, P points of a model, K distinct scores, C cells.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mico_exp.common.arrays import Floats
from mico_exp.common.errors import InputError
from mico_exp.results.scoring import OFFICIAL_FPRS, RANKING_FPR, check_fpr, rank, roc

Weights = NDArray[np.float32]
Choose = Callable[[Floats, Floats, Floats], NDArray[np.int64]]
LEVEL = 95  # per cent, of every interval
RESAMPLES = 1000
HALVINGS = 500
SEED = 0  # of all draws


class Interval(NamedTuple):
    """Where the middle 95 % lie."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length."""
        return (self.high - self.low) / 2


def interval(draws: ArrayLike) -> Interval:
    """Find the middle 95 % of draws (R,); those where a class was missing (NaN) do not count."""
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(np.asarray(draws), [tail, 100 - tail])
    return Interval(float(low), float(high))


class Ranked:
    """Pooled predictions in descending order, to be scored under any weights of their models.

    Args:
        solution: (T, P) True for a member.
        predictions: (T, P), higher = more member-like.

    Raises:
        InputError: shapes differ, values are not finite, or one class is missing.
    """

    def __init__(self, solution: ArrayLike, predictions: ArrayLike) -> None:
        order, is_member, _, last = rank(solution, predictions)
        models, points = np.shape(predictions)
        model = order // points
        # (K + 1, T): how many of each model rank at or above a score; none before the first.
        self.members = _counts(model, is_member, last, models)
        self.others = _counts(model, ~is_member, last, models)
        below = self.others[-1] - (self.others[1:] + self.others[:-1]) / 2.0  # a tie counts half
        # (T, T) pairs that members of the first model win; float64 counts all of them exactly.
        self.pairs = np.diff(self.members, axis=0).T.astype(float) @ below.astype(float)

    def auc(self, weights: Weights) -> Floats:
        """AUC (R,) under weights (R, T), exactly; NaN where a class is missing."""
        won = np.einsum("rt,rt->r", weights @ self.pairs, weights, dtype=float)
        with np.errstate(invalid="ignore"):
            return won / (self._total(self.members, weights) * self._total(self.others, weights))

    def tpr_at(self, fpr: float, weights: Weights) -> Floats:
        """TPR (R,) at the lowest score whose FPR is strictly below `fpr`; NaN without a class.

        With all weights 1 this is the official figure wherever no two models' points tie.

        Raises:
            InputError: `fpr` is not above 0.
        """
        check_fpr(fpr)
        limit = self._total(self.others, weights)
        low = np.zeros(len(weights), dtype=np.int64)  # its FPR is 0
        high = np.full(len(weights), len(self.others))  # beyond the lowest score
        with np.errstate(invalid="ignore"):
            while (high - low > 1).any():
                middle = (low + high) // 2
                is_below = self._at(self.others, middle, weights) / limit < fpr
                low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
            found = self._at(self.members, low, weights) / self._total(self.members, weights)
        return np.where(limit > 0, found, np.nan)

    @staticmethod
    def _at(counts: Weights, rows: NDArray[np.int64], weights: Weights) -> Floats:
        return np.einsum("rt,rt->r", counts[rows], weights).astype(float)

    @staticmethod
    def _total(counts: Weights, weights: Weights) -> Floats:
        return (weights @ counts[-1]).astype(float)


def _counts(
    model: NDArray[np.int64], mask: NDArray[np.bool_], last: NDArray[np.int64], models: int
) -> Weights:
    """Cumulative counts (K + 1, T) of the masked points of each model, in descending order.

    float32 holds every count up to 2²⁴ exactly, and makes the products quick.
    """
    single = np.zeros((len(model) + 1, models), dtype=np.float32)
    single[np.flatnonzero(mask) + 1, model[mask]] = 1
    total = np.cumsum(single, axis=0, out=single)
    return total[np.append(0, last + 1)]


def draw(models: int, count: int = RESAMPLES, seed: int = 0) -> Weights:
    """Draw `count` times as many models as there are, with replacement: weights (R, T).

    The same for all cells with the same seed, which is what pairs them.
    """
    random = np.random.default_rng(seed)
    return random.multinomial(models, np.full(models, 1 / models), size=count).astype(np.float32)


def halve(models: int, count: int = HALVINGS, seed: int = 0) -> NDArray[np.bool_]:
    """Draw `count` random halves of the models: (H, T), True for ⌊T/2⌋ of them."""
    random = np.random.default_rng([seed, 1])
    half = np.arange(models) < models // 2
    return random.permuted(np.tile(half, (count, 1)), axis=1)


def intervals(
    solution: ArrayLike, predictions: ArrayLike, count: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of the official figures of predictions (T, P), by the figures' names.

    Empty for a single model, which tells nothing of how models differ.
    """
    ranked = Ranked(solution, predictions)
    models = ranked.members.shape[1]
    if models < 2:
        return {}
    weights = draw(models, count, seed)
    found = {f"tpr_at_fpr_{x}": interval(ranked.tpr_at(x, weights)) for x in OFFICIAL_FPRS}
    return found | {"auc": interval(ranked.auc(weights))}


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True, eq=False)
class Comparison:
    """Cells of one scenario on the same draws of its models.

    tpr, auc: (C,) TPR at FPR 0.1 and AUC of all models.
    tpr_interval: (C, 2). standard_error: (C,) of the TPR.
    chosen: which cell the rule takes.
    probability_best: (C,) share of the draws in which a cell is the best; ties are shared.
    difference: (C,) TPR of the chosen cell less that of each. difference_interval: (C, 2).
    procedure: TPR of the choice itself: chosen on a random half of the models and scored on the
        other, over many halvings. None with fewer than two models in a half.
    """

    tpr: Floats
    auc: Floats
    tpr_interval: Floats
    standard_error: Floats
    chosen: int
    probability_best: Floats
    difference: Floats
    difference_interval: Floats
    procedure: Estimate | None

    @property
    def like_chosen(self) -> NDArray[np.bool_]:
        """(C,) cells whose difference to the chosen one may be 0, itself among them."""
        low, high = self.difference_interval.T
        return (low <= 0) & (high >= 0)


def compare(
    cells: Iterable[tuple[ArrayLike, ArrayLike]],
    choose: Choose,
    count: int = RESAMPLES,
    halvings: int = HALVINGS,
    seed: int = 0,
) -> Comparison:
    """Compare cells, each a solution and predictions (T, P), on the same draws.

    Args:
        cells: taken one at a time, so that many need no more memory than one.
        choose: a rule; gives the chosen cell (R,) from TPR (R, C), AUC (R, C) and the TPR's
            standard error (R, C).
        count: draws of the bootstrap.
        halvings: random halvings for the estimate of the procedure.
        seed: of the draws.

    Raises:
        InputError: no cell, or cells that differ in their number of models.
    """
    rows: list[tuple[Floats, Floats]] = []
    plan: _Plan | None = None
    for solution, predictions in cells:
        ranked = Ranked(solution, predictions)
        models = ranked.members.shape[1]
        plan = plan or _Plan.make(models, count, halvings, seed)
        if models != plan.models:
            raise InputError(f"Cells of {plan.models} and of {models} models cannot be compared.")
        tpr, auc = ranked.tpr_at(RANKING_FPR, plan.weights), ranked.auc(plan.weights)
        curve = roc(solution, predictions)
        tpr[0], auc[0] = curve.tpr_at(RANKING_FPR), curve.auc  # of all models, the official ones
        rows.append((tpr, auc))
    if plan is None:
        raise InputError("There is no cell to compare.")
    if plan.models < 2:
        raise InputError("Cells of a single model cannot be compared.")
    every_tpr, every_auc = (np.stack(columns, axis=-1) for columns in zip(*rows, strict=True))
    return _compared(plan, every_tpr, every_auc, choose)


@dataclass(frozen=True, eq=False)
class _Plan:
    """Rows of weights under which every cell is scored, and what each part of them is.

    First all models once; then the draws; then pairs of halves of all models; then pairs of
    halves of draws, where a model that was drawn twice lies twice in one half.
    """

    models: int
    weights: Weights
    draws: slice
    halves: tuple[slice, slice]
    drawn_halves: tuple[slice, slice]

    @classmethod
    def make(cls, models: int, count: int, halvings: int, seed: int) -> "_Plan":
        if models < 4:  # a half of one model is no sample of models
            halvings = 0
        drawn = draw(models, max(count, 1), seed)
        first = halve(models, halvings, seed)
        again = drawn[np.arange(halvings) % len(drawn)]
        parts = [np.ones((1, models), np.float32), drawn, first, ~first]
        parts += [again * first, again * ~first]
        ends = np.cumsum([len(part) for part in parts])
        cuts = [slice(end - len(part), end) for end, part in zip(ends, parts, strict=True)]
        weights = np.concatenate(parts, dtype=np.float32)
        return cls(models, weights, cuts[1], (cuts[2], cuts[3]), (cuts[4], cuts[5]))


def _compared(plan: _Plan, tpr: Floats, auc: Floats, choose: Choose) -> Comparison:
    draws = tpr[plan.draws]
    draws = draws[np.isfinite(draws).all(axis=1)]  # those with both classes
    if not len(draws):
        raise InputError("No draw of the models has members and non-members.")
    error = draws.std(axis=0)
    chosen = int(choose(tpr[:1], auc[:1], error[None])[0])
    best = draws == draws.max(axis=1, keepdims=True)
    shares = best / best.sum(axis=1, keepdims=True)
    difference = draws[:, [chosen]] - draws
    return Comparison(
        tpr=tpr[0],
        auc=auc[0],
        tpr_interval=np.array([interval(column) for column in draws.T]),
        standard_error=error,
        chosen=chosen,
        probability_best=shares.mean(axis=0),
        difference=tpr[0, chosen] - tpr[0],
        difference_interval=np.array([interval(column) for column in difference.T]),
        procedure=_procedure(plan, tpr, auc, error, choose),
    )


def _procedure(
    plan: _Plan, tpr: Floats, auc: Floats, error: Floats, choose: Choose
) -> Estimate | None:
    """Estimate the TPR of choosing: on one half of the models, scored on the other."""
    if not len(tpr[plan.halves[0]]):
        return None
    value = _crossed(plan.halves, tpr, auc, error, choose)
    drawn = _crossed(plan.drawn_halves, tpr, auc, error, choose)
    if not (np.isfinite(value).any() and np.isfinite(drawn).any()):
        return None  # no half has both classes
    return Estimate(float(np.nanmean(value)), interval(drawn))


def _crossed(
    halves: Sequence[slice], tpr: Floats, auc: Floats, error: Floats, choose: Choose
) -> Floats:
    """TPR (H,) of the cells chosen on either half, each scored on the other."""
    total = np.zeros(len(tpr[halves[0]]))
    for here, there in (halves, halves[::-1]):
        spread = np.broadcast_to(error * np.sqrt(2), tpr[here].shape)  # half as many models
        chosen = choose(np.nan_to_num(tpr[here]), np.nan_to_num(auc[here]), spread)
        total += tpr[there][np.arange(len(total)), chosen] / 2
    return total


def roc_band(
    solution: ArrayLike, predictions: ArrayLike, fprs: Sequence[float], count: int = 200
) -> tuple[Floats, Floats] | None:
    """Give the 95 % interval of the TPR at every FPR, low and high (X,); None for one model.

    Raises:
        InputError: an FPR is not above 0.
    """
    for x in fprs:
        check_fpr(x)
    ranked = Ranked(solution, predictions)
    models = ranked.members.shape[1]
    if models < 2:
        return None
    weights = draw(models, count)
    found = np.array([interval(ranked.tpr_at(x, weights)) for x in fprs])
    return found[:, 0], found[:, 1]
