"""The ceiling and the floor of a scenario as lines about its ROC curve."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mico_exp.auditing import ceiling
from mico_exp.auditing.ceiling import Profile
from mico_exp.auditing.games import ADD_REMOVE, REPLACE_ONE
from mico_exp.results.plots import Limit
from mico_exp.training.mechanism import KEYS, told_by

LOWEST = 1e-5  # FPR from which lines are drawn
POINTS = 200
STYLES = (":", "-.")  # of ceilings
NAMES = {ADD_REMOVE: "add/remove", REPLACE_ONE: "replace-one"}


def limits_of(told: Mapping[str, Any]) -> list[Limit]:
    """Lines of one scenario, as `Statement.told` has it; none where no ε is claimed.

    Ceilings are of the mechanism trained with, or of the claim alone where that is not known. The
    floor is what the proven ε allows: a guarantee whose ceiling lies below it is refused.
    """
    if (claimed := told.get("claimed")) is None:
        return []
    lower = told["lower"]
    allowed = zip(_ceilings(claimed), STYLES, strict=False)
    lines = [_line(f"allowed, {name}", one, style) for (name, one), style in allowed]
    if lower["epsilon"] > 0:
        proven = ceiling.of_claim(lower["epsilon"], lower["delta"])
        lines.append(_line(f"proven: ε ≥ {lower['epsilon']:.2f}", proven, "--"))
    return lines


def limit_of_claim(epsilon: float, delta: float) -> Limit:
    """The line that a claim of (ε, δ) alone allows, which needs no accountant."""
    label = f"allowed by (ε, δ) = ({epsilon:g}, {delta:g}) alone, {NAMES[ADD_REMOVE]}"
    return _line(label, ceiling.of_claim(epsilon, delta), STYLES[0])


def _ceilings(claimed: Mapping[str, Any]) -> Sequence[tuple[str, Profile]]:
    if any(claimed.get(key) is None for key in KEYS):
        return [(NAMES[ADD_REMOVE], ceiling.of_claim(claimed["epsilon"], claimed["delta"]))]
    mechanism = told_by({key: claimed[key] for key in KEYS}, "mechanism")
    found = ((name, ceiling.of_mechanism(mechanism, one)) for one, name in NAMES.items())
    return [(name, one) for name, one in found if one is not None]


def _line(label: str, profile: Profile, style: str) -> Limit:
    fpr = np.geomspace(LOWEST, 1.0, POINTS)
    return Limit(label, fpr, profile.tpr(fpr), style)
