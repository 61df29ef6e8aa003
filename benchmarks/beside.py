"""What users wait for, in turns with another checkout of this project.

    .venv/bin/python benchmarks/beside.py OTHER_CHECKOUT [ROUNDS] [--only NAME,NAME] [--processor]

Both run with this environment's packages, each in a folder of its own, on the embedded challenge.
In each round one follows the other, so that what else the machine does hits both; the ratio of a
round is the other's time over this one's. Medians of the rounds, with their range. `--processor`
counts the processor's seconds of all processes, which other work on the machine changes less. The
full experiment takes minutes: name it (``--only full,full_learned,select_of_all``), with 1 round.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
GRID = ["mico_exp", "metric=loss,confidence", "formula=0,1,2", "-m"]
ROUNDS = 5


def processor() -> float:
    """Seconds that the processor has worked for commands that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


clock: Callable[[], float] = time.perf_counter  # `processor` instead where that is asked for


def run(checkout: Path, folder: Path, *arguments: str) -> float:
    """Seconds that a command of a checkout takes."""
    started = clock()
    subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
    )
    return clock() - started


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def first_sweep(checkout: Path, folder: Path) -> float:
    """A sweep of 18 cells with the build of its three scenarios."""
    emptied(folder)
    return run(checkout, folder, *GRID)


def cell(checkout: Path, folder: Path) -> float:
    """One more cell of a sweep, whose scores are there: that of 18 less that of 3, over 15."""
    few = ["mico_exp", "metric=loss", "formula=0", "-m"]
    return (run(checkout, folder, *GRID) - run(checkout, folder, *few)) / 15


def select_best(checkout: Path, folder: Path) -> float:
    """The choice among 6 cells of each scenario."""
    return run(checkout, folder, "mico_exp.select_best")


def report(checkout: Path, folder: Path) -> float:
    """The report on 18 cells."""
    return run(checkout, folder, "mico_exp.report")


def build(checkout: Path, folder: Path) -> float:
    """A build of 200 models with DP-SGD."""
    shutil.rmtree(folder / "data/digits/digits_hi")
    return run(checkout, folder, "mico_exp.build", "scenario=hi")


def learned(checkout: Path, folder: Path) -> float:
    """A cell that learns: a stack of the metrics of logits, whose scores are there."""
    stack = ["mico_exp", "scenario=inf", "metric=all", "formula=stack", "plots=off"]
    stack += ["metrics=[loss,confidence,logit,margin,entropy,mod_entropy,mod_entropy_stable]"]
    return run(checkout, folder, *stack)


def make_run(checkout: Path, folder: Path) -> float:
    """What `make run` does after the install."""
    emptied(folder)
    archive = "submissions/predictions_digits.zip"
    commands = [GRID, ["mico_exp.select_best"], ["mico_exp.score", archive], ["mico_exp.report"]]
    return sum(run(checkout, folder, *one) for one in commands)


# Names that one of the checkouts lacks are left out by a glob of both.
EVERYTHING = ["mico_exp", "experiment=full", "metric=glob(*,exclude=[correct,agreement,canary_*])"]
LEARNED = ("quantile", "density_ratio", "stack", "stack_search")
OTHERS = ("midpoint", "in_mean", "standardized", "uncalibrated", "lira_script*")


def full(checkout: Path, folder: Path) -> float:
    """Every metric with every formula, but for those that learn; all scores are there."""
    formulas = f"formula=glob(*,exclude=[{','.join((*OTHERS, *LEARNED))}])"
    return run(checkout, _scored(checkout, folder), *EVERYTHING, formulas, "-m")


def full_learned(checkout: Path, folder: Path) -> float:
    """Every metric with the formulas that learn; all scores are there."""
    formulas = f"formula={','.join(LEARNED)}"
    return run(checkout, _scored(checkout, folder), *EVERYTHING, formulas, "-m")


def select_of_all(checkout: Path, folder: Path) -> float:
    """The choice among the cells of the two before."""
    return run(checkout, _scored(checkout, folder), "mico_exp.select_best")


def _scored(checkout: Path, folder: Path) -> Path:
    """A folder beside, with the scores of all metrics and no runs at first."""
    place = folder.with_name(f"{folder.name}_scored")
    if not place.exists():
        shutil.copytree(folder / "data", place / "data")
        run(checkout, place, "mico_exp.extract", "metrics=all", "-m", "scenario=inf,hi,lo")
    return place


BRIEF = (cell, select_best, report, learned, build, first_sweep, make_run)
COMMANDS: dict[str, Callable[[Path, Path], float]] = {
    one.__name__: one for one in (*BRIEF, full, full_learned, select_of_all)
}


def told(values: list[float]) -> str:
    return f"{statistics.median(values):8.2f} [{min(values):.2f}–{max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("rounds", type=int, nargs="?", default=ROUNDS)
    parser.add_argument("--only", default=",".join(one.__name__ for one in BRIEF))
    parser.add_argument("--processor", action="store_true")
    asked = parser.parse_args()
    if asked.processor:
        global clock
        clock = processor
    checkouts = [asked.other.resolve(), HERE]
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("other", "this")]
        for checkout, folder in zip(checkouts, folders, strict=True):
            folder.mkdir()
            run(checkout, folder, *GRID)
            learned(checkout, folder)  # extracts what it will find
        print(f"{'':14s}{'other, seconds':>22s}{'this, seconds':>24s}{'ratio':>22s}")
        for name in asked.only.split(","):
            found = [
                [COMMANDS[name](*one) for one in zip(checkouts, folders, strict=True)]
                for _ in range(asked.rounds)
            ]
            other, this = zip(*found, strict=True)
            ratios = [a / b for a, b in found]
            print(f"{name:14s}{told(other)}{told(this)}{told(ratios)}", flush=True)


if __name__ == "__main__":
    main()
