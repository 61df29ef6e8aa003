"""Features of challenge points for attacks that learn: a metric in all its calibrated forms.

Axes: T target models, P points of a target, S shadow models, F features, N points of any target.
"""

import logging
from collections.abc import Sequence

import numpy as np
from sklearn.preprocessing import QuantileTransformer

from mico_exp.calibration import shadows_of
from mico_exp.errors import InputError
from mico_exp.evidence import Evidence, Scores
from mico_exp.formulas import (
    Floats,
    Mask,
    divide,
    gap_of,
    log_ratio,
    means,
    shrunk_ratio,
    side,
    variance_of,
)

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
FEWEST_FORMS = ("midpoint", "centred", "shrunk")


def forms(score: Floats, shadow: Floats, is_in: Mask, is_out: Mask) -> Floats:
    """Calibrate (…, P) in every form of `FORMS`: (…, P, F). Arguments as in `formulas`."""
    inside, outside = side(shadow, is_in), side(shadow, is_out)
    above, below = means(inside, outside, gap_of(inside, outside).value)
    midpoint = score - (above + below) / 2
    found = {
        "midpoint": midpoint,
        "centred": midpoint - _mean_of_known(midpoint),
        "in_mean": score - above,
        "out_mean": score - below,
        "standardized": divide(midpoint, np.sqrt(variance_of(inside, outside, "shrunk"))),
        "log_ratio": log_ratio(score, inside, outside)[0],
        "bayesian": log_ratio(score, inside, outside, "bayesian")[0],
        "shrunk": shrunk_ratio(score, inside, outside)[0],
    }
    return np.stack([found[name] for name in FORMS], axis=-1)


def _mean_of_known(values: Floats) -> Floats:
    """Mean (…, 1) over the points that are not NaN; 0 where none is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=-1, keepdims=True)
    return total / np.maximum(np.count_nonzero(known, axis=-1, keepdims=True), 1)


def forms_of(evidence: Evidence, scores: Scores, phase: str) -> Floats:
    """Calibrate a metric's scores of a phase in every form: (T, P, F); NaN for a target without."""
    own = scores.own[phase]
    found = np.empty((*own.shape, len(FORMS)))
    place = evidence.points.columns(phase), evidence.left_out(phase)
    chunks = shadows_of(scores.shadow, evidence.points.is_member, *place)
    for some, shadow, is_in, is_out in chunks:
        known = np.isfinite(own[some])
        found[some] = forms(np.where(known, own[some], np.nan), shadow, is_in, is_out)
        found[some][~known] = np.nan  # of a form that gives 0 where there is no spread, too
    return found


def table(evidence: Evidence) -> tuple[list[tuple[str, str]], dict[str, Floats]]:
    """All metrics in all forms: names (metric, form), and phase → (T, P, F)."""
    names = [(metric, form) for metric in evidence.scores for form in FORMS]
    found = {}
    for phase in evidence.phases:
        parts = [forms_of(evidence, scores, phase) for scores in evidence.scores.values()]
        found[phase] = np.concatenate(parts, axis=-1)
    return names, found


class NormalScores:
    """Features as normal quantiles of their ranks among those of the train models.

    Monotone, so that it changes no feature's order, and none lies far out. A value that is not
    finite becomes 0, the median.

    Args:
        features: (T, P, F) of the train models.
        names: of the features, for messages.

    Raises:
        InputError: there is no feature with finite values. Those without are left out with a
            warning.
    """

    def __init__(self, features: Floats, names: Sequence[object]) -> None:
        flat = _finite(features)
        self.kept: Mask = np.asarray(np.isfinite(flat).any(axis=0))
        if absent := [str(name) for name, kept in zip(names, self.kept, strict=True) if not kept]:
            log.warning("%d features have no finite value: %s", len(absent), ", ".join(absent))
        if not self.kept.any():
            raise InputError("No feature of the train models has a finite value.")
        self.ranks = QuantileTransformer(
            n_quantiles=min(1000, len(flat)), output_distribution="normal", subsample=None
        ).fit(flat[:, self.kept])

    def __call__(self, features: Floats) -> Floats:
        """Transform (T, P, F) to (T, P, f), f ≤ F."""
        found = self.ranks.transform(_finite(features)[:, self.kept])
        return np.nan_to_num(found).reshape(*features.shape[:-1], -1)


def _finite(features: Floats) -> Floats:
    flat = features.reshape(-1, features.shape[-1])
    return np.where(np.isfinite(flat), flat, np.nan)
