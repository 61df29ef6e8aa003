"""Training with coarser products than float32: what it is, and that DP-SGD stays what it is."""

import functools

import pytest
import torch
from conftest import tiny_recipe
from test_dp_proof import gradients
from torch import nn
from torch.nn.functional import cross_entropy

from mico_exp.challenge.records import Features
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import MLP
from mico_exp.models.ray_workers import Ray
from mico_exp.models.workers import Local
from mico_exp.training import loop, per_sample
from mico_exp.training.building import build
from mico_exp.training.loop import train_networks
from mico_exp.training.steps import Draws, Plan, Privacy

RECORDS, BATCH, CLIP, CLASSES = 40, 8, 0.3, 3
CPU, COARSE = torch.device("cpu"), "bfloat16"
SGD = functools.partial(torch.optim.SGD, lr=0.5)


class Scaled(nn.Module):
    """A parameter that no layer holds, beside layers of several kinds."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.factors = nn.Parameter(torch.ones(4))
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(4), nn.Flatten()),
            *(nn.Dropout(dropout), nn.Linear(64, CLASSES)),
        )

    def forward(self, x):
        return self.layers(x.view(-1, 1, 6, 6)) * self.factors[:CLASSES]


def mlp():
    return MLP([36, 9, CLASSES])


def data(large=1.0):
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (RECORDS,), generator=random)
    return Features(torch.randn(RECORDS, 36, generator=random) * large, labels)


def fresh(make, seed=0):
    torch.manual_seed(seed)
    return make()


@pytest.fixture(params=["as one", "ghost", "at once", "in turn"])
def way(request, monkeypatch):
    """Each way that gradients are clipped; gives a network that it is of."""
    if request.param == "as one":
        return mlp
    monkeypatch.setattr(loop, "_can_stack", lambda *_: False)
    forced = {"at once": per_sample.AtOnce, "in turn": per_sample.InTurn}
    if request.param in forced:
        monkeypatch.setattr(loop, "study", lambda *_: forced[request.param])
    return Scaled


def seen(make, records, privacy, precision, batch=BATCH, steps=3):
    return gradients(make, records, privacy, steps, 2, batch, precision=precision)


def test_without_privacy_it_is_autocasts(monkeypatch):
    records, plan = data(), Plan(5, BATCH, SGD, precision=COARSE)
    network, other = fresh(Scaled), fresh(Scaled)
    train_networks(
        [network], records, [range(RECORDS)], plan, [torch.Generator().manual_seed(1)], None, CPU
    )
    optimizer = SGD(other.parameters())
    draws = Draws(torch.Generator().manual_seed(1), CPU)
    for some in draws.batches(plan, RECORDS, None):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = other(records.features[some])
        optimizer.zero_grad()
        cross_entropy(logits.float(), records.labels[some]).backward()
        optimizer.step()
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert network(records.features).dtype is torch.float32  # afterwards all is as it was


def test_gradients_are_coarser_and_near(way):
    """Within a few units of bfloat16's last place, 2⁻⁸, and not those of float32."""
    coarse, exact = (seen(way, data(), Privacy(0.0, CLIP), one) for one in (COARSE, "float32"))
    error = float((coarse - exact).norm() / exact.norm())
    assert 1e-5 < error < 0.03


def test_a_record_moves_the_sum_by_no_more_than_c_however_coarse_its_gradient(way):
    """Sums of batches of one: as long as C to float32's last places, for norms and sums are so."""
    privacy, steps = Privacy(0.0, CLIP), 12
    found = seen(way, data(large=30.0), privacy, COARSE, 1, steps).norm(dim=2) / CLIP
    drawn = [Draws(torch.Generator().manual_seed(seed), CPU) for seed in (1, 2)]
    sizes = [
        [len(some) for some in one.batches(Plan(steps, 1, SGD), RECORDS, privacy)] for one in drawn
    ]
    alone = found[torch.tensor(sizes).T == 1]
    assert len(alone) > 5
    assert (alone - 1).abs().max() < 1e-5


def test_the_noise_is_in_float32(way):
    """It has all digits, where bfloat16 has three."""
    records = data()
    noisy, quiet = (seen(way, records, Privacy(s, CLIP), COARSE) for s in (1.5, 0.0))
    noise = ((noisy - quiet) * BATCH / (1.5 * CLIP)).float()
    assert abs(float(noise.std()) - 1) < 0.1
    assert not torch.equal(noise, noise.bfloat16().float())


def test_a_build_tells_its_precision_and_is_refused_with_another(tmp_path, digits):
    plans = [Plan(3, 16, SGD, precision=one) for one in (COARSE, "float32")]
    recipes = [tiny_recipe(plan=one, models={"train": 2, "dev": 0, "final": 0}) for one in plans]
    build(tmp_path, recipes[0], digits)
    assert '"precision": "bfloat16"' in next(tmp_path.rglob("build.json")).read_text()
    with pytest.raises(InputError, match="precision"):
        build(tmp_path, recipes[1], digits)


@pytest.mark.parametrize("precision", ["float16", None, 16])
def test_a_precision_that_is_none(precision):
    with pytest.raises(InputError, match="`precision` must be one of float32, tf32, bfloat16"):
        Plan(1, 1, SGD, precision=precision)


def test_a_processor_has_no_tf32_and_nothing_is_begun(tmp_path, digits):
    plan, generator = Plan(1, BATCH, SGD, precision="tf32"), torch.Generator()
    with pytest.raises(InputError, match="`precision` = tf32 is of CUDA's products, not of cpu's"):
        train_networks([mlp()], data(), [range(RECORDS)], plan, [generator], None, CPU)
    recipe = tiny_recipe(plan=Plan(1, 16, SGD, precision="tf32"))
    for workers in (Local(), Ray(num_workers=1)):
        with pytest.raises(InputError, match="`precision` = tf32 is of CUDA's products"):
            build(tmp_path, recipe, digits, "cpu", workers)
    assert not list(tmp_path.rglob("build.json"))
