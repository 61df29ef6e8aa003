"""How two models' figures differ, and how high one may be: what gates and comparisons hang on.

Models are drawn, as everywhere (`results.statistics`); where two sides are asked about the same
records, these are drawn too. Dev and final models are two samples: each is drawn by itself, and
figures are means over both, weighted by their members.

Draws of few models would be too coarse: those of a TPR at a threshold lie too far from each other
(Hall & Martin 1988). So figures are linearised: each model, or record, moves a figure by the
influence of its points, and the figure's variance is that of a sum of independent influences, as
Obuchowski (1997) has it for the AUC of clusters.

Axes: F figures, T models, P points of a model, N points of all, G models or records.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta, norm, rankdata
from scipy.stats import t as student

from mico_exp.challenge.points import NONE
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError
from mico_exp.results.cell import Predicted
from mico_exp.results.scoring import RANKING_FPR, Roc, rank, roc
from mico_exp.results.statistics import LEVEL, Interval

FIGURES = (f"tpr_at_fpr_{RANKING_FPR}", "auc")
TPR, AUC = range(len(FIGURES))
ONE_SIDED, TWO_SIDED = 0.95, 0.5 + LEVEL / 200  # quantiles of intervals' ends
FEWEST_REACHED = RANKING_FPR / 2  # FPR that a threshold must reach for a gate to look at it
ENOUGH_OTHERS = 20  # non-members, of which ties alone keep a threshold from reaching it


@dataclass(frozen=True, eq=False)
class Sample:
    """Models of one phase: membership, predictions, record indices (T, P); `NONE` is no point."""

    solution: Mask
    predictions: Predicted
    points: Indices

    @cached_property
    def there(self) -> Mask:
        """(T, P) True where a model has a point."""
        return self.points != NONE

    @property
    def members(self) -> int:
        """How many points of all models are members."""
        return int(self.solution[self.there].sum())

    @cached_property
    def curve(self) -> Roc:
        """The ROC curve of all models together."""
        return roc(self.solution, self.predictions, self.there)


def mean_figures(samples: Sequence[Sample]) -> Floats:
    """`FIGURES` (F,) of samples, the mean over them by their members."""
    curves = [one.curve for one in samples]
    found: Floats = _shares(samples) @ [[one.tpr_at(RANKING_FPR), one.auc] for one in curves]
    return found


def _shares(samples: Sequence[Sample]) -> Floats:
    return np.array([one.members for one in samples]) / sum(one.members for one in samples)


# ---------------------------------------------------------------- what moves a figure


class Spread(NamedTuple):
    """Standard error of a figure, and the degrees of freedom of that."""

    error: float
    freedom: float

    @classmethod
    def of(cls, samples: Iterable[Floats]) -> "Spread":
        """That of a sum of independent samples' influences, (G,) each (Welch 1947)."""
        total = parts = 0.0
        for one in samples:
            freedom = max(len(one) - 1, 1)
            square = float(one @ one) * len(one) / freedom
            total, parts = total + square, parts + square**2 / freedom
        return cls(float(np.sqrt(total)), total**2 / parts if parts > 0 else 1.0)

    def reach(self, quantile: float) -> float:
        """How far the quantile of Student's t lies from the figure."""
        return float(student.ppf(quantile, self.freedom)) * self.error


def by_models(samples: Sequence[Sample]) -> list[Floats]:
    """Influence (F, T) of the models of each sample with at least two."""
    several = [one for one in samples if len(one.solution) > 1]
    moved = [_influence(one, np.nonzero(one.there)[0], len(one.solution)) for one in several]
    return [share * one for share, one in zip(_shares(several), moved, strict=True)]


def by_records(samples: Sequence[Sample]) -> list[Floats]:
    """Influence (F, G) of the records that all samples' models are asked about, as one sample."""
    records = _records(samples)
    found = np.zeros((len(FIGURES), len(records)))
    for share, one in zip(_shares(samples), samples, strict=True):
        groups = np.searchsorted(records, one.points[one.there])
        found += share * _influence(one, groups, len(records))
    return [found]


def _records(samples: Sequence[Sample]) -> Indices:
    return np.unique(np.concatenate([one.points[one.there] for one in samples]))


def _influence(sample: Sample, groups: Indices, count: int) -> Floats:
    """By how much each of so many groups (N,) of points moves the figures: (F, G)."""
    scores, is_member = sample.predictions[sample.there], sample.solution[sample.there]
    found = np.empty((len(FIGURES), count))
    found[AUC] = np.bincount(groups, _on_auc(scores, is_member), count)
    on_tpr, on_fpr = (np.bincount(groups, one, count).astype(float) for one in _on_rates(sample))
    found[TPR] = on_tpr - _slope(sample.curve, Spread.of([on_fpr]), is_member) * on_fpr
    return found


def _on_auc(scores: Predicted, is_member: Mask) -> Floats:
    """How points (N,) move the AUC: by the share of the other class that they beat.

    DeLong, DeLong & Clarke-Pearson 1988; by ranks, Sun & Xu 2014.
    """
    moved, ranks = np.empty(len(scores)), rankdata(scores)
    for some, sign in ((is_member, 1), (~is_member, -1)):
        beaten = (ranks[some] - rankdata(scores[some])) / (~some).sum()
        moved[some] = sign * (beaten - beaten.mean()) / some.sum()
    return moved


def _on_rates(sample: Sample) -> tuple[Floats, Floats]:
    """How points (N,) move TPR and FPR at the threshold of the official TPR, where it is fixed.

    What sets the threshold is the highest non-member that is not called: the FPR is taken there,
    for of few non-members none may be called, and these would move nothing.
    """
    scores, is_member = sample.predictions[sample.there], sample.solution[sample.there]
    place = sample.curve.place(RANKING_FPR)
    called = scores >= sample.curve.threshold[place]
    above = scores >= scores[~is_member & ~called].max()
    tpr = (called - sample.curve.tpr[place]) * is_member / is_member.sum()
    fpr = (above - above[~is_member].mean()) * ~is_member / (~is_member).sum()
    return tpr, fpr


def _slope(curve: Roc, fpr: Spread, is_member: Mask) -> float:
    """How much of the TPR goes with the FPR, which the threshold keeps: the ROC curve's slope.

    It is taken over the 95 % interval of the FPR at a fixed threshold, and at least to the next
    non-member (Woodruff 1952; Francisco & Fuller 1991).
    """
    middle = curve.fpr[curve.place(RANKING_FPR)]
    wide = max(float(norm.ppf(TWO_SIDED)) * fpr.error, 1 / int((~is_member).sum()))
    low, high = max(middle - wide, 0), min(middle + wide, 1)
    gain = np.interp(high, curve.fpr, curve.tpr) - np.interp(low, curve.fpr, curve.tpr)
    return float(gain / (high - low))


# ---------------------------------------------------------------- two sides


@dataclass(frozen=True)
class Difference:
    """A figure of two sides, and the first less the second.

    over_models: 95 % interval over models, None where a side has but one. over_points: over
    records, None where both sides have several models that are not asked about the same ones.
    paired: models of both sides have the same points and membership, and are drawn together.
    """

    figure: str
    first: float
    second: float
    value: float
    over_models: Interval | None
    over_points: Interval | None
    paired: bool

    @property
    def differs(self) -> bool:
        """The interval, over models where there is one, does not hold 0."""
        interval = self.over_models or self.over_points
        return interval is not None and not interval.low <= 0 <= interval.high


def differences(first: Sequence[Sample], second: Sequence[Sample]) -> list[Difference]:
    """Compare two sides' samples of the same phases, figure by figure.

    Intervals are of Student's t. The influences of paired models, and of records that both sides
    have, are subtracted one by one; other samples are independent, and their degrees of freedom are
    Welch's.

    Raises:
        InputError: scores of a side are all equal, or one is not finite, or one class is missing.
    """
    for sample in (*first, *second):
        check_tells(sample)
    sides = np.stack([mean_figures(side) for side in (first, second)])
    paired = _are_paired(first, second)
    models = [by_models(side) for side in (first, second)]
    records: list[list[Floats]] = [[], []]
    same = np.array_equal(_records(first), _records(second))
    if same or not all(models):
        records = [by_records(side) for side in (first, second)]
    found = []
    for place, name in enumerate(FIGURES):
        one, other = sides[:, place].tolist()
        over_models = _interval(one - other, models, place, paired=paired)
        over_points = _interval(one - other, records, place, paired=same)
        found.append(Difference(name, one, other, one - other, over_models, over_points, paired))
    return found


def _are_paired(first: Sequence[Sample], second: Sequence[Sample]) -> bool:
    """Tell whether models of both sides have the same points and membership, one by one."""
    return all(
        np.array_equal(one.points, other.points)
        and np.array_equal(one.solution & one.there, other.solution & other.there)
        for one, other in zip(first, second, strict=True)
    )


def _interval(
    gap: float, sides: Sequence[Sequence[Floats]], place: int, *, paired: bool
) -> Interval | None:
    """Interval of a difference; None where a side has no influences (F, G)."""
    if not all(sides):
        return None
    first, second = ([one[place] for one in side] for side in sides)
    pairs = [one - other for one, other in zip(first, second, strict=True)] if paired else []
    wide = Spread.of(pairs or [*first, *second]).reach(TWO_SIDED)
    return Interval(gap - wide, gap + wide)


def check_tells(sample: Sample) -> None:
    """Refuse scores that are all equal: no figure of them says anything.

    Raises:
        InputError: they are.
    """
    scores = sample.predictions[sample.there]
    if scores.min() == scores.max():
        raise InputError(f"All {scores.size} predictions are equal: they tell nothing.")


# ---------------------------------------------------------------- one side


class Upper(NamedTuple):
    """TPR at FPR 0.1, the upper end of its one-sided 95 % interval, and what was drawn for it."""

    tpr: float
    limit: float
    of: str


def upper_limit(samples: Sequence[Sample]) -> Upper:
    """Bound the TPR at FPR 0.1 from above: the highest limit of those that there are.

    Over the models of phases with several, and where these are asked about the same records, over
    the records too: models that share them err together. Of a phase with one model over its points,
    exactly: the threshold is lowered until its FPR is at least 0.1 with 97.5 % confidence, by the
    order of the non-members, and the members at or above it give a Clopper–Pearson limit at 97.5 %.

    Raises:
        InputError: scores are all equal, or tie so that no threshold has an FPR near 0.1: a low
            TPR would then say nothing.
    """
    for one in samples:
        check_tells(one)
        _check_reached(one)
    several = [one for one in samples if len(one.solution) > 1]
    found = [_over_points(one) for one in samples if len(one.solution) == 1]
    if several:
        tpr = float(mean_figures(several)[TPR])
        models = f"{sum(len(one.solution) for one in several)} models"
        found.append(Upper(tpr, _end(tpr, by_models(several), ONE_SIDED), models))
        records = len(_records(several))
        if records < sum(int(one.there.sum()) for one in several):
            limit = _end(tpr, by_records(several), ONE_SIDED)
            found.append(Upper(tpr, limit, f"{models}, over {records} shared records"))
    return max(found, key=lambda one: one.limit)


def interval_of_tpr(samples: Sequence[Sample]) -> Interval | None:
    """95 % interval over models of the TPR at FPR 0.1; None where no sample has several."""
    several = [one for one in samples if len(one.solution) > 1]
    if not several:
        return None
    tpr, moved = float(mean_figures(several)[TPR]), by_models(several)
    return Interval(*(_end(tpr, moved, quantile) for quantile in (1 - TWO_SIDED, TWO_SIDED)))


def _end(tpr: float, moved: Sequence[Floats], quantile: float) -> float:
    """End of an interval of a TPR, on the scale of its logarithmic odds, where it is less skewed.

    Pepe 2003, §2.2.2. A TPR of 0 or 1 has no odds: there each of the models, or records, counts as
    one trial, as if all points of one were the same, and the end is Clopper–Pearson's.
    """
    if 0 < tpr < 1:
        reach = Spread.of([one[TPR] for one in moved]).reach(quantile)
        return float(expit(logit(tpr) + reach / (tpr * (1 - tpr))))
    trials = sum(one.shape[1] for one in moved)
    if tpr == 0:
        return float(1 - (1 - quantile) ** (1 / trials)) if quantile > 1 / 2 else 0.0
    return float(quantile ** (1 / trials)) if quantile < 1 / 2 else 1.0


def _over_points(sample: Sample) -> Upper:
    """The limit of one model."""
    value = sample.curve.tpr_at(RANKING_FPR)
    points = int(sample.there.sum())
    return Upper(value, _limit_of_points(sample), f"{points} points of one model")


def _check_reached(sample: Sample) -> None:
    _, is_member, _, last = rank(sample.solution, sample.predictions, sample.there)
    others = np.cumsum(~is_member)[last]
    rates = others / others[-1]
    reached = float(rates[rates < RANKING_FPR].max(initial=0))
    if others[-1] >= ENOUGH_OTHERS and reached < FEWEST_REACHED:
        raise InputError(
            f"Predictions tie: no threshold has an FPR between {reached:.3g} and {RANKING_FPR}, so "
            "a low TPR says nothing. Take a metric whose scores do not tie."
        )


def _limit_of_points(sample: Sample) -> float:
    """Upper limit of one model's TPR, over its points."""
    scores, is_member = sample.predictions[sample.there], sample.solution[sample.there]
    others, members = np.sort(scores[~is_member])[::-1], scores[is_member]
    half = (1 - ONE_SIDED) / 2
    numbers = np.arange(1, len(others) + 1)
    low = beta.cdf(RANKING_FPR, numbers, len(others) - numbers + 1) <= half
    if not low.any():
        return 1.0
    above = int(np.count_nonzero(members >= others[int(low.argmax())]))
    if above == len(members):
        return 1.0
    return float(beta.ppf(1 - half, above + 1, len(members) - above))
