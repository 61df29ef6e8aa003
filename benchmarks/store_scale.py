"""One metric's scores of 200 models as a cell reads them: packed, and a file for each column.

    .venv/bin/python benchmarks/store_scale.py

At the shape of Purchase-100, 100 models at 36,224 points and 100 at 200, written as a pack and in
the way of before, and read by turns; and what packing takes after a pass that has run 25 at once.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from mico_exp.scores.store import Address, Column, ScoreStore

POINTS, OWN, MODELS, AT_ONCE, ROUNDS = 36_224, 200, 100, 25, 9


def columns() -> dict[Address, Column]:
    random = np.random.default_rng(0)
    unique, found = np.arange(POINTS), {}
    for number in range(2 * MODELS):
        train = number < MODELS
        points = unique if train else np.sort(random.permutation(POINTS)[:OWN])
        place = "purchase100/purchase100_inf", "train" if train else "dev", f"model_{number}"
        address = Address(*place, "loss", f"{number:064x}", "p" * 64)
        found[address] = Column(points, random.normal(size=len(points)))
    return found


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def told(name: str, found: list[float], target: str = "") -> None:
    low, middle, high = (1e3 * one for one in (min(found), statistics.median(found), max(found)))
    print(f"{name:32} {middle:6.1f} ({low:.1f} - {high:.1f}) ms   {target}")


def main() -> None:
    some = columns()
    addresses, wanted = list(some), [column.points for column in some.values()]
    reading: dict[str, list[float]] = {"packed": [], "alone": []}
    packing = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            packed = ScoreStore(Path(folder) / f"packed_{number}")
            left = iter(some.items())
            while part := dict(islice(left, AT_ONCE)):
                packed.write(part)
            packing.append(seconds(partial(packed.pack, addresses)))
        alone = ScoreStore(Path(folder) / "alone")
        for address, column in some.items():
            path = alone.path(address)
            path.parent.mkdir(parents=True)
            points = column.points.astype(np.uint32)
            np.savez(path, key=np.array(address.key), points=points, scores=column.scores)
        for _ in range(ROUNDS):
            for name, store in (("packed", packed), ("alone", alone)):
                reading[name].append(seconds(partial(store.read_all, addresses, wanted)))
    told("read, packed", reading["packed"], "target 50")
    told("read, a file for each", reading["alone"])
    told("packing", packing)


if __name__ == "__main__":
    main()
