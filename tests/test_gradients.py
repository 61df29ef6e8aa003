"""White-box metrics against their definitions, with every gradient written out."""

import numpy as np
import pytest
import torch
from torch import nn

from mico_exp.challenge.datasets import Features
from mico_exp.common.errors import InputError, MetricError
from mico_exp.models import backprop, planning
from mico_exp.models.architectures import CNN, MLP
from mico_exp.scores import gradients, white_box
from mico_exp.scores.gradients import View
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.white_box import GradientRunner, reference_of

RECORDS, POINTS = 40, np.array([3, 17, 29, 5, 38])


@pytest.fixture(scope="module")
def world():
    """A trained MLP, so that its gradients are not all alike, in float64; and its records."""
    torch.manual_seed(0)
    features, labels = torch.randn(RECORDS, 7), torch.arange(RECORDS) % 4
    model = MLP([7, 6, 4])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
    return model.double().eval().requires_grad_(False), features.double(), labels


def rows(world, function):
    """Gradient of `function(logits, label)` at every record: a row (N, D); weights first."""
    model, features, labels = world
    found = []
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    for x, y in zip(features, labels, strict=True):
        grads = torch.autograd.grad(function(model(x[None])[0], y), parameters)
        found.append(torch.cat([joined(*pair) for pair in pairs(grads)]))
    for parameter in parameters:
        parameter.requires_grad_(False)
    return torch.stack(found)


def pairs(parameters):
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def joined(weight, bias):
    """(O, F + 1), flat row by row."""
    return torch.cat([weight, bias[:, None]], dim=1).flatten()


def loss(z, y):
    return nn.functional.cross_entropy(z[None], y[None])


def softened(z, y, temperature=2.0):
    others = torch.cat([z[:y], z[y + 1 :]])
    return z[y] - temperature * torch.logsumexp(others / temperature, dim=0)


def traced(model, inputs, among=None):
    return backprop.trace(
        model, inputs, planning.plan_of(model, inputs if among is None else among)
    )


def view(world, some=None):
    model, features, labels = world
    some = torch.arange(RECORDS) if some is None else some
    return View(
        traced(model, features[some], features), labels[some], torch.zeros(len(some)).bool()
    )


def halves(world):
    return (view(world, torch.arange(RECORDS)[part]) for part in (slice(15), slice(15, None)))


def ready(metric, views, records):
    return metric.prepare(metric.observe(views), records)


def test_norm(world):
    metric = gradients.GradNorm()
    found = metric.score(view(world), ready(metric, [], 0))
    torch.testing.assert_close(found, -rows(world, loss).norm(dim=1))


def test_the_loss_of_sure_points_still_has_a_gradient():
    """In float32 p_y rounds to 1, and p_y − 1 to 0; the gradient is −7.7e-9 all the same."""
    logits = torch.tensor([[20.0, 0.0, 1.0], [-3.0, 14.0, 2.0]])
    labels = torch.tensor([0, 1])
    exact = logits.double().requires_grad_(True)
    nn.functional.cross_entropy(exact, labels, reduction="sum").backward()
    found = gradients.loss_signal(logits, labels)
    torch.testing.assert_close(found.double(), exact.grad, rtol=1e-5, atol=0)


def test_the_projection_is_of_the_weights_on_minus_the_gradient(world):
    found = gradients.CanaryProjection().score(view(world), None)
    for score, row in zip(found.tolist(), rows(world, loss), strict=True):
        assert score == pytest.approx(-(weights_of(world) @ row / row.norm()).item(), rel=1e-9)


def test_alignment_is_with_the_mean_gradient_of_the_class(world):
    metric = gradients.GradAlignment()
    found = metric.score(view(world), ready(metric, halves(world), RECORDS))
    grads, labels = rows(world, loss), world[2]
    for i in range(RECORDS):
        expected = -grads[i] @ grads[labels == labels[i]].mean(dim=0)
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_class_without_reference_scores_nothing(world):
    metric = gradients.GradAlignment()
    only = view(world, torch.arange(RECORDS)[world[2] == 1])
    found = metric.score(view(world), ready(metric, [only], RECORDS))
    assert (found[world[2] != 1] == 0).all()
    assert (found[world[2] == 1] != 0).all()


@pytest.mark.parametrize("cut", [19, 2])
def test_alignment_whether_a_class_has_no_reference_one_or_many(world, cut):
    """Pairs of records in place of a mean gradient are less for up to 3 and 2 of them."""
    labels = world[2]
    some = torch.cat([torch.where(labels == c)[0][:n] for c, n in ((3, 10), (1, 1), (2, 2))])
    some = some[torch.randperm(len(some))]
    metric = gradients.GradAlignment()
    prepared = ready(metric, (view(world, part) for part in some.split(cut)), RECORDS)
    assert prepared.keys() == {1, 2, 3}
    kinds = {label: [type(part) for part in pull.total] for label, pull in prepared.items()}
    assert kinds[1] == kinds[2] == [backprop.Outer, backprop.Outer]
    assert kinds[3] == [torch.Tensor, torch.Tensor]
    found, grads = metric.score(view(world), prepared), rows(world, loss)
    for i in range(RECORDS):
        same = grads[some[labels[some] == labels[i]]]
        expected = -grads[i] @ same.mean(dim=0) if len(same) else torch.zeros(())
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-9)


def weights_of(world):
    return torch.cat([joined(*pair) for pair in pairs(list(world[0].parameters()))])


def test_a_representers_score_is_the_ridge_coefficient(world):
    """At every reference record, by solving for the coefficients with all gradients written out."""
    metric = gradients.Representer(damping=0.1)
    found = metric.score(view(world), ready(metric, halves(world), RECORDS))
    g = rows(world, softened)
    gram = g @ g.T
    ridge = 0.1 * gram.diagonal().mean()
    coefficients = torch.linalg.solve(
        gram + ridge * torch.eye(RECORDS, dtype=gram.dtype), g @ weights_of(world)
    )
    torch.testing.assert_close(found, coefficients * gram.diagonal().mean(), rtol=1e-8, atol=1e-10)


def inverse_of(world, grads, records, damping):
    """(N·A⊗S + μ)⁻¹ of both layers, with the Kronecker products written out."""
    model, features, labels = world
    mu = damping * grads.square().sum(dim=1).mean()
    trace = traced(model, features)
    layers = trace.back(gradients.logit_signal(trace.logits, labels, 2.0))
    blocks = []
    for layer in layers:
        a, s = layer.inputs[:, 0], layer.signals[:, 0]
        kron = torch.kron(s.T @ s / len(s), a.T @ a / len(a))
        blocks.append(torch.linalg.inv(records * kron + mu * torch.eye(len(kron)).double()))
    return torch.block_diag(*blocks), mu


def test_kronecker_is_the_written_out_inverse(world):
    metric = gradients.Kronecker(damping=0.2)
    found = metric.score(view(world), ready(metric, halves(world), 90))
    g = rows(world, softened)
    inverse, _ = inverse_of(world, g, 90, 0.2)
    pull = g.sum(dim=0)
    share = (pull @ inverse @ weights_of(world)) / (pull @ inverse @ pull)
    expected = g @ inverse @ (weights_of(world) - share * pull)
    scale = g.square().sum(dim=1).mean()
    torch.testing.assert_close(found, expected * scale, rtol=1e-7, atol=1e-9)


def test_fewer_records_than_inputs(world):
    """The eigenbasis of the inputs does not span them; the result is the same."""
    few = (world[0], world[1][:5], world[2][:5])
    metric = gradients.Kronecker(damping=0.2)
    here = View(traced(few[0], few[1]), few[2], torch.zeros(5).bool())
    prepared = ready(metric, [here], 5)
    assert not prepared.curvatures[0].complete
    g = rows(few, softened)
    inverse, _ = inverse_of(few, g, 5, 0.2)
    pull = g.sum(dim=0)
    share = (pull @ inverse @ weights_of(few)) / (pull @ inverse @ pull)
    direction = inverse @ (weights_of(few) - share * pull)
    found = metric.score(view(world), prepared)
    scale = g.square().sum(dim=1).mean()
    expected = rows(world, softened) @ direction * scale
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    layers = metric.layers(view(world))
    leverage = sum(c.leverage(one) for c, one in zip(prepared.curvatures, layers, strict=True))
    every = rows(world, softened)
    expected = (every @ inverse * every).sum(dim=1)
    torch.testing.assert_close(leverage, expected, rtol=1e-6, atol=1e-9)


def test_a_known_member_is_left_out_of_its_own_score(world):
    """It has pulled at the mean gradient that is taken out, and gets its own part back."""
    metric = gradients.DisclosedKronecker(damping=0.2)
    prepared = ready(metric, halves(world), RECORDS)
    asked = view(world)
    known = torch.arange(RECORDS) < 4
    told = View(asked.trace, asked.labels, known)
    found, plain = metric.score(told, prepared), metric.score(asked, prepared)
    assert torch.equal(found[4:], plain[4:])
    g = rows(world, softened)
    inverse, _ = inverse_of(world, g, RECORDS, 0.2)
    pull = g.sum(dim=0)
    share = (pull @ inverse @ weights_of(world)) / (pull @ inverse @ pull)
    scale = g.square().sum(dim=1).mean()
    for i in range(4):
        expected = g[i] @ inverse @ (weights_of(world) - share * (pull - g[i])) * scale
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-7)


METRICS = {
    "grad_norm": gradients.GradNorm(),
    "grad_alignment": gradients.GradAlignment(reference=30),
    "representer": gradients.Representer(reference=25),
    "kfac": gradients.Kronecker(reference=25),
    "kfac_high": gradients.Kronecker(reference=25, damping=1.0),  # shares what the other has seen
    "kfac_cold": gradients.Kronecker(reference=25, temperature=0.5),
}


@pytest.fixture
def records(world):
    return Features(world[1].float(), world[2])


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_the_runner_gives_the_same_in_any_batches(world, records, batch_size):
    model = in_float32(world)
    runner = GradientRunner(ModelRunner(Processor("cpu", batch_size=batch_size)))
    found = runner.scores(model, records, POINTS, METRICS)
    for name, metric in METRICS.items():
        seen = torch.from_numpy(reference_of(metric, RECORDS))
        assert len(seen) == (metric.reference or 0)
        prepared = ready(metric, [view(world, seen)], RECORDS)
        expected = metric.score(view(world, torch.from_numpy(POINTS)), prepared)
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=2e-3, atol=1e-4)


def in_float32(world):
    model = MLP([7, 6, 4])
    model.load_state_dict({k: v.float() for k, v in world[0].state_dict().items()})
    return model.eval().requires_grad_(False)


EVERY = {
    "grad_norm": gradients.GradNorm(),
    "grad_alignment": gradients.GradAlignment(reference=12),
    "representer": gradients.Representer(reference=12),
    "kfac": gradients.Kronecker(reference=None),
}


@pytest.mark.parametrize(
    "points",
    [
        np.random.default_rng(0).permutation(RECORDS)[:33],  # all records are scored for them
        np.array([30, 2, 2, *range(5, 38), *range(4)]),  # as many as there are records
        np.array([30, 2, 2, 7]),
    ],
)
@pytest.mark.parametrize(("most", "traces"), [(None, 1), (RECORDS, 1), (25, 4)])
def test_records_among_those_of_the_last_view_are_not_run_again(
    world, records, points, most, traces, monkeypatch
):
    """25 at once are less than a reference of 40: then 12 are looked at once, and the points."""
    seen = []
    real = backprop.trace
    monkeypatch.setattr(white_box, "trace", lambda *some: seen.append(0) or real(*some))
    runner = GradientRunner(ModelRunner(Processor("cpu", batch_size=most)))
    found = runner.scores(in_float32(world), records, points, EVERY)
    assert len(seen) == traces + (most == 25 and len(points) > 25)
    for name, metric in EVERY.items():
        reference = torch.from_numpy(reference_of(metric, RECORDS))
        prepared = ready(metric, [view(world, reference)], RECORDS)
        expected = metric.score(view(world, torch.from_numpy(points)), prepared)
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=2e-3, atol=1e-4)


def test_a_part_of_a_view_is_the_view_of_those_points(world):
    place = torch.tensor([30, 2, 11, 7])
    whole, alone = view(world), view(world, place)
    part = whole.at(place, "a name")
    assert torch.equal(part.labels, alone.labels)
    signal = torch.randn(4, 4, dtype=torch.float64)
    pairs_of = [
        (part.of_loss(), alone.of_loss()),
        (part.of_logit(2.0), alone.of_logit(2.0)),
        (part.trace.back(signal), alone.trace.back(signal)),
    ]
    for ours, theirs in pairs_of:
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.inputs, other.inputs)
            torch.testing.assert_close(one.signals, other.signals)
    assert part.of_loss()[0].known is part.of_logit(2.0)[0].known
    assert whole.at(place).of_loss()[0].known is not part.of_loss()[0].known


class Lifting(nn.Module):
    """Its inputs with 0 in place of what is below, which it may write into them."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, inputs):
        return inputs.relu_() if self.inplace else inputs.relu()


def test_models_that_change_their_inputs_share_none(world, records):
    """One after another, at points within the reference and at others."""
    found = []
    for inplace in (False, True):
        known = white_box.Reference()
        runner = GradientRunner(ModelRunner(Processor("cpu")))
        model = nn.Sequential(Lifting(inplace), in_float32(world))
        asked = (np.arange(RECORDS), POINTS, np.arange(RECORDS))
        found.append([runner.scores(model, records, some, EVERY, known=known) for some in asked])
        assert bool(known._given) != inplace
    for plain, writing in zip(*found, strict=True):
        for name in EVERY:
            np.testing.assert_allclose(writing[name], plain[name], rtol=1e-4, atol=1e-6)


def test_a_model_that_is_not_finite_scores_nan(records):
    model = MLP([7, 6, 4]).eval().requires_grad_(False)
    next(iter(model.parameters()))[0, 0] = torch.nan
    found = GradientRunner(ModelRunner(Processor("cpu"))).scores(model, records, POINTS, METRICS)
    assert found.keys() == METRICS.keys()
    assert all(np.isnan(values).all() for values in found.values())


def test_the_reference_is_always_the_same_and_part_of_a_larger_one():
    few, more = (reference_of(gradients.Kronecker(reference=n), 1000) for n in (10, 20))
    assert set(few) < set(more)
    assert (np.diff(more) > 0).all()
    every = reference_of(gradients.Kronecker(reference=None), 1000)
    assert np.array_equal(every, np.arange(1000))
    told = np.array([7, 2, 9])
    disclosed = gradients.DisclosedKronecker(reference=5)
    assert reference_of(disclosed, 1000, told).tolist() == [2, 7, 9]
    with pytest.raises(MetricError, match="needs a scenario that discloses"):
        reference_of(disclosed, 1000)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: gradients.Kronecker(damping=0),
            "`damping` must be .* above 0, got 0",
        ),
        (
            lambda: gradients.Representer(temperature=-1.0),
            "`temperature` must be .* above 0",
        ),
        (lambda: gradients.Kronecker(damping=float("nan")), "got nan"),
        (
            lambda: gradients.GradAlignment(reference=0),
            "`reference` must be .* 1 or null",
        ),
        (lambda: gradients.Representer(reference=2.5), "got 2.5"),
    ],
)
def test_arguments_out_of_range(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_representer_needs_a_dense_layer():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(2), nn.AvgPool1d(900), nn.Flatten())
    trace = traced(model.requires_grad_(False), torch.randn(4, 3, 32, 32))
    here = View(trace, torch.tensor([0, 1, 0, 1]), torch.zeros(4).bool())
    with pytest.raises(InputError, match="needs a dense layer"):
        ready(gradients.Kronecker(), [here], 4)
    cnn = CNN().eval().requires_grad_(False)
    trace = traced(cnn, torch.randn(4, 3, 32, 32))
    here = View(trace, torch.arange(4), torch.zeros(4).bool())
    metric = gradients.Kronecker()
    assert torch.isfinite(metric.score(here, ready(metric, [here], 4))).all()
