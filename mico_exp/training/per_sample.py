"""Sums over a batch of each record's own gradient, clipped: what DP-SGD adds its noise to.

Three ways give the same, and the network alone decides which is taken, not the clock, so that a
model's bits are the same whoever trains it:

- `Ghost` forms no gradient (`ghost`). Where a network's modules can be seen by themselves, which
  those of transformers, torchvision and PyTorch mostly can, it is the fastest.
- `AtOnce` writes all gradients of a batch out, by `torch.func`: where parameters are used outside
  of the module that holds them, and a network draws numbers (dropout), which cannot be drawn again.
- `InTurn` takes one record after another by autograd, which is slow and is the definition.

A record's gradient has a meaning only where its loss hangs on no other record. So before the first
step batch norm is refused, and gradients that do not add up to autograd's of the whole batch.

Axes: P records, C classes.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from mico_exp.challenge.records import Inputs
from mico_exp.common.errors import InputError, first_line
from mico_exp.models.architectures import logits_of
from mico_exp.models.backprop import Plan, differentiable, tensors_of, trace, watched
from mico_exp.models.batching import out_of_memory
from mico_exp.models.devices import FLOAT32, TF32, allow_tf32, autocast, in_float32
from mico_exp.models.planning import CLOSE, ROUNDING, plan_of
from mico_exp.training.ghost import RERUN, Summed, formed, rule_of

log = logging.getLogger(__name__)
DROPOUT_P = 4  # its place among the arguments of PyTorch's attention
SMALL = 1e-6  # added to a norm, as Opacus does: no division by 0
Parameters = Mapping[str, Tensor]


class Way(Protocol):
    """Finds clipped sums for the parameters of a network that train.

    bytes_each: that a record takes beside what the layers give out.
    """

    @property
    def bytes_each(self) -> int:  # noqa: D102
        ...

    def __call__(
        self, inputs: Inputs, labels: Tensor, clip_norm: float, sums: Sequence[Tensor]
    ) -> Tensor:
        """Add the gradients of P records, each cut to this Euclidean norm over all parameters.

        Returns:
            losses (P,).
        """


class InTurn:
    """One record after another."""

    bytes_each = 0

    def __init__(self, network: nn.Module, parameters: Parameters) -> None:
        self.network, self.parameters = network, list(parameters.values())

    def __call__(
        self, inputs: Inputs, labels: Tensor, clip_norm: float, sums: Sequence[Tensor]
    ) -> Tensor:
        """See `Way`."""
        losses = []
        for i in range(len(labels)):
            loss = loss_of(self.network, _rows(inputs, slice(i, i + 1)), labels[i : i + 1])
            found = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            allow_tf32(False)
            factor = _factors(torch.stack([one.square().sum() for one in found]).sum(), clip_norm)
            for total, one in zip(sums, found, strict=True):
                total += one * factor
            losses.append(loss.detach())
        return torch.stack(losses)


class AtOnce:
    """All gradients of a batch written out by `torch.func`; each record draws its own numbers."""

    def __init__(self, network: nn.Module, parameters: Parameters) -> None:
        self.network, self.parameters = network, parameters

    def __call__(
        self, inputs: Inputs, labels: Tensor, clip_norm: float, sums: Sequence[Tensor]
    ) -> Tensor:
        """See `Way`."""
        parts = tensors_of(inputs)

        def loss(some: Parameters, label: Tensor, *record: Tensor) -> Tensor:
            one = {name: part.unsqueeze(0) for name, part in zip(parts, record, strict=True)}
            logits = logits_of(functional_call(self.network, dict(some), (one.get("", one),)))
            return cross_entropy(logits, label.unsqueeze(0))

        every = {name: one.detach() for name, one in self.parameters.items()}
        axes = None, 0, *(0 for _ in parts)
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), differentiable(self.network):
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found, losses = vmap(grad_and_value(loss), axes, randomness="different")(
                every, labels, *parts.values()
            )
        allow_tf32(False)
        squares = [one.flatten(1).square().sum(dim=1) for one in found.values()]
        factors = _factors(torch.stack(squares).sum(dim=0), clip_norm)
        for total, name in zip(sums, self.parameters, strict=True):
            total += torch.tensordot(factors, found[name], dims=1)
        return losses

    @property
    def bytes_each(self) -> int:
        """See `Way`."""
        return sum(one.nbytes for one in self.parameters.values())


class Ghost:
    """Norms and sums from the inputs of layers and the signals to their outputs."""

    def __init__(self, network: nn.Module, parameters: Parameters, plan: Plan) -> None:
        self.network, self.parameters, self.plan = network, parameters, plan
        places = {name: i for i, name in enumerate(parameters)}
        self.of_parts = [
            [places[f"{place}.{name}"] for name in unit.names] for place, unit in plan.units.items()
        ]
        if plan.rest:
            self.of_parts.append([places[name] for name in plan.rest])

    def __call__(
        self, inputs: Inputs, labels: Tensor, clip_norm: float, sums: Sequence[Tensor]
    ) -> Tensor:
        """See `Way`."""
        with frozen(self.parameters.values()):
            traced = trace(self.network, inputs, self.plan)
            logits = traced.logits
            signals = logits.softmax(dim=1)
            signals.scatter_add_(1, labels[:, None], -torch.ones_like(signals[:, :1]))
            parts = self._parts(traced.back(signals))
            squares = []
            for part in parts:
                allow_tf32(False)  # anew, for what is left of a network runs it again
                squares.append(part.squared_norms())
            allow_tf32(False)
            factors = _factors(torch.stack(squares).sum(dim=0), clip_norm)
            for part, places in zip(parts, self.of_parts, strict=True):
                part.add(factors, [sums[i] for i in places])
        return cross_entropy(logits, labels, reduction="none")

    def _parts(self, found: Sequence[Any]) -> list[Summed]:
        """The parts, of which the last is what is left, if anything is."""
        if not self.plan.rest:
            return list(found)
        *parts, rest = found
        return [*parts, formed(rest, [self.parameters[name].shape for name in self.plan.rest])]

    @property
    def bytes_each(self) -> int:
        """See `Way`."""
        written = [self.parameters[name] for name in self.plan.rest]
        for place, unit in self.plan.units.items():
            if unit.rule == RERUN:
                written += [self.parameters[f"{place}.{name}"] for name in unit.names]
        return sum(one.nbytes for one in written)


def _factors(squares: Tensor, clip_norm: float) -> Tensor:
    """What gradients of these squared norms are multiplied with."""
    return (clip_norm / (squares.sqrt() + SMALL)).clamp(max=1)


def loss_of(network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
    """Mean cross-entropy of a batch."""
    return cross_entropy(logits_of(network(inputs)), labels)


def _rows(inputs: Inputs, some: slice) -> Inputs:
    """Inputs of some of the records."""
    if isinstance(inputs, Tensor):
        return inputs[some]
    return {name: one[some] for name, one in inputs.items()}


@contextmanager
def frozen(parameters: Any) -> Iterator[None]:
    """Parameters that do not ask for gradients for a while."""
    every = list(parameters)
    for one in every:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in every:
            one.requires_grad_(True)


@contextmanager
def coarse(network: nn.Module, precision: str) -> Iterator[None]:
    """Let a network compute its products in a precision for a while; its logits are in float32.

    A GPU's products are in TF32 from its forward pass on, and so in the backward pass, until
    somebody ends that: whoever clips, before norms and sums.
    """
    if precision == FLOAT32:
        yield
        return
    forward, own = network.forward, vars(network).get("forward")
    device = next(network.parameters()).device

    @wraps(forward)
    def coarsely(*args: Any, **kwargs: Any) -> Tensor:
        allow_tf32(precision == TF32)
        with autocast(device, precision):
            logits = logits_of(forward(*args, **kwargs))
        return in_float32(logits)

    network.forward = coarsely
    try:
        yield
    finally:
        del network.forward
        if own is not None:
            network.forward = own
        allow_tf32(False)


# ---------------------------------------------------------------- before the first step

Make = Callable[[nn.Module, Parameters], Way]


def study(network: nn.Module, parameters: Parameters, inputs: Inputs, labels: Tensor) -> Make:
    """Choose how clipped sums are found, for all networks of an architecture.

    Args:
        network: in training mode, on its device.
        parameters: that train, by name.
        inputs: of a few records (P, …) of which the longest is the first.
        labels: (P,).

    Raises:
        InputError: what it trains on cannot be clipped record by record, with the layer's name.
    """
    _refuse_batch_norm(network)
    kept = {name: one.clone() for name, one in network.named_buffers()}
    make = _chosen(network, parameters, inputs, labels)
    log.info("%s: gradients record by record %s", type(network).__name__, _how(make))
    for name, one in network.named_buffers():
        if not torch.equal(one, kept[name]):
            raise _cannot(network, f"it keeps `{name}` of the records that it sees")
    _check_sums(make(network, parameters), network, parameters, inputs, labels)
    return make


def _how(make: Make) -> str:
    if make is InTurn:
        return "in turn, which is slow"
    return "by torch.func" if make is AtOnce else "of which none is formed"


def _cannot(network: nn.Module, why: str) -> InputError:
    kind = type(network).__name__
    return InputError(f"{kind} cannot be trained with differential privacy: {why}.")


def _refuse_batch_norm(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            kind = type(module).__name__
            raise _cannot(
                network,
                f"its layer `{name}`, a {kind}, mixes the records of a batch (GroupNorm and "
                "LayerNorm do not)",
            )


def _chosen(network: nn.Module, parameters: Parameters, inputs: Inputs, labels: Tensor) -> Make:
    with frozen(parameters.values()), quiet(network):
        plan = plan_of(network, inputs, parameters, rule_of)
    if not _draws(network, plan, inputs):
        return partial(Ghost, plan=plan)
    sums = [torch.zeros_like(one) for one in parameters.values()]
    try:
        AtOnce(network, parameters)(inputs, labels, 1.0, sums)
        with quiet(network):
            _check_sums(AtOnce(network, parameters), network, parameters, inputs, labels)
    except Exception as error:  # whatever `torch.func` makes of a network
        if out_of_memory(error):
            raise
        log.info("%s: not by torch.func: %s", type(network).__name__, first_line(error))
        return InTurn
    return AtOnce


@torch.no_grad()
def _draws(network: nn.Module, plan: Plan, inputs: Inputs) -> bool:
    """Tell whether what a plan runs a second time draws numbers, which would be others then."""
    again: list[bool] = []

    def rerun(place: str, given: Mapping[int | str, Any], output: Tensor) -> None:
        module = network.get_submodule(place)
        args = [one for slot, one in given.items() if isinstance(slot, int)]
        kwargs = {slot: one for slot, one in given.items() if isinstance(slot, str)}
        again.append(torch.equal(module.forward(*args, **kwargs), output))

    places = [place for place, unit in plan.units.items() if unit.rule == RERUN]
    with watched(network, places, rerun):
        first = logits_of(network(inputs))
    if plan.rest:
        again.append(torch.equal(first, logits_of(network(inputs))))
    return not all(again)


def _check_sums(
    way: Way, network: nn.Module, parameters: Parameters, inputs: Inputs, labels: Tensor
) -> None:
    """Compare the sums of a way, nothing clipped, with autograd's of the whole batch."""
    sums = [torch.zeros_like(one) for one in parameters.values()]
    with quiet(network):
        way(inputs, labels, math.inf, sums)
        loss = loss_of(network, inputs, labels) * len(labels)
        expected = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    whole = torch.stack([one.square().sum() for one in expected]).sum().sqrt()
    for name, one, other in zip(parameters, sums, expected, strict=True):
        if not (one - other).norm() <= CLOSE * other.norm() + ROUNDING * whole:
            layer = name.rpartition(".")[0] or name
            raise _cannot(
                network,
                f"gradients of `{layer}` record by record do not add up to the batch's, dropout "
                "off: does a layer mix the records?",
            )


@torch.no_grad()
def check_padding(network: nn.Module, padded: Inputs, alone: Sequence[Inputs]) -> None:
    """Want of records padded to the longest the logits that each has by itself, dropout off.

    A record's loss would hang on how long others of its batch are; sums of gradients do not show
    that, for one batch is padded alike in whatever way it is gone through.

    Args:
        network: in training mode, on its device.
        padded: inputs of a few records (P, …).
        alone: P inputs (1, …) of the same ones.

    Raises:
        InputError: they are others.
    """
    with quiet(network):
        found = logits_of(network(padded))
        expected = torch.cat([logits_of(network(one)) for one in alone])
    if not (found - expected).norm() <= CLOSE * expected.norm() + ROUNDING:
        raise _cannot(
            network,
            "what it gives for a record hangs on how far that is padded, and so on the other "
            "records of a batch, dropout off: does it take padding for words, or have another "
            "padding token than the records?",
        )


@contextmanager
def quiet(network: nn.Module) -> Iterator[None]:
    """Dropout off, whether it is a module or a function; all else stays as in training."""
    drawing = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.dropout._DropoutNd | nn.RNNBase) and module.training
    ]
    for module in drawing:
        module.training = False
    try:
        with _NoDropout():
            yield
    finally:
        for module in drawing:
            module.training = True


class _NoDropout(TorchFunctionMode):
    """Functions of dropout give back what they are given."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "scaled_dot_product_attention":
            if len(args) > DROPOUT_P:
                args = (*args[:DROPOUT_P], 0.0, *args[DROPOUT_P + 1 :])
            else:
                kwargs["dropout_p"] = 0.0
        elif name == "multi_head_attention_forward":
            kwargs["training"] = False
        elif "dropout" in name:
            return args[0] if args else kwargs["input"]
        return function(*args, **kwargs)
