"""Processes that share work piece by piece, and end with the one that started them.

What ends that one ends them at once, in the middle of a piece: a signal, an error in another one,
or a kill. So a piece must leave nothing half done behind that counts as done.
"""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from tqdm import TMonitor

from mico_exp.common import process, signals
from mico_exp.common.errors import InputError

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Hear = Callable[[Any], Any]  # of what can be added up
Work = Callable[[Piece, Hear], Result]
SECONDS_TO_START = 4.0  # of a process that imports all that it needs
SECONDS_BETWEEN = 0.1  # what is told more often is told together


class PoolError(RuntimeError):
    """A defect in another process, with that one's traceback."""


def spread(
    work: Work[Piece, Result], pieces: Sequence[Piece], processes: int, hear: Hear
) -> Generator[tuple[int, Result], None, None]:
    """Do `work(piece, tell)` of every piece, in so many processes.

    A forked process begins at once. Where none can be forked safely each would import everything
    anew, and so the first piece is done here, to see whether that pays.

    Args:
        work: what is to be done; it tells of its progress in what can be added up, as numbers.
        pieces: of which each is done once, in this order.
        processes: at once; with 1, or for a single piece, this one does it all.
        hear: called here with what is told.

    Yields:
        the position of each piece and its result, as they are finished. Whoever stops listening
        closes this, which ends the processes.

    Raises:
        InputError: as `work` does, or a process was killed.
        PoolError: work has a defect.
    """
    left = deque(enumerate(pieces))
    method = start_method()
    if processes > 1 and len(left) > 1 and method != "fork":
        started = time.monotonic()
        position, piece = left.popleft()
        result = work(piece, hear)
        if (time.monotonic() - started) * len(left) / 2 < SECONDS_TO_START:
            processes = 1
        yield position, result
    if processes > 1 and len(left) > 1:
        yield from _spread(work, left, min(processes, len(left)), hear, method)
    for position, piece in left:
        yield position, work(piece, hear)


def is_worker() -> bool:
    """Tell whether this process is one of a pool's."""
    return multiprocessing.current_process().daemon


def start_method() -> str:
    """``fork`` where a process may be: on Linux, and with nobody else about who may hold a lock.

    Forked processes must not use OpenMP's threads, which they do not inherit, nor a GPU.
    """
    others = [one for one in threading.enumerate() if not isinstance(one, TMonitor)]
    alone = others == [threading.main_thread()]
    return "fork" if sys.platform == "linux" and alone else "spawn"


def _spread(
    work: Work[Piece, Result],
    left: deque[tuple[int, Piece]],
    processes: int,
    hear: Hear,
    method: str,
) -> Generator[tuple[int, Result], None, None]:
    started: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, int] = {}  # the position of what each is at
    try:
        for _ in range(processes):
            with signals.whole():
                here, one = _started(work, method)
                started[here] = one
            busy[here] = _next(here, left)
        while busy:
            for here in set(busy).intersection(wait(list(busy))):
                kind, told = _told(here, started[here])
                if kind == "told":
                    hear(told)
                    continue
                position, (rest, result) = busy.pop(here), told
                if left:
                    busy[here] = _next(here, left)
                if rest is not None:
                    hear(rest)
                yield position, result
    finally:
        with signals.whole():
            _end(started)


def _next(here: Connection, left: deque[tuple[int, Piece]]) -> int:
    """Give a process its next piece; says the position of it."""
    position, piece = left.popleft()
    here.send(piece)
    return position


def _started(work: Work[Any, Any], method: str) -> tuple[Connection, BaseProcess]:
    context: Any = multiprocessing.get_context(method)
    here, there = context.Pipe()
    one = context.Process(target=_serve, args=(work, there), daemon=True)
    one.start()
    there.close()  # so that its end is heard of
    return here, one


def _end(started: Mapping[Connection, BaseProcess]) -> None:
    for one in started.values():
        one.kill()
    for here, one in started.items():
        one.join()
        here.close()


def _told(here: Connection, one: BaseProcess) -> tuple[str, Any]:
    """What a process has to say: of its progress, or that its piece is done."""
    try:
        kind, told = here.recv()
    except (EOFError, ConnectionResetError):
        one.join()
        raise InputError(
            f"A process of this command {_ending(one.exitcode)}: was it killed, or is there too "
            "little memory? The same command goes on where it stopped."
        ) from None
    if kind == "refused":
        raise InputError(told)
    if kind == "failed":
        raise PoolError(told)
    return kind, told


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by signal {-status}"
    return f"ended with status {status}"


def _serve(work: Work[Any, Any], head: Connection) -> None:
    """Do the pieces that come, until the head ends this process, or is no more."""
    signals.leave_to_head()
    threading.Thread(target=_end_with_head, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            head.send(_answer(work, head.recv(), _Telling(head)))


def _answer(work: Work[Any, Any], piece: Any, telling: "_Telling") -> tuple[str, Any]:
    try:
        result = work(piece, telling)
    except Exception as error:
        message = process.one_line(error)
        if message is None or process.wants_everything():
            return "failed", f"in a process of its own:\n{traceback.format_exc()}"
        return "refused", message
    return "done", (telling.rest(), result)


class _Telling:
    """Tells the head of progress, not too often."""

    def __init__(self, head: Connection) -> None:
        self.head, self.last = head, time.monotonic()
        self.sum: Any = None

    def __call__(self, more: Any) -> None:
        self.sum = more if self.sum is None else self.sum + more
        if (now := time.monotonic()) - self.last >= SECONDS_BETWEEN:
            self.last = now
            self.head.send(("told", self.rest()))

    def rest(self) -> Any:
        """What was not told yet; None where that is nothing."""
        rest, self.sum = self.sum, None
        return rest


def _end_with_head() -> None:
    """End this process as soon as the one that started it is gone, however that went."""
    head = multiprocessing.parent_process()
    assert head is not None
    head.join()
    os._exit(1)
