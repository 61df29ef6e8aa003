"""White-box signals of one model: its layers' gradients at a point to one score, higher = member.

A `GradientMetric` says which signal it sends back from the logits, what it wants to know of the
model's gradients at reference records before it scores any point, and how it scores. One small
file in ``conf/metric`` makes it a choice, like any other metric.

Two of them are new here. Training moves the weights along the gradients of the records that it
sees: θ = θ_0 + Σ_i c_i·∇φ(x_i), a kernel machine (Domingos 2020, arXiv 2012.00152) whose
coefficients are 0 for non-members. A `Representer` solves for the coefficient of a point: among
all records that look alike it finds the one that the weights really hold, where a loss is low for
all of them. φ is the scaled logit of the true class, softened by a temperature so that saturated
records still have a direction.

Axes: P points, T positions, F inputs and O outputs of a layer, C classes, N reference records.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mico_exp.common import require
from mico_exp.common.errors import InputError
from mico_exp.models.backprop import (
    Direction,
    Layer,
    Part,
    Sum,
    Trace,
    added,
    along,
    at,
    joined,
    squared_norms,
    summed,
    total,
    weights,
)
from mico_exp.scores.symmetric import Symmetric, kept_pairs, pairs


@dataclass(frozen=True, eq=False)
class View:
    """What a metric sees of one model at P points.

    trace: a forward pass. labels: (P,) int64. told: (P,) True where the record is among the known
    members that the metric was told as its reference; nowhere for a metric that is told none.
    whole: a view that it is some of, where in it the points are, and their name if they have one.
    """

    trace: Trace
    labels: Tensor
    told: Tensor
    whole: "tuple[View, Tensor, Hashable] | None" = None
    _sent: dict[float | None, list[Part]] = field(default_factory=dict)  # metrics share them

    def of_loss(self) -> list[Part]:
        """Parts with the signals of the cross-entropy."""
        return self._of(None)

    def of_logit(self, temperature: float) -> list[Part]:
        """Parts with the signals of φ_T."""
        return self._of(temperature)

    def _of(self, temperature: float | None) -> list[Part]:
        if temperature not in self._sent:
            self._sent[temperature] = self._back(temperature)
        return self._sent[temperature]

    def _back(self, temperature: float | None) -> list[Part]:
        if self.whole is not None:
            view, place, name = self.whole
            return at(view._of(temperature), place, name)
        about = self.trace.logits, self.labels
        signal = loss_signal(*about) if temperature is None else logit_signal(*about, temperature)
        return self.trace.back(signal)

    def at(self, place: Tensor, name: Hashable = None) -> "View":
        """View of some of the points, each once; named if other models have the same."""

        def back(signals: Tensor) -> list[Part]:
            every = signals.new_zeros(len(self.labels), signals.shape[1])
            return at(self.trace.back(every.index_copy(0, place, signals)), place, name)

        trace = Trace(self.trace.logits[place], back)
        return View(trace, self.labels[place], self.told[place], (self, place, name))


class GradientMetric(ABC):
    """A metric that asks for the gradients of one model.

    `score` is all that has to be written. What else it wants it says by the others, and by default
    it wants nothing. What other metrics there are is said at `metrics.LogitMetric`.

    reference: how many records of the data set it wants to see first, always the same ones; 0 for
        none and None for all.
    disclosed: they are to be the known members of the very model, where those are disclosed.
    dense: it looks at dense layers alone, those that are applied once to every point.
    """

    reference: int | None = 0
    disclosed: ClassVar[bool] = False
    dense: ClassVar[bool] = False

    @property
    def observation(self) -> Hashable:
        """Metrics for which this is equal share what `observe` gives back."""
        return self

    def observe(self, views: Iterable[View]) -> Any:  # noqa: ARG002
        """Look at the reference records, batch by batch."""
        return None

    def prepare(self, observed: Any, records: int) -> Any:  # noqa: ARG002
        """Give what `score` is to be given.

        Args:
            observed: what `observe` gave back.
            records: how many there are in the data set, or known members of the model.
        """
        return observed

    @abstractmethod
    def score(self, view: View, prepared: Any) -> Tensor:
        """Score (P,) of the points, higher = more member-like."""


def _check_reference(value: int | None) -> None:
    if value is not None:
        require.whole("reference", value, 1, other="null")


def loss_signal(logits: Tensor, labels: Tensor) -> Tensor:
    """∂ cross-entropy/∂ logits (P, C) = softmax(z) − one-hot(y).

    At y it is minus the sum of the others, which p_y − 1 would round to 0 for sure points.
    """
    index = labels.unsqueeze(-1)
    others = logits.softmax(dim=-1).scatter_(-1, index, 0.0)
    return others.scatter_(-1, index, -others.sum(dim=-1, keepdim=True))


def logit_signal(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """∂φ_T/∂z (P, C) of φ_T = z_y − T·logsumexp_{c≠y} z_c/T: 1 at y, −softmax(z/T) elsewhere.

    At T = 1 it is the scaled logit φ; a higher T looks at all wrong classes more alike.
    """
    index = labels.unsqueeze(-1)
    others = logits.scatter(-1, index, -torch.inf).div_(temperature)
    return others.softmax(dim=-1).neg_().scatter_(-1, index, 1.0)


class GradNorm(GradientMetric):
    """−‖∇_θ CE‖ over all parameters (Nasr et al. 2019, arXiv 1812.00910, §III)."""

    def score(self, view: View, prepared: None) -> Tensor:  # noqa: ARG002
        """Negated norm (P,) of each point's gradient."""
        return -squared_norms(view.of_loss()).sqrt()


class CanaryProjection(GradientMetric):
    """−⟨θ, ∇_θ CE(x)⟩ / ‖∇_θ CE(x)‖: how far the weights lie along the point's gradient.

    Training moves them against it. Where no other record's gradient has a part in that direction,
    as of a gradient canary, nothing else is in it but noise and initial weights, and it is the
    most that the weights tell of the point (Nasr et al. 2023, arXiv 2302.07956, of a step; here of
    the last model alone).
    """

    def score(self, view: View, prepared: None) -> Tensor:  # noqa: ARG002
        """Projection (P,) of the weights; 0 where there is no gradient."""
        layers = view.of_loss()
        norms = squared_norms(layers).sqrt()
        return -along(layers, weights(layers)) / norms.clamp(min=torch.finfo(norms.dtype).tiny)


class _Pull(NamedTuple):
    """Sum of the gradients of some records, and how many they are."""

    total: Sum
    records: int

    @classmethod
    def together(cls, pulls: Sequence["_Pull"]) -> "_Pull":
        """Of all records of some, in memory of its own."""
        return cls(added([one.total for one in pulls]), sum(one.records for one in pulls))


@dataclass(frozen=True)
class GradAlignment(GradientMetric):
    """−⟨∇_θ CE(x), mean ∇_θ CE(x′)⟩ over the reference records x′ of the point's own class.

    For a layer it is the mean of (a·a′)(δ·δ′) (Pruthi et al. 2020, arXiv 2002.08484, sum such
    products over training): taken pair by pair where that costs less than a product with the mean
    gradient, as it does of a class with few reference records. A record that training has not
    seen still pulls where others of its class pull. A class without reference records scores 0.
    """

    reference: int | None = 2000

    def __post_init__(self) -> None:
        _check_reference(self.reference)

    def observe(self, views: Iterable[View]) -> dict[int, _Pull]:
        """Sum of the gradients of every class."""
        found: dict[int, _Pull] = {}
        for view in views:
            here = {
                label: _Pull(summed(layers), len(points))
                for label, points, layers in _by_class(view)
            }
            if not found:
                found = here
                continue
            found = {
                label: _Pull.together([one[label] for one in (found, here) if label in one])
                for label in found | here
            }
        return found

    def score(self, view: View, prepared: dict[int, _Pull]) -> Tensor:
        """Negated inner product (P,) with the mean gradient of the class."""
        places, found = [], []
        for label, points, layers in _by_class(view):
            if label in prepared:
                pull = prepared[label]
                places.append(points)
                found.append(along(layers, pull.total).div_(-pull.records))
        scores = torch.zeros_like(view.trace.logits[:, 0])
        return scores.index_put_((torch.cat(places),), torch.cat(found)) if places else scores


def _by_class(view: View) -> Iterator[tuple[int, Tensor, list[Part]]]:
    """Every class, where its points are, and the layers there with the signals of the loss."""
    layers, labels = view.of_loss(), view.labels
    if (labels.diff() < 0).any():
        order = labels.argsort(stable=True)
        layers, labels = at(layers, order), labels[order]
    else:  # as they are mostly asked
        order = torch.arange(len(labels), device=labels.device)
    classes, counts = labels.unique_consecutive(return_counts=True)
    ends = counts.cumsum(dim=0).tolist()
    for label, start, end in zip(classes.tolist(), [0, *ends[:-1]], ends, strict=True):
        yield label, order[start:end], at(layers, slice(start, end))


def _dense(parts: Sequence[Part]) -> list[Layer]:
    """Layers that are applied once to every point.

    Raises:
        InputError: there is none.
    """
    found = [part for part in parts if isinstance(part, Layer) and part.is_dense]
    if not found:
        raise InputError("A representer needs a dense layer, and the model has none.")
    return found


@dataclass(frozen=True)
class _OfLogit(GradientMetric):
    """What representers share: gradients of φ_T by the dense layers, after a look at reference."""

    temperature: float = 2.0
    damping: float = 0.03
    reference: int | None = 2000
    dense = True

    def __post_init__(self) -> None:
        require.above("temperature", self.temperature, 0)
        require.above("damping", self.damping, 0)
        _check_reference(self.reference)

    def layers(self, view: View) -> list[Layer]:
        """Dense layers with the signals of φ_T."""
        return _dense(view.of_logit(self.temperature))


class Representer(_OfLogit):
    """⟨∇φ(x), v⟩/λ, v = what of the weights no reference record's gradient explains.

    With the reference records' gradients as rows of G, K = GGᵀ and λ = damping · mean K_ii, ridge
    regression of the weights θ on them has the coefficients c = (K + λ)⁻¹Gθ and leaves
    v = θ − Gᵀc = λ(GᵀG + λ)⁻¹θ. At a reference record ⟨g, v⟩/λ is its own coefficient. K costs
    N² inner products a layer, and its factorisation N³/3.

    The representer theorem's coefficients (Yeh et al. 2018, arXiv 1811.09720) of a network that
    is linearised at its weights. Exact, and best where the reference holds (nearly) all records
    that the model may have seen: it explains nothing away that is not there. By dense layers
    alone.
    """

    def observe(self, views: Iterable[View]) -> Direction:
        """Direction v / damping."""
        layers = joined([self.layers(view) for view in views])
        gram = Symmetric.of(
            [(layer.of_inputs(kept_pairs), pairs(layer.signals[:, 0])) for layer in layers]
        )
        products = along(layers, weights(layers)).double()
        coefficients = gram.solve(self.damping * gram.diagonal().mean(), products)
        explained = total(layers, coefficients.to(layers[0].inputs.dtype))
        return [
            (own - part) / self.damping
            for own, part in zip(weights(layers), explained, strict=True)
        ]

    def score(self, view: View, prepared: Direction) -> Tensor:
        """Coefficient (P,) of each point, times the mean of K_ii."""
        return along(self.layers(view), prepared)


class _Split(NamedTuple):
    """A direction (O, F) in a layer's bases, (o, f), and what of it they do not span, (O, F)."""

    inner: Tensor
    rest: Tensor | None

    def less(self, share: Tensor, other: "_Split") -> "_Split":
        """Without a share of another."""
        rest = None
        if self.rest is not None and other.rest is not None:
            rest = self.rest - share * other.rest
        return _Split(self.inner - share * other.inner, rest)


@dataclass(frozen=True, eq=False)
class _Factors:
    """One layer's A = mean aaᵀ and S = mean δδᵀ over reference records, as eigenvalues and bases.

    in_values: (f,), in_basis: (F, f), f < F where there are fewer records than inputs; so for the
    outputs. pull: (O, F) the sum of the records' gradients. weights: (O, F).
    """

    in_values: Tensor
    in_basis: Tensor
    out_values: Tensor
    out_basis: Tensor
    pull: Tensor
    weights: Tensor

    @classmethod
    def of(cls, layer: Layer) -> "_Factors":
        sides = layer.of_inputs(_eigen), _eigen(layer.signals[:, 0])
        return cls(*sides[0], *sides[1], layer.total(), layer.weights)

    @property
    def complete(self) -> bool:
        """The bases span everything."""
        return all(one.shape[0] == one.shape[1] for one in (self.in_basis, self.out_basis))

    @cached_property
    def split_weights(self) -> _Split:
        """The weights in the bases, whatever the damping."""
        return self._split(self.weights)

    @cached_property
    def split_pull(self) -> _Split:
        """The pull in the bases, whatever the damping."""
        return self._split(self.pull)

    def _split(self, direction: Tensor) -> _Split:
        inner = self.out_basis.T @ direction @ self.in_basis
        return _Split(inner, None if self.complete else direction - self.spanned(inner))

    def spanned(self, inner: Tensor) -> Tensor:
        """Direction (O, F) of coordinates (o, f)."""
        return self.out_basis @ inner @ self.in_basis.T


@dataclass(frozen=True, eq=False)
class _Curvature:
    """(N·A⊗S + μ)⁻¹ of one layer in its factors' bases.

    inverse: (o, f) of the eigenvalues. damping: μ, by which all else is divided.
    """

    factors: _Factors
    inverse: Tensor
    damping: Tensor

    @classmethod
    def of(cls, factors: _Factors, records: int, damping: Tensor) -> "_Curvature":
        values = factors.out_values[:, None] * factors.in_values
        return cls(factors, 1 / (records * values + damping), damping)

    @property
    def complete(self) -> bool:
        """The bases span everything."""
        return self.factors.complete

    def whiten(self, split: _Split) -> Tensor:
        """Apply to a direction; (O, F)."""
        found = self.factors.spanned(split.inner * self.inverse)
        return found if split.rest is None else found + split.rest / self.damping

    def product(self, one: _Split, other: _Split) -> Tensor:
        """⟨one, whitened other⟩."""
        found = (one.inner * other.inner * self.inverse).sum()
        if one.rest is None or other.rest is None:
            return found
        return found + (one.rest * other.rest).sum() / self.damping

    def leverage(self, layer: Layer) -> Tensor:
        """⟨g, whitened g⟩ (P,) of every point."""
        inputs, signals = layer.inputs[:, 0], layer.signals[:, 0]
        a = (inputs @ self.factors.in_basis).square()
        d = (signals @ self.factors.out_basis).square()
        inside = a.sum(dim=1) * d.sum(dim=1)
        outside = (layer.squared_norms() - inside).clamp(min=0) / self.damping
        found = ((d @ self.inverse) * a).sum(dim=1)
        return found if self.complete else found + outside


def _eigen(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (f,) and basis (F, f) of the mean outer product of rows (N, F), f ≤ F, N."""
    count, width = rows.shape
    if count >= width:
        values, basis = torch.linalg.eigh(rows.T @ rows / count)
        return values.clamp(min=0), basis
    _, singular, basis = torch.linalg.svd(rows, full_matrices=False)
    return singular.square() / count, basis.T


@dataclass(frozen=True, eq=False)
class _Whitened:
    """What a `Kronecker` representer knows of a model.

    direction: to project a point's gradient on. curvatures: of the layers. own: what a record of
    the reference has put into the mean gradient that was taken out, in units of its leverage.
    scale: of the scores.
    """

    direction: Direction
    curvatures: list[_Curvature]
    own: Tensor
    scale: Tensor


class Kronecker(_OfLogit):
    """⟨∇φ(x), (N·F + λ)⁻¹(θ − κ·ḡ)⟩: a representer for any number of records, by K-FAC.

    F, the mean of gᵢgᵢᵀ over reference records, is taken for A⊗S, layer by layer (Martens &
    Grosse 2015, arXiv 1503.05671, eq. 1), which two small eigenproblems invert, whatever N. From
    the whitened weights their projection on the whitened mean gradient ḡ is taken out: κ is what
    least squares gives. λ = damping · mean ‖g‖². By dense layers alone.

    A low damping suits models without noise; the more noise in the weights, the higher.
    """

    @property
    def observation(self) -> Hashable:
        """Whatever the damping, the same is seen."""
        return Kronecker, self.temperature, self.reference, self.disclosed

    def observe(self, views: Iterable[View]) -> tuple[list[_Factors], Tensor]:
        """Factors of the layers, and the mean of ‖g‖²."""
        layers = joined([self.layers(view) for view in views])
        return [_Factors.of(layer) for layer in layers], squared_norms(layers).mean()

    def prepare(self, observed: tuple[list[_Factors], Tensor], records: int) -> _Whitened:
        """Whitened direction."""
        factors, scale = observed
        curvatures = [_Curvature.of(one, records, self.damping * scale) for one in factors]
        own, pull = [one.split_weights for one in factors], [one.split_pull for one in factors]
        share = _product(curvatures, pull, own) / _product(curvatures, pull, pull)
        direction = [
            one.whiten(weight.less(share, pulled))
            for one, weight, pulled in zip(curvatures, own, pull, strict=True)
        ]
        return _Whitened(direction, curvatures, share, scale)

    def score(self, view: View, prepared: _Whitened) -> Tensor:
        """Coefficient (P,) of each point, times the mean of ‖g‖²."""
        return along(self.layers(view), prepared.direction) * prepared.scale


def _product(
    curvatures: Sequence[_Curvature], one: Sequence[_Split], other: Sequence[_Split]
) -> Tensor:
    """⟨one, whitened other⟩ over all layers."""
    parts = zip(curvatures, one, other, strict=True)
    return torch.stack([curvature.product(a, b) for curvature, a, b in parts]).sum()


class DisclosedKronecker(Kronecker):
    """As `Kronecker` (K-FAC, arXiv 1503.05671), with the model's own known members as reference.

    Where a training set is disclosed but for the challenge points, what its known members have
    put into the weights is a nuisance, and their mean gradient says where it points. A point that
    is itself among them is not taken out of its own score.
    """

    disclosed = True

    def score(self, view: View, prepared: _Whitened) -> Tensor:
        """Coefficient (P,) of each point, times the mean of ‖g‖²."""
        layers = self.layers(view)
        found = along(layers, prepared.direction)
        if view.told.any():
            parts = zip(prepared.curvatures, layers, strict=True)
            leverages = [one.leverage(layer.at(view.told)) for one, layer in parts]
            leverage = torch.stack(leverages).sum(dim=0)
            found[view.told] += prepared.own * leverage
        return found * prepared.scale
