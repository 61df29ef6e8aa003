"""Calibration formulas: a target's score at a point against its shadow models' scores there.

What each takes and returns, and what its marks mean, is written at `calibration.Formula`. They look
at the shadow models by the two sides of a point alone. What is common to them is in `sides`. One
small file in ``conf/formula`` makes a formula a choice.
"""

import numpy as np
from scipy.special import log_ndtr

from mico_exp.attacks.calibration import OfSides, needs_no_shadows, sees_gaps
from mico_exp.attacks.sides import (
    PRIOR_SCORES,
    Models,
    Moments,
    check_prior,
    check_variance,
    completed,
    divide,
    gap_of,
    means,
    own_variance,
    pooled_variance,
    predictive,
    share_below,
    variance_of,
)
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Mask
from mico_exp.common.errors import InputError

SCALES = ("all", "within", "shrunk", "pooled")
CENTRES = ("mean", "median")


@needs_no_shadows
@sees_gaps
@OfSides
def uncalibrated(score: Floats, inside: Models, outside: Models) -> tuple[Floats, Mask]:  # noqa: ARG001
    """s, the metric itself: no shadow model is asked."""
    return score, np.zeros(score.shape, dtype=bool)


@OfSides
def offset(
    score: Floats,
    inside: Models,
    outside: Models,
    *,
    w: float | str = 0.5,
    k: float = 0.0,
    centre: str = "mean",
    scale: str = "all",
) -> Floats:
    """(s − [w·centre(in) + (1 − w)·centre(out)]) / σ^k, one family for most of the formulas.

    The winner's three are w = ½, k = 0 (formula 0), w = 1, k = 0 (formula 1), and w = ``counts``,
    k = 1 with σ over all (formula 2); w = 0, k = 0 is difficulty calibration (Watson et al. 2022,
    arXiv 2111.08440, §3).

    Args:
        score: as in `calibration.Formula`.
        inside: at least one model at every point.
        outside: the same; a model that stands on both sides counts twice.
        w: weight of the in models, in [0, 1]; ``counts`` for n_I / (n_I + n_O).
        k: power of σ, at least 0.
        centre: ``mean`` or ``median``.
        scale: what σ is: ``all`` the deviation of all shadow scores of a point around their mean;
            ``within`` that around the mean of each side; ``pooled`` the latter over all points of
            the target; ``shrunk`` between these two, as if ten more scores had the pooled one.

    Raises:
        InputError: an argument is outside its range.
    """
    _check_offset(w, k, centre, scale)
    count = np.maximum(inside.size + outside.size, 1)
    share = inside.size / count if w == "counts" else float(w)
    above, below = (one.mean if centre == "mean" else one.median for one in (inside, outside))
    moved = score - (below + share * (above - below))
    if k == 0:
        return moved
    spread = np.sqrt(variance_of(inside, outside, scale))
    return divide(moved, spread**k)


def _check_offset(w: float | str, k: float, centre: str, scale: str) -> None:
    if w != "counts":
        require.within("w", w, 0, 1, other="counts")
    require.at_least("k", k, 0)
    for name, value, known in (("centre", centre, CENTRES), ("scale", scale, SCALES)):
        if value not in known:
            raise InputError(f"`{name}` must be one of {', '.join(known)}, got {value}.")


def _log_normal(score: Floats, mean: Floats, variance: Floats) -> Floats:
    known = np.where(variance > 0, variance, 1)
    found = -np.square(score - mean) / (2 * known) - np.log(known) / 2
    return np.where(variance > 0, found, 0)


@sees_gaps
@OfSides
def lira_online(
    score: Floats,
    inside: Models,
    outside: Models,
    *,
    variance: str = "per_point",
    kappa: float = 1.0,
    nu: float = PRIOR_SCORES,
) -> tuple[Floats, Mask]:
    """log p(s | in) − log p(s | out) (Carlini et al. 2022, arXiv 2112.03570, algorithm 1).

    A side without models has the other's mean, moved by the mean gap of the target's points that
    have both; one with fewer than two, or with no spread, has the pooled variance. Both count as
    falling back. Where nothing has any spread the result is 0.

    Args:
        score: as in `calibration.Formula`; best of the metric ``logit``, which is nearly normal.
        inside: any number of models at a point.
        outside: the same.
        variance: ``per_point``; ``pooled`` over all points, each side by itself; ``bayesian`` for
            Student's t (`predictive`) with a prior around the other side's mean.
        kappa: scores that the prior mean is worth, where bayesian.
        nu: scores that the prior variance is worth, where bayesian.

    Raises:
        InputError: an argument is outside its range.
    """
    check_variance(variance)
    check_prior(kappa, nu)
    return log_ratio(score, inside, outside, variance, kappa, nu)


def log_ratio(
    score: Floats,
    inside: Moments,
    outside: Moments,
    variance: str = "per_point",
    kappa: float = 1.0,
    nu: float = PRIOR_SCORES,
) -> tuple[Floats, Mask]:
    """Give `lira_online` from what it needs to know of the two sides."""
    above, below = completed(inside, outside)
    missing = (inside.size == 0) | (outside.size == 0)
    pooled = pooled_variance(inside, outside)
    if variance == "bayesian":
        gap = gap_of(inside, outside)
        upper = predictive(inside, below + gap.mean, pooled, kappa, nu)
        lower = predictive(outside, above - gap.mean, pooled, kappa, nu)
        return upper.log_density(score) - lower.log_density(score), missing
    found, fell_back = np.zeros(score.shape), missing
    for sign, mean, one in ((1, above, inside), (-1, below, outside)):
        own = pooled_variance(one)
        spread, few = own_variance(one, np.where(own > 0, own, pooled), variance)
        found += sign * _log_normal(score, mean, spread)
        fell_back = fell_back | few
    return found, fell_back


@sees_gaps
@OfSides
def lira_offline(
    score: Floats,
    inside: Models,
    outside: Models,
    *,
    variance: str = "per_point",
    kappa: float = 1.0,
    nu: float = PRIOR_SCORES,
) -> tuple[Floats, Mask]:
    """log Φ((s − μ_out)/σ_out), one-sided (Carlini et al. 2022, arXiv 2112.03570, offline).

    The logarithm keeps points apart whose probability rounds to 1 or 0. Arguments and what stands
    in for missing models are those of `lira_online`; ``bayesian`` takes the location and scale of
    Student's t, whose own distribution function would compare points by their counts, and whose
    prior mean is the in models' less the mean gap, so it is not offline in the strict sense.

    Raises:
        InputError: an argument is outside its range.
    """
    check_variance(variance)
    check_prior(kappa, nu)
    above, below = completed(inside, outside)
    missing = outside.size == 0
    own = pooled_variance(outside)
    pooled = np.where(own > 0, own, pooled_variance(inside, outside))
    if variance == "bayesian":
        gap = gap_of(inside, outside)
        t = predictive(outside, above - gap.mean, pooled, kappa, nu)
        return log_ndtr(divide(score - t.location, t.scale)), missing
    spread, few = own_variance(outside, pooled, variance)
    return log_ndtr(divide(score - below, np.sqrt(spread))), missing | few


@sees_gaps
@OfSides
def lira_shrunk(score: Floats, inside: Models, outside: Models) -> tuple[Floats, Mask]:
    """g̃/v · (s − midpoint): LiRA with one pooled v and a gain that is shrunk, clamped at 0.

    With a pooled variance v, `lira_online` is (μ_in − μ_out)/v · (s − midpoint), and the noisy
    factor before it has the wrong sign at many points. Empirical Bayes: gaps are N(g, τ²) among
    the target's points, so g̃ = max(0, λ·gap + (1 − λ)·g) with λ = τ²/(τ² + v(1/n_I + 1/n_O)) and
    τ² = max(0, Var(gap) − mean v(1/n_I + 1/n_O)) (Efron & Morris 1973). The midpoint is the most
    likely one given that gap, (n_I(μ_in − g̃/2) + n_O(μ_out + g̃/2))/(n_I + n_O): where out models
    are scarce it does not hang on them. Falls back where a side has no model; there g̃ = g. With
    fewer than two points that have both sides λ = 0.
    """
    return shrunk_ratio(score, inside, outside)


def shrunk_ratio(score: Floats, inside: Moments, outside: Moments) -> tuple[Floats, Mask]:
    """Give `lira_shrunk` from what it needs to know of the two sides."""
    gap, pooled = gap_of(inside, outside), pooled_variance(inside, outside)
    missing = ~np.isfinite(gap.error)
    prior = np.maximum(gap.mean, 0)
    error = pooled * np.where(missing, 0, gap.error)
    excess = _variance_where(gap.value, ~missing) - _mean_where(error, ~missing)
    between = np.maximum(excess, 0)
    trust = np.where(missing, 0, divide(between, between + error))
    gain = np.maximum(trust * gap.value + (1 - trust) * prior, 0)
    weighted = inside.size * (inside.mean - gain / 2) + outside.size * (outside.mean + gain / 2)
    middle = weighted / np.maximum(inside.size + outside.size, 1)
    return divide(gain, pooled) * (score - middle), missing


def _mean_where(values: Floats, mask: Mask) -> Floats:
    count = np.count_nonzero(mask, axis=-1, keepdims=True)
    return np.where(mask, values, 0).sum(axis=-1, keepdims=True) / np.maximum(count, 1)


def _variance_where(values: Floats, mask: Mask) -> Floats:
    """Variance (…, 1) with n − 1 over the last axis where `mask` holds; 0 for fewer than two."""
    count = np.count_nonzero(mask, axis=-1, keepdims=True)
    around = np.where(mask, values - _mean_where(values, mask), 0)
    return np.square(around).sum(axis=-1, keepdims=True) / np.maximum(count - 1, 1)


TINY = np.finfo(np.float64).tiny  # keeps 0/0 at 0 where every model gives a point no chance


@sees_gaps
@OfSides
def rmia_online(
    score: Floats, inside: Models, outside: Models, *, gamma: float = 1.0
) -> tuple[Floats, Mask]:
    """Pr_z[r(x)/r(z) ≥ γ] with r = p/p̄, p̄ = (mean p_in + mean p_out)/2.

    RMIA (Zarifzadeh et al. 2024, arXiv 2312.03262). The population z are the
    target's own points. It is the share of them with r(z) ≤ r(x)/γ, found by one sort. A side
    without models has the other's mean, which counts as falling back.

    Args:
        score: p(x|θ), a probability: of the metric ``confidence``, and so those of the models.
        inside: any number of models at a point.
        outside: the same; not both 0.
        gamma: how many times likelier x must be than z; at least 1.

    Raises:
        InputError: γ is below 1, or scores are not in [0, 1].
    """
    ratio, missing = ratio_online.of(score, inside, outside)
    return share_below(ratio, ratio, gamma), missing


@sees_gaps
@OfSides
def rmia_offline(
    score: Floats,
    inside: Models,
    outside: Models,
    *,
    gamma: float = 1.0,
    a: float = 0.3,
) -> tuple[Floats, Mask]:
    """As `rmia_online` with p̄ = ((1 + a)·mean p_out + 1 − a)/2 (arXiv 2312.03262, app. B.2.2).

    Only out models are asked; where there are none, in models serve, which counts as falling
    back.

    Args:
        score: as in `rmia_online`, and so the two that follow.
        inside: the same.
        outside: the same.
        gamma: how many times likelier x must be than z; at least 1.
        a: how the mean of in models follows from that of out models, in [0, 1]; 1 for not at all.

    Raises:
        InputError: γ is below 1, `a` is outside [0, 1], or scores are not in [0, 1].
    """
    ratio, missing = ratio_offline(score, inside, outside, a=a)
    return share_below(ratio, ratio, gamma), missing


@sees_gaps
@OfSides
def ratio_online(score: Floats, inside: Models, outside: Models) -> tuple[Floats, Mask]:
    """r = p/p̄ of `rmia_online`, and where a side is missing."""
    _check_probability(score)
    above, below = means(inside, outside, np.zeros_like(score))
    missing = (inside.size == 0) | (outside.size == 0)
    return score / np.maximum((above + below) / 2, TINY), missing


def ratio_offline(
    score: Floats, inside: Moments, outside: Moments, *, a: float
) -> tuple[Floats, Mask]:
    """r = p/p̄ of `rmia_offline`, and where there are no out models."""
    require.within("a", a, 0, 1)
    _check_probability(score)
    _, below = means(inside, outside, np.zeros_like(score))
    return score / np.maximum(((1 + a) * below + 1 - a) / 2, TINY), outside.size == 0


def _check_probability(score: Floats) -> None:
    if score.size and not (score.min() >= 0 and score.max() <= 1):
        raise InputError(
            "RMIA compares probabilities: scores must be in [0, 1] (metric=confidence), got "
            f"{score.min():.4g} … {score.max():.4g}."
        )


@sees_gaps
@OfSides
def attack_r(score: Floats, inside: Models, outside: Models) -> tuple[Floats, Mask]:  # noqa: ARG001
    """Share of the out models whose score at the point is at most the target's.

    Attack-R (Ye et al. 2022, arXiv 2111.09679, §4.3). It has n_O + 1 levels; where there is no
    out model it is ½, and counts as falling back.
    """
    count = outside.size
    return np.where(count > 0, outside.at_most(score) / np.maximum(count, 1), 0.5), count == 0
