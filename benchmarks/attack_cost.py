"""What attacks cost: metrics by family, formulas by cell, and memory, at Purchase-100's shape.

    .venv/bin/python benchmarks/attack_cost.py [folder]

Builds `purchase_like` without privacy (8,000 records, 100 + 50 + 50 MLPs of 600-128-100), and then
measures each metric by itself on 20 models, the whole extraction, and every formula on one metric
(stacks on all) for all three phases, three times each: median and range. Last, the peak memory
of all that, the building apart, and of a stack with as many points as Purchase-100 has.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from mico_exp.attacks.evidence import Evidence
from mico_exp.attacks.learned import Stack
from mico_exp.challenge.points import ChallengePoints
from mico_exp.config import cells, options
from mico_exp.config import compose as config
from mico_exp.config.making import make
from mico_exp.config.metrics import all_metrics
from mico_exp.config.typed import OPTIONS
from mico_exp.results.cell import calibrate_phases
from mico_exp.scores.families import GRADIENTS, family_of
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.table import Scores
from mico_exp.scores.white_box import GradientRunner

MODELS, ROUNDS = 20, 3
PURCHASE_POINTS = 36_224  # unique challenge points of purchase100_inf


def seconds(function: Callable[[], Any]) -> list[float]:
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return found


def told(name: str, found: list[float], target: str = "") -> None:
    low, high = min(found), max(found)
    print(
        f"{name:22} {statistics.median(found):8.3f} ({low:.3f} - {high:.3f}) {target}", flush=True
    )


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="attack_cost_"))
    given = ["dataset=purchase_like", "scenario=inf", f"paths.data={folder.absolute()}"]
    command = [sys.executable, "-m", "mico_exp.build", *given]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        overrides = ["dataset=purchase_like", f"paths.data={folder.absolute()}"]
        cfg: Any = compose("config", overrides=overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        measure(cfg)


def measure(cfg: Any) -> None:
    setup = config.setup(cfg)
    setup.build()
    records, scenario, points = setup.records, setup.found, setup.points
    extraction = setup.extraction
    metrics = all_metrics(disclosed=False)
    runner = ModelRunner(Processor("cpu"))
    gradients = GradientRunner(runner)
    folders = [model.path for model in scenario.phases["train"][:MODELS]]
    models = [runner.load_one(extraction.architecture, path) for path in folders]
    stacked = runner.load(extraction.architecture, folders)
    every = np.broadcast_to(points.unique, (MODELS, len(points.unique)))
    print(f"metrics, seconds a model at {len(points.unique)} points")
    for name, metric in metrics.items():
        some: Any = {name: metric}
        if family_of(metric) == GRADIENTS:
            found = seconds(
                lambda some=some: [
                    gradients.scores(model, records, points.unique, some) for model in models
                ]
            )
        else:
            found = seconds(lambda some=some: runner.scores(stacked, records, every, some))
        told(name, [one / MODELS for one in found])
    for one in extraction.compute(metrics):
        print(f"{one.family}: {one.models} models in {one.seconds:.1f} s")
    evidence = setup.evidence(metrics)
    assert evidence is not None
    print("formulas, seconds for all phases: 200 targets x 200 points x 100 shadow models")
    for name in options.option_names("formula"):
        option = compose("config", overrides=[f"formula='{name}'"]).formula
        needs = option.get("needs") or ()
        if option.name != name or "disclosure" in needs or name.startswith("lira_script"):
            continue
        formula = make(option.function)
        held = evidence.scores if cells.COMBINED in needs else ["confidence"]
        some = Evidence({key: evidence.scores[key] for key in held}, points, evidence.labels)
        slow = name in ("quantile", "stack", "stack_search")
        target = "target 20" if slow else "target 1"
        told(name, seconds(lambda some=some, one=formula: calibrate_phases(some, one)), target)
    told_peak("peak memory")
    calibrate_phases(large(list(metrics)), Stack())
    told_peak("with Purchase-100's points")


def told_peak(name: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name:26} {peak:.2f} GB   target 2", flush=True)


def large(metrics: list[str]) -> Evidence:
    """Scores without meaning of 100 + 50 + 50 models at Purchase-100's challenge points."""
    random = np.random.default_rng(0)
    columns = {
        phase: np.stack([random.permutation(PURCHASE_POINTS)[:200] for _ in range(count)])
        for phase, count in (("train", 100), ("dev", 50), ("final", 50))
    }
    member = random.random((100, PURCHASE_POINTS)) < 0.75
    solution = np.take_along_axis(member, columns["train"], axis=1)
    unique = np.arange(PURCHASE_POINTS)
    scores = {
        name: Scores(
            random.normal(size=member.shape),
            {phase: random.normal(size=some.shape) for phase, some in columns.items()},
        )
        for name in metrics
    }
    points = ChallengePoints(columns, unique, member, solution)
    return Evidence(scores, points, np.zeros(len(unique), dtype=np.int64))


if __name__ == "__main__":
    main()
