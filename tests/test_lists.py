"""Membership by lists in place of the three seeds: one meaning, whichever way it is told."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZES, tiny_recipe
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mico_exp.attacks.evidence import Evidence
from mico_exp.challenge.lists import read_members
from mico_exp.challenge.outputs import arrays as outputs_of
from mico_exp.challenge.points import NONE, challenge_points, known_training
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import SEEDS, load_scenario
from mico_exp.challenge.truth import read_truth, truth_folder
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import FileFingerprints
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.models.recorded import recorded, take_in
from mico_exp.results.cell import evaluate
from mico_exp.runs.provenance import content
from mico_exp.scores import metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.training.building import is_complete

LISTED = Sizes(SIZES.records)
SCENARIO = "digits/digits_inf"
CONF = Path(__file__).parents[1] / "conf"


def load(root, sizes=SIZES):
    return load_scenario(root, "digits", "digits_inf", sizes)


@pytest.fixture
def tree(built, tmp_path):
    """A copy of a built tree, whose files a test may change."""
    shutil.copytree(built, tmp_path / "data")
    return tmp_path / "data"


def write(path: Path, values, kind="npy"):
    """Write a list as an array or as lines."""
    if kind == "npy":
        np.save(path.with_suffix(".npy"), np.asarray(values))
    else:
        path.with_suffix(".csv").write_text("\n".join(map(str, values)) + "\n")


def forget_seeds(folder):
    for name in (*SEEDS, "solution.csv"):
        (folder / name).unlink(missing_ok=True)


def by_lists(root, kind, pool=False, keep_seeds=False):
    """Tell the same membership by lists; seeds go."""
    scenario = load(root)
    masks = []
    for phase, model in scenario.models():
        split = model.split(SIZES)
        write(model.path / "challenge", split.challenge, kind)
        if phase == "train":
            masks.append(split.trained_on(SIZES.records))
            if kind == "mask":
                write(model.path / "members", masks[-1])
            elif not pool:
                write(model.path / "members", np.flatnonzero(masks[-1])[::-1], kind)
        if not keep_seeds:
            forget_seeds(model.path)
    if pool:
        np.save(root / SCENARIO / "train" / "keep.npy", np.array(masks))
    return scenario


@pytest.mark.parametrize("way", ["npy", "csv", "mask", "pool", "both"])
def test_lists_say_what_seeds_say(built, tree, way):
    kind = {"mask": "npy", "pool": "npy", "both": "npy"}.get(way, way)
    before = by_lists(tree, kind, pool=way == "pool", keep_seeds=way == "both")
    after = load(tree, SIZES if way == "both" else LISTED)
    expected, found = challenge_points(before), challenge_points(after)
    for phase in expected.of_phase:
        assert np.array_equal(found.of_phase[phase], expected.of_phase[phase])
        assert np.array_equal(found.columns(phase), expected.columns(phase))
    assert np.array_equal(found.is_member, expected.is_member)
    assert np.array_equal(found.solution, expected.solution)
    for (_, one), (_, other) in zip(before.models(), after.models(), strict=True):
        told, seeds = other.split(after.sizes), one.split(SIZES)
        assert np.array_equal(told.challenge, seeds.challenge)
        assert other.num_points(after.sizes) == 2 * SIZES.challenge
        assert np.array_equal(one.solution(SIZES), other.solution(after.sizes))
    for phase, truth in read_truth(built, before).items():
        assert np.array_equal(read_truth(tree, after)[phase], truth)
    assert is_complete(tree, tiny_recipe())


def test_content_hangs_on_what_lists_say(tree, digits, tmp_path):
    by_lists(tree, "npy")

    def key():
        return content(load(tree, LISTED), digits, FileFingerprints(tmp_path / "known.json"))

    before = key()
    path = tree / SCENARIO / "train" / "model_0" / "members.npy"
    members = np.load(path)
    np.save(path, members[::-1])
    other = key()
    np.save(path, members)
    assert before == key() != other


def test_a_target_that_discloses_its_training_set(tree):
    """As in the competition's ddp: of challenge points nothing is told."""
    before = load(tree)
    model = before.phases["dev"][0]
    split = model.split(SIZES)
    truth = read_truth(tree, before)["dev"][0]
    others = np.setdiff1d(np.arange(SIZES.records), split.challenge)[:100]
    for one in before.phases["dev"]:
        rest = np.setdiff1d(np.arange(SIZES.records), one.split(SIZES).challenge)[:100]
        write(one.path / "members", rest)
    known = known_training(load(tree), "dev")
    assert np.flatnonzero(known.member[0]).tolist() == others.tolist()
    assert not (known.member | known.nonmember)[0, split.challenge].any()
    assert (known.member | known.nonmember)[0].sum() == SIZES.records - len(split.challenge)
    write(model.path / "members", np.concatenate([others, split.challenge[truth]]))
    with pytest.raises(InputError, match=f"got {truth.sum()} of {len(truth)}: attacks read"):
        load(tree).phases["dev"][0].split(SIZES)


def test_truth_may_be_a_list(tree):
    scenario = load(tree)
    expected = read_truth(tree, scenario)
    for phase, model in scenario.models():
        if phase == "train":
            continue
        place = truth_folder(tree) / SCENARIO / phase / model.path.name
        solution = [v == "1" for v in (place / "solution.csv").read_text().split(",")]
        (place / "solution.csv").unlink()
        write(place / "members", model.split(SIZES).challenge[np.array(solution)], "csv")
    for phase, truth in read_truth(tree, scenario).items():
        assert np.array_equal(truth, expected[phase])
    assert is_complete(tree, tiny_recipe())


def test_a_pool_asks_every_model_about_every_record(tree):
    """Without a list of challenge points: all records, of every train model."""
    by_lists(tree, "npy", pool=True)
    for phase in ("dev", "final"):
        shutil.rmtree(tree / SCENARIO / phase)
    for path in (tree / SCENARIO / "train").glob("model_*/challenge.npy"):
        path.unlink()
    keep = np.load(tree / SCENARIO / "train" / "keep.npy")
    points = challenge_points(load(tree, LISTED))
    assert points.is_pool
    assert points.of_phase["train"].shape == keep.shape
    assert points.of_phase["train"].strides[0] == 0  # once in memory
    assert np.array_equal(points.is_member, keep)
    assert np.array_equal(points.solution, keep)


def test_a_list_for_all_and_one_of_its_own(tree):
    """The model's own wins; models may have unequal numbers of points."""
    by_lists(tree, "npy", pool=True)
    for path in (tree / SCENARIO).glob("*/model_*/challenge.npy"):
        path.unlink()
    write(tree / SCENARIO / "challenge", [5, 3, 9, 700])
    write(tree / SCENARIO / "dev" / "model_13" / "challenge", [8, 1], "csv")
    scenario = load(tree, LISTED)
    points = challenge_points(scenario)
    assert points.of_phase["train"].tolist() == [[5, 3, 9, 700]] * 12
    assert points.of_phase["dev"].tolist() == [[5, 3, 9, 700], [8, 1, NONE, NONE], [5, 3, 9, 700]]
    assert points.there("dev").tolist() == [[True] * 4, [True, True, False, False], [True] * 4]
    assert points.unique.tolist() == [1, 3, 5, 8, 9, 700]
    assert points.columns("dev")[1].tolist() == [3, 0, NONE, NONE]
    assert not points.is_pool
    lengths = [model.num_points(LISTED) for model in scenario.phases["dev"]]
    assert lengths == [4, 2, 4]
    for i, model in enumerate(scenario.phases["train"]):
        members = set(np.flatnonzero(np.load(model.path.parent / "keep.npy")[i]))
        assert points.solution[i].tolist() == [p in members for p in (5, 3, 9, 700)]
        assert points.is_member[i].tolist() == [p in members for p in points.unique]


def test_thinned_points_are_some_of_each_models_own(tree):
    by_lists(tree, "npy", pool=True)
    for path in (tree / SCENARIO).glob("*/model_*/challenge.npy"):
        path.unlink()
    write(tree / SCENARIO / "challenge", np.arange(50)[::-1])
    write(tree / SCENARIO / "train" / "model_3" / "challenge", [7, 8])
    points = challenge_points(load(tree, LISTED))
    assert points.thinned(50) is points
    few = points.thinned(10)
    for row, own in enumerate(points.of_phase["train"]):
        some = few.points_of("train", row)
        assert len(some) == (2 if row == 3 else 10)
        place = [own.tolist().index(p) for p in some]
        assert place == sorted(place)
        assert few.solution[row, : len(some)].tolist() == points.solution[row, place].tolist()


BAD = {
    "out of range": ("members.npy", [0, 1797], r"indices must be in \[0, 1796\].* got 1797"),
    "negative": ("members.csv", [-1, 4], "got -1"),
    "twice": ("members.npy", [4, 7, 4, 7], r"got 4 2 times \(and 1 more\)"),
    "a short mask": ("members.npy", [True, False], r"for each of 1797 records, got shape \(2,\)"),
    "fractions": ("members.npy", [0.5], "whole numbers .* got float64"),
    "words": ("members.csv", ["one"], "must be a record's index, got 'one' as value 1"),
    "points twice": ("challenge.npy", [3, 3], "got 3 2 times"),
    "points out of range": ("challenge.csv", [5000], "got 5000"),
    "no points": ("challenge.csv", [], "at least one challenge point"),
    "a table": ("challenge.npy", [[1, 2]], r"got int64 of shape \(1, 2\)"),
}


@pytest.mark.parametrize(("name", "values", "message"), BAD.values(), ids=BAD.keys())
def test_what_no_list_may_be(tree, name, values, message):
    by_lists(tree, "npy")
    folder = tree / SCENARIO / "train" / "model_3"
    stem, kind = name.split(".")
    (folder / f"{stem}.npy").unlink()
    write(folder / stem, values, kind)
    with pytest.raises(InputError, match=message) as caught:
        challenge_points(load(tree, LISTED))
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_not_opened(tree):
    by_lists(tree, "npy")
    path = tree / SCENARIO / "train" / "model_3" / "members.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read as an array"):
        read_members(path, SIZES.records)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((11, 1797), bool, "a row for each of 12 models in .*, got 11 rows"),
        ((12, 1796), bool, r"a column for each of 1797 records, got shape \(12, 1796\)"),
        ((12, 1797), int, "must be a mask .* got int64"),
    ],
)
def test_what_no_pools_mask_may_be(tree, shape, dtype, message):
    by_lists(tree, "npy", pool=True)
    np.save(tree / SCENARIO / "train" / "keep.npy", np.ones(shape, dtype))
    with pytest.raises(InputError, match=message):
        challenge_points(load(tree, LISTED))


def test_what_is_missing_is_named(tree):
    by_lists(tree, "npy")
    folder = tree / SCENARIO / "train" / "model_3"
    (folder / "members.npy").unlink()
    with pytest.raises(InputError, match=r"train/keep.npy is missing: a train model must"):
        challenge_points(load(tree, LISTED))
    (folder / "challenge.npy").unlink()
    with pytest.raises(
        InputError, match=r"model_3 tells no membership: expected .*keep.npy, or members"
    ):
        load(tree, LISTED)
    target = tree / SCENARIO / "dev" / "model_13" / "challenge.npy"
    write(folder / "members", [1, 2])
    target.unlink()
    with pytest.raises(
        InputError, match="model_13 tells no challenge points: expected seed_challenge, or"
    ):
        load(tree, LISTED)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("members", lambda a: a[1:], "members.npy, .*challenge.npy disagrees with the seeds of"),
        ("challenge", lambda a: a[::-1], "disagrees with the seeds of model_3"),
    ],
)
def test_lists_and_seeds_must_agree(tree, name, change, message):
    by_lists(tree, "npy", keep_seeds=True)
    path = tree / SCENARIO / "train" / "model_3" / f"{name}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(InputError, match=message):
        challenge_points(load(tree))


def test_a_list_and_the_pools_mask_must_agree(tree):
    by_lists(tree, "npy", pool=True)
    write(tree / SCENARIO / "train" / "model_3" / "members", [1, 2])
    with pytest.raises(InputError, match=r"disagrees with row 3 of .*keep.npy at"):
        challenge_points(load(tree, LISTED))


def test_one_list_of_a_kind(tree):
    by_lists(tree, "npy")
    write(tree / SCENARIO / "train" / "model_3" / "members", [1, 2], "csv")
    with pytest.raises(InputError, match=r"must hold one list of members, got members.npy and"):
        load(tree, LISTED)


def test_seeds_want_sizes(tree):
    with pytest.raises(InputError, match=r"`dataset.len_training` and `dataset.len_challenge`"):
        challenge_points(load(tree, LISTED))


FORMULAS = [  # that draw no sample of disclosed records
    *("none", "0", "1", "2", "watson", "offset", "attack_r"),
    *("lira_online", "lira_online_bayes", "lira_offline", "lira_offline_pooled", "lira_shrunk"),
    *("rmia_online", "rmia_offline"),
]


def figures(root, store, sizes, records, architecture, labels):
    """All figures of black-box cells, by formula."""
    scenario = load(root, sizes)
    points = challenge_points(scenario)
    extraction = Extraction(scenario, points, records, architecture, ScoreStore(store))
    asked = {"confidence": metrics.confidence, "logit": metrics.logit}
    extraction.compute(asked)
    truth = read_truth(root, scenario)
    found = {}
    for metric, formula in itertools.product(asked, FORMULAS):
        if metric == "logit" and formula.startswith("rmia"):
            continue
        option = OmegaConf.load(CONF / "formula" / f"{formula}.yaml").function
        evidence = Evidence({metric: extraction.read(metric, asked[metric])}, points, labels)
        found[metric, formula] = evaluate(evidence, instantiate(option), truth).figures
    return found


def test_one_challenge_told_by_seeds_by_lists_and_by_logits(built, tree, digits, tmp_path):
    """Figures are the same, whichever way it comes."""
    network = Architecture.of(MLP([64, 16, 10]))
    labels = digits.labels[challenge_points(load(built)).unique].numpy()
    seeds = figures(built, tmp_path / "first", SIZES, digits, network, labels)
    scenario = load(tree)
    truth = read_truth(tree, scenario)

    logits, keep, phases = [], [], []
    for phase, model in scenario.models():
        loaded = ModelRunner(Processor("cpu")).load(network, [model.path])
        logits.append(loaded(digits.features)[0].numpy())
        split = model.split(SIZES)
        mask = np.zeros(SIZES.records, dtype=bool)
        if phase == "train":
            mask = split.trained_on(SIZES.records)
        else:
            row = [one.path for one in scenario.phases[phase]].index(model.path)
            mask[split.challenge[truth[phase][row]]] = True
        keep.append(mask)
        phases.append(phase)
    arrays = {"logits": np.stack(logits), "keep": np.stack(keep), "labels": digits.labels.numpy()}
    np.savez(tmp_path / "p.npz", **arrays, phases=phases, challenge=[0])
    outputs = outputs_of(str(tmp_path / "p.npz"))
    third = tmp_path / "third"
    place = third / SCENARIO, truth_folder(third) / SCENARIO
    take_in(*place, outputs, "key")
    for phase, model in scenario.models():
        write(
            third / SCENARIO / phase / model.path.name / "challenge", model.split(SIZES).challenge
        )
        if phase != "train":
            name = f"{phase}/{model.path.name}/solution.csv"
            shutil.copy(truth_folder(tree) / SCENARIO / name, place[1] / name)

    by_lists(tree, "npy")
    for found in (
        figures(tree, tmp_path / "second", LISTED, digits, network, labels),
        figures(
            third, tmp_path / "last", LISTED, outputs.records, Architecture.of(recorded), labels
        ),
    ):
        for cell, expected in seeds.items():
            assert found[cell] == pytest.approx(expected, abs=1e-6, nan_ok=True), cell
