"""Challenges over nothing: no cell may find members where the weights say nothing of them.

    .venv/bin/python benchmarks/null.py                        # a quarter of an hour
    .venv/bin/python benchmarks/null.py --design shared --models 40 10 10

Every folder of a built challenge gets another model's weights. In the design `own` each model has
challenge points of its own, as in the competition; in `shared` all have the same ones, as is usual
for LiRA. Every cell of `experiment=full` then goes through the commands, sweep and `select_best`.
In the designs `pool` (every record is asked of every model) and `unequal` (models with 20 to 80 %
of their points as members) models are known by their scores alone; every formula goes through the
commands too, and what takes several metrics is put to the attack as arrays.

**The bound.** A figure is compared with chance: AUC with ½, TPR at the official threshold with the
FPR there. Rows of one model share its training, and rows of one point its shadow models, so the
error is clustered both ways (Cameron, Gelbach & Miller 2011), and the quotient is Student's t with
as many degrees of freedom as there are models or points, whichever is less, less one. It is given
as the normal deviate z of the same chance. By Bonferroni all |z| of C cells and figures lie within
the 1 − 0.001/2C quantile in all but one of a thousand experiments, however they hang together.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra import compose, initialize_config_dir
from scipy.stats import norm
from scipy.stats import t as student

from mico_exp.attacks.evidence import Evidence
from mico_exp.attacks.learned import Stack
from mico_exp.challenge.points import ChallengePoints, challenge_points
from mico_exp.challenge.protocol import MAX_SEED, Sizes, split
from mico_exp.challenge.tree import Scenario, load_scenario, scenario_folder, write_solution
from mico_exp.challenge.truth import read_truth, truth_folder
from mico_exp.config import options
from mico_exp.config.cells import COMBINED
from mico_exp.config.making import make
from mico_exp.config.typed import OPTIONS
from mico_exp.results.cell import calibrate_phases, read_predictions
from mico_exp.results.scoring import RANKING_FPR, roc
from mico_exp.results.selection import RULES
from mico_exp.runs.cells_alike import cells
from mico_exp.runs.record import PREDICTIONS, cells_of
from mico_exp.runs.tracking import Tracker
from mico_exp.scores.table import Scores

ALLOWED = 0.001  # chance that any z of an experiment lies beyond the bound
Truth = Mapping[str, np.ndarray]


# ---------------------------------------------------------------- the bound


class Chance:
    """How far figures of a phase lie from chance.

    Args:
        solution: (T, P) membership.
        points: (T, P) which point each is.
    """

    def __init__(self, solution: np.ndarray, points: np.ndarray) -> None:
        self.solution = solution
        self.is_member = solution.ravel()
        self.model = np.repeat(np.arange(len(solution)), solution.shape[1])
        self.point = np.unique(points, return_inverse=True)[1].ravel()

    def deviations(self, scores: np.ndarray) -> dict[str, float]:
        """z of AUC and of TPR at FPR 0.1 of scores (T, P)."""
        curve = roc(self.solution, scores)
        rank = {kind: np.sort(scores.ravel()[self.is_member == kind]) for kind in (True, False)}
        others = rank[False], rank[True]
        below = [np.searchsorted(one, scores.ravel(), "left") / len(one) for one in others]
        until = [np.searchsorted(one, scores.ravel(), "right") / len(one) for one in others]
        wins = np.where(self.is_member, (below[0] + until[0]) / 2, 1 - (below[1] + until[1]) / 2)
        place = curve.place(RANKING_FPR)
        called = scores.ravel() >= curve.threshold[place]
        rates = np.where(self.is_member, called - curve.tpr[place], curve.fpr[place] - called)
        return {
            "auc": self._z(curve.auc - 0.5, wins - curve.auc),
            "tpr": self._z(curve.tpr[place] - curve.fpr[place], rates),
        }

    def _z(self, value: float, parts: np.ndarray) -> float:
        """Deviation of a value whose rows pull it by `parts`, each as a share of its class."""
        count = np.where(self.is_member, self.is_member.sum(), (~self.is_member).sum())
        pull = parts / count
        by_row = np.square(pull).sum()
        both = [np.square(np.bincount(one, pull)).sum() for one in (self.model, self.point)]
        groups = [int(one.max()) + 1 for one in (self.model, self.point)]
        both = [one * n / max(n - 1, 1) for one, n in zip(both, groups, strict=True)]
        variance = max(sum(both) - by_row, *both, by_row)
        if variance <= 0:
            return 0.0
        share = student.sf(abs(value) / math.sqrt(variance), min(groups) - 1)
        return math.copysign(float(norm.isf(share)), value)


def bound(figures: int) -> float:
    """Largest |z| of so many figures that chance allows."""
    return float(norm.isf(ALLOWED / (2 * figures)))


# ---------------------------------------------------------------- trees over nothing


def mislead(root: Path, scenario: Scenario, *, shared: bool) -> None:
    """Give every folder of a built scenario another's weights, and where asked the same points.

    Training sets then have nothing to do with the weights; seeds, solutions and truth agree.
    """
    folders = [model.path for _, model in scenario.models()]
    weights = [(folder / "model.pt").read_bytes() for folder in folders]
    for folder, other in zip(folders, weights[1:] + weights[:1], strict=True):
        (folder / "model.pt").write_bytes(other)
    if not shared:
        return
    random = np.random.default_rng(0)
    for phase, model in scenario.models():
        seeds = [1, 2, int(random.integers(MAX_SEED))]
        known = split(scenario.sizes, *seeds)
        assert known.solution is not None
        shown = {"seed_challenge": 0, "seed_training": 1, "seed_membership": 2}
        for name, place in shown.items():
            if (model.path / name).exists():
                (model.path / name).write_text(f"{seeds[place]}\n")
        truth = model.path if phase == "train" else _truth(root, scenario, phase) / model.path.name
        (truth / "solution.csv").write_text(write_solution(known.solution))


def _truth(root: Path, scenario: Scenario, phase: str) -> Path:
    place = truth_folder(root)
    return scenario_folder(place, scenario.challenge, scenario.name) / phase


# ---------------------------------------------------------------- arrays over nothing


def pool(
    models: int = 40,
    targets: int = 20,
    records: int = 100,
    metrics: int = 3,
    unequal: bool = False,
    seed: int = 0,
) -> tuple[Evidence, Truth]:
    """Evidence in which every record is asked of every model, and membership says nothing.

    unequal: models have 20 to 80 % of the records as members.
    """
    random = np.random.default_rng(seed)
    share = (
        random.uniform(0.2, 0.8, models + targets) if unequal else np.full(models + targets, 0.5)
    )
    trained = random.random((models + targets, records)) < share[:, None]
    level = random.normal(size=records) * 2  # how hard a record is for everyone
    spread = 0.5 + np.abs(random.normal(size=records))
    columns = np.tile(np.arange(records), (models + targets, 1))
    scores = {}
    for number in range(metrics):
        values = level + spread * random.normal(size=trained.shape)
        own = {"train": values[:models], "dev": values[models:]}
        scores[f"metric_{number}"] = Scores(values[:models], own)
    of_phase = {"train": columns[:models], "dev": columns[models:]}
    points = ChallengePoints(of_phase, np.arange(records), trained[:models], trained[:models])
    labels = random.integers(4, size=records)
    truth = {"train": trained[:models], "dev": trained[models:]}
    return Evidence(scores, points, labels), truth


def only(evidence: Evidence) -> Evidence:
    """Keep the first metric."""
    name, scores = next(iter(evidence.scores.items()))
    return replace(evidence, scores={name: scores})


# ---------------------------------------------------------------- through the commands


class Figure(NamedTuple):
    """How far a figure lies from chance."""

    z: float
    design: str
    cell: str
    phase: str
    name: str


def sweep(folder: Path, design: str, sizes: Sequence[int], challenge_points: int) -> list[Figure]:
    """Build, mislead, sweep every cell and choose, by the commands; z of every figure."""
    train, dev, final = sizes
    phases = f"dataset.phases={{train: {train}, dev: {dev}, final: {final}}}"
    given = [phases, f"dataset.len_challenge={challenge_points}"]
    command("mico_exp.build", *given, "scenario=inf", "dataset.recipe.steps=100", cwd=folder)
    size = Sizes(1797, 300, challenge_points)
    scenario = load_scenario(folder / "data", "digits", "digits_inf", size)
    mislead(folder / "data", scenario, shared=design == "shared")
    scenario = load_scenario(folder / "data", "digits", "digits_inf", size)
    given.append("dataset.recipe=null")
    command("mico_exp", "experiment=full", "scenario=inf", *given, "-m", cwd=folder)
    found = list(_of_cells(folder, design, scenario))
    for rule in RULES:
        choose = ["scenarios=[inf]", f"selection.rule={rule}", given[1]]
        command("mico_exp.select_best", *choose, cwd=folder)
        found.append(_of_choice(folder, design, scenario, rule))
    return found


def command(module: str, *words: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", module, *words], cwd=cwd, check=True, capture_output=True)


def _of_cells(folder: Path, design: str, scenario: Scenario) -> Iterator[Figure]:
    truth = read_truth(folder / "data", scenario)
    found = challenge_points(scenario)
    truth["train"], points = found.solution, found.of_phase
    chance = {phase: Chance(solution, points[phase]) for phase, solution in truth.items()}
    tracker = Tracker(scenario.challenge, folder, create=False)
    for run, record in cells(tracker.finished(cells_of(scenario.challenge))):
        with tempfile.TemporaryDirectory() as temporary:
            path = tracker.artifact(run.id, PREDICTIONS, Path(temporary))
            predictions = read_predictions(path)
        for phase, rows in predictions.items():
            for name, z in chance[phase].deviations(rows).items():
                yield Figure(z, design, record.cell, phase, name)


OPTION = """\
name: nothing
outputs: {_target_: mico_exp.challenge.outputs.arrays, file: nothing.npz}
scenarios: [inf]
"""


def taken_in(
    folder: Path, design: str, formulas: Sequence[str], run: Any, seed: int = 0
) -> list[Figure]:
    """Put a pool over nothing to formulas by the main command; z of every figure.

    run: what runs it, as `command` does.
    """
    evidence, truth = pool(metrics=1, unequal=design == "unequal", seed=seed)
    own = evidence.only.own
    kept = {"scores": np.concatenate(list(own.values()))}
    kept["keep"] = np.concatenate([truth[phase] for phase in own])
    kept["phases"] = np.repeat(list(own), [len(rows) for rows in own.values()])
    np.savez(folder / "nothing.npz", **kept)
    option = folder / "options" / "dataset" / "nothing.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(OPTION)
    grid = ["metric=logit", f"formula={','.join(formulas)}", "plots=off", "-m"]
    run("mico_exp", "--config-dir=options", "dataset=nothing", *grid, cwd=folder)
    sizes = Sizes(len(evidence.points.unique))
    scenario = load_scenario(folder / "data", "nothing", "nothing_inf", sizes)
    return list(_of_cells(folder, design, scenario))


def _of_choice(folder: Path, design: str, scenario: Scenario, rule: str) -> Figure:
    """z of the nested estimate: its own interval's half width is 1.96 deviations."""
    report = json.loads((folder / "submissions" / "selection_digits.json").read_text())
    found = report["scenarios"][scenario.name]
    low, high = found["procedure_interval"]
    z = (found["procedure"] - RANKING_FPR) / ((high - low) / 2 / 1.96)
    return Figure(z, design, f"choice by {rule}", "train", "nested")


def arrays(design: str, seeds: int) -> list[Figure]:
    """z of every formula and attack on arrays, several experiments together."""
    found = []
    for name, attack in attacks().items():
        total: dict[tuple[str, str], float] = {}
        for seed in range(seeds):
            evidence, truth = pool(unequal=design == "unequal", seed=seed)
            some = evidence if isinstance(attack, Stack) else only(evidence)
            for phase, one in calibrate_phases(some, attack).items():
                chance = Chance(truth[phase], evidence.points.of_phase[phase])
                for figure, z in chance.deviations(one.predictions).items():
                    total[phase, figure] = total.get((phase, figure), 0.0) + z
        found += [
            Figure(z / math.sqrt(seeds), design, name, phase, figure)
            for (phase, figure), z in total.items()
        ]
    return found


def attacks() -> dict[str, Any]:
    """Every formula that takes scores of any kind, as its option has it."""
    found = {}
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        for name in options.option_names("formula"):
            option = compose("config", overrides=[f"formula='{name}'"]).formula
            if option.name != name or name.startswith("lira_script"):
                continue  # another's name, or for pools in which no record lacks models
            if set(option.get("needs") or ()) <= {COMBINED}:
                found[name] = make(option.function)
    return found


def tell(figures: Sequence[Figure]) -> bool:
    """Print how far from chance the figures are; says whether all are within the bound."""
    limit = bound(len(figures))
    print(f"{len(figures)} figures, bound |z| <= {limit:.2f}")
    for design in dict.fromkeys(one.design for one in figures):
        some = [one for one in figures if one.design == design]
        worst = max(some, key=lambda one: abs(one.z))
        mean = np.mean([one.z for one in some])
        print(
            f"  {design:8} {len(some):5} figures, mean z {mean:+.2f}, farthest {worst.z:+.2f}: "
            f"{worst.cell} {worst.phase} {worst.name}"
        )
    beyond = [one for one in figures if abs(one.z) > limit]
    for one in beyond:
        print(f"  BEYOND: {one}")
    return not beyond


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    every = ["own", "shared", "pool", "unequal"]
    parser.add_argument("--design", nargs="+", default=every, choices=every)
    parser.add_argument("--models", nargs=3, type=int, default=[100, 50, 50])
    parser.add_argument("--points", type=int, default=50, help="members of a model's points")
    parser.add_argument("--seeds", type=int, default=10, help="experiments on arrays")
    given = parser.parse_args()
    figures: list[Figure] = []
    for design in given.design:
        if design in ("own", "shared"):
            with tempfile.TemporaryDirectory() as folder:
                figures += sweep(Path(folder), design, given.models, given.points)
        else:
            figures += arrays(design, given.seeds)
            single = [name for name, one in attacks().items() if not isinstance(one, Stack)]
            with tempfile.TemporaryDirectory() as folder:
                figures += taken_in(Path(folder), design, single, command)
    return 0 if tell(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
