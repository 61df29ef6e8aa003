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
from mico_exp.results.scoring import OFFICIAL_FPRS, RANKING_FPR, check_fpr, curve_of, rank

Weights = NDArray[np.float32]
Choose = Callable[[Floats, Floats, Floats], NDArray[np.int64]]
LEVEL = 95  # per cent, of every interval
RESAMPLES = 1000
HALVINGS = 500
SEED = 0  # of all draws
BLOCK = 16  # ranks that are counted together


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

    Of every model it is counted how many members and others there are above each block of ranks;
    within a block one looks at the ranks themselves.

    Args:
        solution: (T, P) True for a member.
        predictions: (T, P), higher = more member-like.

    Raises:
        InputError: shapes differ, values are not finite, or one class is missing.
    """

    def __init__(self, solution: ArrayLike, predictions: ArrayLike) -> None:
        order, is_member, ranked, last = rank(solution, predictions)
        self.curve = curve_of(is_member, ranked, last)
        self.models, points = np.shape(predictions)
        model, ends = order // points, np.append(0, last + 1)
        self.members = _Counted.of(model, is_member, self.models)
        self.others = _Counted.of(model, ~is_member, self.models)
        # (N + 1,): the most ranks, at most so many, that no tie is cut by.
        self.whole = ends[np.searchsorted(ends, np.arange(len(model) + 1), side="right") - 1]
        run = np.repeat(np.arange(len(last)), np.diff(ends))
        won = _won(model, is_member, run, self.models)
        # (T, T) pairs that members of the first model win; a tie counts half.
        self.pairs = won - _tied(model, is_member, run, self.models) / 2

    def auc(self, weights: Weights) -> Floats:
        """AUC (R,) under weights (R, T), exactly; NaN where a class is missing."""
        won = np.einsum("rt,rt->r", weights @ self.pairs, weights, dtype=float)
        with np.errstate(invalid="ignore"):
            return won / (self.members.total(weights) * self.others.total(weights))

    def tpr_at(self, fpr: float, weights: Weights) -> Floats:
        """TPR (R,) at the lowest score whose FPR is strictly below `fpr`; NaN without a class.

        With all weights 1 this is the official figure wherever no two models' points tie.

        Raises:
            InputError: `fpr` is not above 0.
        """
        check_fpr(fpr)
        limit = self.others.total(weights)
        with np.errstate(invalid="ignore"):
            ranks = self.others.most(weights, limit, fpr)
            ranks = self.whole[ranks.clip(max=len(self.whole) - 1)]
            found = self.members.above(ranks, weights) / self.members.total(weights)
        return np.where(limit > 0, found, np.nan)


@dataclass(frozen=True, eq=False)
class _Counted:
    """Points of one class in descending order, counted by model and block of ranks.

    float32 holds every count up to 2²⁴ exactly, and makes the products quick.

    before: (B + 1, T) points of each model before a block. model, present: (B, BLOCK) whose point
    is at a rank, and 1 where it is of the class.
    """

    before: Weights
    model: NDArray[np.int64]
    present: Weights

    @classmethod
    def of(cls, model: NDArray[np.int64], mask: NDArray[np.bool_], models: int) -> "_Counted":
        blocks = -(-len(model) // BLOCK)
        block = np.arange(len(model)) // BLOCK
        counts = np.bincount((block * models + model)[mask], minlength=blocks * models)
        before = np.zeros((blocks + 1, models), dtype=np.float32)
        counts.reshape(blocks, models).astype(np.float32).cumsum(axis=0, out=before[1:])
        padded = np.zeros((2, blocks * BLOCK), dtype=np.int64)
        padded[:, : len(model)] = model, mask
        whose, present = padded.reshape(2, blocks, BLOCK)
        return cls(before, whose, present.astype(np.float32))

    def total(self, weights: Weights) -> Floats:
        """How many there are (R,) under weights (R, T)."""
        return (weights @ self.before[-1]).astype(float)

    def above(self, ranks: NDArray[np.int64], weights: Weights) -> Floats:
        """How many there are (R,) in the first of `ranks` (R,)."""
        block = ranks // BLOCK
        inside = np.arange(BLOCK) < (ranks - block * BLOCK)[:, np.newaxis]
        rest = np.where(inside, self._weighted(block, weights), 0).sum(axis=1)
        return self._before(block, weights) + rest

    def most(self, weights: Weights, total: Floats, share: float) -> NDArray[np.int64]:
        """The most ranks (R,) in which there is less than a share of the total (R,)."""
        low = np.zeros(len(weights), dtype=np.int64)
        high = np.full(len(weights), len(self.before))
        while (high - low > 1).any():
            middle = (low + high) // 2
            few = self._before(middle, weights) / total < share
            low, high = np.where(few, middle, low), np.where(few, high, middle)
        inside = np.cumsum(self._weighted(low, weights), axis=1)
        counts = self._before(low, weights)[:, np.newaxis] + inside
        return low * BLOCK + (counts / total[:, np.newaxis] < share).sum(axis=1)

    def _before(self, block: NDArray[np.int64], weights: Weights) -> Floats:
        return np.einsum("rt,rt->r", self.before[block], weights).astype(float)

    def _weighted(self, block: NDArray[np.int64], weights: Weights) -> Weights:
        """Weights (R, BLOCK) of a block's points of the class; beyond the last block none."""
        some = block.clip(max=len(self.model) - 1)
        found = np.take_along_axis(weights, self.model[some], axis=1) * self.present[some]
        return np.where((block < len(self.model))[:, np.newaxis], found, 0)


def _won(
    model: NDArray[np.int64], is_member: NDArray[np.bool_], run: NDArray[np.int64], models: int
) -> Floats:
    """Count pairs (T, T) in which no other of the second model ranks above a member of the first.

    float64 counts all of them exactly.
    """
    order = np.argsort(2 * run + ~is_member, kind="stable")  # in a tie members first
    model, is_member = model[order], is_member[order]
    members, others = (_Counted.of(model, mask, models) for mask in (is_member, ~is_member))
    after = others.before[-1] - others.before[1:]
    found = np.diff(members.before, axis=0).T.astype(float) @ after.astype(float)
    above, below = np.triu_indices(BLOCK, 1)  # places within a block
    both = np.flatnonzero(members.present[:, above] * others.present[:, below])
    block, place = np.divmod(both, len(above))
    pair = members.model[block, above[place]] * models + members.model[block, below[place]]
    return found + np.bincount(pair, minlength=models**2).reshape(models, models)


def _tied(
    model: NDArray[np.int64], is_member: NDArray[np.bool_], run: NDArray[np.int64], models: int
) -> Floats:
    """Count pairs (T, T) of a member of the first model and another of the second that tie."""
    sizes = np.bincount(run)
    number = np.cumsum(sizes > 1) - 1  # of a run of several among those
    several = sizes[run] > 1
    place, count = number[run] * models + model, models * (number[-1] + 1)
    members, others = (
        np.bincount(place[several & mask], minlength=count).reshape(-1, models).astype(float)
        for mask in (is_member, ~is_member)
    )
    return members.T @ others


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
    models = ranked.models
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
        models = ranked.models
        plan = plan or _Plan.make(models, count, halvings, seed)
        if models != plan.models:
            raise InputError(f"Cells of {plan.models} and of {models} models cannot be compared.")
        tpr, auc = ranked.tpr_at(RANKING_FPR, plan.weights), ranked.auc(plan.weights)
        tpr[0], auc[0] = (
            ranked.curve.tpr_at(RANKING_FPR),
            ranked.curve.auc,
        )  # of all models, the official ones
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
    models = ranked.models
    if models < 2:
        return None
    weights = draw(models, count)
    found = np.array([interval(ranked.tpr_at(x, weights)) for x in fprs])
    return found[:, 0], found[:, 1]
