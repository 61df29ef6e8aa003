"""An option file that names a function by its old place is told the new one."""

import importlib

import pytest
from commands import run
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mico_exp.common.errors import InputError
from mico_exp.config.making import make
from mico_exp.config.moved import MOVED, check_places
from mico_exp.config.typed import OPTIONS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mico_exp.formulas.offset", "mico_exp.attacks.formulas.offset"),
        ("mico_exp.metrics.loss", "mico_exp.scores.metrics.loss"),
        ("mico_exp.models.MLP", "mico_exp.models.architectures.MLP"),
        ("mico_exp.learning.Stack", "mico_exp.attacks.learned.Stack"),
        ("mico_exp.scores.workers.Local", "mico_exp.models.workers.Local"),
    ],
)
def test_an_old_place(old, new):
    for option in ({"_target_": old}, {"base": {"_target_": old}}, {"parts": [{"_target_": old}]}):
        with pytest.raises(InputError, match=f"_target_: {old}` has moved: write {new}"):
            make(OmegaConf.create(option))
    module, _, name = new.rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    check_places({"_target_": new})


@pytest.mark.parametrize("new", MOVED.values())
def test_the_new_places_are_there(new):
    assert importlib.import_module(f"mico_exp.{new}")


def test_no_option_of_ours_names_an_old_place():
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        for overrides in ([], ["dataset=sst2", "compute=ray"], ["formula=conformal"]):
            check_places(OmegaConf.to_container(compose("config", overrides=overrides)))


def test_a_users_own_option_file(tmp_path):
    (tmp_path / "options" / "formula").mkdir(parents=True)
    text = "name: own\nfunction: {_target_: mico_exp.formulas.offset, _partial_: true, w: 0.25}\n"
    (tmp_path / "options" / "formula" / "own.yaml").write_text(text)
    cell = ["--config-dir=options", "metric=loss", "formula=own", "scenario=inf"]
    refused = run("mico_exp", *cell, cwd=tmp_path, status=1).stderr
    assert "has moved: write mico_exp.attacks.formulas.offset" in refused
    assert "Traceback" not in refused
    assert not (tmp_path / "data").exists()
