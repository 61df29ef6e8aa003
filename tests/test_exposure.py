"""What the attacker sees: what each exposure leaves of a model's logits, and which cells it has."""

import json
import re

import numpy as np
import pytest
import torch
from commands import run
from hydra.utils import instantiate
from mlflow import MlflowClient

from mico_exp.common.errors import InputError, MetricError
from mico_exp.common.fingerprints import definition
from mico_exp.config import choices, codes, options, variants
from mico_exp.config.cells import check_cell, sensible_cells
from mico_exp.config.metrics import all_metrics, metrics_of, pass_metrics
from mico_exp.models.architectures import Alone
from mico_exp.runs.record import CellRecord
from mico_exp.scores import exposures, metrics
from mico_exp.scores.exposures import EXPOSURES, Rounded, Top
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.perturbation import Agreement, Copies, _moved

OF_LABEL = {"correct", "agreement"}
GRADIENTS = {"grad_alignment", "grad_norm", "kfac", "kfac_high", "kfac_low", "representer"}
FLOOR = np.finfo(np.float32).tiny


def literal(name, z):
    """Log-probabilities of one point's logits, by the definition."""
    z = z.astype(np.float32)
    e = np.exp(z - z.max(), dtype=np.float32)
    p = (e / e.sum(dtype=np.float32)).astype(np.float64)
    if name == "rounded":
        return np.log([float(f"{one:.3f}") or 0.0005 for one in p])
    if name == "top5":
        order = sorted(range(len(p)), key=lambda c: (-p[c], c))
        shown, hidden = order[:5], order[5:]
        if hidden:
            share = (1 - sum(p[c] for c in shown)) / len(hidden)
            p[hidden] = min(max(share, 0), p[shown[-1]])
    if name == "label":
        p = np.eye(len(p))[z.argmax()]
    return np.log(np.maximum(p, FLOOR))


@pytest.mark.parametrize("name", ["label", "top5", "rounded", "probabilities"])
@pytest.mark.parametrize("classes", [2, 5, 12])
def test_what_is_left_of_the_logits(composed, name, classes):
    random = np.random.default_rng(0)
    scale = np.array([0.1, 3, 40])[:, None, None]  # nearly even, usual, saturated
    logits = random.normal(size=(3, 7, classes)) * scale
    exposure = instantiate(composed(f"exposure={name}").exposure.function)
    found = exposure(torch.tensor(logits, dtype=torch.float32)).numpy()
    wanted = np.array([[literal(name, z) for z in row] for row in logits])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    assert (found.argmax(-1) == logits.argmax(-1))[2].all()


def test_what_is_lost():
    """Logits stay as they are; what a service rounds to 0 and 1 ties."""
    sure = torch.tensor([[30.0, 0, 0], [200.0, 0, 0], [300.0, 0, 0]])
    label = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(exposures.logits(sure), sure)
    first, second, third = metrics.logit(exposures.probabilities(sure), label).tolist()
    assert first < second == third  # what is below the floor is gone
    assert len(set(metrics.logit(Rounded(3)(sure), label).tolist())) == 1
    assert metrics.correct(exposures.label(sure), label).tolist() == [1, 1, 1]
    even = torch.zeros(1, 8)
    assert torch.allclose(Top(3)(even), torch.tensor(1 / 8, dtype=torch.float64).log())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Rounded(0), "`exposure.function.decimals` must be a whole number from 1 to 9"),
        (lambda: Top(0), "`exposure.function.k` must be a whole number of at least 1, got 0"),
    ],
)
def test_arguments(make, told):
    with pytest.raises(InputError, match=told):
        make()


def allowed(composed, exposure):
    """Metrics that a cell may be of."""
    composed()
    jobs = [
        [f"metric={one}", "formula='1'", f"exposure={exposure}"] for one in choices.single_metrics()
    ]
    return {job[0].partition("=")[2] for job in sensible_cells(jobs, "skip")}


def test_each_exposure_lets_what_it_shows_be_computed(composed):
    assert set(options.option_names("exposure") if composed() else ()) == set(EXPOSURES)
    every = set(choices.single_metrics())
    assert allowed(composed, "weights") == every - {"kfac_disclosed"}
    of_logits = every - GRADIENTS - {"kfac_disclosed", "canary_projection"}
    for name in ("top5", "rounded", "probabilities", "logits"):
        assert allowed(composed, name) == of_logits
    assert allowed(composed, "label") == OF_LABEL


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["metric=loss", "exposure=label"], "a confidence of every class, which exposure=label"),
        (["metric=kfac", "exposure=logits"], r"the model's weights, .*\(exposure=weights\)"),
        (["metric=correct", "formula=rmia_online"], "compares probabilities"),
    ],
)
def test_cells_that_ask_for_more(composed, overrides, told):
    with pytest.raises(InputError, match=told):
        check_cell(composed(*overrides))


def test_the_usual_exposure_leaves_everything_as_it_is(composed):
    """Names, codes and the very functions, and with these the keys of the store."""
    for name in ("loss", "mod_entropy", "kfac", "kfac_disclosed", "correct"):
        cfg = composed(f"metric={name}", "scenario=ddp")
        metric = choices.choice(cfg, "metric")
        (made,) = metrics_of(metric, "ddp", True).items()
        plain = instantiate(cfg.metric.function)
        assert (metric.label, metric.changes, made[0]) == (name, [], name)
        assert definition(made[1]) == definition(plain)
        assert codes.code(metric) == variants.code(metric.function)
        assert codes.present_code("metric", name) == codes.code(metric)
    assert set(all_metrics(disclosed=False)) == set(choices.single_metrics()) - {
        "kfac_disclosed", "canary_projection", *OF_LABEL,
    }  # fmt: skip


CHANGES = ["exposure=rounded", "exposure.function.decimals=2"]


def test_another_one_is_a_change_of_the_metric(composed):
    cfg = composed("metric=loss", *CHANGES)
    metric = choices.choice(cfg, "metric")
    assert metric.label == "loss[exposure=rounded, decimals=2]"
    assert metric.changes == CHANGES
    assert CellRecord(metric_changes=json.dumps(CHANGES)).exposure == "rounded, decimals=2"
    ((name, made),) = metrics_of(metric, "inf", False).items()
    logits, labels = torch.randn(3, 4, 10), torch.arange(4)
    assert name == metric.label
    assert torch.equal(made(logits, labels), metrics.loss(Rounded(2)(logits), labels))
    others = (["metric=loss", "exposure=rounded"], ["metric=loss"], ["metric=logit", *CHANGES])
    chosen = [choices.choice(composed(*overrides), "metric") for overrides in others]
    hashes = [codes.code(one) for one in (metric, *chosen)]
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["metric=loss", *CHANGES], "loss[exposure=rounded, decimals=2]"),
        (["metric=correct", "exposure=label"], "correct[exposure=label]"),
        (["metric=all", "formula=stack", "exposure=label"], "all[exposure=label]"),
        (
            ["metric=all", "formula=stack", "metrics=[loss,logit]", "exposure=top5"],
            "all[metrics=[loss,logit], exposure=top5]",
        ),
    ],
)
def test_the_code_of_what_was_logged(composed, overrides, label):
    """A run can be compared only if its exposure still does the same."""
    metric = choices.choice(composed(*overrides), "metric")
    names = metrics_of(metric, "inf", False)
    assert metric.label == label
    found = codes.logged_code("metric", label, choices.written(metric), False)
    assert found == codes.code(metric, names)


@pytest.mark.parametrize(
    ("label", "changes", "told"),
    [
        ("loss[exposure=x]", ["exposure=x"], "there is no exposure=x here"),
        ("loss[exposure=weights]", ["exposure=weights"], "of another exposure"),
        ("loss", ["exposure.function.decimals=2"], "of another exposure"),
        ("kfac[exposure=label]", ["exposure=label"], "does not show what metric=kfac needs"),
        ("loss", ["exposure=top5", "exposure.function.decimals=2"], "a change must be"),
        ("loss", ["exposure=top5"], r"called loss, but its changes make it loss\[exposure=top5\]"),
    ],
)
def test_a_run_that_says_what_none_from_here_would(composed, label, changes, told):
    composed()
    with pytest.raises(InputError, match=told):
        codes.logged_code("metric", label, json.dumps(changes), False)


def test_one_pass_sees_a_model_through_all_exposures_of_a_sweep(composed):
    cfg = composed("metric=loss", *CHANGES, "exposures=[label,rounded,weights]")
    metric = choices.choice(cfg, "metric")
    chosen = metrics_of(metric, "inf", False)
    seen = choices.swept_exposures(cfg, metric.exposure)
    found = pass_metrics(chosen, ["loss", "correct", "kfac"], False, seen)
    assert set(found) == {
        "loss[exposure=rounded, decimals=2]", "correct[exposure=rounded, decimals=2]",
        "correct[exposure=label]", "loss", "correct", "kfac",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"`exposures` must be null or a list of .* got x"):
        choices.swept_exposures(composed("exposures=[x]"), metric.exposure)


class Network(torch.nn.Module):
    """The sign of the mean of what it is given, as two logits."""

    def forward(self, inputs):
        mean = inputs.flatten(1).mean(1)
        return torch.stack([-mean, mean], dim=1)


class Few:
    """Records of any inputs (N, …), all of class 1."""

    def __init__(self, inputs):
        self.given, self.labels = inputs, torch.ones(len(inputs), dtype=torch.int64)
        self.fingerprint = "few"

    def inputs(self, indices):
        return self.given[indices]

    def sizes(self, indices):
        return np.ones_like(indices)


def test_agreement_is_the_share_of_votes_for_the_label():
    """Against a loop over records and copies; on the boundary half of them are lost."""
    metric = Agreement(scales=[0.5, 2.0], copies=50)
    rows = torch.linspace(-1, 1, 16).expand(4, 16) + torch.tensor([[0.0], [0.1], [0.3], [3.0]])
    records, points = Few(rows), np.array([[2, 0, 3, 1]])
    copies = Copies(records, metric)
    runner = ModelRunner(Processor("cpu", batch_size=7))
    asked = copies.of(points)
    votes = runner.scores(Alone(Network()), copies, asked, {"correct": metrics.correct})["correct"]
    found = votes.reshape(4, 100).mean(1)
    wanted = []
    for record in points[0]:
        noise = np.random.default_rng((0, int(record))).standard_normal((100, 16), dtype=np.float32)
        row = rows[record].numpy()
        given = [row + noise[v] * (0.5, 2.0)[v // 50] * row.std() for v in range(100)]
        wanted.append(np.mean([one.mean() > 0 for one in given]))
    np.testing.assert_allclose(found, wanted)
    assert found[2] == 1 > found[0] > found[3] > found[1]
    assert abs(found[1] - 0.5) < 0.15


def test_images_are_moved_and_flipped():
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    moves = torch.tensor([[0, 0, 0], [1, 0, 0], [0, -2, 0], [0, 1, 1]])
    still, down, left, flipped = _moved(image.expand(4, 2, 3, 4), moves)
    plain = image[0].numpy()
    assert np.array_equal(still, plain)
    assert np.array_equal(down, np.pad(plain, ((0, 0), (1, 0), (0, 0)), "edge")[:, :3])
    assert np.array_equal(left, np.pad(plain, ((0, 0), (0, 0), (0, 2)), "edge")[..., 2:])
    moved = np.pad(plain, ((0, 0), (0, 0), (1, 0)), "edge")[..., :4]
    assert np.array_equal(flipped, moved[..., ::-1])


@pytest.mark.parametrize(
    ("inputs", "options", "told"),
    [
        ({"input_ids": torch.ones(3, 5)}, {}, "metric `a` perturbs inputs that are float32.*ids"),
        (torch.ones(3, 5, dtype=torch.int64), {}, "these are whole numbers"),
        (torch.ones(3, 5), {"shift": 1}, r"images \(P, C, H, W\) alone .*, got inputs of 1 axes"),
    ],
)
def test_what_cannot_be_perturbed(inputs, options, told):
    records = Few(torch.ones(3))
    records.inputs = lambda _: inputs
    with pytest.raises(MetricError, match=told):
        Agreement(**options).check("a", records)


@pytest.mark.parametrize(
    "wrong", [{"scales": []}, {"scales": [-1]}, {"copies": 0}, {"shift": 0.5}, {"flip": 1}]
)
def test_what_no_agreement_is(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Agreement(**wrong)


METRICS = ("agreement", "correct", "loss")
SIZES = ["dataset.len_training=120", "dataset.len_challenge=10"]
SMALL = [*SIZES, "dataset.phases={train: 10, dev: 2, final: 2}", "dataset.recipe.steps=60"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder in which a sweep over exposures ran, and what it printed."""
    folder = tmp_path_factory.mktemp("user")
    grid = ["metric=agreement,correct,loss", "formula=1", "exposure=label,rounded,weights"]
    skip = "hydra.sweeper.meaningless=skip"
    told = [*grid, "scenario=inf", *SMALL, "plots=off", skip]
    return folder, run("mico_exp", *told, "-m", cwd=folder).stdout


def test_a_sweep(swept):
    folder, shown = swept
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    found = {one.info.run_name: one.data for one in runs if one.data.tags["kind"] == "cell"}
    assert set(found) == {
        f"inf/{metric}/1"
        for metric in (
            *("correct", "correct[exposure=label]", "correct[exposure=rounded]", "agreement"),
            *("agreement[exposure=label]", "agreement[exposure=rounded]"),
            *("loss", "loss[exposure=rounded]"),
        )
    }
    for family in ("logits", "perturbations"):
        extracted = [one.metrics.get(f"extracted_models/{family}") for one in found.values()]
        assert sorted(filter(None, extracted)) == [14]  # of the first cell alone
    for metric in ("agreement", "correct"):  # which see the label alone, whatever is shown
        alike = {one.metrics["val/auc"] for name, one in found.items() if metric in name}
        assert len(alike) == 1
    assert "1 of 9 cells have no meaning, and are left out" in shown


def test_those_of_the_usual_one_are_compared_unless_told(swept):
    folder, _ = swept
    for wanted, cells in (("weights", 3), ("null", 8)):
        told = [*SIZES, "scenarios=[inf]", "selection.resamples=100"]
        if wanted != "weights":
            told.append(f"selection.exposure={wanted}")
        run("mico_exp.select_best", *told, cwd=folder)
        made = json.loads((folder / "submissions" / "selection_digits.json").read_text())
        assert len(made["scenarios"]["digits_inf"]["cells"]) == cells
    told = run("mico_exp.select_best", *told[:-1], "selection.exposure=top5", cwd=folder, status=1)
    assert "experiment=exposure exposure=top5" in told.stderr


def test_the_report_tells_what_each_gives_away(swept):
    """The best cell of each by the rule, in order of what is shown; the choice is as without."""
    folder, _ = swept
    told = [*SIZES, "scenarios=[inf]", "selection.resamples=100"]
    run("mico_exp.report", *told, cwd=folder)
    page = (folder / "reports" / "digits.html").read_text()
    section = re.search(r'<section id="exposures">.*?</section>', page, flags=re.S)[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in section.split("<tr>")[2:]]
    assert [row[1] for row in rows] == ["label", "rounded", "weights"]
    assert [row[3] for row in rows] == ["2", "3", "3"]
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    tpr = {one.info.run_name: one.data.metrics.get("val/tpr_at_fpr_0.1") for one in runs}
    for _, shown, cell, _, value, *_ in rows:
        ending = "" if shown == "weights" else f"[exposure={shown}]"
        names = [f"inf/{metric}{ending}/1" for metric in METRICS]
        assert float(value) == pytest.approx(max(tpr.get(name, 0) for name in names), abs=5e-5)
        assert float(value) == pytest.approx(tpr[f"inf/{cell}"], abs=5e-5)
    chosen = re.search(r'<table class="sortable" id="selection">.*?</table>', page, flags=re.S)[0]
    assert rows[-1][2] in chosen
    assert "exposure=" not in chosen
    assert "exposure=label -m" in page
