"""Which way the gradient of each parameter is found, for all networks of an architecture.

What a rule gives is right only where a network calls a module as the rule expects: once, with a
row for each point, its inputs not written into, its parameters used nowhere else. No list of
architectures tells. So rules are tried at some points and set beside autograd, one point at a
time: norms, and inner products with a direction. What differs is found through the whole network.

Axes: P points, C classes.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mico_exp.common.errors import InputError, first_line
from mico_exp.models.architectures import logits_of, traced_part
from mico_exp.models.backprop import (
    LAYER,
    LOOKUP,
    OWN,
    TRANSPOSED,
    Part,
    Plan,
    Rule,
    Unit,
    tensors_of,
    through,
    trace,
    watched,
)
from mico_exp.models.batching import out_of_memory
from mico_exp.models.per_record import Rows, in_turn

log = logging.getLogger(__name__)
Suggest = Callable[[nn.Module, Sequence[str]], Rule]
CLOSE = 1e-4  # to autograd's, as a share of a gradient by the same parameters,
ROUNDING = 1e-5  # and of the whole gradient
NAMED = 3  # parameters in a message


def plan_of(
    model: nn.Module,
    inputs: Any,
    wanted: Mapping[str, Tensor] | None = None,
    suggest: Suggest | None = None,
) -> Plan:
    """Find how each parameter is seen, at some points of which the longest is the first.

    Args:
        model: with its weights, that do not ask for gradients.
        inputs: of P points; of a single one, the plan is for one at a time.
        wanted: parameters that count, by name; None for all of what gradients are taken of, also
            those that training has left alone.
        suggest: the rule for a module and the names of its parameters; None for those of
            `backprop`.

    Raises:
        InputError: it has no parameters, cannot be differentiated, or gives other gradients when
            it is asked again.
    """
    beside = _Autograd(model, inputs, parameters_of(model) if wanted is None else wanted)
    plan = _structure(model, inputs, beside.parameters, suggest or _rule)
    odd = beside.odd_units(plan)
    if odd:
        log.info("%s: gradients by rules are not those of autograd for %s", beside.kind, _some(odd))
    units = {place: unit for place, unit in plan.units.items() if place not in odd}
    plan = _plan(units, tuple(beside.parameters))
    if plan.rest and not beside.agrees(plan):
        plan = replace(plan, way=in_turn)
    if plan.rest:
        how = "one point after another, which is slow" if plan.way is in_turn else "by torch.func"
        log.info("%s: gradients through all of it, %s, for %s", beside.kind, how, _some(plan.rest))
    return plan


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters of what gradients are taken of, by their first name in the whole model."""
    wanted = {id(one) for one in traced_part(model).parameters() if one.is_floating_point()}
    return {name: one for name, one in model.named_parameters() if id(one) in wanted}


class _Call(NamedTuple):
    """How many rows each tensor has that a module is given, and what it gives back."""

    given: Mapping[int | str, int]
    output: int | None


def _calls(
    model: nn.Module, inputs: Any, points: int, wanted: Mapping[str, Tensor]
) -> dict[str, list[_Call]]:
    """Calls of all modules that hold parameters which count, at the first points."""
    found: dict[str, list[_Call]] = {}

    def note(place: str, given: Mapping[int | str, Any], output: Any) -> None:
        rows = {slot: len(one) for slot, one in given.items() if _has_rows(one)}
        is_signal = _has_rows(output) and output.is_floating_point()
        found.setdefault(place, []).append(_Call(rows, len(output) if is_signal else None))

    within = {place for name in wanted for place in _above(name)}
    places = [place for place, _ in model.named_modules() if place in within]
    with watched(model, places, note), torch.no_grad():
        model(_first(inputs, points))
    return found


def _has_rows(one: Any) -> bool:
    return isinstance(one, Tensor) and not one.is_nested and one.ndim > 0


def _first(inputs: Any, points: int) -> Any:
    some = {name: one[:points] for name, one in tensors_of(inputs).items()}
    return some.get("", some)


def _structure(
    model: nn.Module, inputs: Any, wanted: Mapping[str, Tensor], suggest: Suggest
) -> Plan:
    """Give each parameter to the smallest module that holds it and could be a unit."""
    fitting, tied, names = _fitting(model, inputs, wanted), _tied(model), tuple(wanted)
    homes: dict[str, list[str]] = {}
    for name in names:
        home = next((place for place in _above(name) if place in fitting), None)
        if home is not None and name not in tied:
            homes.setdefault(home, []).append(name.removeprefix(f"{home}."))
    units = {
        place: unit._replace(
            names=tuple(homes[place]), rule=suggest(model.get_submodule(place), homes[place])
        )
        for place, unit in fitting.items()
        if place in homes
    }
    return _plan(units, names)


def _fitting(model: nn.Module, inputs: Any, wanted: Mapping[str, Tensor]) -> dict[str, Unit]:
    """Modules that could be units: called once, with rows that go by the number of points."""
    count = len(next(iter(tensors_of(inputs).values())))
    counts = count, max(count - 1, 1)
    every, fewer = (_calls(model, inputs, points, wanted) for points in counts)
    found: dict[str, Unit] = {}
    for place, calls in every.items():
        if len(calls) == len(fewer.get(place, ())) == 1:
            unit = _unit(calls[0], fewer[place][0], counts)
            found |= {} if unit is None else {place: unit}
    return found


def _unit(call: _Call, fewer: _Call, counts: tuple[int, int]) -> Unit | None:
    """A unit of a module that gives a row for each point, or one for all of them."""
    for wide, rows in ((False, counts), (True, (1, 1))):
        mapped = tuple(
            slot for slot in call.given if (call.given[slot], fewer.given.get(slot)) == rows
        )
        if mapped and (call.output, fewer.output) == rows:
            return Unit(OWN, (), mapped, wide)
    return None


def _above(name: str) -> Iterator[str]:
    """Modules that hold a parameter, from the smallest on."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _tied(model: nn.Module) -> set[str]:
    """Parameters that a model holds in several places."""
    every = list(model.named_parameters(remove_duplicate=False))
    times = Counter(id(one) for _, one in every)
    return {name for name, one in every if times[id(one)] > 1}


def _rule(module: nn.Module, names: Sequence[str]) -> Rule:
    """The rule that a module's class suggests, if these are all of its own parameters."""
    if {*names} != {name for name, _ in module.named_parameters(recurse=False)}:
        return OWN
    if isinstance(module, nn.Embedding):
        return LOOKUP
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.padding_mode == "zeros"
        return LAYER if plain and not isinstance(module.padding, str) else OWN
    is_linear = isinstance(module, nn.Linear) or type(module).__name__ == TRANSPOSED
    return LAYER if is_linear else OWN


def _plan(units: Mapping[str, Unit], names: Sequence[str]) -> Plan:
    """A plan of these units; what none of them has is left."""
    have = {f"{place}.{name}" for place, unit in units.items() for name in unit.names}
    return Plan(dict(units), tuple(name for name in names if name not in have))


class _Facts(NamedTuple):
    """Of gradients their squares (P,), and their inner products (P,) with a direction."""

    squares: Tensor
    inner: Tensor

    @classmethod
    def of(cls, part: Part, direction: Tensor) -> "_Facts":
        return cls(part.squared_norms(), part.along(direction))

    @classmethod
    def joined(cls, some: Sequence["_Facts"]) -> "_Facts":
        """Facts of the same parameters at points one after another."""
        return cls(*(torch.cat(both) for both in zip(*some, strict=True)))

    @classmethod
    def sum(cls, some: Sequence["_Facts"]) -> "_Facts":
        """Facts of parameters together."""
        return cls(*(torch.stack(both).sum(dim=0) for both in zip(*some, strict=True)))

    def are(self, expected: "_Facts", whole: "_Facts") -> bool:
        """Tell whether they are those expected, which are a part of whole gradients."""
        room = CLOSE * expected.squares.sqrt() + ROUNDING * whole.squares.sqrt()
        norms = (self.squares.sqrt() - expected.squares.sqrt()).abs() <= room
        return bool((norms & ((self.inner - expected.inner).abs() <= room)).all())


class _Autograd:
    """What autograd gives at some points, one at a time, for signals that never vanish.

    Raises:
        InputError: as `plan_of`.
    """

    def __init__(self, model: nn.Module, inputs: Any, wanted: Mapping[str, Tensor]) -> None:
        self.model, self.inputs, self.kind = model, inputs, type(model).__name__
        self.parameters = wanted
        if not self.parameters:
            raise InputError(f"{self.kind} has no parameters that gradients could be of.")
        numbers = torch.Generator().manual_seed(0)
        with torch.no_grad():
            logits = logits_of(model(inputs))
        self.signals = torch.randn(logits.shape, generator=numbers).to(logits)
        self.direction = {
            name: torch.randn(one.shape, generator=numbers).to(one)
            for name, one in self.parameters.items()
        }
        self.facts = self._found()
        self.whole = _Facts.sum(list(self.facts.values()))

    def _found(self) -> dict[str, _Facts]:
        try:
            points = [self._of_one(point) for point in range(len(self.signals))]
            again = self._of_one(0)
        except Exception as error:  # whatever a user's own network makes of it
            if out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{self.kind} cannot be differentiated: {reason}") from error
        whole = _Facts.sum(list(points[0].values()))
        if not _Facts.sum(list(again.values())).are(whole, whole):
            raise InputError(
                f"{self.kind} gives other gradients for the same record when it is asked again: "
                "does its `forward` draw numbers? (`torch.nn.functional.dropout` needs "
                "`training=self.training`)"
            )
        if not whole.squares.any():
            raise InputError(f"{self.kind}: its logits do not hang on its parameters.")
        return {name: _Facts.joined([one[name] for one in points]) for name in self.parameters}

    def _of_one(self, point: int) -> dict[str, _Facts]:
        """Facts (1,) of every parameter at one point."""
        alone = {name: one[point : point + 1] for name, one in tensors_of(self.inputs).items()}
        plan = Plan({}, tuple(self.parameters), in_turn)
        signals = self.signals[point : point + 1]
        return self._by_parameter(through(self.model, alone.get("", alone), plan, signals), plan)

    def _by_parameter(self, rows: Rows, plan: Plan) -> dict[str, _Facts]:
        sizes = [self.parameters[name].numel() for name in plan.rest]
        parts = rows.rows.split(sizes, dim=1)
        return {
            name: _Facts(part.square().sum(dim=1), part @ self.direction[name].flatten())
            for name, part in zip(plan.rest, parts, strict=True)
        }

    def odd_units(self, plan: Plan) -> list[str]:
        """Places of units whose gradients are not autograd's.

        Not every network bears rows for all points where it had one: less and less is tried.
        """
        wide = [place for place, unit in plan.units.items() if unit.wide]
        beyond_lookups = [place for place in wide if plan.units[place].rule != LOOKUP]
        for odd in ([], beyond_lookups, wide):
            kept = Plan({place: unit for place, unit in plan.units.items() if place not in odd})
            if (parts := self._parts(kept)) is not None:
                wrong = [place for place in parts if not self._is_right(kept, place, parts[place])]
                return odd + wrong
        return list(plan.units)

    def _parts(self, plan: Plan) -> dict[str, Part] | None:
        """Parts of units by place; None where the network fails under the plan."""
        try:
            traced = trace(self.model, self.inputs, plan)
            return dict(zip(plan.units, traced.back(self.signals), strict=True))
        except Exception as error:  # a network may make anything of what a rule does to it
            if out_of_memory(error):
                raise
            return None

    def _is_right(self, plan: Plan, place: str, part: Part) -> bool:
        unit, module = plan.units[place], self.model.get_submodule(place)
        names = {name: f"{place}.{name}" for name in unit.names}
        direction = {name: self.direction[full] for name, full in names.items()}
        expected = _Facts.sum([self.facts[full] for full in names.values()])
        try:
            found = _Facts.of(part, unit.rule.arrange(module, direction))
        except Exception as error:
            if out_of_memory(error):
                raise
            return False
        return found.are(expected, self.whole)

    def agrees(self, plan: Plan) -> bool:
        """Tell whether what is left can be found as the plan has it."""
        try:
            rows = through(self.model, self.inputs, plan, self.signals)
            found = self._by_parameter(rows, plan)
        except Exception as error:
            if out_of_memory(error):
                raise
            return False
        return all(one.are(self.facts[name], self.whole) for name, one in found.items())
