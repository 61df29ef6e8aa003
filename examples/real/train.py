"""Trains networks on random halves of some real records, and keeps who was trained on what.

python train.py fashion|reviews|health
"""

import os
import sys
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

PLANS = {  # records, models, epochs, learning rate
    "fashion": (4000, 16, 8, 1e-3),
    "reviews": (2000, 8, 8, 5e-4),
    "health": (8000, 16, 20, 1e-3),
}
BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 128, "max_position_embeddings": 64, "vocab_size": 30522}


def network(name, option):
    if name == "reviews":
        return BertForSequenceClassification(BertConfig(**BERT))
    return hydra.utils.instantiate(option.model)


def logits_of(model, inputs):
    found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return getattr(found, "logits", found)


def main(name):
    records, models, epochs, rate = PLANS[name]
    models = int(os.environ.get("MODELS", models))
    epochs = int(os.environ.get("EPOCHS", epochs))
    option = OmegaConf.load(f"options/dataset/{name}.yaml")
    data = hydra.utils.instantiate(option.records, _convert_="all")
    every = np.random.default_rng(0).permutation(len(data.labels))[:records]
    keep = np.zeros((models, len(data.labels)), dtype=bool)
    keep[:, every] = np.random.default_rng(1).random((models, records)) < 0.5
    scenario = Path(f"data/{name}/{name}_inf")
    for number, members in enumerate(keep):
        torch.manual_seed(number)
        model = network(name, option).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        mine = torch.from_numpy(np.flatnonzero(members))
        for _ in range(epochs):
            for batch in mine[torch.randperm(len(mine))].split(64):
                optimizer.zero_grad()
                cross_entropy(logits_of(model, data.inputs(batch)), data.labels[batch]).backward()
                optimizer.step()
        folder = scenario / "train" / f"model_{number}"
        folder.mkdir(parents=True, exist_ok=True)
        if name == "reviews":
            model.save_pretrained(folder)
        else:
            torch.save(model.state_dict(), folder / "model.pt")
        print(f"{name}: {number + 1} of {models}", flush=True)
    np.save(scenario / "train" / "keep.npy", keep)
    np.save(scenario / "challenge.npy", np.sort(every))


if __name__ == "__main__":
    main(sys.argv[1])
