"""Whether what is said of single records and of differences is right as often as it says.

    .venv/bin/python benchmarks/audit_statements.py               # ten minutes
    .venv/bin/python benchmarks/audit_statements.py --only speed
    .venv/bin/python benchmarks/audit_statements.py --only gate --repetitions 400

- `null`: pools over nothing; how often any record is called exposed, or ranked apart from another.
- `ranks`: pools of records that differ; how often all true ranks lie within their intervals.
- `alike`: pools of records that do not, but whose in and out models vary unlike; how often any
  record is ranked apart from another.
- `precision`: pools of 2 x 64 models of digits, each trained on a random half of the records.
  Both halves rank the records; the share of one's top 50 that is in the other's. Beside it the
  records' mean LiRA score in models that were trained on them, their share above one threshold
  for all, LiRA's own measure of a record, and how badly a record is told by models that never saw
  it. Intervals are Student's t over pools, of other models and halves each. What are chosen are
  also held against the other half's LiRA and TPR, and the same is done with normal scores that
  have the records' moments, where more can be known than any statistic knows. Ranks by the models
  of all pools are held against intervals by 128 or 100 of them.
- `compare`: how often the interval of the difference does not hold 0, of equal sides (alarms), and
  where one leaks more (power): of models drawn by themselves, of pairs, of models that are all
  asked about the same records, and of two single models over their records. Power is told by a
  quarter of the repetitions.
- `gate`: models whose true TPR at FPR 0.1 is the ceiling, or so much below; how often they pass;
  also where all models are asked about the same records.
- `speed`: 50,000 records of 256 models.
"""

import argparse
import functools
import itertools
import os
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import t as student

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
POOLS = 6
HALVINGS = 3  # of each
OWN = 1.0  # deviation of the levels of records that have their own
LEAKS = {"alarms": (0.5, 0.5), "power": (0.5, 0.7)}  # of two sides


def rate(name: str, count: int, of: int) -> None:
    share = count / of
    error = np.sqrt(max(share * (1 - share), 1 / of) / of)
    print(f"  {name:56} {share:6.3f} +- {error:.3f} of {of}", flush=True)


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


def alike(repetitions: int, seed: int) -> None:
    """Records whose true separations are the same, and whose sides vary unlike."""
    for models, share, ratio in ((60, 0.2, 3), (100, 0.18, 3), (128, 0.5, 3), (128, 0.5, 1 / 3)):
        random, apart = np.random.default_rng(seed), 0
        for _ in range(repetitions):
            inside = random.random((models, 30)) < share
            scores = random.normal(size=inside.shape) * np.where(inside, ratio, 1) + inside
            found = judge_records(Asked(np.arange(30), scores, inside, ~inside))
            apart += (found.low > 1).any() or (found.high < len(found.records)).any()
        told = f"{models} models, {share:.0%} in, {ratio:.2g} times as wide"
        rate(f"{told}: any apart", apart, repetitions)


def digits_pool(seed: int, models: int = 128, steps: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """φ (M, N) of digit models, and which half of the records each was trained on."""
    records = datasets.digits()
    count = len(records.labels)
    keep = np.random.default_rng(seed).random((models, count)).argsort(axis=1) < count // 2
    own = torch.from_numpy(np.stack([np.flatnonzero(row) for row in keep]))
    generator = torch.Generator().manual_seed(seed)
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


def moments(scores: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations (2, N), of in models and of out models."""
    sides = [np.where(mask, scores, np.nan) for mask in (keep, ~keep)]
    means, deviations = (
        np.stack([of(one, axis=0) for one in sides])
        for of in (np.nanmean, functools.partial(np.nanstd, ddof=1))
    )
    return means, deviations


def lira_own(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """LiRA's measure of a record: its mean gap over the sum of both deviations."""
    means, deviations = moments(scores, keep)
    return (means[0] - means[1]) / deviations.sum(axis=0)


def hard(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return -moments(scores, keep)[0][1]


def tpr(scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return judge_records(Asked(np.arange(scores.shape[1]), scores, keep, ~keep)).tpr


WAYS = {
    "ours": ours,
    "LiRA, mean": lira_mean,
    "LiRA, share": lira_share,
    "LiRA, its own": lira_own,
    "out mean": hard,
}


def top(value: np.ndarray) -> np.ndarray:
    return np.argsort(-value, kind="stable")[:TOP]


def common(first: np.ndarray, second: np.ndarray) -> float:
    return len(np.intersect1d(first, second)) / TOP


def between(values: np.ndarray) -> str:
    """Mean of pools' values with its interval."""
    wide = student.isf(0.025, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.3f} [{values.mean() - wide:+.3f}, {values.mean() + wide:+.3f}]"


def halved(random: np.random.Generator, scores: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Precision, that of LiRA's mean, and TPR in the other half (ways, 3), over halvings."""
    found = np.zeros((HALVINGS, len(WAYS), 3))
    for one in found:
        order = random.permutation(len(scores))
        halves = [(scores[half], keep[half]) for half in np.split(order, 2)]
        rates = [tpr(*half) for half in halves]
        tops = {name: [top(way(*half)) for half in halves] for name, way in WAYS.items()}
        for row, (first, second) in zip(one, tops.values(), strict=True):
            last, other = tops["LiRA, mean"]
            crossed = (common(first, other) + common(second, last)) / 2
            told = (rates[1][first].mean() + rates[0][second].mean()) / 2
            row[:] = common(first, second), crossed, told
    return found.mean(axis=0)


def precision(repetitions: int, seed: int) -> None:
    pools = max(min(repetitions, POOLS), 2)
    for steps in (2000, 400):
        random, found, every = np.random.default_rng(1 + seed), [], []
        for number in range(pools):
            every.append(digits_pool(seed * POOLS + number, steps=steps))
            found.append(halved(random, *every[-1]))
        values = np.array(found)
        print(f"  {steps} steps, {pools} pools; top {TOP} of 64 models in the top of 64 others")
        for place, name in enumerate(WAYS):
            same, crossed, told = values[:, place].mean(axis=0)
            gap = (
                "" if name == "ours" else f", ours {between(values[:, 0, 0] - values[:, place, 0])}"
            )
            print(
                f"  {name:14} {same:.3f}; of LiRA's {crossed:.3f}, TPR {told:.3f}{gap}", flush=True
            )
        together = [np.concatenate(part) for part in zip(*every, strict=True)]
        ideal(random, *together)
        within(random, *together)


def ideal(random: np.random.Generator, scores: np.ndarray, keep: np.ndarray) -> None:
    """The same of normal scores, also where the deviations, or half of the noise, are known."""
    true, deviations = moments(scores, keep)
    found = []
    for _ in range(20):
        tops = []
        for _ in range(2):
            inside = random.random((64, scores.shape[1])).argsort(axis=0) < 32
            drawn = random.normal(size=inside.shape)
            drawn = np.where(
                inside, true[0] + deviations[0] * drawn, true[1] + deviations[1] * drawn
            )
            gap, known = (np.subtract(*one) for one in (moments(drawn, inside)[0], true))
            spread = deviations.sum(axis=0)
            values = lira_mean(drawn, inside), ours(drawn, inside), gap / spread
            tops.append([top(value) for value in (*values, (gap + known) / 2 / spread)])
        found.append([common(*pair) for pair in zip(*tops, strict=True)])
    names = "LiRA, mean", "ours", "deviations known", "and half of the means' noise gone"
    told = ", ".join(f"{n} {v:.3f}" for n, v in zip(names, np.mean(found, axis=0), strict=True))
    print(f"  normal scores: {told}", flush=True)


def within(random: np.random.Generator, scores: np.ndarray, keep: np.ndarray) -> None:
    """How often the ranks by all pools' models all lie within intervals of some of them."""
    records = np.arange(scores.shape[1])
    for metric, values in (("logit", scores), ("confidence", expit(scores))):
        true = judge_records(Asked(records, values, keep, ~keep)).rank
        for models, share in ((128, 0.5), (100, 0.18)):
            held = 0
            for _ in range(40):
                some = random.permutation(len(scores))[: round(models * 2 * (1 - share))]
                asked = random.random(keep[some].shape) < share / (1 - share)
                inside = keep[some] & asked  # of half of them, so many in models
                found = judge_records(Asked(records, values[some], inside, ~keep[some]))
                known = true[found.records]
                held += ((found.low <= known) & (known <= found.high)).all()
            rate(f"{metric}, {models} models, {share:.0%} in: all ranks within", held, 40)


# ---------------------------------------------------------------- differences


def side(
    random: np.random.Generator,
    models: int,
    leak: float,
    spread: float = 0.3,
    levels: np.ndarray | None = None,
    count: int = 50,
) -> Sample:
    """Models whose level, scale and leak differ, of as many members as others.

    levels: the records' own, (models, count), where each point has another record, or (1, count),
    where all models are asked about the same. None is none, and records that recur at random.
    """
    truth = np.tile(np.arange(count) % 2 == 0, (models, 1))
    scale = np.exp(spread * random.normal(size=(models, 1)))
    scores = random.normal(size=truth.shape) * scale + spread * random.normal(size=(models, 1))
    points = random.integers(2000, size=truth.shape)
    if levels is not None:
        truth = random.permuted(truth, axis=1)
        scores += levels
        points = np.broadcast_to(np.arange(levels.size).reshape(levels.shape), truth.shape)
    scores += truth * leak * np.exp(spread * random.normal(size=(models, 1)))
    return Sample(truth, scores.astype(np.float32), points)


def level(random: np.random.Generator, models: int, count: int = 50) -> np.ndarray:
    return OWN * random.normal(size=(models, count))


@functools.cache
def true_tpr(leak: float, spread: float = 0.3, *, own: bool = False) -> float:
    """TPR at FPR 0.1 of so many models, each of records of its own, that it is known."""
    random = np.random.default_rng(9)
    one = side(random, 100_000, leak, spread, level(random, 100_000) if own else None)
    bound = np.quantile(one.predictions[~one.solution], 0.9)
    return float((one.predictions[one.solution] > bound).mean())


def apart(random: np.random.Generator, models: int, leaks: tuple[float, float]) -> list[Sample]:
    return [side(random, models, leak) for leak in leaks]


def pairs(random: np.random.Generator, models: int, leaks: tuple[float, float]) -> list[Sample]:
    """Models before and after something: of the same points, and of much the same scores."""
    same = side(random, models, 0.0, levels=level(random, models))
    found = []
    for leak in leaks:
        own = leak * np.exp(0.3 * random.normal(size=(models, 1)))
        noise = 0.5 * random.normal(size=same.solution.shape)
        scores = same.predictions + noise + same.solution * own
        found.append(Sample(same.solution, scores.astype(np.float32), same.points))
    return found


def shared(random: np.random.Generator, models: int, leaks: tuple[float, float]) -> list[Sample]:
    levels = level(random, 1)
    return [side(random, models, leak, levels=levels) for leak in leaks]


def single(
    random: np.random.Generator, models: int, leaks: tuple[float, float], records: int
) -> list[Sample]:
    levels = level(random, 1, records)
    return [side(random, models, leak, 0.0, levels, records) for leak in leaks]


def compare(repetitions: int, seed: int) -> None:
    several = (10, 20, 50, 100)
    kinds = {
        "apart": (apart, several),
        "pairs": (pairs, several),
        "same 50 records": (shared, several),
        **{
            f"over {n} records": (functools.partial(single, records=n), (1,))
            for n in (400, 100, 40)
        },
    }
    for kind, (draw, counts) in kinds.items():
        for models, (told, leaks) in itertools.product(counts, LEAKS.items()):
            random, differ = np.random.default_rng(seed), dict.fromkeys(FIGURES, 0)
            times = repetitions if told == "alarms" else repetitions // 4
            for _ in range(times):
                first, second = draw(random, models, leaks)
                for one in differences([first], [second]):
                    differ[one.figure] += one.differs
            for name, count in differ.items():
                rate(f"{kind}, {models} a side, {name}: {told}", count, times)


def gate(repetitions: int, seed: int) -> None:
    leaks = np.linspace(0, 1.5, 301)
    kinds = [(models, False) for models in (1, 10, 20, 50, 100)]
    for models, own in (*kinds, *((models, True) for models in (10, 20, 50, 100))):
        spread = 0.0 if models == 1 else 0.3
        ceiling = true_tpr(0.5, spread, own=own)
        known = {leak: true_tpr(leak, spread, own=own) for leak in leaks[:101:4]}
        told = f"{models} models" + (" of the same 50 records" if own else "")
        for below in (0.0, 0.02, 0.05, 0.1):
            leak = min(known, key=lambda one: abs(known[one] - (ceiling - below)))
            most = known[leak] + below
            random, passed = np.random.default_rng(seed), 0
            for _ in range(repetitions):
                levels = level(random, 1) if own else None
                one = side(random, models, leak, spread, levels)
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


PARTS = {one.__name__: one for one in (null, ranks, alike, precision, compare, gate, speed)}


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
