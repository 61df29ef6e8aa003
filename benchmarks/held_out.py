"""The full grid beside the winner's procedure, on models that took no part in any choice.

    .venv/bin/python benchmarks/held_out.py [folder] [--seeds 11 12 13] [--jobs 2]

For each data set, scenario and seed a challenge is built (100 train, 50 dev, 50 final models), and
every cell of `experiment=full` is calibrated. Then two procedures choose a cell by the train
models' leave-one-out validation alone: the winner's, the highest TPR@0.1FPR of his six cells; and
ours, `RULE` on all cells (`selection.rule=auc_one_se`). Both chosen cells are scored on dev and on
final models by the official rule, and the two figures averaged. Intervals are a paired bootstrap
over those models, 95 %.

What has been done stays in the folder (a temporary one unless named), and is not done again; a
folder that other code has written is refused. Every default (dampings, temperature, penalty, the
rule, the generated records' noise) was set on seeds 0, 1 and 2, which are of no table.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process for each core instead

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from tqdm import tqdm

from mico_exp.attacks.evidence import Attack, Evidence
from mico_exp.challenge.truth import read_truth
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import digest
from mico_exp.config import cells, codes, options
from mico_exp.config import compose as config
from mico_exp.config.making import make
from mico_exp.config.metrics import all_metrics
from mico_exp.config.typed import OPTIONS
from mico_exp.results.cell import (
    calibrate_phases,
    read_predictions,
    read_validation,
    write_predictions,
)
from mico_exp.results.scoring import RANKING_FPR, roc
from mico_exp.results.selection import auc_within_one_se, highest
from mico_exp.results.statistics import Ranked, compare, draw, interval

DATASETS, SCENARIOS = ("digits", "purchase_like"), ("inf", "hi", "lo", "ddp")
WINNER = [f"{metric}/{formula}" for metric in ("loss", "confidence") for formula in "012"]
RULE = auc_within_one_se
HELD_OUT = ("dev", "final")
DRAWS = 2000
ALIASES = {"midpoint", "in_mean", "standardized", "uncalibrated"}
SCRIPT = "lira_script"  # for pools in which no record lacks models
TOLD = {  # on ddp: an attack that uses disclosed training sets, and what is nearest to it without
    # them. The first pair is the goal's: the same attack, but for the metrics that it may see.
    "all/stack": "undisclosed/stack",
    "kfac_disclosed/lira_shrunk": "kfac_high/lira_shrunk",
    "logit/conformal": "logit/0",
    "logit/density_ratio": "logit/0",
    "confidence/rmia_disclosed": "confidence/rmia_online",
}
SCARCE = (1.28, 2.5, 5.0, 10.0)  # out models a point, on average; SST-2 has 1.28 of 100
SCARCE_METRICS = ("logit", "confidence")


class Case(NamedTuple):
    """One built scenario."""

    dataset: str
    scenario: str
    seed: int

    def place(self, folder: Path) -> Path:
        """Where its predictions lie."""
        return folder / f"{self.dataset}_{self.seed}" / "cells" / self.scenario


# ---------------------------------------------------------------- attacking


def attack(folder: Path, case: Case) -> None:
    """Build a scenario, and write the predictions of every cell that are not there."""
    torch.set_num_threads(1)
    given = [f"dataset={case.dataset}", f"scenario='{case.scenario}'", f"seed={case.seed}"]
    given.append(f"paths.data={folder / f'{case.dataset}_{case.seed}'}")
    if case.dataset == "purchase_like":
        given.append(f"dataset.records.seed={case.seed}")
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        cfg: Any = compose("config", overrides=given, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        cells = sensible(case.scenario)
        place = case.place(folder)
        if all(path_of(place, name).exists() for name, _, _ in planned(case, cells)):
            return
        evidence, truth = look(cfg)
        place.mkdir(parents=True, exist_ok=True)
        np.savez(place / "truth.npz", **truth)
        for name, some, formula in planned(case, cells):
            if not (path := path_of(place, name)).exists():
                found = calibrate_phases(narrowed(evidence, some, case.seed), formula)
                predictions = {phase: one.predictions for phase, one in found.items()}
                write_predictions(path, predictions, evidence.points.solution)


def claim(folder: Path) -> None:
    """Make the folder this code's.

    Raises:
        InputError: other code, of any metric or formula, has written it.
    """
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        codes = [
            codes.present_code(group, name)
            for group in ("metric", "formula")
            for name in options.option_names(group)
        ]
    code, mark = digest(*codes), folder / "code"
    if mark.exists() and mark.read_text() != code:
        raise InputError(f"{folder} was written by other code: name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(code)


def path_of(place: Path, cell: str) -> Path:
    return place / f"{cell.replace('/', '__')}.npz"


def sensible(scenario: str) -> list[tuple[str, str]]:
    """Metric and formula of every cell of `experiment=full`."""
    formulas = [
        name
        for name in options.option_names("formula")
        if name not in ALIASES and not name.startswith(SCRIPT)
    ]
    jobs = [
        [f"metric={metric}", f"formula='{formula}'", f"scenario='{scenario}'"]
        for metric, formula in product(options.option_names("metric"), formulas)
    ]
    kept = cells.sensible_cells(jobs, "skip")
    return [(metric[7:], formula[9:-1]) for metric, formula, _ in kept]


class Some(NamedTuple):
    """Part of the evidence: some metrics (None for all), and out models a point (None for all)."""

    metrics: tuple[str, ...] | None
    out_models: float | None = None


def planned(case: Case, cells: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Some, Any]]:
    """Every cell by name, what it may see and its formula; then those of the other tables."""
    for metric, formula in cells:
        name = f"{metric}/{formula}"
        yield name, Some(None if metric == cells.COMBINED else (metric,)), made(formula)
    if case.scenario == "ddp":
        undisclosed = tuple(all_metrics(disclosed=False))
        yield "undisclosed/stack", Some(undisclosed), made("stack")
    if case.scenario in ("inf", "lo"):
        for (metric, formula), out in product(cells, SCARCE):
            if metric in SCARCE_METRICS and not isinstance(made(formula), Attack):
                yield f"{metric}/{formula}@{out}", Some((metric,), out), made(formula)


@cache
def made(formula: str) -> Any:
    return make(compose("config", overrides=[f"formula='{formula}'"]).formula.function)


def look(cfg: Any) -> tuple[Evidence, dict[str, np.ndarray]]:
    """Build, extract every metric, and read the evidence and dev's and final's truth."""
    setup = config.setup(cfg)
    setup.build()
    metrics = all_metrics(disclosed=setup.discloses)
    setup.extraction.compute(metrics)
    evidence = setup.evidence(metrics)
    assert evidence is not None
    return evidence, read_truth(setup.root, setup.found)


def narrowed(evidence: Evidence, some: Some, seed: int) -> Evidence:
    """Keep some metrics, and at every point some of the out models."""
    names = evidence.scores if some.metrics is None else some.metrics
    scores = {name: evidence.scores[name] for name in names}
    if some.out_models is None:
        return replace(evidence, scores=scores)
    outside = ~evidence.points.is_member
    share = some.out_models / outside.sum(axis=0).mean()
    withheld = outside & (np.random.default_rng(seed).random(outside.shape) >= share)
    return replace(
        evidence,
        scores={
            name: replace(one, shadow=np.where(withheld, np.nan, one.shadow))
            for name, one in scores.items()
        },
    )


# ---------------------------------------------------------------- judging


@dataclass(frozen=True, eq=False)
class Held:
    """A cell on dev and final models: the mean of the two figures, and (R,) draws of it."""

    tpr: float
    auc: float
    tpr_draws: np.ndarray
    auc_draws: np.ndarray


class Judge:
    """Chooses by validation, and scores on dev and final models."""

    def __init__(self, folder: Path, case: Case, number: int) -> None:
        self.place, self.number = case.place(folder), number
        with np.load(self.place / "truth.npz") as file:
            self.truth = {phase: file[phase] for phase in HELD_OUT}
        self._held: dict[str, Held] = {}

    @property
    def cells(self) -> list[str]:
        """Cells of the full grid, in a fixed order."""
        names = [path.stem.replace("__", "/") for path in sorted(self.place.glob("*__*.npz"))]
        return [name for name in names if "@" not in name and not name.startswith("undisclosed")]

    def choose(self, cells: Sequence[str], rule: Any) -> str:
        """Take a cell by the train models' validation."""
        validation = (read_validation(path_of(self.place, name)) for name in cells)
        return cells[compare(validation, rule, count=300, halvings=0).chosen]

    def validated(self, cell: str) -> float:
        """Validation TPR."""
        return roc(*read_validation(path_of(self.place, cell))).tpr_at(RANKING_FPR)

    def held(self, cell: str) -> Held:
        """Score a cell on dev and final models."""
        if cell not in self._held:
            predictions = read_predictions(path_of(self.place, cell))
            parts = []
            for i, phase in enumerate(HELD_OUT):
                truth, predicted = self.truth[phase], predictions[phase]
                ranked, curve = Ranked(truth, predicted), roc(truth, predicted)
                weights = draw(len(truth), DRAWS, seed=2 * self.number + i)
                draws = ranked.tpr_at(RANKING_FPR, weights), ranked.auc(weights)
                parts.append((curve.tpr_at(RANKING_FPR), curve.auc, *draws))
            self._held[cell] = Held(*(np.mean(pair, axis=0) for pair in zip(*parts, strict=True)))
        return self._held[cell]


class Gain(NamedTuple):
    """One attack's held-out figures beside another's, on one case or the mean of several."""

    ours: np.ndarray  # (2,) TPR and AUC
    theirs: np.ndarray
    draws: np.ndarray  # (2, R) of the difference

    @classmethod
    def of(cls, ours: Held, theirs: Held) -> "Gain":
        """Compare two cells of a case."""
        draws = [ours.tpr_draws - theirs.tpr_draws, ours.auc_draws - theirs.auc_draws]
        pair = [np.array([one.tpr, one.auc]) for one in (ours, theirs)]
        return cls(*pair, np.array(draws))

    @classmethod
    def mean(cls, gains: Sequence["Gain"]) -> "Gain":
        """Mean over independent cases."""
        return cls(*(np.mean(parts, axis=0) for parts in zip(*gains, strict=True)))

    def __str__(self) -> str:
        (tpr, auc), (tpr_low, tpr_high) = self.ours - self.theirs, interval(self.draws[0])
        auc_low, auc_high = interval(self.draws[1])
        return (
            f"{self.theirs[0]:.4f} | {self.ours[0]:.4f} | {tpr:+.4f} ({tpr / self.theirs[0]:+.1%}) "
            f"[{tpr_low:+.4f}, {tpr_high:+.4f}] | {self.theirs[1]:.4f} | {self.ours[1]:.4f} | "
            f"{auc:+.4f} [{auc_low:+.4f}, {auc_high:+.4f}]"
        )


HEADER = "TPR theirs | TPR ours | difference | AUC theirs | AUC ours | difference |"


def table(first: Sequence[str]) -> None:
    """Begin a Markdown table whose last columns are a gain's."""
    print(f"| {' | '.join(first)} | {HEADER}")
    print("|---" * (len(first) + 6) + "|")


def tell_main(judges: dict[Case, Judge], rule: Any) -> dict[Case, Gain]:
    """Compare the two procedures; returns the gain of each case."""
    gains, chosen = {}, {}
    table(["challenge", "seed", "the winner's choice", f"ours ({rule.__name__})"])
    for case, judge in judges.items():
        theirs = judge.choose(WINNER, highest)
        ours = chosen[case] = judge.choose(judge.cells, rule)
        gains[case] = Gain.of(judge.held(ours), judge.held(theirs))
        name = f"{case.dataset}_{case.scenario}"
        print(f"| {name} | {case.seed} | {theirs} | {ours} | {gains[case]} |", flush=True)
    groups = {f"{d}_{s}": ([d], [s]) for d, s in product(DATASETS, SCENARIOS)}
    groups |= {name: (list(DATASETS), name.split(", ")) for name in ("inf", "hi, lo", "ddp")}
    for name, (datasets, scenarios) in groups.items():
        named = [c for c in gains if c.dataset in datasets and c.scenario in scenarios]
        if named:
            gain = Gain.mean([gains[case] for case in named])
            print(f"| **mean of {name}** | {len(named)} cases | | | {gain} |")
    for case in gains:
        print(f"  {case.dataset}_{case.scenario} {case.seed}: {tell_bound(judges[case])}")
    return gains


def tell_bound(judge: Judge) -> str:
    """How much any choice from the grid could have gained: the best cell in hindsight."""
    best = max(judge.cells, key=lambda cell: judge.held(cell).tpr)
    winner = max(WINNER, key=lambda cell: judge.held(cell).tpr)
    figures = f"{best} {judge.held(best).tpr:.4f}, of the six {winner} {judge.held(winner).tpr:.4f}"
    return f"in hindsight {figures}"


def tell_disclosed(judges: dict[Case, Judge]) -> None:
    """Compare attacks that use disclosed training sets with the same without them."""
    told = {case: judge for case, judge in judges.items() if case.scenario == "ddp"}
    if not told:
        return
    table(["with", "without", "data sets"])
    for name, without in TOLD.items():
        for dataset in [*dict.fromkeys(case.dataset for case in told), None]:
            some = [j for case, j in told.items() if dataset in (None, case.dataset)]
            gain = Gain.mean([Gain.of(j.held(name), j.held(without)) for j in some])
            print(f"| {name} | {without} | {dataset or 'mean'} | {gain} |")


def tell_scarce(judges: dict[Case, Judge]) -> None:
    """Show formulas against the number of out models, in validation and on dev and final models."""
    for dataset, scenario in product(DATASETS, ("inf", "lo")):
        some = [j for c, j in judges.items() if (c.dataset, c.scenario) == (dataset, scenario)]
        if not some:
            continue
        print(
            f"\n{dataset}_{scenario}, mean of {len(some)} seeds: validation TPR@0.1FPR (held out)"
        )
        print(f"| cell | {' | '.join(map(str, SCARCE))} | all |\n{'|---' * (len(SCARCE) + 2)}|")
        base = sorted(p.stem.replace("__", "/") for p in some[0].place.glob(f"*@{SCARCE[0]}.npz"))
        for cell in (name.partition("@")[0] for name in base):
            row = []
            for name in [*(f"{cell}@{out}" for out in SCARCE), cell]:
                held = np.mean([j.held(name).tpr for j in some])
                row.append(f"{np.mean([j.validated(name) for j in some]):.4f} ({held:.4f})")
            print(f"| {cell} | {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where models and scores stay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--datasets", nargs="+", default=DATASETS, choices=DATASETS)
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS, choices=SCENARIOS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--all-rules", action="store_true", help="also show other rules")
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="held_out_"))).absolute()
    claim(folder)
    cases = list(map(Case._make, product(given.datasets, given.scenarios, given.seeds)))
    cases = sorted(cases, key=lambda case: case.seed)
    print(f"In {folder}")
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        running = {pool.submit(attack, folder, case): case for case in cases}
        for done in tqdm(as_completed(running), total=len(cases), unit="scenario"):
            done.result()
    judges = {case: Judge(folder, case, i) for i, case in enumerate(sorted(cases))}
    tell_main(judges, RULE)
    if given.all_rules:
        tell_main(judges, highest)
    tell_disclosed(judges)
    tell_scarce(judges)


if __name__ == "__main__":
    main()
