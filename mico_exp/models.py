"""The model architectures, loading one from disk, and running many as one.

Axes: M models, P points, F features, C classes.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mico_exp.errors import InputError

State = Mapping[str, Tensor]
DP_PREFIX = "_module."  # Opacus wraps the model, and its state dict keeps the wrapper's name


class MLP(nn.Module):
    """Fully connected network with tanh between its layers; `widths` from input to classes.

    ``MLP([600, 128, 100])`` is the competition's Purchase-100 model.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (P, C) of inputs (P, F)."""
        logits: Tensor = self.mlp(inputs)
        return logits

    def stack(self, states: Sequence[State]) -> "StackedMLP":
        """Many models of this architecture as one, from their state dicts."""
        names = [name for name, _ in self.named_parameters()]
        return StackedMLP([torch.stack([state[name] for state in states]) for name in names])


class Stacked(Protocol):
    """M models of one architecture that are called as one."""

    def __call__(self, inputs: Tensor, *, own: bool = False) -> Tensor:
        """Logits (M, P, C); inputs (P, …) for all models, or with `own` (M, P, …), each its own."""


class StackedMLP:
    """M multilayer perceptrons evaluated together.

    parameters: weight (M, out, in) and bias (M, out) of every layer in turn.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)

    @classmethod
    def of_layers(cls, layers: Sequence[tuple[Tensor, Tensor]]) -> "StackedMLP":
        """Stack from pairs of weight and bias, as in `layers`."""
        return cls([tensor for layer in layers for tensor in layer])

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs of weight (M, out, in) and bias (M, out)."""
        return list(zip(self.parameters[::2], self.parameters[1::2], strict=True))

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Input (M, P, width) of every layer in turn, then the logits; inputs (M, P, F)."""
        signals = [inputs]
        for weight, bias in self.layers:
            last = signals[-1] if len(signals) == 1 else signals[-1].tanh_()
            signals.append(torch.baddbmm(bias.unsqueeze(1), last, weight.transpose(1, 2)))
        return signals

    def __call__(self, inputs: Tensor, *, own: bool = False) -> Tensor:
        """Logits (M, P, C) of inputs (P, F) for all models, or with `own` (M, P, F)."""
        if own:
            return self.activations(inputs)[-1]
        # All models see the same points: one large product, twice as fast as a batched one.
        (weight, bias), *others = self.layers
        models, width, features = weight.shape
        signal = inputs @ weight.reshape(models * width, features).T + bias.reshape(-1)
        signal = signal.view(len(inputs), models, width).transpose(0, 1)
        return StackedMLP.of_layers(others).activations(signal.tanh())[-1] if others else signal

    def states(self) -> list[dict[str, Tensor]]:
        """State dicts of the M models, for `MLP.load_state_dict`."""
        names = [
            f"mlp.{2 * layer}.{part}"
            for layer in range(len(self.layers))
            for part in ("weight", "bias")
        ]
        return [
            {name: stacked[i].clone() for name, stacked in zip(names, self.parameters, strict=True)}
            for i in range(len(self.parameters[0]))
        ]


def load_state(path: Path, like: nn.Module) -> dict[str, Tensor]:
    """Read a state dict without unpickling code, and check that it fits the architecture.

    Keys lose the prefix that DP training adds.

    Raises:
        InputError: the file cannot be read as tensors, or the first key that is missing,
            unexpected or of another shape.
    """
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and OS errors alike mean: this file is no model
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: cannot be read as a state dict: {reason}") from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise InputError(f"{path}: expected a state dict of tensors, got {type(loaded).__name__}.")
    state = {str(name).removeprefix(DP_PREFIX): tensor for name, tensor in loaded.items()}
    _check_fit(path, state, like.state_dict())
    return state


def _check_fit(path: Path, state: State, expected: State) -> None:
    for name, tensor in expected.items():
        if name not in state:
            raise InputError(f"{path}: key `{name}` of shape {tuple(tensor.shape)} is missing.")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{path}: key `{name}` must have shape {tuple(tensor.shape)}, "
                f"got {tuple(state[name].shape)}."
            )
    if unexpected := [name for name in state if name not in expected]:
        name = unexpected[0]
        raise InputError(f"{path}: key `{name}` of shape {tuple(state[name].shape)} is unexpected.")


class OneByOne:
    """M models of any architecture, run one after another through the same module."""

    def __init__(self, model: nn.Module, states: Sequence[State]) -> None:
        self.model = model.eval()
        self.states = states

    def __call__(self, inputs: Tensor, *, own: bool = False) -> Tensor:
        """Logits (M, P, C) of inputs (P, …) for all models, or with `own` (M, P, …)."""
        return torch.stack(
            [
                functional_call(self.model, dict(state), (inputs[i] if own else inputs,))
                for i, state in enumerate(self.states)
            ]
        )


def stack(model: nn.Module, states: Sequence[State]) -> Stacked:
    """Many models as one: an architecture's own `stack` where it knows a faster way."""
    faster = getattr(model, "stack", None)
    stacked: Stacked = faster(states) if faster else OneByOne(model, states)
    return stacked
