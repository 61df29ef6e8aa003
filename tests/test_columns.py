import numpy as np
import pytest

from mico_exp.scores.store import EMPTY, Address, Column, ScoreStore

ADDRESS = Address("digits/digits_inf", "train", "model_7", "loss", "a" * 64)


@pytest.fixture
def store(tmp_path):
    return ScoreStore(tmp_path)


def test_a_column_comes_back(store):
    column = Column(np.array([2, 5, 9]), np.array([0.5, -1.0, 1e-300]))
    store.write(ADDRESS, column)
    found = store.read(ADDRESS)
    assert np.array_equal(found.points, column.points)
    assert np.array_equal(found.scores, column.scores)
    assert found.at(np.array([[9, 2], [5, 5]])).tolist() == [[1e-300, 0.5], [-1.0, -1.0]]
    assert found.lacks(np.array([1, 2, 9, 10])).tolist() == [1, 10]


def test_another_key_is_another_column(store):
    store.write(ADDRESS, Column(np.array([1]), np.array([1.0])))
    other = Address("digits/digits_inf", "train", "model_7", "loss", "b" * 64)
    assert store.read(other) is EMPTY
    same_name = Address("digits/digits_inf", "train", "model_7", "loss", "a" * 16 + "b" * 48)
    assert store.path(same_name) == store.path(ADDRESS)
    assert store.read(same_name) is EMPTY


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_a_torn_file_counts_as_missing(store, cut, caplog):
    store.write(ADDRESS, Column(np.arange(100), np.arange(100.0)))
    path = store.path(ADDRESS)
    path.write_bytes(path.read_bytes()[:cut])
    assert store.read(ADDRESS) is EMPTY
    assert str(path) in caplog.text


def test_a_file_of_another_kind_counts_as_missing(store):
    store.write(ADDRESS, Column(np.arange(3), np.arange(3.0)))
    np.save(store.path(ADDRESS).with_suffix(".npy"), np.arange(3))
    store.path(ADDRESS).with_suffix(".npy").rename(store.path(ADDRESS))
    assert store.read(ADDRESS) is EMPTY


def test_a_flipped_bit_counts_as_missing(store):
    store.write(ADDRESS, Column(np.arange(100), np.arange(100.0)))
    path = store.path(ADDRESS)
    content = bytearray(path.read_bytes())
    where = content.index(np.float64(57.0).tobytes())
    content[where + 7] ^= 1
    path.write_bytes(content)
    assert store.read(ADDRESS) is EMPTY


def test_a_flipped_bit_anywhere_gives_no_wrong_score(store):
    column = Column(np.arange(5), np.arange(5.0))
    store.write(ADDRESS, column)
    path = store.path(ADDRESS)
    content, refused = path.read_bytes(), 0
    for where in range(len(content)):
        for bit in (1, 32):
            damaged = bytearray(content)
            damaged[where] ^= bit
            path.write_bytes(damaged)
            found = store.read(ADDRESS)
            if len(found.points):  # the bit means nothing
                assert np.array_equal(found.points, column.points)
                assert np.array_equal(found.scores, column.scores)
            else:
                refused += 1
    assert refused > len(content)  # most bits mean something


def test_columns_merge_in_order():
    merged = Column(np.array([1, 5]), np.array([0.1, 0.5])).merged(
        Column(np.array([0, 3, 9]), np.array([0.0, 0.3, 0.9]))
    )
    assert merged.points.tolist() == [0, 1, 3, 5, 9]
    assert merged.scores.tolist() == [0.0, 0.1, 0.3, 0.5, 0.9]
