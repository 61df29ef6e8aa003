"""What a scenario's content is: every file of it counts, and none may be damaged or there twice."""

import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import SIZES
from safetensors.torch import save_file

from mico_exp.challenge.tree import load_scenario, model_number
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import FileFingerprints
from mico_exp.models import weights
from mico_exp.runs import provenance

COUNTED = [
    "train/model_0/model.pt",
    "dev/model_12/model.pt",
    "final/model_16/model.pt",
    "dev/model_13/seed_challenge",
]


@pytest.fixture
def tree(tmp_path, built):
    shutil.copytree(built, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def content(tree, tmp_path, digits):
    """Take the content of the scenario as it now is, with one memory for all times."""

    def take():
        scenario = load_scenario(tree, "digits", "digits_inf", SIZES)
        return provenance.content(scenario, digits, FileFingerprints(tmp_path / "memory.json"))

    return take


def change(path):
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        torch.save({name: tensor + 1 for name, tensor in state.items()}, path)
    else:
        path.write_text("5")


@pytest.mark.parametrize("place", COUNTED)
def test_every_file_counts(tree, content, place):
    before = content()
    assert content() == before
    change(tree / "digits" / "digits_inf" / place)
    assert content() != before


def test_a_shape_that_is_told_is_only_another_content(tree, content):
    path = tree / "digits" / "digits_inf" / "train" / "model_2" / "config.json"
    found = set()
    for text in ("{}", "{ }", "{!"):
        path.write_text(text)
        found.add(content())
    assert len(found) == 3


@pytest.mark.parametrize("phase", ["train", "dev", "final"])
def test_equal_weights_are_found_in_whatever_phase_and_format(tree, content, phase):
    scenario = tree / "digits" / "digits_inf"
    first = scenario / "train" / "model_5"
    again = max((scenario / phase).iterdir(), key=model_number)
    state = torch.load(first / "model.pt", weights_only=True)
    (again / "model.pt").unlink()
    save_file(state, again / "model.safetensors")
    with pytest.raises(InputError) as caught:
        content()
    assert str(caught.value).startswith(f"{first} and {again} hold equal weights: ")


def test_one_file_in_all_folders_is_one_line(tree, content):
    scenario = tree / "digits" / "digits_inf"
    first, *others = sorted(scenario.glob("*/model_*/model.pt"))
    for path in others:
        shutil.copy(first, path)
    with pytest.raises(InputError, match=r"hold equal weights \(and 15 more\)") as caught:
        content()
    assert "\n" not in str(caught.value)


def test_models_that_are_not_finite_are_no_twins(tree, content):
    """They are all NaN alike, and whether they are gone on without is asked elsewhere."""
    for number in (2, 3):
        path = tree / "digits" / "digits_inf" / "train" / f"model_{number}" / "model.pt"
        state = torch.load(path, weights_only=True)
        torch.save({name: tensor * torch.nan for name, tensor in state.items()}, path)
    assert len(content()) == 64


def test_weights_are_read_once_and_twins_are_found_from_memory(tree, content, monkeypatch):
    scenario = tree / "digits" / "digits_inf"
    monkeypatch.setattr(time, "time", lambda: 4e9)  # nothing has changed just now
    before = content()
    read = []
    real = weights.check_weights

    def check_weights(path):
        read.append(path)
        return real(path)

    monkeypatch.setattr(weights, "check_weights", check_weights)
    assert content() == before
    assert read == []
    twin = scenario / "dev" / "model_13" / "model.pt"
    shutil.copy(scenario / "train" / "model_4" / "model.pt", twin)
    for _ in range(2):
        with pytest.raises(InputError, match=r"model_4 and .*model_13 hold equal weights"):
            content()
    assert read == [twin]


def test_a_checkout_is_known_by_its_commit():
    if not (Path(__file__).parents[1] / ".git").exists():
        pytest.skip("no checkout")
    assert re.fullmatch(r"[\d.]+\+[0-9a-f]{12}(-changed)?", provenance.code_version())
