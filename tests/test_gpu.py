"""What runs on a GPU, against the CPU; `benchmarks/gpu.py` runs these tests and measures besides.

Without a GPU they are skipped. ``MICO_EXP_TEST_DEVICE=cpu`` runs them on the CPU all the same, as
a test of themselves: where equal draws would be compared, it takes those of another seed.
"""

import functools
import gc
import json
import os
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import worlds
from conftest import SIZES, tiny_recipe
from scipy.stats import ks_2samp
from torch import nn

from mico_exp.challenge import datasets
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.records import Features
from mico_exp.challenge.tree import load_scenario
from mico_exp.common.errors import InputError
from mico_exp.models import devices
from mico_exp.models.architectures import CNN, MLP, Architecture, TextClassifier, bare, roberta
from mico_exp.models.devices import PRECISIONS
from mico_exp.scores import gradients, metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import ModelRunner, Processor, Shard, Work, runner_on
from mico_exp.scores.store import ScoreStore
from mico_exp.scores.white_box import GradientWork
from mico_exp.training import loop, stacked
from mico_exp.training.building import build
from mico_exp.training.graphed import graphed
from mico_exp.training.per_sample import loss_of
from mico_exp.training.recipe import PrivacyTarget
from mico_exp.training.steps import Plan, Privacy, poisson_batches, privatise, shuffled_batches

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("MICO_EXP_TEST_DEVICE", "cuda")
ON_GPU = DEVICE != "cpu"
real_gpu = pytest.mark.skipif(not ON_GPU, reason="a processor has no memory of its own to cap")
POINTS = np.arange(40)
NAMES = ("loss", "confidence", "logit", "margin", "entropy", "mod_entropy", "mod_entropy_stable")
METRICS = {name: getattr(metrics, name) for name in NAMES}
# By Kronecker factors float32 itself is that exact only with much damping, where a layer has many
# more inputs than there are records.
WHITE_BOX = {
    "grad_norm": gradients.GradNorm(),
    "grad_alignment": gradients.GradAlignment(reference=60),
    "representer": gradients.Representer(reference=60),
    "kfac_high": gradients.Kronecker(damping=3.0, reference=60),
    "kfac_disclosed": gradients.DisclosedKronecker(damping=3.0, reference=60),
}
KNOWN = np.arange(20, 80)  # members that the model is told to have


def purchase():
    random = np.random.default_rng(0)
    packed = random.integers(256, size=(100, 76), dtype=np.uint8)
    packed[:, 0] %= 100
    return datasets.Bits(packed, 600, "bits")


def images(count=100):
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(random.integers(10, size=count))
    return datasets.Images(pixels, labels, datasets.CIFAR10_MEAN, datasets.CIFAR10_STD)


def sentences():
    random = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(random.integers(3, 20, size=100))])
    tokens = random.integers(5, worlds.ROBERTA["vocab_size"], starts[-1]).astype(np.int32)
    labels = torch.from_numpy(random.integers(2, size=100))
    return datasets.Sentences(tokens, starts, labels, pad=1)


FAMILIES = {  # records, and how one of their models is made for a folder
    "mlp": (purchase, lambda _: MLP([600, 128, 100])),
    "cnn": (images, lambda _: CNN()),
    "roberta": (sentences, roberta),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Records, architecture and three models whose logits are as far apart as trained ones'."""
    records, make = FAMILIES[request.param]
    folders = []
    for seed in range(3):
        folders.append(tmp_path_factory.mktemp(f"model_{seed}"))
        (folders[-1] / "config.json").write_text(json.dumps(worlds.ROBERTA))
        torch.manual_seed(seed)
        network = bare(make(folders[-1])).cpu()
        sharpen(network, records())
        torch.save(network.state_dict(), folders[-1] / "model.pt")
    return records(), Architecture(make, request.param), tuple(folders)


@torch.no_grad()
def sharpen(network, records):
    """Scale the last layer so that logits have a standard deviation of 3."""
    if hasattr(network, "classifier"):  # of RoBERTa, all of whose weights are small
        for weights in network.parameters():
            weights.add_(torch.randn_like(weights), alpha=0.03)
        network = TextClassifier(network)
    spread = network.eval()(records.inputs(torch.arange(100))).std()
    for weights in list(network.parameters())[-2:]:
        weights.mul_(3 / spread)


def extracted(family, wanted, processor):
    """Scores of three models, in turn where they do not stack; by gradients those of one."""
    records, architecture, folders = family
    kind = GradientWork if wanted is WHITE_BOX else Work
    work = kind(architecture, records, wanted, processor)
    together = 3 if architecture.key == "mlp" and wanted is METRICS else 1
    found = []
    for first in range(0, 3 if wanted is METRICS else 1, together):
        some = folders[first : first + together]
        points, members = np.broadcast_to(POINTS, (len(some), len(POINTS))), (KNOWN,) * len(some)
        found.append(work(work.read(Shard(some, points, members=members))))
    return {name: np.concatenate([one[name] for one in found]) for name in wanted}


def test_scores_are_those_of_the_cpu(family):
    ours, theirs = (extracted(family, METRICS, Processor(where)) for where in (DEVICE, "cpu"))
    for name in METRICS:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)
    assert theirs["logit"].std() > 1  # or nothing would have been compared


def test_points_of_each_model_its_own_are_those_of_the_cpu(family):
    records, architecture, folders = family
    random = np.random.default_rng(1)
    some = folders if architecture.key == "mlp" else folders[:1]
    shard = Shard(some, np.stack([random.permutation(100)[:30] for _ in some]))
    ours, theirs = (
        Work(architecture, records, METRICS, Processor(where))(shard) for where in (DEVICE, "cpu")
    )
    for name in METRICS:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)


def test_gradients_are_those_of_the_cpu(family):
    ours, theirs = (extracted(family, WHITE_BOX, Processor(where)) for where in (DEVICE, "cpu"))
    for name in WHITE_BOX:
        room = 1e-3 * np.abs(theirs[name]).max()
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=room, err_msg=name)


def test_the_same_again_gives_the_same_bits(family):
    once, again = (extracted(family, METRICS, Processor(DEVICE)) for _ in range(2))
    assert all(np.array_equal(once[name], again[name]) for name in METRICS)


def test_coarser_precisions_are_coarser(family):
    exact = extracted(family, METRICS, Processor("cpu"))["logit"]
    off = {
        precision: np.abs(extracted(family, METRICS, Processor(DEVICE, precision))["logit"] - exact)
        for precision in PRECISIONS
    }
    assert off["float32"].max() < 1e-4
    assert 1e-3 < off["bfloat16"].max() < 1
    if ON_GPU and torch.cuda.get_device_capability() >= (8, 0):
        assert 2e-4 < off["tf32"].max() < 0.1
    again = extracted(family, METRICS, Processor(DEVICE))["logit"]
    assert np.abs(again - exact).max() < 1e-4  # what was allowed is forbidden again


def test_precisions_have_stores_of_their_own(built, digits, tmp_path):
    scenario = load_scenario(built, "digits", "digits_inf", SIZES)
    points, store = challenge_points(scenario), ScoreStore(tmp_path / "store")
    jobs = {
        precision: Extraction(
            scenario,
            points,
            digits,
            Architecture.of(MLP([64, 16, 10])),
            store,
            Processor(DEVICE, precision),
        )
        for precision in PRECISIONS
        if ON_GPU or precision != "tf32"  # which a processor has not
    }
    found = {}
    for precision, job in jobs.items():
        assert job.read("logit", metrics.logit) is None
        job.compute({"logit": metrics.logit})
        found[precision] = job.read("logit", metrics.logit).shadow
    for precision, job in jobs.items():
        again = job.read("logit", metrics.logit).shadow
        assert np.array_equal(again, found[precision])
    assert not np.array_equal(found["float32"], found["bfloat16"])
    if ON_GPU and torch.cuda.get_device_capability() >= (8, 0):
        assert not np.array_equal(found["float32"], found["tf32"])


@contextmanager
def capped(more):
    """Leave this process so many bytes of the card's memory beyond what it holds."""
    card = torch.device(DEVICE).index or 0
    runner_on.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(card).total_memory
    most = (torch.cuda.memory_reserved(card) + more) / total
    torch.cuda.set_per_process_memory_fraction(most, card)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, card)
        torch.cuda.empty_cache()


def fill():
    """Take all that is left, down to the smallest block."""
    taken = []
    for size in (1 << 20, 1 << 16, 1 << 12, 1 << 9):
        try:
            while True:
                taken.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))
        except torch.OutOfMemoryError:
            continue
    return taken


@pytest.fixture
def cnn(tmp_path):
    torch.manual_seed(0)
    torch.save(CNN().state_dict(), tmp_path / "model.pt")
    return tmp_path


@real_gpu
def test_running_out_of_memory_halves_the_batch(cnn, caplog):
    """The first layer gives out 131 kB an image, twice: 3,000 do not fit in 512 MiB."""
    records, points = images(3000), np.arange(3000)[None]

    def scored():
        runner = ModelRunner(Processor(DEVICE))
        models = runner.load(Architecture.of(CNN()), [cnn])
        return runner, runner.scores(models, records, points, METRICS)

    _, expected = scored()
    assert "halved" not in caplog.text
    with capped(512 << 20):
        runner, found = scored()
    assert re.search(r"is out of memory with \d+ points at once: halved", caplog.text)
    for name in METRICS:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=name)
    assert runner.batches.layer_bytes < 512 << 20  # it has learnt


@real_gpu
def test_a_card_without_room_is_one_line(cnn):
    work = Work(Architecture.of(CNN()), images(), METRICS, Processor(DEVICE, batch_size=100))
    with capped(1 << 20):
        taken = fill()
        with pytest.raises(InputError, match="has no memory for") as caught:
            work(Shard((cnn,), POINTS[None]))
        del taken
    assert len(str(caught.value).splitlines()) == 1
    work(Shard((cnn,), POINTS[None]))  # where there is room again it goes on


def test_devices_that_are_not_here():
    with pytest.raises(InputError, match=r"`compute\.device`: cuda:99 cannot be used here"):
        devices.open_device("cuda:99")


# ---------------------------------------------------------------- training


@pytest.fixture
def generator():
    """Draws on the device; on the CPU, another one's numbers than are compared with."""
    return torch.Generator(DEVICE).manual_seed(1)


def test_clipped_gradients_are_those_of_the_cpu():
    source = torch.Generator().manual_seed(0)
    mlps = stacked.initial_mlps(3, [20, 16, 5], source)
    inputs = torch.randn(3, 32, 20, generator=source)
    labels = torch.randint(5, (3, 32), generator=source)
    weight = torch.rand(3, 32, generator=source)
    devices.allow_tf32(False)  # as `train` does
    there = type(mlps)([one.to(DEVICE) for one in mlps.parameters])
    for clip_norm in (0.5, float("inf")):
        expected = stacked.gradients(mlps, inputs, labels, weight, clip_norm)
        moved = [one.to(DEVICE) for one in (inputs, labels, weight)]
        found = stacked.gradients(there, *moved, clip_norm)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5)


def test_what_is_drawn_has_the_distributions_that_it_must_have(generator):
    weights = stacked.initial_mlps(200, [64, 32], generator).parameters[0].cpu()
    assert weights.abs().max() <= 1 / 8
    assert weights.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.01)
    batches = poisson_batches(20, 300, 0.1, generator)
    counts, sizes = torch.zeros(20, 300), []
    for _, (indices, present) in zip(range(500), batches, strict=False):
        sizes.append(present.sum(dim=1).cpu())
        counts.scatter_add_(1, indices.cpu(), present.cpu())
    assert counts.mean().item() == pytest.approx(50, abs=0.5)  # Binomial(500, 0.1)
    assert counts.std().item() == pytest.approx(6.7, abs=0.3)
    assert torch.cat(sizes).std().item() == pytest.approx(5.2, abs=0.3)  # Binomial(300, 0.1)
    batches = shuffled_batches(4, 50, 16, generator)
    epoch = [indices.cpu() for _, (indices, _) in zip(range(4), batches, strict=False)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in torch.cat(epoch, dim=1))
    zero = torch.zeros(1000, 200, device=DEVICE)
    noise, again = (privatise(zero, Privacy(2.0, 0.5), 10, generator).cpu() for _ in range(2))
    assert noise.std().item() == pytest.approx(2.0 * 0.5 / 10, rel=0.02)
    assert (noise / noise.std()).pow(4).mean().item() == pytest.approx(3, abs=0.1)
    assert abs(torch.corrcoef(torch.stack([noise.ravel(), again.ravel()]))[0, 1]) < 0.02


@pytest.mark.parametrize("privacy", [None, Privacy(noise_multiplier=1.0, clip_norm=1.0)])
def test_trained_models_are_equal_in_distribution(digits, generator, privacy):
    """Losses of 150 models at their own records and at others', beside those of the CPU."""
    order = torch.rand(150, 1797, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    own, others = order[:, :100], order[:, 100:300]
    plan = Plan(60, 16, functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))

    def losses(source):
        mlps = stacked.initial_mlps(150, [64, 16, 10], source)
        inputs, labels = (
            one.to(source.device) for one in (digits.features[own], digits.labels[own])
        )
        stacked.train(mlps, inputs, labels, plan, source, privacy)
        here = type(mlps)([one.cpu() for one in mlps.parameters])
        return [
            metrics.loss(here(digits.features[some], own=True), digits.labels[some]).mean(dim=1)
            for some in (own, others)
        ]

    pairs = zip(losses(generator), losses(torch.Generator().manual_seed(0)), strict=True)
    for ours, theirs in pairs:
        assert ks_2samp(ours, theirs).pvalue > 1e-4
        assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.2)


def small_cnn(dropout=0.0):
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8 * 14 * 14, 10),
    )


def trained_cnn(device, privacy=None, dropout=0.0):
    """Weights after some steps, of batches and a start that are the same on all devices."""
    torch.manual_seed(0)
    network = small_cnn(dropout)
    plan = Plan(12, 16, functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    generator = torch.Generator().manual_seed(1)
    where = torch.device(device)
    own = [np.arange(60)]
    assert loop.train_networks([network], images(), own, plan, [generator], privacy, where) == [
        None
    ]
    return torch.cat([one.detach().cpu().flatten() for one in network.parameters()])


@pytest.mark.parametrize("privacy", [None, Privacy(noise_multiplier=0.0, clip_norm=0.5)])
def test_a_network_trains_as_on_the_cpu(privacy):
    """Step by step the same but for rounding: with clipping too, where no noise is drawn."""
    expected = trained_cnn("cpu", privacy)
    assert torch.equal(trained_cnn(DEVICE, privacy), trained_cnn(DEVICE, privacy))
    torch.testing.assert_close(trained_cnn(DEVICE, privacy), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
@pytest.mark.parametrize("kind", ["cnn", "mlps"])
def test_in_coarser_precisions_a_clipped_gradient_is_as_long_as_c(kind, precision):
    """A step of one record and no noise moves the weights by C, and otherwise than in float32."""
    if precision == "tf32" and not ON_GPU:
        pytest.skip("a processor has none")
    records, own = images(4), [np.arange(1)] * 2
    if kind == "mlps":
        features = records.inputs(torch.arange(4)).flatten(1)
        records = Features(features, records.labels)

    def moved(how):
        torch.manual_seed(0)
        networks = [CNN() if kind == "cnn" else MLP([3072, 16, 10]) for _ in own]
        before = [nn.utils.parameters_to_vector(one.parameters()).detach() for one in networks]
        sources = [torch.Generator().manual_seed(seed) for seed in (3, 5)]
        plan = Plan(1, 1, functools.partial(torch.optim.SGD, lr=1.0), precision=how)
        privacy, where = Privacy(0.0, 0.5), torch.device(DEVICE)
        loop.train_networks(networks, records, own, plan, sources, privacy, where)
        after = [nn.utils.parameters_to_vector(one.parameters()).detach() for one in networks]
        return torch.stack(after).cpu() - torch.stack(before)

    coarse, exact = moved(precision), moved("float32")
    assert (coarse.norm(dim=1) / 0.5 - 1).abs().max() < 1e-4
    assert 1e-5 < (coarse - exact).norm() / exact.norm() < 0.1


@real_gpu
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_step_that_is_played_back_is_that_of_the_network(monkeypatch, dropout):
    made = []
    real = loop.graphed
    monkeypatch.setattr(loop, "graphed", lambda *args: made.append(real(*args)) or made[-1])
    found = trained_cnn(DEVICE, dropout=dropout)
    assert made[0] is not None
    monkeypatch.setattr(loop, "graphed", lambda *_: None)
    expected = trained_cnn(DEVICE, dropout=dropout)
    if not dropout:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # with dropout other records' outputs are left out, so that the weights lie as far apart as
    # those of two seeds, and no further
    assert (found - expected).norm() < 0.5 * expected.norm()


class Deciding(nn.Module):
    """A network that a graph would freeze: by its inputs, or by a number of the processor's."""

    def __init__(self, by):
        super().__init__()
        self.by, self.layer, self.norm = by, nn.Linear(3 * 32 * 32, 10), nn.BatchNorm1d(10)

    def forward(self, inputs):
        there = {"inputs": lambda: inputs.sum() > 0, "draw": lambda: torch.rand(()) > 0.5}[self.by]
        found = self.norm(self.layer(inputs.flatten(1)))
        return found if there() else 2 * found


@real_gpu
@pytest.mark.parametrize("by", ["inputs", "draw"])
def test_a_network_that_decides_is_not_played_back_and_is_left_as_it_was(by):
    network = Deciding(by).to(DEVICE)
    before = {name: one.clone() for name, one in network.state_dict().items()}
    state = torch.get_rng_state()
    inputs, labels = torch.randn(8, 3, 32, 32, device=DEVICE), torch.zeros(8, device=DEVICE).long()
    parameters = dict(network.named_parameters())
    assert graphed(network, parameters, loss_of, inputs, labels) is None
    assert torch.equal(torch.get_rng_state(), state)
    for name, one in network.state_dict().items():
        assert torch.equal(one, before[name]), name


@pytest.mark.parametrize("target", [None, PrivacyTarget(epsilon=8.0, delta=1e-5, clip_norm=1.0)])
def test_a_tree_that_is_built_there(digits, tmp_path, target):
    plan = Plan(20, 16, functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    how = tiny_recipe(privacy=target, plan=plan, models={"train": 4, "dev": 2, "final": 1})
    roots = tmp_path / "once", tmp_path / "again"
    for root in roots:
        assert build(root, how, digits, DEVICE) is True
    places = [root / "digits" / "digits_inf" / "train" / "model_3" for root in roots]
    once, again = (torch.load(place / "model.pt", weights_only=True) for place in places)
    assert all(one.device.type == "cpu" for one in once.values())  # whoever reads it has no GPU
    assert all(torch.equal(once[name], again[name]) for name in once)
    record = json.loads((places[0].parents[1] / "build.json").read_text())
    expected = [torch.cuda.get_device_name(DEVICE)] if ON_GPU else None
    assert record.get("devices") == expected
    assert build(roots[0], how, digits, "cpu") is False  # the same recipe, wherever
