"""How much of a network metrics of gradients see, which a run has to say."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mico_exp.models.backprop import Layer, Plan, trace

NAMED = 5  # modules in a message


class Sight(NamedTuple):
    """What of a network's parameters a metric sees.

    seen: how many numbers, of how many. left_out: the largest modules of which it sees nothing,
    and parameters beside those that it sees.
    """

    seen: int
    parameters: int
    left_out: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the parameters, 0 … 1."""
        return self.seen / self.parameters

    def __str__(self) -> str:
        """``594,434 of 124,647,170 parameters (0.48 %), not network.roberta``."""
        told = f"{self.seen:,} of {self.parameters:,} parameters ({self.share:.2%})"
        more = f" and {len(self.left_out) - NAMED} more" if len(self.left_out) > NAMED else ""
        return told + (f", not {', '.join(self.left_out[:NAMED])}{more}" if self.left_out else "")


def sight_of(model: nn.Module, inputs: Any, plan: Plan, *, dense: bool) -> Sight:
    """Find what is seen of a network by its plan, at inputs of P points.

    dense: by metrics that look at dense layers alone.
    """
    sizes = {name: one.numel() for name, one in model.named_parameters()}
    seen = _dense(model, inputs, plan) if dense else _all(plan)
    left_out = _left_out(tuple(sizes), seen)
    return Sight(sum(sizes[name] for name in seen), sum(sizes.values()), left_out)


def _all(plan: Plan) -> list[str]:
    units = [f"{place}.{name}" for place, unit in plan.units.items() for name in unit.names]
    return [*units, *plan.rest]


def _dense(model: nn.Module, inputs: Any, plan: Plan) -> list[str]:
    """Parameters of layers that are applied once to every point."""
    units = Plan(plan.units)
    traced = trace(model, inputs, units)
    parts = traced.back(torch.zeros_like(traced.logits))
    some = zip(plan.units, parts, strict=True)
    dense = [place for place, part in some if isinstance(part, Layer) and part.is_dense]
    return _all(Plan({place: plan.units[place] for place in dense}))


def _left_out(names: Sequence[str], seen: Sequence[str]) -> tuple[str, ...]:
    """Parameters that are not seen, by the largest modules that hold nothing else."""
    held = {place for name in seen for place in _places(name)}
    ways = (_places(name) for name in names if name not in held)
    return tuple(dict.fromkeys(next(one for one in way if one not in held) for way in ways))


def _places(name: str) -> list[str]:
    """Modules that hold a parameter, from the largest on, and the parameter itself."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
