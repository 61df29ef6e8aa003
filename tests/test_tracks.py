"""The competition's tracks from its own formats to the zip, against the literal procedure."""

import itertools
import json
import shutil
import zipfile
from functools import cache
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
import worlds
from conftest import WINNER
from mlflow import MlflowClient
from sklearn.metrics import roc_auc_score, roc_curve
from transformers import RobertaConfig, RobertaForSequenceClassification
from worlds import COUNTS, SIZES

from mico_exp.attacks.evidence import Evidence
from mico_exp.challenge import datasets
from mico_exp.challenge.points import challenge_points, known_sample, known_training
from mico_exp.challenge.tree import load_scenario
from mico_exp.challenge.truth import read_truth
from mico_exp.models.architectures import CNN, MLP, Architecture, TextClassifier, roberta
from mico_exp.results import cell
from mico_exp.scores import metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.store import ScoreStore

TRACKS = ("cifar10", "purchase100", "sst2")
SCENARIOS = ("inf", "hi", "lo", "ddp")
METRICS = {name: getattr(metrics, name) for name in ("loss", "confidence", "mod_entropy")}


def load_records(root, dataset):
    folder = str(root / "data" / dataset)
    if dataset == "cifar10":
        return datasets.cifar10(folder, worlds.TinyCIFAR10)
    if dataset == "purchase100":
        return datasets.purchase100(folder)
    return datasets.sst2(folder, tokenizer=f"{folder}/tokenizer")


ARCHITECTURES = {
    "cifar10": lambda: Architecture.of(CNN()),
    "purchase100": lambda: Architecture.of(MLP([600, 128, 100])),
    "sst2": lambda: Architecture.of(roberta),
}


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """All four challenges in one tree; tests must not change it."""
    root = tmp_path_factory.mktemp("tracks") / "data"
    random = np.random.default_rng(0)
    worlds.write_cifar10(root / "data" / "cifar10", random)
    worlds.write_purchase100(root / "data" / "purchase100", random)
    worlds.write_sst2(root / "data" / "sst2", random)
    shape = RobertaConfig(**worlds.ROBERTA)
    networks = {
        "cifar10": (CNN(), (1, 8)),
        "purchase100": (MLP([600, 128, 100]), (15, 24)),
        "sst2": (TextClassifier(RobertaForSequenceClassification(shape)), (10, 8)),
    }
    for dataset, (model, plan) in networks.items():
        records = load_records(root, dataset)
        for seed, scenario in enumerate(("inf", "hi", "lo", "ddp")):
            save = None
            if dataset == "sst2":
                save = worlds.save_safetensors if scenario == "lo" else worlds.save_bin
            worlds.write_models(root, f"{dataset}_{scenario}", records, model, plan, seed, save)
    return root


def open_scenario(root, name):
    dataset, kind = name.split("_")
    place = "ddp" if kind == "ddp" else dataset
    scenario = load_scenario(root, place, name, SIZES[dataset])
    return scenario, challenge_points(scenario)


def open_extraction(root, name, store, **how):
    dataset = name.split("_")[0]
    scenario, points = open_scenario(root, name)
    architecture = ARCHITECTURES[dataset]()
    records = load_records(root, dataset)
    return Extraction(scenario, points, records, architecture, ScoreStore(store), **how)


@cache
def literal_inputs(dataset, root):
    """All records as their network takes them, by the plainest code there is."""
    if dataset == "sst2":
        from transformers import AutoTokenizer

        place = root / "data" / "sst2"
        tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
        sentences = []
        for part in ("train", "validation"):
            lines = (place / f"{part}.tsv").read_text().splitlines()[1:]
            sentences += [line.split("\t")[0] for line in lines]
        return tokenizer(sentences, padding="max_length", max_length=67, return_tensors="pt")
    if dataset == "purchase100":
        lines = (root / "data" / "purchase100" / "dataset_purchase").read_text().splitlines()
        return torch.tensor([[float(v) for v in line.split(",")[1:]] for line in lines])
    parts = [worlds.TinyCIFAR10(root / "data" / "cifar10", train=t) for t in (True, False)]
    x = torch.tensor(np.concatenate([p.data for p in parts])).permute(0, 3, 1, 2) / 255
    mean = torch.tensor([0.49139968, 0.48215841, 0.44653091]).view(3, 1, 1)
    std = torch.tensor([0.24703223, 0.24348513, 0.26158784]).view(3, 1, 1)
    return (x - mean) / std


def literal_logits(folder, dataset, root, asked):
    """Logits of those records that are asked for."""
    x = literal_inputs(dataset, root)
    if dataset == "sst2":
        from safetensors.torch import load_file

        old = folder / "pytorch_model.bin"
        state = torch.load(old) if old.exists() else load_file(folder / "model.safetensors")
        state = {key.removeprefix("_module."): value for key, value in state.items()}
        state.pop("roberta.embeddings.position_ids", None)
        network = RobertaForSequenceClassification(RobertaConfig(**worlds.ROBERTA)).eval()
        network.load_state_dict(state)
        asked_for = {k: x[k][asked] for k in ("input_ids", "attention_mask")}
        return dict(zip(asked, network(**asked_for).logits, strict=True))
    state = torch.load(folder / "model.pt", weights_only=True)
    state = {key.removeprefix("_module."): value for key, value in state.items()}
    model = MLP([600, 128, 100]) if dataset == "purchase100" else CNN()
    model.load_state_dict(state)
    return dict(zip(asked, model(x[asked]), strict=True))


def literal_metric(name, logits, label):
    """The winner's three metrics at one point; log p_y in float64, where float32 would saturate."""
    if name == "mod_entropy":
        p, one, eps = (
            torch.softmax(logits.float(), dim=0).numpy(),
            np.float32(1),
            np.float32(1.2e-38),
        )
        total = sum(p[c] * np.log(one - p[c] + eps) for c in range(len(p)) if c != label)
        return float(total + (one - p[label]) * np.log(p[label] + eps))
    log_p = torch.log_softmax(logits.double(), dim=0)[label]
    return float(log_p if name == "loss" else log_p.exp())


def literal_procedure(root, name):
    """Predictions of all nine cells and phases: loops over models and over points."""
    dataset = name.split("_")[0]
    sizes = SIZES[dataset]
    scenario, _ = open_scenario(root, name)
    labels = load_records(root, dataset).labels
    every = [model for folder in scenario.phases.values() for model in folder]
    asked = sorted({int(j) for model in every for j in model.split(sizes).challenge})
    with torch.no_grad():
        logits = {
            phase: [literal_logits(model.path, dataset, root, asked) for model in folder]
            for phase, folder in scenario.phases.items()
        }
    trained_on = []
    for model in scenario.phases["train"]:
        split = model.split(sizes)
        trained_on.append(set(split.member) | set(split.training))
    found = {}
    for metric in METRICS:

        def score(phase, t, j, metric=metric):
            return literal_metric(metric, logits[phase][t][j], labels[j])

        for phase, folder in scenario.phases.items():
            rows = {formula: [] for formula in WINNER}
            for t, model in enumerate(folder):
                others = [s for s in range(COUNTS["train"]) if not (phase == "train" and s == t)]
                for j in model.split(sizes).challenge:
                    inside = [score("train", s, j) for s in others if j in trained_on[s]]
                    outside = [score("train", s, j) for s in others if j not in trained_on[s]]
                    inside = inside or outside
                    outside = outside if len(outside) >= 2 else inside
                    own, both = score(phase, t, j), inside + outside
                    rows["0"].append(own - (np.mean(inside) + np.mean(outside)) / 2)
                    rows["1"].append(own - np.mean(inside))
                    rows["2"].append((own - np.mean(both)) / np.std(both, ddof=1))
            for formula, values in rows.items():
                values = np.array(values).reshape(len(folder), -1)
                values = (values - values.min()) / (values.max() - values.min())
                found[metric, formula, phase] = values.astype(np.float32)
    return found


# Of CIFAR-10, whose network takes longest, one of each kind of folder.
KINDS = [*itertools.product(TRACKS[1:], SCENARIOS), ("cifar10", "inf"), ("cifar10", "ddp")]


@pytest.mark.parametrize("name", ["_".join(kind) for kind in KINDS])
def test_the_pipeline_is_the_literal_procedure(tree, tmp_path, name):
    job = open_extraction(tree, name, tmp_path)
    job.compute(METRICS)
    truth = read_truth(tree, job.scenario)
    expected = literal_procedure(tree, name)
    for metric, function in METRICS.items():
        labels = np.zeros(len(job.points.unique), dtype=np.int64)
        evidence = Evidence({metric: job.read(metric, function)}, job.points, labels)
        for formula, calibrate in WINNER.items():
            result = cell.evaluate(evidence, calibrate, truth)
            for phase, rows in result.predictions.items():
                wanted = expected[metric, formula, phase]
                where = f"{metric} {formula} {phase}"
                np.testing.assert_allclose(rows, wanted, atol=1e-4, err_msg=where)
                solution = {"train": job.points.solution, **truth}[phase]
                fpr, tpr, _ = roc_curve(solution.ravel(), rows.ravel())
                shown = "val" if phase == "train" else phase
                assert result.figures[f"{shown}/tpr_at_fpr_0.1"] == tpr[fpr < 0.1].max()
                auc = roc_auc_score(solution.ravel(), wanted.ravel())
                assert result.figures[f"{shown}/auc"] == pytest.approx(auc, abs=2e-3)


@pytest.mark.parametrize("dataset", TRACKS)
def test_scores_do_not_hang_on_batches(tree, tmp_path, dataset, monkeypatch):
    one = open_extraction(tree, f"{dataset}_inf", tmp_path / "one")
    one.compute(METRICS)
    monkeypatch.setattr("mico_exp.scores.stacks.MODELS_AT_ONCE", 2)
    processor = Processor("cpu", batch_size=7)
    two = open_extraction(tree, f"{dataset}_inf", tmp_path / "two", processor=processor)
    two.compute(METRICS)
    for name, function in METRICS.items():
        first, second = one.read(name, function), two.read(name, function)
        np.testing.assert_allclose(first.shadow, second.shadow, atol=1e-5, rtol=1e-5)
        for phase in COUNTS:
            np.testing.assert_allclose(first.own[phase], second.own[phase], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dataset", TRACKS)
def test_known_members_of_ddp_are_extracted_as_well(tree, tmp_path, dataset):
    scenario, points = open_scenario(tree, f"{dataset}_ddp")
    records = load_records(tree, dataset)
    known = known_sample(scenario, points, members=9, nonmembers=6)
    job = open_extraction(tree, scenario.name, tmp_path, known=known)
    job.compute({"loss": metrics.loss})
    scores = job.read("loss", metrics.loss)
    for phase in ("train", "dev", "final"):
        for model, sample, found in zip(
            scenario.phases[phase], job.known[phase], scores.known[phase], strict=True
        ):
            split = model.split(SIZES[dataset])
            assert sample.is_member.sum() == 9
            assert set(sample.points[sample.is_member]) <= set(split.training)
            assert 0 < (~sample.is_member).sum() <= 6
            assert set(sample.points[~sample.is_member]) <= set(split.evaluation)
            assert set(sample.points) <= set(job.points.unique)
            runner = ModelRunner(Processor("cpu"))
            one = runner.load(job.architecture, [model.path])
            alone = runner.scores(one, records, sample.points[None], {"loss": metrics.loss})
            np.testing.assert_allclose(found, alone["loss"][0], atol=1e-5)
    assert scores.own["dev"].shape == (COUNTS["dev"], 2 * SIZES[dataset].challenge)


def test_ddp_tells_known_members_and_non_members(tree):
    scenario, _ = open_scenario(tree, "sst2_ddp")
    for phase in ("dev", "final"):
        known = known_training(scenario, phase)
        for t, model in enumerate(scenario.phases[phase]):
            split = model.split(SIZES["sst2"])
            assert set(np.flatnonzero(known.member[t])) == set(split.training)
            assert set(np.flatnonzero(known.nonmember[t])) == set(split.evaluation)
            assert not (known.member[t] | known.nonmember[t])[split.challenge].any()
    hidden, _ = open_scenario(tree, "sst2_inf")
    with pytest.raises(ValueError, match="does not disclose the training sets of its dev"):
        known_training(hidden, "dev")


def run(*arguments, cwd, status=0):
    """As a user who keeps modules of his own, which the tiny data sets' options name."""
    here = str(Path(worlds.__file__).parent)
    return commands.run(*arguments, cwd=cwd, status=status, PYTHONPATH=here)


OWN = [f"--config-dir={worlds.OPTIONS}", "paths.tokenizer=data/data/sst2/tokenizer"]
SWEPT = [*OWN, "plots=off"]  # which others look at


@pytest.fixture(scope="module")
def user(tree, tmp_path_factory):
    """A folder in which the commands run, with the tree at data."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "data").symlink_to(tree)
    return folder


@pytest.mark.parametrize("dataset", TRACKS)
def test_a_track_from_archive_formats_to_the_zip(user, dataset):
    option = f"dataset=tiny_{dataset}"
    run("mico_exp", option, "metric=loss,confidence", "formula=0,1,2", "-m", *SWEPT, cwd=user)
    shown = run("mico_exp.select_best", option, *OWN, cwd=user).stdout
    assert all(f"{dataset}_{scenario}" in shown for scenario in ("inf", "hi", "lo"))
    archive = f"submissions/predictions_{dataset}.zip"
    assert "mean" in run("mico_exp.score", archive, cwd=user).stdout
    with zipfile.ZipFile(user / archive) as opened:
        assert len(opened.namelist()) == 3 * (COUNTS["dev"] + COUNTS["final"])

    run("mico_exp.select_best", option, "preset=winner", "submissions=w", *OWN, cwd=user)
    report = json.loads((user / "w" / f"selection_{dataset}.json").read_text())
    chosen = {
        name: f"{found['best']['metric']}/{found['best']['formula']}"
        for name, found in report["scenarios"].items()
    }
    assert (
        chosen
        == {
            "cifar10": {
                "cifar10_inf": "loss/1",
                "cifar10_hi": "confidence/1",
                "cifar10_lo": "confidence/1",
            },
            "purchase100": {
                "purchase100_inf": "confidence/0",
                "purchase100_hi": "loss/2",
                "purchase100_lo": "loss/2",
            },
            "sst2": {"sst2_inf": "loss/1", "sst2_hi": "loss/1", "sst2_lo": "loss/1"},
        }[dataset]
    )


def test_ddp_is_one_challenge_of_three_data_sets(user):
    options = ",".join(f"tiny_{dataset}" for dataset in TRACKS)
    grid = [f"dataset={options}", "scenario=ddp", "metric=confidence", "formula=1", "-m"]
    run("mico_exp", *grid, *SWEPT, cwd=user)
    client = MlflowClient(f"sqlite:///{user / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ddp").experiment_id
    logged = {run.info.run_name for run in client.search_runs([experiment])}
    assert logged == {f"{dataset}_ddp/confidence/1" for dataset in TRACKS}
    three = ["challenge=ddp", f"datasets=[{options}]", *OWN]
    shown = run("mico_exp.select_best", *three, cwd=user).stdout
    assert all(f"{dataset}_ddp" in shown for dataset in TRACKS)
    with zipfile.ZipFile(user / "submissions" / "predictions_ddp.zip") as opened:
        names = opened.namelist()
    assert len(names) == 3 * 4
    assert names[0] == "ddp/cifar10_ddp/dev/model_5/prediction.csv"
    run("mico_exp.select_best", *three, "preset=winner", cwd=user)
    other = [*three, "preset=winner", "compute.allow_nan=true"]
    advice = run("mico_exp.select_best", *other, cwd=user, status=1).stderr
    assert "scenario=ddp metric=confidence formula=1" in advice
    assert "compute.allow_nan=true -m" in advice
    assert "ddp" in run("mico_exp.score", "submissions/predictions_ddp.zip", cwd=user).stdout


def test_extraction_by_itself(user, tmp_path):
    command = ["mico_exp.extract", "dataset=tiny_sst2", "scenario=inf", *OWN]
    command.append(f"paths.store={tmp_path}")
    assert "logits: 9 models computed" in run(*command, cwd=user).stdout
    assert "nothing was missing" in run(*command, cwd=user).stdout
    stored = {path.name.rpartition("-")[0] for path in tmp_path.rglob("*-*.npz")}
    assert stored >= {"loss", "logit", "entropy"}
    assert not stored & {"grad_norm", "kfac"}
    assert len(list(tmp_path.rglob("*-*.npz"))) == len(stored)
    more = run(*command, "metrics=[grad_norm,kfac]", cwd=user).stdout
    assert "gradients: 9 models computed" in more
    assert len(list(tmp_path.rglob("*-*.npz"))) == len(stored) + 2


@pytest.mark.parametrize("dataset", TRACKS)
def test_the_doctor_finds_a_sound_tree_sound(user, dataset):
    shown = run("mico_exp.doctor", f"dataset=tiny_{dataset}", *OWN, cwd=user).stdout
    assert "An attack can run." in shown
    assert "Problem" not in shown
    assert shown.count(" ok ") == 9
    assert "unique points; extraction about" in shown


def test_a_copy_can_lack_dev_and_final(tree, tmp_path):
    for place in ("data", "purchase100"):
        shutil.copytree(tree / place, tmp_path / "data" / place)
    for scenario in ("inf", "hi", "lo"):
        for phase in ("dev", "final"):
            shutil.rmtree(tmp_path / "data" / "purchase100" / f"purchase100_{scenario}" / phase)
    option = "dataset=tiny_purchase100"
    shown = run("mico_exp", option, "metric=loss", "formula=1", "-m", *SWEPT, cwd=tmp_path)
    assert shown.stdout.count("validation TPR") == 3
    chosen = run("mico_exp.select_best", option, *OWN, cwd=tmp_path).stdout
    assert "No submission: purchase100/purchase100_inf has no dev and no final models." in chosen
    (written,) = (tmp_path / "submissions").iterdir()
    told = json.loads(written.read_text())
    assert len(told["scenarios"]) == 3
    assert "submission" not in told
    doctor = run("mico_exp.doctor", option, *OWN, cwd=tmp_path).stdout
    assert "only validation is possible" in doctor


def spoil_weights(folder):
    (folder / "model.pt").write_bytes((folder / "model.pt").read_bytes()[:5000])


def spoil_solution(folder):
    (folder / "solution.csv").write_text(",".join(["2"] * 12))


def spoil_number(folder):
    folder.rename(folder.with_name("model_abc"))


def spoil_finiteness(folder):
    state = torch.load(folder / "model.pt", weights_only=True)
    next(iter(state.values()))[0] = torch.nan
    torch.save(state, folder / "model.pt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, "model_4/model.pt: cannot be read"),
        (spoil_solution, "12 values 0 or 1"),
        (spoil_number, "model_abc: a model's folder must be named"),
        (spoil_finiteness, "compute.allow_nan=true"),
    ],
)
def test_bad_input_ends_in_one_line_before_any_work(tree, tmp_path, spoil, message):
    for place in ("data/purchase100", "purchase100/purchase100_inf"):
        shutil.copytree(tree / place, tmp_path / "data" / place)
    spoil(tmp_path / "data" / "purchase100" / "purchase100_inf" / "train" / "model_4")
    option = ["dataset=tiny_purchase100", *OWN]
    cell = ["metric=loss", "formula=1", "scenario=inf", *option]
    done = run("mico_exp", *cell, cwd=tmp_path, status=1)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "data" / "store").rglob("*.npz"))
    found = run("mico_exp.doctor", "scenarios=[inf]", *option, cwd=tmp_path, status=1)
    assert "Problem:" in found.stdout
    if spoil is spoil_finiteness:
        asked = "compute.allow_nan=true"
        assert "validation TPR" in run("mico_exp", *cell, asked, cwd=tmp_path).stdout
        shown = run("mico_exp.doctor", "scenarios=[inf]", asked, *option, cwd=tmp_path).stdout
        assert "An attack can run." in shown


def test_sizes_that_do_not_fit_the_data(user):
    cell = ["metric=loss", "formula=1", "scenario=inf", "dataset=tiny_purchase100", *OWN]
    done = run("mico_exp", *cell, "dataset.len_training=295", cwd=user, status=1)
    assert "300 records are too few" in done.stderr
    done = run("mico_exp", *cell, "dataset.len_challenge=5", cwd=user, status=1)
    assert "expected one line of 10 values 0 or 1, got 12" in done.stderr


def test_the_doctor_needs_no_records(tree, tmp_path):
    name = "purchase100/purchase100_inf"
    shutil.copytree(tree / name, tmp_path / "data" / name)
    truth = tmp_path / "data" / "truth" / name / "dev" / "model_5"
    truth.mkdir(parents=True)
    (truth / "solution.csv").write_text("1,2")
    option = ["dataset=tiny_purchase100", "scenarios=[inf]", *OWN]
    shown = run("mico_exp.doctor", *option, cwd=tmp_path, status=1).stdout
    assert "dataset_purchase is missing" in shown
    assert shown.count(" ok ") == 3
    assert "truth" in shown
