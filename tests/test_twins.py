"""Copies and near copies of records, beside a literal look at every pair."""

import numpy as np
import pytest
import torch

from mico_exp.challenge import twins
from mico_exp.challenge.datasets import Features, Sentences

DRAW = np.random.default_rng(0)


def numbers(count=120, width=8):
    """Rows, of which some are there twice and some nearly."""
    rows = np.random.default_rng(1).normal(size=(count, width)).astype(np.float32)
    rows[7], rows[90] = rows[3], rows[3]
    rows[11] = rows[40] + 1e-3
    return Features(torch.from_numpy(rows), torch.zeros(count, dtype=torch.int64))


def sentences():
    """Texts of unequal lengths: 0 and 5 are the same, 2 has nine tokens of the ten of 1."""
    texts = [[1, 2, 3], list(range(10)), list(range(9)), [4, 5], [20, 21, 22, 23], [1, 2, 3]]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in texts])])
    tokens = np.concatenate(texts).astype(np.int32)
    return Sentences(tokens, starts, torch.zeros(len(texts), dtype=torch.int64), pad=0), texts


def test_groups_are_of_equal_rows():
    records = numbers()
    found = twins.groups(records)
    rows = records.features.numpy()
    same = (rows[:, None] == rows[None]).all(axis=2)
    assert np.array_equal(found.of[:, None] == found.of[None], same)
    assert np.array_equal(found.of[found.first], np.arange(118))
    assert found.looked_at == 120
    members = np.zeros(120, dtype=bool)
    members[[7, 50]] = True
    assert np.flatnonzero(found.trained_on(members)[found.of]).tolist() == [3, 7, 50, 90]


def test_near_numbers_by_every_pair():
    records = numbers()
    found = twins.groups(records)
    near = twins.near(records, found, np.arange(120))
    rows = records.features.numpy()[found.first].astype(np.float64)
    distance = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(axis=2))
    np.fill_diagonal(distance, np.inf)
    expected = np.argwhere(distance <= 0.2 * np.median(distance.min(axis=1)))
    assert sorted(map(tuple, near.pairs)) == sorted(map(tuple, expected))
    assert len(expected) == 2
    assert near.compared.tolist() == list(range(118))
    groups = np.zeros(118, dtype=bool)
    groups[found.of[40]] = True
    assert np.flatnonzero(near.to(groups)).tolist() == [found.of[11]]


def test_near_texts_by_every_pair():
    """Whatever a batch is padded with."""
    records, texts = sentences()
    found = twins.groups(records)
    assert found.of.tolist() == [0, 1, 2, 3, 4, 0]
    near = twins.near(records, found, np.arange(6))
    expected = [
        (i, j)
        for i in range(5)
        for j in range(5)
        if i != j and len({*texts[i]} & {*texts[j]}) >= 0.8 * len({*texts[i]} | {*texts[j]})
    ]
    assert sorted(map(tuple, near.pairs)) == expected == [(1, 2), (2, 1)]


@pytest.mark.parametrize("width", [2, 500])
def test_what_is_only_dense_is_not_near(width):
    rows = torch.from_numpy(DRAW.normal(size=(400, width)).astype(np.float32))
    records = Features(rows, torch.zeros(400, dtype=torch.int64))
    near = twins.near(records, twins.groups(records), np.arange(400))
    assert len({*near.pairs[:, 0].tolist()}) <= 0.05 * 400


def test_large_records_are_looked_at_evenly(monkeypatch):
    records = numbers()
    monkeypatch.setattr(twins, "LOOKED_BYTES", 30 * 8 * 4)
    monkeypatch.setattr(twins, "PRODUCTS", 20 * 30 * 8)
    found = twins.groups(records)
    assert found.looked_at == 30
    assert np.flatnonzero(found.of != twins.UNSEEN)[[0, -1]].tolist() == [0, 119]
    near = twins.near(records, found, np.arange(60))
    assert 0 < len(near.compared) <= 30
    assert near.others <= 30
