"""Work that a process of its own does while this one goes on, where another core is free."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable

from mico_exp.common import cores, pool
from mico_exp.common.errors import first_line
from mico_exp.common.signals import STOPPING

log = logging.getLogger(__name__)
_running: dict[int, str] = {}  # processes, and what each does


def do(work: Callable[[], None], what: str) -> None:
    """Do something that leaves nothing behind but files: beside this process, or now.

    A fork does it, which has all that it needs in memory; it goes on where this process is told
    to end, and so must take a moment only. What fails there is logged as a warning.

    Args:
        work: what to do. It may use NumPy, and no library's threads.
        what: it makes, as the warning names it.
    """
    free = cores.for_processes() - 1
    if free < 1 or pool.start_method() != "fork":
        return _attempt(work, what)
    while len(_running) >= free:
        _wait_for(next(iter(_running)))
    sys.stdout.flush()  # else the fork would write it once more
    if child := os.fork():
        _running[child] = what
        return None
    try:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        _attempt(work, what)
    finally:
        os._exit(0)


def finish() -> None:
    """Wait until all of it is done."""
    for child in list(_running):
        _wait_for(child)


def _attempt(work: Callable[[], None], what: str) -> None:
    try:
        work()
    except Exception as error:
        log.warning("%s cannot be made: %s", what, first_line(error))


def _wait_for(child: int) -> None:
    what = _running.pop(child)
    with contextlib.suppress(ChildProcessError):  # whoever waits for any child may have had it
        _, status = os.waitpid(child, 0)
        if status:
            log.warning("%s cannot be made: its process was killed.", what)
