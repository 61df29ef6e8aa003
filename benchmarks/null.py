"""Challenges over nothing: no cell may find members where the weights say nothing of them.

    python benchmarks/null.py            # an hour and a half on two cores
    python benchmarks/null.py --design own shared --models 100 50 50 --cells full

Every folder of a built challenge gets another model's weights. In the design `own` each model has
challenge points of its own, as in the competition; in `shared` all have the same ones, as is usual
for LiRA. Every cell of `experiment=full` then goes through the commands, sweep and `select_best`.
The designs `pool` (every record is asked of every model) and `unequal` (models with 20 to 80 % of
their points as members) have no commands yet, and are put to the attacks as arrays.

**The bound.** Given its scores, a cell's membership is any labelling with as many members in each
model, all equally likely. So a figure less its mean over such labellings, in units of their
deviation, is nearly a standard normal variable z; and by Bonferroni all |z| of C cells and
figures lie within the 1 − 0.001/2C quantile in all but one of a thousand experiments, however they
hang together.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import norm

from mico_exp import challenge
from mico_exp.challenge import ChallengePoints, Scenario
from mico_exp.evidence import Evidence, Scores
from mico_exp.scoring import RANKING_FPR

LABELLINGS = 400
ALLOWED = 0.001  # chance that any z of an experiment lies beyond the bound
Truth = Mapping[str, np.ndarray]


# ---------------------------------------------------------------- the bound


class Labellings:
    """Labellings (R, N) of a phase's points that have as many members in each model."""

    def __init__(self, solution: np.ndarray, count: int = LABELLINGS, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.real = solution
        self.drawn = np.stack([random.permuted(solution, axis=1).ravel() for _ in range(count)])

    def deviations(self, scores: np.ndarray) -> dict[str, float]:
        """z of AUC and of TPR at FPR 0.1 of scores (T, P)."""
        every = np.concatenate([self.real.reshape(1, -1), self.drawn])
        found = {"auc": _aucs(scores.ravel(), every), "tpr": _tprs(scores.ravel(), every)}
        return {name: _standardized(values) for name, values in found.items()}


def _standardized(values: np.ndarray) -> float:
    drawn = values[1:]
    return float((values[0] - drawn.mean()) / max(drawn.std(), 1e-12))


def _aucs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUC of each labelling: members' mean rank tells it, a tie has its mean rank."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    members = labels.sum(axis=1)
    won = labels @ rank - members * (members + 1) / 2
    return won / (members * (labels.shape[1] - members))


def _tprs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """TPR of each labelling at the lowest score whose FPR is strictly below 0.1."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    members = np.cumsum(labels[:, order], axis=1)
    others = (np.arange(1, len(order) + 1) - members)[:, last]
    below = others < RANKING_FPR * others[:, -1:]
    return np.where(below, members[:, last], 0).max(axis=1) / members[:, -1]


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
        seeds = [1, 2, int(random.integers(challenge.MAX_SEED))]
        known = challenge.split(scenario.sizes, *seeds)
        assert known.solution is not None
        shown = {"seed_challenge": 0, "seed_training": 1, "seed_membership": 2}
        for name, place in shown.items():
            if (model.path / name).exists():
                (model.path / name).write_text(f"{seeds[place]}\n")
        truth = model.path if phase == "train" else _truth(root, scenario, phase) / model.path.name
        (truth / "solution.csv").write_text(challenge.write_solution(known.solution))


def _truth(root: Path, scenario: Scenario, phase: str) -> Path:
    place = challenge.truth_folder(root)
    return challenge.scenario_folder(place, scenario.challenge, scenario.name) / phase


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
