"""What a backward pass sees: every layer's inputs, and the signals that come back to its outputs.

The gradient of anything at a point with respect to a linear layer's weights is the outer product
of the two, summed over the positions at which the layer is applied: one for a dense layer, every
patch of an image for a convolution. So its norm, its inner product with a direction in weight
space, and weighted sums over points all follow without one point's gradient ever being formed
(Goodfellow 2015, arXiv 1510.01799; for convolutions Rochette et al. 2019, arXiv 1912.06015).

Axes: P points, T positions, F inputs of a layer with a last one of 1 for its bias, O outputs, C
classes. A *direction* is one (O, F) tensor for each layer, the bias in the last column.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from mico_exp.common.errors import InputError
from mico_exp.models.architectures import logits_of, traced_part

Direction = list[Tensor]
Known = dict[Callable[..., Any], Any]  # what functions of a layer's inputs alone have given
Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer at P points.

    weights: (O, F). inputs: (P, T, F). signals: (P, T, O). known: what has been found of the
    inputs alone, which layers with the same inputs share: those of one forward pass, and the first
    ones of all models at the same records.
    """

    weights: Tensor
    inputs: Tensor
    signals: Tensor
    known: Known = field(default_factory=dict, repr=False)

    @property
    def is_dense(self) -> bool:
        """It is applied once to every point: T = 1."""
        return self.inputs.shape[1] == 1

    def of_inputs(self, what: Callable[[Tensor], Found]) -> Found:
        """What a function gives of a dense layer's inputs (P, F) alone, found only once."""
        if what not in self.known:
            self.known[what] = what(self.inputs[:, 0])
        found: Found = self.known[what]
        return found

    def squared_norms(self) -> Tensor:
        """‖gradient‖² (P,) of every point."""
        if self.is_dense:
            return self.of_inputs(_squares) * _squares(self.signals[:, 0])
        positions, (outputs, features) = self.inputs.shape[1], self.weights.shape
        if positions * (outputs + features) < outputs * features:
            pairs = (self.inputs @ self.inputs.mT) * (self.signals @ self.signals.mT)  # (P, T, T)
            return pairs.sum(dim=(1, 2))
        return (self.signals.mT @ self.inputs).square().sum(dim=(1, 2))

    def along(self, direction: Tensor) -> Tensor:
        """Inner products (P,) of every point's gradient with a direction (O, F)."""
        return ((self.inputs @ direction.T) * self.signals).sum(dim=(1, 2))

    def total(self, factors: Tensor | None = None) -> Tensor:
        """Sum (O, F) over the points of their gradients, times factors (P,) if there are any."""
        scaled = self.signals if factors is None else self.signals * factors[:, None, None]
        return scaled.flatten(0, 1).T @ self.inputs.flatten(0, 1)

    def at(self, points: Tensor | slice) -> "Layer":
        """The layer at some of the points: a mask (P,), indices, or a slice."""
        return Layer(self.weights, self.inputs[points], self.signals[points])


def _squares(rows: Tensor) -> Tensor:
    return rows.square().sum(dim=1)


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass at P points, from which signals can be sent back.

    logits: (P, C). back: signals (P, C) at the logits → the layers, from first to last.
    """

    logits: Tensor
    back: Callable[[Tensor], list[Layer]]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Linear and convolutional layers of what gradients are taken of."""
    return [
        module
        for module in traced_part(model).modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros")
    ]


def trace(model: nn.Module, inputs: object, known: Known | None = None) -> Trace:
    """Run a model, and keep what the backward pass needs from the first of its layers on.

    Its parameters must not ask for gradients: what lies before that layer then costs no more
    than a forward pass.

    Args:
        model: with its weights.
        inputs: of P points.
        known: what has been found of these inputs alone, for models of this architecture.

    Raises:
        InputError: the model has no such layer, or uses one twice.
    """
    seen: dict[nn.Module, _Seen] = {}

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if module in seen:
            raise InputError("A layer that is used twice has no gradient of this form.")
        if not output.requires_grad:
            output.requires_grad_()
        shared = known if given[0] is inputs and isinstance(module, nn.Linear) else None
        seen[module] = _Seen(given[0].detach(), output, {} if shared is None else shared)

    hooks = [module.register_forward_hook(note) for module in layers_of(model)]
    try:
        with torch.enable_grad():
            logits = logits_of(model(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise InputError(f"{type(model).__name__} has no linear layer that gradients could be of.")

    def back(signals: Tensor) -> list[Layer]:
        outputs = [one.output for one in seen.values()]
        found = torch.autograd.grad(logits, outputs, signals, retain_graph=True)
        return [
            _layer(module, one, signal)
            for (module, one), signal in zip(seen.items(), found, strict=True)
        ]

    return Trace(logits.detach(), back)


class _Seen(NamedTuple):
    """What a module was given and gave in a forward pass."""

    given: Tensor
    output: Tensor
    known: Known


def _layer(module: nn.Module, seen: _Seen, signals: Tensor) -> Layer:
    """Take a module's inputs and signals as those of a `Layer`."""
    weights: Tensor = module.weight.detach().flatten(1)  # type: ignore[operator]
    if module.bias is not None:
        weights = torch.cat([weights, module.bias.detach()[:, None]], dim=1)  # type: ignore[operator]
    if isinstance(module, nn.Conv2d):
        signals = signals.flatten(2).mT
    elif signals.ndim == 2:  # else (P, T, O) of a sequence
        signals = signals.unsqueeze(1)
    if _rows not in seen.known:
        seen.known[_rows] = _rows(module, seen.given)
    return Layer(weights, seen.known[_rows], signals, seen.known)


def _rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a module multiplies its weights with, at every position: (P, T, F)."""
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        shape = module.kernel_size, module.dilation, module.padding, module.stride
        inputs = unfold(inputs, *shape).mT
    elif inputs.ndim == 2:
        inputs = inputs.unsqueeze(1)
    if module.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], dim=2)
    return inputs


def squared_norms(layers: Sequence[Layer]) -> Tensor:
    """‖gradient‖² (P,) of every point over all layers."""
    return torch.stack([layer.squared_norms() for layer in layers]).sum(dim=0)


def along(layers: Sequence[Layer], direction: Direction) -> Tensor:
    """Inner products (P,) of every point's gradient with a direction over all layers."""
    found = [layer.along(part) for layer, part in zip(layers, direction, strict=True)]
    return torch.stack(found).sum(dim=0)


def total(layers: Sequence[Layer], factors: Tensor | None = None) -> Direction:
    """Sum over the points of their gradients, times factors (P,) if there are any."""
    return [layer.total(factors) for layer in layers]


def weights(layers: Sequence[Layer]) -> Direction:
    """The weights themselves, as a direction."""
    return [layer.weights for layer in layers]


def dot(one: Direction, other: Direction) -> Tensor:
    """Inner product of two directions."""
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def at(layers: Sequence[Layer], points: Tensor | slice) -> list[Layer]:
    """The layers at some of the points."""
    return [layer.at(points) for layer in layers]


def joined(parts: Sequence[Sequence[Layer]]) -> list[Layer]:
    """The same layers at the points of several batches, one after another."""
    if len(parts) == 1:
        return list(parts[0])
    return [
        Layer(
            same[0].weights,
            torch.cat([layer.inputs for layer in same]),
            torch.cat([layer.signals for layer in same]),
        )
        for same in zip(*parts, strict=True)
    ]
