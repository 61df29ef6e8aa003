"""The competition's archives: checked by MD5, and unpacked nowhere but where they belong.

Whatever folders an archive wraps them in, its scenarios (``cifar10_inf``, …) end up directly in
the challenge's folder.
"""

import hashlib
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from mico_exp.challenge.phases import PHASES
from mico_exp.common.atomic import exclusive
from mico_exp.common.errors import InputError, first_line

CHUNK = 1 << 22
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    UnicodeDecodeError,  # in a name
    RuntimeError,  # what zipfile cannot do, as decrypting
)
TAR_GROWTH = 1.2  # weights hardly compress, and a .tar.gz tells no sizes without reading it all


def verify_md5(path: Path, expected: str) -> None:
    """Compare a file's MD5 with the published one.

    Raises:
        InputError: they differ: the file is incomplete, damaged or another one.
    """
    digest = hashlib.md5(usedforsecurity=False)
    size = path.stat().st_size
    title = f"Checking {path.name}"
    with (
        path.open("rb") as file,
        tqdm(total=size, desc=title, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected:
        raise InputError(
            f"{path}: MD5 must be {expected}, got {digest.hexdigest()} ({size:,} bytes): the file "
            "is incomplete, damaged or another one."
        )


def unpacked_size(path: Path) -> int:
    """Bytes that an archive needs on disk: exact for a zip, estimated for a tar."""
    if zipfile.is_zipfile(path):
        with _refusing(path), zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    return int(path.stat().st_size * TAR_GROWTH)


def check_free_disk(folder: Path, needed: int) -> None:
    """Make sure that a disk has room.

    Raises:
        InputError: it has less than `needed` bytes free.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{folder}: needs {needed / 1e9:.1f} GB of free disk, {free / 1e9:.1f} GB are there."
        )


def unpack(path: Path, folder: Path, scenarios: Sequence[str]) -> list[str]:
    """Unpack the scenarios of an archive into `folder`; those that are there stay as they are.

    A scenario's folder appears whole, at the end. Returns the names of those that are new.

    Raises:
        InputError: no archive, an entry that would lie outside, a link, or a scenario that is
            not in it.
    """
    wanted = [name for name in scenarios if not (folder / name).exists()]
    if not wanted:
        return []
    check_free_disk(folder, unpacked_size(path))
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / f".{path.name}.lock", f"unpacking {path.name}"):
        return _unpack_all(path, folder, [n for n in wanted if not (folder / n).exists()])


def _unpack_all(path: Path, folder: Path, wanted: list[str]) -> list[str]:
    unfinished = folder / f".{path.name}.unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _extract_all(path, unfinished)
        found = _scenarios(path, unfinished)
        if absent := [name for name in wanted if name not in found]:
            raise InputError(
                f"{path}: holds no scenario {', '.join(absent)}, only {', '.join(found) or 'none'}."
            )
        for name in wanted:
            put_in_place(found[name], folder / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return wanted


def put_in_place(source: Path, target: Path) -> None:
    """Rename a finished folder to where it belongs.

    Raises:
        InputError: something has appeared there meanwhile; it stays as it is.
    """
    try:
        source.rename(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be put in place: {error.strerror}.") from error


def _scenarios(path: Path, folder: Path) -> dict[str, Path]:
    """Folders of scenarios anywhere in `folder`, by name; one of each, or it is not clear which."""
    found: dict[str, Path] = {}
    for place in sorted(folder.rglob("*_*")):
        if _is_scenario(place) and "__MACOSX" not in place.parts:
            if place.name in found:
                raise InputError(f"{path}: holds {place.name} twice: refused.")
            found[place.name] = place
    return found


def _is_scenario(place: Path) -> bool:
    return place.is_dir() and any((place / phase).is_dir() for phase in PHASES)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what a damaged archive gives rise to into one line."""
    try:
        yield
    except tarfile.FilterError as error:
        raise InputError(f"{path}: refused, nothing was unpacked: {error}") from error
    except (*DAMAGED, OSError) as error:
        raise InputError(f"{path}: cannot be unpacked: {first_line(error)}") from error


def _extract_all(path: Path, folder: Path) -> None:
    with _refusing(path):
        if zipfile.is_zipfile(path):
            _extract_zip(path, folder)
        elif tarfile.is_tarfile(path):
            _extract_tar(path, folder)
        else:
            raise InputError(f"{path}: is neither a zip nor a tar archive.")


def _extract_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        for entry in entries:
            check_name(path, entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise InputError(f"{path}: {entry.filename} is a link: refused, nothing unpacked.")
        for entry in tqdm(entries, desc=f"Unpacking {path.name}", unit="file", disable=None):
            archive.extract(entry, folder)


def _extract_tar(path: Path, folder: Path) -> None:
    with tarfile.open(path) as archive:
        for entry in tqdm(archive, desc=f"Unpacking {path.name}", unit="file", disable=None):
            check_name(path, entry.name)
            if not (entry.isfile() or entry.isdir()):
                raise InputError(f"{path}: {entry.name} is a link or a device: refused.")
            archive.extract(entry, folder, filter="data")


def check_name(origin: object, name: str) -> None:
    """Make sure that a name that somebody else gave stays inside the folder that it goes to.

    Raises:
        InputError: it would not; `origin` says whose it is.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise InputError(f"{origin}: {name!r} would lie outside its folder: refused.")
