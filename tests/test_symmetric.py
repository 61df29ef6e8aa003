"""Half matrices in panels against the whole ones, written out."""

import pytest
import torch

from mico_exp.scores import symmetric
from mico_exp.scores.symmetric import Symmetric, pairs

COUNT = 23


@pytest.fixture(autouse=True)
def small_panels(monkeypatch):
    monkeypatch.setattr(symmetric, "PANEL", 7)


def made(dtype, spread=1.0):
    """A sum of products of two layers' inner products: in panels, and whole in float64."""
    torch.manual_seed(0)
    rows = [torch.randn(COUNT, 9, dtype=dtype) * spread for _ in range(4)]
    whole = sum((a @ a.T) * (b @ b.T) for a, b in (rows[:2], rows[2:]))
    halves = [(pairs(a), pairs(b)) for a, b in (rows[:2], rows[2:])]
    return Symmetric.of(halves), whole.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_and_the_diagonal_are_those_of_the_whole(dtype):
    matrix, whole = made(dtype)
    vector = torch.randn(COUNT, dtype=torch.float64)
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(matrix.diagonal(), whole.diagonal(), **close)
    torch.testing.assert_close(matrix.times(vector), whole @ vector, **close)


@pytest.mark.parametrize("ridge", [3.0, 1e-2, 1e-7])
def test_a_solution_in_float32_is_as_exact_as_in_float64(ridge):
    """Also where float32 cannot factorise it: N is more than the rank of the first product."""
    matrix, _ = made(torch.float32)
    eye = torch.eye(COUNT, dtype=torch.float64)
    whole = torch.stack([matrix.times(row) for row in eye], dim=1)  # as rounded, bit by bit
    right = torch.randn(COUNT, dtype=torch.float64)
    shift = torch.tensor(ridge, dtype=torch.float64)
    found = matrix.solve(shift, right)
    rest = (whole + ridge * eye) @ found - right
    assert rest.norm() <= 1e-10 * right.norm()


def test_the_factor_is_choleskys():
    matrix, whole = made(torch.float64)
    ridge = torch.tensor(0.5, dtype=torch.float64)
    expected = torch.linalg.cholesky(whole + 0.5 * torch.eye(COUNT, dtype=torch.float64))
    torch.testing.assert_close(matrix.cholesky(ridge, torch.float64).tril(), expected)


def test_what_is_not_definite_is_said():
    matrix, _ = made(torch.float32)
    with pytest.raises(ValueError, match="is not positive definite"):
        matrix.solve(torch.tensor(-1e3, dtype=torch.float64), torch.ones(COUNT).double())
