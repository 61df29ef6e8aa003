"""Whether what is said of single records and of differences is right as often as it says.

    .venv/bin/python benchmarks/audit_statements.py               # ten minutes
    .venv/bin/python benchmarks/audit_statements.py --only speed
    .venv/bin/python benchmarks/audit_statements.py --only gate --repetitions 400

- `null`: pools over nothing; how often any record is called exposed, or ranked apart from another.
- `ranks`: pools of records that differ; how often all true ranks lie within their intervals.
- `precision`: 2 x 64 models of digits, each trained on a random half of the records. Both halves
  rank the records; the share of one's top 50 that is in the other's. Beside it the records' mean
  LiRA score in models that were trained on them, and their share above one threshold for all. The
  interval is over draws of the models of both halves.
- `compare`: equal sides; how often the interval of the difference does not hold 0.
- `gate`: models whose true TPR at FPR 0.1 is the ceiling, or so much below; how often they pass;
  also where all models are asked about the same records.
- `speed`: 50,000 records of 256 models.
"""

import argparse
import functools
import os
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from mico_exp.attacks import formulas
from mico_exp.attacks.calibration import calibrate
from mico_exp.auditing.difference import FIGURES, Sample, differences, upper_limit
from mico_exp.auditing.risk import Asked, judge_records
from mico_exp.challenge import datasets
from mico_exp.challenge.records import inputs_at
from mico_exp.scores.metrics import logit
from mico_exp.training.stacked import initial_mlps, train
from mico_exp.training.steps import Plan

TOP = 50
OWN = 1.0  # deviation of the levels of records that models share


def rate(name: str, count: int, of: int) -> None:
    share = count / of
    error = np.sqrt(max(share * (1 - share), 1 / of) / of)
    print(f"  {name:44} {share:6.3f} +- {error:.3f} of {of}", flush=True)


# ---------------------------------------------------------------- records


def null(repetitions: int, seed: int) -> None:
    """Membership that says nothing, of normal, skewed and coarse scores."""
    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "normal": lambda x: x,
        "skewed": lambda x: np.exp(1.5 * x),
        "two values": lambda x: (x > 0.5).astype(float),
    }
    for models, share in ((256, 0.5), (100, 0.18)):
        for kind, shape in kinds.items():
            random, exposed, apart = np.random.default_rng(seed), 0, 0
            for _ in range(repetitions):
                inside = random.random((models, 300)) < share
                spread = np.exp(random.normal(size=300) / 2)
                scores = shape(random.normal(size=inside.shape)) * spread
                found = judge_records(Asked(np.arange(300), scores, inside, ~inside))
                exposed += found.exposed.any()
                apart += (found.low > 1).any() or (found.high < len(found.records)).any()
            rate(f"{models} models, {kind}: any exposed", exposed, repetitions)
            rate(f"{models} models, {kind}: any ranked apart", apart, repetitions)


def ranks(repetitions: int, seed: int) -> None:
    """Records with separations from 0 to 4, whose true ranks are known."""
    true = np.linspace(0, 4, 300)
    order = 300 - np.arange(300)
    for kind in ("normal", "skewed"):
        random, held = np.random.default_rng(seed), 0
        for _ in range(repetitions):
            inside = random.random((128, 300)) < 0.5
            noise = random.normal(size=inside.shape)
            if kind == "skewed":
                noise = random.gamma(2, size=inside.shape) / np.sqrt(2)
            found = judge_records(Asked(np.arange(300), noise + true * inside, inside, ~inside))
            held += ((found.low <= order) & (order <= found.high)).all()
        rate(f"{kind}: all true ranks within", held, repetitions)


def digits_pool(models: int = 128, steps: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """φ (M, N) of digit models, and which half of the records each was trained on."""
    records = datasets.digits()
    count = len(records.labels)
    keep = np.random.default_rng(0).random((models, count)).argsort(axis=1) < count // 2
    own = torch.from_numpy(np.stack([np.flatnonzero(row) for row in keep]))
    generator = torch.Generator().manual_seed(0)
    mlps = initial_mlps(models, (64, 64, 10), generator)
    plan = Plan(steps, 32, functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    train(mlps, inputs_at(records, own), records.labels[own], plan, generator)
    with torch.inference_mode():
        outputs = mlps(inputs_at(records, torch.arange(count)))
    return logit(outputs, records.labels).double().numpy(), keep


def ours(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    records = np.arange(scores.shape[1])
    found = judge_records(Asked(records, scores, keep, ~keep))
    value = np.full(len(records), -np.inf)
    value[found.records] = found.separation
    return value


def lira(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    models, records = scores.shape
    columns = np.broadcast_to(np.arange(records), scores.shape)
    every = np.arange(models)
    found = calibrate(formulas.lira_online, scores, scores, keep, columns, left_out=every)
    return found.scores


def lira_mean(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return np.where(keep, lira(scores, keep), 0).sum(axis=0) / np.maximum(keep.sum(axis=0), 1)


def lira_share(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    found = lira(scores, keep)
    above = found > np.quantile(found[~keep], 0.9)
    return (above & keep).sum(axis=0) / np.maximum(keep.sum(axis=0), 1)


def overlap(value: Callable, scores: np.ndarray, keep: np.ndarray, halves: tuple) -> float:
    tops = [
        set(np.argsort(-value(scores[half], keep[half]), kind="stable")[:TOP]) for half in halves
    ]
    return len(tops[0] & tops[1]) / TOP


def precision(repetitions: int, seed: int) -> None:
    for steps in (2000, 400):
        scores, keep = digits_pool(steps=steps)
        random = np.random.default_rng(1 + seed)
        ways = {"ours": ours, "LiRA, mean": lira_mean, "LiRA, share": lira_share}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(min(repetitions, 20)):
            order = random.permutation(len(scores))
            for name, way in ways.items():
                found[name].append(overlap(way, scores, keep, (order[:64], order[64:])))
        print(f"  {steps} steps, top {TOP} of 64 models that are the top of 64 others")
        for name, values in found.items():
            gap = np.array(found["ours"]) - values
            low, high = np.percentile(gap, [2.5, 97.5])
            told = "" if name == "ours" else f", ours {gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            print(f"  {name:14} {np.mean(values):.3f}{told}", flush=True)


# ---------------------------------------------------------------- differences


def side(
    random: np.random.Generator,
    models: int,
    leak: float,
    spread: float = 0.3,
    own: float = 0.0,
    shared: bool = False,
) -> Sample:
    """Models of 25 members and others, whose level, scale and leak differ.

    own: deviation of the records' own levels. shared: all models are asked about the same 50.
    """
    truth = np.tile(np.arange(50) % 2 == 0, (models, 1))
    scale = np.exp(spread * random.normal(size=(models, 1)))
    scores = random.normal(size=truth.shape) * scale + spread * random.normal(size=(models, 1))
    points = random.integers(2000, size=truth.shape)
    if own:
        truth = random.permuted(truth, axis=1)
        scores += own * random.normal(size=(1 if shared else models, truth.shape[1]))
    if shared:
        points = np.tile(np.arange(50), (models, 1))
    scores += truth * leak * np.exp(spread * random.normal(size=(models, 1)))
    return Sample(truth, scores.astype(np.float32), points)


def true_tpr(leak: float, spread: float = 0.3, own: float = 0.0) -> float:
    """TPR at FPR 0.1 of so many models, each of records of its own, that it is known."""
    one = side(np.random.default_rng(9), 100_000, leak, spread, own)
    bound = np.quantile(one.predictions[~one.solution], 0.9)
    return float((one.predictions[one.solution] > bound).mean())


def compare(repetitions: int, seed: int) -> None:
    for models in (10, 50, 100):
        random, wrong = np.random.default_rng(seed), dict.fromkeys(FIGURES, 0)
        for _ in range(repetitions):
            sides = ([side(random, models, 0.5)], [side(random, models, 0.5)])
            for one in differences(*sides):
                wrong[one.figure] += one.differs
        for name, count in wrong.items():
            rate(f"{models} models a side, {name}: alarms", count, repetitions)


def gate(repetitions: int, seed: int) -> None:
    leaks = np.linspace(0, 1.5, 301)
    for models, shared in ((1, False), (10, False), (50, False), (100, False), (50, True)):
        spread, own = 0.0 if models == 1 else 0.3, OWN if shared else 0.0
        ceiling = true_tpr(0.5, spread, own)
        known = {leak: true_tpr(leak, spread, own) for leak in leaks[:101:4]}
        told = f"{models} models" + (" of the same 50 records" if shared else "")
        for below in (0.0, 0.02, 0.05, 0.1):
            leak = min(known, key=lambda one: abs(known[one] - (ceiling - below)))
            most = known[leak] + below
            random, passed = np.random.default_rng(seed), 0
            for _ in range(repetitions):
                one = side(random, models, leak, spread, own, shared)
                passed += upper_limit([one]).limit <= most
            rate(f"{told}, true TPR {below:.2f} below {most:.3f}: passes", passed, repetitions)


# ---------------------------------------------------------------- speed


def speed(repetitions: int, seed: int) -> None:  # noqa: ARG001
    random = np.random.default_rng(seed)
    inside = random.random((256, 50_000)) < 0.5
    scores = random.normal(size=inside.shape) + 0.5 * inside + random.normal(size=50_000)
    asked = Asked(np.arange(50_000), scores, inside, ~inside)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    started, processor = time.perf_counter(), time.process_time()
    judge_records(asked)
    seconds = time.perf_counter() - started, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"  50,000 records x 256 models: {seconds[0]:.1f} s, {seconds[1]:.1f} s of a processor")
    print(f"  load {os.getloadavg()[0]:.1f}; {before:.2f} GB before, {peak:.2f} GB at most")


PARTS = {one.__name__: one for one in (null, ranks, precision, compare, gate, speed)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for name in asked.only:
        print(name)
        PARTS[name](asked.repetitions, asked.seed)


if __name__ == "__main__":
    main()
