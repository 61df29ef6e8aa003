"""Files and folders that appear whole or not at all, however the process ends."""

import errno
import io
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mico_exp.common.errors import InputError

log = logging.getLogger(__name__)
FULL = {errno.ENOSPC, errno.EDQUOT}


def write_bytes(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write `content` to `path` under a temporary name beside it, then rename.

    `durable` waits until the bytes are on the disk; leave it out only for what can be detected
    as torn and made again.
    """
    temporary = _temporary(path)
    try:
        with _created(temporary) as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in FULL:
            raise InputError(f"{path} cannot be written: {error.strerror}.") from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends without an error.

    `path` must not exist. What a killed process left under a temporary name is never taken for
    a finished folder, because the name starts with a dot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        os.rename(temporary, path)
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

    The operating system frees it when its holder ends, by whatever cause.
    """
    holder = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        holder.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process that is %s", doing)
        holder.acquire()
    except OSError as error:
        if error.errno in FULL:
            raise InputError(f"{lock} cannot be written: {error.strerror}.") from error
        raise
    try:
        yield
    finally:
        holder.release()
