"""Scores a submission whose truth is known, by the official rule.

``python -m mico_exp.score submissions/predictions_digits.zip [--truth FOLDER]``
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from mico_exp.errors import InputError
from mico_exp.scoring import OFFICIAL_FPRS, RANKING_FPR, figures
from mico_exp.submission import PHASES, read_submission
from mico_exp.terminal import show

COLUMNS = {f"tpr_at_fpr_{x}": f"TPR @{x}" for x in OFFICIAL_FPRS} | {
    "auc": "AUC",
    "advantage": "advantage",
    "accuracy": "accuracy",
}
Figures = dict[str, float]


def score_submission(path: Path, truth: Path) -> dict[str, dict[str, Figures]]:
    """Compute the official figures of a zip: phase → scenario → figure → value.

    Args:
        path: a zip in the official layout.
        truth: folder with ``<challenge>/<scenario>/<phase>/model_K/solution.csv``.

    Raises:
        InputError: the zip and the folder do not hold the same models.
    """
    pooled: dict[tuple[str, str], list[tuple[NDArray[np.bool_], NDArray[np.float64]]]]
    pooled = defaultdict(list)
    predictions = read_submission(path)
    _check_same_models(path, truth, predictions)
    for name, values in predictions.items():
        _, scenario, phase, _ = name.split("/")
        pooled[phase, scenario].append((_solution(truth / name, len(values)), values))
    result: dict[str, dict[str, Figures]] = {}
    for phase in PHASES:
        for known_phase, scenario in pooled:  # in the order of the zip
            if known_phase == phase:
                solutions, rows = zip(*pooled[phase, scenario], strict=True)
                found = figures(np.concatenate(solutions), np.concatenate(rows))
                result.setdefault(phase, {})[scenario] = found
    return result


def _solution(folder: Path, length: int) -> NDArray[np.bool_]:
    from mico_exp.challenge import read_solution  # imports torch, which a wrong path need not

    return read_solution(folder / "solution.csv", length)


def _check_same_models(path: Path, truth: Path, predictions: Mapping[str, object]) -> None:
    for challenge in sorted({name.split("/")[0] for name in predictions}):
        if not (truth / challenge).is_dir():
            raise InputError(
                f"{truth / challenge} does not exist. Name with --truth the folder that holds "
                f"{challenge}/<scenario>/{{dev,final}}/model_K/solution.csv."
            )
        known = {
            file.parent.relative_to(truth).as_posix()
            for file in (truth / challenge).glob("*/*/model_*/solution.csv")
        }
        given = {name for name in predictions if name.startswith(f"{challenge}/")}
        if lacking := sorted(known - given):
            raise InputError(f"{path}: {lacking[0]}/prediction.csv is missing.")
        if unknown := sorted(given - known):
            raise InputError(f"{truth / unknown[0]}/solution.csv is missing: truth is not known.")


def mean_figures(of_scenario: Mapping[str, Figures]) -> Figures:
    """Average each figure over the scenarios; that of TPR@0.1 decides the ranking."""
    return {
        figure: float(np.mean([found[figure] for found in of_scenario.values()]))
        for figure in COLUMNS
    }


def table(phase: str, of_scenario: Mapping[str, Figures]) -> Table:
    """Lay out the official table of one phase."""
    result = Table(title=f"{phase} (ranking: mean TPR at FPR {RANKING_FPR})", title_justify="left")
    result.add_column("scenario")
    for title in COLUMNS.values():
        result.add_column(title, justify="right")
    for scenario, found in of_scenario.items():
        result.add_row(scenario, *(f"{found[figure]:.4f}" for figure in COLUMNS))
    result.add_section()
    mean = mean_figures(of_scenario)
    result.add_row("mean", *(f"{mean[figure]:.4f}" for figure in COLUMNS))
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mico_exp.score",
        description="Score a submission whose truth is known, by the competition's rule.",
    )
    parser.add_argument("submission", type=Path, help="predictions_<challenge>.zip")
    parser.add_argument(
        "--truth",
        type=Path,
        default=Path("data/truth"),
        help="folder of <challenge>/<scenario>/{dev,final}/model_K/solution.csv (data/truth)",
    )
    options = parser.parse_args(arguments)
    try:
        found = score_submission(options.submission, options.truth)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    for phase, of_scenario in found.items():
        show(table(phase, of_scenario))
    return 0


if __name__ == "__main__":
    sys.exit(main())
