"""On which records each reference model is trained: drawn by its kind, among some or all records.

Axes: N records, n records that a model trains on, K records that references are trained among.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mico_exp.challenge.phases import SHADOW
from mico_exp.challenge.tree import ModelFolder, Scenario
from mico_exp.common import require
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError, printable

POOL, LIKE_TRAIN, LEAVE_OUT = "pool", "like_train", "leave_out"
KINDS = (POOL, LIKE_TRAIN, LEAVE_OUT)
RESTS = ("out", "in")
POINTS = "points"  # stands for all challenge points


@dataclass(frozen=True, eq=False)
class Among:
    """Records that references are drawn from.

    some: (K,) of them, ascending. rest: (N − K,) those that all references have beside them, or
    none. is_all: these are all records.
    """

    some: Indices
    rest: Indices
    is_all: bool = False

    @classmethod
    def of(cls, records: int, some: Indices | None, rest: str) -> "Among":
        """Read what is asked for; None are all records.

        Raises:
            InputError: what is to be done with the rest is none of `RESTS`.
        """
        require.one_of("rest", rest, RESTS)
        every = np.arange(records)
        chosen = every if some is None else np.unique(some)
        others = np.setdiff1d(every, chosen) if rest == "in" else every[:0]
        return cls(chosen, others, len(chosen) == records)

    @property
    def told(self) -> str | None:
        """What tells it from others; None of all records."""
        if self.is_all:
            return None
        digest = hashlib.sha256(self.some.astype("<i8").tobytes()).hexdigest()
        rest = f", {len(self.rest)} more in all" if len(self.rest) else ""
        return f"{len(self.some)} records {digest[:12]}{rest}"


@dataclass(frozen=True, eq=False)
class Draw:
    """Draws what references of one kind are trained on.

    counts: of like_train, how many records the train models have. left_out: of leave_out, the
    target's challenge points.
    """

    kind: str
    among: Among
    counts: Sequence[int] = ()
    left_out: Indices | None = None

    @property
    def usual(self) -> int:
        """How many records a reference is expected to have."""
        if self.kind == POOL:
            return len(self.among.rest) + len(self.among.some) // 2
        if self.kind == LIKE_TRAIN:
            return round(sum(self.counts) / len(self.counts))
        return len(self._others)

    @property
    def _others(self) -> Indices:
        assert self.left_out is not None
        return np.setdiff1d(self.among.some, self.left_out)

    def own(self, random: np.random.Generator) -> Indices:
        """Records (n,) of one, ascending.

        - pool: each is in with probability ½, independently of all others (a design with as many
          in as out would tell a record's membership by that of others).
        - like_train: so many of all, each set of them as likely as any other, which is what the
          competition's permutations come to.
        - leave_out: all but the target's challenge points.
        """
        some = self.among.some
        if self.kind == POOL:
            return np.union1d(some[random.random(len(some)) < 0.5], self.among.rest)
        if self.kind == LIKE_TRAIN:
            count = self.counts[int(random.integers(len(self.counts)))]
            return np.sort(random.permutation(some)[:count])
        return self._others


def points_of(scenario: Scenario) -> Indices:
    """Challenge points (U,) of all models that are attacked, ascending."""
    targets = [one for models in scenario.phases.values() for one in models]
    asked = [one.split(scenario.sizes).challenge for one in targets if not _is_reference(one)]
    return np.unique(np.concatenate(asked)) if asked else np.empty(0, dtype=np.int64)


def _is_reference(model: ModelFolder) -> bool:
    return model.path.parent.name == SHADOW


def draw_for(scenario: Scenario, kind: str, target: ModelFolder | None, among: Among) -> Draw:
    """Find out how references of a kind are drawn for a scenario.

    Raises:
        InputError: records that references must or must not have are not among these, or there is
            nothing to be like.
    """
    sizes = scenario.sizes
    if len(among.rest) and kind != POOL:
        raise InputError(f"`rest` must be out but for kind={POOL}, got in.")
    if target is not None:
        return Draw(kind, among, left_out=target.split(sizes).challenge)
    train = [one for one in scenario.phases.get("train", ()) if not _is_reference(one)]
    if kind == LIKE_TRAIN:
        if not train:
            raise InputError("kind=like_train must be like train models, of which there are none.")
        counts = [one.num_training(sizes) or 0 for one in train]
        if max(counts) > len(among.some):
            raise InputError(
                f"`among` must have as many records as a train model was trained on, "
                f"{max(counts)}, got {len(among.some)}."
            )
        return Draw(kind, among, counts=counts)
    if len(missing := np.setdiff1d(points_of(scenario), among.some)):
        raise InputError(
            f"`among` must have all challenge points, got none of {len(missing)}, the first record "
            f"{missing[0]}: nothing would tell members from others there."
        )
    return Draw(kind, among)


def targets_of(scenario: Scenario, told: str | None) -> dict[str, ModelFolder]:
    """Targets of a name, ``model_100`` or ``final/model_0``, or all of a phase.

    Raises:
        InputError: there is none, or there are several of a model's name.
    """
    every = {
        f"{phase}/{one.path.name}": one
        for phase, models in scenario.phases.items()
        for one in models
        if not _is_reference(one)
    }
    if not told:
        raise InputError(
            "`target` must name the model whose challenge points are left out, or a phase, got "
            f"{told!r}. {_known(every)}"
        )
    found = {
        name: one
        for name, one in every.items()
        if told in (name, one.path.name, name.partition("/")[0])
    }
    if not found:
        raise InputError(
            f"`target` must be a model of {scenario.path}, got {printable(told, 80)!r}. "
            f"{_known(every)}"
        )
    if len(found) > 1 and told not in scenario.phases:
        raise InputError(f"`target` must say which is meant, {' or '.join(found)}, got {told!r}.")
    return found


def _known(every: Mapping[str, ModelFolder]) -> str:
    names = list(every)
    shown = ", ".join(names[:3]) + (f", … {names[-1]}" if len(names) > 3 else "")
    return f"There are {shown}." if names else "There is none."
