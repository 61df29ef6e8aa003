"""Records and networks as users bring them: what is wrong is one line with the first record."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import worlds
from conftest import SIZES, tiny_recipe
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional

from mico_exp.challenge.datasets import Bits, Features, Images, Sentences
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.tree import load_scenario
from mico_exp.common.errors import InputError, MetricError
from mico_exp.config.setup import Source
from mico_exp.models import architectures
from mico_exp.models.architectures import MLP, Alone, Architecture, bare, can_stack
from mico_exp.scores import estimate, gradients, metrics, soundness
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.scores.trial import Trial, check_training, trial_of
from mico_exp.scores.white_box import GradientRunner, reference_of
from mico_exp.training.building import untrained

COUNT, WIDTH, CLASSES = 60, 5, 4
EVERY = np.arange(COUNT)
LABELS = torch.arange(COUNT) % CLASSES
ROWS = torch.from_numpy(np.random.default_rng(0).normal(size=(COUNT, WIDTH))).float()


class Own:
    """A user's own data set, which has the protocol and nothing else; parts can be replaced."""

    def __init__(self, **parts):
        self.labels, self.fingerprint = LABELS, "own"
        self.sizes = lambda indices: np.ones(indices.shape, dtype=np.int64)
        self.inputs = lambda indices: ROWS[indices]
        for name, part in parts.items():
            setattr(self, name, part)


def with_value(row, value):
    rows = ROWS.clone()
    rows[row, 3] = value
    return Own(inputs=lambda indices: rows[indices])


def without(name):
    records = Own()
    delattr(records, name)
    return records


def broken(indices):
    if 7 in indices:
        raise OSError("seven.png is truncated\nas it was yesterday")
    return ROWS[indices]


def ragged(indices):
    return torch.stack([ROWS[i, : WIDTH - int(i >= 9)] for i in indices])


def normalised(indices):
    rows = ROWS[indices]
    return rows - rows.mean(dim=0)


KINDS = torch.float32, torch.int64
ANY_TENSOR = r"`labels` must be a tensor \(N,\) of int64 on cpu, .* got "
UNSOUND = {
    "from -1": (Own(labels=LABELS - 1), "labels must be at least 0, got -1 for record 0"),
    "one below 0": (
        Own(labels=torch.where(torch.arange(COUNT) == 33, -7, LABELS)),
        "labels must be at least 0, got -7 for record 33",
    ),
    "floats": (Own(labels=LABELS.float()), ANY_TENSOR + r"a tensor \(60,\) of float32.* record 0"),
    "int32": (Own(labels=LABELS.int()), ANY_TENSOR + r"a tensor \(60,\) of int32.* record 0"),
    "booleans": (Own(labels=LABELS > 1), ANY_TENSOR + r"a tensor \(60,\) of bool.* record 0"),
    "a column": (Own(labels=LABELS[:, None]), ANY_TENSOR + r"a tensor \(60, 1\) of int64"),
    "one-hot": (
        Own(labels=functional.one_hot(LABELS)),
        ANY_TENSOR + r"a tensor \(60, 4\) of int64 .*record 0",
    ),
    "NumPy": (Own(labels=LABELS.numpy()), ANY_TENSOR + r"a NumPy array \(60,\) of int64.*record 0"),
    "a list": (Own(labels=LABELS.tolist()), ANY_TENSOR + "a list from record 0"),
    "no labels": (Own(labels=LABELS[:0]), "`labels` must have one for each record, got none"),
    "too many": (
        Own(labels=torch.cat([LABELS, LABELS[:5]])),
        "there are 65 `labels`, but `inputs` fails at record 60: IndexError: ",
    ),
    "too few": (
        Own(labels=LABELS[:-2]),
        "there are 58 `labels`, but `inputs` has a record 58, where it must fail",
    ),
    "lacks labels": (without("labels"), "a data set must have `labels`, got AttributeError: "),
    "lacks inputs": (without("inputs"), "a data set must have `inputs`, got AttributeError: "),
    "lacks sizes": (without("sizes"), "a data set must have `sizes`, got AttributeError: "),
    "lacks a fingerprint": (without("fingerprint"), "a data set must have `fingerprint`, got Attr"),
    "something else": ([1, 2], "a data set must have `labels`, got AttributeError: 'list'"),
    "nothing": (None, "a data set must have `labels`, got AttributeError: 'NoneType'"),
    "a fingerprint of bytes": (
        Own(fingerprint=b"ab"),
        "`fingerprint` must be a text, a hash of all records, got b'ab'",
    ),
    "inputs no function": (Own(inputs=ROWS), "`inputs` fails at record 0: TypeError: 'Tensor'"),
    "inputs of one": (Own(inputs=broken), "`inputs` fails at record 7: OSError: seven.png is trun"),
    "NumPy inputs": (
        Own(inputs=lambda indices: ROWS.numpy()[indices.numpy()]),
        r"`inputs` must give a tensor on cpu, .* got a NumPy array \(1, 5\) of float32 for rec",
    ),
    "a list of inputs": (
        Own(inputs=lambda indices: [ROWS[i] for i in indices]),
        "`inputs` must give a tensor on cpu, .* got a list for record 0",
    ),
    "a dictionary of lists": (
        Own(inputs=lambda indices: {"input_ids": [[1, 2]] * len(indices)}),
        "`inputs` must give a tensor on cpu, .* got a list for record 0",
    ),
    "one row too many": (
        Own(inputs=lambda indices: ROWS[torch.cat([indices, indices[:1]])]),
        r"`inputs` must give a row for each index, got a tensor \(2, 5\) of float32",
    ),
    "double": (
        Own(inputs=lambda indices: ROWS[indices].double()),
        "inputs that are no whole numbers must be float32, got float64 for record 0",
    ),
    "half": (
        Own(inputs=lambda indices: {"x": ROWS[indices].half()}),
        "inputs that are no whole numbers must be float32, got float16 for record 0",
    ),
    "complex": (
        Own(inputs=lambda indices: ROWS[indices].to(torch.complex64)),
        "must be float32, got complex64 for record 0",
    ),
    "NaN": (with_value(41, torch.nan), "inputs must be finite, got nan in record 41"),
    "infinite": (with_value(7, -torch.inf), "inputs must be finite, got -inf in record 7"),
    "ragged": (
        Own(inputs=ragged),
        r"inputs must be float32 \(5,\), .* got float32 \(4,\) for record 9",
    ),
    "another type": (
        Own(inputs=lambda indices: ROWS[indices].to(KINDS[int(indices.max() >= 50)])),
        r"inputs must be float32 \(5,\), .* got int64 \(5,\) for record 50",
    ),
    "sizes as a list": (
        Own(sizes=lambda indices: [1] * len(indices)),
        "`sizes` must give a NumPy array of a whole number for each index, got a list",
    ),
    "sizes of floats": (
        Own(sizes=lambda indices: np.ones(len(indices))),
        r"`sizes` must give .* got a NumPy array \(1,\) of float64 for 1 from record 0",
    ),
    "sizes of nothing": (
        Own(sizes=lambda indices: np.where(indices == 12, 0, 3)),
        "`sizes` must be at least 1, got 0 for record 12",
    ),
    "sizes that fail": (
        Own(sizes=lambda indices: np.array([dict.fromkeys(range(50), 3)[i] for i in indices])),
        "`sizes` fails at record 50: KeyError: .*50",
    ),
    "other ones each time": (
        Own(inputs=lambda indices: ROWS[indices] + torch.randn(WIDTH)),
        "`inputs` must give the same for a record whenever .* record 59",
    ),
    "in another order": (
        Own(inputs=lambda indices: ROWS[indices.sort().values]),
        "`inputs` must give the same for a record whenever .* record 59",
    ),
    "beside others": (Own(inputs=normalised), "`inputs` must give the same for a record whenever"),
}


@pytest.mark.parametrize("fault", UNSOUND)
def test_records_that_are_something_else(fault):
    records, message = UNSOUND[fault]
    with pytest.raises(InputError, match=r"^`dataset\.records`: .*" + message) as told:
        soundness.check_records(records, EVERY)
    assert "\n" not in str(told.value)


def tokens(ids):
    starts = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    flat = np.concatenate([np.asarray(one, dtype=np.int32) for one in ids])
    return Sentences(flat, starts, torch.arange(len(ids)) % 2, pad=1)


def packed():
    rows = np.random.default_rng(0).integers(256, size=(COUNT, 6), dtype=np.uint8)
    return Bits(rows, 40, "bits")


def pixels():
    random = np.random.default_rng(0).integers(256, size=(COUNT, 8, 8, 3), dtype=np.uint8)
    return Images(random, LABELS, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    "records",
    [
        Own(),
        Features(ROWS, LABELS),
        packed(),
        pixels(),
        tokens([[0, 5, 2]] * 30 + [[0, 7, 8, 9, 2]] * 30),
        Own(inputs=lambda indices: torch.arange(COUNT)[indices]),  # numbers for an embedding
        Own(inputs=lambda indices: {"x": ROWS[indices], "mask": ROWS[indices] > 0}),
        Own(inputs=lambda indices: torch.stack([ROWS[i] for i in indices])),
    ],
)
def test_records_that_are_sound(records):
    soundness.check_records(records)
    soundness.check_records(records, EVERY)


def test_only_records_that_are_asked_for_are_looked_at():
    records = with_value(41, torch.nan)
    soundness.check_records(records)
    soundness.check_records(records, EVERY[EVERY != 41])
    seen = []

    def inputs(indices):
        seen.append(len(indices))
        return (torch.arange(1797)[indices, None] / 1e3).expand(-1, 40_000)

    soundness.check_records(Own(labels=torch.zeros(1797).long(), inputs=inputs), np.arange(900))
    assert max(seen) * 40_000 * 4 <= soundness.CHUNK_BYTES  # whatever is asked for


def test_records_are_checked_when_they_are_loaded():
    option = {"_target_": f"{__name__}.column_of_labels"}
    with pytest.raises(InputError, match=r"^`dataset\.records`: `labels` must be a tensor \(N,\)"):
        assert Source("own", OmegaConf.to_yaml(OmegaConf.create(option)), None).records


def column_of_labels():
    return Own(labels=LABELS[:, None])


class Net(nn.Module):
    """A network with the habits that people give theirs."""

    def __init__(self, habit="logits"):
        super().__init__()
        self.habit = habit
        self.stack = nn.Linear(WIDTH, CLASSES)  # called as the method that stacks models is
        self.norm = nn.BatchNorm1d(CLASSES)
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs):
        return HABITS[self.habit](self.stack(inputs), inputs, self)


def logits(z, *_):
    return z


def log_softmax(z, *_):
    return z.log_softmax(-1)


def dictionary(z, x, _):
    return {"features": x, "logits": z}


def output(z, *_):
    return SimpleNamespace(logits=z, loss=None)


def double(z, *_):
    return z.double()


def masked_low(z, *_):
    return torch.cat([z, torch.full_like(z[:, :1], -1e9)], dim=1)


def batch_norm(z, _, net):
    return net.norm(z)


def dropout(z, _, net):
    return net.drop(z)


def masked(z, *_):
    return torch.cat([z, torch.full_like(z[:, :1], -torch.inf)], dim=1)


def softmax(z, *_):
    return z.softmax(-1)


def scarce(z, *_):
    if len(z) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return z.softmax(-1)


def fails_late(z, x, _):
    if (x[:, 0] == ROWS[-1, 0]).any():
        raise IndexError("index out of range in self")
    return z


SAME_FIGURES = [log_softmax, dictionary, output, double, masked_low]
HABITS = {
    function.__name__: function
    for function in (
        logits,
        *SAME_FIGURES,
        batch_norm,
        dropout,
        masked,
        softmax,
        scarce,
        fails_late,
    )
} | {
    "a tuple": lambda z, x, _: (z, x),
    "a dictionary without": lambda z, *_: {"scores": z},
    "nothing": lambda *_: None,
    "classes": lambda z, *_: z.argmax(-1),
    "one": lambda z, *_: z[:, :1],
    "a sigmoid": lambda z, *_: z[:, 0].sigmoid(),
    "tokens": lambda z, *_: z[:, None].expand(-1, 7, -1),
    "transposed": lambda z, *_: z.T,
    "three of four": lambda z, *_: z[:, :3],
    "NaN at one": lambda z, x, _: z.masked_fill(x[:, :1] == ROWS[0, 0], torch.nan),
    "random": lambda z, *_: z + 0.01 * torch.randn_like(z),
    "dropout always": lambda z, *_: functional.dropout(z),
    "beside others": lambda z, *_: z - z.mean(dim=0),
    "batch norm always": lambda z, *_: functional.batch_norm(z, None, None, training=True),
    "squeezed": lambda z, *_: z.squeeze(),
    "takes images": lambda _, x, net: functional.conv2d(x, net.stack.weight[None]),
}
ONE_OUTPUT = r"a logit for each of two classes or more, got one for record 0.*\(0, z\), which is th"
REFUSED = {
    "a tuple": "a network must give logits, a tensor of floats .* got tuple.*record 0",
    "a dictionary without": "a network must give logits, a tensor of floats .* got dict.*record 0",
    "nothing": "a network must give logits, a tensor of floats .* got NoneType.*record 0",
    "classes": "a network must give logits, .* got a tensor of torch.int64.*record 0",
    "one": ONE_OUTPUT,
    "a sigmoid": ONE_OUTPUT,
    "tokens": r"must give logits \(P, C\), here \(6, C\), got \(6, 7, 4\) from record 0 on",
    "transposed": r"must give logits \(P, C\), here \(6, C\), got \(4, 6\) from record 0 on",
    "squeezed": r"must give logits \(P, C\), here \(1, C\), got \(4,\) from record 0 on",
    "three of four": "labels must be 0 … 2, as there are 3 logits, got 3 for record 3",
    "softmax": "must give logits, got probabilities that add up to 1 from record 0 on",
    "scarce": "must give logits, got probabilities that add up to 1 from record 0 on",
    "masked": "logits must be finite, got -inf for class 4 of record 0",
    "NaN at one": "logits must be finite, got nan for class 0 of record 0",
    "random": "must give the same for a record, whenever it is asked, got .* of record",
    "dropout always": "must give the same for a record, whenever it is asked, got .* of record",
    "beside others": "must give something for a record by itself, got the same for every record",
    "batch norm always": "the model fails at record 0: ValueError: Expected more than 1 value",
    "takes images": r"fails at record 0: RuntimeError: .*\(inputs of record 0: float32 \(5,\)\)$",
    "fails_late": r"the model fails at record 59: IndexError: index out of range in self \(inputs",
}


@pytest.fixture
def tried(tmp_path):
    """What a trial of a network says, on the way that the pass takes."""

    def try_out(network, records=None, points=EVERY, **options):
        folder = tmp_path / "model_7"
        folder.mkdir(exist_ok=True)
        torch.save(bare(network).state_dict(), folder / "model.pt")
        records = records or Own()
        shard = trial_of(records, points, [folder])
        trial = Trial(Architecture.of(network), records, Processor("cpu"), **options)
        trial(shard)

    return try_out


@pytest.mark.parametrize("habit", REFUSED)
def test_outputs_that_are_something_else(habit, tried):
    torch.manual_seed(0)
    with pytest.raises(InputError, match=f"model_7: .*{REFUSED[habit]}") as told:
        tried(Net(habit))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("habit", ["logits", *(f.__name__ for f in SAME_FIGURES)])
def test_outputs_that_are_sound(habit, tried):
    torch.manual_seed(0)
    tried(Net(habit))
    tried(Net(habit), points=EVERY[4:5])


@pytest.mark.parametrize("habit", ["batch_norm", "dropout"])
def test_layers_of_training_are_put_to_evaluation(habit, tried):
    torch.manual_seed(0)
    tried(Net(habit).train())


@pytest.mark.parametrize("first", [1, 7])
def test_labels_that_do_not_begin_with_0(first, tried):
    message = f"labels must be 0 … 3, .* got {max(first, 4)} for record {max(0, 4 - first)}"
    with pytest.raises(InputError, match=message):
        tried(Net(), Own(labels=LABELS + first))


def test_logits_may_be_anything_where_nan_is_allowed(tried):
    tried(Net("masked"), allow_nan=True)
    tried(Net("NaN at one"), allow_nan=True)
    with pytest.raises(InputError, match="probabilities"):
        tried(Net("softmax"), allow_nan=True)


class Sure(MLP):
    """A network whose outputs are not those of the layers that `stack` knows of."""

    def __init__(self, widths, function=torch.softmax):
        super().__init__(widths)
        self.function = function

    def forward(self, inputs):
        return self.function(super().forward(inputs), -1)


def doubled(logits, _):
    return 2 * logits


def test_many_as_one_must_give_what_one_gives(tried):
    torch.manual_seed(0)
    tried(Sure([WIDTH, CLASSES], torch.log_softmax))  # no metric sees a difference
    with pytest.raises(InputError, match="must give the same for a record, by `forward` as by `st"):
        tried(Sure([WIDTH, CLASSES], doubled))


def test_the_first_model_that_is_finite_is_tried(tmp_path):
    folders = [tmp_path / "model_0", tmp_path / "model_1"]

    network = Sure([WIDTH, CLASSES])
    for folder, factor in zip(folders, (torch.nan, 1), strict=True):
        folder.mkdir()
        state = {name: tensor * factor for name, tensor in network.state_dict().items()}
        torch.save(state, folder / "model.pt")
    trial = Trial(Architecture.of(network), Own(), Processor("cpu"), allow_nan=True)
    with pytest.raises(InputError, match="model_1: a network must give logits, got probabilities"):
        trial(trial_of(Own(), EVERY, folders))


ALL_METRICS = [
    *(metrics.loss, metrics.confidence, metrics.logit, metrics.margin, metrics.entropy),
    *(metrics.mod_entropy, metrics.mod_entropy_stable),
]
GRADIENT_METRICS = {
    "norm": gradients.GradNorm(),
    "representer": gradients.Representer(),
    "kfac": gradients.Kronecker(damping=0.1),
}


@pytest.mark.parametrize("habit", [f.__name__ for f in SAME_FIGURES if f is not masked_low])
def test_all_metrics_of_log_probabilities_and_dictionaries_are_those_of_logits(habit):
    found = []
    for given in ("logits", habit):
        torch.manual_seed(0)
        network = Net(given).eval().requires_grad_(False)
        runner = ModelRunner(Processor("cpu"))
        of_logits = {metric.__name__: metric for metric in ALL_METRICS}
        scores = runner.scores(Alone(network), Own(), EVERY[None], of_logits)
        scores |= GradientRunner(runner).scores(network, Own(), EVERY, GRADIENT_METRICS)
        found.append(scores)
    for name, expected in found[0].items():
        np.testing.assert_allclose(found[1][name], expected, rtol=2e-4, atol=2e-5, err_msg=name)


def test_layers_called_stack_do_not_stack_models():
    assert not can_stack(Net())
    assert can_stack(MLP([3, 2]))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model_0")
    (folder / "config.json").write_text(json.dumps(worlds.ROBERTA))
    return architectures.roberta(folder)  # 400 tokens, 80 positions less the padding's and one


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 400, 2], "token ids must be 0 … 399, .* got 400 in record 21"),
        ([0, -1, 2], "token ids must be 0 … 399, .* got -1 in record 21"),
        ([0, *[5] * 77, 2], "sentences must be of 78 tokens at most, .* got 79 for record 21"),
    ],
)
def test_sentences_that_a_networks_embeddings_do_not_hold(roberta, ids, message):
    sentences = [[0, 5, 6, 2]] * 40
    sentences[21] = ids
    with pytest.raises(InputError, match=message):
        soundness.check_records(tokens(sentences), np.arange(40), roberta)
    soundness.check_records(tokens(sentences), np.delete(np.arange(40), 21), roberta)


def test_the_room_of_a_network_is_what_it_can_be_asked(roberta):
    room = soundness.Room.of(roberta)
    roberta.eval()
    fits = tokens([[0, *[room.tokens - 1] * (room.positions - 2), 2]])
    soundness.check_records(fits, np.arange(1), roberta)
    assert roberta(fits.inputs(torch.arange(1))).shape == (1, 2)
    for ids in ([0, room.tokens, 2], [0, *[5] * (room.positions - 1), 2]):
        with pytest.raises((IndexError, RuntimeError)):
            roberta(tokens([ids]).inputs(torch.arange(1)))
    assert soundness.Room.of(Net()) == (None, None)


def opened(built, records, store, **options):
    scenario = load_scenario(built, "digits", "digits_inf", SIZES)
    points = challenge_points(scenario)
    architecture = options.pop("architecture", Architecture.of(MLP([64, 16, 10])))
    return Extraction(
        scenario, points, records, architecture, ScoreStore(store), Processor("cpu"), **options
    )


@pytest.mark.parametrize("metric", [metrics.loss, gradients.GradNorm()])
def test_a_pass_does_not_begin_with_labels_from_1(built, digits, tmp_path, metric):
    job = opened(built, Features(digits.features, digits.labels + 1), tmp_path)
    record = int((digits.labels == 9).nonzero()[0])
    message = f"model_0: labels must be 0 … 9, .* got 10 for record {record}"
    with pytest.raises(InputError, match=message):
        job.compute({"any": metric})
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    "metric", [gradients.Representer(reference=40), gradients.Kronecker(reference=None)]
)
def test_what_gradients_refer_to_is_looked_at_as_well(built, digits, tmp_path, metric):
    seen = reference_of(metric, len(digits.labels))
    record = int(np.setdiff1d(seen, opened(built, digits, tmp_path).points.unique)[0])
    features = digits.features.clone()
    features[record, 0] = torch.nan
    spoilt = opened(built, Features(features, digits.labels), tmp_path)
    with pytest.raises(InputError, match=f"inputs must be finite, got nan in record {record}"):
        spoilt.compute({"any": metric})
    spoilt.compute({"loss": metrics.loss})  # which never asks for it


def test_an_error_in_the_pass_names_the_record(digits):
    def forward(inputs):
        if (inputs == digits.features[31]).all(dim=-1).any():
            raise IndexError("index out of range in self")
        return inputs[:, :10]

    network = nn.Sequential(nn.Identity())
    network.forward = forward
    message = "^the model fails at record 31: IndexError: index out of range in self$"
    with pytest.raises(InputError, match=message):
        ModelRunner(Processor("cpu")).scores(
            Alone(network), digits, np.arange(100)[None], {"loss": metrics.loss}
        )


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (lambda logits, labels: metrics.loss(logits, labels).log(), "whose logits are finite"),
        (metrics.loss, "whose logits are not finite either"),
    ],
)
def test_scores_that_are_not_finite_name_their_first_record(built, digits, tmp_path, metric, told):
    class Overflowing(MLP):
        stack = None

        def forward(self, inputs):
            z = super().forward(inputs)
            far = (inputs == digits.features[record]).all(dim=-1)
            return z.masked_fill(far[:, None], torch.nan) if metric is metrics.loss else z

    unique = opened(built, digits, tmp_path).points.unique
    tried_at = soundness.handful(digits, unique)
    record = int(np.setdiff1d(unique, tried_at)[0])
    first = record if metric is metrics.loss else int(unique[0])
    job = opened(built, digits, tmp_path, architecture=Architecture.of(Overflowing([64, 16, 10])))
    message = f"model_0: metric `own` is not finite .* first record {first}, {told}"
    with pytest.raises(MetricError, match=message):
        job.compute({"own": metric})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x, y + 1), "`dataset.model`: labels must be 0 … 9, .* got 10 for record"),
        (lambda x, y: (x.double(), y), "must be float32, got float64 for record 0"),
        (
            lambda x, y: (x.view(-1, 8, 8), y),
            r"fails at record 0: .*\(inputs of record 0: float32 \(8, 8\)\)",
        ),
        (
            lambda x, y: (x[:, :32], y),
            r"fails at record 0: .*\(inputs of record 0: float32 \(32,\)\)",
        ),
        (lambda x, y: (x * torch.nan, y), "inputs must be finite, got nan in record 0"),
        (lambda x, y: (x, y.float()), "`labels` must be a tensor"),
    ],
)
def test_records_to_be_trained_on_that_are_something_else(digits, spoil, message):
    spoilt = Features(*spoil(digits.features, digits.labels))
    with pytest.raises(InputError, match=message):
        check_training(untrained(tiny_recipe()), spoilt)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x, y + 1), "labels must be 0 … 9"),
        (lambda x, y: (x * torch.nan, y), "inputs must be finite"),
    ],
)
def test_the_doctor_tells_the_same(built, digits, spoil, message):
    scenario = load_scenario(built, "digits", "digits_inf", SIZES)
    points = challenge_points(scenario)
    where = Architecture.of(MLP([64, 16, 10])), ModelRunner(Processor("cpu"))
    assert estimate.check_soundness(scenario, points, digits, *where) == []
    spoilt = Features(*spoil(digits.features, digits.labels))
    (finding,) = estimate.check_soundness(scenario, points, spoilt, *where)
    assert finding.fatal
    assert message in finding.message
