"""Records that nobody here made, against independent readings of the same files."""

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer
from torchvision.datasets import FashionMNIST, ImageFolder
from torchvision.transforms.functional import to_tensor
from transformers import BertTokenizerFast

from mico_exp.challenge import images, items, tables, texts
from mico_exp.challenge.arrays import from_files
from mico_exp.common import fingerprints
from mico_exp.common.errors import InputError
from mico_exp.config.dataset import source
from mico_exp.config.typed import OPTIONS
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
    option = section.split("```yaml\n")[1].split("```")[0]
    name = yaml.safe_load(option)["name"]
    path = Path("options", "dataset", f"{name}.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(f"defaults: [digits]\n{option}num_records: null\n")
    place = f"hydra.searchpath=[file://{Path('options').absolute()}]"
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        cfg = compose("extract", overrides=[place, f"dataset={name}"])
    records = source(cfg).records
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


ROWS, Y = np.zeros((3, 2), np.float32), np.arange(3)
ARRAYS = [
    ({"x.npy": None}, {}, r"x\.npy is missing: see `dataset\.records\.inputs`"),
    ({"x.npy": np.array([{}, 1, 2], object)}, {}, r"x\.npy: holds no array of numbers.*never unpi"),
    ({"x.npy": pickle.dumps(ROWS)}, {}, r"x\.npy: holds no array of numbers .*never unpickled"),
    ({"x.npy": b"some text"}, {}, r"x\.npy: holds no array of numbers"),
    ({"x.npy": np.array(["a", "b", "c"])}, {}, r"x\.npy: must hold numbers, got <U1"),
    ({"x.npy": np.array(3.0)}, {}, r"x\.npy: must hold a row for each record, got \(\)"),
    ({"x.npy": ROWS[:0]}, {}, r"x\.npy: must hold a row for each record, got \(0, 2\)"),
    ({"x.npy": ROWS.astype(np.uint8)}, {}, r"x\.npy: holds whole numbers, uint8: say .*scale"),
    ({"x.npy": ROWS.astype(complex)}, {}, r"x\.npy: must hold numbers, got complex128"),
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
    ({}, {"mean": "a"}, r"mean` must be a finite number, got 'a'"),
    ({}, {"scale": -1}, r"scale` must be a finite number above 0, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "options", "message"), ARRAYS)
def test_arrays_that_are_wrong(here, files, options, message):
    np.savez("x.npz", one=ROWS, two=ROWS)
    for name, content in ({"x.npy": ROWS, "y.npy": Y} | files).items():
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        elif content is not None:
            np.save(name, content, allow_pickle=True) if name != "x.npz" else None
    with pytest.raises(InputError, match=message) as refused:
        from_files(**{"inputs": "x.npy", "labels": "y.npy"} | options)
    assert "\n" not in str(refused.value)


def picture(random, path, size, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def flowers(random, sizes=((8, 6),), modes=("RGB",)):
    for part, count in {"train": 7, "test": 4}.items():
        for number in range(count):
            kind = ["rose", "aster", "10"][number % 3]
            name = f"{number}.PNG" if number % 2 else f"more/{number}.jpg"
            mode = modes[number % len(modes)]
            place = Path("flowers", part, kind, name)
            picture(random, place, sizes[number % len(sizes)], mode if number % 2 else "RGB")
    Path("flowers/train/rose/notes.txt").write_text("no image")
    Path("flowers/train/.cache").mkdir()


def literal_flowers(look):
    """By torchvision, each image as PIL gives it."""
    parts = [ImageFolder(f"flowers/{part}", is_valid_file=lambda path: "txt" not in path)
             for part in ("train", "test")]  # fmt: skip
    samples = [sample for part in parts for sample in part.samples]
    pixels = [np.asarray(look(Image.open(path))) for path, _ in samples]
    return np.stack(pixels), [label for _, label in samples]


def test_images_in_folders_as_documented(here, random):
    flowers(random, ((8, 6), (5, 9)), ("RGB", "RGBA", "L", "P"))
    shutil.rmtree("flowers/train/.cache")
    pixels, labels = literal_flowers(lambda one: one.convert("RGB").resize((6, 8), 2))
    expected = (pixels / 255 - [0.49, 0.48, 0.45]) / [0.25, 0.24, 0.26]
    records = as_documented("Images in folders")
    assert records.labels.tolist() == labels
    assert np.abs(every(records).numpy() - expected.transpose(0, 3, 1, 2)).max() < 1e-6


def test_decoded_images_are_kept_while_nothing_changes(here, random, monkeypatch, caplog):
    monkeypatch.setattr(fingerprints, "RACY_SECONDS", -1)
    flowers(random)
    told = {"folder": "flowers", "parts": ["train", "test"], "store": "store"}
    first = images.from_folder(**told)
    plain = images.from_folder(**told | {"store": None})
    assert first.fingerprint == plain.fingerprint
    assert torch.equal(every(first), every(plain))
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", None)
        second = images.from_folder(**told)
        assert isinstance(second.values, np.memmap)
        assert second.fingerprint == first.fingerprint
        assert torch.equal(second.labels, first.labels)
    (kept,) = Path("store/records").glob("*.npy")
    kept.write_bytes(kept.read_bytes()[:-9] + b"different")
    assert images.from_folder(**told).fingerprint == first.fingerprint
    assert "is damaged and will be made anew" in caplog.text
    picture(random, Path("flowers/test/rose/9.png"), (8, 6))
    third = images.from_folder(**told)
    assert len(third.labels) == len(first.labels) + 1
    assert len(list(Path("store/records").glob("*.npy"))) == 1


@pytest.mark.parametrize(("mode", "channels"), [("L", None), ("1", None), ("RGB", 1), ("L", 3)])
def test_grey_stays_of_one_channel(here, random, mode, channels):
    for kind in "ab":
        picture(random, Path("f", kind, "x.png"), (3, 2), mode)
    records = images.from_folder("f", channels=channels)
    read = [Image.open(f"f/{kind}/x.png").convert("L") for kind in "ab"]
    expected = np.stack(read)[:, None].repeat(channels or 1, 1).astype(np.float32) / 255
    assert np.array_equal(every(records).numpy(), expected)


FOLDERS = [
    ([("a/x.png", (4, 4)), ("b/y.png", (4, 5))], {}, r"f/b/y\.png: must be 4 × 4 of 3 channels"),
    ([("a/x.png", (4, 4))], {"size": 5}, r"f/a/x\.png: must be 5 × 5 of 3 .*got 4 × 4 of 3"),
    ([("a/x.png", (4, 4)), ("a/y.png", (4, 4), "L")], {}, r"f/a/y\.png: .* got 4 × 4 of one"),
    ([("a/x.png", (4, 4), "RGBA")], {}, r"f/a/x\.png: is neither grey nor colour .*RGBA: say"),
    ([("a/x.png", (4, 4), "I;16")], {"channels": 1}, r"f/a/x\.png: must be an image of 8 bits"),
    ([("a/x.png", b"no image")], {}, r"f/a/x\.png: cannot be read as an image"),
    ([("a/x.png", b"\x89PNG\r\n\x1a\n")], {}, r"f/a/x\.png: cannot be read as an image"),
    ([("a/x.txt", b"")], {}, r"f: has no images of class 'a'"),
    ([("x.png", (4, 4))], {}, r"f: must have folders of each class; got none"),
    ([], {"folder": "g"}, r"g is missing: see `dataset\.records\.folder`"),
    ([("t/a/x.png", (4, 4))], {"parts": ["t", "u"]}, r"f/u is missing: see `.*\.parts`"),
    ([("t/a/x.png", (4, 4)), ("u/b/x.png", (4, 4))], {"parts": ["t", "u"]}, r"f/u: .*got 'a'"),
    ([("a/x.png", (4, 4))], {"classes": ["b"]}, r"f: must have folders of b; got 'a' in one alone"),
    ([("a/x.png", (4, 4))], {"classes": ["b", "a"]}, r"f: has no images of class 'b'"),
    ([("a/x.png", (4, 4))], {"classes": ["a", "a"]}, r"classes` must name each label once"),
    ([("a/x.png", (4, 4))], {"size": "big"}, r"size` must be \[height, width\], got 'big'"),
    ([("a/x.png", (4, 4))], {"size": [4, 0]}, r"size` must be a whole number of at least 1, got 0"),
    ([("a/x.png", (4, 4))], {"resize": "bilinear"}, r"resize` must be one of .*beside `size`"),
    ([("a/x.png", (4, 4))], {"size": 4, "resize": "wide"}, r"resize` must be one of .*got 'wide'"),
    ([("a/x.png", (4, 4))], {"channels": 2}, r"channels` must be 1 or 3, got 2"),
    ([("a/x.png", (4, 4))], {"mean": [1, 2]}, r"mean` must have a number for each of the 3 chan"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "options", "message"), FOLDERS)
def test_folders_that_are_wrong(here, random, files, options, message):
    Path("f").mkdir()
    for name, content, *mode in files:
        path = Path("f", name)
        if isinstance(content, tuple):
            picture(random, path, content, *mode)
        else:
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        images.from_folder(**{"folder": "f"} | options)
    assert "\n" not in str(refused.value)


def idx(path, values):
    """The format of the MNIST family."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(head + values.tobytes())


def test_images_of_torchvision_as_documented(here, random, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", None)
    pixels = random.integers(256, size=(30, 28, 28), dtype=np.uint8)
    labels = random.integers(10, size=30, dtype=np.uint8)
    raw = Path("data/fashion/FashionMNIST/raw")
    for part, some in {"train": slice(0, 20), "t10k": slice(20, 30)}.items():
        idx(raw / f"{part}-images-idx3-ubyte", pixels[some])
        idx(raw / f"{part}-labels-idx1-ubyte", labels[some])
    records = as_documented("Images of torchvision")
    assert records.labels.tolist() == labels.tolist()
    expected = ((pixels / 255 - 0.286) / 0.353)[:, None]
    assert np.abs(every(records).numpy() - expected).max() < 1e-6
    names = FashionMNIST.classes
    told = {"name": "FashionMNIST", "root": "data/fashion"}
    same = images.from_torchvision(**told, classes=names)
    assert same.labels.tolist() == labels[:20].tolist()
    with pytest.raises(InputError, match=r"in its own order, .* got another order: Ankle boot"):
        images.from_torchvision(**told, classes=names[::-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "CIFAR10"},
            r"\. does not hold CIFAR10 as torchvision reads it, and nothing",
        ),
        ({"name": "MNIST"}, r"\. does not hold MNIST as torchvision reads it"),
        ({"name": "SVHN", "parts": [{"split": "odd"}]}, r"\. does not hold SVHN"),
        ({"name": "MNIST", "parts": [{"part": 1}]}, r"\. does not hold MNIST.*'part'"),
        ({"name": "MNIST", "parts": [{"download": True}]}, r"parts` must not have `download`"),
        ({"name": "MNIST", "parts": {"train": True}}, r"parts` must be a list of arguments"),
        ({"name": "LSUN"}, r"'LSUN' reads a pickle, which is never opened"),
        ({"name": "os"}, r"must be a class of torchvision\.datasets: 'os' is none"),
        ({"name": "MNIST", "root": "nowhere"}, r"nowhere is missing: see `dataset\.records\.root`"),
    ],
)
def test_torchvision_never_downloads(here, options, message, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", None)
    with pytest.raises(InputError, match=message) as refused:
        images.from_torchvision(**{"root": "."} | options)
    assert "\n" not in str(refused.value)


HEADER = ["id", "age", "work", "sex", "student", "income"]


def people(random, count):
    return [
        [
            str(row),
            repr(round(random.normal(40, 10), 3)),
            str(random.choice(["office", "shop, open", 'the "yard"'])),
            str(random.choice(["female", "male"])),
            str(random.choice(["True", "False"])),
            str(random.choice(["<=50K", ">50K"])),
        ]
        for row in range(count)
    ]


def test_tables_as_documented(here, random):
    rows = people(random, 30)
    for name, some in {"adults.csv": rows[:20], "more.csv": rows[20:]}.items():
        with open(name, "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([HEADER, *some])
    works = sorted({row[2] for row in rows})
    expected = [
        [(float(row[1]) - 38.6) / 13.7]
        + [float(row[2] == work) for work in works]
        + [float(row[3] == "female"), float(row[3] == "male"), float(row[4] == "True")]
        for row in rows
    ]
    records = as_documented("Tables")
    assert np.array_equal(every(records).numpy(), np.array(expected, np.float32))
    assert records.labels.tolist() == [int(row[5] == ">50K") for row in rows]


def write(frame, path):
    """Write a table in the format that its name has."""
    how = {
        ".csv": lambda: frame.to_csv(path, index=False),
        ".tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        ".parquet": lambda: frame.to_parquet(path),
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
    }
    how[Path(path).suffix]()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_a_table_in_every_format_is_the_same_records(here, suffix):
    frame = pd.DataFrame({
        "a": [0.1, 2.0, 1e-3], "b": [1, 5, 3], "c": ["x", "NA", "x"], "day": ["2024-01-01"] * 3,
        "constant": [0.1] * 3, "label": [1, 0, 2],
    })  # fmt: skip
    write(frame, f"t{suffix}")
    options = {"without": ["day"], "categorical": ["c"], "standardise": "records"}
    records = tables.from_file(f"t{suffix}", "label", **options)
    numbers = StandardScaler().fit_transform(frame[["a", "b"]].to_numpy(np.float64))
    expected = np.column_stack([numbers, frame["c"] == "NA", frame["c"] == "x", np.zeros(3)])
    assert np.allclose(every(records).numpy(), expected, rtol=0, atol=1e-6)
    assert records.labels.tolist() == [1, 0, 2]
    chosen = tables.from_file(f"t{suffix}", "label", features=["b", "a"])
    assert every(chosen).tolist() == frame[["b", "a"]].to_numpy(np.float32).tolist()


def test_a_column_may_be_named_by_a_number(here):
    Path("t.csv").write_text("0,1,2,3\n5,x,0,7\n6,y,1,8\n")
    records = tables.from_file("t.csv", 2, without=0, categorical=[1], standardise={"3": [7, 2]})
    assert every(records).tolist() == [[1, 0, 0], [0, 1, 0.5]]
    assert records.labels.tolist() == [0, 1]


GOOD = "a,b,label\n1,x,0\n2,y,1\n"
TABLES = [
    ("t.csv", "a,b,label\n1,x,0\n,y,1\n", {}, r"t\.csv: column 'a' is missing a value in row 1"),
    ("t.csv", "a,b,label\n1,x,0\n2,,1\n", {}, r"t\.csv: column 'b' is missing a value in row 1"),
    ("t.csv", "a,b,label\n1,x,0\n2,y,\n", {}, r"t\.csv: column 'label' is missing .* row 1"),
    ("t.csv", "a,b,label\n1,x,0\nNA,y,1\n", {}, r"'a' must hold numbers, or be in .*'NA' in row 1"),
    ("t.csv", "a,b,label\n1,x,0\n1e39,y,1\n", {}, r"'a' must hold finite .* got 1e\+39 in row 1"),
    ("t.csv", "a,b,label\n1,x,0\nnan,y,1\n", {}, r"'a' must hold finite numbers .*nan in row 1"),
    ("t.csv", "a,b,label\n1,x,0\n2,y,-1\n", {}, r"t\.csv: label of record 1 must be .* got '-1'"),
    ("t.csv", "a,b,label\n1,x,0\n2,y,1.0\n", {}, r"label of record 1 must be .* got '1\.0'"),
    ("t.csv", "a,b,label\n1,x,0\n2,y\n", {}, r"t\.csv: cannot be read as a table: .*Expected 3"),
    ("t.csv", "a,b,label\n1,x,0,9\n", {}, r"t\.csv: cannot be read as a table: .*Expected 3"),
    ("t.csv", "a,a,label\n1,x,0\n", {}, r"t\.csv: has more than one column 'a'"),
    ("t.csv", "a,b,label\n", {}, r"t\.csv: has no rows"),
    ("t.csv", "", {}, r"t\.csv: cannot be read as a table"),
    ("t.csv", b"a,b,label\n1,\xff,0\n", {}, r"t\.csv: cannot be read as a table"),
    ("t.parquet", "nothing", {"file": "t.parquet"}, r"t\.parquet: cannot be read as a table"),
    ("t.jsonl", '{"a": 1}\n{"b": 1}\n', {"file": "t.jsonl"}, r"line 2 must be an object with"),
    ("t.jsonl", "[1]\n", {"file": "t.jsonl"}, r"t\.jsonl: cannot be read .*line 1 must be {…}"),
    ("t.jsonl", "{\n", {"file": "t.jsonl"}, r"t\.jsonl: cannot be read as a table"),
    ("t.xls", "", {"file": "t.xls"}, r"t\.xls: must be a table, \.csv, .*got '\.xls'"),
    ("t.csv", GOOD, {"file": "u.csv"}, r"u\.csv is missing: see `dataset\.records\.file`"),
    ("u.csv", "a,c,label\n", {"file": ["t.csv", "u.csv"]}, r"u\.csv: has no rows"),
    ("u.csv", "a,c,label\n1,2,3", {"file": ["t.csv", "u.csv"]}, r"u\.csv: must have the .*has 'b'"),
    ("t.csv", GOOD, {"label": "income"}, r"label` must name columns of t\.csv, a, b, label"),
    ("t.csv", GOOD, {"without": ["id"]}, r"without` must name columns of t\.csv, .*got 'id'"),
    ("t.csv", GOOD, {"features": ["a", "z"]}, r"features` must name columns of t\.csv, .*got 'z'"),
    ("t.csv", GOOD, {"features": ["a", "label"]}, r"features` must name columns beside the label"),
    ("t.csv", GOOD, {"without": ["a", "b"]}, r"features` must name columns beside the"),
    ("t.csv", GOOD, {"categorical": ["z"]}, r"categorical` must name columns of .*got 'z'"),
    ("t.csv", GOOD, {"categorical": "b"}, r"categorical` must be a list or a mapping, got 'b'"),
    ("t.csv", GOOD, {"categorical": {"b": ["x", "x"]}}, r"categorical\.b` must list different"),
    ("t.csv", GOOD, {"categorical": {"b": ["x"]}}, r"'b' must be one of .*got 'y' in record 1"),
    ("t.csv", GOOD, {"standardise": "all"}, r"standardise` must be records, or .*, a; got 'all'"),
    ("t.csv", GOOD, {"standardise": {"b": [0, 1]}}, r"standardise` must be records, or"),
    ("t.csv", GOOD, {"standardise": {"a": 1}}, r"standardise\.a` must be \[mean, deviation\]"),
    ("t.csv", GOOD, {"standardise": {"a": [0, 0]}}, r"standardise\.a` must be a finite"),
    ("t.csv", GOOD, {"classes": [1, "x"]}, r"label of record 0 must be one of .*, 1, x, got '0'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "message"), TABLES)
def test_tables_that_are_wrong(here, name, content, options, message):
    Path("t.csv").write_text(GOOD)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as refused:
        tables.from_file(**{"file": "t.csv", "label": "label", "categorical": ["b"]} | options)
    assert "\n" not in str(refused.value)


LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh", "##s", "é"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(LETTERS), encoding="utf-8")
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    (folder / "vocab.txt").unlink()
    return folder


def questions(random, count):
    def sentence():
        return " ".join(random.choice([*"abcdefgh", "bs", "É", "?"], random.integers(1, 9)))

    return [
        {"question": sentence(), "answer": sentence(), "verdict": str(verdict)}
        for verdict in random.choice(["wrong", "right"], count)
    ]


def encoded(folder, *columns, longest):
    """By the Rust library alone, padded by hand."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(longest)
    tokenizer.no_padding()
    rows = [tokenizer.encode(*texts) for texts in zip(*columns, strict=True)]
    width = max(len(row.ids) for row in rows)
    return tuple(
        torch.tensor([getattr(row, name) + [0] * (width - len(row.ids)) for row in rows])
        for name in ("ids", "attention_mask", "type_ids")
    )


def test_text_as_documented(here, random, bert):
    rows = questions(random, 40)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    Path("answers.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shutil.copytree(bert, "bert")
    records = as_documented("Text")
    assert records.labels.tolist() == [int(row["verdict"] == "right") for row in rows]
    found = every(records)
    both = [[row[name] for row in rows] for name in ("question", "answer")]
    ids, mask, types = encoded(bert, *both, longest=12)
    assert types.any()
    assert list(found) == ["input_ids", "attention_mask", "token_type_ids"]
    for name, expected in zip(found, (ids, mask, types), strict=True):
        assert torch.equal(found[name], expected), name
    few = records.inputs(torch.tensor([7, 3]))
    assert torch.equal(few["input_ids"], ids[[7, 3], : few["input_ids"].shape[1]])
    assert records.sizes(np.arange(40)).tolist() == mask.sum(1).tolist()
    other = tables_of_text("answers.jsonl", bert, text=["question", "answer"], pad=1)
    assert other.fingerprint != records.fingerprint
    assert (other.inputs(torch.arange(40))["input_ids"][mask == 0] == 1).all()


def tables_of_text(file, folder, **options):
    told = {"label": "verdict", "classes": ["wrong", "right"], "max_length": 12}
    return texts.from_file(file, tokenizer=str(folder), **told | options)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_single_sentences_of_every_format(here, random, bert, suffix):
    frame = pd.DataFrame(questions(random, 20))
    write(frame, f"t{suffix}")
    found = every(tables_of_text(f"t{suffix}", bert, text="question", token_types=False))
    ids, mask, _ = encoded(bert, frame["question"], longest=12)
    assert list(found) == ["input_ids", "attention_mask"]
    assert torch.equal(found["input_ids"], ids)
    assert torch.equal(found["attention_mask"], mask)


def changed(bert, place, kind, **told):
    """A copy of a tokenizer whose configuration says something else."""
    shutil.copytree(bert, place)
    path = Path(place) / "tokenizer_config.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"tokenizer_class": kind} | told))
    return place


@pytest.mark.parametrize("kind", ["AlbertTokenizer", "DebertaV2TokenizerFast", "XLNetTokenizer"])
def test_ids_are_those_of_the_tokenizers_own_file(here, random, bert, kind):
    """AutoTokenizer of transformers 5 would build these by their class, and cut text otherwise."""
    pd.DataFrame(rows := questions(random, 20)).to_csv("t.csv", index=False)
    place = changed(bert, "t", kind, auto_map={"AutoTokenizer": [None, "mine.Tokenizer"]})
    Path("t/mine.py").write_text("raise SystemExit('this ran')")
    found = every(tables_of_text("t.csv", place, text="answer", token_types=False))
    ids, _, _ = encoded(bert, [row["answer"] for row in rows], longest=12)
    assert torch.equal(found["input_ids"], ids)


def test_a_tokenizer_without_its_own_file_is_made_by_its_class(here, random, bert):
    Path("words").mkdir()
    Path("words/vocab.txt").write_text("\n".join(LETTERS), encoding="utf-8")
    Path("words/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    pd.DataFrame(questions(random, 20)).to_csv("t.csv", index=False)
    one, other = (tables_of_text("t.csv", place, text="answer") for place in ("words", bert))
    assert one.fingerprint == other.fingerprint
    Path("words/tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "mine.T"}}')
    with pytest.raises(InputError, match="without code of its own, got words with `auto_map`"):
        tables_of_text("t.csv", "words", text="answer")


TEXTS = [
    ("t.csv", "question,verdict\na,wrong\n,right\n", {}, r"t\.csv: column 'question' is missing"),
    ("t.parquet", [1, 2], {"file": "t.parquet"}, r"'question' must hold text, got 1 in record 0"),
    ("t.parquet", ["a", None], {"file": "t.parquet"}, r"'question' is missing a value in row 1"),
    ("t.csv", "question,verdict\na,maybe\n", {}, r"label of record 0 must be one of .*'maybe'"),
    ("t.csv", None, {"text": "sentence"}, r"text` must name columns of t\.csv, question, verdict"),
    ("t.csv", None, {"text": []}, r"text` must name one column or two, got \[\]"),
    ("t.csv", None, {"label": "l"}, r"label` must name columns of t\.csv, .*got 'l'"),
    ("t.csv", None, {"max_length": 0}, r"max_length` must be a whole number of at least 1, got 0"),
    ("t.csv", None, {"pad": -1}, r"pad` must be a whole number of at least 0, got -1"),
    ("t.csv", None, {"token_types": "yes"}, r"token_types` must be true, false or null, got 'yes'"),
    ("t.csv", None, {"tokenizer": "nowhere"}, r"nowhere is missing: see `.*tokenizer`"),
    ("t.csv", None, {"tokenizer": "."}, r"tokenizer`: .* is no tokenizer that is here"),
    ("t.csv", None, {"tokenizer": "odd"}, r"tokenizer`: odd holds no tokenizer"),
    ("t.csv", None, {"tokenizer": "bare"}, r"pad` must be the token id .*: bare has none"),
    (
        "t.csv",
        None,
        {"tokenizer": "dist", "text": ["question", "question"]},
        r"must be true",
    ),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), TEXTS)
def test_text_that_is_wrong(here, bert, name, content, options, message):
    Path("t.csv").write_text("question,verdict\na b,wrong\nc,right\n")
    if isinstance(content, list):
        frame = pd.DataFrame({"question": content, "verdict": ["wrong", "right"]})
        frame.to_parquet(name)
    elif content:
        Path(name).write_text(content)
    changed(bert, "dist", "DistilBertTokenizer")
    for place in ("bare", "odd"):
        Path(place).mkdir()
        shutil.copy(bert / "tokenizer.json", place)
    Path("odd/tokenizer.json").write_text("{}")
    told = {"file": "t.csv", "text": "question", "label": "verdict", "tokenizer": str(bert)}
    with pytest.raises(InputError, match=message) as refused:
        texts.from_file(**told | {"max_length": 9, "classes": ["wrong", "right"]} | options)
    assert "\n" not in str(refused.value)


WAVES = """
import numpy as np
from torch.utils.data import Dataset

class Waves(Dataset):
    def __init__(self, folder):
        self.waves = np.load(f"{folder}/waves.npy")

    def __len__(self):
        return len(self.waves)

    def __getitem__(self, number):
        return self.waves[number], np.int64(number % 3)
"""


def test_a_data_set_class_as_documented(here, random, monkeypatch):
    monkeypatch.syspath_prepend(here)
    Path("waves.py").write_text(WAVES)
    Path("recordings").mkdir()
    waves = random.normal(size=(9, 2, 5))
    np.save("recordings/waves.npy", waves)
    records = as_documented("A data set class")
    assert records.labels.tolist() == [0, 1, 2] * 3
    assert np.array_equal(every(records).numpy(), waves.astype(np.float32))


class Given:
    """A data set of what is given, each made anew."""

    def __init__(self, *items, length=None):
        self.items, self.length = items, len(items) if length is None else length

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        return self.items[number]() if callable(self.items[number]) else self.items[number]


GREY = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
IDS = {"input_ids": torch.tensor([3, 1]), "attention_mask": np.array([True, False])}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("one", "seen"),
    [
        (torch.tensor([0.5, 2], dtype=torch.float16), torch.tensor([0.5, 2])),
        (np.array([0.1, 2], ">f8"), torch.tensor([0.1, 2])),
        (torch.tensor([2.0], requires_grad=True), torch.tensor([2.0])),
        (np.array([3, 1], np.int16), torch.tensor([3, 1])),
        (GREY, to_tensor(GREY)),
        (GREY.convert("RGB"), to_tensor(GREY.convert("RGB"))),
        (IDS, {"input_ids": torch.tensor([3, 1]), "attention_mask": torch.tensor([1, 0])}),
    ],
)
def test_what_models_see_of_an_item(one, seen, keep):
    records = items.from_dataset(Given((one, "b"), [one, "a"]), keep, ["a", "b"])
    check_records(records, np.arange(2))
    assert records.labels.tolist() == [1, 0]
    given = records.inputs(torch.tensor([1, 0, 1]))
    given, seen = (x if isinstance(x, dict) else {"": x} for x in (given, seen))
    for name, part in seen.items():
        assert given[name].dtype == part.dtype
        assert torch.equal(given[name], torch.stack([part] * 3))


def test_the_fingerprint_of_items_is_of_inputs_and_labels():
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    found = [
        items.from_dataset(Given(*some), keep).fingerprint
        for keep in (True, False)
        for some in ([(x, 0), (y, 1)], [(y, 1), (x, 0)], [(x, 0), (y, 0)], [(x[:, None], 0)])
    ]
    assert found[:4] == found[4:]
    assert len(set(found)) == 4


X = torch.zeros(2)
ITEMS = [
    ([(X, 0), (X[:1], 0)], {}, r"item 1 of Given: must be float32 \(2,\).*, got .* \(1,\)"),
    ([(X, 0), (X.long(), 0)], {}, r"item 1 of Given: must be float32 .* got int64 \(2,\)"),
    ([(X, 0), ({"a": X}, 0)], {}, r"item 1 of Given: must be float32 .* got a float32 \(2,\)"),
    ([lambda: (torch.rand(2), 0)], {}, r"item 0 of Given: must be the same whenever"),
    ([(X, 0), lambda: (X, int(torch.randint(1 << 30, ())))], {}, r"item 1 of Given: must be"),
    ([(X, 0), X], {}, r"item 1 of Given: must be an input and its label, got Tensor of"),
    ([(X, 0), (X, 0, 1)], {}, r"item 1 of Given: must be an input and its label, got 3 values"),
    ([({"a": X, "labels": 0})], {}, r"item 0 of Given: must be an input and its label, got dict"),
    ([(X, 0), ("text", 0)], {}, r"item 1 of Given: input must be a tensor.* got str"),
    ([(X.byte(), 0)], {}, r"item 0 of Given: input is of uint8"),
    ([(X.cfloat(), 0)], {}, r"item 0 of Given: input must be .* of torch\.complex64"),
    ([(np.array(["a"]), 0)], {}, r"item 0 of Given: input must be a tensor.* got ndarray of <U1"),
    ([(GREY.convert("CMYK"), 0)], {}, r"item 0 of Given: image must be of mode L or RGB, got CMYK"),
    ([(X, 0), (X, 0.5)], {}, r"Given: label of record 1 must be a whole number .* got 0\.5"),
    ([(X, 0), (X, "b")], {"classes": ["a", 0]}, r"Given: label of record 1 must be one of .*a, 0"),
    ([(X, 0), lambda: 1 / 0], {}, r"item 1 of Given: cannot be had: ZeroDivisionError: division"),
    ([], {}, r"dataset`: Given has no items"),
    ([(X, 0)], {"keep": "disk"}, r"keep` must be true or false, got 'disk'"),
    ([(X, 0)], {"dataset": iter([])}, r"dataset` must have `__len__` and `__getitem__`.*iterator"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "options", "message"), ITEMS)
def test_items_that_are_wrong(given, options, message):
    with pytest.raises(InputError, match=message) as refused:
        items.from_dataset(**{"dataset": Given(*given)} | options)
    assert "\n" not in str(refused.value)
