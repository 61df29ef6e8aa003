"""Formulas against literal definitions: loops over points and models, SciPy's densities, sorts."""

import math
import statistics
from functools import partial

import numpy as np
import pytest
from scipy.stats import norm, t

from mico_exp.attacks import formulas
from mico_exp.attacks.calibration import calibrate, copes_with_gaps
from mico_exp.common.errors import InputError

MODELS, POINTS = 14, 9


@pytest.fixture
def world():
    """One target: scores (P,), shadow (S, P), is_in, is_out; counts in and out are unequal.

    Point 0 has no out model, point 1 one, point 2 no in model, point 3 one, 4 neither more than
    one; some models of 5 stand on no side.
    """
    random = np.random.default_rng(3)
    is_in = random.random((MODELS, POINTS)) < 0.6
    is_in[:, 0], is_in[:, 1] = True, np.arange(MODELS) > 0
    is_in[:, 2], is_in[:, 3] = False, np.arange(MODELS) == 0
    is_in[:, 4], is_in[:2, 5:] = np.arange(MODELS) == 1, [[True], [False]]
    is_out = ~is_in
    is_out[1:, 4] = False
    is_in[2:5, 5] = is_out[2:5, 5] = False
    shadow = random.normal(size=(MODELS, POINTS)) * np.linspace(0.5, 2, POINTS) + 1.2 * is_in
    score = random.normal(size=POINTS) + 0.5
    return score, shadow, is_in, is_out


def sides(world):
    """Plain lists of in and out scores of every point."""
    score, shadow, is_in, is_out = world
    for i in range(len(score)):
        column = shadow[:, i].tolist()
        inside = [s for s, there in zip(column, is_in[:, i], strict=True) if there]
        outside = [s for s, there in zip(column, is_out[:, i], strict=True) if there]
        yield float(score[i]), inside, outside


def usable(world):
    """The points that have at least one model on either side, as a plain formula sees them."""
    _, _, is_in, is_out = world
    keep = is_in.any(axis=0) & is_out.any(axis=0)
    return tuple(array[..., keep] for array in world)


def squares(values):
    return sum((v - statistics.fmean(values)) ** 2 for v in values) if values else 0.0


def pooled(*groups):
    """Variance around each group's own mean; groups of fewer than two tell nothing."""
    freedom = sum(max(len(group) - 1, 0) for group in groups)
    return sum(map(squares, groups)) / freedom if freedom else 0.0


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0, "counts"])
@pytest.mark.parametrize(("k", "scale"), [(0, "all"), (1, "all"), (0.5, "within"), (2, "pooled")])
def test_offset(world, w, k, centre, scale):
    world = usable(world)
    found = formulas.offset(*world, w=w, k=k, centre=centre, scale=scale)
    middle = getattr(statistics, centre)
    every = [group for _, *pair in sides(world) for group in pair]
    for i, (s, inside, outside) in enumerate(sides(world)):
        share = len(inside) / len(inside + outside) if w == "counts" else w
        offset = s - (share * middle(inside) + (1 - share) * middle(outside))
        both = len(inside) + len(outside) > 2
        variance = {
            "all": statistics.variance(inside + outside) if k else 1,
            "within": pooled(inside, outside) if both else pooled(*every),
            "pooled": pooled(*every),
        }[scale]
        assert found[i] == pytest.approx(offset / math.sqrt(variance) ** k, rel=1e-9)


def test_a_shrunk_scale_lies_between_the_points_own_and_the_pooled(world):
    world = usable(world)
    by = {
        scale: formulas.offset(*world, k=2, scale=scale) for scale in ("within", "shrunk", "pooled")
    }
    moved = formulas.offset(*world, k=0)
    freedom = np.array([len(a) + len(b) - 2 for _, a, b in sides(world)])
    own, common = moved / by["within"], moved / by["pooled"]
    expected = np.where(freedom > 0, (freedom * own + 10 * common) / (freedom + 10), common)
    np.testing.assert_allclose(moved / by["shrunk"], expected, rtol=1e-9)


def gaps(world):
    """Gap of the points with both sides, and its mean weighted by the inverse of its variance."""
    pairs = [(a, b) for _, a, b in sides(world) if a and b]
    weights = [1 / (1 / len(a) + 1 / len(b)) for a, b in pairs]
    values = [statistics.fmean(a) - statistics.fmean(b) for a, b in pairs]
    mean = sum(w * g for w, g in zip(weights, values, strict=True)) / sum(weights)
    return values, mean


def completed(inside, outside, gap):
    """Means of both sides, a missing one as far as `gap` from the other."""
    above = statistics.fmean(inside) if inside else statistics.fmean(outside) + gap
    below = statistics.fmean(outside) if outside else statistics.fmean(inside) - gap
    return above, below


@pytest.mark.parametrize("variance", ["per_point", "pooled"])
def test_lira_online(world, variance):
    found, fell_back = formulas.lira_online(*world, variance=variance)
    all_in, all_out = ([pair[i] for pair in sides(world)] for i in (1, 2))
    _, gap = gaps(world)
    for i, (s, inside, outside) in enumerate(sides(world)):
        few_in, few_out = len(inside) < 2, len(outside) < 2
        own_in = pooled(*all_in) if variance == "pooled" or few_in else pooled(inside)
        own_out = pooled(*all_out) if variance == "pooled" or few_out else pooled(outside)
        above, below = completed(inside, outside, gap)
        expected = norm.logpdf(s, above, own_in**0.5) - norm.logpdf(s, below, own_out**0.5)
        assert found[i] == pytest.approx(expected, rel=1e-9)
        missing = not inside or not outside
        assert fell_back[i] == (missing or (variance == "per_point" and (few_in or few_out)))


def student(s, values, prior_mean, variance, kappa, nu):
    """Murphy 2007, eq. 100–110, by SciPy."""
    n, mean = len(values), statistics.fmean(values) if values else 0.0
    kappa_n, alpha = kappa + n, nu / 2 + n / 2
    location = (kappa * prior_mean + n * mean) / kappa_n
    beta = nu * variance / 2 + squares(values) / 2
    beta += kappa * n * (mean - prior_mean) ** 2 / (2 * kappa_n)
    scale = math.sqrt(beta * (kappa_n + 1) / (alpha * kappa_n))
    return t.logpdf(s, 2 * alpha, location, scale), location, scale


@pytest.mark.parametrize(("kappa", "nu"), [(1, 10), (0.3, 2.5)])
def test_bayesian_lira(world, kappa, nu):
    prior = {"variance": "bayesian", "kappa": kappa, "nu": nu}
    online, fell_back = formulas.lira_online(*world, **prior)
    offline, out_missing = formulas.lira_offline(*world, **prior)
    groups = [group for _, *pair in sides(world) for group in pair]
    outs = [outside for _, _, outside in sides(world)]
    _, gap = gaps(world)
    for i, (s, inside, outside) in enumerate(sides(world)):
        above, below = completed(inside, outside, gap)
        upper, _, _ = student(s, inside, below + gap, pooled(*groups), kappa, nu)
        lower, _, _ = student(s, outside, above - gap, pooled(*groups), kappa, nu)
        assert online[i] == pytest.approx(upper - lower, rel=1e-9)
        assert fell_back[i] == (not inside or not outside)
        _, location, scale = student(s, outside, above - gap, pooled(*outs), kappa, nu)
        assert offline[i] == pytest.approx(norm.logcdf((s - location) / scale), rel=1e-9)
        assert out_missing[i] == (not outside)


@pytest.mark.parametrize("variance", ["per_point", "pooled"])
def test_lira_offline(world, variance):
    found, fell_back = formulas.lira_offline(*world, variance=variance)
    outs = [outside for _, _, outside in sides(world)]
    _, gap = gaps(world)
    for i, (s, inside, outside) in enumerate(sides(world)):
        common = variance == "pooled" or len(outside) < 2
        deviation = math.sqrt(pooled(*outs) if common else pooled(outside))
        _, below = completed(inside, outside, gap)
        assert found[i] == pytest.approx(norm.logcdf((s - below) / deviation), rel=1e-9)
        assert fell_back[i] == (len(outside) < (2 if variance == "per_point" else 1))


def test_two_models_are_enough_for_a_variance_unless_they_agree():
    score = np.array([1.0, 2.0, 3.0])
    shadow = np.array([[0.0, 1, 0], [2, 1, 4], [0, 0, 0], [1, 1, 3]])
    one = np.tile([[True], [True], [False], [False]], 3)
    first, other = (2, (2 + 0 + 8) / 3, 8), (0.5, 0.5, 4.5)  # variances; those of point 1 pooled
    upper = norm.logpdf(score, [1, 1, 2], np.sqrt(first))
    lower = norm.logpdf(score, [0.5, 0.5, 1.5], np.sqrt(other))
    found, fell_back = formulas.lira_online(score, shadow, one, ~one)
    np.testing.assert_allclose(found, upper - lower, rtol=1e-12)
    assert fell_back.tolist() == [False, True, False]
    found, fell_back = formulas.lira_offline(score, shadow, ~one, one)
    expected = norm.logcdf(score, [1, 1, 2], np.sqrt(first))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert fell_back.tolist() == [False, True, False]


def agreeing(world, mask):
    """The same world, but all models of one side agree at every point."""
    score, shadow, is_in, is_out = world
    return score, np.where(mask, 0.75, shadow), is_in, is_out


@pytest.mark.parametrize("variance", ["per_point", "pooled"])
def test_a_side_that_agrees_everywhere_has_the_variance_of_both(world, variance):
    for agreed in (world[2], world[3]):
        here = agreeing(world, agreed)
        all_in, all_out = ([pair[i] for pair in sides(here)] for i in (1, 2))
        found, _ = formulas.lira_online(*here, variance=variance)
        offline, _ = formulas.lira_offline(*here, variance=variance)
        _, gap = gaps(here)
        for i, (s, inside, outside) in enumerate(sides(here)):
            deviations = []
            for one, every in ((inside, all_in), (outside, all_out)):
                own = pooled(one) if variance == "per_point" else 0
                common = pooled(*every) or pooled(*all_in, *all_out)
                deviations.append(math.sqrt(own or common))
            above, below = completed(inside, outside, gap)
            expected = norm.logpdf(s, above, deviations[0]) - norm.logpdf(s, below, deviations[1])
            assert found[i] == pytest.approx(expected, rel=1e-9)
            expected = norm.logcdf(s, below, deviations[1])
            assert offline[i] == pytest.approx(expected, rel=1e-9)


def test_where_all_models_agree_no_target_is_member_like(world):
    """Not even where one side scores higher than the other: there is no scale to tell by."""
    _, _, is_in, is_out = world
    score = np.linspace(-2, 2, POINTS)
    for variance in ("per_point", "pooled", "bayesian"):
        found, _ = formulas.lira_online(score, 1.0 * is_in, is_in, is_out, variance=variance)
        assert (found == 0).all()


def test_offline_scores_far_out_stay_apart():
    shadow = np.tile([[-1.0], [1.0]], (3, 3))
    is_out = np.ones((6, 3), dtype=bool)
    found, _ = formulas.lira_offline(np.array([-60.0, 5.0, 6.0]), shadow, ~is_out, is_out)
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(
    "spread",
    [
        pytest.param(np.zeros(POINTS), id="as alike as chance has it"),
        pytest.param(np.linspace(-4, 4, POINTS), id="apart"),
        pytest.param(np.full(POINTS, -3.0), id="below 0"),
        pytest.param(np.linspace(-11.5, 0.5, POINTS), id="apart and mostly below 0"),
    ],
)
def test_lira_shrunk(world, spread):
    """Where gaps are alike, where they differ by more than errors, and where most are negative."""
    score, shadow, is_in, is_out = world
    world = score, shadow + spread * is_in, is_in, is_out
    found, fell_back = formulas.lira_shrunk(*world)
    variance = pooled(*(group for _, *pair in sides(world) for group in pair))
    values, mean = gaps(world)
    errors = [variance * (1 / len(a) + 1 / len(b)) for _, a, b in sides(world) if a and b]
    between = max(0.0, statistics.variance(values) - statistics.fmean(errors))
    assert (between > 0) == (np.ptp(spread) > 0)
    for i, (s, inside, outside) in enumerate(sides(world)):
        if inside and outside:
            gap = statistics.fmean(inside) - statistics.fmean(outside)
            error = variance * (1 / len(inside) + 1 / len(outside))
            trust = between / (between + error)
            gain = max(0.0, trust * gap + (1 - trust) * max(mean, 0))
        else:
            gain = max(mean, 0)
        centred = [v - gain / 2 for v in inside] + [v + gain / 2 for v in outside]
        expected = gain / variance * (s - statistics.fmean(centred))
        assert found[i] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert fell_back[i] == (not inside or not outside)


def test_no_gain_is_negative():
    """Where in models score lower by chance, LiRA turns the score round, and this does not."""
    shadow = np.array([[0.0, 5], [0.2, 5.2], [1.0, 0], [1.2, 0.2]])  # first point: gap of −1
    is_in = np.array([[True], [True], [False], [False]]).repeat(2, axis=1)
    low = formulas.lira_shrunk(np.array([0.0, 0.0]), shadow, is_in, ~is_in)[0]
    high = formulas.lira_shrunk(np.array([2.0, 0.0]), shadow, is_in, ~is_in)[0]
    assert high[0] >= low[0]


def probabilities(world):
    score, shadow, is_in, is_out = world
    return 1 / (1 + np.exp(-score)), 1 / (1 + np.exp(-shadow)), is_in, is_out


@pytest.mark.parametrize("gamma", [1.0, 1.1, 2.0])
@pytest.mark.parametrize("a", [None, 0.0, 0.3, 1.0])
def test_rmia_compares_every_point_with_every_other(world, gamma, a):
    given = probabilities(world)
    ratios = []
    for p, inside, outside in sides(given):
        in_mean = statistics.fmean(inside or outside)
        out_mean = statistics.fmean(outside or inside)
        both = (in_mean + out_mean) / 2
        ratios.append(p / (both if a is None else ((1 + a) * out_mean + 1 - a) / 2))
    if a is None:
        found, fell_back = formulas.rmia_online(*given, gamma=gamma)
    else:
        found, fell_back = formulas.rmia_offline(*given, gamma=gamma, a=a)
    # r(x)/r(z) ≥ γ, divided as `share_below` does so that both round alike
    expected = [sum(z <= x / gamma for z in ratios) / POINTS for x in ratios]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    missing = [not outside or (a is None and not inside) for _, inside, outside in sides(given)]
    assert fell_back.tolist() == missing


def test_rmia_where_every_model_is_certain_of_zero():
    shadow, is_in = np.zeros((4, 3)), np.tile([[True], [False]], (2, 3))
    found, _ = formulas.rmia_online(np.zeros(3), shadow, is_in, ~is_in)
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_rmia_asks_only_how_probabilities_compare(world):
    """A thousandth of a thousandth of every probability leaves every ratio as it is."""
    score, shadow, is_in, is_out = probabilities(world)
    found, _ = formulas.rmia_online(score, shadow, is_in, is_out, gamma=1.1)
    small, _ = formulas.rmia_online(score * 2.0**-60, shadow * 2.0**-60, is_in, is_out, gamma=1.1)
    assert np.array_equal(small, found)
    assert len(set(found)) > 4


def test_attack_r_counts_out_models_that_score_the_same():
    shadow = np.array([[0.5], [0.5], [0.2], [0.9]])
    is_out = np.array([[True], [False], [True], [True]])
    assert formulas.attack_r(np.array([0.5]), shadow, ~is_out, is_out)[0] == [2 / 3]


def test_attack_r(world):
    found, fell_back = formulas.attack_r(*world)
    for i, (s, _, outside) in enumerate(sides(world)):
        expected = sum(o <= s for o in outside) / len(outside) if outside else 0.5
        assert found[i] == pytest.approx(expected)
        assert fell_back[i] == (not outside)


SEEING = {
    "lira_online": formulas.lira_online,
    "lira_online_pooled": partial(formulas.lira_online, variance="pooled"),
    "lira_online_bayes": partial(formulas.lira_online, variance="bayesian"),
    "lira_offline": formulas.lira_offline,
    "lira_offline_pooled": partial(formulas.lira_offline, variance="pooled"),
    "lira_offline_bayes": partial(formulas.lira_offline, variance="bayesian"),
    "lira_shrunk": formulas.lira_shrunk,
    "rmia_online": formulas.rmia_online,
    "rmia_offline": formulas.rmia_offline,
    "attack_r": formulas.attack_r,
}
PLAIN = {
    "offset": formulas.offset,
    "watson": partial(formulas.offset, w=0.0),
    "standardized": partial(formulas.offset, w="counts", k=1.0),
    "shrunk scale": partial(formulas.offset, k=1.0, scale="shrunk"),
}


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("count", [0, 1])
def test_no_or_one_out_model_for_all_points(world, name, count):
    """Defined, finite, and counted as falling back where it must be."""
    score, shadow, _, _ = probabilities(world)
    is_out = np.zeros(shadow.shape, dtype=bool)
    is_out[:count] = True
    found, fell_back = SEEING[name](score, shadow, ~is_out, is_out)
    assert np.isfinite(found).all()
    wants = 2 if name in ("lira_online", "lira_offline") else 1
    assert fell_back.all() == fell_back.any() == (count < wants)


@pytest.mark.parametrize("name", [*SEEING, *PLAIN])
def test_constant_scores_say_nothing(name):
    """All models alike and the target too, so that rounding is all that could tell points apart.

    0.4 is not the mean of three 0.4 in floating point, and the counts differ from point to point.
    """
    score, shadow = np.full((2, 5), 0.4), np.full((2, 9, 5), 0.4)
    is_in = np.tile(np.arange(9)[:, None] < [3, 4, 5, 6, 7], (2, 1, 1))
    with np.errstate(all="raise"):
        found = (SEEING | PLAIN)[name](score, shadow, is_in, ~is_in)
    values = found[0] if name in SEEING else found
    assert values.tolist() == np.full((2, 5), values[0, 0]).tolist()
    if not name.startswith(("rmia", "attack_r", "lira_offline")):
        assert (values == 0).all()


@pytest.mark.parametrize("name", [*SEEING, *PLAIN])
def test_targets_do_not_see_each_other(world, name):
    score, shadow, is_in, is_out = probabilities(usable(world))
    other = score[::-1], shadow[:, ::-1], is_in[:, ::-1], is_out[:, ::-1]
    both = [np.stack(pair) for pair in zip((score, shadow, is_in, is_out), other, strict=True)]
    function = (SEEING | PLAIN)[name]
    together, alone = function(*both), function(score, shadow, is_in, is_out)
    if name in SEEING:
        together, alone = together[0], alone[0]
    np.testing.assert_allclose(together[0], alone, rtol=1e-12)
    np.testing.assert_allclose(together[1], alone[::-1], rtol=1e-9)


def test_the_share_of_fall_backs_is_recorded(world):
    score, shadow, is_in, _ = world
    columns = np.arange(POINTS)[np.newaxis]
    found = calibrate(formulas.lira_online, score[np.newaxis], shadow, is_in, columns)
    # Points 0 … 4 have fewer than two models on a side.
    assert found.fallback_rate == pytest.approx(5 / POINTS)
    assert copes_with_gaps(SEEING["lira_online_bayes"])
    assert not copes_with_gaps(PLAIN["offset"])


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (formulas.offset, {"w": -0.1}, r"`w` must be a number in \[0, 1\] or counts, got -0.1"),
        (formulas.offset, {"w": 1.01}, "got 1.01"),
        (formulas.offset, {"w": "most"}, "got 'most'"),
        (formulas.offset, {"w": float("nan")}, "got nan"),
        (formulas.offset, {"k": -1}, "`k` must be a finite number of at least 0, got -1"),
        (formulas.offset, {"k": float("inf")}, "got inf"),
        (formulas.offset, {"centre": "mode"}, "`centre` must be one of mean, median, got mode"),
        (formulas.offset, {"scale": "some"}, "`scale` must be one of all, within"),
        (formulas.lira_online, {"variance": "none"}, "`variance` must be one of per_point, pooled"),
        (formulas.lira_online, {"kappa": 0}, "`kappa` must be a finite number above 0, got 0"),
        (formulas.lira_offline, {"nu": -2.0}, "`nu` must be a finite number above 0, got -2.0"),
        (
            formulas.rmia_online,
            {"gamma": 0.5},
            "`gamma` must be .* of at least 1, got 0.5",
        ),
        (formulas.rmia_online, {"gamma": float("nan")}, "got nan"),
        (formulas.rmia_offline, {"a": 1.5}, r"`a` must be a number in \[0, 1\], got 1.5"),
        (formulas.rmia_offline, {"a": -0.5}, "got -0.5"),
    ],
)
def test_arguments_out_of_range(world, function, arguments, words):
    with pytest.raises(InputError, match=words):
        function(*probabilities(usable(world)), **arguments)


@pytest.mark.parametrize("function", [formulas.rmia_online, formulas.rmia_offline])
@pytest.mark.parametrize(
    ("value", "told"), [(-1e-9, "-1e-09 …"), (1.0001, "… 1"), (np.nan, "nan … nan")]
)
def test_rmia_wants_probabilities(world, function, value, told):
    score, *rest = probabilities(usable(world))
    score[2] = value
    with pytest.raises(InputError, match=rf"scores must be in \[0, 1\] .*got .*{told}"):
        function(score, *rest)
    score[:2], score[2] = [0, 1], 0.5
    found, _ = function(score, *rest)
    assert found[0] == 1 / len(score)  # 0 beats itself alone
    assert np.isfinite(found).all()
