from pathlib import Path

import numpy as np
import pytest

from mico_exp.common.errors import InputError
from mico_exp.scores import store as module
from mico_exp.scores.store import EMPTY, Address, Column, ScoreStore

ADDRESS = Address("digits/digits_inf", "train", "model_7", "loss", "a" * 64, "p" * 64)


@pytest.fixture
def store(tmp_path):
    return ScoreStore(tmp_path)


def write_alone(store, address, column):
    """As stores used to have it: a file for each column."""
    path = store.path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    points = column.points.astype(np.uint32)
    np.savez(path, key=np.array(address.key), points=points, scores=column.scores)


def test_a_column_comes_back(store):
    column = Column(np.array([2, 5, 9]), np.array([0.5, -1.0, 1e-300]))
    write_alone(store, ADDRESS, column)
    found = store.read(ADDRESS)
    assert np.array_equal(found.points, column.points)
    assert np.array_equal(found.scores, column.scores)
    assert found.at(np.array([[9, 2], [5, 5]])).tolist() == [[1e-300, 0.5], [-1.0, -1.0]]
    assert found.lacks(np.array([1, 2, 9, 10])).tolist() == [1, 10]


def test_another_key_is_another_column(store):
    write_alone(store, ADDRESS, Column(np.array([1]), np.array([1.0])))
    other = Address("digits/digits_inf", "train", "model_7", "loss", "b" * 64, "p" * 64)
    assert store.read(other) is EMPTY
    same_name = Address(
        "digits/digits_inf", "train", "model_7", "loss", "a" * 16 + "b" * 48, "p" * 64
    )
    assert store.path(same_name) == store.path(ADDRESS)
    assert store.read(same_name) is EMPTY


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_a_torn_file_counts_as_missing(store, cut, caplog):
    write_alone(store, ADDRESS, Column(np.arange(100), np.arange(100.0)))
    path = store.path(ADDRESS)
    path.write_bytes(path.read_bytes()[:cut])
    assert store.read(ADDRESS) is EMPTY
    assert str(path) in caplog.text


def test_a_file_of_another_kind_counts_as_missing(store):
    write_alone(store, ADDRESS, Column(np.arange(3), np.arange(3.0)))
    np.save(store.path(ADDRESS).with_suffix(".npy"), np.arange(3))
    store.path(ADDRESS).with_suffix(".npy").rename(store.path(ADDRESS))
    assert store.read(ADDRESS) is EMPTY


def test_a_flipped_bit_counts_as_missing(store):
    write_alone(store, ADDRESS, Column(np.arange(100), np.arange(100.0)))
    path = store.path(ADDRESS)
    content = bytearray(path.read_bytes())
    where = content.index(np.float64(57.0).tobytes())
    content[where + 7] ^= 1
    path.write_bytes(content)
    assert store.read(ADDRESS) is EMPTY


def test_a_flipped_bit_anywhere_gives_no_wrong_score(store):
    column = Column(np.arange(5), np.arange(5.0))
    write_alone(store, ADDRESS, column)
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


def addressed(model, key="a"):
    return Address("digits/digits_inf", "train", model, "loss", key * 64, "p" * 64)


def some_columns():
    shared = np.array([1, 4, 6])
    return {
        addressed("model_0"): Column(shared, np.array([0.1, 0.4, 0.6])),
        addressed("model_1"): Column(shared.copy(), np.array([1.1, 1.4, np.nan])),
        addressed("model_2"): Column(np.array([2]), np.array([2.2])),
    }


def same(found, columns):
    return all(
        np.array_equal(one.points, columns[address].points)
        and np.array_equal(one.scores, columns[address].scores, equal_nan=True)
        for address, one in found.items()
    )


def test_columns_come_back_from_parts_and_from_their_pack(store):
    columns = some_columns()
    for address, column in columns.items():
        store.write({address: column})
    assert same({address: store.read(address) for address in columns}, columns)
    parts = list(store.folder.rglob("*.npz"))
    assert len(parts) == 3
    store.pack(list(columns))
    (pack,) = store.folder.rglob("*.npz")
    assert pack == store.pack_path(next(iter(columns)))
    fresh = ScoreStore(store.folder)
    assert same({address: fresh.read(address) for address in columns}, columns)
    wanted = [column.points for column in columns.values()]
    assert same(dict(zip(columns, fresh.read_all(list(columns), wanted), strict=True)), columns)


def test_a_pack_takes_new_points_and_keeps_the_columns_of_others(store):
    columns = some_columns()
    store.write(columns)
    store.pack(list(columns))
    first, changed = addressed("model_0"), addressed("model_2", "b")
    store.write({first: Column(np.array([4, 5]), np.array([9.9, 0.5]))})  # 4 is there already
    store.write({changed: Column(np.array([2]), np.array([-2.0]))})
    store.pack([first, addressed("model_1"), changed])
    columns[first] = Column(np.array([1, 4, 5, 6]), np.array([0.1, 0.4, 0.5, 0.6]))
    columns[changed] = Column(np.array([2]), np.array([-2.0]))
    assert same({address: store.read(address) for address in columns}, columns)
    assert len(list(store.folder.rglob("*.npz"))) == 1


@pytest.mark.parametrize("when", ["before the pack is there", "before its parts are gone"])
def test_packing_may_end_at_any_moment(store, when, monkeypatch):
    columns = some_columns()
    store.write(columns)
    if when == "before the pack is there":
        monkeypatch.setattr(module, "write_bytes", interrupt)
    else:
        monkeypatch.setattr(Path, "unlink", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.pack(list(columns))
    monkeypatch.undo()
    again = ScoreStore(store.folder)
    assert same({address: again.read(address) for address in columns}, columns)
    again.pack(list(columns))
    assert len(list(store.folder.rglob("*.npz"))) == 1
    assert same({address: again.read(address) for address in columns}, columns)


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_parts_stay_where_a_pack_cannot_be_written(store, monkeypatch, caplog):
    columns = some_columns()
    store.write(columns)

    def full(path, content, *, durable=True):
        raise InputError(f"{path} cannot be written: No space left on device.")

    monkeypatch.setattr(module, "write_bytes", full)
    store.pack(list(columns))
    assert "No space left on device. What is in its parts is not lost." in caplog.text
    assert same({address: store.read(address) for address in columns}, columns)


def test_a_part_that_is_packed_while_it_is_read(store, monkeypatch):
    """By another process, between the look at the folder and at the file."""
    columns = some_columns()
    store.write(columns)
    real = module._read_pack

    def packed_meanwhile(path):
        monkeypatch.setattr(module, "_read_pack", real)
        ScoreStore(store.folder).pack(list(columns))
        return real(path)

    monkeypatch.setattr(module, "_read_pack", packed_meanwhile)
    assert same({address: store.read(address) for address in columns}, columns)


def test_a_flipped_bit_in_a_pack_gives_no_wrong_score(store, caplog):
    columns = some_columns()
    store.write(columns)
    store.pack(list(columns))
    path, refused = store.pack_path(next(iter(columns))), 0
    content = path.read_bytes()
    for where in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[where] ^= 16
        path.write_bytes(damaged)
        found = {address: store.read(address) for address in columns}
        if all(len(one.points) for one in found.values()):  # the bit means nothing
            assert same(found, columns)
        else:
            assert not any(len(one.points) for one in found.values())
            refused += 1
    assert refused > len(content) / 6
    assert "is damaged and will be computed anew" in caplog.text
