"""Files and folders that appear whole or not at all, however the process ends."""

import errno
import io
import logging
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from numpy.typing import NDArray

from mico_exp.common import signals
from mico_exp.common.errors import InputError, first_line

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}  # Lustre, some FUSE, NFS


def write_bytes(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write `content` to `path` under a temporary name beside it, then rename.

    `durable` waits until the bytes are on the disk; leave it out only for what can be detected
    as torn and made again.

    Raises:
        InputError: the path cannot be written.
    """
    _rename(_write_aside(path, content, durable), path)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write several files, as `write_bytes` does: all lie on the disk before any is renamed.

    Raises:
        InputError: one of them cannot be written.
    """
    written: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            written[path] = _write_aside(path, content, durable=True)
        with signals.whole():
            for path, temporary in written.items():
                _rename(temporary, path)
    finally:
        for temporary in written.values():
            _remove(temporary)


def check_writable(folder: Path) -> None:
    """Try whether a folder can be written into, or made, before long work; nothing is left there.

    Raises:
        InputError: it cannot.
    """
    place = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    probe = _temporary(place / "probe")
    try:
        _created(probe).close()
    except OSError as error:
        raise InputError(f"{folder} cannot be written into: {error.strerror}.") from error
    finally:
        _remove(probe)


def _write_aside(path: Path, content: bytes | memoryview, durable: bool) -> Path:
    with _aside(path) as (temporary, file):
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    return temporary


@contextmanager
def _aside(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Give a new file beside `path`, and its name; it goes again where anything fails."""
    temporary = _temporary(path)
    try:
        with _created(temporary) as file:
            yield temporary, file
    except OSError as error:
        _remove(temporary)
        raise _unwritable(path, error) from error
    except BaseException:
        _remove(temporary)
        raise


def _rename(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or first_line(error)
    for place in path.parents:
        if place.is_symlink() and not place.exists():  # else it would say that a file exists
            reason = f"{place} is a link to {os.readlink(place)}, which is not there"
    return InputError(f"{path} cannot be written: {reason}.")


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _created(path: Path) -> BinaryIO:
    """Open a new file for writing, and make its folder where there is none yet."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _temporary(path: Path) -> Path:
    """Name for an unfinished `path`; made as usual, so that the user's umask holds."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def write_text(path: Path, content: str, *, durable: bool = True) -> None:
    """Write `content` as UTF-8 to `path`, as `write_bytes` does."""
    write_bytes(path, content.encode(), durable=durable)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write `array` to `path` in NumPy's format, as `write_bytes` does."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue(), durable=False)


def write_rows(path: Path, rows: Iterable[NDArray[Any]], count: int) -> None:
    """Write `count` arrays of equal shape and type as one, as they come, as `write_array` does."""
    rest = iter(rows)
    first = next(rest)
    kept = {"descr": first.dtype.str, "fortran_order": False, "shape": (count, *first.shape)}
    with _aside(path) as (temporary, file):
        np.lib.format.write_array_header_2_0(file, kept)
        for row in chain([first], rest):
            file.write(np.ascontiguousarray(row).data)
    _rename(temporary, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends without an error.

    `path` must not exist. What a killed process left under a temporary name is never taken for
    a finished folder, because the name starts with a dot.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        os.rename(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _unwritable(path, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writers left under temporary names anywhere in `folder`."""
    for leftover in list(folder.rglob(".*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def exclusive(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock between processes on this machine; say so when another one has it.

    The operating system frees it when its holder ends, by whatever cause; where there are no locks,
    the next one does that sees that its holder is gone.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        holder = lock_of(lock)
        holder.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process that is %s (by %s)", doing, holder.lock_file)
        holder.acquire()
    except OSError as error:
        raise _unwritable(lock, error) from error
    try:
        yield
    finally:
        holder.release()


def lock_of(path: Path) -> BaseFileLock:
    """Make a lock; where the file system has none, by a file that is there while it is held."""
    path.touch()  # with the mode that the umask wants, so that a group can share it
    mode = stat.S_IMODE(path.stat().st_mode)
    if _can_be_locked(path):
        return FileLock(path, mode=mode)
    return SoftFileLock(path.with_name(f"{path.name}.held"), mode=mode)


def _can_be_locked(path: Path) -> bool:
    """Try whether the file system knows locks at all, by whomever this one is held."""
    if sys.platform == "win32":
        return True
    with path.open("a+b") as file:  # NFS asks for both, to say what it cannot do
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in NO_LOCKS
    return True
