"""A LiRA pool: every model of 256 judged by the 255 others at 50,000 records.

    .venv/bin/python benchmarks/lira_pool.py                     # ten minutes on two slow cores
    .venv/bin/python benchmarks/lira_pool.py --script plot.py    # beside a published script
    .venv/bin/python benchmarks/lira_pool.py --models 32 --records 5000

Each cell in a process of its own: seconds of calibration alone, by the clock and of a processor,
seconds of all that a run takes from scores to figures with their intervals, and peak memory. Beside
it, by processor seconds in the same run, the
published online attack with one target after another, its first targets timed and scaled to all:
a script's own `generate_ours(keep, scores, check_keep, check_scores)` if a path is given, of which
imports and functions alone are run, or the same written out here.
"""

import argparse
import ast
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from mico_exp.attacks import formulas
from mico_exp.attacks.evidence import Evidence
from mico_exp.challenge.points import ChallengePoints
from mico_exp.results.cell import evaluate
from mico_exp.scores.table import Scores

CELLS = {
    "loss/0": partial(formulas.offset, w=0.5),
    "loss/1": partial(formulas.offset, w=1.0),
    "loss/2": partial(formulas.offset, w="counts", k=1.0, scale="all"),
    "logit/lira_online": formulas.lira_online,
    "logit/lira_offline": formulas.lira_offline,
    "logit/lira_shrunk": formulas.lira_shrunk,
    "confidence/rmia_online": formulas.rmia_online,
    "confidence/rmia_offline": formulas.rmia_offline,
    "logit/attack_r": formulas.attack_r,
    "logit/medians": partial(formulas.offset, centre="median", k=1.0, scale="shrunk"),
}
METRICS = {
    "logit": lambda phi: phi,
    "confidence": lambda phi: 1 / (1 + np.exp(-phi)),
    "loss": lambda phi: -np.logaddexp(0, -phi),
}


def made(models: int, records: int) -> tuple[np.ndarray, np.ndarray]:
    """φ (M, N) of models that leak, and membership: half of the models at each record."""
    random = np.random.default_rng(0)
    keep = random.random((models, records)).argsort(axis=0) < models // 2
    level = random.normal(3, 3, size=records)
    return level + random.normal(size=keep.shape) + 0.5 * keep, keep


def evidence_of(phi: np.ndarray, keep: np.ndarray, metric: str) -> Evidence:
    scores = METRICS[metric](phi)
    records = keep.shape[1]
    every = np.arange(records)
    of_phase = {"train": np.broadcast_to(every, keep.shape)}
    points = ChallengePoints(of_phase, every, keep, keep)
    return Evidence({metric: Scores(scores, {"train": scores})}, points, np.zeros(records, int))


def cell(name: str, models: int, records: int, rounds: int) -> None:
    """Measure one cell, and print it."""
    phi, keep = made(models, records)
    evidence = evidence_of(phi, keep, name.partition("/")[0])
    del phi, keep
    found: dict[str, Any] = {"calibration": [], "processor": [], "whole": []}
    for _ in range(rounds):
        started, processor = time.perf_counter(), time.process_time()
        evidence.calibrated(CELLS[name], evidence.only, "train")
        found["calibration"].append(time.perf_counter() - started)
        found["processor"].append(time.process_time() - processor)
        started = time.perf_counter()
        evaluate(evidence, CELLS[name], {})
        found["whole"].append(time.perf_counter() - started)
    found["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(found))


def written_out(
    keep: np.ndarray,
    scores: np.ndarray,
    check_keep: np.ndarray,  # noqa: ARG001
    check_scores: np.ndarray,
) -> None:
    """LiRA online, record after record, each cut to the fewest models of any on its side."""
    sides = []
    for mask in (keep, ~keep):
        columns = [scores[mask[:, record], record] for record in range(scores.shape[1])]
        fewest = min(map(len, columns))
        sides.append(np.array([column[:fewest] for column in columns]))
    middles = [np.median(side, axis=1) for side in sides]
    spreads = [side.std(axis=1) + 1e-30 for side in sides]
    for own in check_scores:
        densities = [
            norm.logpdf(own, middle, spread)
            for middle, spread in zip(middles, spreads, strict=True)
        ]
        (densities[0] - densities[1]).mean(axis=1)


def published(path: Path | None) -> Any:
    """The online attack of a script, or the one above."""
    if path is None:
        return written_out
    kinds = ast.Import | ast.ImportFrom | ast.FunctionDef
    tree = ast.parse(path.read_text())
    tree.body = [part for part in tree.body if isinstance(part, kinds)]
    names: dict[str, Any] = {}
    exec(compile(tree, str(path), "exec"), names)
    return names["generate_ours"]


def one_after_another(attack: Any, models: int, records: int, targets: int) -> list[float]:
    """Processor seconds of each of the first targets, judged by all other models."""
    phi, keep = made(models, records)
    found = []
    for target in range(targets):
        others = np.arange(models) != target
        started = time.process_time()
        scores = phi[others][..., np.newaxis]
        attack(keep[others], scores, keep[[target]], phi[[target], :, np.newaxis])
        found.append(time.process_time() - started)
    return found


def told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):7.2f} ({min(seconds):.2f} - {max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=256)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--targets", type=int, default=8, help="that the script is timed on")
    parser.add_argument("--script", type=Path)
    parser.add_argument("--only", choices=CELLS, nargs="*", default=list(CELLS))
    parser.add_argument("--cell", choices=CELLS)
    asked = parser.parse_args()
    if asked.cell:
        cell(asked.cell, asked.models, asked.records, asked.rounds)
        return
    print(f"{asked.models} models x {asked.records} records, load {os.getloadavg()[0]:.1f}")
    titles = ("seconds of calibration", "processor seconds of it", "of the whole cell")
    print(f"{'':24} " + "  ".join(f"{title:24}" for title in titles) + "  peak")
    passed = [f"--{name}={getattr(asked, name)}" for name in ("models", "records", "rounds")]
    fastest = {}
    for name in asked.only:
        command = [sys.executable, __file__, f"--cell={name}", *passed]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        fastest[name] = statistics.median(found["processor"])
        line = "  ".join(
            f"{told(found[part]):24}" for part in ("calibration", "processor", "whole")
        )
        print(f"{name:24} {line}  {found['gigabytes']:.2f} GB", flush=True)
    alone = one_after_another(published(asked.script), asked.models, asked.records, asked.targets)
    every = statistics.median(alone) * asked.models
    print(f"the published attack: {told(alone)} processor s a target, {every:.0f} s for all")
    for name, seconds in fastest.items():
        print(f"{name:24} {every / seconds:.0f} times as fast")


if __name__ == "__main__":
    main()
