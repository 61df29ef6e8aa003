"""Clipped sums: the ways, Opacus and autograd one record at a time, set side by side."""

import functools
import math

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    RobertaConfig,
)

from mico_exp.common.errors import InputError
from mico_exp.models.architectures import TextClassifier, logits_of
from mico_exp.training import per_sample
from mico_exp.training.per_sample import AtOnce, Ghost, InTurn, study

CLASSES, RECORDS = 3, 5
SIZES = {"vocab_size": 30, "num_labels": CLASSES, "pad_token_id": 1}
LAYERS = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}


def images():
    return torch.randn(RECORDS, 4, 6, 7)


def vectors():
    return torch.randn(RECORDS, 6)


def sequences():
    return torch.randn(RECORDS, 4, 6)


def ids():
    return torch.tensor([[3, 4, 5, 5], [6, 1, 1, 1], [7, 7, 7, 1], [8, 9, 3, 1], [9, 1, 3, 4]])


def tokens():
    return {"input_ids": ids().sort(descending=True)[0], "attention_mask": (ids() != 1).long()}


class Pooled(nn.Module):
    """The mean over positions of what a module gives, and a linear layer."""

    def __init__(self, core, width, first=True):
        super().__init__()
        self.core, self.head, self.first = core, nn.Linear(width, CLASSES), first

    def forward(self, x):
        found = self.core(x) if self.first else self.core(x, x, x)
        found = found[0] if isinstance(found, tuple) else found
        return self.head(found.mean(dim=1))


def conv(*layers, width=8):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def attention(dropout=0.0):
    return Pooled(nn.MultiheadAttention(6, 2, dropout, batch_first=True), 6, first=False)


def transformer(config, **sizes):
    made = AutoModelForSequenceClassification.from_config(config(**SIZES, **sizes))
    return TextClassifier(made)


def bert(kind=BertConfig, **more):
    return transformer(kind, **LAYERS, intermediate_size=12, max_position_embeddings=9, **more)


def lora():
    peft = pytest.importorskip("peft")
    model = bert(RobertaConfig)
    adapted = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    model.network = peft.get_peft_model(model.network, adapted)
    return model


class OwnParameter(nn.Module):
    """A parameter that no layer holds, and perhaps dropout: then all of it is written out."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(6)), nn.Linear(6, CLASSES)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        return self.layer(self.drop(x * self.scale))


class Recurrent(nn.Module):
    """A network that `torch.func` cannot take."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.core = nn.LSTM(6, 4, num_layers=2, dropout=dropout)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.core(x.transpose(0, 1))[0][-1])


def across():
    return nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3))


def encoder():
    return Pooled(nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True), 6)


def distilbert():
    sizes = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12}
    return transformer(DistilBertConfig, max_position_embeddings=9, **sizes)


def gpt2():
    return transformer(GPT2Config, n_embd=8, n_layer=1, n_head=2, n_positions=9)


class Asking(OwnParameter):
    """A network that asks for numbers, which `torch.func` does not know."""

    def forward(self, x):
        return super().forward(x) * (1.0 if float(x.detach().sum()) > -1e9 else 2.0)


BY_OPACUS = {
    "linear": (vectors, lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))),
    "linear of positions": (sequences, lambda: Pooled(nn.Linear(6, 40, bias=False), 40)),
    "linear of many positions": (sequences, lambda: Pooled(nn.Linear(6, 2), 2)),
    "convolution": (images, lambda: conv(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())),
    "grouped": (images, lambda: conv(nn.Conv2d(4, 8, (3, 2), groups=2, dilation=(1, 2)))),
    "wide": (images, lambda: conv(nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Conv2d(8, 90, 3), width=90)),
    "group norm": (images, lambda: conv(nn.Conv2d(4, 8, 3, bias=False), nn.GroupNorm(2, 8))),
    "layer norm": (sequences, lambda: Pooled(nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)), 4)),
    "embedding": (ids, lambda: Pooled(nn.Embedding(30, 5), 5)),
}
OTHERS = {
    "written over": (images, lambda: conv(nn.Conv2d(4, 8, 3), nn.ReLU(inplace=True))),
    "padded alike": (images, lambda: conv(nn.Conv2d(4, 8, 3, padding="same", bias=False))),
    "circular": (images, lambda: conv(nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"))),
    "one dimension": (sequences, across),
    "padding row": (ids, lambda: Pooled(nn.Embedding(30, 5, padding_idx=1), 5)),
    "attention": (sequences, attention),
    "encoder": (sequences, encoder),
    "own parameter": (vectors, lambda: OwnParameter(0.0)),
    "recurrent": (sequences, Recurrent),
    "RoBERTa": (tokens, lambda: bert(RobertaConfig)),
    "BERT": (tokens, bert),
    "DistilBERT": (tokens, distilbert),
    "GPT-2": (tokens, gpt2),
    "LoRA": (tokens, lora),
}
ALL = BY_OPACUS | OTHERS


def made(name):
    torch.manual_seed(0)
    inputs, network = ALL[name]
    network, labels = network().train(), torch.arange(RECORDS) % CLASSES
    return (
        network,
        {n: p for n, p in network.named_parameters() if p.requires_grad},
        inputs(),
        labels,
    )


def sums_of(way, network, parameters, inputs, labels, clip_norm):
    sums = [torch.zeros_like(one) for one in parameters.values()]
    with per_sample.quiet(network):
        losses = way(inputs, labels, clip_norm, sums)
    return losses, sums


@functools.cache
def expected(name, clip_norm):
    """By the definition: a record alone, its norm in double precision."""
    network, parameters, inputs, labels = made(name)
    sums, losses = [torch.zeros_like(one) for one in parameters.values()], []
    with per_sample.quiet(network):
        for i in range(RECORDS):
            one = per_sample._rows(inputs, slice(i, i + 1))
            loss = nn.functional.cross_entropy(logits_of(network(one)), labels[i : i + 1])
            found = torch.autograd.grad(loss, [*parameters.values()], materialize_grads=True)
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in found))
            for total, g in zip(sums, found, strict=True):
                total += g * min(1.0, clip_norm / norm)
            losses.append(float(loss.detach()))
    return torch.tensor(losses), sums


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("name", ALL)
def test_every_way_is_the_definition(name):
    network, parameters, inputs, labels = made(name)
    make = study(network, parameters, inputs, labels)
    assert make.func is Ghost
    written = name in ("attention", "encoder", "own parameter", "recurrent")
    assert bool(make(network, parameters).bytes_each) == written
    for clip_norm in (0.3, 1e9):
        losses, sums = expected(name, clip_norm)
        for way in (make(network, parameters), InTurn(network, parameters)):
            found = sums_of(way, network, parameters, inputs, labels, clip_norm)
            torch.testing.assert_close(found[0], losses, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found[1], sums, rtol=1e-5, atol=1e-6)
    assert all(one.requires_grad for one in parameters.values())


@pytest.mark.parametrize("name", [*BY_OPACUS, "own parameter", "attention"])
def test_all_at_once_is_the_definition(name):
    network, parameters, inputs, labels = made(name)
    found = sums_of(AtOnce(network, parameters), network, parameters, inputs, labels, 0.3)
    torch.testing.assert_close(found, expected(name, 0.3), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", BY_OPACUS)
def test_opacus_gives_the_same(name):
    network, parameters, inputs, labels = made(name)
    private = GradSampleModule(network)
    optimizer = DPOptimizer(
        torch.optim.SGD(network.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=0.3,
        expected_batch_size=1,
    )
    given = inputs.requires_grad_() if inputs.is_floating_point() else inputs
    nn.functional.cross_entropy(private(given), labels).backward()
    optimizer.pre_step()
    theirs = [one.grad for one in parameters.values()]
    torch.testing.assert_close(theirs, expected(name, 0.3)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "inputs", "way"),
    [
        (OwnParameter, vectors, AtOnce),
        (lambda: attention(0.5), sequences, AtOnce),
        (lambda: Recurrent(0.5), sequences, AtOnce),
        (Asking, vectors, InTurn),
    ],
)
def test_numbers_that_cannot_be_drawn_again_are_drawn_once(make, inputs, way):
    torch.manual_seed(0)
    network, given, labels = make().train(), inputs(), torch.arange(RECORDS) % CLASSES
    parameters = dict(network.named_parameters())
    assert study(network, parameters, given, labels) is way
    assert network.training
    assert all(module.training for module in network.modules())


def test_each_record_has_a_mask_of_its_own_and_one_mask_for_all_its_gradients():
    """Ten copies of one record: the sum is over ten masks, the one that an ordinary pass draws."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, CLASSES)).train()
    inputs, labels = torch.randn(1, 6).expand(10, 6), torch.zeros(10, dtype=torch.int64)
    parameters = dict(network.named_parameters())
    make = study(network, parameters, inputs, labels)
    assert make.func is Ghost
    sums = [torch.zeros_like(one) for one in parameters.values()]
    torch.manual_seed(1)
    losses = make(network, parameters)(inputs, labels, 1e9, sums)
    assert len(losses.unique()) == 10
    torch.manual_seed(1)
    (nn.functional.cross_entropy(network(inputs), labels) * 10).backward()
    torch.testing.assert_close(sums, [one.grad for one in parameters.values()])


class Centred(nn.Module):
    """In training the mean of the batch is taken off."""

    def forward(self, x):
        return x - x.mean(dim=0) if self.training else x


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x):
        self.seen += x.detach().mean(dim=0)
        return x


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.BatchNorm1d(6), r"its layer `0`, a BatchNorm1d, mixes the records"),
        (Centred(), r"gradients of `\d` record by record do not add up to the batch's"),
        (Counting(), r"it keeps `0\.seen` of the records that it sees"),
    ],
)
def test_layers_that_mix_records_are_refused_by_name(layer, why):
    network = nn.Sequential(layer, nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)).train()
    given, labels = torch.randn(RECORDS, 6), torch.arange(RECORDS) % CLASSES
    with pytest.raises(InputError, match=f"Sequential cannot be trained with diff.*{why}"):
        study(network, dict(network.named_parameters()), given, labels)


def test_what_gives_no_logits_is_refused():
    network = nn.Sequential(nn.Linear(6, 3), nn.LSTM(3, 3))
    with pytest.raises(InputError, match="a network must give logits"):
        study(network, dict(network.named_parameters()), vectors(), torch.zeros(5).long())
