"""How long the main job takes, command by command, in an empty folder: `make bench`.

Prints seconds as median and range over repetitions. Needs nothing but the installed project.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 3
SWEEP = ["mico_exp", "metric=loss,confidence", "formula=0,1,2", "-m"]
ONE = ["mico_exp", "metric=loss", "formula=0", "scenario=inf"]


def seconds(folder: Path, *arguments: str) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def measure() -> dict[str, tuple[list[float], float]]:
    """Seconds of every measurement, and the target it is to stay under."""
    found: dict[str, tuple[list[float], float]] = {}

    def note(name: str, target: float, value: float) -> None:
        found.setdefault(name, ([], target))[0].append(value)

    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            note("mico_exp --help", 1.5, seconds(folder, "mico_exp", "--help"))
            note("build 600 models", 60, seconds(folder, "mico_exp.build"))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            archive = "submissions/predictions_digits.zip"
            first = seconds(folder, *SWEEP)
            selection = seconds(folder, "mico_exp.select_best")
            scored = seconds(folder, "mico_exp.score", archive)
            report = seconds(folder, "mico_exp.report")
            note("make run after the install", 180, first + selection + scored + report)
            note("  of which the sweep with build", 180, first)
            note("  of which select_best", 180, selection)
            whole, one = seconds(folder, *SWEEP), seconds(folder, *ONE)
            note("a grid cell after the first", 0.8, (whole - one) / 17)
    return found


def main() -> None:
    print(f"{'':34}{'median s':>10}{'range s':>16}{'target s':>10}")
    for name, (values, target) in measure().items():
        spread = f"{min(values):.2f} - {max(values):.2f}"
        print(f"{name:34}{statistics.median(values):>10.2f}{spread:>16}{target:>10.1f}")


if __name__ == "__main__":
    main()
