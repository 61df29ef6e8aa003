"""Small challenges in the competition's formats, with its own architectures, trained for real.

At most a few hundred records and a handful of models each: CIFAR-10 in the official batches, a
Purchase CSV, and SST-2 sentences with a tokenizer and a two-layer RoBERTa made on the spot.
"""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision.datasets import CIFAR10

from mico_exp.challenge import protocol
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import write_solution
from mico_exp.models.architectures import bare

SIZES = {
    "cifar10": Sizes(records=60, training=30, challenge=3),  # its network takes longest
    "purchase100": Sizes(records=300, training=150, challenge=6),
    "sst2": Sizes(records=300, training=150, challenge=6),
}
COUNTS = {"train": 5, "dev": 2, "final": 2}
OPTIONS = Path(__file__).parent / "conf"
WORDS = ("a", "the", "film", "plot", "actor", "scene", "good", "bad", "dull", "slow", "great")


class TinyCIFAR10(CIFAR10):
    """torchvision's loader with the check sums of whatever lies there."""

    def __init__(self, root, **options):
        self.train_list = [[name, _md5(root, name)] for name, _ in CIFAR10.train_list]
        self.test_list = [[name, _md5(root, name)] for name, _ in CIFAR10.test_list]
        self.meta = {**CIFAR10.meta, "md5": _md5(root, "batches.meta")}
        super().__init__(root, **options)


def _md5(root, name):
    path = Path(root) / CIFAR10.base_folder / name
    return hashlib.md5(path.read_bytes()).hexdigest() if path.exists() else None


def write_cifar10(folder, random, records=SIZES["cifar10"].records):
    place = folder / CIFAR10.base_folder
    place.mkdir(parents=True)
    files = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
    each = records // len(files)
    for name in files:
        labels = random.integers(10, size=each)
        pixels = random.integers(256, size=(each, 3, 32, 32), dtype=np.uint8) // 2
        for image, label in zip(pixels, labels, strict=True):
            image[:, label * 3 : label * 3 + 3] += 100
        content = {"data": pixels.reshape(each, -1), "labels": labels.tolist()}
        (place / name).write_bytes(pickle.dumps(content))
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    (place / "batches.meta").write_bytes(pickle.dumps(meta))


def write_purchase100(folder, random, records=SIZES["purchase100"].records):
    folder.mkdir(parents=True)
    centres = random.random((100, 600)) < 0.2
    labels = random.integers(1, 101, size=records)
    bits = centres[labels - 1] ^ (random.random((records, 600)) < 0.1)
    lines = (
        ",".join([str(y), *map(str, x.astype(int))]) for y, x in zip(labels, bits, strict=True)
    )
    (folder / "dataset_purchase").write_text("\n".join(lines) + "\n")
    return labels, bits


def write_sst2(folder, random, suffix=".tsv"):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    folder.mkdir(parents=True)
    for part, size in (("train", 260), ("validation", 40)):
        sentences = [
            " ".join(random.choice(WORDS, size=random.integers(1, 12))) for _ in range(size)
        ]
        labels = [int("good" in s or "great" in s) for s in sentences]
        table = pd.DataFrame({"sentence": sentences, "label": labels})
        if suffix == ".tsv":
            table.to_csv(folder / f"{part}.tsv", sep="\t", index=False)
        else:
            table["idx"] = range(size)
            table.to_parquet(folder / f"{part}.parquet")
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator([" ".join(WORDS)], vocab_size=400, special_tokens=special)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    trained.save_model(str(tokenizer))
    RobertaTokenizerFast.from_pretrained(tokenizer).save_pretrained(tokenizer)


ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-05,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "num_labels": 2,
}


def fit(model, records, indices, steps, batch, seed):
    """Train one model on its records; enough to tell members from others."""
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    indices = torch.from_numpy(indices)
    model.train()
    for _ in range(steps):
        some = indices[torch.randint(len(indices), (batch,))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(records.inputs(some)), records.labels[some]).backward()
        optimizer.step()
    return {name: t.detach().clone() for name, t in bare(model.eval()).state_dict().items()}


def write_models(root, name, records, model, plan, seed, save=None):
    """Write a scenario's folder in the competition's tree, with its truth apart.

    plan: steps, and records in each.
    """
    random = np.random.default_rng(seed)
    dataset, scenario = name.split("_")
    place = "ddp" if scenario == "ddp" else dataset
    number = 0
    for phase, count in COUNTS.items():
        for _ in range(count):
            seeds = [int(s) for s in random.integers(2**63 - 1, size=3)]
            split = protocol.split(SIZES[dataset], *seeds)
            members = np.concatenate([split.member, split.training])
            state = fit(model, records, members, *plan, seed=number)
            within = Path(place) / name / phase / f"model_{number}"
            folder = root / within
            folder.mkdir(parents=True)
            prefix = "" if scenario == "inf" else "_module."
            (save or save_state)(folder, {prefix + key: value for key, value in state.items()})
            known = ["seed_challenge", "seed_training", "seed_membership"]
            shown = 3 if phase == "train" else 2 if scenario == "ddp" else 1
            for seed_name, value in list(zip(known, seeds, strict=True))[:shown]:
                (folder / seed_name).write_text(f"{value}\n")
            truth = folder if phase == "train" else root / "truth" / within
            truth.mkdir(parents=True, exist_ok=True)
            (truth / "solution.csv").write_text(write_solution(split.solution))
            number += 1


def save_state(folder, state):
    torch.save(state, folder / "model.pt")


def save_bin(folder, state):
    (folder / "config.json").write_text(json.dumps(ROBERTA))
    old = {**state, "roberta.embeddings.position_ids": torch.arange(80)[None]}
    torch.save(old, folder / "pytorch_model.bin")


def save_safetensors(folder, state):
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(ROBERTA))
    save_file(state, folder / "model.safetensors")
