"""Scores a submission whose truth is known, by the official rule.

``python -m mico_exp.score submissions/predictions_digits.zip [--truth FOLDER] [--conventions]``
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from mico_exp.challenge.phases import SUBMITTED
from mico_exp.common.errors import InputError
from mico_exp.common.terminal import show
from mico_exp.results.conventions import CONVENTIONS, by_convention
from mico_exp.results.scoring import OFFICIAL_FPRS, RANKING_FPR, figures
from mico_exp.results.submission import read_submission, submitted_models

COLUMNS = {f"tpr_at_fpr_{x}": f"TPR @{x}" for x in OFFICIAL_FPRS} | {
    "auc": "AUC",
    "advantage": "advantage",
    "accuracy": "accuracy",
}
Figures = dict[str, float]
Pooled = dict[str, dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]]


def score_submission(path: Path, truth: Path) -> dict[str, dict[str, Figures]]:
    """Compute the official figures of a zip: phase → scenario → figure → value.

    Raises:
        InputError: as `read_pooled` has it.
    """
    return {
        phase: {name: figures(*pair) for name, pair in of_scenario.items()}
        for phase, of_scenario in read_pooled(path, truth).items()
    }


def read_pooled(path: Path, truth: Path) -> Pooled:
    """Read membership and predictions of a zip, models pooled: phase → scenario → (N,) of both.

    Args:
        path: a zip in the official layout.
        truth: folder with ``<challenge>/<scenario>/<phase>/model_K/solution.csv``.

    Raises:
        InputError: the zip and the folder do not hold the same models and as many values of each.
    """
    models = submitted_models(path)
    _check_same_models(path, truth, models)
    solutions = _solutions(truth, models)
    predictions = read_submission(path, longest=max(map(len, solutions.values())))
    _check_lengths(path, truth, predictions, solutions)
    result: Pooled = {phase: {} for phase in SUBMITTED}
    for (phase, scenario), names in _scenarios(models).items():
        members, values = ([of[name] for name in names] for of in (solutions, predictions))
        result[phase][scenario] = np.concatenate(members), np.concatenate(values)
    return {phase: of_scenario for phase, of_scenario in result.items() if of_scenario}


def _scenarios(models: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Phase and scenario → models, in the order of the zip."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in models:
        _, scenario, phase, _ = name.split("/")
        found.setdefault((phase, scenario), []).append(name)
    return found


def _solutions(truth: Path, models: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Truth of every model; in a scenario, of both classes."""
    from mico_exp.challenge.tree import read_solution

    found = {name: read_solution(truth / name / "solution.csv") for name in models}
    for first, *others in _scenarios(models).values():
        together = np.concatenate([found[name] for name in (first, *others)])
        if together.all() or not together.any():
            raise InputError(
                f"{(truth / first).parent}: the truth must hold members and non-members, got "
                f"{int(together[0])} alone."
            )
    return found


def _check_lengths(
    path: Path,
    truth: Path,
    predictions: Mapping[str, NDArray[np.float64]],
    solutions: Mapping[str, NDArray[np.bool_]],
) -> None:
    for name, values in predictions.items():
        if len(values) != (length := len(solutions[name])):
            raise InputError(
                f"{path}: {name}/prediction.csv must hold {length} values, as "
                f"{truth / name / 'solution.csv'} does, got {len(values)}."
            )


def _check_same_models(path: Path, truth: Path, models: Sequence[str]) -> None:
    challenge = models[0].split("/")[0]  # of them all
    if not (truth / challenge).is_dir():
        raise InputError(
            f"{truth / challenge} does not exist. Name with --truth the folder that holds "
            f"{challenge}/<scenario>/{{dev,final}}/model_K/solution.csv."
        )
    solutions = (truth / challenge).glob("*/*/model_*/solution.csv")
    known = {file.parent.relative_to(truth).as_posix() for file in solutions}
    if lacking := sorted(known - set(models)):
        raise InputError(f"{path}: {lacking[0]}/prediction.csv is missing.")
    if unknown := sorted(set(models) - known):
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


def conventions_table(phase: str, pooled: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Table:
    """Lay out the TPRs of one phase by each convention, side by side."""
    result = Table(title=f"{phase}: TPR by convention (docs/figures.md)", title_justify="left")
    for title in ("scenario", "FPR"):
        result.add_column(title)
    for title in CONVENTIONS:
        result.add_column(title, justify="right")
    for scenario, pair in pooled.items():
        found = by_convention(*pair)
        for place, x in enumerate(OFFICIAL_FPRS):
            row = (f"{found[name][place]:.4f}" for name in CONVENTIONS)
            result.add_row("" if place else scenario, f"{x}", *row)
        result.add_section()
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
    parser.add_argument(
        "--conventions",
        action="store_true",
        help="print TPR strictly below each FPR, at most, interpolated and on the hull instead",
    )
    options = parser.parse_args(arguments)
    try:
        found = _tables(options.submission, options.truth, conventions=options.conventions)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    for one in found:
        show(one)
    if (other := _choice_of_another(options.submission)) is not None:
        print(f"{other} tells of another submission than this: select_best writes both.")
    return 0


def _tables(path: Path, truth: Path, *, conventions: bool) -> list[Table]:
    if conventions:
        pooled = read_pooled(path, truth)
        return [conventions_table(phase, of_scenario) for phase, of_scenario in pooled.items()]
    return [table(phase, found) for phase, found in score_submission(path, truth).items()]


def _choice_of_another(path: Path) -> Path | None:
    """The choice beside a submission, if it is not that of this one."""
    beside = path.with_name(path.name.replace("predictions_", "selection_")).with_suffix(".json")
    try:
        told = json.loads(beside.read_text(encoding="utf-8"))["submission"]
        same = told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        return None if same or told["file"] != path.name else beside
    except (OSError, ValueError, KeyError, TypeError):  # none is there, or one of before
        return None
