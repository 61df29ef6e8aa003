"""Gradients of one point at a time by automatic differentiation, for what no rule fits.

Two ways give the same: all points at once by `torch.func`, which not every network can be run
under, or one after another, which is slow and is the definition.

Axes: P points, D numbers of all parameters that are asked about, flat.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

Parameters = Mapping[str, Tensor]
Ask = Callable[..., Tensor]  # of parameters, and of tensors (P, …) in turn, to outputs (P, …)
Way = Callable[[Ask, Parameters, Sequence[Tensor], Tensor], Tensor]  # … and signals, to (P, D)


def at_once(ask: Ask, parameters: Parameters, inputs: Sequence[Tensor], signals: Tensor) -> Tensor:
    """Gradients (P, D) of ⟨signal, output⟩ at all points, by `torch.func`."""

    def one(signal: Tensor, *point: Tensor) -> dict[str, Tensor]:
        def value(some: Parameters) -> Tensor:
            return (ask(some, *(part.unsqueeze(0) for part in point))[0] * signal).sum()

        found: dict[str, Tensor] = grad(value)(dict(parameters))
        return found

    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):  # others know no batches of it
        warnings.filterwarnings("ignore", message="There is a performance drop")
        found = vmap(one)(signals, *inputs)
    return torch.cat([found[name].flatten(1) for name in parameters], dim=1)


def in_turn(ask: Ask, parameters: Parameters, inputs: Sequence[Tensor], signals: Tensor) -> Tensor:
    """Gradients (P, D) of ⟨signal, output⟩, one point after another by autograd.

    A parameter that an output does not hang on has the gradient 0.
    """
    leaves = {name: one.detach().requires_grad_() for name, one in parameters.items()}
    rows = []
    for i in range(len(signals)):
        with torch.enable_grad():
            output = ask(leaves, *(part[i : i + 1] for part in inputs))
        found = _gradients(output, list(leaves.values()), signals[i : i + 1])
        rows.append(torch.cat([one.flatten() for one in found]))
    return torch.stack(rows)


def _gradients(output: Tensor, leaves: Sequence[Tensor], signal: Tensor) -> Sequence[Tensor]:
    if not output.requires_grad:
        return [torch.zeros_like(one) for one in leaves]
    return torch.autograd.grad(output, leaves, signal, materialize_grads=True)


@dataclass(frozen=True, eq=False)
class Rows:
    """Parameters of which every point's gradient is written out, when it is asked for.

    weights: (D,). find: gives the gradients (P, D).
    """

    weights: Tensor
    find: Callable[[], Tensor]

    @cached_property
    def rows(self) -> Tensor:
        """Gradients (P, D)."""
        return self.find()

    def squared_norms(self) -> Tensor:
        """‖gradient‖² (P,) of every point."""
        return self.rows.square().sum(dim=1)

    def along(self, direction: Tensor) -> Tensor:
        """Inner products (P,) of every point's gradient with a direction (D,)."""
        return self.rows @ direction

    def total(self, factors: Tensor | None = None) -> Tensor:
        """Sum (D,) over the points of their gradients, times factors (P,) if there are any."""
        return self.rows.sum(dim=0) if factors is None else factors @ self.rows

    def at(self, points: Tensor | slice, name: Hashable = None) -> "Rows":  # noqa: ARG002
        """The same at some of the points: a mask (P,), indices, or a slice."""
        return Rows(self.weights, lambda: self.rows[points])
