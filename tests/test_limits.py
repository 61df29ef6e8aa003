"""Ceiling and floor as lines about a ROC curve: from what an audit told, and from a claim."""

import numpy as np
import pytest
from conftest import SIZES
from matplotlib.colors import to_hex
from mlflow import MlflowClient
from omegaconf import OmegaConf

from mico_exp.auditing import ceiling
from mico_exp.auditing.limits import limit_of_claim, limits_of
from mico_exp.challenge.phases import CALLED
from mico_exp.challenge.tree import load_scenario
from mico_exp.challenge.truth import read_truth
from mico_exp.common.errors import InputError
from mico_exp.config.scenario import claim
from mico_exp.results.cell import read_validation
from mico_exp.results.plots import PHASE_STYLE, SCENARIO_STYLES, Curve, png, roc_plot
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


@pytest.mark.parametrize(("epsilon", "delta"), [(4.0, 1e-5), (0.5, 0.1), (3.0, 0.0), (800.0, 1e-5)])
def test_a_claim_alone_allows_what_both_inequalities_do(epsilon, delta):
    line = limit_of_claim(epsilon, delta)
    assert line.label == f"allowed by (ε, δ) = ({epsilon:g}, {delta:g}) alone, add/remove"
    for fpr, tpr in zip(line.fpr, line.tpr, strict=True):
        grown = np.exp(min(epsilon, 700.0)) * fpr + delta
        assert tpr == pytest.approx(min(grown, 1 - np.exp(-epsilon) * (1 - delta - fpr), 1.0))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"epsilon": None, "delta": 2.0}, None),
        ({"epsilon": 4.0, "delta": 1e-6}, (4.0, 1e-6)),
        ({"epsilon": 4.0, "delta": 0}, (4.0, 0.0)),
        ({"epsilon": 4.0, "delta": None}, (4.0, 1e-5)),
        ({"epsilon": 4.0}, (4.0, 1e-5)),
    ],
)
def test_what_an_option_claims(option, expected):
    assert claim(OmegaConf.create(option)) == expected


@pytest.mark.parametrize("option", [{"epsilon": 4.0, "delta": 2.0}, {"epsilon": -1.0}])
def test_what_no_option_can_claim(option):
    with pytest.raises(InputError, match=r"`scenario\.(delta|epsilon)` must be"):
        claim(OmegaConf.create(option))


@pytest.mark.parametrize(("scenario", "limits"), [("lo", [limit_of_claim(4.0, 1e-5)]), ("inf", [])])
def test_a_cell_draws_what_its_scenarios_claim_allows(swept, tmp_path, scenario, limits):
    """The artifact is, byte for byte, the plot of its predictions with that line."""
    client = MlflowClient(f"sqlite:///{swept[0] / 'mlflow.db'}")
    told = f"params.scenario = '{scenario}' and params.metric = 'loss' and params.formula = '1'"
    (cell,) = client.search_runs(["1"], told)
    drawn, file = (
        swept[0] / "mlruns" / "digits" / cell.info.run_id / "artifacts" / name
        for name in ("roc.png", "predictions.npz")
    )
    found = load_scenario(swept[0] / "data", "digits", f"digits_{scenario}", SIZES)
    solution, validated = read_validation(file)
    known = {"train": solution, **read_truth(swept[0] / "data", found)}
    curves = []
    with np.load(file) as predictions:
        for phase, truth in known.items():
            curve = roc(truth, predictions[phase])
            rows = (truth, validated) if phase == "train" else ()
            curves.append(Curve(CALLED[phase], curve, truth.size, PHASE_STYLE[phase], *rows))
    title = f"digits_{scenario}: metric loss, formula 1"
    assert drawn.read_bytes() == png(roc_plot(title, curves, limits))
    assert drawn.read_bytes() != png(roc_plot(title, curves, [limit_of_claim(1.0, 1e-5)]))
