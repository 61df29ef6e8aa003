"""How sure the figures are: a bootstrap over models, the same for all cells, and nested choices.

The points of one model share the randomness of its training, so models are drawn, never points
(the cluster bootstrap; Davison & Hinkley 1997, §3.8). A draw is a row of weights, how often each
model is in it; an interval holds the middle 95 % of the draws' figures (the percentile method).

Models may have unequal numbers of points, as `scoring` has it; a model drawn brings all its own.

Axes: R draws, T models, P points of a model, N points of all, K distinct scores, C cells.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from mico_exp.common.arrays import Floats, Mask
from mico_exp.common.errors import InputError
from mico_exp.results.scoring import OFFICIAL_FPRS, RANKING_FPR, check_fpr, curve_of, rank

Weights = NDArray[np.floating]
Choose = Callable[[Floats, Floats, Floats], NDArray[np.int64]]
LEVEL = 95  # per cent, of every interval
RESAMPLES = 1000
HALVINGS = 500
SEED = 0  # of all draws
BLOCK = 16  # ranks that are counted together, at least
MOST_COUNTS = 2**23  # of blocks times models; of more, blocks are longer
STRETCH = 2**16  # ranks whose pairs are counted at once
EXACT = 2**24  # up to which float32 holds every whole number


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
        there: (T, P) False where a model has no point; None where it has all.

    Raises:
        InputError: shapes differ, values are not finite, or one class is missing.
    """

    def __init__(
        self, solution: ArrayLike, predictions: ArrayLike, there: Mask | None = None
    ) -> None:
        order, is_member, ranked, last = rank(solution, predictions, there)
        self.curve = curve_of(is_member, ranked, last)
        self.models = len(np.asarray(predictions))
        points = np.shape(predictions)[1] if there is None else there.sum(axis=1)
        whose = np.repeat(np.arange(self.models, dtype=np.min_scalar_type(self.models)), points)
        model = whose[order]
        self.members = _Counted.of(model, is_member, self.models)
        self.others = _Counted.of(model, ~is_member, self.models)
        self.ends = np.append(0, last + 1)  # (K + 1,): so many ranks, that no tie is cut by
        # (T, T) pairs that members of the second model win over others of the first.
        self.pairs = _ordered(model, is_member, self.models)
        self.pairs -= _tied(model, is_member, self.ends, self.models) / 2  # a tie counts half

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
            ranks = self.ends[np.searchsorted(self.ends, ranks, side="right") - 1]
            found = self.members.above(ranks, weights) / self.members.total(weights)
        return np.where(limit > 0, found, np.nan)

    def intervals(self, count: int = RESAMPLES, seed: int = 0) -> dict[str, Interval]:
        """Intervals of the official figures, by the figures' names.

        Empty for a single model, which tells nothing of how models differ.
        """
        if self.models < 2:
            return {}
        weights = draw(self.models, count, seed)
        found = {f"tpr_at_fpr_{x}": interval(self.tpr_at(x, weights)) for x in OFFICIAL_FPRS}
        return found | {"auc": interval(self.auc(weights))}


@dataclass(frozen=True, eq=False)
class _Counted:
    """Points of one class in descending order, counted by model and block of ranks.

    float32 holds every count up to 2²⁴ exactly, and makes the products quick.

    before: (B + 1, T) points of each model before a block. model, present: (B, L) whose point is
    at a rank, and whether it is of the class.
    """

    before: Weights
    model: NDArray[np.unsignedinteger]
    present: NDArray[np.bool_]

    @classmethod
    def of(
        cls, model: NDArray[np.unsignedinteger], mask: NDArray[np.bool_], models: int
    ) -> "_Counted":
        length = BLOCK
        while len(model) * models > MOST_COUNTS * length:
            length *= 2
        blocks = -(-len(model) // length)
        padded = np.zeros(blocks * length, dtype=model.dtype), np.zeros(blocks * length, bool)
        padded[0][: len(model)], padded[1][: len(model)] = model, mask
        whose, present = (part.reshape(blocks, length) for part in padded)
        most = int(np.bincount(model).max()) * models  # of a draw
        return cls(_before(whose, present, models, most), whose, present)

    @property
    def length(self) -> int:
        """Ranks of a block."""
        return self.model.shape[1]

    def total(self, weights: Weights) -> Floats:
        """How many there are (R,) under weights (R, T)."""
        return (weights @ self.before[-1]).astype(float)

    def above(self, ranks: NDArray[np.int64], weights: Weights) -> Floats:
        """How many there are (R,) in the first of `ranks` (R,)."""
        block, length = ranks // self.length, self.length
        inside = np.arange(length) < (ranks - block * length)[:, np.newaxis]
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
        return low * self.length + (counts / total[:, np.newaxis] < share).sum(axis=1)

    def _before(self, block: NDArray[np.int64], weights: Weights) -> Floats:
        return np.einsum("rt,rt->r", self.before[block], weights).astype(float)

    def _weighted(self, block: NDArray[np.int64], weights: Weights) -> Weights:
        """Weights (R, L) of a block's points of the class; beyond the last block none."""
        some = block.clip(max=len(self.model) - 1)
        whose = self.model[some].astype(np.int64)
        found = np.take_along_axis(weights, whose, axis=1) * self.present[some]
        return np.where((block < len(self.model))[:, np.newaxis], found, 0)


Whose = NDArray[np.unsignedinteger]  # (N,) the model of each point in descending order


def _before(whose: Whose, mask: NDArray[np.bool_], models: int, most: int) -> Weights:
    """Points (B + 1, T) of each model that a mask holds for, before each of the blocks (B, L).

    most: what sums that are made of them come to.
    """
    blocks = len(whose)
    parts = -(-blocks // BLOCK)  # NumPy's own running sums are slow down columns
    place = whose + np.arange(blocks)[:, np.newaxis] * models
    counts = np.bincount(place[mask], minlength=parts * BLOCK * models)
    found = np.zeros((parts * BLOCK + 1, models), np.float32 if most < EXACT else np.float64)
    rows = found[1:].reshape(parts, BLOCK, models)
    rows[:] = counts.reshape(rows.shape)
    for row in range(1, BLOCK):
        rows[:, row] += rows[:, row - 1]
    rows[1:] += np.cumsum(rows[:-1, -1], axis=0)[:, np.newaxis]
    return found[: blocks + 1]


def _summed(rows: Weights, row: NDArray[np.int64], whose: Whose, models: int) -> Floats:
    """Sum (T, F) for each model the rows (R, F) of its points."""
    order = np.argsort(whose, kind="stable")
    ends = np.append(0, np.cumsum(np.bincount(whose, minlength=models)))
    ones = np.ones(len(row), dtype=rows.dtype)
    points = csr_matrix((ones, row[order], ends), shape=(models, len(rows)))
    found: Floats = points @ rows
    return found


def _ordered(whose: Whose, is_member: NDArray[np.bool_], models: int) -> Floats:
    """Count pairs (T, T) of an other of the first model and a member of the second above it.

    float64 counts all of them exactly.
    """
    found, before = np.zeros((models, models)), np.zeros(models)
    for start in range(0, len(whose), STRETCH):
        some = slice(start, start + STRETCH)
        model, member = whose[some], is_member[some]
        block = np.arange(len(model)) // BLOCK
        members, others = (np.bincount(model[mask], minlength=models) for mask in (member, ~member))
        padded = np.zeros((2, block[-1] + 1, BLOCK), dtype=model.dtype)
        padded.reshape(2, -1)[:, : len(model)] = model, member
        rows = _before(padded[0], padded[1] > 0, models, members.max() * others.max())
        found += _summed(rows, block[~member], model[~member], models)
        found += _near(model, member, block, models)
        found += np.outer(others, before)
        before += members
    return found


def _near(
    whose: Whose, is_member: NDArray[np.bool_], group: NDArray[np.int64], models: int
) -> Floats:
    """Count the pairs (T, T) that lie in one group, one after another and of up to `BLOCK`."""
    found = np.zeros(models * models, dtype=np.int64)
    for apart in range(1, BLOCK):
        pairs = is_member[:-apart] & ~is_member[apart:] & (group[:-apart] == group[apart:])
        member = np.flatnonzero(pairs)
        place = whose[member + apart].astype(np.int64) * models + whose[member]
        found += np.bincount(place, minlength=len(found))
    return found.reshape(models, models).astype(float)


def _tied(
    whose: Whose, is_member: NDArray[np.bool_], ends: NDArray[np.int64], models: int
) -> Floats:
    """Count pairs (T, T) of an other of the first model and a member of the second that tie.

    ends: (K + 1,) of the runs of equal predictions, in which members come first.
    """
    sizes = np.diff(ends)
    found = np.zeros((models, models))
    few = np.repeat((sizes > 1) & (sizes <= BLOCK), sizes)
    if few.any():
        run = np.repeat(np.arange(len(sizes)), sizes)[few]
        found += _near(whose[few], is_member[few], run, models)
    at_once = max(STRETCH // models, 1)
    many = np.flatnonzero(sizes > BLOCK)
    for some in (many[start : start + at_once] for start in range(0, len(many), at_once)):
        run = np.repeat(np.arange(len(some)), sizes[some])
        first = np.repeat(ends[some] - np.append(0, np.cumsum(sizes[some])[:-1]), sizes[some])
        place = first + np.arange(len(run))
        model, member = whose[place], is_member[place]
        counts = np.bincount(run[member] * models + model[member], minlength=len(some) * models)
        rows = counts.reshape(-1, models).astype(float)
        found += _summed(rows, run[~member], model[~member], models)
    return found


@lru_cache(maxsize=4)
def draw(models: int, count: int = RESAMPLES, seed: int = 0) -> Weights:
    """Draw `count` times as many models as there are, with replacement: weights (R, T).

    The same for all cells with the same seed, which is what pairs them; one array for all who ask,
    that nobody writes into.
    """
    random = np.random.default_rng(seed)
    return random.multinomial(models, np.full(models, 1 / models), size=count).astype(np.float32)


def halve(models: int, count: int = HALVINGS, seed: int = 0) -> NDArray[np.bool_]:
    """Draw `count` random halves of the models: (H, T), True for ⌊T/2⌋ of them."""
    random = np.random.default_rng([seed, 1])
    half = np.arange(models) < models // 2
    return random.permuted(np.tile(half, (count, 1)), axis=1)


def intervals(
    solution: ArrayLike,
    predictions: ArrayLike,
    count: int = RESAMPLES,
    seed: int = 0,
    there: Mask | None = None,
) -> dict[str, Interval]:
    """Intervals of the official figures of predictions (T, P), by the figures' names.

    Empty for a single model, which tells nothing of how models differ.
    """
    return Ranked(solution, predictions, there).intervals(count, seed)


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
    there: Mask | None = None,
) -> Comparison:
    """Compare cells, each a solution and predictions (T, P), on the same draws.

    Args:
        cells: taken one at a time, so that many need no more memory than one.
        choose: a rule; gives the chosen cell (R,) from TPR (R, C), AUC (R, C) and the TPR's
            standard error (R, C).
        count: draws of the bootstrap.
        halvings: random halvings for the estimate of the procedure.
        seed: of the draws.
        there: (T, P) False where a model has no point, in any cell; None where it has all.

    Raises:
        InputError: no cell, or cells that differ in their number of models.
    """
    rows: list[tuple[Floats, Floats]] = []
    plan: _Plan | None = None
    for solution, predictions in cells:
        ranked = Ranked(solution, predictions, there)
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
    solution: ArrayLike,
    predictions: ArrayLike,
    fprs: Sequence[float],
    count: int = 200,
    there: Mask | None = None,
) -> tuple[Floats, Floats] | None:
    """Give the 95 % interval of the TPR at every FPR, low and high (X,); None for one model.

    Raises:
        InputError: an FPR is not above 0.
    """
    for x in fprs:
        check_fpr(x)
    ranked = Ranked(solution, predictions, there)
    models = ranked.models
    if models < 2:
        return None
    weights = draw(models, count)
    found = np.array([interval(ranked.tpr_at(x, weights)) for x in fprs])
    return found[:, 0], found[:, 1]
