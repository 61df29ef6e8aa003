"""Metrics and a network that fail, in a module that imports little: Ray's workers import it."""

import os
import signal

import torch
from torch import nn

from mico_exp.scores import metrics


def once_deadly(logits, labels, marker):
    """A metric whose first worker is killed, as by a machine that goes down."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass
    return metrics.loss(logits, labels)


def whose(piece):
    """The process that does a piece; a piece of 0 fails there."""
    if not piece:
        raise ZeroDivisionError(os.getpid())
    return os.getpid()


def broken(logits, labels):
    raise ZeroDivisionError("as a user's metric may")


class OnceDeadly(nn.Linear):
    """A network whose first worker is killed while it trains, as by a machine that goes down."""

    def __init__(self, marker):
        super().__init__(64, 10)
        self.marker = marker

    def forward(self, inputs):
        if self.training:
            once_deadly(inputs, torch.zeros(len(inputs), dtype=torch.int64), self.marker)
        return super().forward(inputs)
