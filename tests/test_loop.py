"""Training of any network: one semantics, whatever way its gradients are found."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from mico_exp.challenge.records import Features
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import MLP
from mico_exp.models.backprop import Plan as Seen
from mico_exp.training import loop, per_sample, steps
from mico_exp.training.loop import train_networks
from mico_exp.training.steps import Plan, Privacy, poisson_batches, shuffled_batches

CPU = torch.device("cpu")
SGD = functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9)


@pytest.fixture
def records():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 6, generator=generator)
    return Features(features, torch.randint(3, (30,), generator=generator))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def gens(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def train(model, records, plan, privacy=None, seed=3, own=range(30), **more):
    return train_networks([model], records, [list(own)], plan, gens(seed), privacy, CPU, **more)


def weights(model):
    return [one.detach().clone() for one in model.parameters()]


def test_without_privacy_it_is_torchs_own_training(records):
    model, expected = network(), network()
    schedule = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    own = list(range(4, 29))
    plan = Plan(9, 8, SGD, schedule)
    assert train(model, records, plan, own=own) == [None]
    optimizer = SGD(expected.parameters())
    source = source_of_batches(3)
    for step, (indices, _) in zip(range(9), shuffled_batches(1, 25, 8, source), strict=False):
        optimizer.param_groups[0]["lr"] = 0.5 * 0.5 ** (step // 4)  # an epoch is 4 steps
        some = torch.tensor(own)[indices[0]]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(expected(records.features[some]), records.labels[some])
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(expected))
    assert not model.training


def test_dp_sgd_is_its_definition(records):
    model, expected, told = network(), network(), []
    plan = Plan(5, 6, SGD)
    done = train(model, records, plan, Privacy(0.0, 0.3), after_step=told.append)
    assert done == [None]
    optimizer = SGD(expected.parameters())
    source = source_of_batches(3)
    for _, (indices, _) in zip(range(5), poisson_batches(1, 30, 0.2, source), strict=False):
        sums = [torch.zeros_like(one) for one in expected.parameters()]
        for i in indices[0]:
            loss = nn.functional.cross_entropy(expected(records.features[i]), records.labels[i])
            found = torch.autograd.grad(loss, list(expected.parameters()))
            norm = math.sqrt(sum(float(one.square().sum()) for one in found))
            for total, one in zip(sums, found, strict=True):
                total += one * min(1.0, 0.3 / norm)
        for one, total in zip(expected.parameters(), sums, strict=True):
            one.grad = total / 6
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(expected), rtol=1e-5, atol=1e-6)
    assert [one.step for one in told] == [1, 2, 3, 4, 5]


def test_an_empty_batch_is_noise_and_a_step(records, monkeypatch):
    model, told, passes = network(), [], []
    monkeypatch.setattr(per_sample.Ghost, "__call__", lambda *_: passes.append(1))
    monkeypatch.setattr(
        loop, "study", lambda *_: functools.partial(per_sample.Ghost, plan=Seen({}))
    )
    before = weights(model)
    plan = Plan(1, 1, functools.partial(torch.optim.SGD, lr=1.0))
    # the chance of an empty batch is about 1/e
    seed = next(
        seed for seed in range(30) if not len(next(iter(drawn_batches(seed, 30, 1 / 30)))[0][0])
    )
    assert train(model, records, plan, Privacy(2.0, 0.5), seed, after_step=told.append) == [None]
    moved = torch.cat([(a - b).ravel() for a, b in zip(weights(model), before, strict=True)])
    assert moved.std().item() == pytest.approx(1.0, rel=0.35)
    assert math.isnan(told[0].loss)
    assert passes == []


def drawn_batches(seed, records, rate):
    return poisson_batches(1, records, rate, source_of_batches(seed))


def source_of_batches(seed):
    """A model's generator, after the two seeds that it gives first."""
    (source,) = gens(seed)
    torch.randint(steps.SEEDS, (2,), generator=source)
    return source


@pytest.mark.parametrize("privacy", [None, Privacy(1.0, 1.0)])
def test_a_model_hangs_on_its_own_generator_alone(records, privacy):
    def make():
        return nn.Sequential(network(), nn.Dropout(0.5), nn.Linear(3, 3))

    plan = Plan(4, 6, SGD)
    torch.manual_seed(0)
    models = [make() for _ in range(3)]
    start = [model.state_dict() for model in models]
    start = [{name: one.clone() for name, one in state.items()} for state in start]
    own = [range(10, 30), range(20), range(30)]
    before = torch.get_rng_state()
    train_networks(models, records, own, plan, gens(1, 2, 3), privacy, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    alone = make()
    alone.load_state_dict(start[1])
    torch.manual_seed(99)
    train_networks([alone], records, own[1:2], plan, gens(2), privacy, CPU)
    assert all(map(torch.equal, weights(alone), weights(models[1])))


@pytest.mark.parametrize("privacy", [None, Privacy(1.0, 1.0)])
def test_a_loss_of_nan_stops_its_model_alone(records, privacy):
    class Breaks(nn.Module):
        def __init__(self, at):
            super().__init__()
            self.inner, self.left = network(), at

        def forward(self, x):
            self.left -= self.training
            return self.inner(x) * (math.nan if self.left < 0 else 1.0)

    models = [Breaks(10_000), Breaks(0), Breaks(10_000)]
    stopped = train_networks(
        models, records, [range(30)] * 3, Plan(4, 6, SGD), gens(1, 2, 3), privacy, CPU
    )
    assert stopped[0] is stopped[2] is None
    assert stopped[1] == "its loss is not finite at step 1 of 4"


def test_what_cannot_be_trained_is_refused_with_the_reason(records):
    with pytest.raises(InputError, match="`batch_size` must be at most the 4 records"):
        train(network(), records, Plan(1, 5, SGD), own=range(4))
    mixing = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(InputError, match="layer `1`, a BatchNorm1d, mixes"):
        train(mixing, records, Plan(1, 5, SGD), Privacy(1.0, 1.0))
    assert train(mixing, records, Plan(1, 5, SGD)) == [None]


@pytest.mark.parametrize("privacy", [None, Privacy(0.7, 0.3)])
def test_mlps_train_as_one_as_each_would_alone(records, privacy, monkeypatch):
    """Their own batches and noise, also where one draws fewer records."""
    torch.manual_seed(0)
    together = [MLP([6, 5, 3]) for _ in range(3)]
    apart = [copy.deepcopy(one) for one in together]
    own, told = [range(6, 30), range(24), range(3, 27)], []
    schedule = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    plan = Plan(6, 5, adam, schedule)
    stopped = train_networks(
        together, records, own, plan, gens(1, 2, 3), privacy, CPU, after_step=told.append
    )
    assert stopped == [None] * 3
    assert [one.step for one in told] == list(range(1, 7))
    monkeypatch.setattr(loop, "_can_stack", lambda *_: False)
    train_networks(apart, records, own, plan, gens(1, 2, 3), privacy, CPU)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-5)


def test_of_mlps_as_one_those_that_break_alone_are_stopped(records):
    torch.manual_seed(0)
    models = [MLP([6, 5, 3]) for _ in range(3)]
    with torch.no_grad():
        models[1].mlp[0].weight[0, 0] = math.nan
    told = []
    stopped = train_networks(
        models, records, [range(30)] * 3, Plan(3, 6, SGD), gens(1, 2, 3), Privacy(1.0, 1.0), CPU,
        after_step=told.append,
    )  # fmt: skip
    assert stopped == [None, "its loss is not finite at step 1 of 3", None]
    assert [list(one.models) for one in told] == [[0, 2]] * 3
    assert all(math.isfinite(one.loss) for one in told)


def test_a_batch_in_pieces_is_the_whole_batch(records, monkeypatch):
    whole, cut, short = network(), network(), network()
    plan = Plan(5, 12, SGD)
    train(whole, records, plan, Privacy(0.5, 0.3))
    monkeypatch.setattr(loop.Batches.__init__, "__defaults__", (60,))
    seen = []
    cut.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    train(cut, records, plan, Privacy(0.5, 0.3))
    assert max(seen) == loop.FEW
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-5, atol=1e-6)
    monkeypatch.undo()

    def fails(_, given):  # where memory runs out it begins again, with fewer
        if len(given[0]) > 4:
            raise torch.OutOfMemoryError("out of memory")

    short.register_forward_pre_hook(fails)
    train(short, records, plan, Privacy(0.5, 0.3))
    torch.testing.assert_close(weights(short), weights(whole), rtol=1e-5, atol=1e-6)


def test_what_trains_is_settled_before(records):
    model = network()
    model[0].weight.requires_grad_(False)
    kept = model[0].weight.clone()
    assert train(model, records, Plan(2, 6, SGD), Privacy(1.0, 1.0)) == [None]
    assert torch.equal(model[0].weight, kept)
    assert not model[0].weight.requires_grad

    def thaw(_):
        model[0].weight.requires_grad_(True)

    with pytest.raises(InputError, match="Sequential were frozen or thawed while it trained"):
        train(model, records, Plan(2, 6, SGD), Privacy(1.0, 1.0), after_step=thaw)
    with pytest.raises(InputError, match="has no parameters that ask for gradients"):
        train(network().requires_grad_(False), records, Plan(2, 6, SGD))


def test_inputs_are_augmented_where_a_plan_says_so(records):
    seen, model = [], network()
    model.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    train(model, records, Plan(2, 6, SGD, augment=lambda inputs: inputs * 0 + 7))
    assert all((one == 7).all() for one in seen)


class Words:
    """Records of as many words as their number, padded with 0 to the longest of a batch."""

    labels = torch.arange(12) % 3
    fingerprint = "words"

    def sizes(self, indices):
        return indices + 1

    def inputs(self, indices):
        lengths = indices[:, None] + 1
        places = torch.arange(int(lengths.max()))
        return {"words": torch.where(places < lengths, 1 + (places + lengths) % 6, 0)}


class MeanWord(nn.Module):
    """The mean of a record's words, or of its padding as well."""

    def __init__(self, padding):
        super().__init__()
        self.words, self.head, self.padding = nn.Embedding(7, 4), nn.Linear(4, 3), padding

    def forward(self, inputs):
        weights = (inputs["words"] > (-1 if self.padding else 0)).float()[..., None]
        found = (self.words(inputs["words"]) * weights).sum(dim=1)
        return self.head(found / weights.sum(dim=1))


def test_a_record_that_hangs_on_its_padding_is_not_clipped():
    """It has another gradient beside longer records: one more record moves others' gradients."""
    plan, privacy = Plan(2, 4, SGD), Privacy(1.0, 1.0)
    assert train(MeanWord(False), Words(), plan, privacy, own=range(12)) == [None]
    assert train(MeanWord(True), Words(), plan, own=range(12)) == [None]
    with pytest.raises(InputError, match=r"MeanWord cannot .* hangs on how far that is padded"):
        train(MeanWord(True), Words(), plan, privacy, own=range(12))
