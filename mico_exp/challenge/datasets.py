"""Digits, the competition's three data sets, and records made like Purchase-100's.

Axes: N records, B indices asked for.
"""

import logging
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mico_exp.challenge import tokenizers
from mico_exp.challenge.records import Features, Records, fingerprint_arrays
from mico_exp.common import require
from mico_exp.common.arrays import Indices
from mico_exp.common.atomic import write_array
from mico_exp.common.errors import InputError, first_line
from mico_exp.common.fingerprints import FileFingerprints, definition, digest

log = logging.getLogger(__name__)


def digits() -> Records:
    """Load scikit-learn's handwritten digits: 1,797 images of 8 × 8, as 64 features in [0, 1]."""
    table = np.loadtxt(_digits_file(), delimiter=",")  # images, and the label in the last column
    features = torch.from_numpy((table[:, :-1] / 16).astype(np.float32))
    return Features(features, torch.from_numpy(table[:, -1].astype(np.int64)))


def _digits_file() -> Path:
    """File of the digits in scikit-learn, whose import would take every command two seconds."""
    place = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    path = Path(str(place))
    if not path.exists():
        raise InputError(f"{path} is missing: it should be a part of scikit-learn.")
    return path


CIFAR10_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR10_STD = (0.24703223, 0.24348513, 0.26158784)


class Images:
    """Colour images (N, H, W, 3) uint8, given as (B, 3, H, W) float32, normalised by channel."""

    def __init__(
        self, pixels: NDArray[np.uint8], labels: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of pixels, labels and normalisation."""
        scale = np.stack([self.mean.numpy(), self.std.numpy()])
        return fingerprint_arrays(self.pixels, self.labels.numpy(), scale)

    def inputs(self, indices: Tensor) -> Tensor:
        """Images (B, 3, H, W) of indices (B,)."""
        chosen = torch.from_numpy(self.pixels[indices.numpy()])
        return (chosen.movedim(-1, -3).float() / 255 - self.mean) / self.std

    def sizes(self, indices: Indices) -> Indices:
        """All the same size."""
        return np.ones_like(indices)


def cifar10(folder: str, source: Callable[..., Any] | None = None) -> Records:
    """Load CIFAR-10 by torchvision: 50,000 train images, then 10,000 test images.

    Args:
        folder: holds ``cifar-10-batches-py``. torchvision checks the files' published MD5 sums
            before it unpickles them.
        source: `torchvision.datasets.CIFAR10`, or a class like it.
    """
    root = require.folder("dataset.records.folder", folder)
    if source is None:
        from torchvision.datasets import CIFAR10

        source = CIFAR10
    try:
        parts = [source(root=str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise InputError(
            f"{root}/cifar-10-batches-py is missing or not the official one ({error}). "
            "Unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in that folder."
        ) from error
    pixels = np.concatenate([part.data for part in parts])
    labels = torch.tensor([label for part in parts for label in part.targets])
    return Images(pixels, labels, CIFAR10_MEAN, CIFAR10_STD)


PURCHASE_FEATURES = 600
PURCHASE_CLASSES = 100


class Bits:
    """Records of bits, eight to a byte: packed (N, 1 + F/8) uint8, the label in the first byte."""

    def __init__(self, packed: NDArray[np.uint8], num_features: int, fingerprint: str) -> None:
        self.packed, self.num_features = packed, num_features
        self.labels = torch.from_numpy(packed[:, 0].astype(np.int64))
        self.fingerprint = fingerprint

    def inputs(self, indices: Tensor) -> Tensor:
        """Bits (…, F) as float32 0 and 1 of indices (…)."""
        rows = self.packed[indices.numpy()][..., 1:]
        bits = np.unpackbits(rows, axis=-1, count=self.num_features)
        return torch.from_numpy(bits).float()

    def sizes(self, indices: Indices) -> Indices:
        """All the same size."""
        return np.ones_like(indices)


def purchase100(folder: str, store: str | None = None) -> Records:
    """Load Purchase-100: 197,324 records of 600 bits in 100 classes.

    The CSV ``dataset_purchase`` (240 MB; label 1 … 100, then 600 bits) is parsed once into an
    array of 15 MB, which is memory-mapped from then on.

    Args:
        folder: holds the CSV, and may be read-only.
        store: where the array is kept, in ``records/``; None for the folder of the CSV.
    """
    path = require.file(require.folder("dataset.records.folder", folder) / "dataset_purchase")
    if not path.exists():
        raise InputError(
            f"{path} is missing. Unpack dataset_purchase.tgz of "
            "https://www.comp.nus.edu.sg/~reza/files/dataset_purchase.tgz there."
        )
    place = path.parent
    if store is not None:
        place = require.folder("dataset.records.store", store) / "records"
    files = FileFingerprints(place / "fingerprints.json")
    key = digest(files.of(path), definition(parse_purchase))
    files.save()
    name = f"dataset_purchase-{key[:16]}"
    for compact in place.glob(f"{name}-*.npy"):
        if (packed := _mapped(compact)) is not None:
            return Bits(packed, PURCHASE_FEATURES, key)
    log.info("Parsing %s, once", path)
    parsed = parse_purchase(path)
    compact = place / f"{name}-{fingerprint_arrays(parsed)[:16]}.npy"
    write_array(compact, parsed)
    return Bits(np.load(compact, mmap_mode="r", allow_pickle=False), PURCHASE_FEATURES, key)


def purchase_like(
    records: int = 8000, rank: int = 20, spread: float = 1.5, noise: float = 0.8, seed: int = 0
) -> Records:
    """Generate records of 600 bits in 100 classes, which models learn much as Purchase-100.

    A record has latent tastes (`rank`,), the mean of its class plus noise; a bit is 1 with the
    chance sigmoid(popularity of the product + 2 · tastes · the product's loadings).

    Args:
        records: how many.
        rank: of the latent tastes.
        spread: standard deviation of the class means.
        noise: standard deviation of a record's tastes around them: more makes classes overlap.
        seed: of all that is drawn.

    Raises:
        InputError: a size is below 1, or a deviation or the seed below 0.
    """
    require.whole("records", records, 1)
    require.whole("rank", rank, 1)
    require.at_least("spread", spread, 0)
    require.at_least("noise", noise, 0)
    require.whole("seed", seed, 0)
    draw = np.random.default_rng(seed)
    popularity = draw.normal(-1.6, 1, PURCHASE_FEATURES)
    loadings = draw.normal(0, rank**-0.5, (rank, PURCHASE_FEATURES))
    means = draw.normal(0, spread, (PURCHASE_CLASSES, rank))
    labels = draw.integers(PURCHASE_CLASSES, size=records)
    tastes = means[labels] + draw.normal(0, noise, (records, rank))
    chance = 1 / (1 + np.exp(-(popularity + 2 * tastes @ loadings)))
    bits = draw.random(chance.shape) < chance
    packed = np.concatenate([labels[:, None].astype(np.uint8), np.packbits(bits, axis=1)], axis=1)
    return Bits(packed, PURCHASE_FEATURES, fingerprint_arrays(packed))


def _mapped(compact: Path) -> NDArray[np.uint8] | None:
    """Map the array, if its content is what its name says."""
    try:
        packed: NDArray[np.uint8] = np.load(compact, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        packed = np.empty((0, 0), np.uint8)
    if compact.stem.rpartition("-")[2] == fingerprint_arrays(packed)[:16]:
        return packed
    log.warning("%s is damaged and will be made anew", compact)
    return None


def parse_purchase(path: Path) -> NDArray[np.uint8]:
    """Parse the CSV into rows (N, 76) uint8: label 0 … 99, then 600 bits, eight to a byte.

    Raises:
        InputError: names the first line that is not a label 1 … 100 and 600 bits.
    """
    parts, lines_before = [], 0
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) != BOM_UTF8:
            file.seek(0)
        while lines := file.readlines(1 << 24):
            parts.append(_parse_lines(path, lines, lines_before))
            lines_before += len(lines)
    if not parts:
        raise InputError(f"{path}: is empty.")
    return np.concatenate(parts)


def _parse_lines(path: Path, lines: list[bytes], before: int) -> NDArray[np.uint8]:
    """Check and pack lines. A line's last 1,200 bytes are 600 times a comma and a bit."""
    width = 2 * PURCHASE_FEATURES
    stripped = [line.rstrip(b"\r\n") for line in lines]
    labels = np.zeros(len(lines), dtype=np.uint8)
    for i, line in enumerate(stripped):
        label = line[:-width]
        if not (label.isdigit() and len(label) < 4 and 1 <= int(label) <= PURCHASE_CLASSES):
            raise InputError(
                f"{path}: line {before + i + 1} must hold a label 1 … {PURCHASE_CLASSES} and "
                f"{PURCHASE_FEATURES} bits, got {len(line.split(b',')) - 1} values after "
                f"{line.split(b',')[0][:20]!r}."
            )
        labels[i] = int(label) - 1
    text = np.frombuffer(b"".join(line[-width:] for line in stripped), dtype=np.uint8)
    pairs = text.reshape(len(lines), PURCHASE_FEATURES, 2)
    bits = pairs[:, :, 1] - ord("0")
    wrong = (pairs[:, :, 0] != ord(",")) | (bits > 1)
    if wrong.any():
        line, column = np.argwhere(wrong)[0]
        raise InputError(f"{path}: line {before + line + 1}, bit {column + 1} must be 0 or 1.")
    return np.concatenate([labels[:, None], np.packbits(bits, axis=1)], axis=1)


class Sentences:
    """Tokenised sentences, given as a batch padded to its own longest one.

    tokens: all token ids one after another; sentence i is ``tokens[starts[i]:starts[i + 1]]``.
    """

    def __init__(
        self, tokens: NDArray[np.int32], starts: NDArray[np.int64], labels: Tensor, pad: int
    ) -> None:
        self.tokens, self.starts, self.labels, self.pad = tokens, starts, labels, pad

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of token ids and labels."""
        return fingerprint_arrays(self.tokens, self.starts, self.labels.numpy())

    def inputs(self, indices: Tensor) -> Mapping[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (B, longest) int64 of indices (B,)."""
        chosen = indices.numpy()
        lengths = self.sizes(chosen)
        positions = np.arange(lengths.max())
        mask = positions < lengths[:, None]
        where = np.where(mask, self.starts[chosen][:, None] + positions, 0)
        ids = np.where(mask, self.tokens[where], self.pad)
        return {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }

    def sizes(self, indices: Indices) -> Indices:
        """Tokens of each sentence (B,)."""
        return self.starts[indices + 1] - self.starts[indices]


SST2_HUB = {  # data set on the Hugging Face hub: its files, looked for in the local cache only
    "nyu-mll/glue": "sst2/{}-00000-of-00001.parquet",
    "stanfordnlp/sst2": "data/{}-00000-of-00001.parquet",
}


def sst2(folder: str, tokenizer: str = "roberta-base", max_length: int = 67) -> Records:
    """Load GLUE SST-2: 67,349 train sentences, then 872 validation sentences, tokenised once.

    Args:
        folder: holds ``train`` and ``validation`` as ``.parquet`` or ``.tsv`` with columns
            ``sentence`` and ``label``; without, the Hugging Face cache is looked in.
        tokenizer: name or folder of a tokenizer for `transformers.AutoTokenizer`; one that comes
            with code of its own is refused.
        max_length: longest sentence in tokens; the competition's is 67.
    """
    place = require.folder("dataset.records.folder", folder)
    tables = [_read_sentences(_sentences_file(place, part)) for part in SST2_PARTS]
    sentences = [sentence for table in tables for sentence in table[0]]
    labels = torch.tensor([label for table in tables for label in table[1]])
    tokenize = tokenizers.by_class(tokenizer)
    ids = tokenize(sentences, truncation=True, max_length=max_length)["input_ids"]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    tokens = np.concatenate([np.asarray(one, dtype=np.int32) for one in ids])
    return Sentences(tokens, starts.astype(np.int64), labels, tokenize.pad_token_id)


SST2_PARTS = {  # of the data set: its files' names, GLUE's own and the hub's among them
    "train": ("train.parquet", "train.tsv", "train-00000-of-00001.parquet"),
    "validation": (
        "validation.parquet",
        "validation.tsv",
        "dev.tsv",
        "validation-00000-of-00001.parquet",
    ),
}
WITHIN = (".", "data", "sst2", "SST-2")  # folders that archives and the hub put them in


def _sentences_file(folder: Path, part: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    for place in WITHIN:
        for name in SST2_PARTS[part]:
            if (path := folder / place / name).exists():
                return require.file(path)
    for repository, pattern in SST2_HUB.items():
        found = try_to_load_from_cache(repository, pattern.format(part), repo_type="dataset")
        if isinstance(found, str):
            return Path(found)
    raise InputError(
        f"{folder / part}.parquet or .tsv is missing, and the Hugging Face cache has no SST-2. "
        "Both are in the data set nyu-mll/glue on the hub."
    )


def _read_sentences(path: Path) -> tuple[list[str], list[int]]:
    """Sentences and labels of a table; names the first row whose sentence or label is none."""
    table = _read_table(path)
    columns = [str(name) for name in table.columns]
    for column in ("sentence", "label"):
        if columns.count(column) != 1:
            raise InputError(f"{path}: must have one column {column}, got {columns!r:.200}.")
    sentences, labels = table["sentence"].tolist(), table["label"].tolist()
    if not sentences:
        raise InputError(f"{path}: has no rows.")
    for row, (sentence, label) in enumerate(zip(sentences, labels, strict=True)):
        if not isinstance(sentence, str):
            raise InputError(f"{path}: sentence of row {row} must be text, got {sentence!r:.80}.")
        if str(label) not in ("0", "1"):
            raise InputError(f"{path}: label of row {row} must be 0 or 1, got {label!r:.80}.")
    return sentences, [int(label) for label in labels]


def _read_table(path: Path) -> Any:
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        texts = {"sentence": str, "label": str}  # or 1.0, true and +1 would be read as 1
        return pd.read_csv(
            path, sep="\t", quoting=3, keep_default_na=False, dtype=texts, encoding="utf-8-sig"
        )
    except Exception as error:  # whatever pandas and Arrow make of it
        raise InputError(f"{path}: cannot be read as a table: {first_line(error)}") from error
