"""The pass of gradients at Purchase-100's shape on one core, beside another checkout by turns.

    .venv/bin/python benchmarks/gradients_scale.py [other checkout]

Builds `purchase_like` without privacy with 6 + 3 + 3 MLPs of 600-128-100 and 2,000 challenge points
each, 7,700 in all, and extracts all metrics of gradients, each time into a new store, as a user
does: seconds that the command says they took. One thread; with 200 models it is linear, and what
models share counts less.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
ROUNDS = 5
WORLD = [
    *("dataset=purchase_like", "scenario=inf", "dataset.len_challenge=1000"),
    "dataset.phases={train: 6, dev: 3, final: 3}",
]


def command(checkout: Path, folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", *arguments, *WORLD]
    done = subprocess.run(
        call, cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def seconds(checkout: Path, folder: Path) -> float:
    """Seconds of one pass."""
    with tempfile.TemporaryDirectory() as store:
        told = ("mico_exp.extract", "metrics=gradients", f"paths.store={store}")
        shown = command(checkout, folder, *told)
    found = re.search(r"gradients: 12 models computed \(([\d.]+) s\)", shown)
    if found is None:
        raise SystemExit(f"{checkout}: {shown}")
    return float(found[1])


def spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def main() -> None:
    checkouts = [*(Path(one).resolve() for one in sys.argv[1:2]), HERE]
    with tempfile.TemporaryDirectory() as folder:
        command(HERE, Path(folder), "mico_exp.build")
        rounds = []
        for _ in range(ROUNDS):
            rounds.append([seconds(one, Path(folder)) for one in checkouts])
            print(" ".join(f"{one:.1f}" for one in rounds[-1]), flush=True)
    for one, found in zip(checkouts, zip(*rounds, strict=True), strict=True):
        print(f"{one.name:24} {spread(list(found), 1)} s for 12 models")
    if len(checkouts) > 1:
        ratios = [other / here for other, here in rounds]
        print(f"other / this             {spread(ratios, 2)}   target 3")


if __name__ == "__main__":
    main()
