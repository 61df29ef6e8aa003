"""The shadow models on either side of a point: how many, how their scores lie and spread.

`Models` is what a formula sees of a side; `Moments` is as much of it as most formulas need.

Axes: S shadow models, P points of a target; leading axes are targets.

Variances that are pooled are so over the P points of one target, each point centred on its own
mean first, so that the spread between points does not count. Where all shadow models agree there
is no scale, and what divides by it gives 0: neither member-like nor not.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import gammaln

from mico_exp.common import require
from mico_exp.common.arrays import Floats, Mask
from mico_exp.common.errors import InputError

VARIANCES = ("per_point", "pooled", "bayesian")


class Moments(Protocol):
    """Shadow models on one side of each point (…, P): how many, their mean, squares around it.

    The mean is 0 where there are none.
    """

    @property
    def size(self) -> Floats:
        """How many."""

    @property
    def mean(self) -> Floats:
        """Mean of their scores."""

    @property
    def squares(self) -> Floats:
        """Sum of the squares of their scores' differences from the mean."""


class Side(NamedTuple):
    """`Moments` that are known."""

    size: Floats
    mean: Floats
    squares: Floats


class Around(NamedTuple):
    """Count and squares as in `Moments`, and the mean as the highest score and the rest of it.

    Scores are looked at relative to the highest, so that those of models that agree have exactly
    no spread: rounding differs with their number, and so would tell members apart.
    """

    size: Floats
    top: Floats
    middle: Floats
    squares: Floats

    @property
    def side(self) -> Side:
        """The same as moments."""
        return Side(self.size, self.top + self.middle, self.squares)


def around(shadow: Floats, mask: Mask) -> Around:
    """Find them of (…, S, P) over S where `mask` holds."""
    count = np.count_nonzero(mask, axis=-2).astype(float)
    masked = np.where(mask, shadow, -np.inf)
    top = np.where(count > 0, masked.max(axis=-2), 0)
    apart = np.where(mask, shadow - top[..., np.newaxis, :], 0)
    mean = apart.sum(axis=-2) / np.maximum(count, 1)
    apart -= np.where(mask, mean[..., np.newaxis, :], 0)
    return Around(count, top, mean, np.einsum("...sp,...sp->...p", apart, apart))


def side(shadow: Floats, mask: Mask) -> Side:
    """Count, mean and sum of squares of (…, S, P) over S where `mask` holds."""
    return around(shadow, mask).side


class Models(ABC):
    """`Moments` of one side of each point (…, P), and more; each is found when it is asked for."""

    @property
    @abstractmethod
    def size(self) -> Floats:
        """How many they are."""

    @property
    @abstractmethod
    def moments(self) -> Side:
        """How many, their mean, squares around it."""

    @property
    @abstractmethod
    def median(self) -> Floats:
        """Median of their scores; 0 where there are none."""

    @abstractmethod
    def at_most(self, score: Floats) -> Floats:
        """How many have a score of at most (…, P)."""

    @property
    def mean(self) -> Floats:
        """Mean of their scores; 0 where there are none."""
        return self.moments.mean

    @property
    def squares(self) -> Floats:
        """Sum of the squares of their scores' differences from the mean."""
        return self.moments.squares


class Gathered(Models):
    """The models of (…, S, P) for which `mask` holds."""

    def __init__(self, shadow: Floats, mask: Mask) -> None:
        self.shadow, self.mask = shadow, mask

    @cached_property
    def size(self) -> Floats:
        """How many they are."""
        return np.count_nonzero(self.mask, axis=-2).astype(float)

    @cached_property
    def moments(self) -> Side:
        """How many, their mean, squares around it."""
        return side(self.shadow, self.mask)

    @cached_property
    def median(self) -> Floats:
        """Median of their scores; 0 where there are none."""
        shown = np.where(self.mask, self.shadow, np.nan)
        shown[..., 0, :][self.size == 0] = 0
        found: Floats = np.nanmedian(shown, axis=-2)
        return found

    def at_most(self, score: Floats) -> Floats:
        """How many have a score of at most (…, P)."""
        below = self.mask & (self.shadow <= score[..., np.newaxis, :])
        return np.count_nonzero(below, axis=-2).astype(float)


class Instead(Models):
    """The models of `first` where a mask holds (…, P), elsewhere those of `second`."""

    def __init__(self, mask: Mask, first: Models, second: Models) -> None:
        self.mask, self.first, self.second = mask, first, second

    @cached_property
    def size(self) -> Floats:
        """How many they are."""
        return np.where(self.mask, self.first.size, self.second.size)

    @cached_property
    def moments(self) -> Side:
        """How many, their mean, squares around it."""
        pairs = zip(self.first.moments, self.second.moments, strict=True)
        return Side(*(np.where(self.mask, *pair) for pair in pairs))

    @cached_property
    def median(self) -> Floats:
        """Median of their scores; 0 where there are none."""
        return np.where(self.mask, self.first.median, self.second.median)

    def at_most(self, score: Floats) -> Floats:
        """How many have a score of at most (…, P)."""
        return np.where(self.mask, self.first.at_most(score), self.second.at_most(score))


def joined(parts: Sequence[Side]) -> Side:
    """One side of several that share no model (Chan et al. 1979); alike, they have no spread."""
    size, mean, squares = (np.stack(values) for values in zip(*parts, strict=True))
    count = size.sum(axis=0)
    top = np.where(count > 0, np.where(size > 0, mean, -np.inf).max(axis=0), 0)
    apart = np.where(size > 0, mean - top, 0)
    middle = (size * apart).sum(axis=0) / np.maximum(count, 1)
    between = (size * np.square(apart - middle)).sum(axis=0)
    return Side(count, top + middle, squares.sum(axis=0) + between)


def divide(value: Floats, by: Floats) -> Floats:
    """Quotient, 0 where `by` is 0."""
    value, by = np.broadcast_arrays(value, by)
    found: Floats = np.divide(value, by, out=np.zeros(value.shape), where=by > 0)
    return found


PRIOR_SCORES = 10.0  # as many scores' worth of belief in the pooled variance, where it is a prior


def variance_of(inside: Moments, outside: Moments, scale: str) -> Floats:
    """σ² (…, P) as `offset` names them."""
    if scale == "all":
        count = inside.size + outside.size
        gap = inside.mean - outside.mean
        between = inside.size * outside.size / np.maximum(count, 1) * np.square(gap)
        squares = inside.squares + outside.squares + between
        return squares / np.maximum(count - 1, 1)
    pooled = pooled_variance(inside, outside)
    if scale == "pooled":
        return np.broadcast_to(pooled, inside.mean.shape)
    freedom = np.maximum(inside.size - 1, 0) + np.maximum(outside.size - 1, 0)
    extra = PRIOR_SCORES if scale == "shrunk" else 0.0
    squares = inside.squares + outside.squares + extra * pooled
    return np.where(freedom + extra > 0, squares / np.maximum(freedom + extra, 1), pooled)


def pooled_variance(*sides: Moments) -> Floats:
    """Variance (…, 1) around each point's and side's own mean, over all points; 0 if unknown.

    v = Σ_i Σ_m (s_im − μ_i)² / Σ_i (n_i − 1).
    """
    squares = sum(one.squares.sum(axis=-1, keepdims=True) for one in sides)
    freedom = sum(np.maximum(one.size - 1, 0).sum(axis=-1, keepdims=True) for one in sides)
    return divide(np.asarray(squares), np.asarray(freedom))


class Gap(NamedTuple):
    """How far in models' means lie above out models' (…, P), and over all points (…, 1).

    value: of each point; the mean one where a side is missing. error: variance of `value` in
    units of a score's variance, 1/n_I + 1/n_O; infinite where a side is missing. mean: over the
    points with both sides, weighted by 1/error; 0 if there is none.
    """

    value: Floats
    error: Floats
    mean: Floats


def gap_of(inside: Moments, outside: Moments) -> Gap:
    """Find the gap of every point from the two sides."""
    both = (inside.size > 0) & (outside.size > 0)
    error = np.where(both, 1 / np.maximum(inside.size, 1) + 1 / np.maximum(outside.size, 1), np.inf)
    weight = 1 / error
    value = np.where(both, inside.mean - outside.mean, 0)
    total = weight.sum(axis=-1, keepdims=True)
    mean = divide((weight * value).sum(axis=-1, keepdims=True), total)
    return Gap(np.where(both, value, mean), error, mean)


def means(inside: Moments, outside: Moments, gap: Floats) -> tuple[Floats, Floats]:
    """Means of both sides; a missing one is as far as `gap` from the other, or at 0 with it."""
    above = np.where(inside.size > 0, inside.mean, outside.mean + gap)
    below = np.where(outside.size > 0, outside.mean, inside.mean - gap)
    return above, below


def completed(inside: Moments, outside: Moments) -> tuple[Floats, Floats]:
    """Means of both sides; a missing one is as far from the other as `gap_of` has it."""
    if (inside.size > 0).all() and (outside.size > 0).all():
        return inside.mean, outside.mean
    return means(inside, outside, gap_of(inside, outside).value)


def check_variance(variance: str) -> None:
    """Refuse what is no way to take a variance."""
    if variance not in VARIANCES:
        raise InputError(f"`variance` must be one of {', '.join(VARIANCES)}, got {variance}.")


def own_variance(one: Moments, pooled: Floats, variance: str) -> tuple[Floats, Mask]:
    """Variance of a side, and where the pooled one had to serve for it."""
    if variance == "pooled":
        return np.broadcast_to(pooled, one.mean.shape), np.zeros(one.mean.shape, dtype=bool)
    few = (one.size < 2) | (one.squares <= 0)
    return np.where(few, pooled, one.squares / np.maximum(one.size - 1, 1)), few


class Student(NamedTuple):
    """Student's t distribution of each point's next score (…, P)."""

    freedom: Floats
    location: Floats
    scale: Floats

    def log_density(self, score: Floats) -> Floats:
        """Log density at (…, P), up to a constant; 0 where there is no scale."""
        known = np.where(self.scale > 0, self.scale, 1)
        half = (self.freedom + 1) / 2
        squared = np.square((score - self.location) / known)
        found = gammaln(half) - gammaln(self.freedom / 2) - np.log(self.freedom) / 2
        found -= np.log(known) + half * np.log1p(squared / self.freedom)
        return np.where(self.scale > 0, found, 0)


def predictive(one: Moments, mean: Floats, pooled: Floats, kappa: float, nu: float) -> Student:
    """Predict a side's next score under a normal-inverse-gamma prior.

    The prior is worth `kappa` scores at `mean` and `nu` scores of variance `pooled`: α_0 = ν/2,
    β_0 = ν·v/2. κ_n = κ + n, μ_n = (κ·mean + n·x̄)/κ_n, α_n = α_0 + n/2, β_n = β_0 + SS/2 +
    κ·n·(x̄ − mean)²/(2κ_n); then Student's t with 2α_n degrees of freedom, location μ_n and
    scale² β_n(κ_n + 1)/(α_n·κ_n) (Murphy 2007, eq. 110). Defined at n = 0 and n = 1.
    """
    n = one.size
    kappa_n = kappa + n
    location = mean + n * (one.mean - mean) / kappa_n
    alpha = (nu + n) / 2
    beta = (nu * pooled + one.squares + kappa * n * np.square(one.mean - mean) / kappa_n) / 2
    return Student(2 * alpha, location, np.sqrt(beta * (kappa_n + 1) / (alpha * kappa_n)))


def check_prior(kappa: float, nu: float) -> None:
    """Refuse a prior that is worth no score."""
    for name, value in (("kappa", kappa), ("nu", nu)):
        require.above(name, value, 0)


def share_below(ratio: Floats, population: Floats, gamma: float) -> Floats:
    """Share of the population (…, Z) with r(z) ≤ r(x)/γ, for every r(x) (…, P)."""
    require.at_least("gamma", gamma, 1)
    flat = ratio.reshape(-1, ratio.shape[-1]) / gamma
    rows = population.reshape(-1, population.shape[-1])
    found = np.empty(flat.shape, dtype=np.int64)
    for place, row, wanted in zip(found, rows, flat, strict=True):
        order = np.argsort(wanted)  # they are found several times as fast one after another
        place[order] = np.searchsorted(np.sort(row), wanted[order], side="right")
    return found.reshape(ratio.shape) / population.shape[-1]
