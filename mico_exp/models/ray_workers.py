"""Pieces of work done by Ray actors: on the processors and GPUs of this machine, or of a cluster.

Every machine must see the models under the same paths, and have this package installed. A worker
that dies is replaced, and only its piece is done again. Workers of a Ray that is started here stay
for the next pieces, since each imports for seconds; those of a cluster, which others use, end.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from mico_exp.common import require
from mico_exp.common.errors import InputError, first_line
from mico_exp.common.pool import DEATHS
from mico_exp.models.devices import FLOAT32, check_precision
from mico_exp.models.notes import SECONDS_TO_HEAR, Notes
from mico_exp.models.workers import Hear

Piece = TypeVar("Piece")
Result = TypeVar("Result")
SECONDS_TO_ANSWER = 10
SECONDS_TO_WAIT, SECONDS_TO_SETTLE, SECONDS_BETWEEN = 600.0, 5.0, 0.5  # for what others use
log = logging.getLogger(__name__)


class Ray:
    """Ray actors, each of which does one piece after another.

    Args:
        num_gpus: GPUs to use; 0 for processors alone.
        jobs_per_gpu: workers that share a GPU.
        num_workers: workers without a GPU; None for one on each processor. On a cluster,
            workers at once.
        address: of a running cluster, ``auto`` or ``ray://host:10001``; None starts Ray here.
    """

    def __init__(
        self,
        num_gpus: int = 0,
        jobs_per_gpu: int = 1,
        num_workers: int | None = None,
        address: str | None = None,
    ) -> None:
        require.whole("compute.num_gpus", num_gpus, 0)
        require.whole("compute.jobs_per_gpu", jobs_per_gpu, 1)
        if num_workers is not None:
            require.whole("compute.num_workers", num_workers, 1, other="null")
        self.num_gpus, self.jobs_per_gpu, self.address = num_gpus, jobs_per_gpu, address
        self.num_workers = num_workers or num_gpus * jobs_per_gpu or os.cpu_count() or 1
        self.threads = max(1, (os.cpu_count() or 1) // self.num_workers)  # of each worker

    def check(self, device: str, precision: str = FLOAT32) -> None:
        """Find Ray, the cluster if one is named, and the GPUs if they are to be here."""
        expected = "cuda" if self.num_gpus else "cpu"
        check_precision(precision, expected)
        if device not in ("auto", expected):
            raise InputError(
                f"`compute.device` must be auto or {expected} where Ray gives its workers "
                f"{self.num_gpus} GPUs, got {device}."
            )
        if self.address is None and self.num_gpus > (here := torch.cuda.device_count()):
            raise InputError(f"`compute.num_gpus`: {self.num_gpus} are asked for, here are {here}.")
        try:
            _import(self.address)
        except ImportError as error:
            raise InputError(
                "`compute=ray` needs Ray, which is not installed: pip install 'mico_exp[ray]'"
            ) from error
        if self.address is not None and self.address != "auto":
            _knock(self.address)

    def describe(self, device: str) -> str:  # noqa: ARG002
        """Name the workers."""
        where = self.address or "this machine"
        what = f"{self.num_gpus} GPUs × {self.jobs_per_gpu}" if self.num_gpus else ""
        return f"Ray on {where}, {what or f'{self.num_workers} workers'}"

    def map(
        self,
        work: Callable[..., Result],
        pieces: Iterable[Piece],
        hear: Hear | None = None,
        processes: int = 1,  # noqa: ARG002 (Ray has a number of its own)
    ) -> Generator[tuple[int, Result], None, None]:
        """Give each piece's position and result as they are finished.

        Raises:
            InputError: as the work itself does; or Ray cannot be reached, or its workers die.
        """
        self._connect()
        import ray

        self._check_resources(ray.cluster_resources())  # type: ignore[no-untyped-call]
        idle = _idle if self._is_alone() else []
        count = self._count(ray.available_resources, len(idle))
        threads = None if self.num_gpus else self.threads
        kind = ray.remote(_Worker).options(
            num_cpus=0 if self.num_gpus else self.threads,
            num_gpus=1 / self.jobs_per_gpu if self.num_gpus else 0,
            max_restarts=-1,
            max_task_retries=DEATHS,
        )
        shared, notes = ray.put(work), None if hear is None else Notes(hear)
        running: dict[Any, tuple[int, Any]] = {}
        ahead = iter(enumerate(pieces))
        try:
            while True:
                while len(running) < count and (one := next(ahead, None)):
                    # A worker is started only once there is work for it.
                    worker: Any = idle.pop() if idle else kind.remote(threads)
                    task = worker.do.remote([shared], one[1], notes and notes.tell)
                    running[task] = one[0], worker
                if not running:
                    return
                done = _first(list(running), notes)
                result = _get(done)
                position, worker = running.pop(done)
                idle.append(worker)
                yield position, result
        finally:
            ending = [worker for _, worker in running.values()]
            ending += [notes.actor] if notes else []
            for worker in ending if idle is _idle else ending + idle:
                ray.kill(worker)
            for worker in _idle:
                worker.forget.remote()

    def _is_alone(self) -> bool:
        """Whether nobody else can use this Ray, as it was started here."""
        return self.address is None and bool(_connected)

    def _connect(self) -> None:
        ray = _import(self.address)
        wanted = (self.address, self.num_workers, self.num_gpus, self.jobs_per_gpu)
        if ray.is_initialized():
            if wanted in _connected or not _connected:  # else Ray was started here for another job
                return
            ray.shutdown()
        _idle.clear()
        # Metrics of the user's own lie in the folders that Python looks in here.
        paths = [os.getcwd() if path == "" else path for path in sys.path]
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
        own: dict[str, Any] = {"address": self.address}
        if self.address is None:
            cpus = self.num_workers * self.threads
            own |= {"address": "local", "num_cpus": cpus, "num_gpus": self.num_gpus or None}
            own |= {"include_dashboard": False}
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with _without_dashboard():
                ray.init(
                    **own,
                    runtime_env=environment,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise InputError(f"`compute.address`: Ray cannot be reached: {error}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():  # Ray puts its own in their place
                    signal.signal(number, handler)
        _connected[:] = [wanted]

    def _check_resources(self, there: Mapping[str, float]) -> None:
        """Refuse what would wait for ever."""
        cpus = 0 if self.num_gpus else self.num_workers * self.threads
        for kind, wanted in (("CPU", cpus), ("GPU", self.num_gpus)):
            if there.get(kind, 0) < wanted:
                raise InputError(
                    f"`compute`: {wanted} {kind}s are asked for, Ray has {there.get(kind, 0):g}."
                )

    def _count(self, free: Callable[[], Mapping[str, float]], idle: int = 0) -> int:
        """How many workers there is room for now, of those asked for; waits while there is none.

        Args:
            free: gives what nobody uses at the moment.
            idle: workers of ours that are there, and have nothing to do.

        Raises:
            InputError: others have used all of it for ten minutes.
        """
        kind, each = ("GPU", 1 / self.jobs_per_gpu) if self.num_gpus else ("CPU", self.threads)
        started, said = time.monotonic(), False
        while True:
            room = idle + int(free().get(kind, 0) / each + 1e-6)
            waited = time.monotonic() - started
            # Workers of the last pass may be about to end; whoever else has some keeps them.
            if room >= self.num_workers or (room and waited > SECONDS_TO_SETTLE):
                break
            if waited > SECONDS_TO_WAIT:
                raise InputError(
                    f"`compute`: Ray's {kind}s are all in use, for {waited:,.0f} s now; a worker "
                    f"needs {each:g}."
                )
            if waited > SECONDS_TO_SETTLE and not said:
                log.info("Waiting for Ray: all of its %ss are in use", kind)
                said = True
            time.sleep(SECONDS_BETWEEN)
        if room < self.num_workers:
            log.info("Ray has room for %d of %d workers", room, self.num_workers)
        return min(room, self.num_workers)


_connected: list[tuple[str | None, int, int, int]] = []  # what Ray was started with, if it was
_idle: list[Any] = []  # workers of a Ray that nobody else uses, which wait for work


def _import(address: str | None) -> Any:
    """Import Ray. What is started here hears this machine alone, as Ray has it on macOS.

    Whoever can reach its ports can run code. It reads the variable when it is imported.
    """
    if address is None:
        here = os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0") == "0"
    import ray

    if address is None and here:  # where a metric of the user's own has imported it before
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    return ray


@contextmanager
def _without_dashboard() -> Iterator[None]:
    """Start Ray without its dashboard's process, which ``include_dashboard=False`` leaves running.

    It would report usage; with reports off it still asks 169.254.169.254 and
    metadata.google.internal in what cloud it is, and no option stops it.
    """
    from ray._private import services

    start = getattr(services, "start_api_server", None)
    if start is None or os.environ.get("RAY_USAGE_STATS_ENABLED") == "1":
        yield
        return
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield
    finally:
        services.start_api_server = start


class _Worker:
    """An actor that does one piece after another, on the devices that Ray gave it."""

    def __init__(self, threads: int | None) -> None:
        self.work: Callable[..., Any] | None = None
        if threads is not None:
            torch.set_num_threads(threads)

    def do(self, reference: list[Any], piece: Any, tell: Hear | None) -> Any:
        """Do a piece. The reference lies in a list so that what it names is fetched once only."""
        import ray

        if self.work is None:
            self.work = ray.get(reference[0])
        assert self.work is not None
        return self.work(piece) if tell is None else self.work(piece, tell)

    def forget(self) -> None:
        """Let go of the work, and of the records that it holds: the next one is another."""
        self.work = None


def _first(running: list[Any], notes: Notes | None) -> Any:
    """Wait for the first piece that is done; meanwhile hear how far the workers are."""
    import ray

    while True:
        done, _ = ray.wait(running, num_returns=1, timeout=SECONDS_TO_HEAR if notes else None)
        if notes:
            notes.read()
        if done:
            return done[0]


def _knock(address: str) -> None:
    """Try whether anybody answers: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"`compute.address`: Ray cannot be reached at {address}: {error}. Expected auto, "
            "host:6379 or ray://host:10001."
        ) from error


def _get(done: Any) -> Any:
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = first_line(error)
        raise InputError(f"Ray could not finish a piece of work: {reason}") from error
