"""Figures from arrays, in one style that survives grey print and colour blindness."""

import logging
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mico_exp.scoring import OFFICIAL_FPRS, RANKING_FPR, Roc

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it reports every font cache it makes

# Okabe & Ito's colours, told apart with any colour vision; the line style says it once more.
PHASE_STYLE = {
    "validation": {"color": "#0072B2", "linestyle": "-"},
    "dev": {"color": "#E69F00", "linestyle": "--"},
    "final": {"color": "#009E73", "linestyle": "-."},
}


def roc_figure(title: str, curves: Mapping[str, Roc], points: Mapping[str, int]) -> Figure:
    """Draw ROC curves side by side on linear and on logarithmic axes.

    Args:
        title: what was attacked, and how.
        curves: ROC by phase, named ``validation``, ``dev`` or ``final``.
        points: how many challenge points each curve pools.
    """
    figure = Figure(figsize=(9.6, 4.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    linear, logarithmic = figure.subplots(1, 2)
    lowest = 1 / max(points.values())
    for axes in (linear, logarithmic):
        axes.plot([lowest, 1], [lowest, 1], color="0.6", linewidth=1, label="guessing")
        for phase, curve in curves.items():
            tpr = f"TPR {curve.tpr_at(RANKING_FPR):.3f} at FPR {RANKING_FPR}"
            label = f"{phase}: {tpr} (n = {points[phase]:,})"
            axes.plot(curve.fpr, curve.tpr, linewidth=1.6, label=label, **PHASE_STYLE[phase])
        _mark_official(axes, next(iter(curves.values())))
        axes.set_xlabel("False positive rate (share of non-members)")
        axes.set_ylabel("True positive rate (share of members)")
        axes.grid(visible=True, color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    linear.set(xlim=(0, 1), ylim=(0, 1))
    linear.legend(loc="lower right", fontsize=8, frameon=False)
    logarithmic.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1))
    figure.suptitle(title, fontsize=11)
    return figure


def _mark_official(axes: Axes, curve: Roc) -> None:
    """Mark TPR at the six official FPRs on a curve."""
    shown = [(x, curve.tpr_at(x)) for x in OFFICIAL_FPRS]
    axes.plot(*zip(*shown, strict=True), "o", color="black", markersize=3.5, label="official FPRs")
