"""What DP-SGD promises, looked for in what training does; seeded faults are found by it.

The checks see nothing but gradients that reach the optimiser (audit.md, "Seeded bugs"):

- sampling: records whose gradients lie in directions of their own show, step by step, which were
  drawn, how long each gradient is after clipping, and what the sum is divided by;
- noise: the same training with the noise and without it, of which the difference is the noise;
- sensitivity: replay on neighbouring data with the same batches and the same noise;
- empty batches: noise and a step each;
- accounting: σ against another accountant.
"""

import functools
import math

import pytest
import torch
from opacus.accountants import PRVAccountant
from torch import nn

from mico_exp.challenge.records import Features
from mico_exp.models.architectures import MLP
from mico_exp.training import accountant, ghost, loop, per_sample, stacked, steps
from mico_exp.training.loop import train_networks
from mico_exp.training.steps import Plan, Privacy

RECORDS, BATCH, CLIP, SIGMA, CLASSES = 40, 8, 0.3, 1.5, 3
RATE = BATCH / RECORDS


def gradients(make, records, privacy, steps_made=1, models=1, batch=BATCH, **of_plan):
    """Gradients (steps, models, D) that the optimiser is given; the weights stay as they are."""
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self):
            every = [one.grad for group in self.param_groups for one in group["params"]]
            seen.append([one.detach().clone() for one in every])

    plan = Plan(steps_made, batch, functools.partial(Recorder, lr=1.0), **of_plan)
    networks = []
    for _ in range(models):
        torch.manual_seed(0)
        networks.append(make())
    own = [list(range(RECORDS))] * models
    generators = [torch.Generator().manual_seed(seed) for seed in range(1, models + 1)]
    cpu = torch.device("cpu")
    assert train_networks(networks, records, own, plan, generators, privacy, cpu) == [None] * models
    stacked = len(seen) == steps_made and seen[0][0].shape[0] == models and models > 1
    if stacked:
        rows = [torch.cat([one.flatten(1) for one in step], dim=1) for step in seen]
        return torch.stack(rows).double()
    rows = [torch.cat([one.flatten() for one in step]) for step in seen]
    return torch.stack(rows).view(models, -1, rows[0].numel()).transpose(0, 1).double()


def check_sampling():
    """Each record at rate q, by itself, whole, and over the expected batch."""
    records = Features(torch.eye(RECORDS), torch.zeros(RECORDS, dtype=torch.int64))
    made, models = 70, 2
    found = gradients(lambda: MLP([RECORDS, CLASSES]), records, Privacy(0.0, CLIP), made, models)
    assert len(found) == made, "steps"
    columns = found[..., : CLASSES * RECORDS].unflatten(2, (CLASSES, RECORDS)).norm(dim=2)
    drawn = (columns * BATCH / (CLIP / math.sqrt(2))).flatten(0, 1)  # half of it is the bias's
    assert torch.allclose(drawn, drawn.round(), atol=1e-3), "clipped gradients over the batch"
    assert drawn.max() <= 1.001, "a record comes once"
    drawn, count = drawn.round(), made * models
    error = math.sqrt(RATE * (1 - RATE) / count)
    assert (drawn.mean(dim=0) - RATE).abs().max() < 4.5 * error, "each record's rate"
    assert abs(drawn.mean() - RATE) < 4 * error / math.sqrt(RECORDS), "the rate"
    variance = RECORDS * RATE * (1 - RATE)
    sizes = drawn.sum(dim=1)
    assert abs(sizes.var() / variance - 1) < 5 * math.sqrt(2 / count), "the sizes' spread"
    late = drawn.view(made, models, RECORDS)
    overlap = (late[1:] * late[:-1]).mean()
    assert abs(overlap - RATE**2) < 5 * RATE / math.sqrt(count * RECORDS), "steps by themselves"


def check_noise():
    """Normal, of standard deviation σC / batch, without correlation of any two."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (RECORDS,), generator=random)
    records = Features(torch.randn(RECORDS, 3, generator=random), labels)
    found = [
        gradients(lambda: MLP([3, 2, CLASSES]), records, Privacy(sigma, CLIP), 40, 3)
        for sigma in (SIGMA, 0.0)
    ]
    noise = (found[0] - found[1]) * BATCH / (SIGMA * CLIP)
    rows = noise.flatten(0, 1)
    count, width = rows.shape
    assert rows.mean(dim=0).norm() < 1.6 * math.sqrt(width / count), "mean"
    assert abs(rows.std() - 1) < 4 / math.sqrt(2 * rows.numel()), "scale"
    covariance = rows.T @ rows / count
    assert (covariance - torch.eye(width)).abs().max() < 5 * math.sqrt(2 / count), "covariance"
    assert abs((noise[1:] * noise[:-1]).mean()) < 4 / math.sqrt(rows.numel()), "anew each step"
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 4 / math.sqrt(rows.numel()), "each model"
    assert abs((rows**4).mean() - 3) < 5 * math.sqrt(96 / rows.numel()), "normal"


class Gated(nn.Module):
    """A network for which a record of zeros is none: its gradient vanishes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))

    def forward(self, x):
        return self.layers(x) * (x != 0).any(dim=1, keepdim=True)


def check_sensitivity():
    """One record more or less moves the gradient by at most C / batch, and a large one by that."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(RECORDS, 6, generator=random) * 20
    labels = torch.randint(CLASSES, (RECORDS,), generator=random)
    moved = []
    whole = gradients(Gated, Features(features, labels), Privacy(SIGMA, CLIP), batch=RECORDS)
    for gone in range(1, RECORDS, 5):  # the first is one that the network is tried at
        fewer = features.clone()
        fewer[gone] = 0
        other = gradients(Gated, Features(fewer, labels), Privacy(SIGMA, CLIP), batch=RECORDS)
        moved.append(float((whole - other).norm()) * RECORDS / CLIP)
    assert max(moved) <= 1 + 1e-4, "at most C / batch"
    assert max(moved) >= 1 - 1e-3, "and no less"


def check_empty():
    """At a batch of one a third of all is empty: noise all the same."""
    records = Features(torch.randn(RECORDS, 6), torch.zeros(RECORDS, dtype=torch.int64))
    found = gradients(Gated, records, Privacy(SIGMA, CLIP), 30, batch=1)
    assert len(found) == 30
    assert abs(found.std() / (SIGMA * CLIP) - 1) < 0.15


def check_accounting():
    """By another accountant σ spends ε at δ, and not much less."""
    asked = 3.0, 1e-5, RATE, 50
    theirs = PRVAccountant()
    theirs.history = [(accountant.noise_multiplier(*asked), RATE, 50)]
    assert 0 <= asked[0] - theirs.get_epsilon(asked[1], eps_error=0.01) < 0.03


CHECKS = [check_sampling, check_noise, check_empty, check_sensitivity, check_accounting]


@pytest.fixture(params=["as one", "in turn"])
def how(request, monkeypatch):
    """MLPs as one, or each by itself as other networks are."""
    if request.param == "in turn":
        monkeypatch.setattr(loop, "_can_stack", lambda *_: False)
    return request.param


@pytest.mark.parametrize("check", CHECKS[:2])
def test_both_ways_pass(how, check):
    check()


@pytest.mark.parametrize("check", CHECKS[2:])
def test_the_right_code_passes(check):
    check()


# ---------------------------------------------------------------- seeded faults

PRIVATISE, POISSON, BATCHES = steps.privatise, steps.poisson_batches, steps.Draws.batches
FACTORS, SIGMA_FOR, GHOST = per_sample._factors, accountant.noise_multiplier, per_sample.Ghost
drawn_last = [0]


def privatised(change):
    """A fault in how noise is added."""

    def seed(patch):
        for module in (loop, stacked):
            patch.setattr(module, "privatise", change)
        patch.setattr(steps.Draws, "batches", noted)

    return seed


def noted(draws, *asked):
    for positions in BATCHES(draws, *asked):
        drawn_last[0] = len(positions)
        yield positions


def batches(change):
    """A fault in what is drawn."""

    def faulty(draws, plan, records, privacy):
        for positions in BATCHES(draws, plan, records, privacy):
            yield change(positions)

    return lambda patch: patch.setattr(steps.Draws, "batches", faulty)


def poisson(change):
    return lambda patch: patch.setattr(steps, "poisson_batches", change)


def factors(change):
    return lambda patch: patch.setattr(per_sample, "_factors", change)


def first_unclipped(squares, clip_norm):
    found = FACTORS(squares, clip_norm)
    return torch.where(torch.arange(len(found)) == 0, 1.0, found)


def the_same_noise(total, privacy, size, generator):
    again = torch.Generator().manual_seed(total.numel())
    return PRIVATISE(total, privacy, size, again)


def noise_for_each_record(total, privacy, size, generator):
    found = total
    for _ in range(drawn_last[0]):
        found = PRIVATISE(found, privacy, 1, generator)
    return found / size


def with_replacement(models, records, rate, generator):
    while True:
        size = round(rate * records)
        yield torch.randint(records, (models, size), generator=generator), torch.ones(models, size)


def fixed(models, records, rate, generator):
    return steps.shuffled_batches(models, records, round(rate * records), generator)


def the_same_batch(models, records, rate, generator):
    first = next(iter(POISSON(models, records, rate, generator)))
    while True:
        yield first


def without_bias(patch):
    """The norm forgets biases, after the comparison with autograd has passed."""

    def faulty(*asked):
        make = per_sample.study(*asked)
        right = ghost.Dense.squared_norms
        patch.setattr(
            ghost.Dense,
            "squared_norms",
            lambda one: right(ghost.Dense(one.inputs, one.signals, bias=False)),
        )
        return make

    patch.setattr(loop, "study", faulty)


def each_layer_clipped(patch):
    def faulty(way, inputs, labels, clip_norm, sums):
        for i in range(len(sums)):
            alone = [torch.zeros_like(one) for one in sums]
            names = list(way.parameters)[i : i + 1]
            parts = {name: way.parameters[name] for name in names}
            losses = per_sample.InTurn(way.network, parts)(
                inputs, labels, clip_norm, alone[i : i + 1]
            )
            sums[i] += alone[i]
        return losses

    patch.setattr(per_sample.Ghost, "__call__", faulty)


def the_mean_clipped(patch):
    right = per_sample.Ghost.__call__

    def faulty(way, inputs, labels, clip_norm, sums):
        losses = right(way, inputs, labels, math.inf, sums)
        norm = torch.stack([one.square().sum() for one in sums]).sum().sqrt()
        for one in sums:
            one *= min(1.0, clip_norm * len(labels) / float(norm))
        return losses

    patch.setattr(per_sample.Ghost, "__call__", faulty)


def empty_left_out(patch):
    right = loop._Model._step

    def faulty(model, wanted, draws):
        return right(model, wanted, draws) if len(wanted) else torch.tensor(0.0)

    patch.setattr(loop._Model, "_step", faulty)


def half(total, privacy, size, generator):
    less = Privacy(privacy.noise_multiplier / 2, privacy.clip_norm)
    return PRIVATISE(total, less, size, generator)


def without_clip_norm(total, privacy, size, generator):
    return PRIVATISE(total, Privacy(privacy.noise_multiplier, 1.0), size, generator)


def over_the_real_batch(total, privacy, size, generator):
    return PRIVATISE(total, privacy, max(1, drawn_last[0]), generator)


def sigma(change):
    return lambda patch: patch.setattr(accountant, "noise_multiplier", change)


FAULTS = {
    "noise halved": (privatised(half), check_noise),
    "noise without C": (privatised(without_clip_norm), check_noise),
    "noise reused between steps": (privatised(the_same_noise), check_noise),
    "noise added before the sum": (privatised(noise_for_each_record), check_noise),
    "the real batch for the expected one": (privatised(over_the_real_batch), check_sampling),
    "clipping off by √2": (factors(lambda s, c: FACTORS(s, c * math.sqrt(2))), check_sensitivity),
    "clipping by squares": (factors(lambda s, c: FACTORS(s.square(), c)), check_sampling),
    "one record's gradient unclipped": (factors(first_unclipped), check_sampling),
    "the bias forgotten": (without_bias, check_sensitivity),
    "each layer clipped by itself": (each_layer_clipped, check_sensitivity),
    "the mean clipped": (the_mean_clipped, check_sensitivity),
    "no Poisson sampling": (poisson(fixed), check_sampling),
    "drawn with replacement": (poisson(with_replacement), check_sampling),
    "the same batch every step": (poisson(the_same_batch), check_sampling),
    "the rate of whole batches": (
        poisson(lambda m, n, q, g: POISSON(m, n, 1 / (n * q), g)),
        check_sampling,
    ),
    "a batch cut at its mean": (batches(lambda positions: positions[:BATCH]), check_sampling),
    "empty batches left out": (empty_left_out, check_empty),
    "sigma rounded down": (
        sigma(lambda *asked: math.floor(SIGMA_FOR(*asked) * 10) / 10),
        check_accounting,
    ),
    "delta ignored": (sigma(lambda e, _, q, s: SIGMA_FOR(e, 1e-2, q, s)), check_accounting),
}
ANY_WAY = [*list(FAULTS)[:5], "no Poisson sampling", "a batch cut at its mean"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(fault, monkeypatch):
    monkeypatch.setattr(loop, "_can_stack", lambda *_: False)
    seed, check = FAULTS[fault]
    seed(monkeypatch)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("fault", ANY_WAY)
def test_a_seeded_fault_in_mlps_as_one_is_found(fault, monkeypatch):
    seed, check = FAULTS[fault]
    seed(monkeypatch)
    with pytest.raises(AssertionError):
        check()
