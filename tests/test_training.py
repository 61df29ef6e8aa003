"""The hand-written gradient against autograd, and DP-SGD against Opacus."""

import functools
import math

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from mico_exp.models.architectures import MLP
from mico_exp.training import stacked
from mico_exp.training.steps import Plan, Privacy, poisson_batches, privatise, shuffled_batches

WIDTHS = [6, 5, 4, 3]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mlps = stacked.initial_mlps(3, WIDTHS, generator)
    inputs = torch.randn(3, 8, 6, generator=generator)
    labels = torch.randint(3, (3, 8), generator=generator)
    return mlps, inputs, labels


def alone(mlps, i):
    model = MLP(WIDTHS)
    model.load_state_dict(mlps.states()[i])
    return model


def test_gradients_are_autograds(batch):
    mlps, inputs, labels = batch
    weight = torch.rand(3, 8, generator=torch.Generator().manual_seed(1))
    found = stacked.gradients(mlps, inputs, labels, weight)
    for i in range(3):
        model = alone(mlps, i)
        losses = nn.functional.cross_entropy(model(inputs[i]), labels[i], reduction="none")
        (losses * weight[i]).sum().backward()
        for ours, parameter in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(ours[i], parameter.grad)


@pytest.mark.parametrize("clip_norm", [0.05, 0.8, 100.0])
def test_clipping_is_per_record(batch, clip_norm):
    mlps, inputs, labels = batch
    found = stacked.gradients(mlps, inputs, labels, torch.ones(3, 8), clip_norm)
    model = alone(mlps, 1)
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for x, y in zip(inputs[1], labels[1], strict=True):
        loss = nn.functional.cross_entropy(model(x), y)
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient))
        for total, g in zip(expected, gradient, strict=True):
            total += g * min(1.0, clip_norm / norm)
    for ours, total in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[1], total, rtol=1e-4, atol=1e-6)


def test_one_step_is_that_of_opacus_with_the_noise_off(batch):
    mlps, inputs, labels = batch
    clip_norm, rate, expected_batch = 0.4, 0.3, 8
    model = alone(mlps, 2)
    private = GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=rate),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=expected_batch,
    )
    nn.functional.cross_entropy(private(inputs[2].clone().requires_grad_()), labels[2]).backward()
    optimizer.step()

    steps = stacked.gradients(mlps, inputs, labels, torch.ones(3, 8), clip_norm)
    quiet = Privacy(noise_multiplier=0.0, clip_norm=clip_norm)
    generator = torch.Generator().manual_seed(0)
    for parameter, step in zip(mlps.parameters, steps, strict=True):
        parameter -= rate * privatise(step, quiet, expected_batch, generator)
    for ours, theirs in zip(mlps.states()[2].values(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.05, 0.4])
def test_a_step_of_training_is_that_of_opacus_on_the_same_poisson_batch(clip_norm):
    """`train` itself: its own batch, clipped record by record, over the expected batch size."""
    generator = torch.Generator().manual_seed(0)
    mlps = stacked.initial_mlps(2, WIDTHS, generator)
    start = alone(mlps, 1)
    inputs = torch.randn(2, 40, 6, generator=generator)
    labels = torch.randint(3, (2, 40), generator=generator)
    plan = Plan(1, 10, functools.partial(torch.optim.SGD, lr=0.5))
    privacy = Privacy(noise_multiplier=0.0, clip_norm=clip_norm)
    stacked.train(mlps, inputs, labels, plan, torch.Generator().manual_seed(3), privacy)

    drawn = torch.rand(2, 40, generator=torch.Generator().manual_seed(3)) < 10 / 40
    private = GradSampleModule(start)
    optimizer = DPOptimizer(
        torch.optim.SGD(start.parameters(), lr=0.5),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=10,
    )
    batch = inputs[1, drawn[1]].requires_grad_()
    nn.functional.cross_entropy(private(batch), labels[1, drawn[1]]).backward()
    optimizer.step()
    for ours, theirs in zip(mlps.states()[1].values(), start.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch_size": 0}, {"steps": 1.5}, {"steps": True}]
)
def test_a_plan_that_cannot_be(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Plan(**{"steps": 1, "batch_size": 1, "optimizer": torch.optim.SGD, **change})


def test_the_noise_has_its_scale_and_is_fresh():
    privacy = Privacy(noise_multiplier=1.5, clip_norm=0.4)
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(400, 500)
    noise = privatise(zeros, privacy, 32, generator)
    expected = 1.5 * 0.4 / 32
    # The standard error of a standard deviation from n draws is σ/√(2n): 0.16 % here.
    assert noise.std().item() == pytest.approx(expected, rel=0.01)
    assert abs(noise.mean().item()) < 5 * expected / math.sqrt(noise.numel())
    again = privatise(zeros, privacy, 32, generator)
    assert abs(torch.corrcoef(torch.stack([noise.ravel(), again.ravel()]))[0, 1]) < 0.02


def test_training_adds_that_noise():
    """With inputs of zero gradient there is only noise, and the steps show its scale."""
    generator = torch.Generator().manual_seed(0)
    mlps = stacked.initial_mlps(50, [40, 10], generator)
    before = mlps.parameters[0].clone()
    plan = Plan(1, 16, functools.partial(torch.optim.SGD, lr=1.0))
    privacy = Privacy(noise_multiplier=2.0, clip_norm=0.5)
    labels = torch.zeros(50, 64, dtype=torch.int64)
    stacked.train(mlps, torch.zeros(50, 64, 40), labels, plan, generator, privacy)
    moved = mlps.parameters[0] - before
    assert moved.std().item() == pytest.approx(2.0 * 0.5 / 16, rel=0.03)


def test_poisson_batches_draw_each_record_at_the_rate():
    generator = torch.Generator().manual_seed(0)
    batches = poisson_batches(20, 300, 0.1, generator)
    counts = torch.zeros(20, 300)
    sizes = []
    for _, (indices, present) in zip(range(500), batches, strict=False):
        sizes.append(present.sum(dim=1))
        counts.scatter_add_(1, indices, present)
        for row, here in zip(indices, present.bool(), strict=True):
            assert len(row[here].unique()) == here.sum()
    # Binomial(500, 0.1): mean 50, standard deviation 6.7.
    assert counts.mean().item() == pytest.approx(50, abs=0.5)
    assert counts.std().item() == pytest.approx(6.7, abs=0.3)
    # The batch size is Binomial(300, 0.1) and not fixed: standard deviation 5.2.
    assert torch.cat(sizes).std().item() == pytest.approx(5.2, abs=0.3)


def test_shuffled_batches_visit_every_record_once_an_epoch():
    batches = shuffled_batches(4, 50, 16, torch.Generator().manual_seed(0))
    epoch = [indices for _, (indices, _) in zip(range(4), batches, strict=False)]
    assert [indices.shape[1] for indices in epoch] == [16, 16, 16, 2]
    orders = torch.cat(epoch, dim=1)
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert not torch.equal(orders[0], orders[1])


def test_a_stack_trains_as_each_would_alone():
    """Same batches, same start: stacked training is torch's own, model by model."""
    generator = torch.Generator().manual_seed(0)
    mlps = stacked.initial_mlps(3, WIDTHS, generator)
    starts = mlps.states()
    inputs = torch.randn(3, 20, 6, generator=generator)
    labels = torch.randint(3, (3, 20), generator=generator)
    optimizer = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    stacked.train(mlps, inputs, labels, Plan(12, 8, optimizer), torch.Generator().manual_seed(7))
    for i in range(3):
        model = MLP(WIDTHS)
        model.load_state_dict(starts[i])
        step = optimizer(model.parameters())
        batches = shuffled_batches(3, 20, 8, torch.Generator().manual_seed(7))
        for _, (indices, _) in zip(range(12), batches, strict=False):
            some = indices[i]
            step.zero_grad()
            nn.functional.cross_entropy(model(inputs[i, some]), labels[i, some]).backward()
            step.step()
        for ours, theirs in zip(mlps.states()[i].values(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_initial_weights_are_those_of_torch():
    mlps = stacked.initial_mlps(200, [64, 32], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    theirs = torch.stack([nn.Linear(64, 32).weight for _ in range(200)])
    assert mlps.parameters[0].abs().max() <= 1 / 8
    assert mlps.parameters[0].std().item() == pytest.approx(theirs.std().item(), rel=0.01)
    assert mlps.parameters[1].abs().max() <= 1 / 8
