"""Reference models: beside the train models, asked about all points, attacked by nobody."""

import shutil

import numpy as np
import pytest
import torch
from conftest import SIZES, WINNER

from mico_exp.attacks.folds import NO_FOLD, Folds, FoldSides
from mico_exp.attacks.sides import side
from mico_exp.challenge.phases import SHADOW
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import LEFT_OUT, load_scenario, read_truth
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import FileFingerprints
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.results.cell import evaluate
from mico_exp.runs.provenance import content
from mico_exp.scores import metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore

NETWORK = MLP([64, 16, 10])
COUNT = 5


def load(root, sizes=SIZES):
    return load_scenario(root, "digits", "digits_inf", sizes)


def write_references(folder, count=COUNT, first=0, keep=False):
    """Untrained networks, each of a random half of all records."""
    random = np.random.default_rng(first)
    halves = random.random((count, SIZES.records)) < 0.5
    for number, half in enumerate(halves, start=first):
        place = folder / f"model_{number}"
        place.mkdir(parents=True)
        torch.manual_seed(number)
        torch.save(MLP([64, 16, 10]).state_dict(), place / "model.pt")
        if not keep:
            np.save(place / "members.npy", np.flatnonzero(half) if number % 2 else half)
    if keep:
        np.save(folder / "keep.npy", halves)
    return halves


@pytest.fixture
def tree(built, tmp_path):
    shutil.copytree(built, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def place(tree):
    return tree / "digits" / "digits_inf"


def extraction(scenario, points, records, folder):
    store = ScoreStore(folder)
    return Extraction(scenario, points, records, Architecture.of(NETWORK), store, Processor("cpu"))


def evidence_of(root, records, store, sizes=SIZES):
    from mico_exp.attacks.evidence import Evidence

    scenario = load(root, sizes)
    points = challenge_points(scenario)
    made = extraction(scenario, points, records, store)
    made.compute({"loss": metrics.loss})
    labels = records.labels[points.unique].numpy()
    return Evidence({"loss": made.read("loss", metrics.loss)}, points, labels)


def loss_of(folder, records, point):
    network = MLP([64, 16, 10])
    state = torch.load(folder / "model.pt", weights_only=True)
    network.load_state_dict({k.removeprefix("_module."): v for k, v in state.items()})
    logits = network(records.inputs(torch.tensor([point])))
    return float(logits.detach().double().log_softmax(-1)[0, records.labels[point]])


@pytest.mark.parametrize("keep", [False, True], ids=["members", "keep"])
def test_every_target_is_judged_by_train_and_reference_models(tree, place, digits, tmp_path, keep):
    """Beside s − (mean in + mean out)/2, model by model."""
    halves = write_references(place / SHADOW, keep=keep)
    evidence = evidence_of(tree, digits, tmp_path / "store")
    scenario = load(tree)
    models = [(m, m.split(SIZES).trained_on(SIZES.records)) for m in scenario.phases["train"]]
    models += list(zip(scenario.shadow, halves, strict=True))
    random = np.random.default_rng(0)
    for phase, targets in scenario.phases.items():
        found = evidence.calibrated(WINNER["0"], evidence.only, phase)
        assert found.scores.shape == (len(targets), 2 * SIZES.challenge)
        for row, column in zip(
            random.integers(len(targets), size=3), random.integers(20, size=3), strict=True
        ):
            point = evidence.points.of_phase[phase][row, column]
            others = [(m, mask) for m, mask in models if m.path != targets[row].path]
            sides = [
                np.mean([loss_of(m.path, digits, point) for m, mask in others if mask[point] == s])
                for s in (True, False)
            ]
            expected = loss_of(targets[row].path, digits, point) - np.mean(sides)
            np.testing.assert_allclose(found.scores[row, column], expected, atol=1e-5)
            outside = sum(not mask[point] for _, mask in others)
            assert found.out_models[row, column] == outside


def test_references_are_never_targets(tree, place, digits, tmp_path):
    before = challenge_points(load(tree))
    write_references(place / SHADOW)
    scenario = load(tree)
    after = challenge_points(scenario)
    assert list(scenario.phases) == list(after.of_phase) == ["train", "dev", "final"]
    assert np.array_equal(before.unique, after.unique)
    assert np.array_equal(before.solution, after.solution)
    assert np.array_equal(before.is_member, after.is_member[: len(before.is_member)])
    assert len(after.is_member) == len(before.is_member) + COUNT
    truth = read_truth(tree, scenario)
    result = evaluate(evidence_of(tree, digits, tmp_path / "store"), WINNER["1"], truth)
    assert set(result.predictions) == {"train", "dev", "final"}
    assert {phase: len(rows) for phase, rows in result.predictions.items()} == {
        "train": 12,
        "dev": 3,
        "final": 2,
    }


def test_content_hangs_on_references_and_on_nothing_else_of_them(tree, place, digits, tmp_path):
    def key():
        return content(load(tree), digits, FileFingerprints(tmp_path / "known.json"))

    before = key()
    (place / SHADOW).mkdir()
    assert key() == before
    write_references(place / SHADOW)
    with_five = key()
    write_references(place / SHADOW, 1, first=COUNT)
    assert len({before, with_five, key()}) == 3
    shutil.rmtree(place / SHADOW)
    assert key() == before


def test_only_references_are_computed_when_some_come(tree, place, digits, tmp_path):
    scenario = load(tree)
    extraction(scenario, challenge_points(scenario), digits, tmp_path).compute(
        {"loss": metrics.loss}
    )
    write_references(place / SHADOW)
    scenario = load(tree)
    made = extraction(scenario, challenge_points(scenario), digits, tmp_path)
    (one,) = made.compute({"loss": metrics.loss})
    assert one.models == COUNT
    assert made.look().logit.keys() == {"train", "dev", "final"}


def test_what_learns_is_described_by_references_whatever_is_hidden(tree, place, digits, tmp_path):
    write_references(place / SHADOW)
    evidence = evidence_of(tree, digits, tmp_path / "store")
    points, shadow = evidence.points, evidence.only.shadow
    folds = Folds.of(points, 3)
    assert (folds.of_model[12:] == NO_FOLD).all()
    assert folds.count == 3
    columns = points.columns("train")
    sides = FoldSides(shadow, points.is_member, folds).without(frozenset({0, 2}), columns)
    some = (folds.of_model == 1) | (folds.of_model == NO_FOLD)
    for found, mask in zip(sides, (points.is_member, ~points.is_member), strict=True):
        expected = side(shadow[some], mask[some])
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other[columns], rtol=1e-9, atol=1e-12)


def test_without_train_models_references_stand_in(tree, place, digits, tmp_path):
    """One target and its references, each of which is left out in turn for the validation."""
    points = load(tree).phases["final"][0].split(SIZES).challenge
    for phase in ("train", "dev"):
        shutil.rmtree(place / phase)
    shutil.rmtree(place / "final" / "model_16")
    halves = write_references(place / SHADOW)
    write_references(place / SHADOW, 1, first=COUNT)
    (place / SHADOW / f"model_{COUNT}" / LEFT_OUT).write_text("final/model_15\n")
    out = np.setdiff1d(np.arange(SIZES.records), points)
    np.save(place / SHADOW / f"model_{COUNT}" / "members.npy", out)
    scenario = load(tree)
    assert [one.path.name for one in scenario.phases["train"]] == [f"model_{k}" for k in range(5)]
    assert [one.path.name for one in scenario.shadow] == ["model_5"]
    found = challenge_points(scenario)
    assert np.array_equal(found.unique, np.sort(points))
    assert found.is_pool
    assert np.array_equal(found.solution, halves[:, found.unique])
    assert not found.is_member[-1].any()
    truth = read_truth(tree, load(tree))
    result = evaluate(evidence_of(tree, digits, tmp_path / "store"), WINNER["0"], truth)
    assert {"val/auc", "final/auc"} <= result.figures.keys()


def test_references_by_themselves_are_a_pool(tree, place):
    for phase in ("train", "dev", "final"):
        shutil.rmtree(place / phase)
    write_references(place / SHADOW)
    scenario = load(tree, Sizes(SIZES.records))
    points = challenge_points(scenario)
    assert points.is_pool
    assert len(points.unique) == SIZES.records


def test_a_reference_model_must_tell_its_members(tree, place):
    write_references(place / SHADOW)
    (place / SHADOW / "model_3" / "members.npy").unlink()
    with pytest.raises(InputError, match="model_3 tells no membership"):
        load(tree)
    np.save(place / SHADOW / "model_3" / "challenge.npy", [1, 2])
    with pytest.raises(InputError, match="a reference model must disclose it"):
        challenge_points(load(tree))


def test_without_anything_to_compare_with_the_command_is_named(tree, place):
    shutil.rmtree(place / "train")
    with pytest.raises(InputError, match=r"mico_exp\.shadow"):
        load(tree)
