"""Extraction of the competition's CNN by two Ray workers beside one, each with one thread.

.venv/bin/python benchmarks/ray_workers.py
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch

from mico_exp.challenge import datasets
from mico_exp.models.architectures import CNN, Architecture
from mico_exp.models.ray_workers import Ray
from mico_exp.scores import metrics
from mico_exp.scores.inference import Processor, Shard, Work

MODELS, IMAGES, REPEATS = 12, 1024, 3


def main() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(random.integers(10, size=IMAGES))
    records = datasets.Images(pixels, labels, datasets.CIFAR10_MEAN, datasets.CIFAR10_STD)
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / f"model_{k}" for k in range(MODELS)]
        for folder in folders:
            folder.mkdir()
            torch.save(CNN().state_dict(), folder / "model.pt")
        wanted = {"loss": metrics.loss}
        work = Work(Architecture.of(CNN()), records, wanted, Processor("cpu"))
        shards = [Shard((folder,), np.arange(IMAGES)[None]) for folder in folders]
        for _ in range(REPEATS):
            for workers in (1, 2):
                made = Ray(num_workers=workers)
                made.threads = 1
                done = [time.perf_counter() for _ in made.map(work, shards)]
                # The first shard of each worker waits for Ray and the imports.
                counted = MODELS - workers
                found[workers].append(counted * IMAGES / (done[-1] - done[workers - 1]))
                ray.shutdown()
    for workers, rates in found.items():
        spread = f"({min(rates):.0f} - {max(rates):.0f})"
        print(f"{workers} worker(s): {statistics.median(rates):6.0f} images/s {spread}")
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    spread = f"({min(ratios):.2f} - {max(ratios):.2f})"
    print(f"two / one: {statistics.median(ratios):.2f} {spread}   target 1.6")


if __name__ == "__main__":
    main()
