"""Features of challenge points for attacks that learn: a metric in all its calibrated forms.

Axes: t target models of a phase, P points of a target, F features, N rows (a target at a point).
"""

import logging

import numpy as np
from scipy.special import ndtr

from mico_exp.attacks.calibration import rows_alike
from mico_exp.attacks.evidence import Evidence
from mico_exp.attacks.folds import Folds, FoldSides, Hidden
from mico_exp.attacks.formulas import log_ratio, shrunk_ratio
from mico_exp.attacks.sides import Moments, completed, divide, variance_of
from mico_exp.common.arrays import Floats, Indices
from mico_exp.common.errors import InputError

log = logging.getLogger(__name__)
FORMS = (
    "midpoint",  # s − (μ_in + μ_out)/2
    "centred",  # that, less its mean over the target's points
    "in_mean",  # s − μ_in
    "out_mean",  # s − μ_out
    "standardized",  # the midpoint's by the pooled deviation of the point's two sides
    "log_ratio",  # LiRA with variances of each point
    "bayesian",  # LiRA with Student's t
    "shrunk",  # LiRA with a shrunken gain
)
LEVELS = np.linspace(-4, 4, 161)  # of a normal variable, at which quantiles are taken
FEWEST_FORMS = ("midpoint", "centred", "shrunk")


def forms(score: Floats, inside: Moments, outside: Moments) -> Floats:
    """Calibrate (…, P) by the shadow models on either side in every form of `FORMS`: (…, P, F)."""
    above, below = completed(inside, outside)
    midpoint = score - (above + below) / 2
    found = {
        "midpoint": midpoint,
        "centred": midpoint - _mean_of_finite(midpoint),
        "in_mean": score - above,
        "out_mean": score - below,
        "standardized": divide(midpoint, np.sqrt(variance_of(inside, outside, "shrunk"))),
        "log_ratio": log_ratio(score, inside, outside)[0],
        "bayesian": log_ratio(score, inside, outside, "bayesian")[0],
        "shrunk": shrunk_ratio(score, inside, outside)[0],
    }
    return np.stack([found[name] for name in FORMS], axis=-1)


def _mean_of_finite(values: Floats) -> Floats:
    """Mean (…, 1) over the points that are not NaN; 0 where none is."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0).sum(axis=-1, keepdims=True)
    return total / np.maximum(np.count_nonzero(there, axis=-1, keepdims=True), 1)


class Forms:
    """All metrics in all forms, by the shadow models of some folds: a `folds.Describe`.

    names: (metric, form) of every feature.
    """

    def __init__(self, evidence: Evidence, folds: Folds) -> None:
        self.evidence = evidence
        self.names = [(metric, form) for metric in evidence.scores for form in FORMS]
        is_member = evidence.points.is_member
        self.sides = {
            name: FoldSides(scores.shadow, is_member, folds)
            for name, scores in evidence.scores.items()
        }

    def __call__(self, phase: str, targets: Indices, hidden: Hidden) -> Floats:
        """Features (t, P, F); NaN where a target has no score, or no point."""
        columns = self.evidence.points.columns(phase)[targets]
        found = np.full((*columns.shape, len(self.names)), np.nan)
        for rows, count in rows_alike(columns):
            for i, (name, scores) in enumerate(self.evidence.scores.items()):
                own = scores.own[phase][targets][rows, :count]
                finite = np.isfinite(own)
                sides = self.sides[name].without(hidden, columns[rows, :count])
                part = forms(np.where(finite, own, np.nan), *sides)
                part[~finite] = np.nan  # of a form that gives 0 where there is no spread, too
                found[rows, :count, i * len(FORMS) : (i + 1) * len(FORMS)] = part
        return found


class NormalScores:
    """Features as normal quantiles of their ranks among those that are learnt from.

    Monotone, so that it changes no feature's order, and none lies far out. A value that is not
    finite becomes 0, the median; so does all of a feature that has none finite. Between the
    quantiles of `LEVELS` it is linear.

    Args:
        features: (N, F) that are learnt from.
    """

    def __init__(self, features: Floats) -> None:
        self.ranks = [_ranks(column[np.isfinite(column)]) for column in features.T]

    def __call__(self, features: Floats) -> Floats:
        """Transform (N, F)."""
        found = np.empty(features.shape)
        for i, (values, levels) in enumerate(self.ranks):
            finite = np.isfinite(features[:, i])
            found[:, i] = np.where(finite, np.interp(features[:, i], values, levels), 0)
        return found


def _ranks(values: Floats) -> tuple[Floats, Floats]:
    """Distinct quantiles of values (n,), ascending, and their levels; a tie has its mean level."""
    if not len(values):
        return np.zeros(1), np.zeros(1)
    distinct, place = np.unique(np.quantile(values, ndtr(LEVELS)), return_inverse=True)
    return distinct, np.bincount(place, LEVELS) / np.bincount(place)


def check_scored(evidence: Evidence) -> None:
    """Warn of metrics that have no score under any train model: they teach nothing.

    Raises:
        InputError: none has any.
    """
    absent = [
        name for name, one in evidence.scores.items() if not np.isfinite(one.own["train"]).any()
    ]
    if len(absent) == len(evidence.scores):
        raise InputError("No metric has a finite score under any train model.")
    if absent:
        log.warning("Metrics without a finite score teach nothing: %s", ", ".join(absent))
