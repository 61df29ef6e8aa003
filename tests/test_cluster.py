"""Extraction by real Ray workers on this machine."""

import shutil
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from commands import run, start
from conftest import SIZES, tiny_recipe
from failing import OnceDeadly, broken, once_deadly, whose
from listener import heard, listening
from test_recipe import contents
from test_shadow import add

from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.tree import load_scenario
from mico_exp.common.errors import InputError, MetricError
from mico_exp.models import ray_workers
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.models.ray_workers import Ray
from mico_exp.scores import metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.training.building import build
from mico_exp.training.recipe import Fresh
from mico_exp.training.steps import Plan

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def stopped():
    yield
    ray.shutdown()


@pytest.fixture
def extraction_by(built, digits, tmp_path):
    def make(name, workers=None):
        scenario = load_scenario(built, "digits", "digits_inf", SIZES)
        return Extraction(
            scenario,
            challenge_points(scenario),
            digits,
            Architecture.of(MLP((64, 16, 10))),
            ScoreStore(tmp_path / name),
            Processor("cpu"),
            workers,
        )

    return make


def test_resources_that_ray_lacks_are_an_error_every_time(extraction_by):
    job = extraction_by("store", Ray(num_workers=2))
    for _ in range(2):  # the cells of a sweep share the connection
        Ray(num_workers=2)._connect()
        job.workers.threads = 999
        with pytest.raises(InputError, match="1998 CPUs are asked for, Ray has "):
            list(job.workers.map(len, []))


def test_workers_give_what_this_process_gives(extraction_by):
    here, there = extraction_by("here"), extraction_by("there", Ray(num_workers=2))
    wanted = {"loss": metrics.loss, "mod_entropy": metrics.mod_entropy}
    (ours,), (theirs,) = here.compute(wanted), there.compute(wanted)
    assert ours.models == theirs.models == 17
    for name, metric in wanted.items():
        assert np.allclose(here.read(name, metric).shadow, there.read(name, metric).shadow)
    assert there.compute(wanted) == []


def test_a_worker_that_dies_is_replaced(extraction_by, tmp_path):
    job = extraction_by("store", Ray(num_workers=2))
    marker = tmp_path / "killed"
    (done,) = job.compute({"odd": partial(once_deadly, marker=str(marker))})
    assert done.models == 17
    assert marker.exists()
    expected = extraction_by("expected")
    expected.compute({"loss": metrics.loss})
    found = job.read("odd", partial(once_deadly, marker=str(marker)))
    assert np.allclose(found.shadow, expected.read("loss", metrics.loss).shadow)


def test_a_workers_error_is_the_works_own(extraction_by):
    with pytest.raises(MetricError, match="metric `odd` fails: ZeroDivisionError: as a user's"):
        extraction_by("store", Ray(num_workers=2)).compute({"odd": broken})


def test_workers_stay_for_the_next_work_but_not_after_an_error():
    workers = Ray(num_workers=2)
    first = {process for _, process in workers.map(whose, [1] * 8)}
    assert {process for _, process in workers.map(whose, [1] * 8)} <= first
    with pytest.raises(ZeroDivisionError) as failed:
        list(workers.map(whose, [0]))
    assert failed.value.args[0] in first
    after = {process for _, process in workers.map(whose, [1] * 8)}
    assert failed.value.args[0] not in after
    assert not Ray(num_workers=2, address="auto")._is_alone()


def test_a_cluster_that_is_not_there(extraction_by):
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"):
        with pytest.raises(InputError, match=r"`compute\.address`: Ray cannot be reached at"):
            extraction_by("store", Ray(address=address)).compute({"loss": metrics.loss})


@pytest.mark.parametrize(
    "options", [{"num_gpus": -1}, {"jobs_per_gpu": 0}, {"num_workers": 0}, {"num_gpus": "all"}]
)
def test_options_that_are_wrong(options):
    with pytest.raises(InputError, match=f"`compute.{next(iter(options))}` must be a whole number"):
        Ray(**options)


def test_the_option_of_the_command(tmp_path):
    small = ["dataset.phases={train: 4, dev: 1, final: 1}", "dataset.recipe.steps=5"]
    cell = ["mico_exp", "metric=loss", "formula=1", "scenario=inf", "plots=off", *small]
    workers = ["compute=ray", "compute.num_workers=1"]
    shown = run(*cell, *workers, cwd=tmp_path, **listening(tmp_path)).stdout
    assert "validation TPR" in shown
    assert heard(tmp_path) == []  # its dashboard would ask what cloud this is


def test_an_interrupt_ends_as_without_ray(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import pathlib, ray, time\n"
        "def slow(logits, labels):\n"
        "    here = ray.util.get_node_ip_address()\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'started').write_text(here)\n"
        "    time.sleep(60)\n"
    )
    options = tmp_path / "options" / "metric"
    options.mkdir(parents=True)
    text = "name: slow\nfunction: {_target_: slow.slow, _partial_: true}\n"
    (options / "slow.yaml").write_text(text)
    small = ["dataset.phases={train: 4, dev: 1, final: 1}", "dataset.recipe.steps=5"]
    own = ["--config-dir=options", "metric=slow", "scenario=inf", *small]
    workers = ["compute=ray", "compute.num_workers=1"]
    process = start("mico_exp", *own, *workers, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "started").exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    done = process.ended(300)
    assert done.returncode == 130, done.stderr
    assert "Interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "started").read_text() == "127.0.0.1"  # nobody else can reach Ray


@pytest.mark.parametrize(
    ("free", "count", "said"),
    [
        ([8.0], 4, ""),
        ([2.0], 2, "Ray has room for 2 of 4 workers"),
        ([0.0, 0.0, 0.0, 3.0], 3, "Waiting for Ray: all of its CPUs are in use"),
        ([0.0, 1.0, 4.0], 4, ""),  # workers of the last pass end one after another
    ],
)
def test_a_cluster_that_others_use_gives_what_is_free(monkeypatch, caplog, free, count, said):
    """No other job is here, so what Ray says of the cluster is."""
    monkeypatch.setattr(ray_workers, "SECONDS_TO_SETTLE", 0.03 if len(free) == 4 else 1.0)
    monkeypatch.setattr(ray_workers, "SECONDS_BETWEEN", 0.02)
    workers = Ray(num_workers=4)
    workers.threads = 1
    answers = iter(free)
    with caplog.at_level("INFO"):
        found = workers._count(lambda: {"CPU": next(answers, free[-1])})
    assert found == count
    assert said in caplog.text


def test_a_cluster_that_others_keep_is_given_up(monkeypatch):
    monkeypatch.setattr(ray_workers, "SECONDS_TO_WAIT", 0.05)
    monkeypatch.setattr(ray_workers, "SECONDS_BETWEEN", 0.02)
    with pytest.raises(InputError, match="`compute`: Ray's CPUs are all in use, for 0 s now"):
        Ray(num_workers=2)._count(dict)


def test_gpus_that_are_not_here():
    with pytest.raises(InputError, match=r"`compute\.num_gpus`: 99 are asked for"):
        Ray(num_gpus=99).check("auto")
    with pytest.raises(InputError, match=r"`compute\.device` must be auto or cpu"):
        Ray(num_workers=2).check("cuda")


def test_without_ray_it_says_what_to_install(tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('hidden')")
    for command in ("mico_exp", "mico_exp.extract"):
        failed = run(command, "scenario=inf", "compute=ray", cwd=tmp_path, status=1).stderr
        assert "pip install 'mico_exp[ray]'" in failed
    assert not (tmp_path / "data").exists()


def test_workers_build_what_this_process_builds_though_one_dies(digits, tmp_path):
    def recipe_of(marker):
        plan = Plan(20, 16, partial(torch.optim.SGD, lr=0.1))
        begin = Fresh(partial(OnceDeadly, str(marker)), {"_target_": "Linear"})
        models = {"train": 3, "dev": 1, "final": 0}
        return tiny_recipe(widths=None, network=begin, plan=plan, models=models)

    marker = tmp_path / "killed"
    build(tmp_path / "there", recipe_of(marker), digits, "cpu", Ray(num_workers=2))
    assert marker.exists()
    build(tmp_path / "here", recipe_of(marker), digits)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_workers_train_the_references_that_this_process_trains_though_one_dies(
    built, digits, tmp_path
):
    marker, here, there = (tmp_path / name for name in ("killed", "here", "there"))
    begin = Fresh(partial(OnceDeadly, str(marker)), {"_target_": "Linear"})
    plan = Plan(20, 16, partial(torch.optim.SGD, lr=0.1))
    how = {"widths": None, "network": begin, "plan": plan}
    for root, workers in ((there, Ray(num_workers=2)), (here, None)):
        shutil.copytree(built, root)
        assert add(root, digits, "pool", 3, workers=workers, **how) == 3
        assert add(root, digits, "leave_out", 2, "model_1", workers=workers, **how) == 2
        assert marker.exists()
    assert contents(there) == contents(here)
