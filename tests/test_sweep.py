"""What a sweep's jobs are told of it."""

import re
import time

import pytest
from commands import run
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mico_exp.config.sweep import swept
from mico_exp.config.typed import OPTIONS

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
        ("metric=glob(lo*)", ["logit", "loss"]),
        ("formula=0,1", []),
        ("metric.name=loss", []),
    ],
)
def test_options_that_a_sweep_takes(typed, names):
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        config = compose("config", overrides=[], return_hydra_config=True)
        OmegaConf.set_readonly(config, False)
        OmegaConf.set_readonly(config.hydra, False)
        OmegaConf.set_struct(config, False)
        config.hydra.overrides.task = [typed]
        assert swept("metric", config) == names
        config.hydra.sweeper.params.metric = "confidence,mod_entropy"
        assert swept("metric", config) == (names or ["confidence", "mod_entropy"])
        config.hydra.overrides.task = ["formula=standardized,none,midpoint,0"]
        assert swept("formula", config) == ["2", "none", "0"]


def stored(folder):
    return {path.name.rpartition("-")[0] for path in (folder / "data/store").rglob("*-*.npz")}


def test_the_first_cell_computes_what_the_sweep_needs(tmp_path):
    one = ["scenario='inf'", "formula=0", *SMALL]
    run("mico_exp", "metric=loss,confidence", *one, "-m", cwd=tmp_path)
    assert stored(tmp_path) == {"loss", "confidence"}
    wrong = run("mico_exp", "metric=mod_entropy", "metrics=[losss]", *one, cwd=tmp_path, status=1)
    assert (
        "`metrics` must be null, all or a list of agreement, all, canary_projection, confidence"
        in wrong.stderr
    )
    assert "got losss" in wrong.stderr
    again = run("mico_exp", "metric=loss", "metrics=5", *one, cwd=tmp_path, status=1)
    assert "got 5" in again.stderr
    run("mico_exp", "metric=mod_entropy", "metrics=all", *one, cwd=tmp_path)
    assert "mod_entropy" in stored(tmp_path)


BROKEN = """
def broken(score, shadow, is_in, is_out):
    return score * float("nan")
"""


def test_a_sweep_with_a_failed_cell_still_ends_with_its_grid_and_address(tmp_path):
    """In a folder with an apostrophe, which MLflow's filters could trip over."""
    folder = tmp_path / "it's"
    options = folder / "options" / "formula"
    options.mkdir(parents=True)
    (folder / "mine.py").write_text(BROKEN)
    function = "function:\n  _target_: mine.broken\n  _partial_: true\n"
    (options / "broken.yaml").write_text(f"name: broken\n{function}")
    drawn = [text for text in SMALL if text != "plots=off"]
    one = ["--config-dir=options", "metric=loss", "scenario='inf'", *drawn]
    grid = [*one, "formula=broken,0,1", "hydra.sweep.dir=./x/../swept", "-m"]
    done = run("mico_exp", *grid, cwd=folder, status=1, OMP_NUM_THREADS="2")  # plots beside cells
    assert "Runs: http://127.0.0.1:5000/#/experiments/1/runs" in done.stdout
    assert len(list((folder / "mlruns").rglob("roc.png"))) == 2
    assert len(list((folder / "mlruns").rglob("scores.png"))) == 2
    assert [path.name for path in (folder / "swept").glob("*.png")] == ["heatmap_digits_inf.png"]
    all_fail = run("mico_exp", *one, "formula=broken", "-m", cwd=folder, status=1)
    assert "Runs: http://127.0.0.1:5000" in all_fail.stdout
    assert "Traceback" not in done.stderr + all_fail.stderr + all_fail.stdout


def test_hydras_own_sweeper(tmp_path):
    """It knows nothing of cells without a meaning, and takes no key of ours."""
    one = ["metric=loss", "scenario='inf'", *SMALL, "hydra/sweeper=basic"]
    done = run("mico_exp", *one, "formula=0,1", "-m", cwd=tmp_path)
    assert done.stdout.count("validation TPR@0.1FPR") == 2


def test_optunas_sweeper_searches_by_what_a_cell_gives(tmp_path):
    """The validation TPR, to be made as large as it gets."""
    search = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize"]
    search += ["hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=0"]
    options = ["metric=loss", "formula=choice(0,1,2)", "scenario='inf'", *SMALL]
    done = run("mico_exp", *search, *options, "hydra.sweep.dir=swept", "-m", cwd=tmp_path)
    given = [float(one) for one in re.findall(r"TPR@0\.1FPR ([\d.]+)", done.stdout)]
    assert len(given) == 3
    found = OmegaConf.load(tmp_path / "swept" / "optimization_results.yaml")
    assert found.best_value == pytest.approx(max(given), abs=1e-4)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("metric=[loss,confidence]", "a sweep takes metric=loss,confidence -m."),
        ("formula=own/mine,0", "formula=own/mine: an option must lie in formula/ itself"),
    ],
)
def test_choices_that_no_cell_can_be(tmp_path, typed, told):
    """One line, before anything is composed or begun."""
    done = run("mico_exp", typed, "-m", cwd=tmp_path, status=1)
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_all_jobs_is_said_once(tmp_path):
    without = ["mico_exp.build", "dataset=cifar10", "dataset.recipe=null"]
    done = run(*without, cwd=tmp_path, status=1)
    reason = "dataset `cifar10` has no recipe: it cannot be built here, its models come from "
    reason += "elsewhere."
    assert (done.stdout + done.stderr).count(reason) == 1
    assert done.stderr.splitlines() == [
        reason,
        "Jobs #0, #1, #2 have failed, for what is said above.",
    ]
    logs = list((tmp_path / "multirun").rglob("build.log"))
    assert [reason in path.read_text() for path in logs] == [True] * 3
    one = run(*without, "scenario=hi", cwd=tmp_path, status=1)
    assert one.stderr == f"{reason}\n"
    alone = run("mico_exp", "seed=-1", "metric=loss", cwd=tmp_path, status=1)
    assert alone.stderr == "`seed` must be a whole number of at least 0, got -1.\n"


def test_what_is_no_database_is_told_before_the_sweep(tmp_path):
    (tmp_path / "mlflow.db").write_text("garbage" * 1000)
    done = run("mico_exp", "metric=loss", "formula=0,1", *SMALL, "-m", cwd=tmp_path, status=1)
    assert "mlflow.db cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


TAMPERING = """
import shutil, time
from pathlib import Path

def tampering(score, shadow, is_in, is_out):
    train = Path("data/digits/digits_inf/train")
    if shadow.shape[0] == 3:  # of a dev model, asked after validation
        shutil.copy(train / "model_0/model.pt", train / "model_1/model.pt")
    return score
"""


def test_a_cell_sees_what_has_changed_since_the_cell_before(tmp_path):
    """What was found out of models is kept from cell to cell, while no file is another."""
    (tmp_path / "mine.py").write_text(TAMPERING)
    option = tmp_path / "options" / "formula" / "tampering.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("name: tampering\nfunction: {_target_: mine.tampering, _partial_: true}\n")
    one = ["--config-dir=options", "metric=loss", "scenario='inf'", *SMALL]
    run("mico_exp", *one, "formula=0", cwd=tmp_path)
    time.sleep(2.1)  # what has just changed is never trusted
    done = run("mico_exp", *one, "formula=1,2,tampering,0", "-m", cwd=tmp_path, status=1)
    assert done.stdout.count("validation TPR@0.1FPR") == 3
    assert "model_0 and " in done.stderr
    assert len(done.stderr.splitlines()) == 1
