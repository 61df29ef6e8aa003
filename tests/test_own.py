"""Models that were trained elsewhere, in the tree: whoever trains them knows no seed."""

import itertools

import numpy as np
import pytest
import torch

from mico_exp.challenge.epsilon import read_epsilon
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import load_scenario
from mico_exp.challenge.truth import read_truth
from mico_exp.common.errors import InputError
from mico_exp.models.own import own_models

SIZES = Sizes(records=100, training=20, challenge=5)
MODELS = {"train": 3, "dev": 2, "final": 1}


def planned(root, **options):
    return own_models(root, "mine", "mine_inf", SIZES, MODELS, **options)


def train(model):
    """One that remembers what it was trained on."""
    model.save({"seen": torch.from_numpy(model.training)}, accuracy=0.5, epsilon=4.0)


def trained_on(folder):
    return torch.load(folder / "model.pt")["seen"].numpy()


def test_membership_is_that_of_the_records_that_were_trained_on(tmp_path):
    for model in planned(tmp_path):
        assert len(np.unique(model.training)) == SIZES.training
        train(model)
    scenario = load_scenario(tmp_path, "mine", "mine_inf", SIZES)
    assert {phase: len(found) for phase, found in scenario.phases.items()} == MODELS
    points = challenge_points(scenario)
    truth = {"train": points.solution, **read_truth(tmp_path, scenario)}
    for phase, folders in scenario.phases.items():
        for row, folder in enumerate(folders):
            told = np.isin(points.of_phase[phase][row], trained_on(folder.path))
            assert told.sum() == SIZES.challenge
            assert np.array_equal(told, truth[phase][row])
            assert read_epsilon(folder.path / "epsilon") == 4.0
            disclosed = folder.seed_training is not None, folder.seed_membership is not None
            assert disclosed == (phase == "train", phase == "train")


def test_what_was_interrupted_goes_on(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    for model in planned(whole):
        train(model)
    for model in itertools.islice(planned(part), 4):
        train(model)
    assert [model.number for model in planned(part)] == [4, 5]
    for model in planned(part):
        train(model)
    assert list(planned(part)) == []
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(part) for path in part.rglob("*") if path.is_file())
    assert all((whole / one).read_bytes() == (part / one).read_bytes() for one in files)


def test_another_seed_gives_other_members_and_disclosure_tells_training_sets(tmp_path):
    first, other = next(planned(tmp_path / "one")), next(planned(tmp_path / "other", seed=1))
    assert set(first.training) != set(other.training)
    for model in planned(tmp_path, disclose_training=True):
        train(model)
    assert load_scenario(tmp_path, "mine", "mine_inf", SIZES).discloses


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"models": {"train": 4, "dev": 2, "final": 1}}, "was built with models = "),
        ({"seed": 1}, "was built with seed = 0, but 1 is asked for"),
        ({"disclose_training": True}, "was built with disclose_training = False"),
        ({"sizes": Sizes(100, 20, 4)}, "was built with len_challenge = 5, but 4 is asked for"),
    ],
)
def test_a_folder_that_was_begun_otherwise(tmp_path, asked, told):
    """Or a train model could tell what a dev model of the same number keeps."""
    train(next(planned(tmp_path)))
    usual = {"sizes": SIZES, "models": MODELS}
    with pytest.raises(InputError, match=told):
        next(own_models(tmp_path, "mine", "mine_inf", **{**usual, **asked}))
    assert len([path for path in tmp_path.rglob("model_*") if path.is_dir()]) == 1


def test_no_two_models_share_members(tmp_path):
    """Nor do a train and a dev model that have the same number in two plans."""
    shown = {model.seeds.seeds for model in planned(tmp_path / "one")}
    other = own_models(tmp_path / "two", "mine", "mine_inf", SIZES, {"train": 6})
    number = {model.number: model.seeds.seeds for model in other}
    assert len(shown) == 6
    assert number[4] not in shown
    assert number[0] in shown


def test_a_phase_that_there_is_not(tmp_path):
    with pytest.raises(InputError, match="must name phases of train, dev, final, got 'test'"):
        next(own_models(tmp_path, "mine", "mine_inf", SIZES, {"test": 1}))
