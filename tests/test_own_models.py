"""Networks of whatever make, as files of then and of now hold them, and what they give."""

import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SIZES
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mico_exp.challenge.datasets import Features, Sentences
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.tree import load_scenario
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import FileFingerprints
from mico_exp.config.making import make
from mico_exp.models import states
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.models.classifiers import LoRA, sequence_classifier
from mico_exp.models.interpreted import Interpreted
from mico_exp.models.weights import check_weights, fingerprint, load_state, weights_file
from mico_exp.scores import metrics, soundness
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.gradients import GradNorm
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.scores.trial import Trial, trial_of
from mico_exp.scores.white_box import GradientRunner

COUNT, WIDTH, CLASSES = 12, 5, 3
ROWS = torch.from_numpy(np.random.default_rng(0).normal(size=(COUNT, WIDTH))).float()
RECORDS = Features(ROWS, torch.arange(COUNT) % CLASSES)
EVERY = np.arange(COUNT)
CPU = Processor("cpu")


class Net(nn.Module):
    """What a file of then may have otherwise: a norm's counter, a split weight, a constant."""

    def __init__(self):
        super().__init__()
        self.first = weight_norm(nn.Linear(WIDTH, 8))
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, CLASSES)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 4.0]), persistent=False)

    def forward(self, inputs):
        return self.last(self.norm(self.first(inputs)).tanh()) * self.scale


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(WIDTH, WIDTH, bias=False)
        self.decoder = nn.Linear(WIDTH, WIDTH, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs):
        return self.decoder(self.encoder(inputs).tanh())


class Around(nn.Module):
    """A network that calls a part of it as parallel training does."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        return self.module(inputs)


def attention(position):
    """Opacus's own, by itself or within: its state dict is another in the two cases."""
    from opacus import layers

    class Attention(layers.DPMultiheadAttention):
        def forward(self, inputs):
            given = inputs[:, None, :4]
            return super().forward(given, given, given)[0][:, 0]

    torch.manual_seed(1)
    inner = Attention(4, 2, batch_first=True)
    return inner if position == "alone" else nn.Sequential(inner)


def trained(kind):
    torch.manual_seed(0)
    network = kind()
    for buffer in network.buffers():
        if buffer.is_floating_point() and buffer.shape == (8,):
            buffer.uniform_(0.5, 2)
    return network.eval()


def renamed(*pairs):
    def change(state):
        for old, new in pairs:
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
        return state

    return change


def without(*names):
    return lambda state: {name: one for name, one in state.items() if name not in names}


def starting(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def within(*keys):
    def change(state):
        for key in keys:
            state = {"epoch": 3, key: state, "optimizer_state_dict": {"state": {}}}
        return state

    return change


def also(**more):
    return lambda state: {**state, **more}


MASK = torch.ones(1, 1, 6, 6).tril()
WRITTEN = {
    "as it is": (Net, dict),
    "torch 1.12's weight_norm": (
        Net,
        renamed(
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ),
    ),
    "no counter": (Net, without("norm.num_batches_tracked")),
    "a constant": (Net, also(scale=torch.tensor([1.0, 2.0, 4.0]))),
    "positions and masks": (
        Net,
        also(
            **{"h.0.attn.bias": MASK, "h.0.attn.masked_bias": torch.tensor(-1e4)},
            position_ids=torch.arange(6)[None],
        ),
    ),
    "Opacus's attention": (lambda: attention("within"), dict),
    "Opacus's attention alone": (lambda: attention("alone"), dict),
    "tied, one left out": (Tied, without("decoder.weight")),
    "tied, the other left out": (Tied, without("encoder.weight")),
    "tied, both": (Tied, lambda state: {name: one.clone() for name, one in state.items()}),
    "DP": (Net, starting("_module.")),
    "parallel": (Net, starting("module.")),
    "compiled": (Net, starting("_orig_mod.")),
    "parallel of compiled of DP": (Net, starting("module._orig_mod._module.")),
    "called so": (Around, dict),
    "called so, and parallel": (Around, starting("module.")),
    "called so, and not": (Around, renamed(("module.", ""))),
    **{key: (Net, within(key)) for key in ("state_dict", "model_state_dict", "model")},
    "module_state_dict of DP": (
        Net,
        lambda s: within("module_state_dict")(starting("_module.")(s)),
    ),
    "within two": (Net, within("state_dict", "model")),
}


def in_file(network, change, folder):
    folder.mkdir(exist_ok=True)
    torch.save(change(network.state_dict()), folder / "model.pt")
    return folder


def loaded(network, folder):
    """A network, other than the one that was saved, with what is in a folder."""
    return ModelRunner(CPU).load_one(Architecture.of(network), folder)


@pytest.mark.parametrize("way", WRITTEN)
def test_weights_as_others_write_them(way, tmp_path):
    kind, change = WRITTEN[way]
    network = trained(kind)
    expected = network(ROWS).detach()
    folder = in_file(network, change, tmp_path / "model_0")
    torch.manual_seed(5)
    found = loaded(kind(), folder)
    assert torch.equal(found(ROWS), expected)
    assert not any(one.requires_grad for one in found.parameters())


@pytest.mark.parametrize(
    "way", ["parallel", "compiled", "parallel of compiled of DP", "state_dict", "within two"]
)
def test_weights_are_the_same_whatever_is_around_them(way, tmp_path):
    network = trained(Net)
    plain = in_file(network, dict, tmp_path / "model_0") / "model.pt"
    other = in_file(network, WRITTEN[way][1], tmp_path / "model_1") / "model.pt"
    assert check_weights(plain) == check_weights(other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_half", [False, True], ids=["a plain network", "a network in half"])
def test_half_precision_is_run_in_single(dtype, is_half, tmp_path, caplog):
    states.say.cache_clear()
    network = trained(Tied)
    folder = tmp_path / "model_0"
    folder.mkdir()
    save_file({"encoder.weight": network.encoder.weight.to(dtype)}, folder / "model.safetensors")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            found = loaded(Tied().to(dtype) if is_half else Tied(), folder)
    rounded = network.to(dtype).float()
    assert found(ROWS).dtype == torch.float32
    assert torch.equal(found(ROWS), rounded(ROWS))
    assert is_half or caplog.text.count("in half precision are run in float32") == 1


def test_what_is_taken_off_is_said_once(tmp_path, caplog):
    states.say.cache_clear()
    network = trained(Net)
    change = WRITTEN["a constant"][1]
    folder = in_file(network, lambda s: {"model": starting("module.")(change(s))}, tmp_path / "m")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            loaded(Net(), folder)
    assert [record.message for record in caplog.records] == [
        "State dicts are taken out of the entry `model` of their files.",
        "Keys of weights lose `module.` in their files.",
        "Keys of weights that a network makes itself are left out: `scale`.",
    ]


MISFITS = {
    "missing": (Net, without("last.bias"), r"key `last\.bias` of shape \(3,\) is missing\.$"),
    "two missing": (Net, without("last.bias", "last.weight"), "missing, and so are 1 more"),
    "missing beside old keys": (
        Net,
        lambda s: without("last.bias")(WRITTEN["torch 1.12's weight_norm"][1](s)),
        r"key `last\.bias` of shape \(3,\) is missing",
    ),
    "half of a pair": (
        Net,
        renamed(("parametrizations.weight.original0", "weight_g")),
        r"key `first\.parametrizations\.weight\.original0` .*is missing",
    ),
    "unexpected": (Net, also(more=torch.ones(2)), r"key `more` of shape \(2,\) is unexpected"),
    "a bias that is no mask": (
        Net,
        also(**{"attn.bias": 2 * MASK}),
        r"`attn.bias` of shape \(1, 1, 6, 6\) is unexpected",
    ),
    "another constant": (
        Net,
        also(scale=torch.ones(3)),
        "key `scale` must be what the network makes itself, as it cannot be set, got other values",
    ),
    "another shape": (
        Net,
        also(**{"last.bias": torch.ones(4)}),
        r"key `last\.bias` must have shape \(3,\), got \(4,\)",
    ),
    "another shape of an old key": (
        Net,
        lambda s: {**WRITTEN["torch 1.12's weight_norm"][1](s), "first.weight_g": torch.ones(4, 1)},
        "model.pt: .*original0.* size mismatch|size mismatch.*original0",
    ),
    "whole numbers": (
        Net,
        also(**{"last.bias": torch.ones(3).long()}),
        r"key `last\.bias` must be torch.float32, got torch.int64",
    ),
    "tied apart": (
        Tied,
        lambda s: {**s, "decoder.weight": s["decoder.weight"] + 1},
        "keys `encoder.weight` and `decoder.weight` must be the same",
    ),
    "Opacus's attention, a part": (
        lambda: attention("alone"),
        without("out_proj.bias"),
        r"model\.pt: .*out_proj\.bias",
    ),
    "two of them": (
        Net,
        lambda s: {"state_dict": s, "model": s},
        "must hold one state dict, got `state_dict` and `model`",
    ),
    "with and without": (
        Net,
        lambda s: {**s, "_orig_mod.last.bias": s["last.bias"]},
        r"key `last\.bias` must be there once, got it with and without `_orig_mod\.`",
    ),
    "nested without an end": (
        Net,
        within(*["model"] * 5),
        "expected a state dict of tensors, got a dict with one as its `model`",
    ),
}


@pytest.mark.parametrize("fault", MISFITS)
def test_weights_that_do_not_fit(fault, tmp_path):
    kind, change, message = MISFITS[fault]
    folder = in_file(trained(kind), change, tmp_path / "model_0")
    with pytest.raises(InputError, match=message) as told:
        load_state(folder / "model.pt", kind())
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500


def in_shards(network, folder, whole="model.safetensors", **changes):
    """As large models are saved: an index, and the keys spread over two files."""
    folder.mkdir(exist_ok=True)
    stem, suffix = whole.rsplit(".", 1)
    names = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    places = {key: names[i % 2] for i, key in enumerate(network.state_dict())}
    for name in names:
        part = {key: network.state_dict()[key] for key in places if places[key] == name}
        (save_file if suffix == "safetensors" else torch.save)(part, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": {**places, **changes}}
    (folder / f"{whole}.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_one_model(whole, tmp_path):
    network = trained(Net)
    folder = in_shards(network, tmp_path / "model_0", whole)
    assert torch.equal(loaded(Net(), folder)(ROWS), network(ROWS))
    before = fingerprint(folder, FileFingerprints(tmp_path / "memory"))
    assert len(before.files) == 3
    assert before.weights == check_weights(weights_file(folder))
    other = trained(Net)
    other.last.bias.data += 1
    in_shards(other, folder, whole)
    after = fingerprint(folder, FileFingerprints(tmp_path / "memory"))
    assert before.files[0] == after.files[0]  # the index
    assert before.weights != after.weights


def test_a_damaged_shard_is_found_when_it_is_first_seen(tmp_path):
    """And again after it was remembered, though the index is the same."""
    network = trained(Net)
    folder = in_shards(network, tmp_path / "model_0", "pytorch_model.bin")
    for path in folder.iterdir():
        os.utime(path, (time.time() - 60,) * 2)
    with FileFingerprints(tmp_path / "memory") as files:
        fingerprint(folder, files)
    path = folder / "pytorch_model-00002-of-00002.bin"
    content, values = path.read_bytes(), network.norm.weight.detach().numpy().tobytes()
    assert values in content
    path.write_bytes(content.replace(values, bytes([values[0] ^ 1, *values[1:]])))
    with pytest.raises(InputError, match=r"00002\.bin: cannot be read .* is damaged"):
        fingerprint(folder, FileFingerprints(tmp_path / "memory"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"last.bias": "../model-00001-of-00002.safetensors"},
            r"must name files as model-.*\.\./m",
        ),
        ({"last.bias": "/etc/passwd"}, "must name files as model-00001-of-00002.safetensors"),
        ({"last.bias": "model-00001-of-00002.bin"}, "must name files as .* got 'model-00001"),
        ({"last.bias": ["a"]}, "must name files as"),
        (
            {"last.bias": "model-00009-of-00009.safetensors"},
            "00009.safetensors is missing: .*names",
        ),
        ({"more": "model-00001-of-00002.safetensors"}, "must hold key `more`, got none of that"),
        (None, "must hold a `weight_map`"),
        ("[1]", "must hold a `weight_map`"),
        ('{"weight_map": {}}', "must name at least one file of weights"),
    ],
)
def test_an_index_that_is_none(change, message, tmp_path):
    changes = change if isinstance(change, dict) else {}
    folder = in_shards(trained(Net), tmp_path / "model_0", **changes)
    if not changes:
        (folder / "model.safetensors.index.json").write_text(change or "")
    with pytest.raises(InputError, match=message) as told:
        load_state(weights_file(folder), Net())
    assert "\n" not in str(told.value)


def test_shards_beside_a_whole_file_are_refused(tmp_path):
    folder = in_shards(trained(Net), tmp_path / "model_0")
    save_file(trained(Tied).encoder.state_dict(), folder / "model.safetensors")
    with pytest.raises(InputError, match=r"one weights file, got model\.safetensors and "):
        weights_file(folder)


def test_a_network_of_torchvision_by_its_name(tmp_path):
    option = {"_target_": "torchvision.models.resnet18", "num_classes": 10}
    torch.manual_seed(0)
    saved, images = make(option).eval(), torch.rand(4, 3, 32, 32)
    records = Features(images, torch.arange(4))
    folder = in_file(saved, without("bn1.num_batches_tracked"), tmp_path / "model_0")
    first, other = (Architecture.of(make(option)) for _ in range(2))
    assert first.key == other.key  # whatever weights it begins with
    model = ModelRunner(CPU).load(first, [folder])
    found = ModelRunner(CPU).scores(model, records, np.arange(4)[None], {"loss": metrics.loss})
    alone = [metrics.loss(saved(images[[i]]), records.labels[[i]]).item() for i in range(4)]
    np.testing.assert_allclose(found["loss"][0], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"_target_": "nowhere.Net"}, "nowhere.Net cannot be imported: No module named 'nowhere'"),
        ({"_target_": "torch.nn.Nowhere"}, "torch.nn.Nowhere cannot be imported: No module named"),
        ({"_target_": "torch.nn"}, "Expected a callable target, got '<module 'torch.nn' from"),
        ({"_target_": "torch.nn.Linear", "width": 3}, "TypeError: Linear.* argument 'width'"),
    ],
)
def test_an_option_that_makes_nothing_is_one_line(option, message):
    whole = OmegaConf.create({"dataset": {"model": option}})
    with pytest.raises(InputError, match=rf"^`dataset\.model`: {message}") as told:
        make(whole.dataset.model)
    assert "\n" not in str(told.value)


# ---------------------------------------------------------------- what they give

Pair = namedtuple("Pair", ["features", "scores"])


class Giving(nn.Module):
    """A linear layer, and a function of its logits."""

    def __init__(self, function, classes=CLASSES):
        super().__init__()
        self.layer = nn.Linear(WIDTH, classes)
        self.function = function

    def forward(self, inputs):
        return self.function(self.layer(inputs))


def single(function):
    """One output of the second of two logits, of which the first is 0."""
    return lambda z: function(z[:, 1] - z[:, 0])


GIVEN = {  # function of logits, classes, options
    "logits": (lambda z: z, 3, {}),
    "a tuple": (lambda z: (z, z.sum()), 3, {"take": 0}),
    "the second of a tuple": (lambda z: (z.sum(), z), 3, {"take": 1}),
    "a list": (lambda z: [z], 3, {"take": -1}),
    "a named tuple": (lambda z: Pair(None, z), 3, {"take": "scores"}),
    "a dictionary": (lambda z: {"out": z}, 3, {"take": "out"}),
    "an object": (lambda z: SimpleNamespace(out=z), 3, {"take": "out"}),
    "an object with logits": (lambda z: SimpleNamespace(logits=z), 3, {}),
    "probabilities": (lambda z: z.softmax(-1), 3, {"outputs": "probabilities"}),
    "double ones": (lambda z: z.double().softmax(-1), 3, {"outputs": "probabilities"}),
    "ones in a dictionary": (
        lambda z: {"probs": z.softmax(-1)},
        3,
        {"outputs": "probabilities", "take": "probs"},
    ),
    "log-probabilities": (lambda z: z.log_softmax(-1), 3, {"outputs": "log_probabilities"}),
    "one logit": (single(lambda z: z), 2, {"outputs": "logits"}),
    "a column of it": (single(lambda z: z[:, None]), 2, {"outputs": "logits"}),
    "one probability": (single(torch.sigmoid), 2, {"outputs": "probabilities"}),
    "a column of those": (single(lambda z: z.sigmoid()[:, None]), 2, {"outputs": "probabilities"}),
    "one log-probability": (
        single(nn.functional.logsigmoid),
        2,
        {"outputs": "log_probabilities"},
    ),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_what_a_network_gives_means_what_its_option_says(kind, tmp_path):
    """Loss, φ and gradient norms are those of the logits within, also of one record alone."""
    function, classes, options = GIVEN[kind]
    torch.manual_seed(0)
    network = Giving(function, classes)
    folder = in_file(network, dict, tmp_path / "model_0")
    records = Features(ROWS, torch.arange(COUNT) % classes)
    architecture = Architecture.of(Interpreted(Giving(function, classes), **options))
    trial = Trial(architecture, records, CPU)
    assert trial(trial_of(records, EVERY, [folder])) == ""
    runner, points = ModelRunner(CPU), EVERY[None]
    wanted = {"loss": metrics.loss, "logit": metrics.logit, "margin": metrics.margin}
    found = runner.scores(runner.load(architecture, [folder]), records, points, wanted)
    model = runner.load_one(architecture, folder)
    found |= GradientRunner(runner).scores(model, records, EVERY, {"norm": GradNorm()})
    for i, (row, label) in enumerate(zip(ROWS, records.labels, strict=True)):
        z = network.layer(row[None]).double().detach()
        p = z.softmax(-1)[0, label]
        others = torch.cat([z[0, :label], z[0, label + 1 :]])
        error = (z.softmax(-1) - nn.functional.one_hot(label, classes)).squeeze()
        np.testing.assert_allclose(found["loss"].flat[i], p.log(), atol=1e-5)
        np.testing.assert_allclose(found["logit"].flat[i], (p / (1 - p)).log(), atol=1e-5)
        np.testing.assert_allclose(found["margin"].flat[i], z[0, label] - others.max(), atol=1e-5)
        norm = error.norm() * torch.cat([row, torch.ones(1)]).double().norm()
        np.testing.assert_allclose(-found["norm"][i], norm, rtol=1e-4)


def given_as(output, **options):
    """Logits (P, C) that are made of an output, whatever the inputs."""
    network = Interpreted(Giving(lambda _: torch.as_tensor(output)), **options)
    return network(ROWS[: len(output)])


def test_probabilities_of_0_and_1_are_finite_and_keep_their_order(caplog):
    p = torch.tensor(
        [[1, 0, 0], [1, 1e-30, 0], [1, 1e-20, 1e-20], [0.5, 0.5, 0], [1e-44, 1, 0], [0, 1, 0]]
    )
    logits = given_as(p, outputs="probabilities")
    phi = metrics.logit(logits, torch.zeros(len(p)).long())
    assert phi.isfinite().all()
    assert (phi.diff() < 0).all()
    np.testing.assert_allclose(phi[1:4], np.log([1e30, 0.5e20, 1]), rtol=1e-5)
    assert (logits == given_as(p.log(), outputs="log_probabilities")).all()


def test_that_sure_records_are_tied_is_said(caplog):
    from mico_exp.models import interpreted

    interpreted._say_of_zeros.cache_clear()
    sure = given_as(
        torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.9, 0.1, 0]]), outputs="probabilities"
    )
    phi = metrics.logit(sure, torch.zeros(3).long())
    assert phi[0] == phi[1] > phi[2]
    assert caplog.text.count("probabilities of exactly 0, which count for 2^-149") == 1


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ([[0.5, 0.4], [0.5, 0.2]], {}, "must add up to 1, got sums that are off by up to 0.3"),
        ([[1.5, -0.5]], {}, r"must give numbers in \[0, 1\], got -0.5 … 1.5"),
        ([[2.0], [0.5]], {}, r"must give numbers in \[0, 1\]"),
        (
            [[1.0, 3.0]],
            {"outputs": "log_probabilities"},
            "log-probabilities must be at most 0, got 3",
        ),
        (
            [[1.0, 3.0]],
            {"take": "scores"},
            "`dataset.model.take` must name a part .* 'scores' of a T",
        ),
        ([[1.0, 3.0]], {"take": 7}, "`dataset.model.take` must name .* 7 of a Tensor"),
    ],
)
def test_outputs_that_are_not_what_they_are_said_to_be(output, options, message):
    with pytest.raises(InputError, match=message):
        given_as(output, **{"outputs": "probabilities", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": "odds"}, "`dataset.model.outputs` must be one of logits, prob.* got 'odds'"),
        ({"take": 1.5}, "`dataset.model.take` must be a position, a name or null, got 1.5"),
        ({"network": {"hidden": 3}}, "`dataset.model.network` must be a torch module, got a "),
    ],
)
def test_options_that_mean_nothing(options, message):
    option = {"network": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}}
    target = {"_target_": "mico_exp.models.interpreted.Interpreted"}
    with pytest.raises(InputError, match=message):
        make({**target, **option, **options})


# ---------------------------------------------------------------- beside others


class Beside(MLP):
    """A network that sees the other records of its batch, or cannot stand any."""

    stack = None

    def __init__(self, habit):
        super().__init__([64, 16, 10])
        self.habit = habit

    def forward(self, inputs):
        if self.habit == "fails" and len(inputs) > 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        z = super().forward(inputs)
        return z * (1 + 0.1 * len(z)) if self.habit == "sees" else z


@pytest.mark.parametrize("habit", ["sees", "fails", "neither"])
def test_a_network_that_answers_otherwise_beside_others_is_asked_alone(
    habit, built, digits, tmp_path, caplog
):
    whole = load_scenario(built, "digits", "digits_inf", SIZES)
    scenario = replace(whole, phases={"train": whole.phases["train"][:2]})
    points = challenge_points(scenario)
    where = Architecture.of(Beside(habit)), ScoreStore(tmp_path), CPU
    job = Extraction(scenario, points, digits, *where)
    job.compute({"loss": metrics.loss})
    found = job.read("loss", metrics.loss).shadow[0]
    network = loaded(Beside(habit), scenario.phases["train"][0].path)
    one = digits.features[:, None], digits.labels[:, None]
    alone = [metrics.loss(network(one[0][i]), one[1][i]).item() for i in points.unique]
    np.testing.assert_allclose(found, alone, atol=1e-6)
    job.compute({"norm": GradNorm()})
    first, own = points.unique[0], list(network.requires_grad_(True).parameters())
    value = nn.functional.cross_entropy(network(one[0][first]), one[1][first])
    norm = torch.cat([part.flatten() for part in torch.autograd.grad(value, own)]).norm().item()
    assert job.read("norm", GradNorm()).shadow[0, 0] == pytest.approx(-norm, rel=1e-4)
    told = "model_0: answers otherwise beside other records, "
    assert caplog.text.count(told) == (habit != "neither")
    assert caplog.text.count("every record is asked by itself") == (habit != "neither")


# ---------------------------------------------------------------- classifiers of transformers

SMALL = {"vocab_size": 60, "num_labels": 3}
BERT = {
    **SMALL,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}
ZOO = {
    "bert": BERT,
    "electra": {**BERT, "embedding_size": 8},
    "albert": {**BERT, "embedding_size": 8},
    "deberta-v2": {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "fnet": BERT,
    "distilbert": {
        **SMALL,
        "dim": 16,
        "hidden_dim": 32,
        "n_heads": 2,
        "n_layers": 2,
        "max_position_embeddings": 24,
    },
    "gpt2": {
        **SMALL,
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 24,
        "pad_token_id": 0,
    },
    "xlnet": {**SMALL, "d_model": 16, "n_head": 2, "n_layer": 2, "d_inner": 32},
    "bart": {
        **SMALL,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_position_embeddings": 24,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    },
}
SEE_PADDING = ("fnet", "xlnet")
POSITIONS = torch.arange(24)[None]
OF_THEN = {  # what transformers of 2022 wrote beside, and what it left out
    **{
        kind: also(**{f"{kind.partition('-')[0]}.embeddings.position_ids": POSITIONS})
        for kind in ("bert", "electra", "albert", "deberta-v2", "fnet", "distilbert")
    },
    "gpt2": also(
        **{f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril().byte() for i in (0, 1)},
        **{f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in (0, 1)},
    ),
    "xlnet": dict,
    "bart": without("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
}


def classifier(kind, **changes):
    """One of random weights, which are larger than they begin with."""
    from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**ZOO[kind], **changes})
    network = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for one in network.parameters():
            one.normal_(0, 0.3)
    return network


@pytest.fixture(scope="module")
def sentences():
    """Of 2 to 11 tokens, the last an end; padded with an id that no network has for that."""
    random = np.random.default_rng(0)
    ids = [[*random.integers(4, 59, size=length), 2] for length in [1, 10, 3, 7, 2, 5, 9, 4]]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    return Sentences(np.concatenate(ids).astype(np.int32), starts, torch.arange(8) % 3, pad=59)


@torch.no_grad()
def losses(network, sentences):
    """Of every sentence by itself, by the network's own forward pass."""
    parts = np.split(sentences.tokens, sentences.starts[1:-1])
    logits = [network(torch.from_numpy(one[None]).long()).logits for one in parts]
    pairs = zip(logits, sentences.labels, strict=True)
    return [-nn.functional.cross_entropy(z, label[None]).item() for z, label in pairs]


def scored(architecture, folder, records):
    """Losses on the way that an extraction takes; and whether records are asked one by one."""
    points = np.arange(len(records.labels))
    trial = Trial(architecture, records, CPU)
    otherwise = trial(trial_of(records, points, [folder]))
    runner = ModelRunner(Processor("cpu", batch_size=1 if otherwise else None))
    models = runner.load(architecture, [folder])
    found = runner.scores(models, records, points[None], {"loss": metrics.loss})
    return found["loss"][0], bool(otherwise)


@pytest.mark.parametrize("kind", ZOO)
def test_a_sequence_classifier_by_its_own_config(kind, sentences, tmp_path):
    network = classifier(kind)
    network.config.save_pretrained(tmp_path)
    torch.save(OF_THEN[kind](network.state_dict()), tmp_path / "pytorch_model.bin")
    option = {"_target_": "mico_exp.models.classifiers.sequence_classifier", "_partial_": True}
    architecture = Architecture.of(make(option))
    soundness.check_records(sentences, np.arange(8), architecture.make(tmp_path))
    found, one_by_one = scored(architecture, tmp_path, sentences)
    np.testing.assert_allclose(found, losses(network, sentences), atol=1e-5)
    assert one_by_one == (kind in SEE_PADDING)


def test_a_network_without_a_padding_id_is_asked_one_by_one(sentences, tmp_path):
    network = classifier("gpt2", pad_token_id=None)
    network.save_pretrained(tmp_path)
    found, one_by_one = scored(Architecture.of(sequence_classifier), tmp_path, sentences)
    np.testing.assert_allclose(found, losses(network, sentences), atol=1e-5)
    assert one_by_one


def test_what_a_config_says_of_its_place_makes_no_other_network(tmp_path):
    """Else a hundred models would be a hundred networks in memory."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        told = {**BERT, "model_type": "bert", "_name_or_path": name, "torch_dtype": "float16"}
        (tmp_path / name / "config.json").write_text(json.dumps(told))
    one, other = (sequence_classifier(tmp_path / name) for name in ("one", "other"))
    assert one is other
    assert {weight.dtype for weight in one.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"model_type": "resnet"}, "`model_type` must be that of a sequence class.* got 'resnet'"),
        ({"model_type": "mra"}, "`model_type` must be .* that needs no kernels, got 'mra'"),
        ({"model_type": None}, "`model_type` must be .* got None"),
        ({"model_type": ["bert"]}, r"`model_type` must be|unhashable"),
        ({"auto_map": {"AutoModel": "mine.Net"}}, "`auto_map` asks for code that is not run here"),
        ({"deep": {"auto_map": {"A": "b"}}}, "`auto_map` asks for code"),
        ({"deep": [{"auto_map": {"A": "b"}}]}, "`auto_map` asks for code"),
        ({"_attn_implementation": "kernels-community/x"}, "`_attn_implementation` asks for code"),
        ({"attn_implementation": {"": "me/x"}}, "`attn_implementation` asks for code"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` asks for code"),
        ({"experts_implementation": "me/x"}, "`experts_implementation` asks for code"),
        ({"hidden_act": "__import__('os')"}, "describes no model that can be made here"),
        ({"num_attention_heads": 3}, "describes no model that can be made here"),
        ("[1]", "must hold a dictionary, got a list"),
        ("{", "describes no model that can be made here"),
        (None, "is missing: it says what shape the model has"),
    ],
)
def test_a_config_that_describes_none(told, message, tmp_path):
    path = tmp_path / "config.json"
    if told is not None:
        whole = told if isinstance(told, str) else {**BERT, "model_type": "bert", **told}
        path.write_text(whole if isinstance(told, str) else json.dumps(whole))
    with pytest.raises(InputError, match=message) as failed:
        sequence_classifier(tmp_path)
    assert str(failed.value).startswith(str(path))
    assert "\n" not in str(failed.value)


# ---------------------------------------------------------------- LoRA


@pytest.fixture(scope="module")
def made(tmp_path_factory, sentences):
    """A base, an adapter of it, and the two merged; and what `peft` makes of the adapter."""
    import peft

    place = tmp_path_factory.mktemp("lora")
    base = classifier("bert")
    base.save_pretrained(place / "base")
    told = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name of its own
        network = peft.get_peft_model(base, told)
    with torch.no_grad():
        for one in network.parameters():
            if one.requires_grad:
                one.normal_(0, 0.3)
    network.save_pretrained(place / "model_0")
    expected = losses(network.eval(), sentences)
    network.merge_and_unload().save_pretrained(place / "merged")
    return place, expected


@pytest.fixture
def adapted(made, tmp_path):
    """The same, to be changed."""
    place, expected = made
    return shutil.copytree(place, tmp_path / "lora"), expected


def test_an_adapter_gives_what_it_gives_merged(adapted, sentences):
    place, expected = adapted
    option = {"_target_": "mico_exp.models.classifiers.LoRA", "base": str(place / "base")}
    apart, one_by_one = scored(Architecture.of(make(option)), place / "model_0", sentences)
    merged, _ = scored(Architecture.of(sequence_classifier), place / "merged", sentences)
    np.testing.assert_allclose(apart, expected, atol=1e-5)
    np.testing.assert_allclose(apart, merged, atol=1e-5)
    assert not one_by_one
    assert np.abs(apart - losses(classifier("bert"), sentences)).max() > 0.1


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertModel", "of two classes"])
def test_a_base_may_have_another_head(kind, adapted, sentences):
    import transformers

    place, expected = adapted
    base, options = classifier("bert"), {}
    if kind == "of two classes":
        other, options = classifier("bert", num_labels=2), {"num_labels": 3}
        inner = other.bert
    else:
        other = getattr(transformers, kind)(base.config)
        inner = getattr(other, "bert", other)
    inner.load_state_dict(base.bert.state_dict(), strict=kind != "BertForMaskedLM")
    other.save_pretrained(place / "other")
    architecture = Architecture.of(LoRA(str(place / "other"), **options))
    if kind == "BertForMaskedLM":  # which goes without a pooler, that the classifier needs
        with pytest.raises(InputError, match=r"key `bert\.pooler\..*is missing"):
            scored(architecture, place / "model_0", sentences)
    else:
        found, _ = scored(architecture, place / "model_0", sentences)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_base_makes_other_scores(adapted):
    place, _ = adapted
    first = Architecture.of(LoRA(str(place / "base"))).key
    assert Architecture.of(LoRA(str(place / "base"))).key == first
    network = classifier("bert")
    network.bert.embeddings.word_embeddings.weight.data += 1
    network.save_pretrained(place / "base")
    assert Architecture.of(LoRA(str(place / "base"))).key != first


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"peft_type": "IA3"}, "`peft_type` must be LORA, got 'IA3'"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` must be a way that leaves the base"),
        ({"megatron_config": {"a": 1}}, "`megatron_config` is no part of a plain LoRA"),
        ({"from_the_future": 7}, "`from_the_future` is no part of a plain LoRA"),
        ({"target_modules": ["nowhere"]}, "can be made here: No modules"),
        ({"target_modules": ["query"]}, "key .*value.lora_A.* is unexpected"),
        ({"target_modules": ["query", "value", "key"]}, "key .*key.lora_A.* is missing"),
        ({"r": 2}, r"must have shape \(2, 16\), got \(4, 16\)"),
    ],
)
def test_an_adapter_that_is_none(told, message, adapted):
    place, _ = adapted
    path = place / "model_0" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}))
    architecture = Architecture.of(LoRA(str(place / "base")))
    with pytest.raises(InputError, match=message) as failed:
        ModelRunner(CPU).load_one(architecture, place / "model_0")
    assert "\n" not in str(failed.value)


def test_adapters_need_peft(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"need `peft`, .* install mico_exp\[lora\]"):
        LoRA(str(tmp_path))
