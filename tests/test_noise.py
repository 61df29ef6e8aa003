"""The noise of DP-SGD over 10,000 draws, as the optimiser is given it: mean and covariance.

Gradients are nothing here, as each network is sure of each record's class, so that a step is the
noise and no more: records are drawn, gone through and clipped all the same (few, for speed). In
units of σC / batch all of it must be independent standard normal numbers. Everything looked at is
a sum of squares, χ² by theory; sums of squared correlations are nearly so at this many draws, to
1 % of their spread. Where the noise is right all tests of a way together fail with a chance of at
most 1e-6.
"""

import functools
import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from test_dp_proof import BATCH, CLIP, RECORDS, SIGMA, gradients

from mico_exp.challenge.records import Features
from mico_exp.models.architectures import MLP
from mico_exp.training import loop, stacked
from mico_exp.training.steps import Plan, Privacy

WIDTHS, MODELS, STEPS = (3, 6, 6), 4, 2500
SIZES = [18, 6, 36, 6]  # numbers of each parameter, in turn
PRIVACY, RATE = Privacy(SIGMA, CLIP), 0.2 / RECORDS
FALSE_ALARM = 5e-7  # half of what is told, for squared correlations are only nearly χ²


def sure():
    """A network that gives class 0 all of the probability, to the last bit."""
    network = MLP(WIDTHS)
    with torch.no_grad():
        list(network.parameters())[-1][0] = 1000
    return network


def by_network(patch, as_one):
    """As other than plain recipes are trained: as one or in turn, each with noise of its own."""
    if not as_one:
        patch.setattr(loop, "_can_stack", lambda *_: False)
    records = Features(torch.randn(RECORDS, 3), torch.zeros(RECORDS, dtype=torch.int64))
    return gradients(sure, records, PRIVACY, STEPS, MODELS, sample_rate=RATE)


def with_one_stream(_):
    """As plain recipes are: one generator for all."""
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self):
            every = [one.grad.flatten(1) for one in self.param_groups[0]["params"]]
            seen.append(torch.cat(every, dim=1))

    mlps = sure().stack([sure().state_dict() for _ in range(MODELS)])
    inputs, labels = torch.randn(MODELS, RECORDS, 3), torch.zeros(MODELS, RECORDS).long()
    plan = Plan(STEPS, BATCH, functools.partial(Recorder, lr=1.0))
    stacked.train(mlps, inputs, labels, plan, torch.Generator().manual_seed(0), PRIVACY)
    return torch.stack(seen).double()


WAYS = {
    "one stream": with_one_stream,
    "as one": functools.partial(by_network, as_one=True),
    "in turn": functools.partial(by_network, as_one=False),
}


@pytest.fixture(scope="module", params=WAYS)
def noise(request):
    """(steps, models, D) of a way, in units of σC / batch."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        found = WAYS[request.param](patch) * BATCH / (SIGMA * CLIP)
    assert found.shape == (STEPS, MODELS, sum(SIZES))
    return found


def crossed(a, b):
    """Squared correlations of all numbers of a (n, D) with all of b (n, E): χ², and D·E."""
    return float((a.T @ b).square().sum()) / len(a), a.shape[1] * b.shape[1]


def alike(a, b):
    """Squared correlation of numbers in the same places, of all together."""
    return float((a * b).sum().square()) / a.numel(), 1


def within(a):
    """The same of all pairs of numbers of a (n, D)."""
    width = a.shape[1]
    return float((a.T @ a).triu(1).square().sum()) / len(a), width * (width - 1) // 2


def looked_at(noise):
    """All that is looked at in the noise (steps, models, D): by name χ² and its degrees."""
    rows = noise.flatten(0, 1)
    parts = rows.split(SIZES, dim=1)
    looked = {"mean": (float(rows.mean(dim=0).square().sum()) * len(rows), rows.shape[1])}
    for i, part in enumerate(parts):
        looked[f"spread of {i}"] = float(part.square().sum()), part.numel()
        looked[f"within {i}"] = within(part)
    for (i, one), (j, other) in itertools.combinations(enumerate(parts), 2):
        looked[f"between {i} and {j}"] = crossed(one, other)
    for i, j in itertools.combinations(range(MODELS), 2):
        looked[f"models {i} and {j}"] = crossed(noise[:, i], noise[:, j])
        looked[f"models {i} and {j}, place by place"] = alike(noise[:, i], noise[:, j])
    for i in range(MODELS):
        looked[f"steps of {i}"] = crossed(noise[1:, i], noise[:-1, i])
        looked[f"steps of {i}, place by place"] = alike(noise[1:, i], noise[:-1, i])
    return looked


def improbable(noise):
    """What in the noise is too far from theory, of all that is looked at and of single pairs."""
    looked, rows = looked_at(noise), noise.flatten(0, 1)
    limit = FALSE_ALARM / (len(looked) + 1)
    far = {
        name
        for name, (found, degrees) in looked.items()
        if 2 * min(chi2.sf(found, degrees), chi2.cdf(found, degrees)) < limit
    }
    pairs = (rows.T @ rows).triu(1).square() / len(rows)
    is_one_far = chi2.sf(float(pairs.max()), 1) * pairs.count_nonzero() < limit
    return far | {"a pair"} if is_one_far else far


def test_ten_thousand_draws_are_as_theory_has_them(noise):
    assert noise.shape[0] * noise.shape[1] == 10_000
    assert improbable(noise) == set()


def shared(like, *axes, share=0.05):
    """Mix in what is the same along some axes, so that all along them correlate by the share."""
    shape = [1 if axis in axes else size for axis, size in enumerate(like.shape)]
    common = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=like.dtype)
    return math.sqrt(1 - share) * like + math.sqrt(share) * common


def in_one(noise, place, change):
    parts = list(noise.split(SIZES, dim=2))
    parts[place] = change(parts[place])
    return torch.cat(parts, dim=2)


def one_pair(noise, share=0.1):
    found = noise.clone()
    found[..., 0] = math.sqrt(1 - share**2) * noise[..., 0] + share * noise[..., 40]
    return found


FAULTS = {
    "2 % more": lambda noise: noise * 1.02,
    "2 % less": lambda noise: noise / 1.02,
    "2 % more of one bias": lambda noise: in_one(noise, 1, lambda one: one * 1.02),
    "a mean": lambda noise: noise + 0.02,
    "correlated in a model": lambda noise: shared(noise, 2),
    "correlated in a weight": lambda noise: in_one(noise, 2, lambda one: shared(one, 2)),
    "correlated models": lambda noise: shared(noise, 1),
    "correlated steps": lambda noise: shared(noise, 0),
    "one pair of numbers": one_pair,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_small_fault_is_found(noise, fault):
    assert improbable(FAULTS[fault](noise))
