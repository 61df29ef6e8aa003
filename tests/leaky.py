"""Evidence of models that leak by a known amount, without any model."""

import numpy as np

from mico_exp.attacks.evidence import Evidence
from mico_exp.challenge.points import ChallengePoints, KnownSample
from mico_exp.scores.table import Scores


def evidence(leaks, models=24, targets=6, points=30, unique=150, known=0, seed=0, shared=True):
    """Train and dev models that were each trained on half of the points.

    Args:
        leaks: by metric, how far members' scores lie above others', in deviations.
        models: in train.
        targets: in dev.
        points: of each model.
        unique: points that they are drawn from.
        known: members, and as many non-members, that every model discloses beside its points;
            or a pair of numbers.
        seed: of all that is drawn.
        shared: models may have challenge points in common; else `unique` must suffice for all.

    Returns:
        the evidence, and membership of dev's points.
    """
    random = np.random.default_rng(seed)
    trained = random.random((models + targets, unique)) < 0.5
    level = random.normal(size=unique) * 2  # how hard a point is for everyone
    columns = np.stack([random.permutation(unique)[:points] for _ in trained])
    if not shared:
        columns = random.permutation(unique)[: columns.size].reshape(columns.shape)
    of_phase = {"train": columns[:models], "dev": columns[models:]}
    truth = np.take_along_axis(trained, columns, axis=1)
    numbers = np.arange(unique) * 3 + 5  # records are not columns
    place = ChallengePoints(
        {phase: numbers[some] for phase, some in of_phase.items()},
        numbers,
        trained[:models],
        truth[:models],
    )
    samples = {"train": [], "dev": []}
    for row, (own, member) in enumerate(zip(columns, trained, strict=True)):
        free = np.setdiff1d(np.arange(unique), own)
        drawn = [
            random.permutation(free[member[free] == kind])[:count]
            for kind, count in zip((True, False), np.broadcast_to(known, 2), strict=True)
        ]
        some = np.sort(np.concatenate(drawn))
        samples["train" if row < models else "dev"].append(KnownSample(numbers[some], member[some]))
    scores = {}
    for name, leak in leaks.items():
        values = level + random.normal(size=trained.shape) + leak * trained
        own = np.take_along_axis(values, columns, axis=1)
        told = {
            "train": [values[i, (s.points - 5) // 3] for i, s in enumerate(samples["train"])],
            "dev": [values[models + i, (s.points - 5) // 3] for i, s in enumerate(samples["dev"])],
        }
        own = {"train": own[:models], "dev": own[models:]}
        scores[name] = Scores(values[:models], own, told if known else {})
    labels = random.integers(4, size=unique)
    return Evidence(scores, place, labels, samples if known else {}), truth[models:]
