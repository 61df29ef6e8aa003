"""The processor's cores that a command may use, so that its threads do not wait for each other.

Threads that share out a small product wait for the slowest at its end, thousands of times a second,
and where another process holds a core they wait for that one. So many small products are made by a
process on each core with one thread each (`pool`).
"""

import math
import multiprocessing
import os
import re
from pathlib import Path

VARIABLE = "OMP_NUM_THREADS"
CGROUPS = Path("/sys/fs/cgroup")


def usable() -> int:
    """How many cores this process may use in all, by itself and by processes of its own.

    What OMP_NUM_THREADS says counts, which launchers of several jobs at once set; else all those
    that the system lets it have.
    """
    told = re.match(r"\s*([0-9]+)", os.environ.get(VARIABLE, ""))
    if told and int(told[1]):
        return int(told[1])
    return min([_allowed(), *_quotas()])


def for_processes() -> int:
    """How many processes at once may work for it, a core each; 1 where it may start none."""
    return 1 if multiprocessing.current_process().daemon else usable()


def _allowed() -> int:
    """Cores of its affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Cores' worth of time that a container's groups give, rounded up; none where it has no limit.

    Args:
        root: where groups are mounted.
        own: tells which groups this process is in, ``number:controllers:path``.
    """
    found = []
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        base = root if not controllers else root / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = base / path.lstrip("/")
        for folder in (group, *(one for one in group.parents if one.is_relative_to(base))):
            found += _quota(folder)
    return found


def _quota(folder: Path) -> list[int]:
    """What one group gives: in a file of version 2, or in two of version 1."""
    told = " ".join(_lines(folder / "cpu.max"))
    if not told:
        parts = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
        told = " ".join(parts)
    numbers = re.fullmatch(r"([0-9]+) ([0-9]+)", told)
    if not numbers or not int(numbers[2]):
        return []  # ``max``, or -1
    return [max(1, math.ceil(int(numbers[1]) / int(numbers[2])))]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
