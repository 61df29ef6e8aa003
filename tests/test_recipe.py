import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import signal
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from conftest import SIZES, tiny_recipe
from opacus.accountants import PRVAccountant

from mico_exp.challenge import datasets
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import load_scenario, model_folders, read_solution
from mico_exp.challenge.truth import read_truth
from mico_exp.common import pool
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import MLP
from mico_exp.models.weights import load_state
from mico_exp.training import building, making, recipe
from mico_exp.training.building import build
from mico_exp.training.making import Making, Piece
from mico_exp.training.recipe import PrivacyTarget


def contents(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_the_tree_is_the_competitions(built):
    scenario = built / "digits" / "digits_inf"
    train = {"model.pt", "seed_challenge", "seed_training", "seed_membership", "solution.csv"}
    for number in range(12):
        assert names(scenario / "train" / f"model_{number}") == train | {"accuracy"}
    for phase, numbers in {"dev": range(12, 15), "final": range(15, 17)}.items():
        assert names(scenario / phase) == {f"model_{number}" for number in numbers}
        for number in numbers:
            folder = scenario / phase / f"model_{number}"
            assert names(folder) == {"model.pt", "seed_challenge", "accuracy"}
            truth = built / "truth" / "digits" / "digits_inf" / phase / f"model_{number}"
            solution = read_solution(truth / "solution.csv", 20)
            assert solution.sum() == 10
    assert names(scenario) == {"train", "dev", "final", "build.json"}


def test_models_have_learnt_their_members(built, digits):
    model = MLP([64, 16, 10])
    found = load_scenario(built, "digits", "digits_inf", SIZES)
    for folder in found.phases["train"]:
        split = folder.split(SIZES)
        model.load_state_dict(load_state(folder.path / "model.pt", model))
        right = (model(digits.features).argmax(dim=1) == digits.labels).numpy()
        members = np.concatenate([split.member, split.training])
        accuracy = float((folder.path / "accuracy").read_text())
        assert right[split.evaluation].mean() == pytest.approx(accuracy, abs=6e-5)
        assert right[members].mean() > max(0.95, accuracy)


def test_the_truth_is_of_the_models(built, digits):
    """Over all dev and final models, members have the lower mean loss."""
    found = load_scenario(built, "digits", "digits_inf", SIZES)
    truth = read_truth(built, found)
    gaps = []
    model = MLP([64, 16, 10])
    for phase in ("dev", "final"):
        for folder, solution in zip(found.phases[phase], truth[phase], strict=True):
            model.load_state_dict(load_state(folder.path / "model.pt", model))
            points = folder.split(SIZES).challenge
            loss = torch.nn.functional.cross_entropy(
                model(digits.features[points]), digits.labels[points], reduction="none"
            )
            loss = loss.detach().numpy()
            gaps.append(loss[~solution].mean() - loss[solution].mean())
    assert np.mean(gaps) > 0


def test_the_same_seed_gives_the_same_bytes(built, digits, tmp_path):
    build(tmp_path, tiny_recipe(), digits)
    assert contents(tmp_path) == contents(built)


def test_another_seed_gives_another_tree(built, digits, tmp_path):
    build(tmp_path, tiny_recipe(seed=1), digits)
    name = "digits/digits_inf/train/model_0/model.pt"
    assert contents(tmp_path)[name] != contents(built)[name]


def test_differential_privacy(digits, tmp_path):
    target = PrivacyTarget(epsilon=4.0, delta=1e-5, clip_norm=1.0)
    build(tmp_path, tiny_recipe("digits_lo", target), digits)
    folder = tmp_path / "digits" / "digits_lo" / "train" / "model_3"
    state = torch.load(folder / "model.pt", weights_only=True)
    assert all(name.startswith("_module.mlp.") for name in state)
    load_state(folder / "model.pt", MLP([64, 16, 10]))
    assert float((folder / "epsilon").read_text()) == pytest.approx(4.0, abs=0.02)


def test_what_is_complete_is_left_alone(built, digits):
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.is_file()}
    assert build(built, tiny_recipe(), digits) is False
    assert {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.is_file()} == before


def test_an_interrupted_build_goes_on_and_ends_the_same(built, digits, tmp_path, monkeypatch):
    written = []
    real = building.Writer.write

    def interrupted(writer, made):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(made.number)
        real(writer, made)

    monkeypatch.setattr(building.Writer, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, tiny_recipe(), digits)
    assert len(list((tmp_path / "digits" / "digits_inf" / "train").iterdir())) == 5
    kept = (tmp_path / "digits" / "digits_inf" / "train" / "model_0" / "model.pt").stat()
    monkeypatch.undo()
    assert build(tmp_path, tiny_recipe(), digits) is True
    assert contents(tmp_path) == contents(built)
    again = (tmp_path / "digits" / "digits_inf" / "train" / "model_0" / "model.pt").stat()
    assert again.st_mtime_ns == kept.st_mtime_ns


def build_by_threes(root):
    building.MODELS_AT_ONCE = 3
    build(Path(root), tiny_recipe(), datasets.digits())


def test_a_killed_build_leaves_only_whole_models(built, digits, tmp_path):
    process = call(build_by_threes, tmp_path)
    train = tmp_path / "digits" / "digits_inf" / "train"
    deadline = time.monotonic() + 60
    while not (train / "model_1").is_dir():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.ended().returncode == -signal.SIGKILL
    whole = {"model.pt", "seed_challenge", "seed_training", "seed_membership", "solution.csv"}
    for folder in model_folders(train):
        assert names(folder) == whole | {"accuracy"}
        load_state(folder / "model.pt", MLP([64, 16, 10]))
    # The same command again: the same tree as without the kill, and nothing left over.
    assert call(build_by_threes, tmp_path).ended().returncode == 0
    undisturbed = tmp_path / "undisturbed"
    assert call(build_by_threes, undisturbed).ended().returncode == 0
    expected = contents(undisturbed)
    shutil.rmtree(undisturbed)
    assert contents(tmp_path) == expected


@pytest.fixture
def spreading(monkeypatch):
    """Builds of small chunks in as many processes as are asked for, forked also by pytest-xdist."""
    monkeypatch.setattr(building, "MODELS_AT_ONCE", 4)
    monkeypatch.setattr(pool, "start_method", lambda: "fork")
    monkeypatch.setattr(recipe, "noise_multiplier", lambda *_: 1.0)

    def build_with(processes, root, records):
        monkeypatch.setenv("OMP_NUM_THREADS", str(processes))
        plan = dataclasses.replace(tiny_recipe().plan, steps=30)
        target = PrivacyTarget(epsilon=4.0, delta=1e-5, clip_norm=1.0)
        return build(root, tiny_recipe("digits_hi", target, plan=plan), records)

    return build_with


def test_processes_build_what_one_does_and_go_on_where_they_were_cut_off(
    spreading, digits, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    spreading(1, tmp_path / "one", digits)
    assert len(re.findall(r"model_\d+: accuracy [01]\.\d{4} on its members", caplog.text)) == 17
    expected = contents(tmp_path / "one")
    assert "training 17 models on cpu" in caplog.text
    spreading(2, tmp_path / "two", digits)
    assert "training 17 models on 2 processes of one thread each" in caplog.text
    assert contents(tmp_path / "two") == expected
    # Cut off by what happens to the head, and by an error in another process.
    update, told = building.tqdm.update, []

    def interrupted(bar, n):
        told.append(n)
        if sum(told) > 9:
            raise KeyboardInterrupt
        update(bar, n)

    monkeypatch.setattr(building.tqdm, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spreading(2, tmp_path / "cut", digits)
    monkeypatch.setattr(building.tqdm, "update", update)
    first = contents(tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*.tmp"))
    assert 0 < sum(name.endswith("model.pt") for name in first) < 17
    write = building.Writer.write

    def refused(writer, made):
        if made.number == 14:
            raise InputError("`it` must be\nright.")
        write(writer, made)

    monkeypatch.setattr(building.Writer, "write", refused)
    with pytest.raises(InputError, match=r"^`it` must be\nright\.$"):
        spreading(2, tmp_path / "cut", digits)
    monkeypatch.setattr(building.Writer, "write", write)
    assert expected.items() > contents(tmp_path / "cut").items() > first.items()
    spreading(2, tmp_path / "cut", digits)
    assert contents(tmp_path / "cut") == expected


@pytest.mark.parametrize(
    ("told", "chunks", "device", "memory", "expected"),
    [
        ("4", 9, "cpu", 2**40, 4),
        ("4", 3, "cpu", 2**40, 3),
        ("1", 9, "cpu", 2**40, 1),
        ("4", 1, "cpu", 2**40, 1),
        ("4", 9, "cuda", 2**40, 1),
        ("4", 9, "cpu", 2 * 2 * 50 * 120 * 64 * 4, 2),
        ("4", 9, "cpu", 1, 1),
    ],
)
def test_how_many_processes_build(told, chunks, device, memory, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    free = types.SimpleNamespace(available=memory)
    monkeypatch.setattr(building.psutil, "virtual_memory", lambda: free)
    assert building._processes(tiny_recipe(), chunks, torch.device(device)) == expected


def test_the_accountant_and_the_batches_have_the_same_rate(digits, monkeypatch):
    target = PrivacyTarget(epsilon=4.0, delta=1e-5, clip_norm=1.0)
    how = tiny_recipe("digits_lo", target, sizes=Sizes(1797, 300, 50))
    assert how.sample_rate == 16 / 300
    seen = []
    monkeypatch.setattr(recipe, "noise_multiplier", lambda *asked: seen.append(asked) or 1.0)
    work = Making.of(how, digits, "cpu")
    assert seen == [(4.0, 1e-5, 16 / 300, 200, "prv")]
    real = making.train

    def watched(mlps, inputs, labels, plan, generator, privacy, after_step):
        assert (plan.batch_size, labels.shape[1]) == (16, 300)
        assert privacy.noise_multiplier == 1.0
        return real(mlps, inputs, labels, plan, generator, privacy, after_step)

    monkeypatch.setattr(making, "train", watched)
    seed, models = next(building.planned_pieces(how)).piece
    made, _ = work(Piece(seed, models[:2]))
    # At σ = 1 the accountant, asked afresh, tells what these 200 steps have spent.
    accountant = PRVAccountant()
    accountant.history = [(1.0, 16 / 300, 200)]
    assert float(made.told["epsilon"]) == pytest.approx(accountant.get_epsilon(1e-5), abs=0.01)


def test_the_noise_of_the_embedded_challenge():
    """Opacus's own search finds these σ for ε = 4 and 10 at δ = 1e-5, 400 batches of 32 of 300."""
    for epsilon, sigma in ((4.0, 2.48046875), (10.0, 1.29638671875)):
        plan = dataclasses.replace(tiny_recipe().plan, steps=400, batch_size=32)
        target = PrivacyTarget(epsilon, 1e-5, 1.0)
        sizes = Sizes(1797, 300, 50)
        how = tiny_recipe("digits_lo", target, plan=plan, sizes=sizes)
        assert how.privacy_for().noise_multiplier == sigma  # bit for bit, as its models are


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epsilon", value) for value in (math.inf, -math.inf, math.nan, 0, -1, 1e-6, 0.0199)),
        *(("epsilon", value) for value in (501, 1e300, True, "4", "inf", None)),
        *(("delta", value) for value in (0, 1, 0.91, 1e-15, 1e-30, -1e-5, math.nan, math.inf)),
        *(("delta", value) for value in (True, "1e-5", None)),
        *(("clip_norm", value) for value in (0, -1, math.inf, math.nan, True, "1", None)),
    ],
)
def test_privacy_that_cannot_be(name, value):
    good = {"epsilon": 4.0, "delta": 1e-5, "clip_norm": 1.0}
    PrivacyTarget(**good)
    with pytest.raises(InputError, match=f"`{name}` must be a number in .*, got ") as caught:
        PrivacyTarget(**{**good, name: value})
    text = str(caught.value)
    assert repr(value) in text
    assert len(text.splitlines()) == 1
    assert ("`scenario.epsilon=null` trains without" in text) == (name == "epsilon")


@pytest.mark.parametrize("epsilon", [0.02, 1, 500])
@pytest.mark.parametrize("delta", [1e-10, 0.9])
def test_privacy_at_its_edges(epsilon, delta):
    assert PrivacyTarget(epsilon, delta, 1e-9).epsilon == epsilon


def test_privacy_that_no_noise_gives_is_refused_before_anything_is_written(digits, tmp_path):
    """At δ = 0.2 no ε = 10 can be spent, if the chance to take part at all is 2 of 120."""
    plan = dataclasses.replace(tiny_recipe().plan, batch_size=1, steps=2)
    how = tiny_recipe("digits_lo", PrivacyTarget(10.0, 0.2, 1.0), plan=plan)
    with pytest.raises(InputError, match=r"`epsilon` = 10 cannot be met with `delta` = 0\.2"):
        build(tmp_path, how, digits)
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(digits, tmp_path):
    with pytest.raises(InputError, match=r"`compute\.device`: vulcan cannot be used here"):
        build(tmp_path, tiny_recipe(), digits, "vulcan")
    assert list(tmp_path.iterdir()) == []


def test_the_record_names_every_device_but_not_a_lone_cpu(digits, tmp_path, monkeypatch):
    """Bits differ between devices, and a build may go on at another one."""
    plan = dataclasses.replace(tiny_recipe().plan, steps=2)
    how, folder = tiny_recipe(plan=plan), tmp_path / "digits" / "digits_inf"

    def built_on(card):
        monkeypatch.setattr(making, "describe", lambda _: card)
        shutil.rmtree(folder / "dev" / "model_13", ignore_errors=True)
        assert build(tmp_path, how, digits) is True
        return json.loads((folder / "build.json").read_text()).get("devices")

    assert built_on("cpu") is None
    assert built_on("A card") == ["A card", "cpu"]
    assert built_on("cpu") == ["A card", "cpu"]
    shutil.rmtree(folder)
    assert built_on("A card") == ["A card"]


@pytest.mark.parametrize(
    "change",
    [{"seed": -1}, {"seed": True}, {"seed": "a"}, {"models": {"train": -1, "dev": 0, "final": 0}}],
)
def test_a_recipe_that_cannot_be(change):
    with pytest.raises(InputError, match=r"`seed`|`phases\.train`"):
        tiny_recipe(**change)


def test_a_build_that_failed_before_its_first_model_is_no_obstacle(digits, tmp_path):
    folder = tmp_path / "digits" / "digits_inf"
    folder.mkdir(parents=True)
    (folder / "build.json").write_text(json.dumps({"seed": 99}))
    assert build(tmp_path, tiny_recipe(), digits) is True


def test_a_model_that_was_deleted_is_named(built, digits, tmp_path):
    shutil.copytree(built, tmp_path / "data")
    (tmp_path / "data" / "digits" / "digits_inf" / "dev" / "model_13" / "model.pt").unlink()
    with pytest.raises(InputError, match=r"model_13 lacks model\.pt"):
        build(tmp_path / "data", tiny_recipe(), digits)


def test_ddp_discloses_the_training_sets(digits, tmp_path):
    build(tmp_path, tiny_recipe("digits_ddp", disclose_training=True), digits)
    folder = tmp_path / "digits" / "digits_ddp"
    assert (folder / "dev" / "model_12" / "seed_training").exists()
    assert not (folder / "dev" / "model_12" / "seed_membership").exists()


def test_the_users_umask_holds(built, digits, tmp_path):
    before = os.umask(0o027)
    try:
        build(tmp_path, tiny_recipe(), digits)
    finally:
        os.umask(before)
    folder = tmp_path / "digits" / "digits_inf" / "train" / "model_0"
    assert folder.stat().st_mode & 0o777 == 0o750
    assert (folder / "model.pt").stat().st_mode & 0o777 == 0o640
    assert (folder.parents[1] / "build.json").stat().st_mode & 0o777 == 0o640


def test_leftovers_of_a_killed_build_are_removed(digits, tmp_path):
    leftover = tmp_path / "digits" / "digits_inf" / "train" / ".model_4.abc.tmp"
    leftover.mkdir(parents=True)
    (tmp_path / "digits" / "digits_inf" / "build.json").write_text(
        json.dumps(tiny_recipe().description(digits))
    )
    build(tmp_path, tiny_recipe(), digits)
    assert not leftover.exists()


def test_another_recipe_is_refused(built, digits):
    with pytest.raises(InputError, match="built with seed = 0, but 3 is asked for"):
        build(built, tiny_recipe(seed=3), digits)


def test_a_tree_from_elsewhere_is_never_touched(digits, tmp_path):
    (tmp_path / "digits" / "digits_inf" / "train" / "model_0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no build\.json"):
        build(tmp_path, tiny_recipe(), digits)
