import io

import numpy as np
import pytest
from matplotlib.image import imread

from mico_exp.figures import roc_figure
from mico_exp.scoring import OFFICIAL_FPRS, roc


@pytest.fixture
def curve():
    random = np.random.default_rng(0)
    truth = np.tile([True, False], (10, 50))
    return roc(truth, random.normal(size=truth.shape) + truth)


def test_both_scales_show_the_curve_and_the_official_points(curve):
    points = {"validation": 1000, "final": 1000}
    figure = roc_figure("digits_inf", {"validation": curve, "final": curve}, points)
    linear, logarithmic = figure.axes
    assert linear.get_xscale() == "linear"
    assert (logarithmic.get_xscale(), logarithmic.get_yscale()) == ("log", "log")
    assert logarithmic.get_xlim()[0] == pytest.approx(1 / 1000)
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.get_lines()}
        shown = next(line for label, line in lines.items() if label.startswith("validation"))
        assert np.array_equal(shown.get_xdata(), curve.fpr)
        assert np.array_equal(shown.get_ydata(), curve.tpr)
        assert list(lines["official FPRs"].get_xdata()) == list(OFFICIAL_FPRS)
        assert lines["official FPRs"].get_ydata()[3] == curve.tpr_at(0.1)
        assert "rate" in axes.get_xlabel()
        assert "rate" in axes.get_ylabel()
    texts = [text.get_text() for text in linear.get_legend().get_texts()]
    assert any("n = 1,000" in text for text in texts)


def test_it_is_a_picture(curve):
    buffer = io.BytesIO()
    roc_figure("title", {"validation": curve}, {"validation": 1000}).savefig(buffer, format="png")
    buffer.seek(0)
    picture = imread(buffer)
    assert picture.shape[:2] == (460, 960)
    assert picture[..., :3].min() < 0.1
