"""Processes that share work piece by piece, and end with the one that started them.

What ends that one ends them at once, in the middle of a piece: a signal, an error in another one,
or a kill. So a piece must leave nothing half done behind that counts as done. One that dies by
itself, as where memory runs out, is replaced, and its piece begun again.
"""

import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

from tqdm import TMonitor

from mico_exp.common import process, signals
from mico_exp.common.errors import InputError

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Hear = Callable[[Any], Any]  # of what can be added up, and taken back
Work = Callable[[Piece, Hear], Result]
DEATHS = 3  # of processes at a piece; the next one's is the end
SECONDS_TO_START = 4.0  # of a process that imports all that it needs
SECONDS_BETWEEN = 0.1  # what is told more often is told together
log = logging.getLogger(__name__)


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
            What it told of a piece that is begun again is taken back: told with a minus.
        pieces: of which each is done once, in this order; named by `str`.
        processes: at once; with 1, or for a single piece, this one does it all.
        hear: called here with what is told.

    Yields:
        the position of each piece and its result, as they are finished. Whoever stops listening
        closes this, which ends the processes.

    Raises:
        InputError: as `work` does, or processes died of a piece again and again.
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
    crew = _Crew(work, method, hear)
    try:
        for _ in range(processes):
            crew.give(crew.start(), _Task(*left.popleft()))
        while crew.busy:
            for here in set(crew.busy).intersection(wait(list(crew.busy))):
                task, result = crew.busy[here], crew.heard(here)
                if not isinstance(result, _Done):
                    continue
                if left:
                    crew.give(here, _Task(*left.popleft()))
                yield task.position, result.result
    finally:
        with signals.whole():
            crew.end()


@dataclass(eq=False)
class _Task:
    """A piece that a process is at. told: of it until now, in sum. deaths: of it until now."""

    position: int
    piece: Any
    told: Any = None
    deaths: int = 0


class _Done(NamedTuple):
    """What comes of a piece."""

    result: Any


class _Crew:
    """Processes that do pieces; busy: those that are at one."""

    def __init__(self, work: Work[Any, Any], method: str, hear: Hear) -> None:
        self.work, self.hear = work, hear
        self.context: Any = multiprocessing.get_context(method)
        self.started: dict[Connection, BaseProcess] = {}
        self.busy: dict[Connection, _Task] = {}

    def start(self) -> Connection:
        """Start a process."""
        with signals.whole():
            here, there = self.context.Pipe()
            one = self.context.Process(target=_serve, args=(self.work, there), daemon=True)
            one.start()
            there.close()  # so that its end is heard of
            self.started[here] = one
        return here

    def give(self, here: Connection, task: _Task) -> None:
        """Give a process something to do; one that is dead by now is heard of as any other."""
        self.busy[here] = task
        with suppress(ConnectionError):
            here.send(task.piece)

    def heard(self, here: Connection) -> _Done | None:
        """Take in what a process has to say: of its progress, that its piece is done, or nothing.

        Raises:
            InputError: as the work does, or it is dead, as were too many at its piece before.
            PoolError: the work has a defect.
        """
        task = self.busy[here]
        try:
            kind, told = here.recv()
        except (EOFError, OSError):  # the latter in the middle of a message
            self._replace(here)
            return None
        if kind == "refused":
            raise InputError(told)
        if kind == "failed":
            raise PoolError(told)
        rest, result = (told, None) if kind == "told" else told
        if rest is not None:
            task.told = rest if task.told is None else task.told + rest
            self.hear(rest)
        if kind == "told":
            return None
        del self.busy[here]
        return _Done(result)

    def _replace(self, here: Connection) -> None:
        """Let another process begin a dead one's piece again, unless too many died of it."""
        task, one = self.busy.pop(here), self.started.pop(here)
        here.close()
        one.join()
        task.deaths += 1
        if task.deaths > DEATHS:
            raise InputError(
                f"{task.piece!s:.80}: its process {_ending(one.exitcode)}, {task.deaths} times: "
                "was it killed, or is there too little memory? The same command goes on where it "
                "stopped."
            )
        log.warning("%.80s begins again: its process %s", task.piece, _ending(one.exitcode))
        if task.told is not None:
            self.hear(-task.told)
            task.told = None
        self.give(self.start(), task)

    def end(self) -> None:
        """End all of them at once."""
        for one in self.started.values():
            one.kill()
        for here, one in self.started.items():
            one.join()
            here.close()


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
