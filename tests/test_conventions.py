"""TPR by four conventions, against definitions written out, scikit-learn and SciPy."""

import itertools

import numpy as np
import pytest
import sklearn.metrics
from scipy.spatial import ConvexHull

from mico_exp.common.errors import InputError
from mico_exp.results import scoring
from mico_exp.results.conventions import CONVENTIONS, by_convention

FPRS = (0.001, 0.01, 0.1, 0.25, 0.5, 1.0)


def sample(size, digits, seed=0):
    random = np.random.default_rng(seed)
    truth = np.arange(size) % 3 == 0
    random.shuffle(truth)
    return truth, (random.normal(size=size) + truth).round(digits)


def on_hull(fpr, tpr, x):
    """Highest point of the convex hull at an FPR, by SciPy's hull of the curve and two corners."""
    corners = np.append(np.column_stack([fpr, tpr]), [[1, 0]], axis=0)
    hull = ConvexHull(corners)
    # Facets a·fpr + b·tpr + c ≤ 0; the upper ones have b > 0.
    return min(-(a * x + c) / b for a, b, c in hull.equations if b > 1e-12)


@pytest.mark.parametrize("digits", [0, 1, 8])
@pytest.mark.parametrize("size", [7, 30, 400])
def test_each_is_what_its_name_says(size, digits):
    truth, scores = sample(size, digits)
    fpr, tpr, _ = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=False)
    found = by_convention(truth, scores, FPRS)
    assert tuple(found) == CONVENTIONS
    for place, x in enumerate(FPRS):
        assert found["strictly below"][place] == scoring.roc(truth, scores).tpr_at(x)
        assert found["at most"][place] == tpr[fpr <= x].max()
        last = np.flatnonzero(fpr <= x)[-1]  # a curve may rise straight up: from its upper end
        lines = np.interp(x, fpr[last:], tpr[last:])
        assert found["interpolated"][place] == pytest.approx(lines, abs=1e-12)
        assert found["hull"][place] == pytest.approx(on_hull(fpr, tpr, x), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_none_lies_below_the_one_before(seed):
    found = by_convention(*sample(200, 1, seed), FPRS)
    for first, second in itertools.pairwise(CONVENTIONS):
        assert (np.array(found[second]) >= np.array(found[first]) - 1e-12).all()


def test_interleaved_points_tell_them_apart():
    truth = np.tile([True, False], 10)
    found = by_convention(truth, np.arange(20.0)[::-1], (0.1, 0.05))
    for name, values in {
        "strictly below": [0.1, 0.1],
        "at most": [0.2, 0.1],
        "interpolated": [0.2, 0.1],
        "hull": [0.2, 0.15],
    }.items():
        assert found[name] == pytest.approx(values)


def test_a_constant_score_says_nothing_but_by_lines():
    found = by_convention([[True, False, False]], [[0.5] * 3], (0.1,))
    assert [found[name][0] for name in CONVENTIONS] == pytest.approx([0, 0, 0.1, 0.1])


def test_models_may_lack_points():
    truth, scores = sample(12, 8)
    there = np.arange(16).reshape(4, 4) % 4 < 3
    padded = np.full(there.shape, np.nan)
    padded[there] = scores
    solution = np.zeros(there.shape, dtype=bool)
    solution[there] = truth
    assert by_convention(solution, padded, FPRS, there) == by_convention(truth, scores, FPRS)


@pytest.mark.parametrize(("truth", "fpr"), [([True, True], 0.1), ([True, False], 0.0)])
def test_what_cannot_be_read_is_refused(truth, fpr):
    with pytest.raises(InputError):
        by_convention(truth, [0.1, 0.2], (fpr,))
