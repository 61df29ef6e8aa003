"""Cross-fitting for attacks that learn from the train models' own membership.

The rule: **no feature of a row may depend on its target's own membership, except through the
target's own outputs**, and nothing that a row is scored by may have seen it.

Leaving the target itself out of its shadow models is not enough where models share points. The
mean of a point's in models is then one and the same number for all its non-members, and another
for each member, whose own score is missing from it; and how many in models are left tells the
target's membership outright. Plain folds are not enough either: the rows of the other folds have
seen the membership of the fold that is scored. So folds are nested:

- a train model of fold f is scored by what was learnt from the other folds' models;
- a model of fold g that is learnt from is described by the shadow models outside f and g;
- the models of fold f are described by those outside f and, in turn, one other fold; the scores of
  all turns are averaged;
- where train models share points, a point is scored by what was learnt at other points.

Reference models are in no fold: nobody is scored or learnt from among them, so all rows may be
described by them.

Models of dev and final are no shadow models: they are scored by what all train models teach, each
described by the shadow models outside its own fold, and are themselves described by those outside
one fold in turn. What is compared is then alike everywhere.

Axes: T target models, S shadow models, the train models and the reference models after them, P
points of a target, U unique points, F features, N rows (a target at a point). Where a target has
fewer points than others there is no row: what is said of it at the end of (T, P) is never looked
at.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mico_exp.attacks.sides import Side, joined, side
from mico_exp.challenge.points import NONE, ChallengePoints
from mico_exp.common import require
from mico_exp.common.arrays import Floats, Indices, Mask
from mico_exp.common.errors import InputError

NO_FOLD = -1  # of a reference model
FEWEST_FOLDS = 3  # one is scored, one is learnt from, and the others' models are its shadows
POINT_FOLDS = 2  # where train models share points
Hidden = frozenset[int]  # folds whose train models serve as nobody's shadow models
Describe = Callable[[str, Indices, Hidden], Floats]
Transform = Callable[[Floats], Floats]


@dataclass(frozen=True, eq=False)
class Folds:
    """Who is in which fold, drawn once and for all.

    of_model: (S,) fold of each train model, `NO_FOLD` of a reference model. of_point: (U,) fold of
    each unique point, all the same where no two train models share one.
    """

    of_model: Indices
    of_point: Indices

    @classmethod
    def of(cls, points: ChallengePoints, count: int, fewest: int = FEWEST_FOLDS) -> "Folds":
        """Draw `count` folds of models, and folds of points where train models share any.

        Where there are fewer models than folds, each is a fold of its own.

        Raises:
            InputError: fewer than `fewest` folds, or models.
        """
        columns = points.columns("train")
        models = len(columns)
        require.whole("folds", count, fewest)
        if models < fewest:
            raise InputError(
                f"What learns from the train models needs at least {fewest} of them, got {models}."
            )
        count = min(count, models)
        references = np.full(len(points.is_member) - models, NO_FOLD)
        of_model = np.random.default_rng(0).permutation(models) % count
        of_model = np.concatenate([of_model, references])
        taken = columns[points.there("train")]
        shared = len(np.unique(taken)) < len(taken)
        order = np.random.default_rng(1).permutation(len(points.unique))
        return cls(of_model, order % (POINT_FOLDS if shared else 1))

    @property
    def count(self) -> int:
        """How many folds of models."""
        return int(self.of_model.max()) + 1

    @property
    def point_folds(self) -> int:
        """How many folds of points; 1 where none is held out."""
        return int(self.of_point.max()) + 1

    def shown(self, hidden: Hidden) -> list[int]:
        """Folds of models outside `hidden`."""
        return [fold for fold in range(self.count) if fold not in hidden]

    def models(self, fold: int) -> Indices:
        """Train models of a fold."""
        return np.flatnonzero(self.of_model == fold)


class FoldSides:
    """The shadow models on both sides of every point, to be had without any folds.

    Args:
        shadow: (S, U) scores; NaN takes no part.
        is_member: (S, U) True where the model was trained on the point.
        folds: of the models.
    """

    def __init__(self, shadow: Floats, is_member: Mask, folds: Folds) -> None:
        usable = np.isfinite(shadow)
        known = np.where(usable, shadow, 0)
        self.of_fold = {}
        for fold in (*range(folds.count), NO_FOLD):
            some = folds.of_model == fold
            if not some.any():
                continue
            masks = (mask[some] & usable[some] for mask in (is_member, ~is_member))
            self.of_fold[fold] = [side(known[some], mask) for mask in masks]

    def without(self, hidden: Hidden, columns: Indices) -> tuple[Side, Side]:
        """In and out models outside `hidden` at the points in `columns`, in that shape."""
        shown = [sides for fold, sides in self.of_fold.items() if fold not in hidden]
        inside, outside = (
            joined([Side(*(part[columns] for part in one)) for one in parts])
            for parts in zip(*shown, strict=True)
        )
        return inside, outside


class Lessons:
    """Rows to learn from: all train models' outside the folds `hidden`, which none has seen.

    Args:
        points: of the scenario.
        folds: of its train models.
        describe: features (t, P, F) of some targets of a phase by the shadow models outside
            some folds.
        prepare: sees all rows' features (N, F), and gives what they are to be learnt as.
        hidden: folds.
    """

    def __init__(
        self,
        points: ChallengePoints,
        folds: Folds,
        describe: Describe,
        prepare: Callable[[Floats], Transform] = lambda _: np.asarray,
        hidden: Hidden = frozenset(),
    ) -> None:
        self.points, self.folds = points, folds
        self.describe, self.prepare, self.hidden = describe, prepare, hidden

    @property
    def shown(self) -> list[int]:
        """Folds that are learnt from."""
        return self.folds.shown(self.hidden)

    @cached_property
    def of_row(self) -> Indices:
        """(S, P) fold of points of each train model's own points; `NONE` where there is none."""
        there = self.points.there("train")
        return np.where(there, self.folds.of_point[self.points.columns("train")], NONE)

    @cached_property
    def _there(self) -> Mask:
        return self.points.there("train")

    def hiding(self, fold: int) -> "Lessons":
        """Lessons that have not seen another fold either."""
        return Lessons(self.points, self.folds, self.describe, self.prepare, self.hidden | {fold})

    def rows(self, point_fold: int | None = None) -> tuple[Floats, Mask]:
        """Features (N, F) and membership (N,) of the rows at points outside a fold of points."""
        if point_fold is None or self.folds.point_folds == 1:
            return self._features, self._of_rows(self.points.solution)
        elsewhere = self._of_rows(self.of_row) != point_fold
        return self._features[elsewhere], self._of_rows(self.points.solution)[elsewhere]

    def asked(self, phase: str, targets: Indices) -> Iterator[Floats]:
        """Features (t, P, F) of targets that are not learnt from, one more fold hidden in turn."""
        for fold in self.shown:
            found = self.describe(phase, targets, self.hidden | {fold})
            flat = self._transform(found.reshape(-1, found.shape[-1]))
            yield flat.reshape(*found.shape[:-1], -1)

    @cached_property
    def _features(self) -> Floats:
        return self._transform(self._described)

    @cached_property
    def _transform(self) -> Transform:
        return self.prepare(self._described)

    @cached_property
    def _described(self) -> Floats:
        """Features (N, F) of all rows, each model by shadow models outside its own fold too."""
        parts = []
        for fold in self.shown:
            models = self.folds.models(fold)
            described = self.describe("train", models, self.hidden | {fold})
            parts.append(described[self._there[models]])
        return np.concatenate(parts)

    def _of_rows(self, values: np.ndarray) -> np.ndarray:
        models = map(self.folds.models, self.shown)
        return np.concatenate([values[some][self._there[some]] for some in models])


Predict = Callable[[Floats], Floats]  # features (N, F) to scores (N,)
Learner = Callable[[int | None], Predict]  # what is learnt at points outside a fold of points
Learn = Callable[[Lessons], Learner]


def cross_fit(lessons: Lessons, learn: Learn) -> dict[str, Floats]:
    """Scores (T, P) of every phase, by what is learnt from the train models.

    NaN where a target has no point.
    """
    found = {"train": _validated(lessons, learn)}
    if others := [phase for phase in lessons.points.of_phase if phase != "train"]:
        predict = learn(lessons)(None)
        for phase in others:
            there = lessons.points.there(phase)
            turns = lessons.asked(phase, np.arange(len(there)))
            found[phase] = np.full(there.shape, np.nan)
            found[phase][there] = np.mean([predict(one[there]) for one in turns], axis=0)
    return found


def _validated(lessons: Lessons, learn: Learn) -> Floats:
    """Scores (S, P) of the train models, each fold by lessons that hide it."""
    folds = lessons.folds
    found = np.full(lessons.points.solution.shape, np.nan)
    for fold in range(folds.count):
        hidden, targets = lessons.hiding(fold), folds.models(fold)
        turns, learner = list(hidden.asked("train", targets)), learn(hidden)
        scores = found[targets]
        for point_fold in range(folds.point_folds):
            here = lessons.of_row[targets] == point_fold
            predict = learner(point_fold)
            scores[here] = np.mean([predict(features[here]) for features in turns], axis=0)
        found[targets] = scores
    return found
