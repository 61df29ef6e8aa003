"""Gradients by layers against autograd, one point at a time, for every family of models."""

import json
import math

import pytest
import torch
import worlds
from torch import nn

from mico_exp.common.errors import InputError
from mico_exp.models import architectures, backprop, planning
from mico_exp.models.architectures import CNN, MLP
from mico_exp.scores.gradients import logit_signal, loss_signal

POINTS, CLASSES = 6, 10


class Odd(nn.Module):
    """What the competition's networks lack: strides, dilation, padding, and no bias."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 5, 3, stride=2, dilation=2, padding=1, bias=False),
            nn.GELU(),
            nn.Conv2d(5, 4, (1, 3), padding=(0, 2)),
            nn.Flatten(),
            nn.Linear(4 * 15 * 17, CLASSES, bias=False),
        )

    def forward(self, inputs):
        return self.net(inputs)


def roberta(folder):
    (folder / "config.json").write_text(json.dumps(worlds.ROBERTA))
    return architectures.roberta(folder)


@pytest.fixture(params=["mlp", "cnn", "odd", "roberta"])
def family(request, tmp_path):
    """A model, inputs, labels (P,) and the parameters that gradients are taken of."""
    torch.manual_seed(1)
    made = {"mlp": lambda: MLP([12, 16, CLASSES]), "cnn": CNN, "odd": Odd}
    if request.param == "roberta":
        model = roberta(tmp_path).eval().requires_grad_(False)
        ids = torch.randint(3, 400, (POINTS, 9))
        mask = torch.ones_like(ids)
        ids[2, 5:], mask[2, 5:] = 1, 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        return model, inputs, torch.arange(POINTS) % 2, list(model.network.classifier.parameters())
    model = made[request.param]().eval().requires_grad_(False)
    inputs = torch.randn((POINTS, 12) if request.param == "mlp" else (POINTS, 3, 32, 32))
    return model, inputs, torch.arange(POINTS) % CLASSES, list(model.parameters())


def at(inputs, some):
    return {k: v[some] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[some]


def one_by_one(family, function):
    """Gradient of `function(logits, label)` at every point, flat: (P, parameters)."""
    model, inputs, labels, parameters = family
    rows = []
    for parameter in parameters:
        parameter.requires_grad_(True)
    for i in range(POINTS):
        value = function(model(at(inputs, [i])), labels[i : i + 1]).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    for parameter in parameters:
        parameter.requires_grad_(False)
    return torch.stack(rows)


def traced(model, inputs, some=None):
    cut = inputs if some is None else at(inputs, some)
    return backprop.trace(model, cut, planning.plan_of(model, inputs))


def flat(family, direction):
    """A direction as one row, in the order of the parameters."""
    model, inputs, _, parameters = family
    plan = planning.plan_of(model, inputs)
    assert not plan.rest
    assert {unit.rule for unit in plan.units.values()} == {backprop.LAYER}
    parts = []
    for place, part in zip(plan.units, direction, strict=True):
        layer = model.get_submodule(place)
        width = part.shape[1] - (layer.bias is not None)
        parts.append(part[:, :width].flatten())
        parts += [part[:, width]] if layer.bias is not None else []
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in parts)
    return torch.cat(parts)


def scaled_logit(logits, labels):
    """log p − log(1 − p) of the true class."""
    chance = logits.double().softmax(dim=-1)[torch.arange(len(labels)), labels]
    return (chance / (1 - chance)).log()


SIGNALS = {
    "loss": (loss_signal, lambda z, y: nn.functional.cross_entropy(z, y, reduction="none")),
    "logit": (lambda z, y: logit_signal(z, y, 1.0), scaled_logit),
}


@pytest.mark.parametrize("signal", SIGNALS)
def test_against_autograd(family, signal):
    model, inputs, labels, _ = family
    send, function = SIGNALS[signal]
    trace = traced(model, inputs)
    torch.testing.assert_close(trace.logits, model(inputs))
    layers = trace.back(send(trace.logits, labels))
    expected = one_by_one(family, function)
    near = {"rtol": 2e-3, "atol": 1e-4 * expected.abs().max().item()}

    found = backprop.squared_norms(layers)
    torch.testing.assert_close(found, expected.square().sum(dim=1), rtol=1e-3, atol=1e-6)
    factors = torch.randn(POINTS)
    direction = backprop.total(layers, factors)
    torch.testing.assert_close(flat(family, direction), factors @ expected, **near)
    inner = backprop.along(layers, direction)
    scale = inner.abs().max().item()
    torch.testing.assert_close(inner, expected @ (factors @ expected), rtol=2e-3, atol=2e-4 * scale)
    some = torch.tensor([4, 1])
    torch.testing.assert_close(backprop.squared_norms(backprop.at(layers, some)), found[some])


def test_weights_are_those_of_the_parameters(family):
    model, inputs, labels, parameters = family
    trace = traced(model, inputs)
    layers = trace.back(loss_signal(trace.logits, labels))
    held = backprop.weights(layers)
    expected = math.fsum(p.double().square().sum().item() for p in parameters)
    assert backprop.dot(held, held).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("outputs", "pairs"), [(1, False), (4000, True)])
def test_both_ways_to_a_convolutions_norm(outputs, pairs):
    """By pairs of positions where they are fewer than the weights, or else by the gradient."""
    inputs, signals = torch.randn(3, 7, 50), torch.randn(3, 7, outputs)
    layer = backprop.Layer(torch.zeros(outputs, 50), inputs, signals)
    assert (7 * (outputs + 50) < outputs * 50) == pairs
    whole = torch.einsum("pto,ptf->pof", signals, inputs)
    torch.testing.assert_close(
        layer.squared_norms(), whole.square().sum(dim=(1, 2)), rtol=1e-4, atol=1e-3
    )


def test_several_signals_from_one_trace(family):
    model, inputs, labels, _ = family
    trace = traced(model, inputs)
    first = backprop.squared_norms(trace.back(loss_signal(trace.logits, labels)))
    trace.back(logit_signal(trace.logits, labels, 2.0))
    again = backprop.squared_norms(trace.back(loss_signal(trace.logits, labels)))
    assert torch.equal(first, again)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_batches_joined(family):
    model, inputs, labels, _ = family
    parts = []
    for some in (slice(0, 2), slice(2, POINTS)):
        trace = traced(model, inputs, some)
        parts.append(trace.back(loss_signal(trace.logits, labels[some])))
    whole = traced(model, inputs)
    expected = backprop.squared_norms(whole.back(loss_signal(whole.logits, labels)))
    torch.testing.assert_close(backprop.squared_norms(backprop.joined(parts)), expected)


def test_what_has_no_gradient():
    with pytest.raises(InputError, match="ReLU has no parameters"):
        planning.plan_of(nn.ReLU(), torch.zeros(2, 3))
