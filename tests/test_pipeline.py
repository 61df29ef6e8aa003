"""The commands as a user types them, in an empty folder, on a small challenge."""

import csv
import json
import shutil
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run, start
from conftest import GRID, SWEPT, SWEPT_SIZES
from mlflow import MlflowClient
from sklearn.metrics import roc_auc_score, roc_curve

from mico_exp.challenge import datasets
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import load_scenario
from mico_exp.config.typed import OPTIONS

SMALL = [*SWEPT, "plots=off"]  # which others look at


@pytest.fixture
def copy(swept, tmp_path):
    """A copy of that folder, artifacts and all, that a test may change."""
    shutil.copytree(swept[0], tmp_path / "copy")
    return tmp_path / "copy"


def runs(folder, **tags):
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits").experiment_id
    found = client.search_runs([experiment], max_results=1000)
    return [r for r in found if all(r.data.tags.get(k) == v for k, v in tags.items())]


def artifact(run, name):
    return Path(run.info.artifact_uri.removeprefix("file://")) / name


def test_the_grid_is_eighteen_finished_runs(swept):
    folder, *_ = swept
    found = runs(folder, kind="cell")
    assert sorted(run.info.run_name for run in found) == sorted(
        f"{s}/{m}/{f}" for s in ("inf", "hi", "lo") for m in ("loss", "confidence") for f in "012"
    )
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len({run.data.tags["sweep"] for run in found}) == 1
    assert len({run.data.tags["content"] for run in found}) == 3
    for one in found:
        assert one.data.params["train_models"] == "10"
        assert one.data.params["len_challenge"] == "10"
        figures = one.data.metrics
        for phase in ("val", "dev", "final"):
            for x in (0.001, 0.01, 0.05, 0.1, 0.15, 0.2):
                assert 0 <= figures[f"{phase}/tpr_at_fpr_{x}"] <= 1
            assert 0 < figures[f"{phase}/auc"] < 1
        assert 0 <= figures["out_fallback_rate"] < 1
        for name in ("config.yaml", "predictions.npz", "roc.png"):
            assert artifact(one, name).stat().st_size > 100


def test_nothing_is_left_lying_about(swept):
    folder, *_ = swept
    expected = {"data", "mlruns", "mlflow.db", ".mlflow.db.lock", "multirun", "submissions"}
    assert {path.name for path in folder.iterdir()} == expected
    assert not list(folder.rglob("*.tmp"))


def test_a_cells_figures_follow_from_the_models_on_disk(swept):
    """The whole way again by plain loops: logits, log p_y, s − mean(in), one ROC over all."""
    folder, *_ = swept
    sizes = Sizes(1797, 120, 10)
    scenario = load_scenario(folder / "data", "digits", "digits_inf", sizes)
    records = datasets.digits()
    log_p, member = [], []
    for model in scenario.phases["train"]:
        state = torch.load(model.path / "model.pt", weights_only=True)
        hidden = torch.tanh(records.features @ state["mlp.0.weight"].T + state["mlp.0.bias"])
        logits = hidden @ state["mlp.2.weight"].T + state["mlp.2.bias"]
        values = torch.log_softmax(logits.double(), dim=1)
        log_p.append(values[torch.arange(1797), records.labels].numpy())
        split = model.split(sizes)
        member.append(set(split.member) | set(split.training))
    scores, truth = [], []
    for t, model in enumerate(scenario.phases["train"]):
        for point in model.split(sizes).challenge:
            others = [s for s in range(10) if s != t]
            inside = [log_p[s][point] for s in others if point in member[s]]
            outside = [log_p[s][point] for s in others if point not in member[s]]
            scores.append(log_p[t][point] - np.mean(inside or outside))
            truth.append(point in member[t])
    fpr, tpr, _ = roc_curve(truth, scores)
    (one,) = [run for run in runs(folder) if run.info.run_name == "inf/loss/1"]
    assert one.data.metrics["val/tpr_at_fpr_0.1"] == pytest.approx(tpr[fpr < 0.1].max(), abs=1e-9)
    assert one.data.metrics["val/auc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-4)


def test_the_best_of_each_scenario_was_chosen_by_validation(swept):
    folder, _, shown, _ = swept
    report = json.loads((folder / "submissions" / "selection_digits.json").read_text())
    for scenario in ("inf", "hi", "lo"):
        cells = [r for r in runs(folder, kind="cell") if r.data.params["scenario"] == scenario]
        highest = max(
            (r.data.metrics["val/tpr_at_fpr_0.1"], r.data.metrics["val/auc"]) for r in cells
        )
        selected = report["scenarios"][f"digits_{scenario}"]
        figures = selected["best"]["figures"]
        assert (figures["val/tpr_at_fpr_0.1"], figures["val/auc"]) == highest
        assert len(selected["cells"]) == 6
        assert selected["verdict"]["tpr"] == highest[0]
        assert selected["procedure"] is not None
        assert f"{highest[0]:.4f}" in shown
        assert f"{selected['procedure']:.4f}" in shown
    (logged,) = runs(folder, kind="selection")
    assert logged.info.run_name == "selection"
    zipped = folder / "submissions" / "predictions_digits.zip"
    assert artifact(logged, zipped.name).read_bytes() == zipped.read_bytes()


def test_the_submission_holds_the_chosen_predictions_and_scores(swept):
    folder, _, _, shown = swept
    report = json.loads((folder / "submissions" / "selection_digits.json").read_text())
    with zipfile.ZipFile(folder / "submissions" / "predictions_digits.zip") as archive:
        assert len(archive.namelist()) == 3 * 5
        for scenario, selected in report["scenarios"].items():
            (one,) = [r for r in runs(folder) if r.info.run_id == selected["best"]["run_id"]]
            with np.load(artifact(one, "predictions.npz")) as predictions:
                rows = predictions["final"]
            for number, row in zip((13, 14), rows, strict=True):
                name = f"digits/{scenario}/final/model_{number}/prediction.csv"
                (line,) = csv.reader(archive.read(name).decode().splitlines())
                assert np.array_equal(np.array(line, dtype=np.float32), row)
            assert f"{one.data.metrics['final/tpr_at_fpr_0.1']:.4f}" in shown
            assert f"{one.data.metrics['dev/auc']:.4f}" in shown


def test_one_cell_without_a_sweep(copy):
    shown = run("mico_exp", "metric=confidence", "formula=1", "scenario=hi", *SMALL, cwd=copy)
    assert "hi/confidence/1: validation TPR@0.1FPR" in shown.stdout
    assert len(runs(copy, kind="cell")) == 19


def test_another_tracking_server_is_asked(copy):
    (copy / "mlflow.db").rename(copy / "team.db")
    team = f"sqlite:///{copy / 'team.db'}"
    run("mico_exp.select_best", *SWEPT_SIZES, cwd=copy, MLFLOW_TRACKING_URI=team)
    assert not (copy / "mlflow.db").exists()


def test_runs_of_other_models_are_stale(copy):
    model = copy / "data" / "digits" / "digits_lo" / "dev" / "model_11" / "model.pt"
    state = torch.load(model, weights_only=True)
    state["_module.mlp.0.bias"] += 1
    torch.save(state, model)
    done = run("mico_exp.select_best", *SWEPT_SIZES, cwd=copy, status=1)
    assert "digits_lo" in done.stderr
    assert "6 of 6 runs are left out: other models, records or seeds (6)" in done.stdout
    advice = "python -m mico_exp dataset=digits scenario=lo metric=loss,confidence formula=0,1,2"
    assert f"{advice} {' '.join(SWEPT_SIZES)} -m" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_scenario_that_is_gone(copy):
    shutil.rmtree(copy / "data" / "digits" / "digits_hi")
    done = run("mico_exp.select_best", *SWEPT_SIZES, cwd=copy, status=1)
    assert "digits_hi does not exist" in done.stderr
    assert "scenario=hi metric=loss,confidence formula=0,1,2 dataset.len_training=120" in (
        done.stderr
    )


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 500] ^= 16  # of a weight
    path.write_bytes(content)


def test_a_cell_that_fails_is_a_failed_run_and_the_others_go_on(copy):
    model = copy / "data" / "digits" / "digits_hi" / "train" / "model_3" / "model.pt"
    flip_a_bit(model)
    sweep = ["metric=mod_entropy", "formula=0", "scenario=hi,lo", "-m"]
    done = run("mico_exp", *sweep, *SMALL, cwd=copy, status=1)
    assert "model_3/model.pt: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert "lo/mod_entropy/0: validation" in done.stdout
    (failed,) = [r for r in runs(copy) if r.info.status == "FAILED"]
    assert failed.info.run_name == "hi/mod_entropy/0"
    assert "model_3" in failed.data.tags["error"]


def test_damaged_weights_and_a_model_that_is_there_twice_are_refused_by_all_commands(copy):
    twin = copy / "data" / "digits" / "digits_hi" / "dev" / "model_11"
    shutil.copy(twin.parents[1] / "train" / "model_2" / "model.pt", twin / "model.pt")
    damaged = copy / "data" / "digits" / "digits_lo" / "train" / "model_3" / "model.pt"
    flip_a_bit(damaged)
    command = ["mico_exp.extract", "metrics=[mod_entropy]", "scenario=hi,lo", "-m", *SWEPT]
    extracted = run(*command, cwd=copy, status=1)
    assert "model_11 hold equal weights" in extracted.stderr
    assert "model_3/model.pt: cannot be read" in extracted.stderr
    assert not list((copy / "data" / "store").rglob("mod_entropy*"))
    chosen = run("mico_exp.select_best", *SWEPT_SIZES, cwd=copy, status=1)
    assert "model_11 hold equal weights" in chosen.stderr
    assert "Traceback" not in extracted.stderr + chosen.stderr


def test_a_truth_that_is_not_known_is_not_needed(copy):
    shutil.rmtree(copy / "data" / "truth")
    for scenario in ("inf", "hi", "lo"):
        (copy / "data" / "digits" / f"digits_{scenario}" / "build.json").unlink()
    found = run("mico_exp", "metric=loss", "formula=1", "scenario=lo", *SMALL, cwd=copy, status=1)
    assert "no build.json" in found.stderr
    without = [*SWEPT_SIZES, "dataset.recipe=null"]
    run("mico_exp", "metric=loss", "formula=1", "-m", *without, cwd=copy)
    newest = runs(copy, kind="cell")[0]
    assert "val/auc" in newest.data.metrics
    # The truth takes no part in a prediction: with it they were the same.
    (before,) = [
        r
        for r in runs(copy)[3:]
        if r.info.run_name == newest.info.run_name and r.info.status == "FINISHED"
    ]
    with (
        np.load(artifact(newest, "predictions.npz")) as without_truth,
        np.load(artifact(before, "predictions.npz")) as with_truth,
    ):
        for phase in ("train", "dev", "final"):
            assert np.array_equal(without_truth[phase], with_truth[phase])
    assert not any(name.startswith("final/auc") for name in newest.data.metrics)
    shown = run("mico_exp.select_best", *SWEPT_SIZES, cwd=copy).stdout
    assert "inf" in shown
    assert (
        "does not exist"
        in run("mico_exp.score", "submissions/predictions_digits.zip", cwd=copy, status=1).stderr
    )


def test_the_embedded_challenge_clearly_leaks_without_privacy(tmp_path):
    """The default challenge in its true size, one scenario: AUC of validation at least 0.60."""
    run("mico_exp", "metric=confidence", "formula=0", "scenario=inf", cwd=tmp_path)
    (one,) = runs(tmp_path, kind="cell")
    assert one.data.params["train_models"] == "100"
    assert one.data.metrics["val/auc"] >= 0.60
    assert one.data.metrics["val/tpr_at_fpr_0.1"] >= 0.15


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_is_one_line_and_closes_the_run(tmp_path, number, status):
    process = start("mico_exp", "metric=loss", "formula=1", "-m", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "data" / "digits" / "digits_inf" / "build.json").exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    done = process.ended(60)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    (one,) = runs(tmp_path)
    assert one.info.status == "KILLED"
    assert not list((tmp_path / "data").rglob("*.tmp"))


def test_advice_and_single_scenarios(copy, tmp_path):
    shown = run("mico_exp.select_best", "scenarios=[inf]", *SWEPT_SIZES, cwd=copy).stdout
    assert "digits_inf" in shown
    assert "digits_hi" not in shown
    where = tmp_path / "nothing here"
    where.mkdir()
    failed = run("mico_exp.select_best", "dataset.len_challenge=9", cwd=where, status=1).stderr
    assert "Run: python -m mico_exp dataset=digits scenario=inf,hi,lo" in failed
    assert failed.endswith("dataset.len_challenge=9 -m\n")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("dataset.phases.train=3", "`dataset.phases.train` is 3, but data/digits/digits_inf holds"),
        ("dataset.recipe.steps=7", "data/digits/digits_inf was built with steps = 200, but 7 is"),
        ("scenarios=[]", "`scenarios` must name at least one scenario of the challenge, got none."),
        ("dataset.num_records=5", "`dataset.num_records` must be the number of records, 5 as told"),
    ],
)
def test_what_is_typed_holds_of_what_is_there(swept, typed, told):
    """Nothing is built here, and still nothing is read and ignored."""
    others = [text for text in SWEPT_SIZES if typed.partition("=")[0] not in text]
    failed = run("mico_exp.select_best", typed, *others, cwd=swept[0], status=1).stderr
    assert failed.startswith(told)
    assert len(failed.splitlines()) == 1


def test_a_challenge_of_another_name_and_a_truth_that_is_looked_at_first(tmp_path):
    """A value where no option has the name: the tree's folder, and MLflow's experiment."""
    one = ["metric=loss", "formula=0", "scenario=inf", *SMALL]
    run("mico_exp.build", "challenge=mine", "scenario=inf", *SWEPT, cwd=tmp_path)
    truth = tmp_path / "data/truth/mine/digits_inf/final/model_14/solution.csv"
    kept = truth.read_text()
    truth.write_text("garbage")
    done = run("mico_exp", "challenge=mine", *one, cwd=tmp_path, status=1)
    assert "final/model_14/solution.csv: expected one line of 20 values" in done.stderr
    assert not (tmp_path / "data" / "store").exists()
    truth.write_text(kept)
    run("mico_exp", "challenge=mine", *one, cwd=tmp_path)
    shown = run(
        "mico_exp.select_best", "challenge=mine", "scenarios=inf", *SWEPT_SIZES, cwd=tmp_path
    )
    assert "Submission: submissions/predictions_mine.zip" in shown.stdout


def test_advice_names_options_and_not_what_they_call_themselves(tmp_path):
    options = tmp_path / "options" / "dataset"
    options.mkdir(parents=True)
    digits = (Path(OPTIONS) / "dataset" / "digits.yaml").read_text()
    (options / "small.yaml").write_text(digits)
    (options / "digits_eps.yaml").write_text(digits.replace("name: digits", "name: digits_eps"))
    for option in ("small", "digits_eps"):
        typed = [f"dataset={option}", "scenarios=9"]
        flag = f"--config-dir={options.parent}"
        failed = run("mico_exp.select_best", flag, *typed, cwd=tmp_path, status=1).stderr
        assert f"Run: python -m mico_exp {flag} dataset={option} scenario=9 metric=" in failed


def test_a_metric_of_ones_own_as_the_readme_says(copy):
    """The README's Brier score, its option file outside the package, beside a broken one."""
    (copy / "mine.py").write_text(BRIER)
    options = copy / "options" / "metric"
    options.mkdir(parents=True)
    function = "function:\n  _target_: {}\n  _partial_: true\n"
    (options / "brier.yaml").write_text("name: brier\n" + function.format("mine.brier"))
    (options / "broken.yaml").write_text("name: broken\n" + function.format("absent.broken"))
    (options / "liar.yaml").write_text("name: loss\n" + function.format("mine.brier"))
    own = ["--config-dir=options", "metrics=all", "formula=1", "scenario=inf", *SMALL]
    shown = run("mico_exp", "metric=brier", *own, cwd=copy).stdout
    assert "inf/brier/1: validation" in shown
    assert "broken.yaml cannot be used, and is left out" in shown
    assert (
        "`name` must be that of its file"
        in run("mico_exp", "metric=liar", *own, cwd=copy, status=1).stderr
    )


def test_a_formula_that_gives_nan_is_a_failed_cell_that_the_choice_goes_on_without(copy):
    (copy / "mine.py").write_text(BROKEN)
    options = copy / "options" / "formula"
    options.mkdir(parents=True)
    function = "function:\n  _target_: mine.broken\n  _partial_: true\n"
    (options / "broken.yaml").write_text(f"name: broken\n{function}")
    grid = ["--config-dir=options", "metric=loss", "formula=1,broken", "scenario=inf,hi", *SMALL]
    done = run("mico_exp", *grid, "-m", cwd=copy, status=1)
    assert "loss/broken: 1 of 200 calibrated scores are not finite" in done.stderr
    assert "target 3" in done.stderr
    assert "inf/loss/1: validation" in done.stdout
    assert "hi/loss/1: validation" in done.stdout
    failed = [r for r in runs(copy, kind="cell") if r.info.status == "FAILED"]
    assert {r.info.run_name for r in failed} == {"inf/loss/broken", "hi/loss/broken"}
    chosen = run("mico_exp.select_best", *SWEPT_SIZES, cwd=copy).stdout
    assert "digits_inf: the last run of loss/broken failed, it is left out" in chosen
    assert "1 of 200 calibrated scores are not finite" in chosen


BROKEN = """
def broken(score, shadow, is_in, is_out):
    result = score.copy()
    result[3:4, 5] = float("nan")
    return result
"""


def test_a_run_whose_predictions_are_gone_is_left_out_and_named(copy):
    report = json.loads((copy / "submissions" / "selection_digits.json").read_text())
    found = report["scenarios"]["digits_hi"]
    other = next(one for one in found["cells"] if one["cell"] != found["verdict"]["cell"])
    artifacts = copy / "mlruns" / "digits" / other["run_id"] / "artifacts"
    (artifacts / "predictions.npz").unlink()
    shown = run("mico_exp.select_best", *SWEPT_SIZES, cwd=copy).stdout
    assert f"digits_hi/{other['cell']} is left out" in shown
    numbers = ["selection.rule=one_se", "selection.simplicity.formula=[2,0,1]"]
    numbers.append("selection.allow_unreadable=true")
    run("mico_exp.select_best", *SWEPT_SIZES, *numbers, cwd=copy)
    simple = json.loads((copy / "submissions" / "selection_digits.json").read_text())
    assert simple["selection"]["simple_formulas"] == ["2", "0", "1"]
    unknown = "selection.simplicity.metric=[foo]"
    refused = run("mico_exp.select_best", *SWEPT_SIZES, unknown, cwd=copy, status=1).stderr
    assert "`selection.simplicity.metric` must name options" in refused


def test_runs_of_other_contents_in_one_experiment_are_left_out_and_counted(copy):
    other = run(
        "mico_exp", "metric=loss", "formula=0", *SMALL, "seed=1", "paths.data=d", "-m", cwd=copy
    )
    assert other.stdout.count("validation TPR") == 3
    shown = run("mico_exp.select_best", *SWEPT_SIZES, cwd=copy).stdout
    for scenario in ("inf", "hi", "lo"):
        assert (
            f"digits_{scenario}: 1 of 7 runs are left out: other models, records or seeds (1)"
        ) in shown
    assert "of 5" in shown


def test_a_tracking_server_that_is_down_is_told_before_the_sweep(tmp_path):
    started = time.monotonic()
    server = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = run(*GRID, *SMALL, cwd=tmp_path, status=1, **server)
    assert "MLflow at http://127.0.0.1:9 cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Launching" not in done.stdout
    assert not (tmp_path / "data").exists()
    assert time.monotonic() - started < 60


BRIER = """
def brier(logits, labels):
    p = logits.softmax(dim=-1)
    index = labels.expand(p.shape[:-1]).unsqueeze(-1)
    return 2 * p.gather(-1, index).squeeze(-1) - p.square().sum(dim=-1)
"""


def test_building_alone(tmp_path):
    shown = run("mico_exp.build", "dataset=digits", "scenario=inf", *SWEPT, cwd=tmp_path).stdout
    assert "data/digits/digits_inf: built" in shown
    again = run("mico_exp.build", "dataset=digits", "scenario=inf", *SWEPT, cwd=tmp_path).stdout
    assert "data/digits/digits_inf: complete, nothing to do" in again
    assert not (tmp_path / "data" / "digits" / "digits_hi").exists()
