"""Scores of one metric on one scenario, as the store's columns make a table of them.

Axes: T target models of a phase, S shadow models, the train models and the reference models after
them, P challenge points of a target, U unique points, K points of one model whose membership is
disclosed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mico_exp.common.arrays import Floats, Mask


@dataclass(frozen=True, eq=False)
class Scores:
    """One metric on one scenario.

    shadow: (S, U) under every shadow model at every unique challenge point.
    own: phase → (T, P) under each target model at its own challenge points; NaN beyond the last.
    known: phase → for each model, (K,) at its sample of known members and non-members.
    """

    shadow: Floats
    own: dict[str, Floats]
    known: dict[str, list[Floats]] = field(default_factory=dict)

    def nan_models(self, there: Mapping[str, Mask]) -> int:
        """How many models of any phase have scores that are not finite where `there` is a point."""
        lacking = (there[phase] & ~np.isfinite(rows) for phase, rows in self.own.items())
        return sum(int(one.any(axis=1).sum()) for one in lacking)
