"""Files that appear whole or not at all, and locks, on disks that refuse."""

import errno
import fcntl
import multiprocessing
import os

import pytest

from mico_exp.common import atomic
from mico_exp.common.errors import InputError


def file_for_a_folder(place):
    (place / "file").write_text("x")
    return place / "file" / "inside.bin"


def folder_for_a_file(place):
    (place / "folder" / "full").mkdir(parents=True)
    return place / "folder"


def dangling(place):
    (place / "link").symlink_to(place / "nowhere" / "at" / "all")
    return place / "link" / "inside.bin"


def too_long(place):
    return place / ("x" * 300)


REFUSED = {
    file_for_a_folder: "Not a directory",
    folder_for_a_file: "Is a directory",
    dangling: "{0}/link is a link to {0}/nowhere/at/all, which is not there",
    too_long: "File name too long",
}


@pytest.mark.parametrize("make", REFUSED)
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, make):
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as failed:
        atomic.write_bytes(path, b"content")
    reason = REFUSED[make].format(tmp_path)
    assert str(failed.value) == f"{path} cannot be written: {reason}."
    assert sorted(tmp_path.rglob("*")) == before


def test_files_written_together_are_all_there_or_none(tmp_path):
    first, second = tmp_path / "a.zip", tmp_path / "b.json"
    atomic.write_together({first: b"1", second: b"2"})
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")
    with pytest.raises(InputError, match="cannot be written"):
        atomic.write_together({first: b"3", too_long(tmp_path): b"4"})
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")
    assert sorted(tmp_path.iterdir()) == [first, second]


def _try(lock, queue):
    holder = atomic.lock_of(lock)
    holder.acquire(timeout=0)
    queue.put("held")
    holder.release()


def _is_held(lock):
    """Whether another process finds the lock held."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    other = context.Process(target=_try, args=(lock, queue))
    other.start()
    other.join(60)
    return other.exitcode != 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_lock_holds_whether_or_not_the_file_system_has_any(tmp_path, monkeypatch, number, capfd):
    """No file system without locks is here, so its refusal is."""
    if number is not None:

        def refused(file, *_):
            # NFS asks for a file that is open for reading and writing, or says EBADF
            way = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
            found = number if way == os.O_RDWR else errno.EBADF
            raise OSError(found, os.strerror(found))

        monkeypatch.setattr(fcntl, "flock", refused)
    lock = tmp_path / "place" / ".lock"
    for _ in range(2):  # it is free again
        with atomic.exclusive(lock, "testing"):
            assert _is_held(lock)
    assert not _is_held(lock)


def test_a_folder_is_tried_before_long_work(tmp_path):
    atomic.check_writable(tmp_path / "new" / "place")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file cannot be written into: Not a directory"):
        atomic.check_writable(tmp_path / "file")
