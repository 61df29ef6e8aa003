"""One scenario at Purchase-100's real size: this pipeline beside the winner's plain procedure.

    .venv/bin/python benchmarks/purchase100_scale.py

Makes 197,324 records of 600 bits and 100 + 50 + 50 MLPs in a temporary folder, and measures

1. the six-cell job as a user starts it (splits, extraction, cells, scores, MLflow), figures off,
   beside a plain implementation of the winner's procedure: every record through every model with
   a DataLoader of batch 1024, all logits kept and then stacked, Python loops over targets and
   points. The plain one runs on a stated subset of models and targets, and is scaled by the count;
2. the extraction beside bare `torch.matmul` calls of the same shapes, in one process by turns;
3. a grid cell after the first.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from mico_exp.challenge import datasets, protocol
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import Scenario, load_scenario, write_solution
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.models.weights import load_state
from mico_exp.results import scoring
from mico_exp.scores import metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import Processor
from mico_exp.scores.stacks import MODELS_AT_ONCE
from mico_exp.scores.store import ScoreStore

RECORDS, FEATURES, CLASSES = 197_324, 600, 100
PHASES = {"train": 100, "dev": 50, "final": 50}
SIZES = Sizes(RECORDS, 150_000, 100)
SCENARIO = "purchase100/purchase100_inf"
PLAIN_MODELS, PLAIN_TARGETS, REPEATS = (2, 5), 8, 3
CELLS = 6


def make_world(folder: Path) -> None:
    """Write the CSV and the models, as the competition's tree has them."""
    random = np.random.default_rng(0)
    file = folder / "data" / "data" / "purchase100" / "dataset_purchase"
    file.parent.mkdir(parents=True)
    with file.open("wb") as csv:
        for start in range(0, RECORDS, 20_000):
            count = min(20_000, RECORDS - start)
            row = np.full((count, 2 * FEATURES + 1), ord(","), np.uint8)
            row[:, 1:-1:2] = (random.random((count, FEATURES)) < 0.3) + ord("0")
            row[:, -1] = ord("\n")
            for text in row:
                csv.write(str(random.integers(1, CLASSES + 1)).encode() + text.tobytes())
    number = 0
    for phase, count in PHASES.items():
        for _ in range(count):
            place = folder / "data" / SCENARIO / phase / f"model_{number}"
            place.mkdir(parents=True)
            torch.manual_seed(number)
            torch.save(MLP([FEATURES, 128, CLASSES]).state_dict(), place / "model.pt")
            seeds = [int(seed) for seed in random.integers(2**63 - 1, size=3)]
            (place / "seed_challenge").write_text(str(seeds[0]))
            if phase == "train":
                (place / "seed_training").write_text(str(seeds[1]))
                (place / "seed_membership").write_text(str(seeds[2]))
                solution = protocol.split(SIZES, *seeds).solution
                (place / "solution.csv").write_text(write_solution(solution))
            number += 1


def open_world(folder: Path) -> tuple[datasets.Records, Scenario]:
    records = datasets.purchase100(str(folder / "data" / "data" / "purchase100"))
    name = SCENARIO.split("/")
    return records, load_scenario(folder / "data", *name, SIZES)


def plain_logits(scenario, loader, count: int) -> np.ndarray:
    """Every record through each of `count` models, all logits kept, and stacked at the end."""
    kept = []
    for folder in scenario.phases["train"][:count]:
        model = MLP([FEATURES, 128, CLASSES])
        model.load_state_dict(load_state(folder.path / "model.pt", model))
        parts = []
        with torch.no_grad():
            for inputs, _ in loader:
                parts.append(model(inputs))
        kept.append(torch.cat(parts).numpy())
    return np.stack(kept)


def plain_cell(points, scores: np.ndarray, formula: int, targets: int) -> None:
    """One cell for some validation targets, point by point; scores (100, unique points)."""
    columns, predictions = points.columns("train"), []
    for t in range(targets):
        for j in columns[t]:
            others = [k for k in range(len(scores)) if k != t]
            inside = [scores[k, j] for k in others if points.is_member[k, j]]
            outside = [scores[k, j] for k in others if not points.is_member[k, j]]
            outside = outside if len(outside) >= 2 else inside
            both = inside + outside
            if formula == 0:
                value = scores[t, j] - (np.mean(inside) + np.mean(outside)) / 2
            elif formula == 1:
                value = scores[t, j] - np.mean(inside)
            else:
                value = (scores[t, j] - np.mean(both)) / np.std(both, ddof=1)
            predictions.append(value)
    scoring.figures(points.solution[:targets].ravel(), np.array(predictions))


def plain(folder: Path, count: int) -> None:
    """Time the plain procedure on a subset; prints seconds of each part as JSON."""
    records, scenario = open_world(folder)
    everything = records.inputs(torch.arange(RECORDS))
    loader = DataLoader(TensorDataset(everything, records.labels), batch_size=1024)
    started = time.perf_counter()
    points = challenge_points(scenario)
    split = time.perf_counter() - started
    started = time.perf_counter()
    logits = plain_logits(scenario, loader, count)
    extraction = (time.perf_counter() - started) / count
    started = time.perf_counter()
    for one in logits:
        for metric in (metrics.loss, metrics.confidence):
            metric(torch.from_numpy(one), records.labels)
    scores = (time.perf_counter() - started) / count
    shadow = np.random.default_rng(0).normal(size=(PHASES["train"], len(points.unique)))
    started = time.perf_counter()
    for formula in range(3):
        plain_cell(points, shadow, formula, PLAIN_TARGETS)
    cell = (time.perf_counter() - started) / 3 / PLAIN_TARGETS
    print(json.dumps({"split": split, "model": extraction + scores, "target": cell}))


def bare(folder: Path) -> None:
    """Time extraction and bare products of the same shapes by turns; prints JSON."""
    records, scenario = open_world(folder)
    points = challenge_points(scenario)
    inputs = records.inputs(torch.from_numpy(points.unique))
    wanted = {"loss": metrics.loss, "confidence": metrics.confidence}
    batch = 640
    wide, deep = torch.randn(MODELS_AT_ONCE * 128, FEATURES), torch.randn(MODELS_AT_ONCE, 128, 100)
    own = torch.randn(MODELS_AT_ONCE, 200, FEATURES)
    first = torch.randn(MODELS_AT_ONCE, FEATURES, 128)
    hidden = torch.randn(MODELS_AT_ONCE, batch, 128)
    found = []
    for _ in range(REPEATS + 1):
        with tempfile.TemporaryDirectory() as temporary:
            job = Extraction(
                scenario,
                points,
                records,
                Architecture.of(MLP([FEATURES, 128, CLASSES])),
                ScoreStore(Path(temporary)),
                Processor("cpu"),
            )
            started = time.perf_counter()
            job.compute(wanted)
            extraction = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(PHASES["train"] // MODELS_AT_ONCE):
            for start in range(0, len(inputs), batch):
                some = inputs[start : start + batch]
                torch.matmul(some, wide.T)
                torch.matmul(hidden[:, : len(some)], deep)
        for _ in range((PHASES["dev"] + PHASES["final"]) // MODELS_AT_ONCE):
            torch.matmul(own, first)
            torch.matmul(hidden[:, :200], deep)
        found.append((extraction, time.perf_counter() - started))
    print(json.dumps(found[1:]))


def child(*arguments: str, cwd: Path) -> tuple[float, float, str]:
    """Run Python; seconds, peak resident memory in GB, and what it printed."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE)
    assert process.stdout is not None
    printed = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1e6, printed


def spread(values: list[float], digits: int = 1) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def main() -> None:
    if len(sys.argv) > 1:
        plain(Path(), int(sys.argv[2])) if sys.argv[1] == "plain" else bare(Path())
        return
    here = str(Path(__file__).resolve())
    cell = ["-m", "mico_exp", "dataset=purchase100", "scenario=inf", "plots=off"]
    grid = [*cell, "metric=loss,confidence", "formula=0,1,2", "-m"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_world(folder)
        parse, *_ = child(*cell, "metric=loss", "formula=0", cwd=folder)
        ours, peaks, later, ratios, memory = [], [], [], [], []
        for _ in range(REPEATS):
            subprocess.run(["rm", "-rf", "data/store"], cwd=folder, check=True)
            seconds, peak, _ = child(*grid, cwd=folder)
            full, *_ = child(*grid, cwd=folder)
            one, *_ = child(*cell, "metric=loss", "formula=0", cwd=folder)
            ours, peaks = [*ours, seconds], [*peaks, peak]
            later.append((full - one) / (CELLS - 1))
            few, many = (child(here, "plain", str(k), cwd=folder) for k in PLAIN_MODELS)
            parts = json.loads(many[2])
            models = sum(PHASES.values())
            work = parts["split"] + models * (parts["model"] + CELLS * parts["target"])
            own = PLAIN_MODELS[1] * parts["model"] + CELLS / 2 * PLAIN_TARGETS * parts["target"]
            start = many[0] - parts["split"] - own  # the interpreter, imports and the data set
            whole = work + start
            each = (many[1] - few[1]) / (PLAIN_MODELS[1] - PLAIN_MODELS[0])
            needed = many[1] + each * (PHASES["train"] - PLAIN_MODELS[1])
            ratios.append(whole / seconds)
            memory.append(needed / peak)
            print(
                f"pipeline {seconds:.1f} s, {peak:.2f} GB; plain {whole:.0f} s "
                f"({parts['model']:.2f} s a model, {parts['target']:.2f} s a target and cell, "
                f"scaled, {start:.1f} s to start), {needed:.1f} GB ({each:.3f} GB a train model)",
                flush=True,
            )
        pairs = json.loads(child(here, "bare", cwd=folder)[2])
    print(f"first cell of all, with the CSV, s {parse:.1f}")
    print(f"six-cell job, s                    {spread(ours)}")
    print(f"peak memory, GB                    {spread(peaks, 2)}")
    print(f"plain procedure / pipeline, time   {spread(ratios)}   target 25")
    print(f"plain procedure / pipeline, memory {spread(memory)}   target 16")
    print(f"extraction, s                      {spread([e for e, _ in pairs], 2)}")
    print(f"extraction / bare matmul           {spread([e / b for e, b in pairs], 2)}   target 1.6")
    print(f"cell after the first, s            {spread(later, 2)}   target 1.0")


if __name__ == "__main__":
    main()
