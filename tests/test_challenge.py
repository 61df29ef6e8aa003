import hashlib
import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, SIZES

from mico_exp.challenge import protocol
from mico_exp.challenge.epsilon import EpsilonRange, read_epsilon, recorded_epsilon
from mico_exp.challenge.phases import PHASES
from mico_exp.challenge.points import challenge_points, known_sample, known_training
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import (
    ModelFolder,
    Scenario,
    load_scenario,
    read_seed,
    read_solution,
    write_solution,
)
from mico_exp.challenge.truth import read_truth
from mico_exp.common.errors import InputError

CASES = json.loads((GOLDEN / "splits.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['n']}-{c['seed_challenge']}")
def test_splits_are_those_of_the_competition(case):
    sizes = Sizes(case["n"], case["len_training"], case["len_challenge"])
    seeds = [int(case[f"seed_{name}"]) for name in ("challenge", "training", "membership")]
    split = protocol.split(sizes, *seeds)
    for name in ("challenge", "member", "nonmember", "training", "evaluation"):
        indices = getattr(split, name)
        assert indices[:10].tolist() == case[f"{name}_first10"]
        content = indices.astype("<i8").tobytes()
        assert hashlib.sha256(content).hexdigest() == case[f"{name}_sha256"]
    text = write_solution(split.solution)
    assert text.replace(",", "").strip() == case["solution"].replace(",", "").strip()


def test_index_sets_partition_the_records():
    split = protocol.split(Sizes(500, 90, 20), 3, 4, 5)
    parts = [split.member, split.nonmember, split.training, split.evaluation]
    assert sorted(np.concatenate(parts)) == list(range(500))
    assert len(split.member) + len(split.training) == 90
    assert set(split.member) | set(split.nonmember) == set(split.challenge)


def test_what_is_not_disclosed_is_none():
    split = protocol.split(Sizes(500, 90, 20), 3)
    assert split.member is split.nonmember is split.training is split.solution is None
    only_training = protocol.split(Sizes(500, 90, 20), 3, seed_training=4)
    assert only_training.member is None
    assert len(only_training.training) == 70


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((100, 10, 0), "`len_challenge` must be a whole number of at least 1, got 0"),
        ((100, 10, 11), "`len_training` must be at least `len_challenge`.* got 10 and 11"),
        ((100, 90, 11), "100 records are too few"),
        ((100, True, 1), "`len_training` must be a whole number of at least 1, got True"),
        ((100, 10, 5.0), r"`len_challenge` must be a whole number of at least 1, got 5\.0"),
    ],
)
def test_sizes_that_cannot_be(sizes, message):
    with pytest.raises(InputError, match=message):
        Sizes(*sizes)


@pytest.mark.parametrize("sizes", [(100, 90, 10), (20, 10, 10), (2, 1, 1)])
def test_sizes_that_leave_nothing_over(sizes):
    """All records are used, or a model is trained on its members alone."""
    n, training, m = sizes
    split = protocol.split(Sizes(*sizes), 3, 4, 5)
    parts = split.member, split.nonmember, split.training, split.evaluation
    assert [len(part) for part in parts] == [m, m, training - m, n - training - m]


def test_membership_and_columns_follow_a_literal_definition(built):
    scenario = load_scenario(built, "digits", "digits_inf", SIZES)
    points = challenge_points(scenario)
    for s, model in enumerate(scenario.phases["train"]):
        split = model.split(SIZES)
        seen = set(split.member) | set(split.training)
        assert [u in seen for u in points.unique] == points.is_member[s].tolist()
        stored = (model.path / "solution.csv").read_text().strip().split(",")
        assert [p in seen for p in split.challenge] == [v == "1" for v in stored]
        assert points.solution[s].tolist() == [v == "1" for v in stored]
    for phase in PHASES:
        assert np.array_equal(points.unique[points.columns(phase)], points.of_phase[phase])
    everything = {p for rows in points.of_phase.values() for p in rows.ravel()}
    assert sorted(everything) == points.unique.tolist()


def test_models_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 100, 1):
        folder = tmp_path / "c" / "s" / "train" / f"model_{number}"
        folder.mkdir(parents=True)
        (folder / "seed_challenge").write_text(f"{number}\n")
    (tmp_path / "c" / "s" / "train" / ".model_3.x.tmp").mkdir()
    scenario = load_scenario(tmp_path, "c", "s", SIZES)
    assert [model.number for model in scenario.phases["train"]] == [1, 9, 10, 100]
    assert [model.seed_challenge for model in scenario.phases["train"]] == [1, 9, 10, 100]
    assert list(scenario.phases) == ["train"]


def write_models(folder, seeds):
    """Folders by name, each with the seeds that are not None."""
    names = ("seed_challenge", "seed_training", "seed_membership")
    for model, values in seeds.items():
        (folder / model).mkdir(parents=True)
        for name, value in zip(names, values, strict=True):
            if value is not None:
                (folder / model / name).write_text(f"{value}\n")


def test_a_number_is_there_once_in_a_phase(tmp_path):
    place = tmp_path / "c" / "s"
    write_models(place / "train", {"model_3": (1, 1, 1), "model_4": (2, 2, 2)})
    write_models(place / "dev", {"model_3": (3, None, None)})  # a number of its own
    assert len(load_scenario(tmp_path, "c", "s", SIZES).phases) == 2
    write_models(place / "train", {"model_03": (4, 4, 4)})
    with pytest.raises(InputError) as caught:
        load_scenario(tmp_path, "c", "s", SIZES)
    expected = f"{place / 'train' / 'model_03'} and {place / 'train' / 'model_3'} have the same"
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("shared", list(itertools.product([True, False], repeat=3)))
def test_models_may_share_seeds_but_not_all_of_them(tmp_path, shared):
    second = tuple(1 if same else 2 for same in shared)
    write_models(tmp_path / "c" / "s" / "train", {"model_0": (1, 1, 1), "model_1": second})
    if all(shared):
        with pytest.raises(InputError, match=r"model_0 and .*model_1 have the same seed_chall"):
            load_scenario(tmp_path, "c", "s", SIZES)
    else:
        load_scenario(tmp_path, "c", "s", SIZES)


def test_seeds_that_are_not_disclosed_prove_nothing(tmp_path):
    place = tmp_path / "c" / "s"
    write_models(place / "train", {"model_0": (1, 1, 1)})
    write_models(place / "dev", {"model_1": (1, 1, None), "model_2": (1, 1, None)})
    write_models(place / "final", {"model_3": (1, None, None), "model_4": (1, None, None)})
    assert len(load_scenario(tmp_path, "c", "s", SIZES).phases) == 3


def test_of_many_that_are_there_twice_the_first_are_named_and_the_others_counted(tmp_path):
    seeds = {f"model_{i}": (i % 4, i % 4, i % 4) for i in range(12)}
    write_models(tmp_path / "c" / "s" / "train", seeds)
    with pytest.raises(InputError, match=r"model_0 and .*model_4 .* \(and 7 more\)") as caught:
        load_scenario(tmp_path, "c", "s", SIZES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "-1", "abc", "1.5", str(2**63), "1 2", "9" * 30, "1\n2", "1,2"),
        *("1_0", "+1", "0x1", "1e3", "\u0663", "\uff11", "\u00b2", "\ufeff1"),  # int() takes some
    ],
)
def test_a_bad_seed_names_its_file(tmp_path, text):
    (tmp_path / "seed_challenge").write_text(text)
    with pytest.raises(InputError, match="seed_challenge"):
        read_seed(tmp_path / "seed_challenge")


def test_the_largest_seed_is_read(tmp_path):
    (tmp_path / "seed").write_text(f"{2**63 - 1}\n")
    assert read_seed(tmp_path / "seed") == 2**63 - 1


def test_no_train_models(tmp_path):
    with pytest.raises(InputError, match="train"):
        load_scenario(tmp_path, "digits", "digits_inf", SIZES)


@pytest.mark.parametrize("missing", ["seed_training", "seed_membership"])
def test_a_train_model_must_disclose_its_seeds(tmp_path, missing):
    seeds = {"seed_training": 2, "seed_membership": 3, missing: None}
    model = ModelFolder(tmp_path / "model_0", 1, **seeds)
    with pytest.raises(InputError, match=f"{missing} is missing: a train model must disclose it"):
        challenge_points(Scenario("c", "s", SIZES, {"train": (model,)}))


def test_a_solution_that_disagrees_with_the_seeds_names_the_model(tmp_path, built):
    shutil.copytree(built / "digits", tmp_path / "digits")
    path = tmp_path / "digits" / "digits_inf" / "train" / "model_7" / "solution.csv"
    flipped = ",".join("10"[int(v)] for v in path.read_text().strip().split(","))
    path.write_text(flipped)
    scenario = load_scenario(tmp_path, "digits", "digits_inf", SIZES)
    with pytest.raises(InputError, match="model_7"):
        challenge_points(scenario)


def test_a_solution_of_a_dev_model_of_the_wrong_length_names_the_model(tmp_path, built):
    """Its seed is secret, so that no more can be said of it."""
    shutil.copytree(built / "digits", tmp_path / "digits")
    place = tmp_path / "digits" / "digits_inf" / "dev" / "model_13" / "solution.csv"
    place.write_text(",".join("01" * 10))
    challenge_points(load_scenario(tmp_path, "digits", "digits_inf", SIZES))
    place.write_text(",".join("01" * 9))
    scenario = load_scenario(tmp_path, "digits", "digits_inf", SIZES)
    with pytest.raises(InputError, match=r"model_13/solution\.csv: expected one line of 20 values"):
        challenge_points(scenario)


def telling(order=(0, 1, 2)):
    """A scenario that discloses training sets; its dev models in some order."""
    sizes, random = Sizes(600, 150, 20), np.random.default_rng(0)
    seeds = random.integers(1000, size=(7, 3)).tolist()
    train = tuple(ModelFolder(Path(f"train/model_{i}"), *seeds[i]) for i in range(4))
    dev = tuple(ModelFolder(Path(f"dev/model_{i}"), *seeds[4 + i][:2]) for i in order)
    return Scenario("c", "s", sizes, {"train": train, "dev": dev})


@pytest.mark.parametrize(("members", "nonmembers"), [(9, 6), (6, 9), (10, 1000)])
def test_known_records_are_drawn_from_those_whose_membership_is_disclosed(members, nonmembers):
    scenario = telling()
    points = challenge_points(scenario)
    found = known_sample(scenario, points, members, nonmembers)
    for phase, samples in found.items():
        assert len(samples) == len(scenario.phases[phase])
        for model, sample in zip(scenario.phases[phase], samples, strict=True):
            split = model.split(scenario.sizes)
            asked = set(points.unique)
            drawn = sample.points[sample.is_member], sample.points[~sample.is_member]
            for some, disclosed, wanted in zip(
                drawn, (split.training, split.evaluation), (members, nonmembers), strict=True
            ):
                there = sorted(set(disclosed) & asked)
                assert set(some) <= set(there)  # no challenge point of the model's own, so
                assert len(some) == min(wanted, len(there))
                assert wanted > len(there) or some.tolist() != there[:wanted]  # not just the first
            assert (np.diff(sample.points) > 0).all()


def test_known_records_hang_on_the_models_own_seed_alone():
    scenario, turned = telling(), telling((2, 0, 1))
    points = challenge_points(scenario)
    found, again = (known_sample(one, points, 9, 6)["dev"] for one in (scenario, turned))
    for sample, place in zip(found, (1, 2, 0), strict=True):
        assert np.array_equal(sample.points, again[place].points)
        assert np.array_equal(sample.is_member, again[place].is_member)


def test_known_training_is_all_but_the_challenge_points():
    scenario = telling()
    for phase, models in scenario.phases.items():
        known = known_training(scenario, phase)
        for row, model in enumerate(models):
            split = model.split(scenario.sizes)
            assert set(np.flatnonzero(known.member[row])) == set(split.training)
            assert set(np.flatnonzero(known.nonmember[row])) == set(split.evaluation)
            assert not np.isin(split.challenge, [*split.training, *split.evaluation]).any()
    assert known_training(scenario, "final").member.shape == (0, 600)
    hidden = replace(scenario, phases={"dev": (ModelFolder(Path("dev/model_0"), 1),)})
    with pytest.raises(InputError, match="seed_training is missing: c/s does not disclose"):
        known_training(hidden, "dev")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("9.9939\n", 9.9939), ("10", 10.0), (" .5 ", 0.5), ("4.", 4.0), ("+1e-3", 0.001)),
        *(("1E2", 100.0), ("inf", math.inf), ("+Inf\n", math.inf), ("Infinity", math.inf)),
    ],
)
def test_a_recorded_epsilon(tmp_path, text, value):
    (tmp_path / "epsilon").write_text(text)
    assert read_epsilon(tmp_path / "epsilon") == value


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"0",
        b"-1",
        b"-inf",
        b"nan",
        b"None",
        b"1 2",
        b"1_0",
        b"1e-999",
        b"0x1p3",
        b"\xff",
        "１",
    ],
)
def test_an_epsilon_that_is_none_names_its_file(tmp_path, content):
    (tmp_path / "epsilon").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=r"/epsilon: ε must be .*, got"):
        read_epsilon(tmp_path / "epsilon")


def test_the_range_of_recorded_epsilon(tmp_path):
    assert read_epsilon(tmp_path / "epsilon") is None
    recorded = {"train": ["3.9996", None, "3.9987"], "dev": [None], "final": ["inf", "4"]}
    phases = {}
    for phase, values in recorded.items():
        phases[phase] = models = tuple(
            ModelFolder(tmp_path / phase / f"model_{i}", i) for i in range(len(values))
        )
        for model, value in zip(models, values, strict=True):
            model.path.mkdir(parents=True)
            if value:
                (model.path / "epsilon").write_text(value)
    found = recorded_epsilon(Scenario("c", "s", SIZES, phases))
    assert found == {"train": (3.9987, 3.9996, 2), "final": (4.0, math.inf, 2)}
    assert [str(one) for one in found.values()] == ["3.9987–3.9996", "4–inf"]
    assert str(EpsilonRange(0.5, 0.5, 7)) == "0.5"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,0", "got 2"),
        ("", "got 0"),
        ("\n", "got 0"),
        ("1,0,1,0,", "got 5"),
        ("1,0,2,1", "got '2' among them"),
        ("1,0,1,x", "got 'x' among them"),
        ("1,0,,1", "got '' among them"),
        ("1,0,+1,1", r"got '\+1' among them"),
        ("1,0,0_1,1", "got '0_1' among them"),
    ],
)
def test_a_malformed_solution(tmp_path, text, found):
    (tmp_path / "solution.csv").write_text(text)
    with pytest.raises(
        InputError, match=rf"solution\.csv: expected one line of 4 values .*{found}"
    ):
        read_solution(tmp_path / "solution.csv", 4)


@pytest.mark.parametrize("text", ["1,0,1,0", "1,0,1,0\n", "1,0,1,0\r\n", "1, 0,\t1,0 \n"])
@pytest.mark.parametrize("length", [4, None])
def test_a_solution_however_its_line_ends(tmp_path, text, length):
    (tmp_path / "solution.csv").write_bytes(text.encode())
    found = read_solution(tmp_path / "solution.csv", length)
    assert found.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1,0\n1,0", "expected one line, got 2"),
        (b"\xef\xbb\xbf1,0,1,0", "byte-order mark"),
        ("1,0,\u0661,0".encode(), "not ASCII"),
        ("1,0,1,0".encode("utf-16"), "not ASCII"),
    ],
)
def test_a_solution_is_one_line_of_plain_text(tmp_path, content, message):
    (tmp_path / "solution.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"solution\.csv: .*{message}"):
        read_solution(tmp_path / "solution.csv", 4)


def test_truth_is_all_or_nothing(tmp_path, built):
    scenario = load_scenario(built, "digits", "digits_inf", SIZES)
    truth = read_truth(built, scenario)
    assert {phase: rows.shape for phase, rows in truth.items()} == {
        "dev": (3, 20),
        "final": (2, 20),
    }
    assert (truth["dev"].sum(axis=1) == 10).all()
    assert read_truth(tmp_path, scenario) == {}
    shutil.copytree(built / "truth", tmp_path / "truth")
    shutil.rmtree(tmp_path / "truth" / "digits" / "digits_inf" / "dev" / "model_13")
    with pytest.raises(InputError, match="model_13"):
        read_truth(tmp_path, scenario)
