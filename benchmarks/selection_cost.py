"""What intervals, plots, the choice among 300 cells and the report cost.

    .venv/bin/python benchmarks/selection_cost.py

1. 1,000 draws of 100 models × 200 points, for TPR at six FPRs and AUC;
2. a run's two plots, with the interval's band, drawn and saved;
3. 300 cells of 100 models × 200 points, logged as MLflow runs, read back and compared;
4. `python -m mico_exp.report` after the sweep of 18 runs on the embedded challenge.
"""

import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mico_exp.results.cell import write_predictions
from mico_exp.results.plots import PHASE_STYLE, Curve, roc_plot, scores_plot
from mico_exp.results.scoring import RANKING_FPR, roc
from mico_exp.results.statistics import intervals
from mico_exp.runs.cells_alike import candidate, cells, judge
from mico_exp.runs.record import PREDICTIONS, VALIDATED_TPR, CellRecord, cells_of
from mico_exp.runs.tracking import Tracker

MODELS, POINTS, CELLS, REPEATS = 100, 200, 300, 5


def made(random) -> tuple[np.ndarray, np.ndarray]:
    truth = np.tile(np.arange(POINTS) % 2 == 0, (MODELS, 1))
    scores = random.normal(size=truth.shape) + 0.6 * truth
    return truth, ((scores - scores.min()) / np.ptp(scores)).astype(np.float32)


def timed(action) -> list[float]:
    action()
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return found


def draw_run(folder: Path, truth, predictions, out_models) -> None:
    """The plots of one run, with dev and final beside validation."""
    curve = roc(truth, predictions)
    halves = {"dev": slice(0, 50), "final": slice(50, 100)}
    curves = [Curve("validation", curve, truth.size, PHASE_STYLE["train"], truth, predictions)]
    for name, some in halves.items():
        one = roc(truth[some], predictions[some])
        curves.append(Curve(name, one, truth[some].size, PHASE_STYLE[name]))
    roc_plot("digits_inf: metric loss, formula 0", curves).savefig(folder / "roc.png")
    threshold = float(curve.threshold[curve.place(RANKING_FPR)])
    plot = scores_plot("digits_inf", truth, predictions, out_models, threshold)
    plot.savefig(folder / "scores.png")


def log_cells(tracker: Tracker, random) -> None:
    for i in range(CELLS):
        truth, predictions = made(random)
        figures = {VALIDATED_TPR: roc(truth, predictions).tpr_at(RANKING_FPR)}
        record = CellRecord("digits", "digits", "inf", f"metric{i}", "0", figures=figures)
        with tracker.run(record.name, record.to_run().tags) as run:
            run.note(record.to_run())
            write_predictions(run.artifacts / PREDICTIONS, {"train": predictions}, truth)


def choose(tracker: Tracker) -> None:
    found = list(map(candidate, cells(tracker.finished(cells_of("digits")))))
    assert len(judge(tracker, found).cells) == CELLS


def report(folder: Path) -> list[float]:
    grid = [sys.executable, "-m", "mico_exp", "metric=loss,confidence", "formula=0,1,2", "-m"]
    subprocess.run(grid, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "mico_exp.report"]
    return timed(lambda: subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):7.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    random = np.random.default_rng(0)
    truth, predictions = made(random)
    out_models = random.integers(40, 60, size=truth.shape)
    print("seconds                                                     target")
    found = timed(lambda: intervals(truth, predictions))
    print(f"intervals, 100 x 200 scores    {spread(found)}   0.5")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = timed(lambda: draw_run(folder, truth, predictions, out_models))
        print(f"plots of a run                 {spread(found)}   0.35")
        tracker = Tracker("digits", folder)
        log_cells(tracker, random)
        print(f"choice among {CELLS} cells        {spread(timed(lambda: choose(tracker)))}   30")
    with tempfile.TemporaryDirectory() as temporary:
        print(f"report of 18 runs              {spread(report(Path(temporary)))}   10")


if __name__ == "__main__":
    main()
