"""Matrices of all pairs of records: the lower half alone, in panels, and solved in two precisions.

Axes: N records, F numbers of each, B records of a panel.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PANEL = 96  # records
REFINEMENTS = 12  # steps of a refined solution
REFINED = 1e-5  # of the right side, what may be left before the last of them, which takes as much


def pairs(rows: Tensor) -> Iterator[Tensor]:
    """Inner products of rows (N, F): the lower half in block columns (N − k, B), k = 0, B, 2B."""
    for k in range(0, len(rows), PANEL):
        yield rows[k:] @ rows[k : k + PANEL].T


def kept_pairs(rows: Tensor) -> list[Tensor]:
    """The same, all of them."""
    return list(pairs(rows))


@dataclass(frozen=True, eq=False)
class Symmetric:
    """A symmetric positive definite (N, N), as block columns of its lower half, as `pairs` has."""

    panels: list[Tensor]

    @classmethod
    def of(cls, products: Sequence[tuple[Iterable[Tensor], Iterable[Tensor]]]) -> "Symmetric":
        """Sum of elementwise products, panel by panel; the second ones are overwritten."""
        panels = []
        for parts in zip(*(zip(*both, strict=True) for both in products), strict=True):
            (one, found), *others = parts
            found.mul_(one)
            for one, other in others:
                found.addcmul_(one, other)
            panels.append(found)
        return cls(panels)

    def _placed(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Every panel with its columns, and the rows below its square."""
        start, count = 0, len(self.panels[0])
        for panel in self.panels:
            end = start + panel.shape[1]
            yield slice(start, end), slice(end, count), panel
            start = end

    def diagonal(self) -> Tensor:
        """(N,) in float64."""
        return torch.cat([panel.diagonal() for panel in self.panels]).double()

    def times(self, vector: Tensor) -> Tensor:
        """Product with a vector (N,), in float64."""
        found = torch.zeros_like(vector)
        for columns, below, panel in self._placed():
            whole = panel.double()
            square, rest = whole[: panel.shape[1]], whole[panel.shape[1] :]
            found[columns] += square @ vector[columns] + rest.T @ vector[below]
            found[below] += rest @ vector[columns]
        return found

    def cholesky(self, ridge: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Lower factor (N, N) of the matrix with a ridge; None if that is not definite.

        What is above the diagonal is anything.
        """
        count = len(self.panels[0])
        factor = self.panels[0].new_empty(count, count, dtype=dtype)
        for columns, below, panel in self._placed():
            done = factor[:, : columns.start]
            rest = panel.to(dtype, copy=True)
            rest.diagonal().add_(ridge)
            rest.addmm_(done[columns.start :], done[columns].T, alpha=-1)
            square, rest = rest[: panel.shape[1]], rest[panel.shape[1] :]
            corner, failed = torch.linalg.cholesky_ex(square)
            if failed:
                return None
            factor[columns, columns] = corner
            eye = torch.eye(len(corner)).to(corner)
            inverse = torch.linalg.solve_triangular(corner, eye, upper=False)
            torch.mm(rest, inverse.T, out=factor[below, columns])
        return factor

    def solve(self, ridge: Tensor, right: Tensor) -> Tensor:
        """(K + ridge)⁻¹ right (N,) in float64.

        Of a K in float32 the factor is taken in float32, which is twice as quick, and the solution
        then refined in float64 until nothing is left (Higham 2002, Accuracy and Stability of
        Numerical Algorithms, §12.1). Where that does not come to an end, for a very low ridge, the
        factor is taken in float64.

        Raises:
            ValueError: the matrix with its ridge is not positive definite.
        """
        for dtype in dict.fromkeys([self.panels[0].dtype, torch.float64]):
            if (factor := self.cholesky(ridge, dtype)) is None:
                continue
            found = _solved(factor, right)
            for _ in range(REFINEMENTS):
                rest = right - self.times(found) - ridge * found
                found = found + _solved(factor, rest)
                if rest.norm() <= REFINED * right.norm():  # and as much less now
                    return found
        if factor is None:
            raise ValueError("the matrix of inner products with its ridge is not positive definite")
        return found


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    half = torch.linalg.solve_triangular(factor, right.to(factor.dtype)[:, None], upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)[:, 0].double()
