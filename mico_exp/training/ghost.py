"""Clipped sums of gradients of which none is formed: ghost clipping with the signals kept.

One forward pass, and one backward pass from the logits to each layer's outputs. A layer's inputs
and the signals that come back to its outputs give every record's norm (Goodfellow 2015, arXiv
1510.01799; Li et al. 2021, arXiv 2110.05679, eq. 4), and with the signals scaled by the clipping
factors the sum over records, as in book-keeping (Bu et al. 2022, arXiv 2210.00038): no second
backward pass. What is small beside the layer's inputs and signals is formed all the same: then a
record's gradient is the cheaper of the two.

These are the parts of `models.backprop`, made for sums: the bias apart, and sums added in place.

Axes: P records, T positions, G groups, F inputs of a layer, O outputs, V rows of an embedding, D
numbers of all parameters of a module, flat.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm, pad, unfold

from mico_exp.models.backprop import LOOKUP as TABLE
from mico_exp.models.backprop import OWN, TRANSPOSED, Call, Lookup, Rule, flat
from mico_exp.models.devices import in_float32
from mico_exp.models.per_record import Rows


class Summed(Protocol):
    """A module's parameters at P records."""

    def squared_norms(self) -> Tensor:
        """‖gradient‖² (P,) of every record."""

    def along(self, direction: Tensor) -> Tensor:
        """Inner products (P,) of every record's gradient with a direction (D,)."""

    def add(self, factors: Tensor, sums: Sequence[Tensor]) -> None:
        """Add the gradients times factors (P,) to sums, one for each parameter."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer. inputs: (P, T, F). signals: (P, T, O). transposed: weights are (F, O)."""

    inputs: Tensor
    signals: Tensor
    bias: bool
    transposed: bool = False

    @cached_property
    def rows(self) -> Tensor | None:
        """Every record's gradient by the weights, (P, O, F), where that is the smaller thing."""
        positions, features, outputs = *self.inputs.shape[1:], self.signals.shape[2]
        is_small = outputs * features <= positions * (outputs + features)
        return self.signals.mT @ self.inputs if is_small and positions > 1 else None

    def squared_norms(self) -> Tensor:
        """See `Summed`."""
        if self.inputs.shape[1] == 1:
            return _squares(self.signals) * (_squares(self.inputs) + float(self.bias))
        if self.rows is not None:
            found = _squares(self.rows)
            return found + _squares(self.signals.sum(dim=1)) if self.bias else found
        pairs = self.inputs @ self.inputs.mT
        if self.bias:
            pairs += 1
        return (pairs * (self.signals @ self.signals.mT)).sum(dim=(1, 2)).clamp(min=0)

    def along(self, direction: Tensor) -> Tensor:
        """See `Summed`."""
        features, outputs = self.inputs.shape[2], self.signals.shape[2]
        weights, bias = direction.split(
            [features * outputs, direction.numel() - features * outputs]
        )
        weights = (
            weights.view(features, outputs)
            if self.transposed
            else weights.view(outputs, features).T
        )
        given = self.inputs @ weights
        return ((given + bias if self.bias else given) * self.signals).sum(dim=(1, 2))

    def add(self, factors: Tensor, sums: Sequence[Tensor]) -> None:
        """See `Summed`."""
        weights = sums[0].T if self.transposed else sums[0]
        if self.rows is not None:
            weights += torch.tensordot(factors, self.rows, dims=1)
            if self.bias:
                sums[1] += factors @ self.signals.sum(dim=1)
            return
        scaled = (self.signals * factors[:, None, None]).flatten(0, 1)
        weights.addmm_(scaled.T, self.inputs.flatten(0, 1))
        if self.bias:
            sums[1] += scaled.sum(dim=0)


class Window(NamedTuple):
    """What a convolution sees at a position, in two dimensions."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution of one or two dimensions as one of two. signals: (P, O, height, width).

    inputs: (P, channels, height, width), padded where it is not with zeros on both sides alike.
    """

    inputs: Tensor
    signals: Tensor
    bias: bool
    window: Window
    groups: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """G groups, and of each O outputs and F inputs."""
        features = self.inputs.shape[1] // self.groups * math.prod(self.window.kernel)
        return self.groups, self.signals.shape[1] // self.groups, features

    @cached_property
    def small(self) -> bool:
        """Whether the gradient of a record is smaller than what it is made of."""
        _, outputs, features = self.shape
        return outputs * features <= self.signals[0, 0].numel() * (outputs + features)

    def patches(self) -> Tensor:
        """What the weights are multiplied with: (P·G, F, T)."""
        kernel, stride, padding, dilation = self.window
        found = unfold(self.inputs, kernel, dilation, padding, stride)
        return found.view(-1, self.shape[2], found.shape[2])

    def pairs(self) -> Tensor:
        """Inner products (P·G, T, T) of what the weights are multiplied with.

        Of two patches they are sums, over the places of the kernel, of inner products of pixels,
        which overlapping patches share.
        """
        kernel, stride, padding, dilation = self.window
        down, across = padding
        inputs = pad(self.inputs, (across, across, down, down)) if down or across else self.inputs
        height, width = self.signals.shape[2:]
        pixels, positions = math.prod(inputs.shape[2:]), height * width
        if pixels**2 >= positions**2 * math.prod(kernel):
            patches = self.patches()
            return patches.mT @ patches
        flat = inputs.reshape(len(inputs) * self.groups, -1, pixels)
        products = (flat.mT @ flat).view(-1, *inputs.shape[2:], *inputs.shape[2:])
        found = products.new_zeros(len(flat), height, width, height, width)
        for y, x in itertools.product(*map(range, kernel)):
            rows = _strided(y * dilation[0], stride[0], height)
            columns = _strided(x * dilation[1], stride[1], width)
            found += products[:, rows, columns, rows, columns]
        return found.view(len(flat), positions, positions)

    @property
    def sent(self) -> Tensor:
        """Signals as (P·G, O, T)."""
        positions = self.signals[0, 0].numel()
        return self.signals.reshape(-1, self.shape[1], positions)

    @cached_property
    def rows(self) -> Tensor:
        """Every record's gradient by the weights, (P, G·O·F)."""
        return (self.sent @ self.patches().mT).view(len(self.signals), -1)

    def squared_norms(self) -> Tensor:
        """See `Summed`."""
        if self.small:
            found = _squares(self.rows)
        else:
            pairs = self.pairs().mul_(self.sent.mT @ self.sent)
            found = pairs.view(len(self.signals), -1).sum(dim=1).clamp(min=0)
        return found + _squares(self.signals.sum(dim=(2, 3))) if self.bias else found

    def along(self, direction: Tensor) -> Tensor:
        """See `Summed`."""
        groups, outputs, features = self.shape
        weights, bias = direction.split(
            [groups * outputs * features, direction.numel() - groups * outputs * features]
        )
        found = (self.sent @ self.patches().mT).view(len(self.signals), -1) @ weights
        return found + self.signals.sum(dim=(2, 3)) @ bias if self.bias else found

    def add(self, factors: Tensor, sums: Sequence[Tensor]) -> None:
        """See `Summed`."""
        if self.small:
            sums[0] += (factors @ self.rows).view_as(sums[0])
            if self.bias:
                sums[1] += factors @ self.signals.sum(dim=(2, 3))
            return
        scaled = self.signals * factors[:, None, None, None]
        weights = sums[0].view(*sums[0].shape[:2], *self.window.kernel)
        _, *others = self.window
        found = torch.ops.aten.convolution_backward(
            *(scaled, self.inputs, weights, None, *others),
            *(False, [0, 0], self.groups, [False, True, False]),
        )
        weights += found[1]
        if self.bias:
            sums[1] += scaled.sum(dim=(0, 2, 3))


def _strided(start: int, step: int, count: int) -> slice:
    return slice(start, start + step * (count - 1) + 1, step)


@dataclass(frozen=True, eq=False)
class Embedded(Lookup):
    """An embedding whose sums are added in place."""

    def along(self, direction: Tensor) -> Tensor:
        """See `Summed`."""
        return super().along(direction.view_as(self.weights))

    def add(self, factors: Tensor, sums: Sequence[Tensor]) -> None:
        """See `Summed`."""
        scaled = self.signals * factors[:, None, None]
        sums[0].index_add_(0, self.ids.flatten(), scaled.flatten(0, 1))


@dataclass(frozen=True, eq=False)
class Formed(Rows):
    """Gradients that are written out, of parameters of these shapes."""

    shapes: Sequence[torch.Size] = ()

    def add(self, factors: Tensor, sums: Sequence[Tensor]) -> None:
        """See `Summed`."""
        found = (factors @ self.rows).split([one.numel() for one in self.shapes])
        for total, one in zip(sums, found, strict=True):
            total += one.view_as(total)


def formed(rows: Rows, shapes: Sequence[torch.Size]) -> Formed:
    """Take rows as a part whose sums go to parameters of these shapes."""
    return Formed(rows.weights, rows.find, shapes)


def _squares(rows: Tensor) -> Tensor:
    return rows.flatten(1).square().sum(dim=1)


def _exact(part: Callable[..., Any]) -> Callable[..., Any]:
    """Make a part of what came in bfloat16 in float32.

    Whatever a record's gradient is rounded to, its norm and what is added to the sum must be of one
    and the same vector: so what is clipped to C has a norm of C.
    """

    def made(module: nn.Module, names: Sequence[str], call: Call, signals: Tensor) -> Any:
        given = {
            slot: in_float32(one) if isinstance(one, Tensor) else one
            for slot, one in call.given.items()
        }
        return part(module, names, call._replace(given=given), in_float32(signals))

    return made


def _shapes(module: nn.Module, names: Sequence[str]) -> list[torch.Size]:
    return [module.get_parameter(name).shape for name in names]


def _dense(module: nn.Module, names: Sequence[str], call: Call, signals: Tensor) -> Dense:
    inputs, bias = _positions(call.first), "bias" in names
    return Dense(inputs, _positions(signals), bias, type(module).__name__ == TRANSPOSED)


def _positions(rows: Tensor) -> Tensor:
    """Rows (P, O) or (P, …, O) as (P, T, O)."""
    return rows.unsqueeze(1) if rows.ndim == 2 else rows.flatten(1, -2)


def _convolution(
    module: nn.Module, names: Sequence[str], call: Call, signals: Tensor
) -> Convolution:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    inputs, padding = call.first, module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.kernel_size)
    window = Window(module.kernel_size, module.stride, padding, module.dilation)
    if isinstance(module, nn.Conv1d):
        inputs, signals = inputs.unsqueeze(2), signals.unsqueeze(2)
        window = Window(*((none, *one) for none, one in zip((1, 1, 0, 1), window, strict=True)))
    return Convolution(inputs, signals, "bias" in names, window, module.groups)


def _lookup(module: nn.Module, names: Sequence[str], call: Call, signals: Tensor) -> Embedded:
    found = TABLE.part(module, names, call, signals)
    assert isinstance(found, Lookup)
    return Embedded(found.weights, found.ids, found.signals)


def _scale(module: nn.Module, names: Sequence[str], call: Call, signals: Tensor) -> Formed:
    """A norm's factors and shifts, whose gradients are sums over what they are shared by."""
    inputs = call.first
    if isinstance(module, nn.GroupNorm):
        given = group_norm(inputs, module.num_groups, eps=module.eps)
        given, axis = given.reshape(*given.shape[:2], -1), 2
    else:
        assert isinstance(module, nn.LayerNorm)
        given = layer_norm(inputs, module.normalized_shape, eps=module.eps)
        given, axis = given.reshape(len(inputs), -1, module.weight.numel()), 1
    sent = signals.reshape(given.shape)

    def find() -> Tensor:
        by_name = {"weight": (given * sent).sum(dim=axis), "bias": sent.sum(dim=axis)}
        return torch.cat([by_name[name] for name in names], dim=1)

    return Formed(given.new_empty(0), find, _shapes(module, names))


def _own(module: nn.Module, names: Sequence[str], call: Call, signals: Tensor) -> Formed:
    found = OWN.part(module, names, call, signals)
    assert isinstance(found, Rows)
    return formed(found, _shapes(module, names))


DENSE, CONVOLUTION, EMBEDDED, SCALE, RERUN = (
    Rule(flat, _exact(part)) for part in (_dense, _convolution, _lookup, _scale, _own)
)


def rule_of(module: nn.Module, names: Sequence[str]) -> Rule:
    """The rule that a module's class suggests for these of its parameters."""
    if {*names} - {"weight", "bias"} or "weight" not in names:
        return RERUN
    if isinstance(module, nn.Linear) or type(module).__name__ == TRANSPOSED:
        return DENSE
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return CONVOLUTION
    if isinstance(module, nn.Embedding):
        return EMBEDDED
    return SCALE if isinstance(module, nn.LayerNorm | nn.GroupNorm) else RERUN
