"""The rule of cross-fitting: what a row is scored by has never seen its target's membership."""

from dataclasses import replace

import leaky
import numpy as np
import pytest

from mico_exp.attacks.folds import Folds, FoldSides, Lessons, cross_fit
from mico_exp.attacks.sides import Side, joined, side
from mico_exp.common.errors import InputError


@pytest.fixture(scope="module")
def evidence():
    return leaky.evidence({"one": 1.0}, models=11, targets=3, points=6, unique=20)[0]


def test_folds_are_of_models_and_alike_in_size(evidence):
    folds = Folds.of(evidence.points, 4)
    assert sorted(np.bincount(folds.of_model)) == [2, 3, 3, 3]
    assert sorted(np.bincount(folds.of_point)) == [10, 10]
    assert np.array_equal(folds.of_model, Folds.of(evidence.points, 4).of_model)
    assert np.array_equal(folds.of_point, Folds.of(evidence.points, 4).of_point)
    for of, count in ((folds.of_model, 4), (folds.of_point, 2)):  # whatever order they come in
        assert not np.array_equal(of, np.arange(len(of)) % count)


def test_there_may_be_as_many_folds_as_models(evidence):
    folds = Folds.of(evidence.points, 11)
    assert sorted(folds.of_model) == list(range(11))
    assert [len(folds.models(fold)) for fold in range(folds.count)] == [1] * 11


def test_points_have_folds_only_where_train_models_share_some(evidence):
    apart = np.arange(66).reshape(11, 6)
    points = replace(
        evidence.points, of_phase={"train": apart, "dev": apart[:3]}, unique=np.arange(66)
    )
    assert Folds.of(points, 4).point_folds == 1
    assert Folds.of(evidence.points, 4).point_folds == 2


@pytest.mark.parametrize("folds", [2, 1, 0, 3.0, True, None])
def test_too_few_folds(evidence, folds):
    with pytest.raises(InputError, match="`folds` must be a whole number of at least 3"):
        Folds.of(evidence.points, folds)


def test_fewer_models_than_folds_are_folds_of_their_own(evidence):
    folds = Folds.of(evidence.points, 12)
    assert sorted(folds.of_model) == list(range(11))
    few = {"train": evidence.points.of_phase["train"][:2]}
    points = replace(evidence.points, of_phase=few, is_member=evidence.points.is_member[:2])
    with pytest.raises(InputError, match="train models needs at least 3 of them, got 2"):
        Folds.of(points, 5)


def test_sides_without_folds_are_sides_of_the_others(evidence):
    """Of any folds together, missing scores and missing sides included."""
    random = np.random.default_rng(1)
    shadow = np.where(random.random((11, 20)) < 0.1, np.nan, evidence.only.shadow)
    is_member = evidence.points.is_member & (np.arange(20) > 2)  # three points without in models
    folds, columns = Folds.of(evidence.points, 4), evidence.points.columns("dev")
    sides = FoldSides(shadow, is_member, folds)
    for hidden in ({0}, {1, 3}, {0, 1, 2}):
        found = sides.without(frozenset(hidden), columns)
        some = ~np.isin(folds.of_model, list(hidden))
        for one, mask in zip(found, (is_member, ~is_member), strict=True):
            for place in np.ndindex(columns.shape):
                column = shadow[some, columns[place]]
                values = column[mask[some, columns[place]] & np.isfinite(column)]
                assert one.size[place] == len(values)
                assert one.mean[place] == pytest.approx(values.mean() if len(values) else 0)
                squares = ((values - values.mean()) ** 2).sum() if len(values) else 0
                assert one.squares[place] == pytest.approx(squares, abs=1e-12)


def test_models_that_agree_have_no_spread_however_they_are_added_up():
    shadow = np.full((7, 3), 0.1)
    whole = np.ones((7, 3), dtype=bool)
    parts = [side(shadow[some], whole[some]) for some in (slice(2), slice(2, 3), slice(3, 7))]
    found = joined(parts)
    assert np.array_equal(found.mean, np.full(3, 0.1))
    assert (found.squares == 0).all()
    empty = Side(np.zeros(3), np.zeros(3), np.zeros(3))
    assert all(map(np.array_equal, joined([*parts, empty]), found))


class Witness:
    """Describes and learns nothing, but notes who has seen what."""

    def __init__(self, evidence, folds):
        self.evidence, self.folds = evidence, folds
        self.learnt, self.scored = [], {}

    def describe(self, phase, targets, hidden):
        """Features that say whose row it is, where, and which shadow models it has seen."""
        columns = self.evidence.points.columns(phase)[targets]
        seen = (~np.isin(self.folds.of_model, list(hidden))).astype(float)
        name = np.broadcast_to(np.asarray(targets, float)[:, None], columns.shape)
        own = np.stack([name + 1000 * (phase != "train"), columns.astype(float)], axis=-1)
        return np.concatenate([own, np.broadcast_to(seen, (*columns.shape, len(seen)))], axis=-1)

    def learn(self, lessons):
        def learner(point_fold):
            rows, is_member = lessons.rows(point_fold)
            solution = self.evidence.points.solution
            columns = self.evidence.points.columns("train")
            for (target, column), told in zip(rows[:, :2].astype(int), is_member, strict=True):
                place = np.flatnonzero(columns[target] == column)
                assert told == solution[target, place].item()
            self.learnt.append(rows)

            def predict(features):
                for row in features:
                    self.scored.setdefault((int(row[0]), int(row[1])), []).append((row, rows))
                return features[:, 2:].sum(axis=1)

            return predict

        return learner


def test_no_row_is_scored_by_what_has_seen_its_target(evidence):
    """Every row that is scored, and every row that it is scored by, looked at one by one."""
    folds = Folds.of(evidence.points, 4)
    witness = Witness(evidence, folds)
    lessons = Lessons(evidence.points, folds, witness.describe)
    found = cross_fit(lessons, witness.learn)
    columns = {phase: evidence.points.columns(phase) for phase in ("train", "dev")}
    for phase, shift in (("train", 0), ("dev", 1000)):
        for target, point in np.ndindex(columns[phase].shape):
            column = columns[phase][target, point]
            asked = witness.scored[target + shift, column]
            fold = folds.of_model[target] if phase == "train" else None
            assert len(asked) == (3 if phase == "train" else 4)  # each other fold in turn
            for row, learnt in asked:
                hidden = set(folds.of_model[row[2:] == 0])
                assert len(hidden) == (2 if phase == "train" else 1)
                if phase == "train":
                    assert fold in hidden  # described by no model of its own fold
                    assert fold not in folds.of_model[learnt[:, 0].astype(int)]
                    unseen = learnt[:, 2:][:, folds.of_model == fold]
                    assert not unseen.any()  # what it is scored by has not seen its fold
                    other = folds.of_point[learnt[:, 1].astype(int)]
                    assert not (other == folds.of_point[column]).any()
                for one in learnt:  # nor has any row that is learnt from seen its own fold
                    own = folds.of_model[int(one[0])]
                    assert not one[2:][folds.of_model == own].any()
            turns = [row[2:].sum() for row, _ in asked]
            assert found[phase][target, point] == pytest.approx(np.mean(turns))
    assert len(witness.learnt) == 4 * 2 + 1


def test_lessons_that_hide_one_fold_after_another_hide_both(evidence):
    folds = Folds.of(evidence.points, 4)
    lessons = Lessons(evidence.points, folds, Witness(evidence, folds).describe)
    nested = lessons.hiding(1).hiding(3)
    assert nested.shown == [0, 2]
    rows, is_member = nested.rows()
    learnt = np.isin(folds.of_model, [0, 2])
    assert len(rows) == 6 * learnt.sum()
    assert is_member.sum() == evidence.points.solution[learnt].sum()
    for row in (*rows, *np.concatenate([*nested.asked("train", folds.models(1))]).reshape(-1, 13)):
        seen = folds.of_model[row[2:] == 1]
        assert len(set(seen)) == 1  # of the two that are shown, its own or one in turn is hidden
        assert not np.isin([1, 3, folds.of_model[int(row[0])]], seen).any()


def test_where_models_share_no_point_all_points_teach(evidence):
    apart = np.arange(66).reshape(11, 6)
    points = replace(
        evidence.points,
        of_phase={"train": apart},
        unique=np.arange(66),
        is_member=np.zeros((11, 66), bool),
    )
    folds = Folds.of(points, 4)
    lessons = Lessons(points, folds, lambda *asked: points.columns("train")[asked[1], :, None])
    for point_fold in (None, 0):
        rows, is_member = lessons.hiding(2).rows(point_fold)
        learnt = np.concatenate([folds.models(fold) for fold in (0, 1, 3)])
        assert rows.ravel().tolist() == apart[learnt].ravel().tolist()
        assert is_member.tolist() == points.solution[learnt].ravel().tolist()


def test_what_is_prepared_has_not_seen_the_fold_either(evidence):
    folds = Folds.of(evidence.points, 4)
    seen = []

    def prepare(features):
        seen.append(features)
        return lambda some: some + 0.5

    witness = Witness(evidence, folds)
    lessons = Lessons(evidence.points, folds, witness.describe, prepare).hiding(2)
    rows, _ = lessons.rows()
    (raw,) = seen
    assert np.array_equal(rows, raw + 0.5)
    assert 2 not in folds.of_model[raw[:, 0].astype(int)]
    for asked in lessons.asked("train", folds.models(2)):
        assert (asked[..., 0] % 1 == 0.5).all()
    assert len(seen) == 1
