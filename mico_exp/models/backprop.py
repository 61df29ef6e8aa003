"""What a backward pass sees: every layer's inputs, and the signals that come back to its outputs.

The gradient of anything at a point with respect to a linear layer's weights is the outer product
of the two, summed over the positions at which the layer is applied: one for a dense layer, every
patch of an image for a convolution. So its norm, its inner product with a direction in weight
space, and weighted sums over points all follow without one point's gradient ever being formed
(Goodfellow 2015, arXiv 1510.01799; for convolutions Rochette et al. 2019, arXiv 1912.06015). An
embedding is such a layer whose inputs are 0 but for a 1.

Other modules are run again at their own inputs, and what is left through the whole network, to
write each point's gradient out (`per_record`). Which parameter is found in which way is a `Plan`;
`planning` makes it, and has compared it with autograd.

Axes: P points, T positions, F inputs of a layer with a last one of 1 for its bias, O outputs, C
classes, V rows of an embedding. A *direction* is one tensor for each part of a network: (O, F) of
a `Layer`, (V, O) of a `Lookup`, flat of `Rows`.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.nn.functional import unfold

from mico_exp.common.errors import InputError
from mico_exp.models.architectures import logits_of
from mico_exp.models.per_record import Rows, Way, at_once

Direction = list[Tensor]
Known = dict[Hashable, Any]  # what functions of a layer's inputs alone have given, by function
Found = TypeVar("Found")
TRANSPOSED = "Conv1D"  # GPT-2's linear layer, whose weights are (F, O)


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
        return (self.inputs @ direction.T).mul_(self.signals).sum(dim=(1, 2))

    def total(self, factors: Tensor | None = None) -> Tensor:
        """Sum (O, F) over the points of their gradients, times factors (P,) if there are any."""
        scaled = self.signals if factors is None else self.signals * factors[:, None, None]
        return scaled.flatten(0, 1).T @ self.inputs.flatten(0, 1)

    def at(self, points: Tensor | slice, name: Hashable = None) -> "Layer":
        """The layer at some of the points: a mask (P,), indices, or a slice.

        What is found of their inputs alone is known wherever the same ones have a name.
        """
        known = {} if name is None else self.known.setdefault(name, {})
        if _rows not in known:
            known[_rows] = self.inputs[points]
        return Layer(self.weights, known[_rows], self.signals[points], known)


@dataclass(frozen=True, eq=False)
class Outer:
    """A direction (O, F) of a `Layer` as the sum of R outer products, which is not formed.

    signals: (R, O). inputs: (R, F).
    """

    signals: Tensor
    inputs: Tensor

    @classmethod
    def of(cls, layer: Layer) -> "Outer":
        """Sum over a layer's points of their gradients."""
        return cls(layer.signals.flatten(0, 1), layer.inputs.flatten(0, 1))

    @property
    def least(self) -> "Tensor | Outer":
        """Itself or the sum, whichever has fewer numbers: an inner product takes as many."""
        outputs, features = self.signals.shape[1], self.inputs.shape[1]
        is_less = self.inputs.shape[0] * (outputs + features) < outputs * features
        return self if is_less else self.formed()

    def formed(self) -> Tensor:
        """The sum (O, F)."""
        return self.signals.T @ self.inputs

    def along(self, layer: Layer) -> Tensor:
        """Inner products (P,) of every point's gradient with it: Σ (a·a′)(δ·δ′) over pairs."""
        other = Outer.of(layer)
        pairs = (other.inputs @ self.inputs.T).mul_(other.signals @ self.signals.T)
        return pairs.view(layer.inputs.shape[0], -1).sum(dim=1)


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).square()


@dataclass(frozen=True, eq=False)
class Lookup:
    """One embedding at P points.

    weights: (V, O). ids: (P, T). signals: (P, T, O), 0 where the id is the padding's.
    """

    weights: Tensor
    ids: Tensor
    signals: Tensor

    def squared_norms(self) -> Tensor:
        """‖gradient‖² (P,) of every point."""
        same = self.ids.unsqueeze(2) == self.ids.unsqueeze(1)
        pairs = (self.signals @ self.signals.mT) * same
        return pairs.sum(dim=(1, 2)).clamp(min=0)

    def along(self, direction: Tensor) -> Tensor:
        """Inner products (P,) of every point's gradient with a direction (V, O)."""
        return (direction[self.ids] * self.signals).sum(dim=(1, 2))

    def total(self, factors: Tensor | None = None) -> Tensor:
        """Sum (V, O) over the points of their gradients, times factors (P,) if there are any."""
        scaled = self.signals if factors is None else self.signals * factors[:, None, None]
        found = torch.zeros_like(self.weights)
        return found.index_add_(0, self.ids.flatten(), scaled.flatten(0, 1))

    def at(self, points: Tensor | slice, name: Hashable = None) -> "Lookup":  # noqa: ARG002
        """The embedding at some of the points: a mask (P,), indices, or a slice."""
        return Lookup(self.weights, self.ids[points], self.signals[points])


Part = Layer | Lookup | Rows
Sum = Sequence[Tensor | Outer]  # a direction that is formed where that is less


class Call(NamedTuple):
    """What a module was given at P points, and what has been found of it alone.

    given: by position or by name. mapped: what of it has a row (P, …) for each point.
    """

    given: Mapping[int | str, Any]
    mapped: Sequence[int | str]
    known: Known

    @property
    def first(self) -> Tensor:
        """The first tensor that has a row for each point."""
        found: Tensor = self.given[self.mapped[0]]
        return found


Arrange = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


class Rule(NamedTuple):
    """How a module's own parameters are seen as a part.

    arrange: tensors in the shapes of the parameters, by name, as a direction. part: of a module,
    the names of its parameters, its call and the signals (P, …) that came back to its output; a
    `Part`, or of rules made elsewhere what has its `squared_norms` and `along`.
    """

    arrange: Arrange
    part: Callable[[nn.Module, Sequence[str], Call, Tensor], Any]


class Unit(NamedTuple):
    """A module that is called once in a forward pass, and whose parameters are seen there.

    names: of the parameters, as the module has them; a module within it may hold them. mapped:
    what it is given that has a row for each point. wide: it gives one row for all points.
    """

    rule: Rule
    names: tuple[str, ...]
    mapped: tuple[int | str, ...]
    wide: bool


@dataclass(frozen=True)
class Plan:
    """How each parameter of a network is seen, for all networks of its architecture.

    units: by names of modules, in the order of their calls. rest: names of parameters that are
    seen through the whole network, in that way.
    """

    units: Mapping[str, Unit]
    rest: tuple[str, ...] = ()
    way: Way = at_once

    def bytes_of_rows(self, model: nn.Module) -> int:
        """Bytes that the gradients which are written out take for a point."""
        written = [model.get_parameter(name) for name in self.rest]
        for place, unit in self.units.items():
            if unit.rule == OWN:
                module = model.get_submodule(place)
                written += [module.get_parameter(name) for name in unit.names]
        return sum(one.nbytes for one in written)


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass at P points, from which signals can be sent back.

    logits: (P, C). back: signals (P, C) at the logits → the parts, from first to last.
    """

    logits: Tensor
    back: Callable[[Tensor], list[Part]]


def trace(model: nn.Module, inputs: Any, plan: Plan, known: Known | None = None) -> Trace:
    """Run a model, and keep what the backward pass needs from the first of its parts on.

    Its parameters must not ask for gradients: what lies before that part then costs no more
    than a forward pass.

    Args:
        model: with its weights.
        inputs: of P points.
        plan: for its architecture.
        known: what has been found of these inputs alone, for models of this architecture.
    """
    points = len(next(iter(tensors_of(inputs).values())))
    seen: dict[str, _Seen] = {}

    def note(place: str, given: Mapping[int | str, Any], output: Tensor) -> Tensor:
        unit, module = plan.units[place], model.get_submodule(place)
        if place in seen:
            raise _otherwise(model, place)
        if unit.wide:
            output = output.expand(points, *output.shape[1:])
        if not output.requires_grad:  # a copy, so that what comes next may write into it
            output = output.detach().requires_grad_().clone()
        call = _call(given, unit, points)
        if known is not None and given[unit.mapped[0]] is inputs and isinstance(module, nn.Linear):
            call = call._replace(known=known)
        seen[place] = _Seen(call, output.shape, get_gradient_edge(output))
        return output

    with watched(model, plan.units, note), torch.enable_grad(), differentiable(model):
        logits = logits_of(model(inputs))
    for place in plan.units.keys() - seen.keys():
        raise _otherwise(model, place)

    def back(signals: Tensor) -> list[Part]:
        edges = [seen[place].edge for place in plan.units]
        found = zip(plan.units, _sent(logits, edges, signals), strict=True)
        parts: list[Part] = []
        for place, signal in found:
            unit, one = plan.units[place], seen[place]
            signal = signals.new_zeros(one.shape) if signal is None else signal
            parts.append(unit.rule.part(model.get_submodule(place), unit.names, one.call, signal))
        return parts + ([through(model, inputs, plan, signals)] if plan.rest else [])

    return Trace(logits.detach(), back)


def _otherwise(model: nn.Module, place: str) -> InputError:
    return InputError(
        f"{type(model).__name__} must call `{place}` once whatever the records, for its gradients."
    )


class _Seen(NamedTuple):
    """A module's call, and the shape and place in the graph of what it gave before others wrote."""

    call: Call
    shape: torch.Size
    edge: GradientEdge


def _sent(
    logits: Tensor, edges: Sequence[GradientEdge], signals: Tensor
) -> Sequence[Tensor | None]:
    """Signals that come back to what modules gave; None where logits do not hang on it."""
    if not edges or not logits.requires_grad:
        return [None] * len(edges)
    return torch.autograd.grad(logits, edges, signals, retain_graph=True, allow_unused=True)


def _call(given: Mapping[int | str, Any], unit: Unit, points: int) -> Call:
    """A call, with a row for each point of whatever has one."""
    bare = {slot: one.detach() if isinstance(one, Tensor) else one for slot, one in given.items()}
    for slot in unit.mapped if unit.wide else ():
        bare[slot] = bare[slot].expand(points, *bare[slot].shape[1:])
    return Call(bare, unit.mapped, {})


@contextmanager
def watched(
    model: nn.Module,
    places: Iterable[str],
    note: Callable[[str, dict[int | str, Any], Any], Any],
) -> Iterator[None]:
    """Be told whenever a module of these names has been called: its arguments and its output.

    What is given back takes the output's place.
    """

    def hook(place: str) -> Callable[..., Any]:
        def told(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return note(place, {**dict(enumerate(args)), **kwargs}, output)

        return told

    hooks = [
        model.get_submodule(place).register_forward_hook(hook(place), with_kwargs=True)
        for place in places
    ]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def differentiable(model: nn.Module) -> AbstractContextManager[None]:
    """Without cuDNN where a network is recurrent: it differentiates those in training alone."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        without: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=False)
        return without
    return nullcontext()


def tensors_of(inputs: Any) -> dict[str, Tensor]:
    """Inputs (P, …) by name; a tensor by itself has none."""
    return {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)


def through(model: nn.Module, inputs: Any, plan: Plan, signals: Tensor) -> Rows:
    """What is left of a network's parameters, by gradients through all of it."""
    parts = tensors_of(inputs)

    def ask(some: Mapping[str, Tensor], *points: Tensor) -> Tensor:
        given = points[0] if "" in parts else dict(zip(parts, points, strict=True))
        return logits_of(functional_call(model, dict(some), (given,)))

    def find() -> Tensor:
        with differentiable(model):
            return plan.way(ask, parameters, list(parts.values()), signals)

    parameters = {name: model.get_parameter(name).detach() for name in plan.rest}
    return Rows(flat(model, parameters), find)


def flat(module: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG001
    """Tensors in a row (D,)."""
    return torch.cat([one.flatten() for one in tensors.values()])


def _own(module: nn.Module, names: Sequence[str], call: Call, signals: Tensor) -> Rows:
    """Any module's parameters, by running it again."""
    parameters = {name: module.get_parameter(name).detach() for name in names}

    def ask(some: Mapping[str, Tensor], *points: Tensor) -> Tensor:
        given = {**call.given, **dict(zip(call.mapped, points, strict=True))}
        args = tuple(given[slot] for slot in given if isinstance(slot, int))
        kwargs = {slot: one for slot, one in given.items() if isinstance(slot, str)}
        return functional_call(module, dict(some), args, kwargs)

    points = [call.given[slot] for slot in call.mapped]
    return Rows(flat(module, parameters), lambda: at_once(ask, parameters, points, signals))


def _matrix(module: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """Weights and bias of a linear layer as (O, F)."""
    weights = tensors["weight"].flatten(1)
    if type(module).__name__ == TRANSPOSED:
        weights = weights.T
    if "bias" in tensors:
        weights = torch.cat([weights, tensors["bias"][:, None]], dim=1)
    return weights


def _layer(module: nn.Module, names: Sequence[str], call: Call, signals: Tensor) -> Layer:
    """Take a module's inputs and signals as those of a `Layer`."""
    weights = _matrix(module, {name: module.get_parameter(name).detach() for name in names})
    is_image = isinstance(module, nn.Conv2d)
    signals = signals.flatten(2).mT if is_image else _positions(signals)
    if _rows not in call.known:
        call.known[_rows] = _rows(module, call.first)
    return Layer(weights, call.known[_rows], signals, call.known)


def _positions(rows: Tensor) -> Tensor:
    """Rows (P, O) or (P, …, O) as (P, T, O)."""
    return rows.unsqueeze(1) if rows.ndim == 2 else rows.flatten(1, -2)


def _rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a module multiplies its weights with, at every position: (P, T, F)."""
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        shape = module.kernel_size, module.dilation, module.padding, module.stride
        inputs = unfold(inputs, *shape).mT
    else:
        inputs = _positions(inputs)
    if module.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], dim=2)
    return inputs


def _table(module: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG001
    return tensors["weight"]


def _lookup(module: nn.Module, names: Sequence[str], call: Call, signals: Tensor) -> Lookup:
    """Take an embedding's ids and signals as those of a `Lookup`."""
    (name,) = names
    ids = call.first.reshape(len(signals), -1)
    signals = signals.reshape(*ids.shape, -1)
    padding = module.padding_idx
    if isinstance(padding, int):
        signals = signals.masked_fill((ids == padding).unsqueeze(2), 0.0)
    return Lookup(module.get_parameter(name).detach(), ids, signals)


LAYER, LOOKUP, OWN = Rule(_matrix, _layer), Rule(_table, _lookup), Rule(flat, _own)


def squared_norms(layers: Sequence[Part]) -> Tensor:
    """‖gradient‖² (P,) of every point over all layers."""
    return torch.stack([layer.squared_norms() for layer in layers]).sum(dim=0)


def along(layers: Sequence[Part], direction: Sum) -> Tensor:
    """Inner products (P,) of every point's gradient with a direction over all layers."""
    first, *others = (_along(layer, part) for layer, part in zip(layers, direction, strict=True))
    return sum(others, start=first)


def _along(layer: Part, part: Tensor | Outer) -> Tensor:
    if isinstance(part, Tensor):
        return layer.along(part)
    assert isinstance(layer, Layer)
    return part.along(layer)


def total(layers: Sequence[Part], factors: Tensor | None = None) -> Direction:
    """Sum over the points of their gradients, times factors (P,) if there are any."""
    return [layer.total(factors) for layer in layers]


def summed(layers: Sequence[Part]) -> Sum:
    """Sum over the points of their gradients; of few points it may hold on to the layers."""
    return [
        Outer.of(layer).least if isinstance(layer, Layer) else layer.total() for layer in layers
    ]


def added(sums: Sequence[Sum]) -> Sum:
    """Sum of some directions, in memory of its own."""
    return [_added(parts) for parts in zip(*sums, strict=True)]


def _added(parts: Sequence[Tensor | Outer]) -> Tensor | Outer:
    outers = [one for one in parts if isinstance(one, Outer)]
    if len(outers) < len(parts):
        formed = [one.formed() if isinstance(one, Outer) else one for one in parts]
        return torch.stack(formed).sum(dim=0)
    signals, inputs = zip(*((one.signals, one.inputs) for one in outers), strict=True)
    return Outer(torch.cat(signals), torch.cat(inputs)).least


def weights(layers: Sequence[Part]) -> Direction:
    """The weights themselves, as a direction."""
    return [layer.weights for layer in layers]


def dot(one: Direction, other: Direction) -> Tensor:
    """Inner product of two directions."""
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def at(layers: Sequence[Part], points: Tensor | slice, name: Hashable = None) -> list[Part]:
    """The parts at some of the points, which may have a name."""
    return [layer.at(points, name) for layer in layers]


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
