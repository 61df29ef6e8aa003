"""Metrics of gradients against autograd, record by record, over networks of all kinds."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    RobertaConfig,
)

from mico_exp.common.errors import InputError
from mico_exp.models import planning
from mico_exp.scores import gradients, white_box
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.sight import sight_of
from mico_exp.scores.white_box import GradientRunner, Reference

CLASSES, POINTS = 3, 6
METRICS = {"grad_norm": gradients.GradNorm(), "grad_alignment": gradients.GradAlignment()}


class Records:
    """Inputs as they are; those of a dictionary are padded, `attention_mask` says how far."""

    fingerprint = "zoo"

    def __init__(self, inputs):
        self.parts = inputs
        self.labels = torch.arange(POINTS) % CLASSES

    def inputs(self, indices):
        if isinstance(self.parts, dict):
            return {name: one[indices] for name, one in self.parts.items()}
        return self.parts[indices]

    def sizes(self, indices):
        return np.ones(len(indices), dtype=np.int64)


class Through(nn.Module):
    """A network called by a function."""

    def __init__(self, call, **parts):
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, inputs):
        return self.call(self, inputs)


def images(size, channels=3):
    return torch.randn(POINTS, channels, size, size)


def sequences():
    return torch.randn(POINTS, 5, 8)


def tokens():
    ids = torch.randint(3, 50, (POINTS, 7))
    mask = torch.ones_like(ids)
    for row, length in ((0, 4), (3, 2), (4, 6)):
        ids[row, length:], mask[row, length:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def vgg():
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout(), nn.Linear(16, CLASSES))


def resnet():
    block = torchvision.models.resnet.BasicBlock
    across = nn.Sequential(nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), block(6, 6)]
    layers += [block(6, 8, 2, across), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, CLASSES))


def mobilenet():
    setting = [[1, 8, 1, 1], [6, 8, 2, 2], [6, 16, 1, 2]]
    return torchvision.models.MobileNetV2(CLASSES, 0.5, inverted_residual_setting=setting)


def shufflenet():
    return torchvision.models.ShuffleNetV2([1, 1, 1], [8, 16, 16, 16, 32], num_classes=CLASSES)


def densenet():
    return torchvision.models.DenseNet(4, (2, 2), 8, num_classes=CLASSES)


def convnext():
    setting = torchvision.models.convnext.CNBlockConfig
    blocks = [setting(8, 16, 1), setting(16, None, 1)]
    return torchvision.models.ConvNeXt(blocks, layer_scale=0.5, num_classes=CLASSES)


def swin():
    return torchvision.models.SwinTransformer(
        [2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=CLASSES, stochastic_depth_prob=0.0
    )


def vit():
    return torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=CLASSES)


def recurrent(kind, first):
    def call(self, x):
        outputs, _ = self.core(x if first else x.transpose(0, 1))
        return self.head(outputs[:, -1] if first else outputs[-1])

    return Through(call, core=kind(8, 6, batch_first=first), head=nn.Linear(6, CLASSES))


def encoder(first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=first)

    def call(self, x):
        outputs = self.core(x if first else x.transpose(0, 1))
        return self.head(outputs.mean(dim=1 if first else 0))

    core = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Through(call, core=core, head=nn.Linear(8, CLASSES))


def conv1d():
    layers = [nn.Conv1d(5, 6, 3, padding="same"), nn.GroupNorm(2, 6), nn.PReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.utils.parametrizations.weight_norm(nn.Linear(48, CLASSES)))


def odd_convolutions():
    layers = [nn.Conv2d(3, 6, 3, padding="same", dilation=2), nn.SiLU(inplace=True)]
    layers += [
        nn.Conv2d(6, 6, 3, groups=3, padding=1, padding_mode="circular"),
        nn.InstanceNorm2d(6),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(384, CLASSES))


def tied():
    """One layer called twice, and another's weights used by themselves."""

    def call(self, x):
        x = self.layer(self.layer(x).tanh()).mean(dim=1)
        return nn.functional.linear(self.other(x).tanh() + x, self.other.weight)[:, :CLASSES]

    return Through(call, layer=nn.Linear(8, 8), other=nn.Linear(8, 8, bias=False))


def transformer(config, **options):
    options = {"num_labels": CLASSES, "vocab_size": 50, "pad_token_id": 0, **options}
    network = AutoModelForSequenceClassification.from_config(config(**options))
    return Through(lambda self, x: self.network(**x), network=network)


BERT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
BERT |= {"max_position_embeddings": 16}
ZOO = {
    "vgg": (vgg, lambda: images(16)),
    "resnet": (resnet, lambda: images(16)),
    "mobilenet": (mobilenet, lambda: images(16)),
    "shufflenet": (shufflenet, lambda: images(32)),
    "densenet": (densenet, lambda: images(32)),
    "convnext": (convnext, lambda: images(16)),
    "swin": (swin, lambda: images(16)),
    "vit": (vit, lambda: images(16)),
    "lstm": (lambda: recurrent(nn.LSTM, True), sequences),
    "lstm, time first": (lambda: recurrent(nn.LSTM, False), sequences),
    "gru": (lambda: recurrent(nn.GRU, True), sequences),
    "encoder": (lambda: encoder(True), sequences),
    "encoder, time first": (lambda: encoder(False), sequences),
    "conv1d": (conv1d, sequences),
    "odd convolutions": (odd_convolutions, lambda: images(8)),
    "tied": (tied, sequences),
    "bert": (lambda: transformer(BertConfig, **BERT), tokens),
    "roberta": (lambda: transformer(RobertaConfig, **BERT), tokens),
    "electra": (lambda: transformer(ElectraConfig, **BERT, embedding_size=4), tokens),
    "albert": (lambda: transformer(AlbertConfig, **BERT, embedding_size=4), tokens),
    "deberta": (
        lambda: transformer(
            DebertaV2Config, **BERT, relative_attention=True, pos_att_type="c2p|p2c"
        ),
        tokens,
    ),
    "distilbert": (
        lambda: transformer(DistilBertConfig, dim=8, n_layers=2, n_heads=2, hidden_dim=16),
        tokens,
    ),
    "gpt2": (
        lambda: transformer(GPT2Config, n_embd=8, n_layer=2, n_head=2, n_positions=16),
        tokens,
    ),
}


def ready(make):
    """A network whose parameters are all away from where they began."""
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def written_out(model, records):
    """Gradient of every record's loss by autograd, alone: a row (P, D)."""
    rows = []
    model.requires_grad_(True)
    for i in range(POINTS):
        output = model(records.inputs(torch.tensor([i])))
        loss = nn.functional.cross_entropy(getattr(output, "logits", output), records.labels[[i]])
        found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        rows.append(torch.cat([one.flatten() for one in found]))
    model.requires_grad_(False)
    return torch.stack(rows)


ALONE = ("resnet", "lstm, time first", "encoder, time first", "tied")  # some of all kinds


@pytest.mark.parametrize(
    ("name", "batch_size"), [(name, None) for name in ZOO] + [(name, 1) for name in ALONE]
)
def test_as_autograd_has_it(name, batch_size):
    make, inputs = ZOO[name]
    model, records = ready(make), Records(inputs())
    runner = GradientRunner(ModelRunner(Processor("cpu", batch_size=batch_size)))
    found = runner.scores(model, records, np.arange(POINTS), METRICS)
    rows = written_out(model, records)
    norms = rows.norm(dim=1)
    np.testing.assert_allclose(-found["grad_norm"], norms, rtol=1e-4)
    for i in range(POINTS):
        mean = rows[records.labels == records.labels[i]].mean(dim=0)
        expected, room = -(rows[i] @ mean), 1e-4 * norms[i] * mean.norm()
        assert abs(found["grad_alignment"][i] - expected) <= room


class Dropping(nn.Module):
    """Drops out whatever mode it is in."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(40, CLASSES)

    def forward(self, x):
        return self.layer(nn.functional.dropout(x.flatten(1), 0.5))


class Overwriting(Dropping):
    """Writes into what its layer was given, behind autograd's back."""

    def forward(self, x):
        hidden = x.flatten(1)
        outputs = self.layer(hidden)
        hidden.mul_(0.5)
        return outputs


class Choosing(Dropping):
    """Calls its layer for some records alone."""

    def forward(self, x):
        return self.layer(x.flatten(1)) if len(x) < 5 else x[:, 0, :CLASSES]


class Rounding(Dropping):
    """Gives what nothing can be sent back from."""

    def forward(self, x):
        return self.layer(x.flatten(1)).argmax(dim=1, keepdim=True).float().expand(-1, CLASSES)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            Dropping,
            "no gradients for grad_norm: Dropping gives other gradients for the same record",
        ),
        (Rounding, "no gradients for grad_norm: Rounding: its logits do not hang on"),
        (Choosing, "Choosing must call `layer` once whatever the records"),
        (
            Overwriting,
            "cannot be differentiated: RuntimeError: .* modified by an inplace operation",
        ),
        (nn.Flatten, "no gradients for grad_norm: Flatten has no parameters"),
    ],
)
def test_what_has_no_gradients_is_refused(make, words):
    runner, records = GradientRunner(ModelRunner(Processor("cpu"))), Records(sequences())
    with pytest.raises(InputError, match=words):
        runner.scores(ready(make), records, np.arange(POINTS), {"grad_norm": METRICS["grad_norm"]})


def test_a_network_is_compared_with_autograd_once(monkeypatch):
    seen = []
    monkeypatch.setattr(white_box, "plan_of", lambda *a: seen.append(0) or planning.plan_of(*a))
    records, known = Records(sequences()), Reference()
    runner = GradientRunner(ModelRunner(Processor("cpu")))
    for make in (conv1d, conv1d, tied, conv1d):
        model = ready(make)
        runner.scores(model, records, np.arange(POINTS), METRICS, known=known)
    assert len(seen) == 2


class Head(nn.Module):
    """Offers a part for gradients."""

    def __init__(self):
        super().__init__()
        self.body = vgg()
        self.traced = nn.Linear(CLASSES, CLASSES)

    def forward(self, inputs):
        return self.traced(self.body(inputs))


@pytest.mark.parametrize(
    ("make", "dense", "told"),
    [
        (vgg, False, "1,203 of 1,203 parameters (100.00%)"),
        (Head, False, "12 of 1,215 parameters (0.99%), not body"),
        (vgg, True, "579 of 1,203 parameters (48.13%), not 0, 3, 4"),
    ],
)
def test_what_is_seen_is_told(make, dense, told):
    model, inputs = ready(make), images(16)
    plan = planning.plan_of(model, inputs)
    assert str(sight_of(model, inputs, plan, dense=dense)) == told
