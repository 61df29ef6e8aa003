"""Canaries: what they are, who has them, and that nothing changes without."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import chi2
from test_recipe import contents
from torch import nn

from mico_exp.challenge import canaries
from mico_exp.challenge.datasets import Sentences
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.records import Features
from mico_exp.challenge.tree import load_scenario
from mico_exp.challenge.truth import read_truth
from mico_exp.common.errors import InputError
from mico_exp.config import compose
from mico_exp.models.architectures import MLP
from mico_exp.training.building import build, planned_pieces
from mico_exp.training.making import Making
from mico_exp.training.recipe import Canaries, planned
from mico_exp.training.steps import Draws, Plan, Privacy

KINDS = {name: getattr(canaries, name) for name in ("mislabelled", "noise", "blank", "gradient")}
PLAN = {"steps": 6, "batch_size": 20, "optimizer": partial(torch.optim.SGD, lr=0.1)}


def recipe(count=8, *, one_per_model=False, **changes):
    usual = {
        "challenge": "digits",
        "scenario": "digits_lo",
        "seed": 3,
        "widths": (64, 8, 10),
        "models": {"train": 5, "dev": 2, "final": 2},
        "privacy": None,
    }
    among = Canaries(count, one_per_model)
    sizes = Sizes(1797 + count, 100, 1)
    return planned(sizes=sizes, canaries=among, **{**usual, **PLAN, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_canaries_lie_behind_the_records_which_stay_as_they_are(kind, digits):
    made, again = KINDS[kind](digits, 10, 4), KINDS[kind](digits, 10, 4)
    assert len(made.labels) == 1807
    mixed = torch.tensor([[1800, 5], [1796, 1797]])
    own = made.inputs(torch.arange(1797))
    assert torch.equal(own, digits.features)
    assert torch.equal(made.labels[:1797], digits.labels)
    assert torch.equal(made.inputs(mixed)[0, 1], digits.features[5])
    assert torch.equal(made.inputs(mixed), again.inputs(mixed))
    assert (made.inputs(mixed).shape, made.inputs(mixed).dtype) == ((2, 2, 64), torch.float32)
    assert made.sizes(np.array([3, 1806])).tolist() == [1, 1]
    assert made.fingerprint == again.fingerprint
    others = KINDS[kind](digits, 10, 5), KINDS[kind](digits, 9, 4), digits
    assert made.fingerprint not in {one.fingerprint for one in others}
    assert made.labels[1797:].min() >= 0
    assert made.labels.max() == 9
    with pytest.raises(IndexError):
        made.inputs(torch.tensor([1807]))


def test_a_mislabelled_canary_is_a_record_with_another_label(digits):
    made = canaries.mislabelled(digits, 500)
    inputs, labels = made.inputs(torch.arange(1797, 2297)), made.labels[1797:]
    assert len(set(made.copied.tolist())) == 500
    assert torch.equal(inputs, digits.features[made.copied])
    assert (labels != digits.labels[made.copied]).all()


def test_sentences_may_be_mislabelled_and_nothing_else():
    tokens, starts = np.arange(12, dtype=np.int32), np.array([0, 3, 7, 12])
    sentences = Sentences(tokens, starts, torch.tensor([0, 1, 1]), 0)
    made = canaries.mislabelled(sentences, 3)
    assert made.sizes(np.arange(6))[3:].tolist() == made.sizes(made.copied.numpy()).tolist()
    found, expected = made.inputs(torch.arange(3, 6)), sentences.inputs(made.copied)
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(made.labels[3:], 1 - made.labels[made.copied])
    for kind in ("noise", "blank", "gradient"):
        with pytest.raises(InputError, match="canary=mislabelled copies records of any kind"):
            KINDS[kind](sentences, 1)


def test_noise_fills_the_range_of_the_records_and_blank_is_nothing(digits):
    inputs = canaries.noise(digits, 50).inputs(torch.arange(1797, 1847))
    assert 0 <= inputs.min() < 0.01 < 0.99 < inputs.max() <= 1
    assert abs(inputs.mean() - 0.5) < 0.03
    assert not canaries.blank(digits, 5).inputs(torch.arange(1797, 1802)).any()


def gradient_of(model, inputs, label):
    loss = nn.functional.cross_entropy(model(inputs[None]), label[None])
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([one.flatten() for one in grads])


def test_a_gradient_canary_has_a_direction_of_its_own(digits):
    """By autograd: its share of the weights' columns is as promised, and others have none there."""
    torch.manual_seed(0)
    model, made = MLP((64, 10)), canaries.gradient(digits, 3, scale=5.0)
    rows = [gradient_of(model, made.inputs(torch.tensor(i)), made.labels[i]) for i in range(1800)]
    weights = torch.stack(rows)[:, :640]  # the bias has the rest
    own, others = weights[1797:], weights[:1797]
    share = own.square().sum(dim=1) / torch.stack(rows[1797:]).square().sum(dim=1)
    torch.testing.assert_close(share, torch.full((3,), 25 / 26))
    assert not (others @ own.T).any()
    products = own @ own.T
    assert not (products - products.diag().diag()).any()
    columns = own.view(3, 10, 64).any(dim=1)
    assert columns.sum(dim=1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("one_per_model", [False, True])
def test_each_is_in_by_a_coin_of_its_own(one_per_model):
    """Counts of each canary, of each model and of each pair are those of fair coins."""
    how = recipe(10, one_per_model=one_per_model, models={"train": 4000, "dev": 0, "final": 0})
    splits = [split for piece in planned_pieces(how) for split in piece.splits]
    assert {len(split.challenge) for split in splits} == {1 if one_per_model else 10}
    bits = np.array([split.solution for split in splits])
    z = (2 * bits.mean(axis=0) - 1) * np.sqrt(len(bits))
    assert (z**2).sum() < chi2.isf(1e-4, len(z))
    if one_per_model:
        assert [int(split.challenge[0]) - 1797 for split in splits[:12]] == [*range(10), 0, 1]
        return
    signs = 2.0 * bits - 1
    pairs = (signs.T @ signs)[np.triu_indices(10, 1)] / np.sqrt(len(bits))
    assert (pairs**2).sum() < chi2.isf(1e-4, len(pairs))
    sums = bits.sum(axis=1)
    assert sums.var() == pytest.approx(2.5, rel=0.1)  # not fixed, as in the competition


def test_what_a_model_trains_on(digits):
    (piece, *_) = planned_pieces(recipe())
    for wanted, split in zip(piece.piece.models, piece.splits, strict=True):
        assert len(split.training) == 100
        assert split.training.max() < 1797 <= split.member.min(initial=1797)
        assert set(wanted.own) == {*split.training, *split.member}
        every = [split.training, split.evaluation, split.member, split.nonmember]
        assert sorted(np.concatenate(every)) == list(range(1805))


def test_a_batch_hangs_on_no_other_canary():
    """A record's chance to be in a batch is the same, however many a model has."""
    plan = recipe().plan
    assert plan.sample_rate == 0.2
    draws = Draws(torch.Generator().manual_seed(0), torch.device("cpu"))
    longer = Plan(3000, 20, plan.optimizer, sample_rate=0.2)
    seen = sum(len(one) for one in draws.batches(longer, 160, Privacy(1.0, 1.0)))
    assert seen / (3000 * 160) == pytest.approx(0.2, rel=0.02)


def test_models_are_trained_as_each_would_be_alone(digits):
    """Stacked with others of more and fewer records, by the same batches and noise."""
    how = recipe()
    records = canaries.noise(digits, 8)
    making = Making(how, how.plan, records, Privacy(1.0, 1.0), None, "cpu")
    (piece,) = planned_pieces(how)
    assert len({len(one.own) for one in piece.piece.models}) > 1
    together = making(piece.piece)
    for made in (together[0], together[7]):
        place = piece.piece._replace(models=(piece.piece.models[made.number],))
        (alone,) = making(place)
        assert alone.told == made.told


@pytest.mark.parametrize("one_per_model", [False, True])
def test_a_tree_is_a_challenge_told_by_lists(one_per_model, digits, tmp_path):
    how, records = recipe(one_per_model=one_per_model), canaries.mislabelled(digits, 8)
    assert build(tmp_path, how, records)
    assert not build(tmp_path, how, records)
    scenario = load_scenario(tmp_path, "digits", "digits_lo", Sizes(1805))
    points, (piece,) = challenge_points(scenario), planned_pieces(how)
    truth = read_truth(tmp_path, scenario)
    for row, split in enumerate(piece.splits[:5]):
        assert np.array_equal(points.points_of("train", row), split.challenge)
        assert np.array_equal(points.solution[row], split.solution)
        told = scenario.phases["train"][row].split(scenario.sizes)
        assert np.array_equal(np.sort(split.training), told.training)
    assert np.array_equal(truth["dev"], [one.solution for one in piece.splits[5:7]])
    assert np.array_equal(truth["final"], [one.solution for one in piece.splits[7:]])
    secret = tmp_path / "digits" / "digits_lo" / "final" / "model_8"
    own = {"challenge.npy"} if one_per_model else set()
    known = {"model.pt", "accuracy", "accuracy_members"} | own
    assert {file.name for file in secret.iterdir()} == known
    record = json.loads((secret.parents[1] / "build.json").read_text())
    assert record["canaries"] == {"count": 8, "one_per_model": one_per_model}
    assert (secret.parents[1] / "challenge.npy").exists() is not one_per_model
    again = tmp_path / "again"
    build(again, how, records)
    assert all(contents(again)[name] == one for name, one in contents(again).items())
    with pytest.raises(InputError, match=r"was built with canaries = .'count': 8"):
        build(again, recipe(9, one_per_model=one_per_model), records)


REFUSED = [
    (lambda d: canaries.mislabelled(d, 0), "`canary.count` must be a whole number of at least 1"),
    (lambda d: canaries.noise(d, 3, -1), "`canary.seed` must be a whole number of at least 0"),
    (lambda d: canaries.mislabelled(d, 1798), "must be at most the 1797 records that are copied"),
    (lambda d: canaries.gradient(d, 65), "must be at most the 64 features of a record"),
    (lambda d: canaries.gradient(d, 1, scale=0), "`canary.scale` must be a finite number above 0"),
    (lambda _: canaries.mislabelled(Features(torch.ones(4, 2), torch.zeros(4).long()), 1), "two"),
    (lambda _: Canaries(2, "yes"), "`canary.one_per_model` must be true or false, got 'yes'"),
    (lambda _: recipe(0), "`canary.count` must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("ask", "told"), REFUSED)
def test_canaries_that_cannot_be(ask, told, digits):
    with pytest.raises(InputError, match=told) as caught:
        ask(digits)
    assert "\n" not in str(caught.value)


def test_no_more_records_than_there_are():
    with pytest.raises(InputError, match="at most the 1797 records beside the canaries, got 1800"):
        planned(
            sizes=Sizes(1805, 1800, 1), canaries=Canaries(8), challenge="a", scenario="a", seed=0,
            models={}, widths=(64, 10), privacy=None, **PLAN,
        )  # fmt: skip


def test_an_option_says_it_all_and_none_says_nothing(composed):
    cfg = composed("canary=gradient", "canary.count=3", "canary.one_per_model=true")
    found = compose.setup(cfg)
    assert found.path == "digits_gradient/digits_inf"
    assert len(found.records.labels) == 1800
    assert found.recipe(sizes=found.sizes(1800)).canaries == Canaries(3, True)
    without = compose.setup(composed())
    assert without.path == "digits/digits_inf"
    assert without.source.option == OmegaConf.to_yaml(composed().dataset.records)
    how = without.recipe(sizes=without.sizes(1797))
    assert (how.canaries, how.plan.sample_rate, how.is_plain) == (None, None, True)
    assert "canaries" not in how.description(without.records)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["canary=blank", "canary.count=0"], "`canary.count` must be a whole number .*, got 0"),
        (["canary=blank", "canary.count=null"], "`canary.count` must be told, got null"),
        (["canary=blank", "+canary.cuont=3"], r"`canary.cuont` must be .* Is `count` meant"),
        (["canary=gradient", "canary.count=65"], "must be at most the 64 features of a record"),
        (["canary=noise", "canary.seed=-1"], "`canary.seed` must be a whole number"),
    ],
)
def test_options_that_cannot_be(composed, overrides, told):
    with pytest.raises(InputError, match=told):
        len(compose.setup(composed(*overrides)).records.labels)
