import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from mico_exp.results import plots
from mico_exp.results.plots import (
    PHASE_STYLE,
    Curve,
    _against_counts,
    heatmap,
    roc_plot,
    scores_plot,
)
from mico_exp.results.scoring import OFFICIAL_FPRS, roc
from mico_exp.results.selection import Candidate, Selected, Verdict
from mico_exp.results.statistics import Interval, intervals


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(0)
    truth = np.tile([True, False], (10, 50))
    predictions = random.normal(size=truth.shape) + truth
    low, high = predictions.min(), predictions.max()
    return truth, ((predictions - low) / (high - low)).astype(np.float32)


@pytest.fixture
def curves(world):
    curve = roc(*world)
    return [
        Curve("validation", curve, 1000, PHASE_STYLE["train"], *world),
        Curve("final", curve, 1000, PHASE_STYLE["final"]),
    ]


def drawn(plot):
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png")
    buffer.seek(0)
    return imread(buffer)


def test_of_a_curve_with_many_corners_those_are_drawn_that_can_be_told_apart(monkeypatch):
    random = np.random.default_rng(0)
    truth = random.random((20, 1500)) < 0.5
    curve = roc(truth, random.normal(size=truth.shape) + truth)
    assert all(map(np.array_equal, plots._drawn(curve), (curve.fpr, curve.tpr)))
    monkeypatch.setattr(plots, "MOST_CORNERS", 1000)
    fpr, tpr = plots._drawn(curve)
    assert len(fpr) < len(curve.fpr)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    near = np.interp(curve.fpr, fpr, tpr)
    steep = np.interp(curve.tpr, tpr, fpr)
    assert np.minimum(abs(near - curve.tpr), abs(steep - curve.fpr)).max() < 1 / 2000
    some = (curve.fpr > 0) & (curve.tpr > 0) & (near > 0) & (steep > 0)
    up, along = np.log10([near[some] / curve.tpr[some], steep[some] / curve.fpr[some]])
    assert np.minimum(abs(up), abs(along)).max() < 1 / 200


def test_both_scales_show_the_curves_and_the_official_points(curves):
    plot = roc_plot("digits_inf", curves)
    linear, logarithmic = plot.axes
    assert linear.get_xscale() == "linear"
    assert (logarithmic.get_xscale(), logarithmic.get_yscale()) == ("log", "log")
    assert logarithmic.get_xlim()[0] == pytest.approx(1 / 1000)
    for axes in plot.axes:
        lines = axes.get_lines()
        (shown,) = (line for line in lines if line.get_label().startswith("validation"))
        assert np.array_equal(shown.get_xdata(), curves[0].roc.fpr)
        assert np.array_equal(shown.get_ydata(), curves[0].roc.tpr)
        marked = [line for line in lines if list(line.get_xdata()) == list(OFFICIAL_FPRS)]
        assert len(marked) == len(curves)
        assert marked[0].get_ydata()[3] == curves[0].roc.tpr_at(0.1)
        assert "rate" in axes.get_xlabel()
        assert "rate" in axes.get_ylabel()
    texts = [text.get_text() for text in plot.legends[0].get_texts()]
    assert any("n = 1,000" in text for text in texts)
    assert any("95 % interval over models" in text for text in texts)


def test_the_band_is_the_interval(curves, world):
    plot = roc_plot("digits_inf", curves[:1])
    (band,) = (c for c in plot.axes[1].collections if c.get_paths())
    corners = band.get_paths()[0].vertices
    known = intervals(*world, count=200)["tpr_at_fpr_0.2"]
    at = corners[np.isclose(corners[:, 0], 0.2)][:, 1]
    assert at.min() == pytest.approx(known.low)
    assert at.max() == pytest.approx(known.high)


def test_the_logarithmic_axes_reach_one_error_among_the_points_of_the_largest_curve(curves):
    few = replace(curves[1], points=40)
    for shown in ([curves[0], few], [few, curves[0]]):
        logarithmic = roc_plot("digits_inf", shown).axes[1]
        assert (logarithmic.get_xlim(), logarithmic.get_ylim()) == ((0.001, 1), (0.001, 1))


def test_they_can_be_drawn(curves, world):
    height, width = drawn(roc_plot("title", curves)).shape[:2]
    assert (height > 460, width) == (True, 960)
    counts = np.random.default_rng(0).integers(0, 90, size=world[0].shape)
    for out_models in (counts, np.zeros_like(counts), counts % 3):
        shown = drawn(scores_plot("title", *world, out_models, 0.6))
        assert shown.shape[:2] == (400, 960)
        assert shown[..., :3].min() < 0.1


def test_the_histogram_holds_every_point_and_the_threshold(world):
    truth, predictions = world
    plot = scores_plot("title", truth, predictions, np.full(truth.shape, 5), 0.625)
    histogram, counts = plot.axes
    steps = [patch for patch in histogram.patches if patch.get_label().startswith("members")]
    assert steps[0].get_data().values.sum() == pytest.approx(1)
    assert "n = 500" in steps[0].get_label()
    (line,) = histogram.get_lines()
    assert list(line.get_xdata()) == [0.625, 0.625]
    medians = {line.get_label(): line for line in counts.get_lines()}
    assert medians["members: median"].get_xdata() == [5]
    assert medians["members: median"].get_ydata() == pytest.approx([np.median(predictions[truth])])
    low, high = histogram.get_xlim()
    assert (predictions < low).mean() == pytest.approx(0.005, abs=0.001)
    assert (predictions > high).mean() == pytest.approx(0.005, abs=0.001)


def test_constant_scores_can_be_drawn(world):
    truth = world[0]
    constant = np.full(truth.shape, 0.5, np.float32)
    curve = roc(truth, constant)
    threshold = float(curve.threshold[curve.place(0.1)])
    assert threshold == np.inf
    plot = scores_plot("title", truth, constant, np.zeros(truth.shape, int), threshold)
    drawn(plot)
    assert not plot.axes[0].get_lines()  # nobody is called a member, so there is no threshold
    shown = Curve("validation", curve, 1000, PHASE_STYLE["train"], truth, constant)
    drawn(roc_plot("title", [shown]))


def verdict(cell, tpr, like=False):
    return Verdict(
        cell, "run", tpr, Interval(tpr - 0.01, tpr + 0.03), 0.6, 0, Interval(0, 0), 0.5, like
    )


def test_a_heatmap_names_every_cell_frames_the_chosen_and_marks_its_ties():
    cells = [verdict("loss/0", 0.2, like=True), verdict("loss/1", 0.1), verdict("other/1", 0.22)]
    best = Candidate("run", "digits_inf", "other", "1", 0, "", {})
    grid = Selected(best, cells[2], cells, 0.2, (0.1, 0.3))
    plot = heatmap("title", grid, ["loss", "other"], ["0", "1"], "n = 20")
    axes = plot.axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {
        (0, 0): "≈ 0.200\n±0.020",
        (1, 0): "0.100\n±0.020",
        (0, 1): "–",
        (1, 1): "0.220\n±0.020",
    }
    (frame,) = axes.patches
    assert (round(frame.get_x()), round(frame.get_y())) == (1, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["loss", "other"]
    assert "n = 20" in axes.get_xlabel()
    drawn(plot)


@pytest.mark.parametrize(
    "names", [["0", "1", "2"], ["watson", "attack_r", "rmia_onlin"], ["lira_online_bayes"] * 9]
)
def test_the_names_under_a_heatmap_do_not_overlap(names):
    """Side by side, or where they are slanted, one below the other."""
    cells = [verdict(f"loss/{name}", 0.2) for name in names]
    best = Candidate("run", "digits_inf", "loss", names[0], 0, "", {})
    plot = heatmap("title", Selected(best, cells[0], cells, None, None), ["loss"], names, "")
    plot.draw_without_rendering()
    labels = plot.axes[0].get_xticklabels()
    angle = np.radians(labels[0].get_rotation())
    for label in labels:
        label.set_rotation(0)
    sizes = [label.get_window_extent() for label in labels]
    left, right = (plot.axes[0].transData.transform((x, 0))[0] for x in (0, 1))
    column = right - left
    for size in sizes:
        assert size.height < column * np.sin(angle) if angle else size.width < column


def test_a_heatmap_of_one_cell():
    cells = [verdict("loss/0", 0.2, like=True)]
    best = Candidate("run", "digits_inf", "loss", "0", 0, "", {})
    grid = Selected(best, cells[0], cells, None, None)
    drawn(heatmap("title", grid, ["loss"], ["0"], ""))


def luminance(color):
    """Of sRGB, as WCAG 2 defines it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_a_heatmap_is_coloured_by_tpr_and_can_be_read():
    """Every text has three times the luminance of its cell, or a third; the chosen has no mark."""
    tprs = np.linspace(0.1, 0.3, 8)
    cells = [verdict(f"loss/{i}", tpr, like=tpr > 0.2) for i, tpr in enumerate(tprs)]
    best = Candidate("run", "digits_inf", "loss", "7", 0, "", {})
    grid = Selected(best, cells[7], cells, None, None)
    axes = heatmap("title", grid, ["loss"], list("01234567"), "").axes[0]
    (image,) = axes.images
    assert image.get_array().tolist() == [tprs.tolist()]
    texts = sorted(axes.texts, key=lambda text: text.get_position())
    for tpr, text in zip(tprs, texts, strict=True):
        here, behind = luminance(text.get_color()), luminance(image.to_rgba(tpr)[:3])
        assert (max(here, behind) + 0.05) / (min(here, behind) + 0.05) > 3
    assert [text.get_text()[:2] == "≈ " for text in texts] == [False] * 4 + [True] * 3 + [False]


def test_medians_are_drawn_of_the_points_with_as_many_out_models():
    random = np.random.default_rng(0)
    counts = random.permutation(np.repeat([3, 5, 9], 60))
    predictions = (random.random(180) * counts).astype(np.float32)
    axes = Figure().subplots()
    _against_counts(axes, "members", predictions, counts)
    (line,), (band,) = axes.get_lines(), axes.collections
    assert line.get_xdata() == pytest.approx([3, 5, 9])
    parts = [predictions[counts == count] for count in (3, 5, 9)]
    assert line.get_ydata() == pytest.approx([np.median(part) for part in parts])
    corners = band.get_paths()[0].vertices
    for count, part in zip((3, 5, 9), parts, strict=True):
        at = corners[np.isclose(corners[:, 0], count)][:, 1]
        assert (at.min(), at.max()) == pytest.approx(np.quantile(part, [0.1, 0.9]))
