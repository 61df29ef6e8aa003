"""Whose membership shows: each record's scores in models trained on it and in models that were not.

A record that many models were asked about has an in and an out distribution of its own, and so a
threshold of its own, which does within a record what a formula does between records. Scores that
were calibrated with the model itself left out would not do here: in a record's narrow distribution
what was left out shows, and tells members. What is said of single records is said of all of them
at once: ranks have intervals that hold together, and a record is called exposed with the
family-wise error controlled.

Axes: L models that may have been asked about a record, R records, T target models of P points.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom
from scipy.stats import t as student

from mico_exp.challenge.points import NONE, ChallengePoints
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError
from mico_exp.results.scoring import check_fpr
from mico_exp.scores.table import Scores

ERROR = 0.05  # family-wise
BINS = 25  # of a histogram
RECORDS_AT_ONCE = 4096  # keeps (L, records) arrays small


class Asked(NamedTuple):
    """Models' scores (L, R) at records (R,), by index, and who was trained on each.

    inside, outside: (L, R) True where a model was trained on the record, and where it was not;
    neither where it has no score.
    """

    records: Indices
    scores: Floats
    inside: Mask
    outside: Mask


def everywhere(scores: Scores, points: ChallengePoints) -> Asked:
    """Take all train models at all records of a scenario, by one metric.

    Their training sets are known, so that their own challenge points are not all that there is.
    """
    known = np.isfinite(scores.shadow)
    inside, outside = points.is_member & known, ~points.is_member & known
    return Asked(points.unique, scores.shadow, inside, outside)


def recurring(points: Indices, scores: NDArray[np.floating], solution: Mask) -> Asked:
    """Gather the scores (T, P) of records that recur among models' challenge points (T, P).

    L is the most models that any record has.
    """
    there = points != NONE
    order = np.argsort(points[there], kind="stable")
    records, first, counts = np.unique(points[there][order], return_index=True, return_counts=True)
    row = np.arange(len(order)) - np.repeat(first, counts)
    column = np.repeat(np.arange(len(records)), counts)
    found = np.zeros((int(counts.max()), len(records)))
    inside, outside = np.zeros(found.shape, dtype=bool), np.zeros(found.shape, dtype=bool)
    found[row, column] = scores[there][order]
    inside[row, column] = solution[there][order]
    outside[row, column] = ~solution[there][order]
    return Asked(records, found, inside, outside)


@dataclass(frozen=True, eq=False)
class Risks:
    """What is known of every record (R,) that both kinds of models were asked about.

    records: indices. models: (R,) how many were asked. in_mean, out_mean: of their scores.
    tpr: share of in models above the lowest threshold whose FPR, over the record's own out
        models, is strictly below `fpr`.
    separation: how far in models lie above out models, in deviations of a score, the mean of
        those of both sides.
    rank: 1 for the largest separation; equal ones share it. low, high: intervals of the true ranks
        that hold for all records together in 95 % of cases.
    exposed: `tpr` is above what chance gives, with at most 5 % chance of any false one among all.
    left_out: how many records lack models of one kind.
    """

    records: Indices
    models: Indices
    in_mean: Floats
    out_mean: Floats
    tpr: Floats
    separation: Floats
    rank: Indices
    low: Indices
    high: Indices
    exposed: Mask
    fpr: float
    left_out: int


def judge_records(asked: Asked, fpr: float = 0.1) -> Risks:
    """Judge every record by its own models.

    The separation is (mean in − mean out) over the mean of two deviations, of in models and of
    out models: LiRA's measure of a record's risk (Carlini et al. 2022, arXiv 2112.03570). A record
    that is learnt by heart is told alike by all in models and not by out models, so the two are
    not the same. Each variance is half the record's own and half that of its side over all
    records: one of few models is itself uncertain, and half of each gives a repeatable order
    (after Smyth 2004, doi 10.2202/1544-6115.1027, whose weight is estimated). Its error is of both
    means and both deviations; Student's t at a level of 5 % shared among all records makes
    intervals that hold together, and these make ranks (Klein, Wright & Wieczorek 2020, doi
    10.1111/rssa.12521): as many records are certainly above as have their whole interval above.

    Exposed is a record by an exact test of its TPR: over nothing, any order of its models' scores
    is as likely as any other, and the number of in models above the k-th out model is negative
    hypergeometric. Holm's procedure (1979) holds the family-wise error however records hang
    together.

    Raises:
        InputError: no record has both kinds of models, all scores are equal, or `fpr` is not above
            0.
    """
    check_fpr(fpr)
    sides = _Sides.of(_sides(asked, some, fpr) for some in _blocks(len(asked.records)))
    both = (sides.inside > 0) & (sides.outside > 0)
    if not both.any():
        raise InputError(
            f"None of {len(both)} records has both models that were trained on it and models that "
            "were not: members and non-members are needed."
        )
    sides = sides.at(both)
    separation, error, freedom = _separation(sides)
    rank, low, high = _ranks(separation, error, freedom)
    return Risks(
        records=asked.records[both],
        models=sides.inside + sides.outside,
        in_mean=sides.in_mean,
        out_mean=sides.out_mean,
        tpr=sides.above / sides.inside,
        separation=separation,
        rank=rank,
        low=low,
        high=high,
        exposed=_holm(_chance(sides, fpr)) <= ERROR,
        fpr=fpr,
        left_out=int(np.count_nonzero(~both)),
    )


def _blocks(records: int) -> Iterator[slice]:
    starts = range(0, records, RECORDS_AT_ONCE)
    return (slice(start, start + RECORDS_AT_ONCE) for start in starts)


class _Sides(NamedTuple):
    """Of each record (R,): models on each side, their means, squares around these.

    above: in models above the threshold.
    """

    @classmethod
    def of(cls, parts: Iterable[Sequence[NDArray[Any]]]) -> "_Sides":
        """Take some that were made apart."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def at(self, mask: Mask) -> "_Sides":
        """Take those of some records."""
        values: Sequence[Any] = self
        return _Sides(*(one[mask] for one in values))

    inside: Indices
    outside: Indices
    in_mean: Floats
    out_mean: Floats
    in_squares: Floats
    out_squares: Floats
    above: Indices


def _sides(asked: Asked, some: slice, fpr: float) -> _Sides:
    """Look at some of the records."""
    scores, inside, outside = asked.scores[:, some], asked.inside[:, some], asked.outside[:, some]
    counts, means, squares = [], [], []
    for mask in (inside, outside):
        count = np.count_nonzero(mask, axis=0)
        # Relative to one of them, so that models that agree have no spread at all.
        anchor = np.where(mask, scores, -np.inf).max(axis=0)
        apart = np.where(mask, scores - np.where(count > 0, anchor, 0), 0)
        mean = apart.sum(axis=0) / np.maximum(count, 1)
        squares.append(np.where(mask, np.square(apart - mean), 0).sum(axis=0))
        counts.append(count)
        means.append(np.where(count > 0, anchor + mean, np.nan))
    above = _above(scores, inside, outside, fpr)
    return _Sides(counts[0], counts[1], means[0], means[1], squares[0], squares[1], above)


def allowed(outside: Indices, fpr: float) -> Indices:
    """The most out models (R,) that may be above a threshold whose FPR is strictly below `fpr`."""
    found = np.minimum(np.floor(min(fpr, 1) * outside).astype(np.int64) + 1, outside)
    for _ in range(2):  # by the same quotients that make a curve
        found -= (found > 0) & (found / np.maximum(outside, 1) >= fpr)
    return found


def _above(scores: Floats, inside: Mask, outside: Mask, fpr: float) -> Indices:
    """In models (R,) above the first out model, from the highest, that is one too many."""
    count = np.count_nonzero(outside, axis=0)
    most = allowed(count, fpr)
    others = np.sort(np.where(outside, -scores, np.inf), axis=0)  # the highest first
    place = np.minimum(most, len(scores) - 1)
    first = -np.take_along_axis(others, place[np.newaxis], axis=0)
    first = np.where(most < count, first, -np.inf)
    found: Indices = np.count_nonzero(inside & (scores > first), axis=0)
    return found


def _separation(sides: _Sides) -> tuple[Floats, Floats, Floats]:
    """Separation of every record (R,), its error, and the error's degrees of freedom.

    A side with one model has the other's variance. The error is infinite where there are but two
    models. Degrees of freedom are Welch's, of means whose variances differ.

    Raises:
        InputError: no model differs from another at any record.
    """
    gap = sides.in_mean - sides.out_mean
    count = np.stack([sides.inside, sides.outside])
    own, shrunk, freedom = _variances(count, np.stack([sides.in_squares, sides.out_squares]))
    if not (own.any() or gap.any()):
        raise InputError(
            f"All scores of each of {len(gap)} records are equal: they tell nothing of membership."
        )
    deviation = np.sqrt(shrunk).mean(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    found = gap / deviation
    of_means, freedom = np.maximum(own, shrunk) / count, np.maximum(freedom, 1)
    error = of_means.sum(axis=0) + np.square(found) * (shrunk / freedom).sum(axis=0) / 16
    most, parts = count.sum(axis=0) - 2, (np.square(of_means) / freedom).sum(axis=0)
    welch = np.square(of_means.sum(axis=0)) / np.where(parts > 0, parts, 1)
    error = np.where(most > 0, np.sqrt(error) / deviation, np.inf)
    return found, error, np.where(parts > 0, np.minimum(welch, most), most)


def _variances(count: Indices, squares: Floats) -> tuple[Floats, Floats, Indices]:
    """Each side's own variances (2, R), those half shrunk to its mean one, degrees of freedom."""
    freedom = count - 1
    squares = np.where(freedom > 0, squares, squares[::-1])
    freedom = np.where(freedom > 0, freedom, freedom[::-1])
    common = squares.sum(axis=1) / np.maximum(freedom.sum(axis=1), 1)
    common = np.broadcast_to(common[:, np.newaxis], squares.shape)
    own = np.divide(squares, freedom, out=common.copy(), where=freedom > 0)
    return own, (own + common) / 2, freedom


def _ranks(value: Floats, error: Floats, freedom: Floats) -> tuple[Indices, Indices, Indices]:
    """Ranks (R,) of values, the largest first, with both ends of intervals that hold together."""
    count = len(value)
    different, place = np.unique(np.maximum(np.floor(freedom), 1), return_inverse=True)
    wide = student.isf(ERROR / (2 * count), different)[place]
    low, high = value - wide * error, value + wide * error
    rank = 1 + count - np.searchsorted(np.sort(value), value, side="right")
    best = 1 + count - np.searchsorted(np.sort(low), high, side="right")
    worst = count - np.searchsorted(np.sort(high), low, side="left")
    return rank, best, worst


def _chance(sides: _Sides, fpr: float) -> Floats:
    """Chance (R,) over nothing of so many in models above the threshold, or of more.

    They are so many exactly if among the first of all in a random order there are at most as many
    out models as are allowed.
    """
    told = np.stack([sides.inside, sides.outside, sides.above], axis=1)
    different, place = np.unique(told, axis=0, return_inverse=True)
    inside, outside, above = different.T
    most = allowed(outside, fpr)
    found = hypergeom.cdf(most, inside + outside, outside, above + most)
    return np.where(above > 0, found, 1)[place.ravel()]


def _holm(chance: Floats) -> Floats:
    """Chances (R,) adjusted for their number by Holm's procedure."""
    order = np.argsort(chance)
    left = len(chance) - np.arange(len(chance))
    adjusted = np.maximum.accumulate(np.minimum(chance[order] * left, 1))
    found = np.empty(len(chance))
    found[order] = adjusted
    return found


class Group(NamedTuple):
    """Records of one class, or of one value of a column: how many, and how exposed.

    tpr: mean over its records. exposed: how many. top: how many of the most exposed tenth.
    """

    name: str
    records: int
    tpr: float
    exposed: int
    top: int


def histogram(tpr: Floats) -> Indices:
    """How many records have a TPR in each of `BINS` equal parts of [0, 1]."""
    return np.histogram(tpr, np.linspace(0, 1, BINS + 1))[0]


def by_group(risks: Risks, names: NDArray[Any]) -> list[Group]:
    """Gather the records (R,) by a name of each, the groups of the highest mean TPR first."""
    top = risks.rank <= max(len(risks.rank) // 10, 1)
    different, place = np.unique(names, return_inverse=True)
    found = []
    for number, name in enumerate(different):
        some = place == number
        tpr, count = float(risks.tpr[some].mean()), int(some.sum())
        exposed = int(risks.exposed[some].sum())
        found.append(Group(str(name), count, tpr, exposed, int(top[some].sum())))
    return sorted(found, key=lambda group: (-group.tpr, group.name))
