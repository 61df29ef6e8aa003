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
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from mico_exp.common.errors import InputError
from mico_exp.models.architectures import logits_of, traced_part

Direction = list[Tensor]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer at P points.

    weights: (O, F). inputs: (P, T, F). signals: (P, T, O).
    """

    weights: Tensor
    inputs: Tensor
    signals: Tensor

    @property
    def is_dense(self) -> bool:
        """It is applied once to every point: T = 1."""
        return self.inputs.shape[1] == 1

    def squared_norms(self) -> Tensor:
        """‖gradient‖² (P,) of every point."""
        if self.is_dense:
            return self.inputs.square().sum(dim=(1, 2)) * self.signals.square().sum(dim=(1, 2))
        positions, (outputs, features) = self.inputs.shape[1], self.weights.shape
        if positions * (outputs + features) < outputs * features:
            pairs = (self.inputs @ self.inputs.mT) * (self.signals @ self.signals.mT)  # (P, T, T)
            return pairs.sum(dim=(1, 2))
        return (self.signals.mT @ self.inputs).square().sum(dim=(1, 2))

    def along(self, direction: Tensor) -> Tensor:
        """Inner products (P,) of every point's gradient with a direction (O, F)."""
        return ((self.inputs @ direction.T) * self.signals).sum(dim=(1, 2))

    def total(self, factors: Tensor) -> Tensor:
        """Sum (O, F) over the points of their gradients times factors (P,)."""
        scaled = self.signals * factors[:, None, None]
        return scaled.flatten(0, 1).T @ self.inputs.flatten(0, 1)

    def at(self, points: Tensor) -> "Layer":
        """The layer at some of the points: a mask (P,) or indices."""
        return Layer(self.weights, self.inputs[points], self.signals[points])


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


def trace(model: nn.Module, inputs: object) -> Trace:
    """Run a model, and keep what the backward pass needs from the first of its layers on.

    Its parameters must not ask for gradients: what lies before that layer then costs no more
    than a forward pass.

    Raises:
        InputError: the model has no such layer, or uses one twice.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if module in seen:
            raise InputError("A layer that is used twice has no gradient of this form.")
        if not output.requires_grad:
            output.requires_grad_()
        seen[module] = given[0].detach(), output

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
        outputs = [output for _, output in seen.values()]
        found = torch.autograd.grad(logits, outputs, signals, retain_graph=True)
        return [
            _layer(module, given, signal)
            for (module, (given, _)), signal in zip(seen.items(), found, strict=True)
        ]

    return Trace(logits.detach(), back)


def _layer(module: nn.Module, inputs: Tensor, signals: Tensor) -> Layer:
    """Take a module's inputs and signals as those of a `Layer`."""
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        shape = module.kernel_size, module.dilation, module.padding, module.stride
        inputs, signals = unfold(inputs, *shape).mT, signals.flatten(2).mT
    elif inputs.ndim == 2:  # else (P, T, F) of a sequence
        inputs, signals = inputs.unsqueeze(1), signals.unsqueeze(1)
    weights: Tensor = module.weight.detach().flatten(1)  # type: ignore[operator]
    if module.bias is not None:
        one = inputs.new_ones(*inputs.shape[:2], 1)
        inputs = torch.cat([inputs, one], dim=2)
        weights = torch.cat([weights, module.bias.detach()[:, None]], dim=1)  # type: ignore[operator]
    return Layer(weights, inputs, signals)


def squared_norms(layers: Sequence[Layer]) -> Tensor:
    """‖gradient‖² (P,) of every point over all layers."""
    return torch.stack([layer.squared_norms() for layer in layers]).sum(dim=0)


def along(layers: Sequence[Layer], direction: Direction) -> Tensor:
    """Inner products (P,) of every point's gradient with a direction over all layers."""
    found = [layer.along(part) for layer, part in zip(layers, direction, strict=True)]
    return torch.stack(found).sum(dim=0)


def total(layers: Sequence[Layer], factors: Tensor) -> Direction:
    """Sum over the points of their gradients times factors (P,)."""
    return [layer.total(factors) for layer in layers]


def weights(layers: Sequence[Layer]) -> Direction:
    """The weights themselves, as a direction."""
    return [layer.weights for layer in layers]


def dot(one: Direction, other: Direction) -> Tensor:
    """Inner product of two directions."""
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def at(layers: Sequence[Layer], points: Tensor) -> list[Layer]:
    """The layers at some of the points."""
    return [layer.at(points) for layer in layers]


def joined(parts: Sequence[Sequence[Layer]]) -> list[Layer]:
    """The same layers at the points of several batches, one after another."""
    return [
        Layer(
            same[0].weights,
            torch.cat([layer.inputs for layer in same]),
            torch.cat([layer.signals for layer in same]),
        )
        for same in zip(*parts, strict=True)
    ]
