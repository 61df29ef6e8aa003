"""What a network gives, where it is no logits, made logits by what an option tells.

::

    model:
      _target_: mico_exp.models.interpreted.Interpreted
      network: {_target_: mine.Net}
      outputs: probabilities

Axes: P points, C classes.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mico_exp.common.errors import InputError
from mico_exp.models.architectures import ignored_keys, logits_of, traced_part

log = logging.getLogger(__name__)
OUTPUTS = ("logits", "probabilities", "log_probabilities")
LEAST = 2.0**-149  # the smallest float32 above 0, which is what a probability of 0 counts for
ROUNDING = 1e-3  # of probabilities that add up to 1
HALF_ROUNDING = 1e-2  # and in half precision


class Interpreted(nn.Module):
    """A network whose outputs have the meaning that an option tells; its file is the network's.

    One output, (P,) or (P, 1), is that of class 1 of two: a logit z stands for (0, z), and a
    probability p for (1 − p, p).

    Args:
        network: a module that takes the records' inputs.
        outputs: ``logits``, ``probabilities`` or ``log_probabilities``. Probabilities of exactly 0
            count for 2^-149: records at which only such differ are tied.
        take: which part of what it gives that is, by position in a tuple or by name in a dictionary
            or an object; None for a tensor, or what is called ``logits``.

    Raises:
        InputError: an option is none of these; and, when it is called, what the network gives is
            not what the options say.
    """

    def __init__(
        self, network: Any, outputs: str = "logits", take: int | str | None = None
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise InputError(f"`dataset.model.network` must be a torch module, got a {kind}.")
        if outputs not in OUTPUTS:
            raise InputError(
                f"`dataset.model.outputs` must be one of {', '.join(OUTPUTS)}, got {outputs!r:.80}."
            )
        if not (take is None or type(take) in (int, str)):
            raise InputError(
                f"`dataset.model.take` must be a position, a name or null, got {take!r:.80}."
            )
        self.network: nn.Module = network
        self.outputs, self.take = outputs, take

    @property
    def stored(self) -> nn.Module:
        """The module whose state dict a file holds."""
        return self.network

    @property
    def traced(self) -> nn.Module:
        """What gradients are taken of."""
        return traced_part(self.network)

    @property
    def ignored(self) -> Sequence[str]:
        """Keys of a file that say nothing."""
        return ignored_keys(self.network)

    def forward(self, inputs: Any) -> Tensor:
        """Logits (P, C) of inputs (P, …)."""
        given = logits_of(_part(self.network(inputs), self.take))
        if given.ndim == 1 and len(given) == _count(inputs):
            given = given[:, None]
        is_one = given.ndim == 2 and given.shape[1] == 1
        if self.outputs == "logits":
            return torch.cat([torch.zeros_like(given), given], dim=1) if is_one else given
        if self.outputs == "log_probabilities":
            return _of_log_probabilities(given, is_one=is_one)
        return _of_probabilities(given, is_one=is_one)


def _part(output: Any, take: int | str | None) -> Any:
    """What an option says is to be taken of what a network gives."""
    if take is None:
        return output
    try:
        if isinstance(take, int) or isinstance(output, Mapping):
            return output[take]
        return getattr(output, take)
    except (LookupError, TypeError, AttributeError) as error:
        size = f" of {len(output)}" if isinstance(output, Sequence | Mapping) else ""
        raise InputError(
            f"`dataset.model.take` must name a part of what the network gives, got {take!r:.80} of "
            f"a {type(output).__name__}{size}."
        ) from error


def _count(inputs: Any) -> int:
    """Points of a batch."""
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def _of_probabilities(p: Tensor, *, is_one: bool) -> Tensor:
    """Logits (P, C) of probabilities (P, C), or (P, 1) of class 1: their logarithms."""
    rounding = ROUNDING if p.dtype == torch.float32 else HALF_ROUNDING
    every = p.double()
    if ((every < -rounding) | (every > 1 + rounding)).any():
        raise InputError(
            "a network that gives probabilities must give numbers in [0, 1], got "
            f"{every.min():.4g} … {every.max():.4g}."
        )
    if is_one:
        every = torch.cat([1 - every, every], dim=1)
    off = (every.sum(dim=-1) - 1).abs()
    if (off > rounding).any():
        raise InputError(
            "a network's probabilities must add up to 1, got sums that are off by up to "
            f"{off.max():.3g}."
        )
    if (every <= 0).any():
        _say_of_zeros()
    return every.clamp_min(LEAST).log().float()


def _of_log_probabilities(given: Tensor, *, is_one: bool) -> Tensor:
    """Logits (P, C) of log-probabilities (P, C), or (P, 1) of class 1."""
    every = given.double()
    if (every > ROUNDING).any():
        raise InputError(f"a network's log-probabilities must be at most 0, got {every.max():.4g}.")
    if is_one:
        every = torch.cat([(-every.clamp_max(0).expm1()).log(), every], dim=1)
    if every.isneginf().any():
        _say_of_zeros()
    return every.clamp_min(torch.tensor(LEAST, dtype=torch.float64).log().item()).float()


@cache
def _say_of_zeros() -> None:
    log.warning(
        "A network gives probabilities of exactly 0, which count for 2^-149: records at which it "
        "is that sure cannot be told apart."
    )
