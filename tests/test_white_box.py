"""Extraction of gradients: a second family of scores, with passes and keys of its own."""

import numpy as np
import pytest
import torch
from conftest import SIZES, tiny_recipe
from torch import nn

from mico_exp.challenge.points import challenge_points, known_sample
from mico_exp.challenge.tree import load_scenario
from mico_exp.common.errors import InputError, MetricError
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.models.weights import load_state
from mico_exp.scores import gradients, metrics, white_box
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.scores.white_box import GradientRunner
from mico_exp.training.building import build

NORM, KFAC = gradients.GradNorm(), gradients.Kronecker(reference=100)
TOLD = gradients.DisclosedKronecker(reference=50)


@pytest.fixture(scope="module")
def disclosing(tmp_path_factory, digits):
    """Root of a tree with a scenario that discloses training sets."""
    root = tmp_path_factory.mktemp("disclosing")
    recipe = tiny_recipe("digits_ddp", models={"train": 4, "dev": 2, "final": 2})
    build(
        root,
        type(recipe)(**{**vars(recipe), "challenge": "ddp", "disclose_training": True}),
        digits,
    )
    return root


@pytest.fixture
def opened(built, disclosing, digits, tmp_path):
    def make(name, workers=None):
        place, root = ("ddp", disclosing) if name == "digits_ddp" else ("digits", built)
        scenario = load_scenario(root, place, name, SIZES)
        points = challenge_points(scenario)
        known = None
        if name == "digits_ddp":
            known = known_sample(scenario, points, 20, 20)
        made, store = Architecture.of(MLP([64, 16, 10])), ScoreStore(tmp_path / "store")
        return Extraction(scenario, points, digits, made, store, Processor("cpu"), workers, known)

    return make


def autograd_norms(model, records, points):
    found = []
    model.requires_grad_(True)
    for point in points:
        index = torch.tensor([point])
        loss = nn.functional.cross_entropy(model(records.inputs(index)), records.labels[index])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        found.append(-torch.cat([g.flatten() for g in grads]).norm().item())
    model.requires_grad_(False)
    return found


def test_families_are_passes_of_their_own(opened, digits):
    job = opened("digits_inf")
    both = job.compute({"loss": metrics.loss, "grad_norm": NORM, "kfac": KFAC})
    assert [(one.family, one.models) for one in both] == [("logits", 17), ("gradients", 17)]
    assert all(one.seconds > 0 for one in both)
    assert job.compute({"loss": metrics.loss, "grad_norm": NORM, "kfac": KFAC}) == []
    scores = job.read("grad_norm", NORM)
    for phase in ("train", "final"):
        folder, own = job.scenario.phases[phase][1], job.points.of_phase[phase][1]
        model = MLP([64, 16, 10])
        model.load_state_dict(load_state(folder.path / "model.pt", model))
        expected = autograd_norms(model, digits, own)
        np.testing.assert_allclose(scores.own[phase][1], expected, rtol=1e-4, atol=1e-6)


def test_what_metrics_see_of_the_models(opened):
    job = opened("digits_inf")
    assert str(job.sight(KFAC)) == str(job.sight(NORM)) == "1,210 of 1,210 parameters (100.00%)"
    assert job.sight(metrics.loss) is None


def test_another_damping_is_another_column(opened):
    job = opened("digits_inf")
    job.compute({"kfac": KFAC})
    assert job.read("kfac", gradients.Kronecker(reference=100, damping=0.5)) is None
    (one,) = job.compute({"kfac": gradients.Kronecker(reference=100, damping=0.5)})
    assert one.models == 17


def test_known_members_of_each_very_model(opened, digits):
    """The reference of each model is its own disclosed training set, challenge points left out."""
    job = opened("digits_ddp")
    (one,) = job.compute({"told": TOLD})
    assert one.models == 8
    scores = job.read("told", TOLD)
    for phase in ("train", "dev"):
        folder, own = job.scenario.phases[phase][0], job.points.of_phase[phase][0]
        known = np.sort(folder.split(SIZES).training)
        assert not np.isin(own, known).any()
        model = ModelRunner(Processor("cpu")).load_one(job.architecture, folder.path)
        found = GradientRunner(ModelRunner(Processor("cpu"))).scores(
            model, digits, own, {"told": TOLD}, known
        )["told"]
        np.testing.assert_allclose(scores.own[phase][0], found, rtol=1e-4, atol=1e-6)
        assert len(scores.known[phase][0]) == len(job.known[phase][0].points) > 20
    assert job.compute({"told": TOLD}) == []


def test_what_is_told_is_part_of_the_key(opened, disclosing):
    """Another training set is another column, though the model is the same."""
    job = opened("digits_ddp")
    job.compute({"told": TOLD, "grad_norm": NORM})
    seed = job.scenario.phases["dev"][0].path / "seed_training"
    before = seed.read_text()
    try:
        seed.write_text(f"{int(before) // 2}\n")
        again = opened("digits_ddp")
        assert again.read("told", TOLD) is None
        first = next(
            task for task in again.addresses.tasks({"grad_norm": NORM}) if task.phase == "dev"
        )
        assert again.store.read(first.addresses["grad_norm"]).scores.size
    finally:
        seed.write_text(before)


def test_known_members_where_none_are_disclosed(opened):
    with pytest.raises(InputError, match=r"seed_training is missing: .* does not disclose"):
        opened("digits_inf").compute({"told": TOLD})


class Broken(gradients.GradientMetric):
    """Gives one score too few."""

    def score(self, view, prepared):
        return view.trace.logits[1:, 0]


def test_a_broken_metric_is_named(opened):
    with pytest.raises(MetricError, match="metric `odd` must give shape"):
        opened("digits_inf").compute({"odd": Broken()})


class Failing(gradients.GradientMetric):
    def observe(self, views):
        raise ValueError("no idea")

    def score(self, view, prepared):
        raise AssertionError


def test_a_metric_that_fails_is_named(opened):
    with pytest.raises(MetricError, match="metric `bad` fails: ValueError: no idea"):
        opened("digits_inf").compute({"bad": Failing()})


class Greedy(gradients.Kronecker):
    """Has no memory to score more than 7 points at once, beside a view that is kept or not."""

    def score(self, view, prepared):
        if len(view.labels) > 7:
            raise torch.OutOfMemoryError("out of memory")
        assert view.whole is None
        return super().score(view, prepared)


def test_a_view_that_is_kept_gives_way_where_memory_runs_out(digits):
    torch.manual_seed(0)
    model, points = MLP([64, 16, 10]).eval().requires_grad_(False), np.arange(100, 160)
    found = []
    for kind in (gradients.Kronecker, Greedy):
        runner = GradientRunner(ModelRunner(Processor("cpu")))
        found.append(runner.scores(model, digits, points, {"any": kind(reference=None)})["any"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_running_out_of_memory_halves_the_batch(digits, monkeypatch):
    """On a device that holds no more than 7 points of a backward pass at once."""
    real, seen = white_box.trace, []

    def scarce(model, inputs, *others):
        seen.append(len(inputs))
        if len(inputs) > 7:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, inputs, *others)

    torch.manual_seed(0)
    model, points = MLP([64, 16, 10]).eval().requires_grad_(False), np.arange(60)
    wanted = {"norm": NORM, "alignment": gradients.GradAlignment(reference=100), "kfac": KFAC}
    expected = GradientRunner(ModelRunner(Processor("cpu"))).scores(model, digits, points, wanted)
    monkeypatch.setattr(white_box, "trace", scarce)
    found = GradientRunner(ModelRunner(Processor("cpu"))).scores(model, digits, points, wanted)
    for name in wanted:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)
    assert max(seen) == 100  # the reference, which is begun anew
    assert min(seen) <= 7
