"""Whatever is in a file: what reads it gives something, or one line that names the file.

`make fuzz` does the same with thousands of other files. The suite's are always the same ones.
"""

import io
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import worlds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from mico_exp.challenge import archive, datasets, epsilon, tree
from mico_exp.common.errors import InputError
from mico_exp.models import folders
from mico_exp.models.architectures import MLP, roberta
from mico_exp.models.weights import check_weights, load_state
from mico_exp.results.cell import read_predictions, read_validation
from mico_exp.results.submission import read_submission, submitted_models
from mico_exp.scores import store

pytestmark = pytest.mark.commands  # it takes long for what it is: not for `make test-fast`
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
LIKE = MLP([6, 5, 3])


def saved(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def zipped(**entries):
    def write(buffer):
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, text in entries.items():
                packed.writestr(name, text)

    return saved(write)


def predictions():
    rows = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 6)
    arrays = {"train": rows, "dev": rows, "train_solution": rows > 0.5}
    return saved(lambda buffer: np.savez_compressed(buffer, **arrays))


def column():
    key, points = np.array("k" * 64), np.arange(5, dtype=np.uint32)
    return saved(lambda buffer: np.savez(buffer, key=key, points=points, scores=np.ones(5)))


def weights(path):
    check_weights(path)
    load_state(path, LIKE)
    load_state(path, LIKE, mapped=True)


def whole_archive(path):
    folder = path.parent / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    archive.unpack(path, folder, ["x_inf"])


def stored(path):
    address = store.Address("s", "train", "model_0", "loss", "k" * 64, "p" * 64)
    assert isinstance(store.ScoreStore(path.parents[3]).read(address), store.Column)


def pack():
    address = store.Address("s", "train", "model_0", "loss", "k" * 64, "p" * 64)
    with tempfile.TemporaryDirectory() as folder:
        some = store.ScoreStore(Path(folder))
        some.write({address: store.Column(np.arange(5), np.ones(5))})
        some.pack([address])
        return some.pack_path(address).read_bytes()


def packed(path):
    address = store.Address("s", "train", "model_0", "loss", "k" * 64, "p" * 64)
    (found,) = store.ScoreStore(path.parents[2]).read_all([address], [np.arange(5)])
    assert isinstance(found, store.Column)


def sentences(path):
    datasets._read_sentences(path)


TABLE = pd.DataFrame({"sentence": ["a good film", "a bad one"], "label": [1, 0]})
NAME = "digits/digits_inf/dev/model_3/prediction.csv"
READERS = {  # a file's name → one that is right, and what reads it
    "seed_challenge": (b"123456789\n", tree.read_seed),
    "epsilon": (b"4.0\n", epsilon.read_epsilon),
    "solution.csv": (b"0,1,1,0\n", lambda path: tree.read_solution(path, 4)),
    "model.pt": (saved(lambda buffer: torch.save(LIKE.state_dict(), buffer)), weights),
    "model.safetensors": (save_safetensors(LIKE.state_dict()), weights),
    "old/model.pt": (
        saved(
            lambda buffer: torch.save(
                LIKE.state_dict(), buffer, _use_new_zipfile_serialization=False
            )
        ),
        weights,
    ),
    "predictions.npz": (predictions(), read_validation),
    "all/predictions.npz": (predictions(), read_predictions),
    "s/train/model_0/loss-kkkkkkkkkkkkkkkk.npz": (column(), stored),
    "s/packs/loss-pppppppppppppppp.npz": (pack(), packed),
    "predictions_digits.zip": (zipped(**{NAME: "0.5,1,0"}), read_submission),
    "names/predictions_digits.zip": (zipped(**{NAME: "0.5,1,0"}), submitted_models),
    "archive.zip": (zipped(**{"x/x_inf/train/model_0/model.pt": "w"}), whole_archive),
    "train.tsv": (TABLE.to_csv(sep="\t", index=False).encode(), sentences),
    "train.parquet": (saved(lambda buffer: TABLE.to_parquet(buffer)), sentences),
    "dataset_purchase": (
        b"\n".join(b"7," + b",".join([b"1", b"0"] * 300) for _ in range(2)),
        datasets.parse_purchase,
    ),
    "config.json": (json.dumps(worlds.ROBERTA).encode(), lambda path: roberta(path.parent)),
    "build.json": (b'{"format": 1}', lambda path: folders.begin(path.parent, {"format": 1})),
}

edits = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.floats(0, 1)),
        st.tuples(st.just("put"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("text"), st.floats(0, 1), st.text(min_size=1, max_size=6)),
        st.tuples(st.just("twice"), st.floats(0, 1), st.floats(0, 1)),
    ),
    min_size=1,
    max_size=4,
)
contents = st.one_of(edits, edits, edits, st.binary(max_size=200), st.text(max_size=80))


def edited(content, changes):
    """The content after some edits; or others in its place."""
    if isinstance(changes, bytes):
        return changes
    if isinstance(changes, str):
        return changes.encode("utf-8", "surrogatepass")
    found = bytearray(content)
    for kind, place, what in changes:
        start = int(place * len(found))
        if kind == "flip" and start < len(found):
            found[start] ^= 1 << what
        elif kind in ("cut", "twice"):
            start, end = sorted((start, int(what * len(found))))
            found[start:end] = b"" if kind == "cut" else bytes(found[start:end]) * 2
        elif kind == "put":
            found[start : start + len(what)] = what
        elif kind == "text":
            found[start:start] = what.encode("utf-8", "surrogatepass")
    return bytes(found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_what_is_read_is_right_or_one_line_names_the_file(name, tmp_path_factory):
    content, read = READERS[name]
    place = tmp_path_factory.mktemp("fuzz")

    @settings(
        max_examples=EXAMPLES or 40,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(contents)
    def attempt(changes):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(edited(content, changes))
        try:
            read(path)
        except InputError as error:
            said = str(error)
            assert str(path.parent) in said
            assert len(said.splitlines()) == 1
            assert said.isprintable()
            assert len(said) < len(str(path)) + 600

    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    read(path)  # as it is, it is right
    attempt()


def test_edits_change_what_they_should():
    assert edited(b"abcd", [("cut", 0.0, 0.5)]) == b"cd"
    assert edited(b"abcd", [("flip", 0.0, 0)]) == b"`bcd"
    assert edited(b"abcd", [("twice", 0.5, 1.0)]) == b"abcdcd"
