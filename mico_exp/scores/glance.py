"""A scenario's data at a glance: records, who was trained on what, twins, accuracy.

What is found keeps no figure from being computed; it says whether figures would mean anything.

Axes: S shadow models, the train models and the reference models after them, P challenge points of
one model, U unique ones, C classes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mico_exp.challenge.lists import CHALLENGE
from mico_exp.challenge.points import ChallengePoints
from mico_exp.challenge.records import Records
from mico_exp.challenge.tree import ModelFolder, Scenario
from mico_exp.challenge.twins import Groups, Near
from mico_exp.common.arrays import Floats, Mask
from mico_exp.scores.vitals import TWO_SIDED, Vitals

MANY_TWINS = 0.01  # of the non-members, to be told
NEVER_RIGHT = 0.02  # accuracy on a class's members
ENOUGH = 20  # members of a class, to say so
MOSTLY = 0.5  # accuracy on all, for that to be odd
NAMED = 5  # classes

Facts = dict[str, str]


@dataclass(frozen=True, eq=False)
class Twins:
    """Share of the train models' non-members that have a twin among the model's members.

    same: the same inputs. near: nearly the same, of those points that were compared; NaN of none.
    """

    same: float
    near: float

    @classmethod
    def of(cls, scenario: Scenario, points: ChallengePoints, groups: Groups, near: Near) -> "Twins":
        """Look at every train model's own points."""
        compared = np.zeros(len(groups.first), dtype=bool)
        compared[near.compared] = True
        same, alike = [], []
        for row, model in enumerate(scenario.phases["train"]):
            known = groups.trained_on(
                model.split(scenario.sizes).trained_on(scenario.sizes.records)
            )
            own = points.points_of("train", row)
            others = groups.of[own[~points.solution[row, : len(own)]]]
            others = others[others >= 0]
            same.append(known[others])
            alike.append((near.to(known) & ~known)[others[compared[others]]])
        return cls(_share(same), _share(alike))


def _share(found: Iterable[Mask]) -> float:
    every = np.concatenate(list(found))
    return float(every.mean()) if len(every) else float("nan")


def of_records(records: Records) -> Facts:
    """Say what models see, and how many records each class has."""
    counts = np.bincount(records.labels.numpy())
    some = counts[counts > 0]
    inputs = records.inputs(torch.zeros(1, dtype=torch.int64))
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    seen = ", ".join(_form(name, part) for name, part in named.items())
    return {
        "records": f"{len(records.labels):,}",
        "inputs": seen,
        "classes": f"{len(counts)}, {between(some)} records each",
    }


def _form(name: str, part: Tensor) -> str:
    if name:
        return name
    return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape[1:])}"


def of_membership(scenario: Scenario, points: ChallengePoints) -> tuple[Facts, list[str]]:
    """Say who was trained on what, and how many models are in and out at a point.

    Returns:
        the facts, and in a line each why no figure would mean anything.
    """
    train, sizes, targets = scenario.phases["train"], scenario.sizes, scenario.phases.values()
    counts = {phase: points.there(phase).sum(axis=1) for phase in points.of_phase}
    share = points.solution.sum(axis=1) / counts["train"]
    shadows = len(points.is_member)
    inside = points.is_member.sum(axis=0)
    outside = shadows - inside
    facts = {
        "members told by": _told(map(_teller, train)),
        "members of a model": between([model.num_training(sizes) or 0 for model in train]),
        **_of_references(scenario),
        "points told by": _told(_of_points(one) for some in targets for one in some),
        "points of a model": between(np.concatenate(list(counts.values()))),
        "members among them": f"{between(np.rint(100 * share))} %",
        "in models of a point": _models(inside),
        "out models of a point": _models(outside),
    }
    lines = []
    for what, found in (("was trained on", inside), ("has left out", outside)):
        if not found.any():
            lines.append(
                f"no train model {what} any challenge point, of {shadows} models and "
                f"{len(inside):,} points: are members and points those of these records?"
            )
    return facts, lines


def _of_references(scenario: Scenario) -> Facts:
    """Say how many reference models there are beside the train models, and what they saw."""
    if not scenario.shadow:
        return {}
    seen = between([one.num_training(scenario.sizes) or 0 for one in scenario.shadow])
    return {"reference models": f"{len(scenario.shadow)}, of {seen} members"}


def _teller(model: ModelFolder) -> str:
    if model.lists is None or not model.lists.tells_members:
        return "seeds"
    one = model.lists.members or model.lists.keep
    assert one is not None
    return one.path.name if None in model.seeds else f"seeds and {one.path.name}"


def _of_points(model: ModelFolder) -> str:
    if model.seed_challenge is not None:
        return "seeds"
    if model.lists is not None and model.lists.asked is not None:
        return "the other phases"
    if model.lists is None or model.lists.challenge is None:
        return "all records"
    path = model.lists.challenge.path
    return path.name if path.parent == model.path else f"the scenario's {CHALLENGE}{path.suffix}"


def _told(names: Iterable[str]) -> str:
    counts = Counter(names)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _models(counts: Floats | np.ndarray) -> str:
    none = int(np.count_nonzero(counts == 0))
    return between(counts) + (f", none at {none:,} of {len(counts):,}" if none else "")


def between(values: Iterable[float] | np.ndarray) -> str:
    """Least and most of some whole numbers: ``12–20``, or ``12`` where all are that."""
    low, high = int(np.min(np.asarray(values))), int(np.max(np.asarray(values)))
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def of_twins(found: Twins) -> tuple[Facts, list[str]]:
    """Say how many non-members have twins, and whether that is many."""
    facts = {"copies": _per_cent(found.same), "near copies": _per_cent(found.near)}
    lines = []
    if found.same >= MANY_TWINS:
        lines.append(
            f"{_per_cent(found.same)} of non-members have the inputs of a record that the model "
            "was trained on: to it they are members, whatever the truth says."
        )
    return facts, lines


def _per_cent(share: float) -> str:
    return "–" if share != share else f"{share:.1%}".replace("%", " %")


def of_accuracy(
    vitals: Vitals, points: ChallengePoints, records: Records
) -> tuple[Facts, list[str]]:
    """Compare accuracy on members and on non-members with what knows nothing of the records.

    Args:
        vitals: of a scenario.
        points: that they were taken at.
        records: of the data set.
    """
    right, there = vitals.right["train"], points.there("train")
    labels = records.labels.numpy()[points.of_phase["train"]]
    members, others = points.solution & there, ~points.solution & there
    facts = {"accuracy": " / ".join(_accuracy(right[some]) for some in (members, others))}
    count = int(members.sum())
    if not count or len(np.unique(labels[there])) < 2:
        return facts, []
    commonest = np.bincount(labels[members]).max() / count
    error = TWO_SIDED * np.sqrt(commonest * (1 - commonest) / count)
    accuracy = right[members].mean()
    wanted = "Are inputs scaled as in training, and classes in the order of the model's outputs?"
    if accuracy <= commonest + error:
        return facts, [
            f"accuracy on members is {accuracy:.3f}, and naming the commonest class would give "
            f"{commonest:.3f}: models and records do not go together. {wanted}"
        ]
    if never := _never_right(right[members], labels[members]):
        named = ", ".join(map(str, never[:NAMED])) + (" …" if len(never) > NAMED else "")
        return facts, [
            f"members of class {named} are hardly ever given their class, while accuracy on all is "
            f"{accuracy:.3f}. {wanted}"
        ]
    return facts, []


def _accuracy(right: Mask) -> str:
    return f"{right.mean():.2f}" if len(right) else "–"


def _never_right(right: Mask, labels: np.ndarray) -> list[int]:
    """Classes whose members are hardly ever right, where most others are."""
    if right.mean() < MOSTLY:
        return []
    counts = np.bincount(labels)
    correct = np.bincount(labels, weights=right)
    return np.flatnonzero((counts >= ENOUGH) & (correct <= NEVER_RIGHT * counts)).tolist()
