import json

import numpy as np
import pytest
import sklearn.metrics
from conftest import GOLDEN

from mico_exp.common.errors import InputError
from mico_exp.results import scoring, statistics

GOLDEN_SCORES = json.loads((GOLDEN / "official_scores.json").read_text())
NAMES = {
    "tpr_at_fpr_0.001": "TPR_FPR_10",
    "tpr_at_fpr_0.01": "TPR_FPR_100",
    "tpr_at_fpr_0.05": "TPR_FPR_500",
    "tpr_at_fpr_0.1": "TPR_FPR_1000",
    "tpr_at_fpr_0.15": "TPR_FPR_1500",
    "tpr_at_fpr_0.2": "TPR_FPR_2000",
    "auc": "AUC",
    "advantage": "MIA",
    "accuracy": "accuracy",
}


@pytest.mark.parametrize("name", [n for n in GOLDEN_SCORES if n.startswith("prediction_")])
def test_the_official_scorers_figures(name):
    golden = np.load(GOLDEN / "calibration.npz")
    targets = slice(0, 12) if name.endswith("train") else slice(12, 15)
    found = scoring.figures(golden["solution"][targets], golden[name])
    assert found.keys() == NAMES.keys()
    for ours, theirs in NAMES.items():
        assert found[ours] == pytest.approx(GOLDEN_SCORES[name][theirs], abs=1e-12)


@pytest.mark.parametrize("digits", [0, 1, 8])
@pytest.mark.parametrize("size", [2, 3, 7, 500])
def test_the_curve_is_that_of_scikit_learn(size, digits):
    random = np.random.default_rng(size + digits)
    truth = np.arange(size) % 2 == 0
    random.shuffle(truth)
    scores = (random.normal(size=size) + truth).round(digits)  # coarse ones tie
    fpr, tpr, threshold = sklearn.metrics.roc_curve(truth, scores)
    found = scoring.roc(truth, scores)
    np.testing.assert_array_equal(found.fpr, fpr)
    np.testing.assert_array_equal(found.tpr, tpr)
    np.testing.assert_array_equal(found.threshold, threshold)
    assert found.auc == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores), abs=1e-12)


def slow_roc(truth, scores):
    """Every threshold in turn: the rates among non-members and members."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores), reverse=True):
        flagged = scores >= threshold
        points.append((flagged[~truth].mean(), flagged[truth].mean()))
    return points


def test_against_every_threshold():
    random = np.random.default_rng(0)
    truth = random.random(400) < 0.5
    scores = (random.normal(size=400) + truth).round(1)  # rounded, so that there are ties
    points = slow_roc(truth, scores)
    found = scoring.figures(truth, scores)
    for x in scoring.OFFICIAL_FPRS:
        # The curve may leave out collinear points, so it can only lie lower, and never by much.
        best = max(tpr for fpr, tpr in points if fpr < x)
        assert found[f"tpr_at_fpr_{x}"] <= best
    assert found["advantage"] == pytest.approx(max(t - f for f, t in points), abs=1e-12)
    accuracy = max((t + 1 - f) / 2 for f, t in points)
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    pairs = np.sign(scores[truth][:, None] - scores[~truth][None])
    assert found["auc"] == pytest.approx((pairs.mean() + 1) / 2, abs=1e-12)


def test_strictly_below_not_at_most():
    truth = np.tile([True, False], 10)
    scores = np.arange(20.0)[::-1]  # members and non-members interleaved, a member first
    assert scoring.figures(truth, scores)["tpr_at_fpr_0.1"] == pytest.approx(0.1)
    curve = scoring.roc(truth, scores)
    assert curve.tpr[curve.fpr <= 0.1].max() == pytest.approx(0.2)


@pytest.mark.parametrize("fpr", [0, 0.0, -0.1, np.nan, -np.inf])
def test_nothing_lies_strictly_below_0(fpr):
    truth = np.array([True, False, True])
    curve = scoring.roc(truth, np.array([0.9, 0.5, 0.1]))
    ranked = statistics.Ranked(truth[None], np.array([[0.9, 0.5, 0.1]]))
    for ask in (
        curve.tpr_at,
        curve.place,
        lambda x: ranked.tpr_at(x, np.ones((1, 1), np.float32)),
        lambda x: statistics.roc_band(truth[None], [[0.9, 0.5, 0.1]], [0.1, x]),
    ):
        with pytest.raises(
            InputError, match=r"^`fpr` must be a number above 0, got (0|0\.0|-0\.1|nan|-inf)\.$"
        ):
            ask(fpr)


@pytest.mark.parametrize("fpr", [1.0000001, 2, np.inf])
def test_all_of_the_curve_lies_below_more_than_1(fpr):
    truth, scores = np.array([[True, False, True]]), np.array([[0.9, 0.5, 0.1]])
    assert scoring.roc(truth, scores).tpr_at(fpr) == 1
    ranked = statistics.Ranked(truth, scores)
    assert ranked.tpr_at(fpr, np.ones((1, 1), np.float32)) == [1]
    assert ranked.tpr_at(1, np.ones((1, 1), np.float32)) == [0.5]  # strictly below 1


def test_best_worst_and_constant():
    truth = np.array([[True, False, True, False]])
    assert scoring.figures(truth, truth.astype(float))["tpr_at_fpr_0.001"] == 1
    worst = scoring.figures(truth, 1.0 - truth)
    assert worst["tpr_at_fpr_0.1"] == 0
    assert (worst["auc"], worst["advantage"], worst["accuracy"]) == (0, 0, 0.5)  # none is turned
    constant = scoring.figures(truth, np.full((1, 4), 0.5))
    assert constant["tpr_at_fpr_0.1"] == 0
    assert constant["auc"] == 0.5
    assert constant["advantage"] == 0


def test_what_the_official_figures_stand_on_by_hand():
    """Of 20 non-members three score as high as some of 6 members; 0.05 and 0.15 are not below."""
    members, others = [0.9, 0.8, 0.7, 0.7, 0.5, 0.05], [0.8, 0.6, 0.6] + 17 * [0.1]
    truth, scores = np.repeat([True, False], [6, 20]), np.array(members + others)
    found = scoring.operating_points(scoring.roc(truth, scores), scores)
    expected = {}
    for x, fpr, threshold, tied in (
        (0.001, 0, 0.9, 1),
        (0.01, 0, 0.9, 1),
        (0.05, 0, 0.9, 1),
        (0.1, 1 / 20, 0.7, 2),
        (0.15, 1 / 20, 0.7, 2),
        (0.2, 3 / 20, 0.5, 1),
    ):
        expected[f"fpr_below_{x}"] = fpr
        expected[f"threshold_at_fpr_{x}"] = threshold
        expected[f"tied_at_fpr_{x}"] = tied / 26
    assert found == expected


def test_models_are_pooled_not_averaged():
    truth = np.array([[True, False], [True, False]])
    scores = np.array([[0.9, 0.8], [0.2, 0.1]])  # perfect in each model, not under one threshold
    assert scoring.figures(truth, scores)["tpr_at_fpr_0.1"] == 0.5


@pytest.mark.parametrize(
    ("truth", "scores", "message"),
    [
        ([[True, True]], [[0.1, 0.2]], "one class"),
        ([[False, False]], [[0.1, 0.2]], "one class"),
        ([[True, False]], [[0.1, np.nan]], "1 of 2"),
        ([[True, False]], [[np.inf, 0.1]], "1 of 2"),
        ([[True, False]], [0.1, 0.2], "shape"),
    ],
)
def test_what_has_no_figures(truth, scores, message):
    with pytest.raises(InputError, match=message):
        scoring.figures(truth, scores)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_predictions_are_ranked_members_first_where_they_are_equal(kind):
    """Negative ones, both zeros, the smallest and the largest among them."""
    tiny = np.finfo(np.float32).smallest_subnormal
    values = np.array([0.5, -0.0, 0.0, tiny, -tiny, 1, -1, 3e38, -3e38, 0.5, -0.0, 0], dtype=kind)
    truth = np.arange(12) % 2 == 0
    order, is_member, ranked, last = scoring.rank(truth, values)
    expected = sorted(range(12), key=lambda i: (-values[i], not truth[i], i))
    assert order.tolist() == expected
    assert np.array_equal(ranked, values[expected])
    assert np.array_equal(is_member, truth[expected])
    assert last.tolist() == [0, 1, 3, 4, 8, 9, 10, 11]
