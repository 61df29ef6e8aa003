"""Ceiling and floor as lines about a ROC curve, from what an audit told."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from mico_exp.auditing import ceiling
from mico_exp.auditing.limits import limits_of
from mico_exp.results.plots import SCENARIO_STYLES, Curve, roc_plot
from mico_exp.results.scoring import roc
from mico_exp.training.mechanism import Mechanism

MECHANISM = {"noise_multiplier": 2.0, "sample_rate": 1.0, "steps": 1}
CLAIMED = {"epsilon": 4.0, "delta": 1e-5, **MECHANISM}
LOWER = {"epsilon": 0.5, "delta": 1e-5}


@pytest.mark.parametrize(
    ("told", "labels"),
    [
        ({"lower": LOWER}, []),
        ({"claimed": None, "lower": LOWER}, []),
        (
            {"claimed": CLAIMED, "lower": LOWER},
            ["allowed, add/remove", "allowed, replace-one", "proven: ε ≥ 0.50"],
        ),
        (
            {"claimed": {"epsilon": 4.0, "delta": 1e-5}, "lower": LOWER | {"epsilon": 0}},
            ["allowed, add/remove"],
        ),
    ],
)
def test_lines_are_of_what_is_claimed_and_proven(told, labels):
    assert [one.label for one in limits_of(told)] == labels


def test_they_are_drawn_on_both_kinds_of_axes():
    limits = limits_of({"claimed": CLAIMED, "lower": LOWER})
    allowed = ceiling.of_mechanism(Mechanism(**MECHANISM), "add_remove")
    assert np.array_equal(limits[0].tpr, allowed.tpr(limits[0].fpr))
    g = np.random.default_rng(0)
    solution = np.arange(100) < 50
    curve = roc(solution, g.normal(size=100) + solution)
    drawn = roc_plot("here", [Curve("lo", curve, 100, SCENARIO_STYLES[0], limits=limits)])
    for axes in drawn.get_axes():
        lines = {one.get_label(): one for one in axes.get_lines()}
        for limit in limits:
            line = lines[f"lo: {limit.label}"]
            assert np.array_equal(line.get_ydata(), limit.tpr)
            assert to_hex(line.get_color()) == SCENARIO_STYLES[0]["color"].lower()
