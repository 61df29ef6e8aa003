"""All metrics of gradients at Purchase-100's shape on one core, beside another checkout by turns.

    .venv/bin/python benchmarks/gradients_scale.py [other checkout]

Of 200 MLPs of 600-128-100 on 8,000 records of `purchase_like`, 100 train models are asked at 7,949
points and 100 others at 200. Two of each are timed here, in the processor's seconds, which other
processes on the machine hardly change, after one model that has what all share computed.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parents[1]
ROUNDS, MODELS, STEPS = 5, 2, 30
RECORDS, POINTS, OWN = 8000, 7949, 200


def trained(model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A little, so that its gradients are not all alike."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(STEPS):
        some = slice(step * 200, step * 200 + 200)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features[some]), labels[some]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def measure() -> None:
    """Print seconds of a train model, and of another, of the package that is imported."""
    known = {}
    try:
        from mico_exp.challenge.datasets import purchase_like
        from mico_exp.models.architectures import MLP
        from mico_exp.scores import gradients
        from mico_exp.scores.inference import ModelRunner, Processor
        from mico_exp.scores.white_box import GradientRunner, Reference

        scores = GradientRunner(ModelRunner(Processor("cpu"))).scores
        known = {"known": Reference()}
    except ImportError:  # the package when it had no folders
        from mico_exp.datasets import purchase_like
        from mico_exp.evaluation import Evaluator, Processor

        from mico_exp import gradients
        from mico_exp.models import MLP

        scores = Evaluator(Processor("cpu")).gradient_scores
    records = purchase_like(RECORDS, rank=20, spread=1.5, noise=0.8, seed=0)
    features = records.inputs(torch.arange(RECORDS))
    metrics = {"norm": gradients.GradNorm(), "alignment": gradients.GradAlignment()}
    metrics["representer"] = gradients.Representer()
    for damping in (0.01, 0.1, 1.0):
        metrics[f"kfac/{damping}"] = gradients.Kronecker(damping=damping, reference=10_000)
    models = []
    for seed in range(MODELS + 1):
        torch.manual_seed(seed)
        models.append(trained(MLP([600, 128, 100]), features, records.labels))
    first, *others = models
    scores(first, records, np.arange(OWN), metrics, **known)
    for count in (POINTS, OWN):
        started = time.process_time()
        for model in others:
            scores(model, records, np.arange(count), metrics, **known)
        print((time.process_time() - started) / MODELS)


def seconds(checkout: Path) -> tuple[float, float]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, __file__, "measure"]
    done = subprocess.run(call, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    train, other = map(float, done.stdout.split()[-2:])
    return train, other


def told(name: str, values: list[float], target: str = "") -> None:
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f"{name:36} {middle:.2f} ({low:.2f} - {high:.2f}) {target}")


def main() -> None:
    if sys.argv[1:] == ["measure"]:
        return measure()
    checkouts = [*(Path(one).resolve() for one in sys.argv[1:2]), HERE]
    rounds = []
    for _ in range(ROUNDS):
        rounds.append([seconds(one) for one in checkouts])
        print(rounds[-1], flush=True)
    for one, found in zip(checkouts, zip(*rounds, strict=True), strict=True):
        told(f"{one.name}: a train model, s", [train for train, _ in found])
        told(f"{one.name}: another model, s", [other for _, other in found])
    if len(checkouts) > 1:
        told("other / this", [sum(other) / sum(here) for other, here in rounds], "target 3")
    return None


if __name__ == "__main__":
    main()
