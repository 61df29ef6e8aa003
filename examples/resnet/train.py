"""Trains networks on random halves of 600 digits, and keeps who was trained on what."""

import os
from pathlib import Path

import numpy as np
import torch
from network import ResNet
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

MODELS = int(os.environ.get("MODELS", "16"))
EPOCHS = int(os.environ.get("EPOCHS", "25"))
RECORDS = int(os.environ.get("RECORDS", "600"))

digits = load_digits()
images, labels = digits.images[:RECORDS].astype(np.float32), digits.target[:RECORDS]
Path("digits").mkdir(exist_ok=True)
np.save("digits/images.npy", images)
np.save("digits/labels.npy", labels)

keep = np.random.default_rng(0).random((MODELS, len(labels))) < 0.5
train = Path("data/resnet/resnet_inf/train")
for number, mask in enumerate(keep):
    torch.manual_seed(number)
    x, y = torch.from_numpy(images[mask])[:, None] / 16, torch.from_numpy(labels[mask])
    model = ResNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(y)).chunk(8):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    folder = train / f"model_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "model.pt")
np.save(train / "keep.npy", keep)
