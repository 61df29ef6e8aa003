"""How two models' figures differ, and how high one may be: what gates and comparisons hang on.

Models are drawn, as everywhere (`results.statistics`); where two sides are asked about the same
records, these are drawn too. Dev and final models are two samples: each is drawn by itself, and
figures are means over both, weighted by their members.

Axes: R draws, T models, P points of a model, N points of all, K records, X distinct scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import beta
from scipy.stats import t as student

from mico_exp.challenge.points import NONE
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError
from mico_exp.results.cell import Predicted
from mico_exp.results.scoring import RANKING_FPR, rank, roc
from mico_exp.results.statistics import LEVEL, RESAMPLES, Interval, Ranked, draw

FIGURES = (f"tpr_at_fpr_{RANKING_FPR}", "auc")
ONE_SIDED = 0.95
AT_ONCE = 2**22  # numbers of draws by points that are held at once
MOST_DRAWN, FEWEST_DRAWS = 2**31, 200  # numbers of all draws, beyond which there are fewer draws
FEWEST_REACHED = RANKING_FPR / 2  # FPR that a threshold must reach for a gate to look at it
ENOUGH_OTHERS = 20  # non-members, of which ties alone keep a threshold from reaching it


@dataclass(frozen=True, eq=False)
class Sample:
    """Models of one phase: membership, predictions, record indices (T, P); `NONE` is no point."""

    solution: Mask
    predictions: Predicted
    points: Indices

    @property
    def there(self) -> Mask:
        """(T, P) True where a model has a point."""
        return self.points != NONE

    @property
    def members(self) -> int:
        """How many points of all models are members."""
        return int(self.solution[self.there].sum())


def mean_figure(samples: Sequence[Sample], name: str) -> float:
    """One of `FIGURES` of samples, the mean over them by their members."""
    total, found = sum(one.members for one in samples), 0.0
    for one in samples:
        curve = roc(one.solution, one.predictions, one.there)
        value = curve.auc if name == FIGURES[1] else curve.tpr_at(RANKING_FPR)
        found += value * one.members / total
    return found


class Drawn(NamedTuple):
    """A figure: its value, draws (R,) of it and the degrees of freedom of their deviation."""

    value: float
    draws: Floats
    freedom: int

    @property
    def error(self) -> float:
        """Standard error, for which draws of few models are a little too near each other."""
        groups = self.freedom + 1
        return float(np.nanstd(self.draws)) * float(np.sqrt(groups / max(groups - 1, 1)))


def by_models(samples: Sequence[Sample], seed: int = 0) -> dict[str, Drawn]:
    """Draw the models of each sample with at least two; figures by name, none without such."""
    several = [one for one in samples if len(one.solution) > 1]
    if not several:
        return {}
    share = np.array([one.members for one in several]) / sum(one.members for one in several)
    parts = []
    for number, one in enumerate(several):
        ranked = Ranked(one.solution, one.predictions, one.there)
        weights = draw(ranked.models, RESAMPLES, seed + number)
        values = ranked.curve.tpr_at(RANKING_FPR), ranked.curve.auc
        parts.append((values, (ranked.tpr_at(RANKING_FPR, weights), ranked.auc(weights))))
    freedom = sum(len(one.solution) - 1 for one in several)
    found = {}
    for place, name in enumerate(FIGURES):
        value = float(np.dot(share, [values[place] for values, _ in parts]))
        draws = np.tensordot(share, np.stack([drawn[place] for _, drawn in parts]), 1)
        found[name] = Drawn(value, draws, freedom)
    return found


def by_points(samples: Sequence[Sample], seed: int = 0, count: int = RESAMPLES) -> dict[str, Drawn]:
    """Draw the records that all samples' models are asked about; figures by name."""
    records = np.unique(np.concatenate([one.points[one.there] for one in samples]))
    random = np.random.default_rng([seed, 2])
    even = np.full(len(records), 1 / len(records))
    share = np.array([one.members for one in samples]) / sum(one.members for one in samples)
    prepared = [_Pooled(one, records) for one in samples]
    size = max(len(one.place) for one in prepared)

    def figures(weights: Floats) -> Floats:
        found: Floats = np.tensordot(share, np.stack([one.figures(weights) for one in prepared]), 1)
        return found

    values = figures(np.ones((1, len(records))))
    count = int(np.clip(MOST_DRAWN // size, FEWEST_DRAWS, count))
    turns = _turns(count, max(AT_ONCE // size, 1))
    drawn = (random.multinomial(len(records), even, size=some).astype(float) for some in turns)
    draws = np.concatenate([figures(weights) for weights in drawn], axis=1)
    return {
        name: Drawn(float(values[place, 0]), draws[place], len(records) - 1)
        for place, name in enumerate(FIGURES)
    }


def _turns(count: int, at_once: int) -> Iterator[int]:
    return (min(at_once, count - start) for start in range(0, count, at_once))


class _Pooled:
    """Points in descending order, to be scored under weights of their records (K,)."""

    def __init__(self, sample: Sample, records: Indices) -> None:
        there = sample.there
        order, self.is_member, _, self.last = rank(sample.solution, sample.predictions, there)
        self.place = np.searchsorted(records, sample.points[there])[order]

    def figures(self, weights: Floats) -> Floats:
        """TPR and AUC (2, R) under weights (R, K); NaN where a class is missing."""
        drawn = weights[:, self.place]
        members = np.cumsum(drawn * self.is_member, axis=1)[:, self.last]
        others = np.cumsum(drawn * ~self.is_member, axis=1)[:, self.last]
        with np.errstate(invalid="ignore"):
            tpr, fpr = members / members[:, -1:], others / others[:, -1:]
        tpr, fpr = (np.pad(rate, ((0, 0), (1, 0))) for rate in (tpr, fpr))
        below = np.count_nonzero(fpr < RANKING_FPR, axis=1) - 1
        found = np.take_along_axis(tpr, np.maximum(below, 0)[:, np.newaxis], axis=1)[:, 0]
        return np.stack([found, np.trapezoid(tpr, fpr, axis=1)])


@dataclass(frozen=True)
class Difference:
    """A figure of two sides, and the first less the second.

    over_models: 95 % interval over models, None where a side has but one. over_points: over
    records, None where the sides' models are not asked about the same ones. paired: models of
    both sides have the same points and membership, and are drawn together.
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

    Intervals are of Student's t with the draws' standard error: that of the paired draws, with
    one degree of freedom less than models, or both sides' together (Welch 1947), where models are
    not the same.

    Raises:
        InputError: scores of a side are all equal.
    """
    for sample in (*first, *second):
        check_tells(sample)
    paired = _are_paired(first, second)
    models = [by_models(side, seed) for side, seed in ((first, 0), (second, 0 if paired else 100))]
    points: list[dict[str, Drawn]] = [{}, {}]
    same = np.array_equal(_records(first), _records(second))
    if same or not all(models):
        seeds = (0, 0 if same else 100)
        points = [by_points(side, seed) for side, seed in zip((first, second), seeds, strict=True)]
    found = []
    for name in FIGURES:
        one, other = (mean_figure(side, name) for side in (first, second))
        gap = one - other
        over_models = over_points = None
        if all(models):
            over_models = _interval(gap, models[0][name], models[1][name], paired=paired)
        if all(points):
            over_points = _interval(gap, points[0][name], points[1][name], paired=same)
        found.append(Difference(name, one, other, gap, over_models, over_points, paired))
    return found


def _records(samples: Sequence[Sample]) -> Indices:
    return np.unique(np.concatenate([one.points[one.there] for one in samples]))


def _are_paired(first: Sequence[Sample], second: Sequence[Sample]) -> bool:
    """Tell whether models of both sides have the same points and membership, one by one."""
    return all(
        np.array_equal(one.points, other.points)
        and np.array_equal(one.solution & one.there, other.solution & other.there)
        for one, other in zip(first, second, strict=True)
    )


def _interval(gap: float, first: Drawn, second: Drawn, *, paired: bool) -> Interval:
    if paired:
        both = Drawn(gap, first.draws - second.draws, first.freedom)
        error, freedom = both.error, float(both.freedom)
    else:
        squares = np.square([first.error, second.error])
        error = float(np.sqrt(squares.sum()))
        parts = squares**2 / np.maximum([first.freedom, second.freedom], 1)
        freedom = float(squares.sum() ** 2 / parts.sum()) if parts.sum() > 0 else 1.0
    wide = float(student.ppf(0.5 + LEVEL / 200, max(freedom, 1))) * error
    return Interval(gap - wide, gap + wide)


def check_tells(sample: Sample) -> None:
    """Refuse scores that are all equal: no figure of them says anything.

    Raises:
        InputError: they are.
    """
    scores = sample.predictions[sample.there]
    if scores.min() == scores.max():
        raise InputError(f"All {scores.size} predictions are equal: they tell nothing.")


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
        models = f"{sum(len(one.solution) for one in several)} models"
        found.append(_over_draws(by_models(several)[FIGURES[0]], models))
        records = len(_records(several))
        if records < sum(int(one.there.sum()) for one in several):
            drawn = by_points(several)[FIGURES[0]]
            found.append(_over_draws(drawn, f"{models}, over {records} shared records"))
    return max(found, key=lambda one: one.limit)


def _over_draws(drawn: Drawn, of: str) -> Upper:
    """The higher one of percentile and Student's t; each is too low for some numbers of draws."""
    wide = float(student.ppf(ONE_SIDED, drawn.freedom)) * drawn.error
    percentile = float(np.nanpercentile(drawn.draws, 100 * ONE_SIDED))
    return Upper(drawn.value, min(max(percentile, drawn.value + wide), 1), of)


def _over_points(sample: Sample) -> Upper:
    """The limit of one model."""
    value = roc(sample.solution, sample.predictions, sample.there).tpr_at(RANKING_FPR)
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
