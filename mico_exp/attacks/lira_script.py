"""The figures that LiRA's published script has, to compare with: its choices, not its code.

It differs from `formulas.lira_online` and `lira_offline` in four ways: the middle of a side is the
median; every record's side is cut to as many models as the record with the fewest has, the first of
them; the deviation divides by their number, and 1e-30 is added; offline a score is compared by its
density, so that one far *below* the out models' is most member-like. With a fixed variance there
is one deviation of all records' scores together, how records differ included; online it is that of
the in models' scores on both sides.

Axes: S shadow models, P points of a target, k the fewest models on a side of any of them.
"""

import numpy as np

from mico_exp.attacks.calibration import Calibrated, sees_gaps
from mico_exp.attacks.evidence import Attack, Evidence
from mico_exp.common.arrays import Floats, Mask
from mico_exp.common.errors import InputError
from mico_exp.common.terminal import warn_once

SMALLEST = 1e-30  # that is added to a deviation
LEAST_KEPT = 0.9  # of the models on a side, below which it is told what the cut costs


class LiraScript(Attack):
    """LiRA as its published script computes it (Carlini et al. 2022, arXiv 2112.03570).

    "Every record" are all points of a target, which in a pool are those of all targets. One warning
    tells where the cut leaves out more than a tenth of the models.

    Args:
        online: compare in and out models; else out models alone.
        fix_variance: one deviation for all records.

    Raises:
        InputError: a record has no in, or no out model beside a target.
    """

    def __init__(self, online: bool = True, fix_variance: bool = False) -> None:
        self.online, self.fix_variance = online, fix_variance

    def __call__(self, evidence: Evidence) -> dict[str, Calibrated]:
        """Calibrated scores of every phase."""
        for phase in evidence.phases:
            self._look(evidence, phase)
        only = evidence.only
        return {phase: evidence.calibrated(self.ratio, only, phase) for phase in evidence.phases}

    def _look(self, evidence: Evidence, phase: str) -> None:
        """Refuse records without models; warn of how few they are cut to."""
        points = evidence.points
        usable = np.isfinite(evidence.only.shadow)
        asked = np.unique(points.of_phase[phase][points.there(phase)])
        columns = np.searchsorted(points.unique, asked)
        sides = {"out": ~points.is_member & usable}
        sides |= {"in": points.is_member & usable} if self.online else {}
        for side, mask in sides.items():
            counts = np.count_nonzero(mask[:, columns], axis=0)
            fewest, mean, record = counts.min(), counts.mean(), asked[counts.argmin()]
            told = f"record {record} has {fewest} {side} model(s)"
            if fewest < 1 + (phase == "train"):
                raise InputError(
                    f"{told}, and the published LiRA script needs one of every record"
                    f"{' beside the target' if phase == 'train' else ''}."
                )
            if fewest < LEAST_KEPT * mean:
                warn_once(
                    f"{told}, so the published LiRA script looks at no more of any record, where "
                    f"there are {mean:.1f} on average: docs/attacks.md says what that costs."
                )

    @sees_gaps
    def ratio(
        self, score: Floats, shadow: Floats, is_in: Mask, is_out: Mask
    ) -> tuple[Floats, Mask]:
        """Log densities (t, P), one target after another; it never makes do with less."""
        rows = zip(score, shadow, is_in, is_out, strict=True)
        found = np.stack([self._of_target(*row) for row in rows])
        return found, np.zeros(score.shape, dtype=bool)

    def _of_target(self, score: Floats, shadow: Floats, is_in: Mask, is_out: Mask) -> Floats:
        outside = first(shadow, is_out)
        if not self.online:
            return -log_density(score, outside, self._deviation(outside))
        inside = first(shadow, is_in)
        deviation = self._deviation(inside)
        below = deviation if self.fix_variance else self._deviation(outside)
        return log_density(score, inside, deviation) - log_density(score, outside, below)

    def _deviation(self, side: Floats) -> Floats:
        """Deviation (P,) or () of a side (k, P)."""
        return np.asarray(np.std(side, axis=None if self.fix_variance else 0)) + SMALLEST


def first(shadow: Floats, mask: Mask) -> Floats:
    """Scores (k, P) of the first models on a side (S, P), as many as every point has."""
    fewest = np.count_nonzero(mask, axis=0).min()
    places = np.argsort(~mask, axis=0, kind="stable")[:fewest]
    return np.take_along_axis(shadow, places, axis=0)


def log_density(score: Floats, side: Floats, deviation: Floats) -> Floats:
    """Log density (P,) of a normal distribution around the medians of a side (k, P)."""
    apart = (score - np.median(side, axis=0)) / deviation
    return -np.square(apart) / 2 - np.log(deviation) - np.log(2 * np.pi) / 2
