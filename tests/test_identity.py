"""What scores and cells hang on: each entry is changed for real, and its consequence is seen."""

import dataclasses
import shutil

import pytest
import torch
from conftest import SIZES
from torch import nn

from mico_exp.attacks import calibration, evidence
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.records import Features, records_key
from mico_exp.challenge.tree import load_scenario
from mico_exp.common.identity import WORDS, CellIdentity, ChoiceIdentity, ScoreIdentity
from mico_exp.config import setup
from mico_exp.models.architectures import MLP, Architecture, fill
from mico_exp.models.backprop import Layer
from mico_exp.models.weights import load_state
from mico_exp.results import cell
from mico_exp.scores import addresses, inference, metrics, perturbation, vitals, white_box
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.families import WORKS
from mico_exp.scores.gradients import DisclosedKronecker
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore

METRIC = {"loss": metrics.loss}


@pytest.fixture
def job(tmp_path, built, digits):
    """Scores of the small world are in the store; gives an extraction that differs in something."""
    shutil.copytree(built, tmp_path / "data")

    def make(records=digits, network=MLP((64, 16, 10)), precision="float32"):  # noqa: B008
        scenario = load_scenario(tmp_path / "data", "digits", "digits_inf", SIZES)
        points = challenge_points(scenario)
        where = ScoreStore(tmp_path / "store"), Processor("cpu", precision)
        return Extraction(scenario, points, records, Architecture.of(network), *where)

    make().compute(METRIC)
    assert make().read("loss", metrics.loss) is not None
    return make


class Own(nn.Module):
    """An own network with the layers of an MLP, and an argument that is no layer."""

    def __init__(self, temperature=1.0):
        super().__init__()
        self.mlp, self.temperature = MLP((64, 16, 10)).mlp, temperature

    def forward(self, inputs):
        return self.mlp(inputs) / self.temperature


def louder(digits):
    return Features(digits.features * 1.01, digits.labels)


def scaled(logits, labels):
    return metrics.loss(logits * 2, labels)


def test_unchanged_scores_are_there(job):
    assert job().compute(METRIC) == []


@pytest.mark.parametrize("change", ["records", "network", "precision", "metric", "inference"])
def test_every_entry_of_a_score_makes_other_scores(job, digits, monkeypatch, change):
    before = job().read("loss", metrics.loss)
    metric = metrics.loss
    if change == "records":
        other = job(records=louder(digits))
    elif change == "network":
        other = job(network=Own(0.5))
    elif change == "precision":
        other = job(precision="bfloat16")
    else:
        other = job()
        if change == "metric":
            metric = scaled
        else:
            monkeypatch.setattr(addresses, "inference_code", lambda _: "another")
    assert other.read("loss", metric) is None
    (done,) = other.compute({"loss": metric})
    assert done.models == 17
    after = other.read("loss", metric)
    assert (abs(after.shadow - before.shadow).max() > 1e-4) == (change != "inference")
    monkeypatch.undo()
    assert job().compute(METRIC) == []  # both are there


@pytest.mark.parametrize(
    ("changed", "families"),
    [
        ((white_box.GradientRunner, "_size"), {"gradients"}),
        ((Layer, "squared_norms"), {"gradients"}),
        ((perturbation.Copies, "of"), {"perturbations"}),
        ((inference.ModelRunner, "load"), {"logits", "gradients", "perturbations"}),
    ],
)
def test_other_code_of_one_family_makes_no_other_scores_of_the_others(
    monkeypatch, changed, families
):
    before = {one: addresses.inference_code.__wrapped__(one) for one in WORKS}
    monkeypatch.setattr(*changed, lambda *_: 1)
    after = {one: addresses.inference_code.__wrapped__(one) for one in WORKS}
    assert {one for one in WORKS if before[one] != after[one]} == families


def test_other_weights_make_the_scores_of_one_model_anew(job):
    other = job()
    path = other.scenario.phases["train"][3].path / "model.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, path)
    (done,) = job().compute(METRIC)
    assert done.models == 1


def test_what_a_metric_is_told_of_a_model_is_in_the_key(tmp_path, job):
    """Another training set that is disclosed, of the same weights."""
    extraction, metric = job(), {"kfac_disclosed": DisclosedKronecker()}
    extraction.scenario.phases.pop("dev"), extraction.scenario.phases.pop("final")
    before = [task.addresses["kfac_disclosed"].key for task in extraction.addresses.tasks(metric)]
    path = extraction.scenario.phases["train"][2].path / "seed_training"
    path.write_text("77\n")
    changed = job()
    changed.scenario.phases.pop("dev"), changed.scenario.phases.pop("final")
    after = [task.addresses["kfac_disclosed"].key for task in changed.addresses.tasks(metric)]
    assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [2]


def test_an_argument_that_is_no_layer_is_another_network():
    keys = [Architecture.of(Own(temperature)).key for temperature in (1.0, 1.0, 2.0)]
    assert keys[0] == keys[1] != keys[2]


class Parts(nn.Module):
    """A network with all that can change what it gives beside its weights."""

    def __init__(self, **changed):
        super().__init__()
        told = {"slope": 0.1, "act": torch.relu, "mask": 1.0, "hook": None, "inner": 2, **changed}
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, told["inner"])
        self.act, self.table = told["act"], {"slope": told["slope"]}
        self.register_buffer("mask", torch.tensor([told["mask"]]), persistent=False)
        if told["hook"]:
            self.last.register_forward_hook(told["hook"])


def doubled(module, inputs, output):
    return output * 2


def own_act(x):
    return x.clamp(min=0)


@pytest.mark.parametrize(
    "change",
    [
        {"slope": 0.2},
        {"act": torch.tanh},
        {"act": own_act},
        {"mask": 2.0},
        {"hook": doubled},
        {"inner": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_not_saved_with_the_weights_is_part_of_a_network(change):
    torch.manual_seed(0)
    plain = Architecture.of(Parts()).key
    torch.manual_seed(1)  # weights that are drawn are not part of it
    assert Architecture.of(Parts()).key == plain
    assert Architecture.of(Parts(**change)).key != plain


def test_a_networks_key_does_not_change_by_use(built):
    network = MLP((64, 16, 10))
    before = Architecture.of(network).key
    folder = built / "digits" / "digits_inf" / "train" / "model_0"
    fill(network, load_state(folder / "model.pt", network))
    network(torch.zeros(2, 64))
    assert Architecture.of(network).key == before


def entries(kind):
    return [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("entry", entries(ScoreIdentity))
def test_every_entry_of_a_score_is_in_its_key(entry):
    plain = ScoreIdentity(**dict.fromkeys(entries(ScoreIdentity), "a"))
    assert dataclasses.replace(plain, **{entry: "b"}).key != plain.key


@pytest.mark.parametrize("entry", entries(CellIdentity))
def test_every_entry_of_a_cell_is_a_tag_and_has_words(entry):
    plain = CellIdentity(**dict.fromkeys(entries(CellIdentity), "a"))
    assert CellIdentity.of_tags({**plain.tags(), "kind": "cell"}) == plain
    assert plain.differences(plain) == []
    tags = {**plain.tags(), entry: "b"}
    (words,) = plain.differences(CellIdentity.of_tags(tags))
    assert words == WORDS[entry].format(there="b", here="a")
    del tags[entry]  # as an older version logged it
    assert len(plain.differences(CellIdentity.of_tags(tags))) == 1


CHOICE = ChoiceIdentity({"inf": {"loss/1": "a"}}, "max", ("loss",), ("1",), 1000, 500, 0, 95, "c")


@pytest.mark.parametrize(
    "change",
    [
        {"cells": {"inf": {"loss/1": "b"}}},
        {"cells": {"inf": {"loss/1": "a", "loss/2": "a"}}},
        {"rule": "one_se"},
        {"simple_metrics": ("confidence",)},
        {"simple_formulas": ()},
        {"resamples": 999},
        {"halvings": 499},
        {"seed": 1},
        {"level": 90},
        {"code": "d"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_entry_of_a_choice_is_in_its_key(change):
    assert dataclasses.replace(CHOICE, **change).key != CHOICE.key
    assert dataclasses.replace(CHOICE).key == CHOICE.key


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (calibration, "scale"),
        (calibration, "FEWEST_OUT"),
        (evidence, "calibrate"),
        (evidence.Evidence, "calibrated"),
        (setup, "challenge_points"),
        (vitals.Vitals, "outliers"),
        (cell, "operating_points"),
    ],
)
def test_the_code_from_scores_to_figures_is_part_of_a_cell(monkeypatch, owner, name):
    before = setup.package_code.__wrapped__()
    value = getattr(owner, name)
    changed = value + 1 if isinstance(value, int) else lambda *arguments: arguments
    monkeypatch.setattr(owner, name, changed)
    assert setup.package_code.__wrapped__() != before


def test_the_code_that_gives_inputs_is_part_of_the_records(digits):
    class Doubled(Features):
        def inputs(self, indices):
            return super().inputs(indices) * 2

    other = Doubled(digits.features, digits.labels)
    assert other.fingerprint == digits.fingerprint
    assert records_key(other) != records_key(digits)
    assert records_key(Features(digits.features, digits.labels)) == records_key(digits)
