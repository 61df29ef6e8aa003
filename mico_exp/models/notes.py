"""How far Ray's workers are: an actor keeps what they note, until somebody asks.

What they note goes through it as bytes. So it imports nothing of the package's, which takes
seconds, and its process is there at once.
"""

import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

SECONDS_TO_HEAR = 2.0  # of how far workers are


class Notes:
    """Where workers note how far they are.

    Args:
        hear: called with each thing that was noted, in no particular order.
    """

    def __init__(self, hear: Callable[[Any], Any]) -> None:
        import ray

        self.hear = hear
        self.actor: Any = ray.remote(_Heap).options(num_cpus=0).remote()

    @property
    def tell(self) -> Callable[[Any], Any]:
        """What a worker tells by; it does not wait."""
        return partial(_tell, self.actor)

    def read(self) -> None:
        """Hear what was noted; where the actor is busy or gone, the next time."""
        import ray

        with suppress(ray.exceptions.RayError):
            for noted in ray.get(self.actor.taken.remote(), timeout=SECONDS_TO_HEAR):
                self.hear(pickle.loads(noted))


def _tell(actor: Any, noted: Any) -> None:
    actor.add.remote(pickle.dumps(noted))


class _Heap:
    """What has been noted since somebody asked."""

    def __init__(self) -> None:
        self.heap: list[bytes] = []

    def add(self, noted: bytes) -> None:
        """Take in one more."""
        self.heap.append(noted)

    def taken(self) -> list[bytes]:
        """What was not asked for yet."""
        taken, self.heap = self.heap, []
        return taken
