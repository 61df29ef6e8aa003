"""What a store survives: kills at any instant, a full disk, two sweeps at once."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import call, run, start
from conftest import SIZES

from mico_exp.challenge import datasets
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.tree import load_scenario
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.scores import metrics, stacks
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore

SMALL = [
    "dataset.len_training=120",
    "dataset.len_challenge=10",
    "dataset.phases={train: 8, dev: 2, final: 2}",
    "dataset.recipe.steps=50",
    "scenario=inf",
]


def slow_loss(logits, labels):
    time.sleep(0.02)
    return metrics.loss(logits, labels)


METRICS = {"slow": slow_loss, "mod_entropy": metrics.mod_entropy}


def open_extraction(tree, store):
    scenario = load_scenario(tree, "digits", "digits_inf", SIZES)
    points = challenge_points(scenario)
    architecture = Architecture.of(MLP((64, 16, 10)))
    records = datasets.digits()
    return Extraction(scenario, points, records, architecture, ScoreStore(store), Processor("cpu"))


def extract(tree, store, started):
    stacks.MODELS_AT_ONCE = 2
    job = open_extraction(Path(tree), Path(store))
    Path(started).touch()
    job.compute(METRICS)


def content(folder):
    """Every column, in whichever file it lies."""
    return {
        (file.metric, place): (column.points.tobytes(), column.scores.tobytes())
        for file in ScoreStore(folder).files()
        for place, column in file.columns().items()
    }


def packs(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.npz")}


def parts(folder):
    return len(list(folder.rglob("*.[0-9]*.npz")))


def test_twenty_kills_end_in_the_bytes_of_an_undisturbed_run(built, tmp_path, monkeypatch):
    chance, sizes = random.Random(0), [0]
    for number in range(20):
        wanted = parts(tmp_path / "killed") + chance.randint(0, 1)
        started = tmp_path / f"started {number}"
        process = call(extract, built, tmp_path / "killed", started)
        deadline = time.monotonic() + 60
        while not started.exists():
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        # Some time about the next file, whatever the machine's speed: 0 or 1 more than before.
        deadline = time.monotonic() + 60
        while process.is_alive() and parts(tmp_path / "killed") < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.ended()
        sizes.append(len(content(tmp_path / "killed")))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3
    monkeypatch.setattr(stacks, "MODELS_AT_ONCE", 2)
    done = open_extraction(built, tmp_path / "killed").compute(METRICS)
    assert sum(one.models for one in done) <= 17 - sizes[-1] // 2  # finished ones stay so
    open_extraction(built, tmp_path / "undisturbed").compute(METRICS)
    assert packs(tmp_path / "killed") == packs(tmp_path / "undisturbed")
    assert len(packs(tmp_path / "killed")) == len(METRICS)
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_a_full_disk_loses_nothing(built, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        with pytest.raises(InputError, match=r"\.npz cannot be written: No space left on device"):
            open_extraction(built, disk / "store").compute(METRICS)
        before = content(disk)
        assert before
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        open_extraction(built, disk / "store").compute(METRICS)
        assert content(disk).items() >= before.items()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_of_two_sweeps_at_once_one_extracts_and_the_other_waits(tmp_path):
    grid = ["metric=loss", "formula=0,1", *SMALL, "plots=off"]
    run("mico_exp.build", *SMALL, cwd=tmp_path)
    both = [start("mico_exp", *grid, "-m", cwd=tmp_path) for _ in range(2)]
    ends = [process.ended(120) for process in both]
    shown = [end.stdout for end in ends]
    assert [end.returncode for end in ends] == [0, 0], ends
    assert [text.count("validation TPR") for text in shown] == [2, 2]
    assert len({text.partition("inf/loss/1:")[2].partition("(")[0] for text in shown}) == 1


def test_processes_of_a_sweep_start_on_an_empty_folder(tmp_path):
    from mlflow import MlflowClient

    grid = ["metric=loss,confidence", "formula=0,1", *SMALL, "-m"]
    spread = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    run("mico_exp", *grid, *spread, cwd=tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    found = client.search_runs([experiment.experiment_id], "tags.kind = 'cell'")
    assert sorted(one.info.run_name for one in found) == sorted(
        f"inf/{metric}/{formula}" for metric in ("loss", "confidence") for formula in ("0", "1")
    )
    assert {one.info.status for one in found} == {"FINISHED"}
    (sweep,) = {one.data.tags["sweep"] for one in found}
    (drawn,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    assert drawn.data.tags["sweep"] == sweep
    assert drawn.data.params["digits_inf/cells"] == "4"


def test_submitit_runs_a_sweep_as_jobs(tmp_path):
    grid = ["metric=loss", "formula=0,1", *SMALL, "plots=off", "-m"]
    run("mico_exp", *grid, "hydra/launcher=submitit_local", cwd=tmp_path)
    assert (
        "digits_inf"
        in run("mico_exp.select_best", "scenarios=[inf]", *SMALL[:2], cwd=tmp_path).stdout
    )
