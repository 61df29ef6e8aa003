import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import worlds
from sklearn.datasets import load_digits

from mico_exp.challenge import datasets
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import CNN, bare, fill, roberta
from mico_exp.models.weights import load_state, weights_file


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_cifar10_is_train_then_test_normalised_by_channel(tmp_path, random):
    worlds.write_cifar10(tmp_path, random, 300)
    records = datasets.cifar10(str(tmp_path), worlds.TinyCIFAR10)
    parts = [worlds.TinyCIFAR10(tmp_path, train=train) for train in (True, False)]
    assert records.labels.tolist() == parts[0].targets + parts[1].targets
    images = records.inputs(torch.tensor([0, 249, 250, 299]))
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.float32
    pixel = parts[1].data[49][5, 7, 2]
    expected = (pixel / 255 - 0.44653091) / 0.26158784
    assert images[3, 2, 5, 7].item() == pytest.approx(expected, abs=1e-6)


def test_cifar10_that_is_not_the_official_one(tmp_path, random):
    with pytest.raises(InputError, match="cifar-10-batches-py is missing"):
        datasets.cifar10(str(tmp_path))
    worlds.write_cifar10(tmp_path, random, 300)
    with pytest.raises(InputError, match="not the official one"):
        datasets.cifar10(str(tmp_path))  # torchvision's check sums stand before its unpickling


def test_purchase100_is_parsed_once_and_then_mapped(tmp_path, random, monkeypatch):
    labels, bits = worlds.write_purchase100(tmp_path / "p", random)
    folder = str(tmp_path / "p")
    first = datasets.purchase100(folder)
    assert first.labels.tolist() == (labels - 1).tolist()
    assert np.array_equal(first.inputs(torch.arange(300)).numpy(), bits)
    own = torch.tensor([[3, 1], [299, 0]])
    assert np.array_equal(first.inputs(own).numpy(), bits[own.numpy()])
    monkeypatch.setattr(datasets, "write_array", None)  # a second parse would fail
    second = datasets.purchase100(folder)
    assert isinstance(second.packed, np.memmap)
    assert second.packed.shape == (300, 76)
    assert second.fingerprint == first.fingerprint


def test_a_changed_purchase_file_is_parsed_anew(tmp_path, random):
    worlds.write_purchase100(tmp_path / "p", random)
    first = datasets.purchase100(str(tmp_path / "p"))
    path = tmp_path / "p" / "dataset_purchase"
    lines = path.read_text().splitlines()
    path.write_text("\r\n".join(reversed(lines)))
    second = datasets.purchase100(str(tmp_path / "p"))
    assert second.labels.tolist() == first.labels.tolist()[::-1]
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", [b"", b"half"])
def test_a_damaged_array_is_made_anew(tmp_path, random, damage, caplog):
    labels, bits = worlds.write_purchase100(tmp_path / "p", random)
    datasets.purchase100(str(tmp_path / "p"))
    (compact,) = (tmp_path / "p").glob("*.npy")
    compact.write_bytes(damage or compact.read_bytes()[:-500] + b"\xff" * 500)
    records = datasets.purchase100(str(tmp_path / "p"))
    assert records.labels.tolist() == (labels - 1).tolist()
    assert np.array_equal(records.inputs(torch.arange(300)).numpy(), bits)
    assert "is damaged" in caplog.text


LINE = "7" + ",1,0" * 300


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7" + ",1" * 599, "line 3 must hold a label 1 … 100 and 600 bits, got 599 values"),
        ("7" + ",1" * 601, "line 3 must hold .* got 601 values"),
        ("0" + ",1" * 600, "line 3 must hold a label 1 … 100"),
        ("101" + ",1" * 600, "line 3 must hold a label 1 … 100"),
        ("9" * 9000 + ",1" * 600, "line 3 must hold a label 1 … 100"),
        ("x" + ",1" * 600, "line 3 must hold a label 1 … 100"),
        ("7" + ",1" * 10 + ",2" + ",1" * 589, "line 3, bit 11 must be 0 or 1"),
        ("7" + ",1" * 10 + ";1" + ",1" * 589, "line 3, bit 11 must be 0 or 1"),
        ("", "line 3 must hold"),
    ],
)
def test_a_purchase_file_with_a_bad_line_names_it(tmp_path, line, message):
    (tmp_path / "dataset_purchase").write_text("\n".join([LINE, LINE, line, LINE]) + "\n")
    with pytest.raises(InputError, match=message):
        datasets.purchase100(str(tmp_path))
    assert not list(tmp_path.glob("*.npy"))


def test_purchase100_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="dataset_purchase is missing"):
        datasets.purchase100(str(tmp_path))
    (tmp_path / "dataset_purchase").write_text("")
    with pytest.raises(InputError, match="is empty"):
        datasets.purchase100(str(tmp_path))


@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
def test_sst2_is_train_then_validation(tmp_path, random, suffix):
    from transformers import AutoTokenizer

    folder = tmp_path / "sst2"
    worlds.write_sst2(folder, random, suffix)
    records = datasets.sst2(str(folder), str(folder / "tokenizer"))
    read = pd.read_parquet if suffix == ".parquet" else lambda p: pd.read_csv(p, sep="\t")
    table = pd.concat([read(folder / f"{part}{suffix}") for part in ("train", "validation")])
    assert records.labels.tolist() == table["label"].tolist()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    chosen = [299, 0, 17]
    expected = tokenizer(table["sentence"].iloc[chosen].tolist(), padding=True, return_tensors="pt")
    found = records.inputs(torch.tensor(chosen))
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize(
    ("repository", "part"), [("nyu-mll/glue", "sst2/{}"), ("stanfordnlp/sst2", "data/{}")]
)
def test_sst2_in_the_hugging_face_cache(tmp_path, random, monkeypatch, repository, part):
    here = tmp_path / "sst2"
    worlds.write_sst2(here, random, ".parquet")
    expected = datasets.sst2(str(here), str(here / "tokenizer"))
    cached = tmp_path / "cache" / f"datasets--{repository.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123abcd")
    for name in ("train", "validation"):
        file = cached / "snapshots" / "0123abcd" / f"{part.format(name)}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        (here / f"{name}.parquet").rename(file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    found = datasets.sst2(str(here), str(here / "tokenizer"))
    assert found.fingerprint == expected.fingerprint


def test_sentences_know_their_lengths(tmp_path, random):
    folder = tmp_path / "sst2"
    worlds.write_sst2(folder, random)
    records = datasets.sst2(str(folder), str(folder / "tokenizer"))
    points = random.permutation(300)[:64]
    masks = records.inputs(torch.from_numpy(points))["attention_mask"]
    assert records.sizes(points).tolist() == masks.sum(dim=1).tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.tsv", "text\tlabel\nhello\t1\n", r"train\.tsv: must have one column sentence"),
        ("train.tsv", "sentence\tlabel\nhello\t3\n", r"train\.tsv: label of row 0 .* got '3'"),
        ("train.tsv", "sentence\tlabel\na\t1\nb\t1.0\n", r"label of row 1 .* got '1\.0'"),
        ("train.tsv", "sentence\tlabel\na\t+1\n", r"label of row 0 .* got '\+1'"),
        ("train.tsv", "sentence\tlabel\na\tTrue\nb\tFalse\n", "label of row 0 .* got 'True'"),
        ("train.parquet", "nothing", r"train\.parquet: cannot be read as a table"),
        ("train.tsv", "sentence\tlabel\n", r"train\.tsv: has no rows"),
        ("train.tsv", "", r"train\.tsv: cannot be read as a table"),
        ("validation.tsv", None, r"validation\.parquet or \.tsv is missing"),
    ],
)
def test_sst2_files_that_are_wrong(tmp_path, random, name, content, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sst2"
    worlds.write_sst2(folder, random)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        datasets.sst2(str(folder), str(folder / "tokenizer"))


@pytest.mark.parametrize("sentence", [None, b"bytes", ["a", "list"], 1.5])
def test_a_sentence_that_is_no_text_is_named(tmp_path, random, sentence):
    folder = tmp_path / "sst2"
    worlds.write_sst2(folder, random, ".parquet")
    table = pd.DataFrame({"sentence": [sentence], "label": [1]})
    table.to_parquet(folder / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: sentence of row 0 must be text, got "):
        datasets.sst2(str(folder), str(folder / "tokenizer"))


@pytest.mark.parametrize(
    ("suffix", "place", "names"),
    [
        (".tsv", "SST-2", {"validation": "dev.tsv"}),  # as GLUE's own archive has it
        (".tsv", ".", {"validation": "dev.tsv", "train": "train.tsv"}),
        (".parquet", "data", {p: f"{p}-00000-of-00001.parquet" for p in ("train", "validation")}),
    ],
)
def test_sst2_under_the_names_that_others_give_it(tmp_path, random, suffix, place, names):
    folder, other = tmp_path / "sst2", tmp_path / "other"
    worlds.write_sst2(folder, random, suffix)
    (other / place).mkdir(parents=True)
    for part in ("train", "validation"):
        text = (folder / f"{part}{suffix}").read_bytes()
        if suffix == ".tsv":  # of a Windows editor
            text = b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n")
        (other / place / names.get(part, f"{part}{suffix}")).write_bytes(text)
    expected = datasets.sst2(str(folder), str(folder / "tokenizer"))
    found = datasets.sst2(str(other), str(folder / "tokenizer"))
    assert np.array_equal(found.tokens, expected.tokens)
    assert torch.equal(found.labels, expected.labels)


def test_purchase100_of_a_folder_that_may_not_be_written(tmp_path, random):
    """Its compact copy lies in the store; a root may write anywhere, so the folder is looked at."""
    labels, _ = worlds.write_purchase100(tmp_path / "p", random)
    path = tmp_path / "p" / "dataset_purchase"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (tmp_path / "p").chmod(0o555)
    for _ in range(2):
        records = datasets.purchase100(str(tmp_path / "p"), str(tmp_path / "store"))
        assert torch.equal(records.labels, torch.from_numpy(labels - 1))
    assert [one.name for one in (tmp_path / "p").iterdir()] == ["dataset_purchase"]
    assert len(list((tmp_path / "store" / "records").glob("dataset_purchase-*.npy"))) == 1


@pytest.mark.parametrize("labels", [[0.0, 1.0], [False, True], ["0", "+1"], [0, -1]])
def test_labels_of_sst2_are_whole_numbers(tmp_path, random, labels):
    worlds.write_sst2(tmp_path / "sst2", random, ".parquet")
    table = pd.DataFrame({"sentence": ["a good film", "a bad film"], "label": labels})
    table.to_parquet(tmp_path / "sst2" / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: label of row . must be 0 or 1"):
        datasets.sst2(str(tmp_path / "sst2"), str(tmp_path / "sst2" / "tokenizer"))


def test_a_tokenizer_that_is_not_there(tmp_path, random):
    folder = tmp_path / "sst2"
    worlds.write_sst2(folder, random)
    with pytest.raises(InputError, match=r"`dataset\.records\.tokenizer`: .*nowhere"):
        datasets.sst2(str(folder), str(folder / "nowhere"))


MARKER = """
import pathlib
from transformers import PretrainedConfig, RobertaTokenizer
pathlib.Path({path!r}).touch()
class Config(PretrainedConfig):
    model_type = "mine"
class Tokenizer(RobertaTokenizer):
    pass
"""


@pytest.mark.parametrize(
    ("changed", "config", "processor", "found"),
    [
        ({"auto_map": [None, "mine.Tokenizer"]}, None, None, "`auto_map`"),
        (
            {"auto_map": ["mine.Tokenizer", None], "tokenizer_class": "Tokenizer"},
            None,
            None,
            "`auto_map`",
        ),
        (
            {"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}},
            {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}},
            None,
            "`auto_map`",
        ),
        ({"tokenizer_class": "Tokenizer"}, None, None, "`tokenizer_class` Tokenizer"),
        # Classes of transformers that are no tokenizers, and look for code again.
        *(
            (
                {"tokenizer_class": kind},
                {
                    "model_type": "mine",
                    "auto_map": dict.fromkeys([kind, "AutoConfig"], "mine.Config"),
                },
                {"auto_map": {kind: "mine.Tokenizer"}},
                f"`tokenizer_class` {kind}",
            )
            for kind in ("AutoConfig", "AutoModel", "AutoProcessor", "pipeline")
        ),
        (
            {"tokenizer_class": None},
            {"tokenizer_class": "AutoConfig", "auto_map": {"AutoConfig": "mine.Config"}},
            None,
            "`tokenizer_class` AutoConfig",
        ),
    ],
)
def test_a_tokenizers_own_code_never_runs(
    tmp_path, random, monkeypatch, changed, config, processor, found
):
    folder = tmp_path / "sst2"
    worlds.write_sst2(folder, random)
    place = folder / "tokenizer"
    told = json.loads((place / "tokenizer_config.json").read_text()) | changed
    files = {"tokenizer_config": told, "config": config, "processor_config": processor}
    for name, content in files.items():
        if content is not None:
            (place / f"{name}.json").write_text(json.dumps(content))
    (place / "mine.py").write_text(MARKER.format(path=str(tmp_path / "ran")))
    answers = io.StringIO("y\n" * 100)
    monkeypatch.setattr("sys.stdin", answers)
    with pytest.raises(
        InputError, match=f"must be a tokenizer of .* got {place} with {found}"
    ) as no:
        datasets.sst2(str(folder), str(place))
    assert "\n" not in str(no.value)
    assert answers.tell() == 0  # nobody asked
    assert not (tmp_path / "ran").exists()


def test_the_competitions_cnn_has_its_size_and_keys():
    model = CNN()
    assert sum(p.numel() for p in model.parameters()) == 973_962
    assert [name for name in model.state_dict() if name.endswith("weight")] == [
        f"cnn.{layer}.weight" for layer in (0, 3, 5, 9)
    ]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("save", [worlds.save_bin, worlds.save_safetensors])
@pytest.mark.parametrize("prefix", ["", "_module."])
def test_roberta_loads_what_transformers_saves(tmp_path, save, prefix):
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(worlds.ROBERTA))
    model = roberta(tmp_path / "shape")
    state = {k: v.clone() for k, v in bare(model).state_dict().items()}
    (tmp_path / "model_0").mkdir()
    save(tmp_path / "model_0", {prefix + k: v for k, v in state.items()})
    found = load_state(weights_file(tmp_path / "model_0"), roberta(tmp_path / "model_0"))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize(
    "foreign",
    [
        {"auto_map": {"AutoModelForSequenceClassification": "mine.Model"}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"_attn_implementation": "somebody/kernel:attention"},
        {"_attn_implementation_internal": "flash_attention_2"},
        {"kernel_config": {"RMSNorm": "somebody/kernel"}},
    ],
)
def test_a_config_that_asks_for_code_is_refused(tmp_path, foreign):
    (tmp_path / "config.json").write_text(json.dumps(worlds.ROBERTA | foreign))
    message = (
        rf"config\.json: does not describe a RoBERTa model: `{next(iter(foreign))}` asks for code"
    )
    with pytest.raises(InputError, match=message):
        roberta(tmp_path)


def test_what_a_config_says_beside_the_shape_changes_nothing(tmp_path):
    more = {"architectures": ["RobertaForSequenceClassification"], "transformers_version": "4.26.1"}
    more |= {"torch_dtype": "float16", "return_dict": False, "output_attentions": True}
    more |= {
        "attn_implementation": "eager",
        "id2label": {"0": "a", "1": "b"},
        "finetuning_task": "x",
    }
    inputs = {"input_ids": torch.tensor([[0, 7, 9, 2]]), "attention_mask": torch.ones(1, 4)}
    networks = []
    for name, config in (("plain", worlds.ROBERTA), ("more", worlds.ROBERTA | more)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        networks.append(roberta(tmp_path / name))
    plain, other = networks
    fill(other, bare(plain).state_dict())
    assert torch.equal(plain.eval()(inputs), other(inputs))


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 7, "num_attention_heads": 2}'])
def test_a_config_that_describes_no_roberta(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        roberta(tmp_path)


def test_folders_without_weights_or_shape(tmp_path):
    with pytest.raises(InputError, match="holds no weights"):
        weights_file(tmp_path)
    with pytest.raises(InputError, match=r"config\.json is missing"):
        roberta(tmp_path)


def test_a_truncated_safetensors_file(tmp_path, random):
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(worlds.ROBERTA))
    model = roberta(tmp_path / "shape")
    shutil.copytree(tmp_path / "shape", tmp_path / "m")
    worlds.save_safetensors(tmp_path / "m", dict(bare(model).state_dict()))
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        load_state(path, model, mapped=True)


def test_digits_are_scikit_learns():
    images, labels = load_digits(return_X_y=True)
    found = datasets.digits()
    np.testing.assert_array_equal(found.features, (images / 16).astype(np.float32))
    np.testing.assert_array_equal(found.labels, labels)
