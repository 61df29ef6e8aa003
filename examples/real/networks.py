"""The networks of the examples on real data."""

from torch import nn


class CNN(nn.Sequential):
    """For grey images of 28 × 28."""

    def __init__(self, width=32, classes=10):
        super().__init__(
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1)),
            *(nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(49 * 2 * width, 128), nn.ReLU(), nn.Linear(128, classes)),
        )


class Perceptron(nn.Sequential):
    """For rows of numbers."""

    def __init__(self, features, classes, width=256):
        super().__init__(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, classes))
