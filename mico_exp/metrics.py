"""Membership signals of one model at its points: logits and labels to one score a point.

Every metric is higher = more member-like. logits (…, P, C) float, labels broadcast to (…, P)
int64; the result is (…, P). A metric is a pure function, and one small file in ``conf/metric``
makes it a choice.

With p = softmax(z), all but modified entropy follow from the scaled logit
φ = z_y − logsumexp_{c≠y} z_c, since p_y = sigmoid(φ). In float32 sigmoid(18) is already 1, which
ties the points at the very end of the ROC that counts; from φ in float64 nothing saturates.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

WINNER_EPS = 1.2e-38  # the smallest normal float32, which keeps log(0) finite


def scaled_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """φ = log(p_y / (1 − p_y)), exact and in float64 (Carlini et al. 2022, arXiv 2112.03570 §V)."""
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    of_label = logits.gather(-1, index)
    others = logits.scatter(-1, index, -torch.inf).double().logsumexp(dim=-1)
    return of_label.squeeze(-1).double() - others


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Negated cross-entropy, log p_y = −softplus(−φ) (Yeom et al. 2018, arXiv 1709.01604)."""
    return logsigmoid(scaled_logit(logits, labels))


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Probability p_y of the true class, in float64 (Salem et al. 2019, arXiv 1806.01246)."""
    return scaled_logit(logits, labels).sigmoid()


def mod_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negated modified entropy (Song & Mittal 2021, arXiv 2003.10595, eq. 6), as the winner has it.

    Σ_c p_c·log(1 − p_c) − p_y·log(1 − p_y) + (1 − p_y)·log p_y in float32, with 1.2e-38 added
    under each logarithm: the winner's form saturates there, and its figures follow from that.
    """
    p = logits.float().softmax(dim=-1)
    p_y = p.gather(-1, labels.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    others = (p * (1 - p + WINNER_EPS).log()).sum(dim=-1) - p_y * (1 - p_y + WINNER_EPS).log()
    return others + (1 - p_y) * (p_y + WINNER_EPS).log()
