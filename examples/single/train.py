"""Trains one network, as its owner would, and writes who was in its training set.

Images are Fashion-MNIST's, of Debian's package `dataset-fashion-mnist` (`apt-get download` it and
unpack it by `dpkg-deb -x`, or install it; `FASHION` names another folder of its files), or where it
is not, scikit-learn's digits.
"""

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from network import CNN
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

FASHION = Path(os.environ.get("FASHION", "/usr/share/datasets/fashion-mnist"))
EPOCHS = int(os.environ.get("EPOCHS", "12"))
RECORDS = int(os.environ.get("RECORDS", "4000"))
ASKED = int(os.environ.get("ASKED", "1000"))


def fashion(name, skip):
    parts = [
        gzip.decompress((FASHION / f"{part}-{name}").read_bytes()) for part in ("train", "t10k")
    ]
    return np.concatenate([np.frombuffer(part, np.uint8, offset=skip) for part in parts])


def load():
    """Grey images (N, 28, 28) of bytes, and their classes."""
    if not FASHION.exists():
        digits = load_digits()
        images = np.pad(digits.images, ((0, 0), (10, 10), (10, 10))) * 15
        return images.astype(np.uint8), digits.target
    images = fashion("images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return images, fashion("labels-idx1-ubyte.gz", 8)


random = np.random.default_rng(0)
images, labels = load()
some = random.permutation(len(labels))[:RECORDS]
images, labels = images[some], labels[some].astype(np.int64)
np.save("images.npy", images)
np.save("labels.npy", labels)

members = np.sort(random.permutation(RECORDS)[: RECORDS // 2])
torch.manual_seed(0)
model = CNN()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
x, y = torch.from_numpy(images[members])[:, None].float() / 255, torch.from_numpy(labels[members])
for _ in range(EPOCHS):
    for batch in torch.randperm(len(y)).split(32):
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()

scenario = Path("data/single/single_inf")
truth = Path("data/truth/single/single_inf/final/model_0")
for folder in (scenario / "final/model_0", truth):
    folder.mkdir(parents=True, exist_ok=True)
torch.save(model.state_dict(), scenario / "final/model_0/model.pt")
np.save(truth / "members.npy", members)
np.save(scenario / "challenge.npy", np.sort(random.permutation(RECORDS)[:ASKED]))
