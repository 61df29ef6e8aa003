"""A small convolutional network for grey images."""

from torch import nn


class CNN(nn.Sequential):
    def __init__(self, side=28, width=16, classes=10):
        super().__init__(
            *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(2 * width * (side // 4) ** 2, 64), nn.ReLU()),
            nn.Linear(64, classes),
        )
