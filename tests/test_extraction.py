import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from conftest import SIZES

from mico_exp.challenge import datasets
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.tree import load_scenario
from mico_exp.common.errors import InputError, MetricError
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.models.devices import open_device
from mico_exp.models.weights import load_state
from mico_exp.models.workers import Local
from mico_exp.scores import extraction, inference, metrics, stacks
from mico_exp.scores.addresses import Task
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.store import ScoreStore

METRICS = {name: getattr(metrics, name) for name in ("loss", "confidence", "mod_entropy")}


@pytest.fixture
def tree(tmp_path, built):
    """A copy of the tree that a test may change."""
    shutil.copytree(built, tmp_path / "data")
    return tmp_path / "data"


def opened(tree, store, records, widths=(64, 16, 10), **allowed):
    scenario = load_scenario(tree, "digits", "digits_inf", SIZES)
    points = challenge_points(scenario)
    architecture = Architecture.of(MLP(widths))
    return Extraction(scenario, points, records, architecture, ScoreStore(store), **allowed)


@pytest.fixture
def open_extraction(tree, digits, tmp_path):
    def make(store=tmp_path / "store", **others):
        return opened(tree, store, digits, **others)

    return make


@pytest.fixture
def ran(monkeypatch):
    """How many model × point pairs really ran."""
    seen = []
    real = inference.ModelRunner.scores

    def counting(self, models, records, points, metrics):
        seen.append(points.size)
        return real(self, models, records, points, metrics)

    monkeypatch.setattr(inference.ModelRunner, "scores", counting)
    return seen


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_each_models_at_its_points(open_extraction, digits, name):
    job = open_extraction()
    assert job.read(name, METRICS[name]) is None
    job.compute(METRICS)
    scores = job.read(name, METRICS[name])
    model = MLP([64, 16, 10])
    with torch.inference_mode():
        for phase, folders in job.scenario.phases.items():
            for t, folder in enumerate(folders):
                model.load_state_dict(load_state(folder.path / "model.pt", model))
                own = job.points.of_phase[phase][t]
                expected = METRICS[name](
                    model(digits.inputs(torch.from_numpy(own))), digits.labels[own]
                )
                np.testing.assert_allclose(scores.own[phase][t], expected, atol=1e-5)
                if phase == "train":
                    unique = job.points.unique
                    expected = METRICS[name](
                        model(digits.inputs(torch.from_numpy(unique))), digits.labels[unique]
                    )
                    np.testing.assert_allclose(scores.shadow[t], expected, atol=1e-5)


def test_only_what_is_needed_and_only_once(open_extraction, ran):
    job = open_extraction()
    job.compute(METRICS)
    assert sum(ran) == 12 * len(job.points.unique) + 5 * 20
    open_extraction().compute(METRICS)
    assert sum(ran) == 12 * len(job.points.unique) + 5 * 20


def test_a_changed_model_recomputes_its_columns_alone(open_extraction, ran, tree):
    job = open_extraction()
    job.compute(METRICS)
    before = job.read("loss", metrics.loss)
    ran.clear()
    path = tree / "digits" / "digits_inf" / "train" / "model_4" / "model.pt"
    state = torch.load(path, weights_only=True)
    state["mlp.0.weight"] += 0.1
    torch.save(state, path)
    changed = open_extraction()
    assert changed.read("loss", metrics.loss) is None
    changed.compute(METRICS)
    assert ran == [12 * len(job.points.unique)]  # as many at once as before, for the same bits
    after = changed.read("loss", metrics.loss)
    differ = (after.shadow != before.shadow).any(axis=1)
    assert differ.tolist() == [i == 4 for i in range(12)]


def test_new_points_are_added_without_redoing_the_old(open_extraction, ran, tree):
    job = open_extraction()
    job.compute(METRICS)
    old = job.points.unique
    ran.clear()
    seed = tree / "digits" / "digits_inf" / "dev" / "model_13" / "seed_challenge"
    seed.write_text("12345")
    changed = open_extraction()
    changed.compute(METRICS)
    new = np.setdiff1d(changed.points.unique, old)
    own = np.setdiff1d(changed.points.of_phase["dev"][1], job.points.of_phase["dev"][1])
    assert 0 < len(new) <= 20
    # The dev model lacks all of its points, and is run among as many as at first.
    assert sum(ran) == 12 * len(new) + 3 * len(own)
    assert changed.read("loss", metrics.loss).own["dev"].shape == (3, 20)


def test_only_models_that_were_run_at_once_before_fill_a_stack():
    """Dev models of disclosed scenarios are asked at unequally many points, each by itself."""
    sizes = {"train": [9] * 7, "dev": [4, 5, 5, 6]}
    lacking = {"train": [0, 9, 0, 9, 9, 2, 0], "dev": [4, 5, 0, 6]}
    tasks = [
        (Task(phase, row, None, np.arange(size), {}), np.arange(lacking[phase][row]))
        for phase, rows in sizes.items()
        for row, size in enumerate(rows)
    ]
    found = stacks.stacks(tasks, at_once=4)
    shown = [([task.row for task, _ in one.pairs], len(one.filled)) for one in found]
    train, dev = shown[:3], shown[3:]
    assert train == [([1, 3], 4), ([4], 3), ([5], 1)]  # new points alone are no stack of before
    assert dev == [([0], 1), ([1], 2), ([3], 1)]
    assert [task.row for task, _ in found[0].filled] == [1, 3, 3, 3]


def test_another_metric_of_the_same_name_is_another_column(open_extraction):
    job = open_extraction()
    job.compute({"loss": metrics.loss})
    assert job.read("loss", metrics.loss) is not None
    assert job.read("loss", metrics.confidence) is None


def test_an_interruption_keeps_finished_models(open_extraction, ran, monkeypatch):
    monkeypatch.setattr(stacks, "MODELS_AT_ONCE", 4)
    job = open_extraction()
    real, calls = job.store.write, []

    def interrupted(columns):
        if len(calls) == 1 + 3:  # in the second of the train models' three stacks
            raise KeyboardInterrupt
        calls.append(columns)
        real(columns)

    monkeypatch.setattr(job.store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.compute(METRICS)
    ran.clear()
    assert open_extraction().read("loss", METRICS["loss"]) is None
    open_extraction().compute(METRICS)
    assert sum(ran) == 8 * len(job.points.unique) + 5 * 20
    clean = open_extraction(store=job.store.folder.with_name("undisturbed"))
    clean.compute(METRICS)
    for name, metric in METRICS.items():
        once, again = clean.read(name, metric).shadow, open_extraction().read(name, metric).shadow
        assert np.array_equal(once, again)


def files(job):
    return sorted(path for path in job.store.folder.rglob("*-*.npz"))


def test_a_pass_ends_in_one_file_a_metric_that_a_cell_reads(open_extraction, ran, tree):
    job = open_extraction()
    job.compute(METRICS)
    assert [path.parent.name for path in files(job)] == ["packs"] * len(METRICS)
    before = {path: path.read_bytes() for path in files(job)}
    path = tree / "digits" / "digits_inf" / "dev" / "model_13" / "model.pt"
    was = path.read_bytes()
    state = torch.load(path, weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, path)
    ran.clear()
    open_extraction().compute(METRICS)
    assert sum(ran) == 3 * 20  # the stack of dev, for one model's columns
    assert files(job) == list(before)
    path.write_bytes(was)
    ran.clear()
    open_extraction().compute(METRICS)  # the columns of the model that was are there still
    assert ran == []


def test_two_precisions_are_two_files(open_extraction):
    job = open_extraction()
    job.compute(METRICS)
    coarse = open_extraction(processor=inference.Processor("cpu", "bfloat16"))
    coarse.compute(METRICS)
    assert len(files(job)) == 2 * len(METRICS)
    fine, other = (one.read("loss", metrics.loss).shadow for one in (job, coarse))
    assert 0 < np.abs(fine - other).max() < 0.1


def test_a_damaged_pack_is_computed_anew(open_extraction, ran, caplog):
    job = open_extraction()
    job.compute(METRICS)
    before = {path: path.read_bytes() for path in files(job)}
    path = next(path for path in files(job) if path.name.startswith("loss-"))
    content = bytearray(before[path])
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    ran.clear()
    assert open_extraction().read("loss", metrics.loss) is None
    open_extraction().compute(METRICS)
    assert f"{path} is damaged and will be computed anew" in caplog.text
    assert sum(ran) == 12 * len(job.points.unique) + 5 * 20
    assert {path: path.read_bytes() for path in files(job)} == before


def test_a_store_of_a_file_for_each_column_is_read_and_packed(open_extraction, ran, tmp_path):
    """As they were written before there were packs."""
    job, old = open_extraction(), ScoreStore(tmp_path / "old")
    job.compute(METRICS)
    expected = {name: job.read(name, metric) for name, metric in METRICS.items()}
    for task in job.addresses.tasks(METRICS):
        for address in task.addresses.values():
            column, path = job.store.read(address), old.path(address)
            path.parent.mkdir(parents=True, exist_ok=True)
            points = column.points.astype(np.uint32)
            np.savez(path, key=np.array(address.key), points=points, scores=column.scores)
    ran.clear()
    again = open_extraction(store=old.folder)
    for name, metric in METRICS.items():
        assert np.array_equal(again.read(name, metric).shadow, expected[name].shadow)
    again.compute(METRICS)
    assert ran == []
    assert not (old.folder / job.name / "train").exists()
    assert {p.name: p.read_bytes() for p in files(again)} == {
        p.name: p.read_bytes() for p in files(job)
    }


def break_models(tree, *places):
    for place in places:
        path = tree / "digits" / "digits_inf" / place / "model.pt"
        state = torch.load(path, weights_only=True)
        state["mlp.0.weight"][0, :7] = torch.nan
        torch.save(state, path)


def test_models_that_diverged_are_counted_and_refused(open_extraction, ran, tree):
    break_models(tree, "train/model_4", "dev/model_13")
    message = r"2 of 17 models have weights that are not finite.*model_4 \(7 of 1210 weights\)"
    with pytest.raises(InputError, match=message):
        open_extraction().compute(METRICS)
    assert ran == []


def test_damaged_weights_are_refused_before_any_model_runs(open_extraction, ran, tree):
    path = tree / "digits" / "digits_inf" / "final" / "model_16" / "model.pt"
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 500] ^= 16  # of a weight: the file still loads
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model_16/model\.pt.*differs from its checksum"):
        open_extraction().compute(METRICS)
    assert ran == []


def test_models_that_diverged_count_for_nothing_when_asked(open_extraction, tree):
    break_models(tree, "train/model_4", "dev/model_13")
    job = open_extraction(allow_nan=True)
    job.compute(METRICS)
    scores = job.read("loss", metrics.loss)
    assert scores.nan_models({phase: job.points.there(phase) for phase in scores.own}) == 2
    assert np.isnan(scores.shadow).all(axis=1).tolist() == [i == 4 for i in range(12)]
    assert np.isnan(scores.own["dev"]).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(InputError, match="model_4: metric `loss` is not finite"):
        open_extraction().read("loss", metrics.loss)


def test_a_device_that_is_not_here():
    with pytest.raises(InputError, match=r"`compute\.device`: foo"):
        open_device("foo")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="cuda:7 cannot be used here"):
            open_device("cuda:7")


def test_a_model_of_another_shape_is_named(open_extraction):
    with pytest.raises(InputError, match=r"model_0.*mlp\.0\.weight"):
        open_extraction(widths=(64, 32, 10)).compute(METRICS)


def compute(tree, store, started, done):
    Path(started).touch()
    opened(Path(tree), Path(store), datasets.digits()).compute(METRICS)
    Path(done).touch()


def test_a_second_process_waits_and_then_reads(tree, open_extraction, tmp_path):
    job = open_extraction()
    started, done = tmp_path / "started", tmp_path / "done"
    with extraction.exclusive(job.store.lock(job.name), "testing"):
        other = call(compute, tree, tmp_path / "store", started, done)
        deadline = time.monotonic() + 60
        while not started.exists():
            assert other.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)
        assert not done.exists()
        assert job.read("loss", metrics.loss) is None
    assert other.ended(60).returncode == 0
    assert done.exists()
    assert job.read("loss", metrics.loss) is not None


def test_a_metric_that_changes_the_logits_is_named(open_extraction):
    def shrinking(logits, labels):
        logits *= 0.1
        return metrics.loss(logits, labels)

    with pytest.raises(MetricError, match="metric `aaa` changes the logits"):
        open_extraction().compute({"aaa": shrinking, "loss": metrics.loss})


def test_a_metric_of_the_wrong_shape_is_named(open_extraction):
    def one_for_all(logits, labels):
        return metrics.loss(logits, labels)[0]

    with pytest.raises(InputError, match=r"metric `odd` must give shape \(12, "):
        open_extraction().compute({"odd": one_for_all})


def test_vitals_are_what_each_model_gives_at_its_own_points_and_taken_once(
    open_extraction, digits, ran
):
    job = open_extraction()
    found = job.checkup.look()
    model = MLP([64, 16, 10])
    for phase, folders in job.scenario.phases.items():
        for t, folder in enumerate(folders):
            model.load_state_dict(load_state(folder.path / "model.pt", model))
            own = job.points.of_phase[phase][t]
            logits = model(digits.inputs(torch.from_numpy(own))).detach()
            labels = digits.labels[own]
            expected = metrics.logit(logits, labels)
            np.testing.assert_allclose(found.logit[phase][t], expected, atol=1e-4)
            assert np.array_equal(found.right[phase][t], logits.argmax(dim=1) == labels)
    asked = len(ran)
    again = open_extraction().checkup.look()
    assert len(ran) == asked
    assert all(np.array_equal(again.logit[phase], rows) for phase, rows in found.logit.items())
    path = job.scenario.phases["dev"][0].path / "model.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, path)
    open_extraction().checkup.look()
    assert len(ran) > asked  # another model, other vitals


def test_damaged_vitals_are_taken_anew(open_extraction, caplog):
    job = open_extraction()
    found = job.checkup.look()
    job.checkup.path.write_bytes(job.checkup.path.read_bytes()[:-40])
    again = open_extraction().checkup.look()
    assert "is damaged and will be made anew" in caplog.text
    assert np.array_equal(again.logit["train"], found.logit["train"])


def test_outliers_are_gone_on_without_where_that_is_asked_for(open_extraction, tree):
    path = tree / "digits" / "digits_inf" / "train" / "model_4" / "model.pt"
    state = torch.load(path, weights_only=True)
    state["mlp.2.weight"] *= 1e5
    torch.save(state, path)
    job = open_extraction()
    job.compute(METRICS)
    assert any("1 of 17 models are far from the others" in line for line in job.checkup.findings)
    plain = job.read("loss", metrics.loss)
    assert np.isfinite(plain.shadow).all()
    job = open_extraction(allow_outliers=True)
    left = job.read("loss", metrics.loss)
    assert np.isnan(left.shadow[4]).all()
    assert np.isnan(left.own["train"][4]).all()
    others = np.delete(np.arange(12), 4)
    assert np.array_equal(left.shadow[others], plain.shadow[others])
    assert np.array_equal(left.own["dev"], plain.own["dev"])


@pytest.mark.parametrize(("given", "used"), [(1, 1), (8, 2)])
def test_threads_are_as_many_as_there_are_cores_for_and_it_is_said(given, used, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("mico_exp.common.cores.usable", lambda: given)
    try:
        torch.set_num_threads(2)
        Local().check("cpu")
        assert Local().describe("cpu") == f"cpu, threads: {used}"
    finally:
        torch.set_num_threads(before)
