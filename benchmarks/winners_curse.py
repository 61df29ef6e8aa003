"""The winner's curse and its repair, and the coverage of the intervals, against known truth.

    .venv/bin/python benchmarks/winners_curse.py

Scores are normal, and every model leaks differently: non-members N(0, 1), members N(0.6 + e, 1)
with e ~ N(0, 0.5²) of the model. So TPR at FPR 0.1 and AUC are known exactly.

1. Coverage: how often the 95 % interval of one cell holds the truth, when models are drawn as
   here, and when single points are, which is wrong and the usual way.
2. Winner's curse: of 60 cells that are all equally good the highest is taken. Its own score is
   biased; the estimate of the procedure (`compare(...).procedure`) should not be.
"""

import sys

import numpy as np
from scipy.stats import norm

from mico_exp.results.scoring import RANKING_FPR
from mico_exp.results.selection import highest
from mico_exp.results.statistics import Ranked, compare, draw, interval

SHIFT, EFFECT = 0.6, 0.5
SPREAD = np.hypot(1, EFFECT)  # of members
TRUE_TPR = norm.sf((norm.isf(RANKING_FPR) - SHIFT) / SPREAD)
TRUE_AUC = norm.cdf(SHIFT / np.hypot(1, SPREAD))


def cell(random, truth, effect):
    """Scores (T, P) of one cell; effect (T, 1)."""
    return random.normal(size=truth.shape) + truth * (SHIFT + effect)


def coverage(repeats, models=100, points=40, seed=0):
    """Share of intervals that hold the truth: TPR and AUC by models, TPR and AUC by points."""
    random = np.random.default_rng(seed)
    truth = np.tile(np.arange(points) % 2 == 0, (models, 1))
    held = np.zeros(4)
    for i in range(repeats):
        scores = cell(random, truth, EFFECT * random.normal(size=(models, 1)))
        ranked, drawn = Ranked(truth, scores), draw(models, seed=i)
        found = [interval(ranked.tpr_at(RANKING_FPR, drawn)), interval(ranked.auc(drawn))]
        found += point_intervals(truth.ravel(), scores.ravel(), random)
        known = [TRUE_TPR, TRUE_AUC] * 2
        held += [one.low <= true <= one.high for one, true in zip(found, known, strict=True)]
    return held / repeats


def point_intervals(truth, scores, random, draws=200):
    """Intervals of TPR and AUC where points are drawn one by one, whatever their model."""
    order = np.argsort(-scores)
    is_member = truth[order]
    weights = random.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), size=draws)
    members = np.cumsum(weights * is_member, axis=1)
    others = np.cumsum(weights * ~is_member, axis=1)
    below = others < RANKING_FPR * others[:, -1:]
    tpr = np.where(below, members, 0).max(axis=1) / members[:, -1]
    won = (weights * ~is_member * members).sum(axis=1)  # members ranked above; nothing ties
    return interval(tpr), interval(won / members[:, -1] / others[:, -1])


def curse(repeats, cells=60, models=100, points=40, seed=0):
    """Errors (repeats, 2) against the truth: the highest cell's own score, and the procedure's."""
    random = np.random.default_rng(seed)
    truth = np.tile(np.arange(points) % 2 == 0, (models, 1))
    errors = np.empty((repeats, 2))
    for i in range(repeats):
        effect = EFFECT * random.normal(size=(models, 1))  # of the models, in all cells
        made = ((truth, cell(random, truth, effect)) for _ in range(cells))
        found = compare(made, highest, count=1, halvings=100, seed=i)
        errors[i] = found.tpr.max() - TRUE_TPR, found.procedure.value - TRUE_TPR
    return errors


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    found = coverage(repeats)
    print(f"coverage of 95 % intervals, {repeats} repetitions  TPR@0.1    AUC")
    for name, (tpr, auc) in zip(("models", "points"), np.split(found, 2), strict=True):
        print(f"  {name} drawn {tpr:36.3f} {auc:7.3f}")
    repeats = max(repeats // 5, 2)
    errors = curse(repeats)
    print(f"60 equal cells, true TPR@0.1 {TRUE_TPR:.4f}, {repeats} repetitions")
    for name, column in zip(("highest cell's own score", "the procedure"), errors.T, strict=True):
        bias, deviation = column.mean(), column.std(ddof=1)
        print(
            f"  {name:24s} bias {bias:+.4f} ± {deviation / np.sqrt(repeats):.4f}, "
            f"{bias / deviation:+.2f} of its standard error {deviation:.4f}"
        )


if __name__ == "__main__":
    main()
