import itertools

import numpy as np
import pytest
import torch
import worlds
from torch import nn

from mico_exp.challenge import datasets
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import CNN, MLP, Alone, Architecture
from mico_exp.scores import metrics
from mico_exp.scores.inference import ModelRunner, Processor, compute_metrics

METRICS = {name: getattr(metrics, name) for name in ("loss", "confidence", "mod_entropy")}


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(3)
    pixels = random.integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(random.integers(10, size=40))
    return datasets.Images(pixels, labels, datasets.CIFAR10_MEAN, datasets.CIFAR10_STD)


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    return CNN().eval()


@torch.no_grad()
def one_by_one(model, records, points):
    """Every point by itself, in the order given."""
    rows = []
    for point in points:
        index = torch.tensor([point])
        rows.append(metrics.loss(model(records.inputs(index)), records.labels[index]).item())
    return np.array(rows)


@pytest.mark.parametrize("batch_size", [None, 1, 7, 1000])
def test_the_batch_does_not_matter(cnn, images, batch_size):
    points = np.array([[31, 4, 4, 17, 0, 39, 22, 8, 15]])
    runner = ModelRunner(Processor("cpu", batch_size=batch_size))
    found = runner.scores(Alone(cnn), images, points, {"loss": metrics.loss})["loss"]
    np.testing.assert_allclose(found[0], one_by_one(cnn, images, points[0]), atol=1e-5)


def test_models_laid_out_for_the_processor_give_the_same(cnn, images, tmp_path):
    (tmp_path / "model_0").mkdir()
    torch.save(cnn.state_dict(), tmp_path / "model_0" / "model.pt")
    runner = ModelRunner(Processor("cpu"))
    loaded = runner.load(Architecture.of(CNN()), [tmp_path / "model_0"])
    points = np.arange(40)[None]
    found = runner.scores(loaded, images, points, {"loss": metrics.loss})["loss"]
    np.testing.assert_allclose(found[0], one_by_one(cnn, images, points[0]), atol=1e-5)


class Scarce:
    """A model on a device whose memory holds no more than `most` points at once."""

    def __init__(self, model, most):
        self.model, self.most, self.seen = model, most, []

    def __call__(self, inputs, *, own=False):
        self.seen.append(len(inputs))
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.model(inputs).unsqueeze(0)

    count = 1

    def widest(self, inputs):
        return 40 * len(inputs)


@pytest.mark.parametrize("batch_size", [None, 32])
def test_running_out_of_memory_halves_the_batch(digits, batch_size, caplog):
    torch.manual_seed(0)
    model = MLP([64, 16, 10])
    points = np.arange(40)[None]
    runner = ModelRunner(Processor("cpu", batch_size=batch_size))
    scarce = Scarce(model, 7)
    found = runner.scores(scarce, digits, points, {"loss": metrics.loss})["loss"]
    np.testing.assert_allclose(found[0], one_by_one(model, digits, points[0]), atol=1e-6)
    first = batch_size or 40
    tried = [first, *itertools.takewhile(lambda n: n > 7, (first >> k for k in (1, 2, 3, 4)))]
    assert scarce.seen[: len(tried)] == tried
    assert f"out of memory with {first} points" in caplog.text
    assert max(scarce.seen) <= first  # never more than was asked for
    again = Scarce(model, 7)
    runner.scores(again, digits, points, {"loss": metrics.loss})
    assert max(again.seen) <= 7  # it has learnt


def test_a_point_that_does_not_fit_is_an_error(digits):
    runner = ModelRunner(Processor("cpu"))
    with pytest.raises(InputError, match="cpu has no memory for a single point"):
        runner.scores(Scarce(MLP([64, 10]), 0), digits, np.arange(5)[None], METRICS)


def test_other_errors_of_a_model_are_not_taken_for_a_lack_of_memory(digits):
    message = "^the model fails at record 3: RuntimeError: .*shapes cannot be multiplied"
    with pytest.raises(InputError, match=message):
        ModelRunner(Processor("cpu")).scores(
            Alone(MLP([9, 3])), digits, np.arange(3, 8)[None], METRICS
        )


def test_sentences_are_padded_to_the_longest_of_their_batch(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "sst2"
    worlds.write_sst2(folder, random)
    records = datasets.sst2(str(folder), str(folder / "tokenizer"))
    seen = []

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5000, 2)

        def forward(self, inputs):
            mask = inputs["attention_mask"]
            seen.append((tuple(mask.shape), int(mask.sum(dim=1).max())))
            return (self.embed(inputs["input_ids"]) * mask[..., None]).sum(dim=1)

    model, points = Reader(), random.permutation(300)[None]
    runner = ModelRunner(Processor("cpu", batch_size=16))
    found = runner.scores(Alone(model), records, points, {"loss": metrics.loss})["loss"]
    shapes = seen[1:]  # the first one looks how wide the layers are
    assert all(width == longest for (_, width), longest in shapes)
    assert [width for (_, width), _ in shapes] == sorted((w for (_, w), _ in shapes), reverse=True)
    padded = sum(count * width for (count, width), _ in shapes)
    assert padded < 1.1 * records.sizes(points[0]).sum()
    np.testing.assert_allclose(found[0], one_by_one(model, records, points[0]), atol=1e-5)


def test_coarser_precision_is_asked_for(cnn, images):
    points = np.arange(20)[None]
    exact, coarse = (
        ModelRunner(Processor("cpu", precision)).scores(
            Alone(cnn), images, points, {"phi": metrics.scaled_logit}
        )["phi"]
        for precision in ("float32", "bfloat16")
    )
    assert 1e-4 < np.abs(exact - coarse).max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, r"`compute\.precision` must be one of float32, tf32, bfloat16"),
        (
            {"batch_size": "abc"},
            r"`compute\.batch_size` must be a whole number .* null, got 'abc'",
        ),
        (
            {"batch_size": 0},
            r"`compute\.batch_size` must be a whole number .* null, got 0",
        ),
    ],
)
def test_options_that_are_wrong(options, message):
    with pytest.raises(InputError, match=message):
        Processor(**options)


def test_metrics_share_the_scaled_logit_and_are_unchanged_by_it(monkeypatch):
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 50, 10), torch.randint(10, (50,))
    expected = {name: metric(logits, labels) for name, metric in METRICS.items()}
    calls = []
    real = metrics.scaled_logit

    def counting(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(metrics, "scaled_logit", counting)
    found = dict(compute_metrics(METRICS, logits, labels))
    assert sum(given is logits for given, _ in calls) == 1
    assert all(torch.equal(found[name], expected[name]) for name in METRICS)


def test_a_network_that_serves_many_models_is_tried_at_the_same_points_once(images):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Linear(3 * 32 * 32, 10), 0

        def forward(self, inputs):
            self.calls += 1
            return self.layer(inputs.flatten(1))

    runner, network = ModelRunner(Processor("cpu", batch_size=10)), Counting().eval()
    count, both = min(len(images.labels), 20), [network, Counting().eval()]
    points = np.arange(count)[np.newaxis]
    calls = []
    for one in (network, network, *both[1:]):
        before = one.calls
        runner.scores(Alone(one), images, points, {"loss": metrics.loss})
        calls.append(one.calls - before)
    assert calls == [count // 10 + 1, count // 10, count // 10 + 1]
