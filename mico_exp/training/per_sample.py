"""Sums over a batch of each record's own gradient, clipped: what DP-SGD adds its noise to.

A record's gradient has a meaning only where its loss hangs on no other record. So a network is
looked at before its first step: batch norm is refused, and gradients one by one must add up to
autograd's of the whole batch.

Axes: P records, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mico_exp.challenge.records import Inputs
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import logits_of

SMALL = 1e-6  # added to a norm, as Opacus does: no division by 0


class Clipped(NamedTuple):
    """What a batch gives: losses (P,), and for each parameter the sum of clipped gradients."""

    losses: Tensor
    sums: list[Tensor]


class Way(Protocol):
    """Finds clipped sums for the parameters of a network that train."""

    def __call__(self, inputs: Inputs, labels: Tensor, clip_norm: float) -> Clipped:
        """Sum the gradients of P records, each cut to this Euclidean norm over all parameters."""


class InTurn:
    """One record after another by autograd, which is slow and is the definition."""

    def __init__(self, network: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self.network, self.parameters = network, list(parameters.values())

    def __call__(self, inputs: Inputs, labels: Tensor, clip_norm: float) -> Clipped:
        """See `Way`."""
        sums, losses = [torch.zeros_like(one) for one in self.parameters], []
        for i in range(len(labels)):
            loss = loss_of(self.network, rows(inputs, slice(i, i + 1)), labels[i : i + 1])
            found = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            norm = torch.stack([one.square().sum() for one in found]).sum().sqrt()
            factor = (clip_norm / (norm + SMALL)).clamp(max=1)
            for total, one in zip(sums, found, strict=True):
                total += one * factor
            losses.append(loss.detach())
        return Clipped(torch.stack(losses), sums)


def loss_of(network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
    """Mean cross-entropy of a batch."""
    return cross_entropy(logits_of(network(inputs)), labels)


def rows(inputs: Inputs, some: slice) -> Inputs:
    """Inputs of some of the records."""
    if isinstance(inputs, Tensor):
        return inputs[some]
    return {name: one[some] for name, one in inputs.items()}


def check(network: nn.Module) -> None:
    """Refuse what no gradient of a single record exists for.

    Raises:
        InputError: a layer mixes the records of a batch, or nothing trains.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"{type(network).__name__} cannot be trained with differential privacy: its layer "
                f"`{name}` is a {type(module).__name__}, which mixes the records of a batch. "
                "GroupNorm and LayerNorm do not."
            )


def way_for(network: nn.Module, parameters: Mapping[str, Tensor]) -> Way:
    """Choose how the clipped sums of a network are found."""
    check(network)
    return InTurn(network, parameters)


def added(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    """Sums of a batch's pieces together."""
    return [a + b for a, b in zip(one, other, strict=True)]
