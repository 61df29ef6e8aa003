"""Plots from arrays, in one style that survives grey print and colour blindness."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.markers import TICKDOWN, TICKLEFT
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from mico_exp.common.arrays import Floats, Mask
from mico_exp.results.scoring import OFFICIAL_FPRS, RANKING_FPR, Roc
from mico_exp.results.selection import Selected, Verdict
from mico_exp.results.statistics import LEVEL, roc_band

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it reports every font cache it makes

# Okabe & Ito's colours, told apart with any colour vision; the line style says it once more.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
PHASE_STYLE: dict[str, dict[str, Any]] = {
    "train": {"color": BLUE, "linestyle": "-"},
    "dev": {"color": ORANGE, "linestyle": "--"},
    "final": {"color": GREEN, "linestyle": "-."},
}
SCENARIO_STYLES: list[dict[str, Any]] = [
    {"color": color, "linestyle": style}
    for color, style in zip((BLUE, ORANGE, GREEN, PURPLE), ("-", "--", "-.", ":"), strict=True)
]
CLASS_STYLE: dict[str, dict[str, Any]] = {
    "members": {"color": ORANGE},
    "non-members": {"color": BLUE},
}
DOT: dict[str, Any] = {"markeredgecolor": "black", "markersize": 4.5}
# Whatever a user's matplotlibrc says; who draws is none of a style's business.
STYLE = {key: value for key, value in rcParamsDefault.items() if not key.startswith("backend")}
BINS = 60
MOST_CORNERS = 20_000  # of a curve, which are drawn as they are
CORNERS = 4000  # steps of a rate, and of eight powers of ten, that are finer than a pixel
FEWEST = 50  # points, of which quantiles are drawn
MOST_COUNTS = 25  # groups of numbers of out models
LONG_NAME = 10  # letters of a formula, which are wider than its column of a heatmap
BAND_POINTS = 18  # of the interval's band, up to an FPR of 0.2
TPR_LABEL, FPR_LABEL = "True positive rate (of members)", "False positive rate (of non-members)"


@dataclass(frozen=True, eq=False)
class Limit:
    """A line about a ROC curve: FPR (K,) ascending, and the TPR (K,) that is allowed or proven."""

    label: str
    fpr: Floats
    tpr: Floats
    linestyle: str


@dataclass(frozen=True, eq=False)
class Curve:
    """One ROC curve to draw: its label, its style, and how it came about.

    solution, predictions: (T, P), for the interval band; None draws none. there: (T, P) False where
        a model has no point. points: pooled in it. limits: lines about it, in its colour.
    """

    label: str
    roc: Roc
    points: int
    style: Mapping[str, Any]
    solution: NDArray[np.bool_] | None = None
    predictions: NDArray[np.float32] | None = None
    there: Mask | None = None
    limits: Sequence[Limit] = ()


def new_plot(width: float, height: float, title: str) -> Figure:
    """Open a plot in the house's style; inches at 100 dots each."""
    plot = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(plot)
    plot.suptitle(title, fontsize=11, parse_math=False)
    return plot


def _grid(axes: Axes) -> None:
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


@rc_context(STYLE)
def roc_plot(title: str, curves: Sequence[Curve], limits: Sequence[Limit] = ()) -> Figure:
    """Draw ROC curves with their bands, side by side on linear and on logarithmic axes.

    The logarithmic one goes down to one error among all points. `limits` are lines about all
    curves.
    """
    lines = len(limits) + sum(len(curve.limits) for curve in curves)
    rows = -(-(len(curves) + lines + 3) // 3)  # of the legend
    plot = new_plot(9.6, 4.7 + 0.18 * rows, title)
    linear, logarithmic = plot.subplots(1, 2)
    lowest = 1 / max(curve.points for curve in curves)
    bands = [_band(curve, lowest) for curve in curves]
    for axes in (linear, logarithmic):
        axes.plot([lowest, 1], [lowest, 1], color="0.6", linewidth=1, label="guessing")
        for curve, band in zip(curves, bands, strict=True):
            tpr = f"TPR {curve.roc.tpr_at(RANKING_FPR):.3f} at FPR {RANKING_FPR}"
            label = f"{curve.label}: {tpr} (n = {curve.points:,})"
            axes.plot(*_drawn(curve.roc), linewidth=1.5, label=label, **curve.style)
            if band is not None:
                fprs, low, high = band
                axes.fill_between(
                    fprs, low, high, color=curve.style["color"], alpha=0.2, linewidth=0,
                )  # fmt: skip
        for curve in curves:
            _mark_official(axes, curve.roc, curve.style["color"])
            for line in curve.limits:
                label, style = f"{curve.label}: {line.label}", line.linestyle
                axes.plot(line.fpr, line.tpr, linewidth=1, linestyle=style, label=label,
                          color=curve.style["color"])  # fmt: skip
        for line in limits:
            axes.plot(line.fpr, line.tpr, linewidth=1, linestyle=line.linestyle, label=line.label,
                      color="black")  # fmt: skip
        axes.plot([], [], "o", color="white", **DOT, label="official FPRs")
        if any(band is not None for band in bands):
            axes.fill_between([], [], color="0.8", label=f"shade: {LEVEL} % interval over models")
        axes.set_xlabel(FPR_LABEL)
        axes.set_ylabel(TPR_LABEL)
        _grid(axes)
    linear.set(xlim=(0, 1), ylim=(0, 1))
    handles, labels = linear.get_legend_handles_labels()
    plot.legend(handles, labels, loc="lower center", ncols=3, fontsize=7.5, frameon=False)
    logarithmic.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1))
    for axis in (logarithmic.xaxis, logarithmic.yaxis):  # plain text is quicker than 10⁻³ as maths
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    _minor_ticks(logarithmic, lowest)
    below = (0.55 + 0.18 * rows) / plot.get_figheight()
    plot.subplots_adjust(left=0.07, right=0.985, top=0.92, bottom=below, wspace=0.23)
    return plot


def _drawn(curve: Roc) -> tuple[Floats, Floats]:
    """FPR and TPR of the corners of a curve that can be told apart on either kind of axes.

    Of a pool there are millions, more than can be drawn.
    """
    if len(curve.fpr) <= MOST_CORNERS:
        return curve.fpr, curve.tpr
    kept = np.zeros(len(curve.fpr), dtype=bool)
    kept[[0, -1]] = True
    for rate in (curve.fpr, curve.tpr):
        with np.errstate(divide="ignore"):
            for shown in (rate, np.log10(rate) / 8):
                step = np.floor(shown * CORNERS)
                kept[1:] |= step[1:] != step[:-1]
    return curve.fpr[kept], curve.tpr[kept]


def _minor_ticks(axes: Axes, lowest: float) -> None:
    """Mark 2 … 9 times the powers of ten, as two lines: as ticks they take a third of the time."""
    powers = 10.0 ** np.arange(np.floor(np.log10(lowest)), 0)
    places = np.outer(powers, np.arange(2, 10)).ravel()
    places = places[places > lowest]
    zeros = np.zeros(len(places))
    style: dict[str, Any] = {"color": "black", "linestyle": "", "markersize": 2, "clip_on": False}
    axes.plot(places, zeros, marker=TICKDOWN, transform=axes.get_xaxis_transform(), **style)
    axes.plot(zeros, places, marker=TICKLEFT, transform=axes.get_yaxis_transform(), **style)


def _band(
    curve: Curve, lowest: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    if curve.solution is None or curve.predictions is None:
        return None
    small = np.geomspace(2 * lowest, 0.2, BAND_POINTS)
    fprs = np.append(small, np.linspace(0.25, 1, 16))
    found = roc_band(curve.solution, curve.predictions, list(fprs), there=curve.there)
    return None if found is None else (fprs, *found)


def _mark_official(axes: Axes, curve: Roc, color: str) -> None:
    """Mark TPR at the six official FPRs on a curve."""
    shown = [(x, curve.tpr_at(x)) for x in OFFICIAL_FPRS]
    axes.plot(*zip(*shown, strict=True), "o", color=color, **DOT)


@rc_context(STYLE)
def scores_plot(
    title: str,
    solution: NDArray[np.bool_],
    predictions: NDArray[np.float32],
    out_models: NDArray[np.int64],
    threshold: float,
) -> Figure:
    """Draw the predictions (N,) of members and non-members, also against out models (N,).

    threshold: the lowest prediction that is called a member at the ranking FPR.
    """
    plot = new_plot(9.6, 4.0, title)
    histogram, counts = plot.subplots(1, 2)
    low, high = np.quantile(predictions, [0.005, 0.995])
    low, high = (low, high) if high > low else (0.0, 1.0)
    edges = np.linspace(low, high, BINS + 1)
    groups = {"members": solution, "non-members": ~solution}
    for name, mask in groups.items():
        inside = predictions[mask].clip(low, high)
        heights = np.histogram(inside, bins=edges)[0] / max(mask.sum(), 1)
        label = f"{name} (n = {mask.sum():,})"
        histogram.stairs(heights, edges, fill=True, alpha=0.25, **CLASS_STYLE[name])
        histogram.stairs(heights, edges, linewidth=1.2, label=label, **CLASS_STYLE[name])
    if np.isfinite(threshold):
        label = f"threshold at FPR {RANKING_FPR}"
        histogram.axvline(threshold, color="black", linewidth=1, linestyle=":", label=label)
    histogram.set(
        xlabel="Prediction (scaled to 0 … 1; the last 0.5 % of either end in the outermost bin)",
        ylabel="Share of its class",
        xlim=(low, high),
    )
    histogram.xaxis.label.set_fontsize(8.5)
    histogram.legend(fontsize=7.5, frameon=False)
    _grid(histogram)
    for name, mask in groups.items():
        _against_counts(counts, name, predictions[mask], out_models[mask])
    counts.set(
        xlabel="Shadow models not trained on the point (out models)",
        ylabel="Prediction (scaled to 0 … 1)",
    )
    counts.xaxis.set_major_locator(MaxNLocator(integer=True))
    counts.legend(fontsize=7.5, frameon=False)
    _grid(counts)
    plot.subplots_adjust(left=0.07, right=0.985, top=0.91, bottom=0.13, wspace=0.2)
    return plot


def _against_counts(
    axes: Axes, name: str, predictions: NDArray[np.float32], out_models: NDArray[np.int64]
) -> None:
    """Draw the median and the middle 80 % of predictions against the number of out models."""
    if not out_models.size:
        return
    # Neighbouring counts with about equally many points together, so that quantiles hold.
    groups = min(MOST_COUNTS, max(1, out_models.size // FEWEST))
    ends = np.unique(np.quantile(out_models, np.linspace(0, 1, groups + 1)[1:-1]))
    group = np.searchsorted(ends, out_models)
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    middle = [out_models[part].mean() for part in parts]
    low, median, high = np.array(
        [np.quantile(predictions[part], [0.1, 0.5, 0.9]) for part in parts]
    ).T
    axes.plot(middle, median, ".-", linewidth=1, label=f"{name}: median", **CLASS_STYLE[name])
    axes.fill_between(middle, low, high, alpha=0.2, linewidth=0, label="middle 80 %",
                      **CLASS_STYLE[name])  # fmt: skip


@rc_context(STYLE)
def png(figure: Figure) -> bytes:
    """Write a plot as a PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@rc_context(STYLE)
def heatmap(
    title: str, selected: Selected, metrics: Sequence[str], formulas: Sequence[str], caption: str
) -> Figure:
    """Draw validation TPR ± half its interval for every cell of a scenario's grid.

    The chosen cell is framed, and cells that cannot be told from it are marked ≈.

    Args:
        title: the scenario.
        selected: the cells, compared.
        metrics: rows from the top.
        formulas: columns from the left.
        caption: n.
    """
    cells = {verdict.cell: verdict for verdict in selected.cells}
    values = np.full((len(metrics), len(formulas)), np.nan)
    for i, metric in enumerate(metrics):
        for j, formula in enumerate(formulas):
            if verdict := cells.get(f"{metric}/{formula}"):
                values[i, j] = verdict.tpr
    longest = max(map(len, formulas))
    width, height = 2.6 + 0.95 * len(formulas), 1.7 + 0.55 * len(metrics)
    height += 0.06 * longest if longest > LONG_NAME else 0
    plot = new_plot(max(width, 5.2), height, f"{title}: validation TPR at FPR {RANKING_FPR}")
    plot.set_layout_engine("constrained")
    axes = plot.subplots()
    low, high = np.nanmin(values), np.nanmax(values)
    high = high if high > low else low + 1e-6
    image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    plot.colorbar(image, ax=axes, label=f"TPR at FPR {RANKING_FPR}")
    for i, metric in enumerate(metrics):
        for j, formula in enumerate(formulas):
            verdict = cells.get(f"{metric}/{formula}")
            if verdict is None:
                axes.text(j, i, "–", ha="center", va="center", color="0.5")
                continue
            chosen = verdict.cell == selected.verdict.cell
            mark = "≈ " if verdict.like_chosen and not chosen else ""
            dark = np.mean(colormaps["cividis"]((verdict.tpr - low) / (high - low))[:3]) < 0.5
            text = f"{mark}{verdict.tpr:.3f}\n±{verdict.tpr_interval.half_width:.3f}"
            color = "white" if dark else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color=color)
            if chosen:
                frame = Rectangle((j - 0.47, i - 0.45), 0.94, 0.9)
                frame.set(fill=False, edgecolor="#D55E00", linewidth=2.5)
                axes.add_patch(frame)
    axes.set_xticks(range(len(formulas)), formulas, parse_math=False)
    if longest > LONG_NAME:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(metrics)), metrics, parse_math=False)
    about = f"± half of the {LEVEL} % interval over models; {caption}"
    axes.set_xlabel(f"Formula\n\n{about}\nframe: chosen; ≈: cannot be told from it")
    axes.set_ylabel("Metric")
    return plot


@rc_context(STYLE)
def exposure_plot(title: str, best: Mapping[str, Mapping[str, Verdict]]) -> Figure:
    """Draw what each exposure gives away: validation TPR of its best cell, with its interval.

    Args:
        title: of the plot.
        best: scenario → exposure, from the least shown to the most → its best cell.
    """
    shown = list(dict.fromkeys(name for of_one in best.values() for name in of_one))
    plot = new_plot(max(5.2, 2.2 + 1.1 * len(shown)), 3.9, title)
    plot.set_layout_engine("constrained")
    axes = plot.subplots()
    axes.axhline(RANKING_FPR, color="0.6", linewidth=1, label="guessing")
    for place, (scenario, of_one) in enumerate(best.items()):
        style = SCENARIO_STYLES[place % len(SCENARIO_STYLES)]
        aside = 0.09 * (place - (len(best) - 1) / 2)  # so that intervals do not hide each other
        x = [shown.index(name) + aside for name in of_one]
        tpr = [verdict.tpr for verdict in of_one.values()]
        low, high = np.transpose([verdict.tpr_interval for verdict in of_one.values()])
        axes.plot(x, tpr, marker="o", linewidth=1.2, label=scenario, **style, **DOT)
        axes.vlines(x, low, high, color=style["color"], linewidth=1.5)
    axes.set_xticks(range(len(shown)), [name.replace(", ", "\n") for name in shown])
    axes.set(
        xlim=(-0.5, len(shown) - 0.5),
        ylim=(0, None),
        xlabel=f"What the attacker sees (bars: {LEVEL} % interval over models)",
        ylabel=f"TPR at FPR {RANKING_FPR}",
    )
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")
    _grid(axes)
    return plot


@rc_context(STYLE)
def frontier_plot(
    title: str, points: Mapping[str, tuple[float, float, tuple[float, float] | None]]
) -> Figure:
    """Draw risk against accuracy, one point a scenario with the 95 % interval of its TPR.

    Args:
        title: of the plot.
        points: scenario's name and ε → accuracy, TPR, interval.
    """
    plot = new_plot(7.2, 4.4, title)
    plot.set_layout_engine("constrained")
    axes = plot.subplots()
    _grid(axes)
    along = sorted((accuracy, tpr) for accuracy, tpr, _ in points.values())
    axes.plot(*zip(*along, strict=True), color="0.7", zorder=1)
    markers = zip(cycle(SCENARIO_STYLES), cycle("osD^v"))
    for (name, (accuracy, tpr, ends)), (style, marker) in zip(
        points.items(), markers, strict=False
    ):
        low, high = ends or (tpr, tpr)
        apart = [[max(tpr - low, 0)], [max(high - tpr, 0)]]
        look = {"color": style["color"], "marker": marker, "capsize": 3, "linestyle": "none"}
        axes.errorbar([accuracy], [tpr], yerr=apart, label=name, **look)
    axes.axhline(RANKING_FPR, color="0.5", linewidth=1, linestyle=":", label="guessing")
    axes.set_xlabel("Accuracy on records that were not trained on")
    axes.set_ylabel(f"TPR at FPR {RANKING_FPR}")
    axes.legend(fontsize=8)
    return plot


@rc_context(STYLE)
def risk_plot(title: str, counts: Mapping[str, Sequence[int]], fpr: float) -> Figure:
    """Draw how the records' own TPRs at an FPR lie, scenario by scenario.

    The line stands where they would lie around if membership said nothing.

    Args:
        title: of the plot.
        counts: scenario → how many records have a TPR in each of equal parts of [0, 1].
        fpr: of each record's own threshold.
    """
    plot = new_plot(7.2, 4.0, title)
    plot.set_layout_engine("constrained")
    axes = plot.subplots()
    _grid(axes)
    for (name, found), style in zip(counts.items(), cycle(SCENARIO_STYLES)):
        bins, shares = np.linspace(0, 1, len(found) + 1), np.divide(found, sum(found))
        axes.hist(
            (bins[1:] + bins[:-1]) / 2, bins.tolist(), weights=shares, histtype="step",
            linewidth=1.6, label=name, **style,
        )  # fmt: skip
    axes.axvline(fpr, color="0.4", linewidth=1, label="over nothing, on average")
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"TPR of a record at its own FPR {fpr:g}")
    axes.set_ylabel("Share of the records")
    axes.legend(fontsize=8)
    return plot
