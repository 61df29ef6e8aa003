"""Membership signals of one model at its points: logits and labels to one score a point.

What a metric takes and gives is written at `LogitMetric`. One small file in ``conf/metric`` makes
it a choice.

With p = softmax(z), loss, confidence and logit follow from the scaled logit
φ = z_y − logsumexp_{c≠y} z_c, since p_y = sigmoid(φ). In float32 sigmoid(18) is already 1, which
ties the points at the very end of the ROC that counts; from φ in float64 nothing saturates.
Signals of a model's weights are in `mico_exp.scores.gradients`.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

WINNER_EPS = 1.2e-38  # the smallest normal float32, which keeps log(0) finite
TINY = 1e-30  # sums of exponentials above it have all digits of a float32


class LogitMetric(Protocol):
    """A membership signal of one model's logits: a pure function, higher = more member-like.

    What can be chosen as a metric is one of these:

    - such a function, the usual case, which nothing marks;
    - one that is marked by `OfScaledLogit`, and takes φ (…, P) alone, or by `OfSoftmax`, and takes
      a `Softmax`: metrics of one pass share these;
    - a `gradients.GradientMetric`, no function of this form: it is given the backward pass of one
      model, and says by `reference` and `disclosed` what else it wants of it.
    """

    def __call__(self, logits: Tensor, labels: Tensor, /) -> Tensor:
        """Score (…, P) of logits (…, P, C) float, with labels int64 that broadcast to (…, P)."""


def scaled_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """φ = log(p_y / (1 − p_y)) in float64 (Carlini et al. 2022, arXiv 2112.03570 §V).

    The true class is left out of the sum, and not subtracted from it: no digits cancel. The
    exponentials keep the logits' precision, which costs φ its last digits only, whatever it is.
    """
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    of_label = logits.gather(-1, index).squeeze(-1)
    highest = logits.amax(dim=-1, keepdim=True)
    total = (logits - highest).exp_().scatter_(-1, index, 0).sum(dim=-1)
    phi = of_label.double() - highest.squeeze(-1).double() - total.double().log()
    lost = total < TINY  # the true class is so far ahead that the others vanish beside it
    if lost.is_cuda:  # to ask whether there are any would have to wait for it
        return torch.where(lost, _alone(logits, of_label, index), phi)
    if lost.any():
        phi[lost] = _alone(logits[lost], of_label[lost], index[lost])
    return phi


def _alone(logits: Tensor, of_label: Tensor, index: Tensor) -> Tensor:
    """φ by the logarithm of a sum over the other classes, all in float64."""
    others = logits.double().scatter(-1, index, -torch.inf)
    return of_label.double() - others.logsumexp(dim=-1)


class Softmax:
    """What metrics of the same logits (…, P, C) share, each found once and only when asked for.

    labels: int64 that broadcast to (…, P).
    """

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self.logits, self.labels = logits, labels.expand(logits.shape[:-1])

    @cached_property
    def phi(self) -> Tensor:
        """φ (…, P) in float64, see `scaled_logit`."""
        return scaled_logit(self.logits, self.labels)

    @cached_property
    def log_p(self) -> Tensor:
        """Log-probabilities (…, P, C) in float64."""
        return self.logits.double().log_softmax(dim=-1)

    @cached_property
    def p(self) -> Tensor:
        """Probabilities (…, P, C) in float64."""
        return self.log_p.exp()


class OfSoftmax:
    """A metric that needs what `Softmax` has; metrics of one pass share it."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self.function = function
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Score (…, P) of logits (…, P, C) and labels."""
        return self.of(Softmax(logits, labels))

    def of(self, softmax: Softmax) -> Tensor:
        """Score (…, P) of what is shared."""
        return self.function(softmax)


class OfScaledLogit(OfSoftmax):
    """A metric that needs nothing but φ."""

    def of(self, softmax: Softmax) -> Tensor:
        """Score (…, P) of the shared φ."""
        found: Tensor = self.function(softmax.phi)
        return found


@OfScaledLogit
def loss(phi: Tensor) -> Tensor:
    """Negated cross-entropy, log p_y = −softplus(−φ) (Yeom et al. 2018, arXiv 1709.01604)."""
    return logsigmoid(phi)


@OfScaledLogit
def confidence(phi: Tensor) -> Tensor:
    """Probability p_y of the true class, in float64 (Salem et al. 2019, arXiv 1806.01246)."""
    return phi.sigmoid()


@OfScaledLogit
def logit(phi: Tensor) -> Tensor:
    """φ itself, log(p_y / (1 − p_y)), exactly (Carlini et al. 2022, arXiv 2112.03570 §V)."""
    return phi


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the predicted class is the label, else 0: all that a label tells by itself.

    The gap attack (Yeom et al. 2018, arXiv 1709.01604; Choquette-Choo et al. 2021, arXiv
    2007.14321, §4).
    """
    return (logits.argmax(dim=-1) == labels).double()


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y − max_{c≠y} z_c in float64, which is φ for two classes.

    How far the true class is ahead (Carlini et al. 2022, arXiv 2112.03570 §V, compare it).
    """
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    others = logits.scatter(-1, index, -torch.inf).amax(dim=-1)
    return logits.gather(-1, index).squeeze(-1).double() - others.double()


@OfSoftmax
def entropy(softmax: Softmax) -> Tensor:
    """Σ_c p_c·log p_c, negated entropy, which knows no label.

    Salem et al. 2019, arXiv 1806.01246, §V.
    """
    return (softmax.p * softmax.log_p).sum(dim=-1)


@OfSoftmax
def mod_entropy_stable(softmax: Softmax) -> Tensor:
    """Negated modified entropy (Song & Mittal 2021, arXiv 2003.10595, eq. 6) that never saturates.

    (1 − p_y)·log p_y + Σ_{c≠y} p_c·log(1 − p_c) in float64, with nothing added under a logarithm:
    log(1 − p_c) is log1p(−p_c), and −softplus(φ_c) for the likeliest class, whose p_c may round
    to 1.
    """
    logits, labels, p = softmax.logits.double(), softmax.labels, softmax.p
    phi, top = scaled_logit(logits, labels), logits.argmax(dim=-1)
    of_top, wrong = phi.clone(), top != labels
    of_top[wrong] = scaled_logit(logits[wrong], top[wrong])
    terms = p.neg().log1p_().mul_(p)
    index = top.unsqueeze(-1)
    terms.scatter_(-1, index, p.gather(-1, index) * -softplus(of_top).unsqueeze(-1))
    terms.scatter_(-1, labels.unsqueeze(-1), 0)
    return terms.sum(dim=-1) + (-phi).sigmoid() * logsigmoid(phi)


def mod_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negated modified entropy (Song & Mittal 2021, arXiv 2003.10595, eq. 6), as the winner has it.

    Σ_c p_c·log(1 − p_c) − p_y·log(1 − p_y) + (1 − p_y)·log p_y in float32, with 1.2e-38 added
    under each logarithm: the winner's form saturates there, and its figures follow from that.
    """
    p = logits.float().softmax(dim=-1)
    p_y = p.gather(-1, labels.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    every = (1 - p).add_(WINNER_EPS).log_().mul_(p).sum(dim=-1)
    others = every - p_y * (1 - p_y + WINNER_EPS).log()
    return others + (1 - p_y) * (p_y + WINNER_EPS).log()
