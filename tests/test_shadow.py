"""Reference models: beside the train models, asked about all points, attacked by nobody."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZES, WINNER, tiny_recipe
from opacus.accountants import PRVAccountant
from torch import nn

from mico_exp.attacks.folds import NO_FOLD, Folds, FoldSides
from mico_exp.attacks.sides import side
from mico_exp.challenge.phases import SHADOW
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import LEFT_OUT, NoTrainModelsError, find_scenario, load_scenario
from mico_exp.challenge.truth import read_truth
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import FileFingerprints
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.models.workers import Local
from mico_exp.results.cell import evaluate
from mico_exp.runs.provenance import content
from mico_exp.scores import metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.training.accountant import noise_multiplier
from mico_exp.training.drawing import Among, Draw
from mico_exp.training.recipe import Fresh, PrivacyTarget
from mico_exp.training.shadow import Pool, Run, check_asked, groups_for
from mico_exp.training.steps import Plan

NETWORK = MLP([64, 16, 10])
PLAN = Plan(steps=60, batch_size=32, optimizer=partial(torch.optim.Adam, lr=0.02))
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
    assert made.checkup.look().logit.keys() == {"train", "dev", "final"}


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


def test_references_that_leave_points_out_are_nothing_to_compare_with(tree, place):
    shutil.rmtree(place / "train")
    write_references(place / SHADOW, 1)
    (place / SHADOW / "model_0" / LEFT_OUT).write_text("final/model_15\n")
    with pytest.raises(NoTrainModelsError, match=r"leave out a target's points") as caught:
        load(tree)
    assert caught.value.has_left_out


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


def test_nothing_at_all_to_compare_with(tree, place):
    shutil.rmtree(place / "train")
    with pytest.raises(NoTrainModelsError, match="shadow none either") as caught:
        load(tree)
    assert not caught.value.has_left_out


# ---------------------------------------------------------------- trained by the command's parts


def add(
    root,
    digits,
    kind,
    models,
    target=None,
    among=None,
    rest="out",
    scenario="digits_inf",
    workers=None,
    **changes,
):
    """Train references as the command does."""
    found = find_scenario(root, "digits", scenario, SIZES)
    drawn = Among.of(SIZES.records, among, rest)
    how = partial(tiny_recipe, **{"scenario": scenario, "plan": PLAN} | changes)
    asked = Run(kind, None, check_asked(kind, target, models))
    groups = groups_for(found, asked, target, drawn, how)
    pool = Pool(root / "digits" / scenario, changes.get("seed", 0))
    return pool.train(groups, digits, "cpu", workers or Local())


def contents(folder):
    """Every file below a folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def members(folder):
    return np.load(folder / "members.npy")


def test_a_pool_is_of_independent_halves():
    """How many are in, and how often two records are together, is binomial; no design balances."""
    draw = Draw("pool", Among.of(61, np.arange(10, 60), "in"))
    random = np.random.default_rng(1)
    drawn = np.zeros((4000, 61), dtype=bool)
    for row in drawn:
        row[draw.own(random)] = True
    inside = drawn[:, 10:60]
    assert drawn[:, [*range(10), 60]].all()
    assert abs(inside.mean() - 0.5) < 0.005
    assert abs(inside.sum(axis=1).var() - 50 / 4) < 1.2
    together = np.cov(inside.T.astype(float)) - np.eye(50) / 4
    assert np.abs(together).max() < 5 * 0.25 / np.sqrt(4000)


def test_more_references_keep_those_that_are_there(tree, place, digits, tmp_path):
    """3, then 5: as 5 at once, and as 5 of which some were lost."""
    shutil.copytree(tree, tmp_path / "other")
    assert add(tree, digits, "pool", 3) == 3
    before = contents(place / SHADOW)
    assert add(tree, digits, "pool", 5) == 2
    after = contents(place / SHADOW)
    assert {name: after[name] for name in before if name != "build.json"} == {
        name: one for name, one in before.items() if name != "build.json"
    }
    assert add(tree, digits, "pool", 5) == 0
    for number in (1, 4):
        shutil.rmtree(place / SHADOW / f"model_{number}")
    (place / SHADOW / ".model_1.half").mkdir()
    assert add(tree, digits, "pool", 5) == 2
    (place / SHADOW / ".model_1.half").rmdir()
    assert contents(place / SHADOW) == after
    add(tmp_path / "other", digits, "pool", 5)
    assert contents(tmp_path / "other" / "digits" / "digits_inf" / SHADOW) == after


def test_references_of_several_kinds(tree, place, digits):
    """What each was trained on, that it was, and what the challenge's own models make of them."""
    add(tree, digits, "pool", 2)
    add(tree, digits, "like_train", 1)
    assert add(tree, digits, "leave_out", 1, target="final") == 2
    add(tree, digits, "pool", 3)
    runs = json.loads((place / SHADOW / "build.json").read_text())["runs"]
    assert [(run["kind"], run["target"], run["count"]) for run in runs] == [
        ("pool", None, 2),
        ("like_train", None, 1),
        ("leave_out", "final/model_15", 1),
        ("leave_out", "final/model_16", 1),
        ("pool", None, 1),
    ]
    scenario = load(tree)
    masks = [members(one.path) for one in scenario.shadow]
    assert masks[2].sum() == SIZES.training
    for number, target in ((3, 0), (4, 1)):
        points = scenario.phases["final"][target].split(SIZES).challenge
        assert np.array_equal(np.flatnonzero(~masks[number]), np.sort(points))
        told = (place / SHADOW / f"model_{number}" / LEFT_OUT).read_text()
        assert told == f"final/{scenario.phases['final'][target].path.name}\n"
    halves = [masks[number] for number in (0, 1, 5)]
    assert len({half.sum() for half in halves}) > 1
    assert all(abs(half.mean() - 0.5) < 0.06 for half in halves)
    assert (halves[0] & halves[1]).mean() < 0.3
    for one, mask in zip(scenario.shadow, masks, strict=True):
        network = MLP([64, 16, 10])
        network.load_state_dict(torch.load(one.path / "model.pt", weights_only=True))
        right = (network(digits.features).argmax(1) == digits.labels).numpy()
        assert right[mask].mean() > 0.6
        assert f"{right[~mask].mean():.4f}\n" == (one.path / "accuracy").read_text()
    assert challenge_points(scenario).is_member.shape[0] == 12 + 6


def test_what_references_were_trained_on_hangs_on_nothing_else(tree, place, digits, tmp_path):
    """Not on how they are trained, nor on which others there are."""
    shutil.copytree(tree, tmp_path / "other")
    add(tree, digits, "like_train", 1)
    add(tree, digits, "pool", 1)
    add(tmp_path / "other", digits, "pool", 1, widths=(64, 8, 10))
    other = tmp_path / "other" / "digits" / "digits_inf" / SHADOW / "model_0"
    assert np.array_equal(members(place / SHADOW / "model_1"), members(other))


def test_references_with_privacy_tell_what_they_spent(tree, digits):
    """Each by its own number of records and the steps that all make, as Opacus has it."""
    shutil.copytree(tree / "digits" / "digits_inf", tree / "digits" / "digits_hi")
    target = PrivacyTarget(epsilon=10.0, delta=1e-5, clip_norm=1.0)
    steps = 3 * 29  # epochs of half the records
    how = {"privacy": target, "epochs": 3, "plan": replace(PLAN, steps=steps)}
    add(tree, digits, "pool", 2, scenario="digits_hi", **how)
    sigma, counts = noise_multiplier(10.0, 1e-5, 32 / 898, steps), set()
    for folder in (tree / "digits" / "digits_hi" / SHADOW).glob("model_*"):
        assert all(key.startswith("_module.") for key in torch.load(folder / "model.pt"))
        counts.add(count := int(members(folder).sum()))
        accountant = PRVAccountant()
        accountant.history = [(sigma, 32 / count, steps)]
        expected = accountant.get_epsilon(1e-5)
        assert float((folder / "epsilon").read_text()) == pytest.approx(expected, abs=0.02)
    assert {math.ceil(count / 32) for count in counts} - {29}


NOT_SO = {
    "a kind": (("some", 3), {}, r"`kind` must be one of pool, like_train, leave_out, got 'some'"),
    "none": (("pool", 0), {}, "`models` must be a whole number"),
    "fewer": (("pool", 1), {}, "`models` must be at least 2, as so many reference models of kin"),
    "no target": (("leave_out", 1), {}, "`target` must name the model .* There are train/model_0"),
    "a target": (("leave_out", 1), {"target": "model_99"}, "must be a model of digits/digits_inf"),
    "a target of a pool": (("pool", 3), {"target": "model_0"}, "`target` must be null but for"),
    "another recipe": (("pool", 3), {"widths": (64, 8, 10)}, r"widths = \[64, 16, 10\], but"),
    "another seed": (("pool", 3), {"seed": 1}, "built with seed = 0, but 1 is asked for"),
    "others": (
        ("pool", 3),
        {"among": np.arange(1, 1797)},
        "for the 2 reference models of kind=pool",
    ),
    "few": (("like_train", 3), {"among": np.arange(50)}, "as many records as a train model"),
    "rest": (("like_train", 3), {"among": np.arange(500), "rest": "in"}, "`rest` must be out but"),
    "a rest": (("pool", 3), {"rest": "no"}, "`rest` must be one of out, in, got 'no'"),
    "a batch": (
        ("pool", 8),
        {"plan": replace(PLAN, batch_size=898)},
        r"`batch_size` must be at most the 8\d\d records that reference model model_\d trains on",
    ),
    "without points": (("pool", 3), {"among": np.arange(50)}, "`among` must have all challenge"),
}


@pytest.mark.parametrize("what", NOT_SO)
def test_references_that_cannot_be(tree, place, digits, what):
    asked, changes, said = NOT_SO[what]
    if is_more := what in ("fewer", "another recipe", "another seed", "others"):
        add(tree, digits, "pool", 2)
    with pytest.raises(InputError, match=said):
        add(tree, digits, *asked, **changes)
    assert len(list((place / SHADOW).glob("model_*"))) == 2 * is_more


class Diverging(nn.Linear):
    """Gives no numbers where it was so drawn."""

    def __init__(self):
        super().__init__(64, 10)

    def forward(self, inputs):
        return super().forward(inputs) * (torch.nan if self.bias[0] > 0 else 1)


def test_a_target_that_is_stopped_stops_no_other(tree, place, digits, caplog):
    caplog.set_level("INFO")
    how = {"widths": None, "network": Fresh(Diverging), "plan": replace(PLAN, steps=1)}
    with pytest.raises(InputError, match="of digits/digits_inf/shadow's models could not") as found:
        add(tree, digits, "leave_out", 1, target="train", **how)
    written = list((place / SHADOW).glob("model_*"))
    assert 0 < len(written) < 12
    assert str(found.value).startswith(f"{12 - len(written)} of ")
    targets = {one.joinpath(LEFT_OUT).read_text().strip() for one in written}
    assert targets == {f"train/{one.name}" for one in written}
    assert caplog.text.count("training 12 models") == 1  # at once, so that processes share them


def test_references_of_other_records_or_of_somebody_else(tree, place, digits):
    add(tree, digits, "pool", 1)
    changed = type(digits)(digits.features * 2, digits.labels)
    with pytest.raises(InputError, match="records_fingerprint"):
        add(tree, changed, "pool", 2)
    (place / SHADOW / "build.json").unlink()
    with pytest.raises(InputError, match=r"`mico_exp\.shadow` did not make"):
        add(tree, digits, "pool", 2)


def test_a_target_that_two_phases_have(tree, place, digits):
    shutil.copytree(place / "final" / "model_15", place / "dev" / "model_15")
    with pytest.raises(InputError, match="dev/model_15 or final/model_15"):
        add(tree, digits, "leave_out", 1, target="model_15")
