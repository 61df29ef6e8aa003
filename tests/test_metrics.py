import math
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cached_property

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from mico_exp.scores import metrics
from mico_exp.scores.inference import compute_metrics

GOLDEN_METRICS = ("loss", "confidence", "mod_entropy")
NAMES = (*GOLDEN_METRICS, "logit", "margin", "entropy", "mod_entropy_stable")
METRICS = {name: getattr(metrics, name) for name in NAMES}


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "calibration.npz")


@pytest.mark.parametrize("name", GOLDEN_METRICS)
def test_golden(golden, name):
    logits, labels = torch.from_numpy(golden["logits"]), torch.from_numpy(golden["labels"])
    found = METRICS[name](logits, labels).double().numpy()
    expected = golden[f"metric_{name}"]
    assert np.abs(found - expected).max() <= 5e-5 * expected.std()


def _softmax(logits):
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return [w / math.fsum(weights) for w in weights]


@pytest.mark.parametrize("label", [0, 1, 2])
def test_against_the_definition_by_hand(label):
    logits = [1.25, -0.5, 0.75]
    p = _softmax(logits)
    z, y = torch.tensor([logits]), torch.tensor([label])
    assert metrics.loss(z, y).item() == pytest.approx(math.log(p[label]), abs=3e-7)
    assert metrics.confidence(z, y).item() == pytest.approx(p[label], abs=1e-7)
    entropy = -(1 - p[label]) * math.log(p[label])
    entropy -= sum(q * math.log(1 - q) for c, q in enumerate(p) if c != label)
    assert metrics.mod_entropy(z, y).item() == pytest.approx(-entropy, abs=1e-6)
    assert metrics.mod_entropy_stable(z, y).item() == pytest.approx(-entropy, abs=1e-12)
    assert metrics.logit(z, y).item() == pytest.approx(math.log(p[label] / (1 - p[label])))
    others = max(q for c, q in enumerate(logits) if c != label)
    assert metrics.margin(z, y).item() == logits[label] - others
    plain = sum(q * math.log(q) for q in p)
    assert metrics.entropy(z, y).item() == pytest.approx(plain, abs=1e-12)


def test_confident_points_stay_in_order():
    z = torch.tensor([[18.0, 0.0], [20.0, 0.0], [25.0, 0.0], [30.0, 0.0]])
    y = torch.zeros(4, dtype=torch.int64)
    far = torch.tensor([[60.0, 0.0, -1.0], [90.0, 0.0, -1.0], [500.0, 0.0, -1.0]])
    expected = torch.tensor([60.0, 90.0, 500.0]).double() - math.log(1 + math.exp(-1))
    for shift in (-400.0, -80.0, 0.0, 50.0, 80.0, 400.0):  # which changes no probability
        found = metrics.scaled_logit(far + shift, y[:3])
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert (torch.sigmoid(z[:, 0]) == 1).all()  # what float32 makes of it
    for metric in (metrics.loss, metrics.confidence, metrics.scaled_logit):
        assert (metric(z, y).diff() > 0).all()


def test_extreme_logits_stay_finite():
    z = torch.tensor([[400.0, -400.0, 0.0], [-400.0, 400.0, 0.0], [0.0, 0.0, 0.0]])
    for metric in METRICS.values():
        assert torch.isfinite(metric(z, torch.zeros(3, dtype=torch.int64))).all()


def test_two_classes_give_the_exact_difference():
    z, y = torch.tensor([[3.5, 1.25]]), torch.tensor([1])
    assert Fraction(metrics.scaled_logit(z, y).item()) == Fraction(-9, 4)


@pytest.mark.parametrize("name", METRICS)
def test_models_stack_and_higher_means_surer(name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=generator)
    labels = torch.randint(4, (5,), generator=generator)
    stacked = METRICS[name](logits, labels)
    alone = torch.stack([METRICS[name](logits[m], labels) for m in range(3)])
    # Vectorised functions may round the last digit of a value by where in memory it lies.
    torch.testing.assert_close(stacked, alone, rtol=1e-15, atol=0)
    surer = logits.clone()
    surer[:, torch.arange(5), labels] += 9 if name == "entropy" else 1  # which knows no label
    assert (METRICS[name](surer, labels) > stacked).all()


def test_modified_entropy_that_never_saturates():
    """Against whole numbers of a hundred digits, where floats of any size have given up."""
    z = torch.tensor(
        [[30.0, 0.0, -1.0], [0.0, 30.0, -1.0], [0.0, 200.0, -300.0], [500.0, 0.0, 1.0]]
    )
    y = torch.zeros(4, dtype=torch.int64)
    found = metrics.mod_entropy_stable(z, y)
    with localcontext(prec=400):
        for row, value in zip(z.tolist(), found.tolist(), strict=True):
            weights = [Decimal(v).exp() for v in row]
            p = [w / sum(weights) for w in weights]
            expected = (1 - p[0]) * p[0].ln() + sum(q * (1 - q).ln() for q in p[1:])
            assert value == pytest.approx(float(expected), rel=1e-12, abs=1e-300)
    saturated = metrics.mod_entropy(z[:1], y[:1]), metrics.mod_entropy(z[3:], y[3:])
    assert saturated[0] == saturated[1] == 0  # which the stable form tells apart
    assert found[0] < found[3] <= 0


def test_two_classes_make_margin_and_logit_the_same():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 2, generator=generator)
    labels = torch.randint(2, (40,), generator=generator)
    torch.testing.assert_close(metrics.margin(logits, labels), metrics.logit(logits, labels))


def test_metrics_of_one_pass_share_what_they_need_and_are_unchanged_by_it(monkeypatch):
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(2, 40, 7), torch.randint(7, (40,))
    every = {name: getattr(metrics, name) for name in NAMES}
    alone = {name: metric(logits, labels) for name, metric in every.items()}
    calls, real = [], metrics.Softmax.log_p.func
    shared = cached_property(lambda self: calls.append(self) or real(self))
    shared.__set_name__(metrics.Softmax, "log_p")
    monkeypatch.setattr(metrics.Softmax, "log_p", shared)
    found = dict(compute_metrics(every, logits, labels))
    assert len(calls) == 1
    assert all(torch.equal(found[name], alone[name]) for name in NAMES)
