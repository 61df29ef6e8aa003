"""What an attacker sees of a model: its logits to the logits of one who sees only that.

A model that is asked over a network rarely shows its logits. Each function here takes them and
gives what is known where less is shown, as log-probabilities, which every metric of logits takes:
it sees no difference between logits and these but what was lost. What is shown is a float32, as a
service computes it. A logarithm of 0 is none: what was too small to be shown lies at a floor.

Axes: P points, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mico_exp.common import require
from mico_exp.common.errors import InputError
from mico_exp.scores.gradients import GradientMetric
from mico_exp.scores.metrics import LogitMetric

EXPOSURES = ("label", "top5", "rounded", "probabilities", "logits", "weights")  # the least first
FLOOR = torch.finfo(torch.float32).tiny  # the smallest normal float32, 1.2e-38
Exposure = Callable[[Tensor], Tensor]


def logits(logits: Tensor) -> Tensor:
    """The logits (…, P, C) themselves, in float32: only the weights are kept."""
    return logits.float()


def probabilities(logits: Tensor) -> Tensor:
    """Softmax in float32, (…, P, C): where p_y is 1 and the others are 0, points tie.

    What is below the smallest normal float32 counts as that, on whatever device.
    """
    return _shown(logits).clamp_(min=FLOOR).log_()


@dataclass(frozen=True)
class Rounded:
    """Softmax in float32, rounded to so many decimals; 0 counts as half of the last one."""

    decimals: int = 3

    def __post_init__(self) -> None:
        require.whole("exposure.function.decimals", self.decimals, 1, 9)

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-probabilities (…, P, C), which need not add up to 1: metrics see to that."""
        shown = torch.round(_shown(logits), decimals=self.decimals)
        return shown.clamp_(min=0.5 * 10**-self.decimals).log_()


@dataclass(frozen=True)
class Top:
    """The k largest of a softmax in float32; the other classes share what is left evenly.

    Each has (1 − Σ of the k)/(C − k), and no more than the smallest that is shown: the true class,
    too, where it is not among the k. Of classes that tie for the last place the first is shown.
    """

    k: int = 5

    def __post_init__(self) -> None:
        require.whole("exposure.function.k", self.k, 1)

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-probabilities (…, P, C)."""
        shown = _shown(logits).double()
        if self.k < (classes := shown.shape[-1]):
            largest, place = shown.sort(dim=-1, descending=True, stable=True)
            left = (1 - largest[..., : self.k].sum(dim=-1)) / (classes - self.k)
            share = left.clamp(min=0).minimum(largest[..., self.k - 1]).unsqueeze(-1)
            hidden = place[..., self.k :]
            shown.scatter_(-1, hidden, share.expand(hidden.shape))
        return shown.clamp_(min=FLOOR).log_()


def label(logits: Tensor) -> Tensor:
    """The predicted class alone, (…, P, C): it has all, and the others are at the floor."""
    predicted = logits.argmax(dim=-1, keepdim=True)
    others = torch.full_like(logits, FLOOR, dtype=torch.float32).log_()
    return others.scatter_(-1, predicted, 0.0)


def _shown(logits: Tensor) -> Tensor:
    """Probabilities (…, P, C) in float32."""
    return logits.float().softmax(dim=-1)


def seen_through(
    exposure: Exposure, name: str, metric: LogitMetric | GradientMetric
) -> LogitMetric:
    """A metric for whoever sees the logits (…, P, C) through an exposure.

    Raises:
        InputError: it is one of gradients, which only the weights give.
    """
    if isinstance(metric, GradientMetric):
        raise InputError(f"metric={name}: it needs the model's weights (exposure=weights).")
    return partial(_seen, exposure=exposure, metric=metric)


def _seen(logits: Tensor, labels: Tensor, *, exposure: Exposure, metric: LogitMetric) -> Tensor:
    return metric(exposure(logits), labels)
