"""Records that nobody here made, against independent readings of the same files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mico_exp.challenge.arrays import from_files
from mico_exp.common import fingerprints
from mico_exp.common.errors import InputError
from mico_exp.config.setup import Source
from mico_exp.scores.soundness import check_records

PAGE = Path(__file__).parents[1] / "docs" / "own_models.md"


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_documented(title):
    """Records by the option file that the page shows under a title, as a command makes them."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n### {title}\n")[1]
    option = yaml.safe_load(section.split("```yaml\n")[1].split("```")[0])
    records = Source("own", yaml.safe_dump(option["records"]), None).records
    check_records(records, np.arange(len(records.labels)))
    return records


def every(records):
    return records.inputs(torch.arange(len(records.labels)))


def test_arrays_as_documented(here, random):
    pixels = random.integers(256, size=(12, 6, 5, 3), dtype=np.uint8)
    names = random.choice(["cat", "dog", "ship"], 12)
    np.savez(here / "pictures.npz", x_train=pixels[:8], y_train=names[:8], note=np.array(1))
    np.save(here / "x_test.npy", pixels[8:])
    np.save(here / "y_test.npy", names[8:])
    records = as_documented("Arrays")
    assert records.labels.tolist() == [["cat", "dog", "ship"].index(name) for name in names]
    seen = (pixels / 255 - [0.49, 0.48, 0.45]) / [0.25, 0.24, 0.26]
    given = every(records)
    assert given.dtype == torch.float32
    assert np.abs(given.numpy() - seen.transpose(0, 3, 1, 2)).max() < 1e-6
    assert torch.equal(records.inputs(torch.tensor([9, 0, 9])), given[[9, 0, 9]])
    with pytest.raises(IndexError):
        records.inputs(torch.tensor([12]))


@pytest.mark.parametrize(
    ("values", "options", "seen"),
    [
        (np.arange(12.0).reshape(4, 3), {}, lambda x: x),
        (np.arange(12, dtype=">f8").reshape(4, 3), {"mean": [1, 2, 3], "std": 2}, "columns"),
        (np.arange(4) % 2 == 1, {}, lambda x: x),
        (np.arange(8, dtype=np.float16).reshape(4, 2), {"scale": 4}, lambda x: x / 4),
        (np.arange(12, dtype=np.int16).reshape(4, 3), {"scale": 1}, lambda x: x),
        (np.arange(12, dtype=np.int32).reshape(4, 3), {"dtype": "int64"}, lambda x: x),
        (np.arange(24.0).reshape(4, 2, 3), {"layout": "NHW"}, lambda x: x[:, None]),
        (np.arange(24.0).reshape(4, 2, 3), {"layout": "NLC", "std": [1, 2, 4]}, "signals"),
        (np.arange(96.0).reshape(4, 2, 3, 4), {"layout": "NCHW", "mean": [5, 7]}, "first"),
        (np.asfortranarray(np.arange(12.0).reshape(4, 3)), {}, lambda x: x),
    ],
)
def test_what_models_see_of_an_array(here, values, options, seen):
    literal = {
        "columns": lambda x: (x - [1, 2, 3]) / 2,
        "signals": lambda x: x.transpose(0, 2, 1) / np.array([1, 2, 4])[:, None],
        "first": lambda x: x - np.array([5, 7])[:, None, None],
    }
    np.save("x.npy", values)
    np.save("y.npy", np.array([[0], [2], [1], [0]], np.uint8))
    records = from_files("x.npy", "y.npy", **options)
    check_records(records, np.arange(4))
    expected = literal.get(seen, seen)(values)
    assert every(records).shape == expected.shape
    assert np.array_equal(every(records).numpy(), expected)
    assert isinstance(records.values, np.memmap)
    assert records.labels.tolist() == [0, 2, 1, 0]


def test_a_fingerprint_is_of_what_models_see(here, random, monkeypatch):
    monkeypatch.setattr(fingerprints, "RACY_SECONDS", -1)
    values = random.random((5, 4), dtype=np.float32)
    np.save("x.npy", values)
    np.savez_compressed("x.npz", x=values)
    np.save("y.npy", np.arange(5) % 2)
    first = from_files("x.npy", "y.npy", store="store").fingerprint
    assert from_files("x.npz:x", "y.npy").fingerprint == first
    assert from_files("x.npy", "y.npy", mean=0.5).fingerprint != first
    assert from_files("x.npy", "y.npy", classes=[1, 0, "a"]).fingerprint != first
    monkeypatch.setattr("mico_exp.challenge.arrays.hash_of", None)  # it is remembered
    assert from_files("x.npy", "y.npy", store="store").fingerprint == first
    monkeypatch.undo()
    values[4, 3] += 1
    np.save(here / "x.npy", values)
    found = from_files(str(here / "x.npy"), str(here / "y.npy"), store=str(here / "store"))
    assert found.fingerprint != first


X, Y = np.zeros((3, 2), np.float32), np.arange(3)
ARRAYS = [
    ({"x.npy": None}, {}, r"x\.npy is missing: see `dataset\.records\.inputs`"),
    ({"x.npy": np.array([{}, 1, 2], object)}, {}, r"x\.npy: holds no array of numbers.*never unpi"),
    ({"x.npy": pickle.dumps(X)}, {}, r"x\.npy: holds no array of numbers .*never unpickled"),
    ({"x.npy": b"some text"}, {}, r"x\.npy: holds no array of numbers"),
    ({"x.npy": np.array(["a", "b", "c"])}, {}, r"x\.npy: must hold numbers, got <U1"),
    ({"x.npy": np.array(3.0)}, {}, r"x\.npy: must hold a row for each record, got \(\)"),
    ({"x.npy": X[:0]}, {}, r"x\.npy: must hold a row for each record, got \(0, 2\)"),
    ({"x.npy": X.astype(np.uint8)}, {}, r"x\.npy: holds whole numbers, uint8: say .*scale"),
    ({"x.npy": X.astype(complex)}, {}, r"x\.npy: must hold numbers, got complex128"),
    ({"y.npy": Y[:2]}, {}, r"y\.npy: must have a label for each record, got 2 for the 3 of x\.npy"),
    ({"y.npy": Y - 1}, {}, r"y\.npy: label of record 0 must be a whole number from 0 on.*got -1"),
    ({"y.npy": Y / 2}, {}, r"y\.npy: label of record 0 must be a whole number.* got 0\.0"),
    ({"y.npy": np.eye(3)}, {}, r"y\.npy: labels must have one axis, got \(3, 3\)"),
    ({}, {"classes": ["0", "1"]}, r"y\.npy: label of record 2 must be one of .*, 0, 1, got 2"),
    ({}, {"classes": [2, 0, 1]}, r"numbers 0 … 2 in another order, 2, 0, 1"),
    ({}, {"classes": ["a", "a"]}, r"must name each label once, got 'a' twice"),
    ({}, {"classes": "cat"}, r"classes` must be a list of labels, got 'cat'"),
    ({}, {"inputs": "x.npz"}, r"x\.npz, x\.npz:one, x\.npz:two; got x\.npz"),
    ({}, {"inputs": "x.npz:three"}, r"must name an array of x\.npz, x\.npz:one, x\.npz:two"),
    ({"x.npz": b"PK"}, {"inputs": "x.npz:one"}, r"x\.npz: holds no array"),
    ({}, {"inputs": []}, r"inputs` must name a file or several, got \[\]"),
    ({}, {"inputs": ["x.npy", "y.npy"]}, r"y\.npy: must hold records as x\.npy does, \(2,\) of"),
    ({}, {"inputs": "."}, r"\. is a folder: see"),
    ({}, {"dtype": "float64"}, r"dtype` must be float32 or int64, got 'float64'"),
    ({}, {"dtype": "int64"}, r"x\.npy: must hold whole numbers for `dtype: int64`, got float32"),
    ({"x.npy": Y}, {"dtype": "int64", "std": 2}, r"std` is for `dtype: float32`"),
    ({}, {"layout": "NHWC"}, r"x\.npy: must have 4 axes, as .*layout` NHWC says, got \(3, 2\)"),
    ({}, {"layout": "HWC"}, r"layout` must be a letter for each axis, N first"),
    ({}, {"mean": [1, 2, 3]}, r"mean` must have a number for each of the 2 channels .*got 3"),
    ({"x.npy": np.zeros((3, 2, 2))}, {"std": [1, 2]}, r"layout` must say which axis"),
    ({}, {"std": 0}, r"std` must be a finite number above 0, got 0"),
    ({}, {"mean": "a"}, r"mean` must be a finite number above -inf, got 'a'"),
    ({}, {"scale": -1}, r"scale` must be a finite number above 0, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "options", "message"), ARRAYS)
def test_arrays_that_are_wrong(here, files, options, message):
    np.savez("x.npz", one=X, two=X)
    for name, content in ({"x.npy": X, "y.npy": Y} | files).items():
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        elif content is not None:
            np.save(name, content, allow_pickle=True) if name != "x.npz" else None
    with pytest.raises(InputError, match=message) as refused:
        from_files(**{"inputs": "x.npy", "labels": "y.npy"} | options)
    assert "\n" not in str(refused.value)
