"""What a sweep's jobs are told of it."""

import pytest
from commands import run
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mico_exp import cli
from mico_exp.sweep import swept

SMALL = [
    "dataset.len_training=120",
    "dataset.len_challenge=10",
    "dataset.phases.train=3",
    "dataset.phases.dev=1",
    "dataset.phases.final=1",
    "dataset.recipe.steps=10",
    "plots=off",
]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("metric=loss,confidence", ["loss", "confidence"]),
        ("metric=choice(mod_entropy,loss)", ["mod_entropy", "loss"]),
        ("metric='loss'", ["loss"]),
        ("metric=glob(*,exclude=*e*)", ["loss"]),
        ("formula=0,1", []),
        ("metric.name=loss", []),
    ],
)
def test_options_that_a_sweep_takes(typed, names):
    with initialize_config_dir(str(cli.OPTIONS), version_base="1.3"):
        config = compose("config", overrides=[], return_hydra_config=True)
        OmegaConf.set_readonly(config, False)
        OmegaConf.set_readonly(config.hydra, False)
        OmegaConf.set_struct(config, False)
        config.hydra.overrides.task = [typed]
        assert swept("metric", config) == names
        config.hydra.sweeper.params.metric = "confidence,mod_entropy"
        assert swept("metric", config) == (names or ["confidence", "mod_entropy"])


def stored(folder):
    return {path.name.rpartition("-")[0] for path in (folder / "data/store").rglob("*.npz")}


def test_the_first_cell_computes_what_the_sweep_needs(tmp_path):
    one = ["scenario='inf'", "formula=0", *SMALL]
    run("mico_exp", "metric=loss,confidence", *one, "-m", cwd=tmp_path)
    assert stored(tmp_path) == {"loss", "confidence"}
    wrong = run("mico_exp", "metric=mod_entropy", "metrics=[losss]", *one, cwd=tmp_path, status=1)
    assert "`metrics` must be null, all or a list of confidence" in wrong.stderr
    assert "got losss" in wrong.stderr
    run("mico_exp", "metric=mod_entropy", "metrics=all", *one, cwd=tmp_path)
    assert "mod_entropy" in stored(tmp_path)
