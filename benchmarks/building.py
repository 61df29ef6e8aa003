"""What a step of the competition's recipes takes, and builds by two Ray workers beside one.

.venv/bin/python benchmarks/building.py [cifar10] [purchase100] [ray]
"""

import statistics
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from mico_exp.challenge import datasets
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.records import Features, Records
from mico_exp.models.architectures import CNN
from mico_exp.models.ray_workers import Ray
from mico_exp.training.building import planned_pieces
from mico_exp.training.making import Making, Piece, step_seconds
from mico_exp.training.recipe import Fresh, Recipe
from mico_exp.training.steps import Plan, Privacy

IMAGES, MODELS, REPEATS = 2048, 10, 3
RAY_STEPS, RAY_BATCH = 10, 32
NOISE = Privacy(0.5, 2.6)
EACH = partial(torch.optim.lr_scheduler.StepLR, step_size=5, gamma=0.9)
SGD, ADAM = partial(torch.optim.SGD, lr=0.005), partial(torch.optim.Adam, lr=0.001)


def images(count: int = IMAGES) -> Records:
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(random.integers(10, size=count))
    return datasets.Images(pixels, labels, datasets.CIFAR10_MEAN, datasets.CIFAR10_STD)


def purchases(count: int = 4096) -> Records:
    random = np.random.default_rng(0)
    bits = torch.from_numpy((random.random((count, 600)) < 0.2).astype(np.float32))
    return Features(bits, torch.from_numpy(random.integers(100, size=count)))


def making(records: Records, plan: Plan, private: Privacy | None, models: int) -> Making:
    count = len(records.labels)
    kind = {"network": Fresh(CNN)} if isinstance(records, datasets.Images) else {}
    kind = kind or {"widths": (600, 128, 100)}
    counts, sizes = {"train": models, "dev": 0, "final": 0}, Sizes(count, count * 3 // 4, 10)
    recipe = Recipe("c", "c_s", 0, sizes, counts, plan, None, **kind)
    return Making(recipe, plan, records, private, None, "auto")


def steps(wanted: list[str]) -> None:
    rows = [
        ("cifar10 inf, batch 32", images(), Plan(9, 32, SGD), None, 50 * 1563, 1),
        ("cifar10 hi, batch 512", images(), Plan(9, 512, SGD), NOISE, 50 * 98, 1),
        ("purchase100 inf, 50 at once", purchases(), Plan(9, 512, ADAM, EACH), None, 30 * 293, 50),
        ("purchase100 hi, 50 at once", purchases(), Plan(9, 512, ADAM, EACH), NOISE, 30 * 293, 50),
    ]
    for name, records, plan, private, whole, together in rows:
        if name.partition(" ")[0] not in wanted:
            continue
        made = making(records, plan, private, together)
        (piece,) = [one.piece for one in planned_pieces(made.recipe)][:1]
        found = [step_seconds(made, piece) for _ in range(REPEATS)]
        each = statistics.median(found)
        spread = f"({min(found):.3g} - {max(found):.3g})"
        hours = each * whole / together / 3600
        print(f"{name:28}{each:8.3g} s/step {spread}   {hours:6.2f} h a model of {whole:,} steps")


def timed(making: Making, piece: Piece, tell: Any) -> tuple[float, float, float]:
    """Make models; when that began and ended, by this machine's clock, and processor's seconds."""
    began = time.perf_counter(), time.process_time()
    making(piece, tell)
    return began[0], time.perf_counter(), time.process_time() - began[1]


class Run(NamedTuple):
    """What so many workers did: models a second, share of the time at work, processor's seconds."""

    rate: float
    at_work: float
    processor: float

    def __str__(self) -> str:
        return (
            f"{self.rate:.3f} models/s, at work {self.at_work:.0%} of the time, "
            f"{self.processor:.2f} s of the processor a model"
        )


def run(making: Making, pieces: list[Piece], count: int) -> Run:
    asked = Ray(num_workers=count)
    asked.threads = 1
    done = asked.map(partial(timed, making), pieces, lambda _: None)
    found = sorted((took for _, took in done), key=lambda took: took[1])
    ray.shutdown()
    # The first piece of each worker waits for Ray and the imports.
    first, last = found[count - 1][1], found[-1][1]
    busy = sum(max(0.0, ended - max(began, first)) for began, ended, _ in found)
    models = len(found) - count
    processor = sum(took for _, _, took in found[count:]) / models
    return Run(models / (last - first), busy / (last - first) / count, processor)


def workers() -> None:
    """Two Ray workers beside one, by turns.

    Where others use the cores, two get less than twice of them. So it is told besides what free
    cores would give: by the processor's time and by the time that workers wait for work.
    """
    made = making(images(512), Plan(RAY_STEPS, RAY_BATCH, SGD), None, MODELS)
    pieces = [one.piece for one in planned_pieces(made.recipe)]
    ratios, free = [], []
    for _ in range(REPEATS):
        one, two = (run(made, pieces, count) for count in (1, 2))
        print(f"1 worker:  {one}\n2 workers: {two}", flush=True)
        ratios.append(two.rate / one.rate)
        free.append(2 * one.processor / two.processor * min(1, two.at_work / one.at_work))
    for name, some in (("two / one", ratios), ("as on free cores", free)):
        spread = f"({min(some):.2f} - {max(some):.2f})"
        print(f"{name}: {statistics.median(some):.2f} {spread}   target 1.7")


if __name__ == "__main__":
    asked = sys.argv[1:] or ["cifar10", "purchase100", "ray"]
    steps(asked)
    if "ray" in asked:
        workers()
