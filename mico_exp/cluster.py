"""Shards of an extraction as Ray tasks: on the processors of this machine, or on a cluster.

Every machine must see the models under the same paths, and have this package installed. A worker
that dies is replaced, and only its shard is done again.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from mico_exp.errors import InputError
from mico_exp.evaluation import Processor, Shard

Result = TypeVar("Result")
ATTEMPTS_AGAIN = 3  # for a shard whose worker died
SECONDS_TO_ANSWER = 10
SHARDS_AHEAD = 2  # submitted for each worker: none waits, and few results wait in memory


class Ray:
    """Ray tasks, each a shard.

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
        if num_gpus < 0 or jobs_per_gpu < 1 or (num_workers is not None and num_workers < 1):
            raise InputError(
                "`compute`: num_gpus must be ≥ 0, jobs_per_gpu ≥ 1 and num_workers ≥ 1, got "
                f"{num_gpus}, {jobs_per_gpu}, {num_workers}."
            )
        self.num_gpus, self.jobs_per_gpu, self.address = num_gpus, jobs_per_gpu, address
        self.num_workers = num_workers or num_gpus * jobs_per_gpu or os.cpu_count() or 1
        self.threads = max(1, (os.cpu_count() or 1) // self.num_workers)  # of each worker

    def check(self, processor: Processor) -> None:  # noqa: ARG002
        """Find Ray, and the cluster if one is named; the devices are its workers' own."""
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise InputError(
                "`compute=ray` needs Ray, which is not installed: pip install 'mico_exp[ray]'"
            ) from error
        if self.address is not None and self.address != "auto":
            _knock(self.address)

    def describe(self, processor: Processor) -> str:  # noqa: ARG002
        """Name the workers."""
        where = self.address or "this machine"
        what = f"{self.num_gpus} GPUs × {self.jobs_per_gpu}" if self.num_gpus else ""
        return f"Ray on {where}, {what or f'{self.num_workers} workers'}"

    def map(
        self, work: Callable[[Shard], Result], shards: Iterable[Shard]
    ) -> Iterator[tuple[int, Result]]:
        """Give each shard's position and result as they are finished.

        Raises:
            InputError: as the work itself does; or Ray cannot be reached, or its workers die.
        """
        import ray

        self._connect()
        task: Any = ray.remote(_do).options(
            num_cpus=0 if self.num_gpus else 1,
            num_gpus=1 / self.jobs_per_gpu if self.num_gpus else 0,
            max_retries=ATTEMPTS_AGAIN,
        )
        shared = ray.put(work)
        threads = None if self.num_gpus else self.threads
        ahead = iter(enumerate(shards))
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < SHARDS_AHEAD * self.num_workers and (one := next(ahead, None)):
                    running[task.remote(shared, one[1], threads)] = one[0]
                if not running:
                    return
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                yield running.pop(done), _get(done)
        finally:
            for unfinished in running:
                ray.cancel(unfinished, force=True)

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        # Metrics of the user's own lie in the folders that Python looks in here.
        paths = [os.getcwd() if path == "" else path for path in sys.path]
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
        own: dict[str, Any] = {"address": self.address}
        if self.address is None:
            cpus = max(1, self.num_workers)
            own |= {"address": "local", "num_cpus": cpus, "num_gpus": self.num_gpus or None}
            own |= {"include_dashboard": False}
        try:
            ray.init(
                **own, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise InputError(f"`compute.address`: Ray cannot be reached: {error}") from error


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


def _do(work: Callable[[Shard], Result], shard: Shard, threads: int | None) -> Result:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return work(shard)


def _get(done: Any) -> Any:
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"Ray could not finish a shard of models: {reason}") from error
