import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import SIZES, tiny_recipe

from mico_exp import challenge, models, recipe
from mico_exp.errors import InputError
from mico_exp.recipe import PrivacyTarget, build


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
            solution = challenge.read_solution(truth / "solution.csv", 20)
            assert solution.sum() == 10
    assert names(scenario) == {"train", "dev", "final", "build.json"}


def test_models_have_learnt_their_members(built, digits):
    model = models.MLP([64, 16, 10])
    found = challenge.load_scenario(built, "digits", "digits_inf", SIZES)
    for folder in found.phases["train"]:
        split = folder.split(SIZES)
        model.load_state_dict(models.load_state(folder.path / "model.pt", model))
        right = (model(digits.features).argmax(dim=1) == digits.labels).numpy()
        members = np.concatenate([split.member, split.training])
        accuracy = float((folder.path / "accuracy").read_text())
        assert right[split.evaluation].mean() == pytest.approx(accuracy, abs=6e-5)
        assert right[members].mean() > max(0.95, accuracy)


def test_the_truth_is_of_the_models(built, digits):
    """Over all dev and final models, members have the lower mean loss."""
    found = challenge.load_scenario(built, "digits", "digits_inf", SIZES)
    truth = challenge.read_truth(built, found)
    gaps = []
    model = models.MLP([64, 16, 10])
    for phase in ("dev", "final"):
        for folder, solution in zip(found.phases[phase], truth[phase], strict=True):
            model.load_state_dict(models.load_state(folder.path / "model.pt", model))
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
    models.load_state(folder / "model.pt", models.MLP([64, 16, 10]))
    assert float((folder / "epsilon").read_text()) == pytest.approx(4.0, abs=0.02)


def test_what_is_complete_is_left_alone(built, digits):
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.is_file()}
    assert build(built, tiny_recipe(), digits) is False
    assert {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.is_file()} == before


def test_an_interrupted_build_goes_on_and_ends_the_same(built, digits, tmp_path, monkeypatch):
    written = []
    real = recipe._write_model

    def interrupted(root, how, chunk, number):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(number)
        real(root, how, chunk, number)

    monkeypatch.setattr(recipe, "_write_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, tiny_recipe(), digits)
    assert len(list((tmp_path / "digits" / "digits_inf" / "train").iterdir())) == 5
    kept = (tmp_path / "digits" / "digits_inf" / "train" / "model_0" / "model.pt").stat()
    monkeypatch.undo()
    assert build(tmp_path, tiny_recipe(), digits) is True
    assert contents(tmp_path) == contents(built)
    again = (tmp_path / "digits" / "digits_inf" / "train" / "model_0" / "model.pt").stat()
    assert again.st_mtime_ns == kept.st_mtime_ns


def test_a_killed_build_leaves_only_whole_models(built, digits, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from conftest import tiny_recipe\n"
        "from pathlib import Path\n"
        "from mico_exp import datasets, recipe\n"
        "recipe.MODELS_AT_ONCE = 3\n"
        "recipe.build(Path(sys.argv[2]), tiny_recipe(), datasets.digits())\n"
    )
    here = os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", code, here, str(tmp_path)])
    train = tmp_path / "digits" / "digits_inf" / "train"
    deadline = time.monotonic() + 60
    while not (train / "model_1").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = {"model.pt", "seed_challenge", "seed_training", "seed_membership", "solution.csv"}
    for folder in challenge.model_folders(train):
        assert names(folder) == whole | {"accuracy"}
        models.load_state(folder / "model.pt", models.MLP([64, 16, 10]))


def test_leftovers_of_a_killed_build_are_removed(digits, tmp_path):
    leftover = tmp_path / "digits" / "digits_inf" / "train" / ".model_4.abc.tmp"
    leftover.mkdir(parents=True)
    (tmp_path / "digits" / "digits_inf" / "build.json").write_text(
        json.dumps(tiny_recipe().description())
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
