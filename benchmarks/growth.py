"""How time and memory of extraction grow with the models and with the points.

    .venv/bin/python benchmarks/growth.py

Purchase-shaped records and MLPs, each size in a process of its own. Time should be linear (the
largest residual of the fitted line is shown), peak memory flat in the number of models.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mico_exp.challenge.datasets import Bits
from mico_exp.challenge.points import ChallengePoints
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import ModelFolder, Scenario
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.scores import metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore

MODELS, POINTS, FEW_POINTS, FEW_MODELS = (25, 50, 100, 200), (1, 2, 4), 9_000, 50


def measure(models: Path, num_models: int, num_points: int) -> None:
    """Extract, and print seconds."""
    random = np.random.default_rng(0)
    records = Bits(random.integers(256, size=(num_points, 76), dtype=np.uint8) % 100, 600, "random")
    folders = tuple(ModelFolder(models / f"model_{k}", 0) for k in range(num_models))
    unique = np.arange(num_points)
    of_phase = {"train": np.tile(unique[:200], (num_models, 1))}
    mask = np.zeros((num_models, num_points), dtype=bool)
    points = ChallengePoints(of_phase, unique, mask, mask[:, :200])
    scenario = Scenario("growth", "growth_inf", Sizes(num_points, 1000, 100), {"train": folders})
    with tempfile.TemporaryDirectory() as temporary:
        made = Architecture.of(MLP([600, 128, 100]))
        store = ScoreStore(Path(temporary))
        job = Extraction(scenario, points, records, made, store, Processor("cpu"))
        started = time.perf_counter()
        job.compute({"loss": metrics.loss, "confidence": metrics.confidence})
        print(json.dumps(time.perf_counter() - started))


def child(models: Path, num_models: int, num_points: int) -> tuple[float, float]:
    """Seconds and peak memory in MB."""
    command = [sys.executable, __file__, str(models), str(num_models), str(num_points)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    return json.loads(printed), usage.ru_maxrss / 1e3


def show(title: str, sizes: list[int], found: list[tuple[float, float]]) -> None:
    seconds = np.array([one for one, _ in found])
    slope, start = np.polyfit(sizes, seconds, 1)
    residual = np.abs(seconds - (slope * np.array(sizes) + start)).max() / seconds.max()
    for size, (took, peak) in zip(sizes, found, strict=True):
        print(f"{size:8} {title:7} {took:6.2f} s {peak:6.0f} MB")
    print(f"line: {start:.2f} s + {slope * 1e3:.3f} ms each; largest residual {residual:.1%}")


def main() -> None:
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        for k in range(max(MODELS)):
            (Path(temporary) / f"model_{k}").mkdir()
            path = Path(temporary) / f"model_{k}" / "model.pt"
            torch.save(MLP([600, 128, 100]).state_dict(), path)
        found = [child(Path(temporary), count, 4 * FEW_POINTS) for count in MODELS]
        show("models", list(MODELS), found)
        print(f"peak memory at 200 models / at 50: {found[3][1] / found[1][1]:.3f}   target 1.1")
        sizes = [factor * FEW_POINTS for factor in POINTS]
        show("points", sizes, [child(Path(temporary), FEW_MODELS, size) for size in sizes])


if __name__ == "__main__":
    main()
