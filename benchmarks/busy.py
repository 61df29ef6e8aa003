"""Every command beside a busy process on each core, over its own quiet time.

.venv/bin/python benchmarks/busy.py [ROUNDS] [--only build,cell] [--busy 1] [--folder prepared]

Commands run on the embedded challenge; what one would find done is put aside while it runs. Quiet
and busy take turns, so that what else the machine does hits both.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GRID = ["metric=loss,confidence", "formula=0,1,2"]
ARCHIVE = "submissions/predictions_digits.zip"
COMMANDS = {
    "build": ["mico_exp.build", "scenario=hi"],
    "extract": ["mico_exp.extract", "metrics=all", "scenario=inf"],
    "cell": ["mico_exp", "metric=confidence", "formula=1", "scenario=inf"],
    "learned cell": ["mico_exp", "metric=all", "formula=stack", "scenario=inf"],
    "sweep": ["mico_exp", *GRID, "scenario=inf", "-m"],
    "select_best": ["mico_exp.select_best"],
    "report": ["mico_exp.report"],
    "score": ["mico_exp.score", ARCHIVE],
}
MAKES = {"build": "data/digits/digits_hi", "extract": "data/store"}  # what would be found done
TARGETS = {"build": 1.5}
OTHERS = 3.0


COMPUTING = """
import os
head = os.getppid()
while os.getppid() == head:
    sum(range(1_000_000))
"""  # and no longer than whoever asked for it


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Have processes that do nothing but compute, one on each core if there are as many."""
    started = [subprocess.Popen([sys.executable, "-c", COMPUTING]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def run(folder: Path, *arguments: str) -> float:
    """Seconds that a command takes."""
    started = time.perf_counter()
    command = [sys.executable, "-m", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def prepare(folder: Path) -> None:
    """Build the challenge, sweep it and choose, so that every command has what it needs."""
    run(folder, "mico_exp", *GRID, "-m")
    run(folder, "mico_exp.extract", "metrics=all", "scenario=inf")
    run(folder, "mico_exp.select_best")


def measure(folder: Path, name: str) -> float:
    """Seconds of one command, which finds its work to be done."""
    made = folder / MAKES.get(name, "nothing")
    aside = folder / "aside"
    if made.exists():
        made.rename(aside)
    try:
        return run(folder, *COMMANDS[name])
    finally:
        if aside.exists():
            shutil.rmtree(made, ignore_errors=True)
            aside.rename(made)


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--only", default=",".join(COMMANDS))
    cores = os.cpu_count() or 1
    parser.add_argument("--busy", type=int, default=cores, help="processes, one a core if not told")
    parser.add_argument("--folder", type=Path, help="to prepare, or prepared before; kept")
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is put aside comes back
    print(f"beside {told.busy} busy processes on {cores} cores, {told.rounds} rounds")
    print(f"{'':14}{'quiet s':24}{'busy s':24}{'busy / quiet':24}target", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = told.folder or Path(temporary)
        if not (folder / ARCHIVE).exists():
            folder.mkdir(exist_ok=True)
            prepare(folder)
        for name in filter(None, told.only.split(",")):
            quiet, beside = [], []
            for _ in range(told.rounds):
                quiet.append(measure(folder, name))
                with busy(told.busy):
                    beside.append(measure(folder, name))
            ratios = [b / q for b, q in zip(beside, quiet, strict=True)]
            figures = "".join(f"{shown(values):24}" for values in (quiet, beside, ratios))
            print(f"{name:14}{figures}{TARGETS.get(name, OTHERS)}", flush=True)


if __name__ == "__main__":
    main()
