"""SGD and DP-SGD for many stacked MLPs at once, with one hand-written backward pass.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1): every step draws a Poisson sample,
clips each record's gradient to norm C, adds Gaussian noise of standard deviation σ·C to the sum
and divides by the *expected* batch size.

No per-sample gradient is materialised: a linear layer with input a and back-signal δ has the
per-sample gradient δaᵀ and bias gradient δ, so its squared norm is (‖a‖² + 1)·‖δ‖² (Goodfellow
2015, arXiv 1510.01799), and the clipped sum is the ordinary one with every δ scaled.

Axes: M models, B batch positions, n training records of a model, F features, C classes.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from mico_exp.models.architectures import StackedMLP
from mico_exp.models.devices import FLOAT32, TF32, allow_tf32, autocast, in_float32
from mico_exp.training.steps import (
    AfterStep,
    Draws,
    Optimizer,
    Plan,
    Privacy,
    Progress,
    Watch,
    poisson_batches,
    privatise,
    shuffled_batches,
)


def initial_mlps(models: int, widths: Sequence[int], generator: torch.Generator) -> StackedMLP:
    """Draw M networks as `torch.nn.Linear` does: all uniform in ± 1/√(fan-in).

    They lie where the generator draws.
    """

    def uniform(fan_in: int, *shape: int) -> Tensor:
        bound = 1 / math.sqrt(fan_in)
        empty = torch.empty(models, *shape, device=generator.device)
        return empty.uniform_(-bound, bound, generator=generator)

    layers = [
        (uniform(fan_in, fan_out, fan_in), uniform(fan_in, fan_out))
        for fan_in, fan_out in pairwise(widths)
    ]
    return StackedMLP.of_layers(layers)


def gradients(
    mlps: StackedMLP,
    inputs: Tensor,
    labels: Tensor,
    weight: Tensor,
    clip_norm: float = math.inf,
) -> list[Tensor]:
    """Weighted sum over the batch of each record's cross-entropy gradient, clipped one by one.

    Args:
        mlps: M networks.
        inputs: (M, B, F), each model its own batch.
        labels: (M, B) int64.
        weight: (M, B) factor of each record, 0 at empty positions.
        clip_norm: largest Euclidean norm of a record's gradient over all parameters.

    Returns:
        one tensor for each of `mlps.parameters`, of the same shape.
    """
    return _passes(mlps, inputs, labels, weight, clip_norm)[0]


def _passes(
    mlps: StackedMLP,
    inputs: Tensor,
    labels: Tensor,
    weight: Tensor,
    clip_norm: float,
    precision: str = FLOAT32,
) -> tuple[list[Tensor], Tensor]:
    """What `gradients` gives, and the logits (M, B, C).

    Layers' inputs and the signals that come back to them are of the precision, sums of float32.
    """
    allow_tf32(precision == TF32)
    with autocast(inputs.device, precision):
        *signals, logits = mlps.activations(inputs)
    logits = in_float32(logits)
    delta = logits.softmax(dim=-1)
    delta.scatter_add_(2, labels.unsqueeze(2), -torch.ones_like(delta[..., :1]))
    deltas = [delta]
    for (layer_weight, _), activation in zip(mlps.layers[:0:-1], signals[:0:-1], strict=True):
        with autocast(inputs.device, precision):
            back = torch.bmm(deltas[-1], layer_weight)
        deltas.append(back * (1 - activation.square()))
    deltas.reverse()
    allow_tf32(False)
    signals, deltas = [*map(in_float32, signals)], [*map(in_float32, deltas)]
    if math.isfinite(clip_norm):
        weight = weight * (clip_norm / (_norms(signals, deltas) + 1e-6)).clamp(max=1)
    result = []
    for activation, signal in zip(signals, deltas, strict=True):
        scaled = signal * weight.unsqueeze(2)
        result += [torch.bmm(scaled.transpose(1, 2), activation), scaled.sum(dim=1)]
    return result, logits


def _norms(activations: list[Tensor], deltas: list[Tensor]) -> Tensor:
    squares = [
        (a.square().sum(dim=2) + 1) * d.square().sum(dim=2)
        for a, d in zip(activations, deltas, strict=True)
    ]
    return torch.stack(squares).sum(dim=0).sqrt()


def train(
    mlps: StackedMLP,
    inputs: Tensor,
    labels: Tensor,
    plan: Plan,
    generator: torch.Generator,
    privacy: Privacy | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train the stacked networks in place, each on its own records; all are on one device.

    Args:
        mlps: M networks.
        inputs: (M, n, F).
        labels: (M, n).
        plan: steps, batch size (the expected one with `privacy`), optimiser.
        generator: source of the batches and of the noise, on the same device: another device's
            draws others of the same distribution.
        privacy: train with DP-SGD; plain SGD on the batch's mean without.
        after_step: called after every step, for progress.
    """
    allow_tf32(False)  # whatever ran before
    models, records = labels.shape
    rate = plan.batch_size / records
    if privacy:
        batches = poisson_batches(models, records, rate, generator)
    else:
        batches = shuffled_batches(models, records, plan.batch_size, generator)
    optimizer = Optimizer(plan, mlps.parameters, records)
    every = torch.arange(models, device=labels.device).unsqueeze(1)
    for _, (indices, present) in zip(range(plan.steps), batches, strict=False):
        batch = inputs[every, indices], labels[every, indices]
        if privacy:
            steps = gradients(mlps, *batch, present, privacy.clip_norm)
            steps = [privatise(step, privacy, plan.batch_size, generator) for step in steps]
        else:
            steps = gradients(mlps, *batch, present / present.shape[1])
        for parameter, step in zip(mlps.parameters, steps, strict=True):
            parameter.grad = step
        optimizer.step()
        after_step()


def train_each(
    mlps: StackedMLP,
    batch_at: Callable[[Tensor], tuple[Tensor, Tensor]],
    records: Sequence[int],
    plan: Plan,
    draws: Sequence[Draws],
    privacy: Privacy | None,
    after_step: AfterStep,
) -> list[str | None]:
    """Train the stacked networks in place, each with batches and noise of its own.

    Args:
        mlps: M networks.
        batch_at: inputs (M, B, F) and labels (M, B) at positions (M, B) among each model's own
            records, on the networks' device.
        records: how many each has; as many, unless the plan tells a sample rate.
        plan: as of `train`.
        draws: of each network.
        privacy: as of `train`.
        after_step: called after every step.

    Returns:
        for each network None, or why it counts no more: its loss was not finite.
    """
    optimizer, device = Optimizer(plan, mlps.parameters, records[0]), mlps.parameters[0].device
    watch = Watch(len(draws), plan.steps, device)
    each = zip(draws, records, strict=True)
    drawn = zip(*(one.batches(plan, count, privacy) for one, count in each), strict=True)
    clip_norm = privacy.clip_norm if privacy else math.inf
    for step, positions in enumerate(drawn, start=1):
        padded, present = _padded(positions, mlps.parameters[0])
        inputs, labels = batch_at(padded)
        size = present.sum(dim=1, keepdim=True)
        weight = present if privacy else present / size
        sums, logits = _passes(mlps, inputs, labels, weight, clip_norm, plan.precision)
        for parameter, one in zip(mlps.parameters, sums, strict=True):
            parameter.grad = _privatised(one, privacy, plan, draws) if privacy else one
        optimizer.step()
        losses = cross_entropy(logits.mT, labels, reduction="none").where(present > 0, 0.0)
        losses = losses.sum(dim=1)
        watch.see(step, losses)
        after_step(Progress(watch.going, step, (losses / size[:, 0]).nanmean()))
    return watch.reasons()


def _padded(positions: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (M, B) of all models, and 1 where there is one, else 0, as `like` is."""
    present = pad_sequence([torch.ones(len(one)) for one in positions], batch_first=True)
    return pad_sequence(list(positions), batch_first=True), present.to(like)


def _privatised(sums: Tensor, privacy: Privacy, plan: Plan, draws: Sequence[Draws]) -> Tensor:
    each = [
        privatise(one, privacy, plan.batch_size, own.noise)
        for one, own in zip(sums, draws, strict=True)
    ]
    return torch.stack(each)
