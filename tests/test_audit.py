"""The command that sets what attacks prove beside what is claimed and allowed."""

import json
import math
import shutil
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace

import pytest
from commands import TRACED, run
from conftest import SWEPT_SIZES
from jsonschema import Draft202012Validator
from mlflow import MlflowClient

from mico_exp.auditing.statement import Attack, Bounded, Claim, Estimated, Statement
from mico_exp.commands.audit import check_mechanism
from mico_exp.common.errors import InputError
from mico_exp.models.folders import RECORD
from mico_exp.runs.statements import AuditRecord
from mico_exp.training.mechanism import Mechanism

SCHEMA = json.loads((files("mico_exp") / "schemas" / "audit.schema.json").read_text())


@pytest.fixture(scope="module")
def world(swept, tmp_path_factory):
    """A sweep of a user's own, and what an audit of it prints."""
    folder = tmp_path_factory.mktemp("audited") / "user"
    shutil.copytree(swept[0], folder)
    return folder, run("mico_exp.audit", *SWEPT_SIZES, cwd=folder).stdout


def told(folder):
    found = json.loads((folder / "audits" / "digits.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(found)
    return {one["scenario"]: one for one in found["scenarios"]}


def test_claim_ceiling_and_floor_of_every_scenario(world):
    folder, shown = world
    found = told(folder)
    assert [*found] == ["digits_inf", "digits_hi", "digits_lo"]
    assert found["digits_inf"]["claimed"] is None
    assert found["digits_inf"]["ceiling"] is None
    for name, epsilon in (("digits_hi", 10), ("digits_lo", 4)):
        one = found[name]
        claim, lower = one["claimed"], one["lower"]
        assert (claim["epsilon"], claim["delta"], claim["steps"]) == (epsilon, 1e-5, 200)
        assert claim["accounted"] == pytest.approx(epsilon, abs=0.03)
        assert 1.1 * epsilon < claim["replace_one"] < 2.2 * epsilon
        assert one["ceiling"]["tpr_at_fpr_0.1"] < one["ceiling_replace_one"]["tpr_at_fpr_0.1"]
        assert (lower["models"], lower["bits"], lower["tries"]) == (5, 50, 1)
        assert 0 <= lower["right"] <= lower["guesses"] <= 50
        assert 0 <= lower["epsilon"] < claim["replace_one"]
        assert not one["contradicted"]
        assert (one["attack"]["judged_on"], one["attack"]["chosen_on"]) == (
            "dev, final",
            "validation",
        )
        assert f"{name}: {one['verdict']}" in shown
        assert one["verdict"].startswith(f"consistent with ε = {epsilon} (replace-one ")
    assert "Audit: audits/digits.json" in shown
    assert max(map(len, shown.splitlines()[:12])) <= 100


def test_it_is_logged_as_a_run(world):
    folder, _ = world
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("digits").experiment_id
    found = client.search_runs([experiment], "tags.kind = 'audit'")[0]
    told = json.loads((folder / "audits" / "digits.json").read_text(encoding="utf-8"))
    record = AuditRecord.from_run(found.data)
    assert record.contents == told["contents"]
    logged = {one["scenario"]: one for one in record.scenarios}
    for one in told["scenarios"]:
        assert logged[one["scenario"]]["lower"] == one["lower"]
        assert logged[one["scenario"]]["verdict"] == one["verdict"]


CANARIES = {  # options, bits of six or of sixty models, the methods
    "independent": (
        ["canary=mislabelled", "canary.count=30", "dataset.phases={train: 9, dev: 3, final: 3}"],
        6 * 30,
        ["one_run", "one_run_gaussian", "one_run_accountant"],
    ),
    "one_per_model": (
        [
            *("canary=gradient", "canary.one_per_model=true"),
            "dataset.phases={train: 40, dev: 30, final: 30}",
        ],
        60,
        [
            *("clopper_pearson", "gaussian", "accuracy", "accuracy_gaussian"),
            *("one_run", "one_run_gaussian", "one_run_accountant"),
        ],
    ),
}


@pytest.mark.parametrize("game", [*CANARIES])
def test_canaries_from_the_build_to_the_audit_are_bits_of_add_remove(tmp_path, game):
    options, bits, methods = CANARIES[game]
    own = ["dataset.len_training=120", *options]
    steps = ["dataset.recipe.steps=10", "dataset.recipe.batch_size=60"]
    cell = ["scenario=hi", "metric=canary_projection", "formula=none", "plots=off"]
    run("mico_exp", *cell, *own, *steps, cwd=tmp_path)
    shown = run("mico_exp.audit", "scenarios=[hi]", *own, cwd=tmp_path).stdout
    name = f"digits_{options[0].partition('=')[2]}"
    found = json.loads((tmp_path / "audits" / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator(SCHEMA).validate(found)
    (one,) = found["scenarios"]
    lower, claim = one["lower"], one["claimed"]
    assert (lower["relation"], lower["bits"], lower["method"]) == ("add_remove", bits, methods[0])
    assert [*one["methods"]] == methods
    assert 0 <= lower["epsilon"] < claim["epsilon"]
    assert not one["contradicted"]
    assert one["verdict"] in shown


UNCLIPPED = """import torch
from mico_exp.training import stacked
stacked._norms = lambda signals, deltas: torch.zeros(signals[0].shape[:2])
"""
ONE = """name: one
challenge: ${dataset.name}${canary.suffix}
epsilon: 1.0
delta: 1e-5
disclose_training: false
known_sample: null
"""


def test_a_claim_is_contradicted_where_the_builder_does_not_clip(tmp_path):
    """One of the draws of `benchmarks/audit_builder.py`; the fault lies in the user's folder."""
    (tmp_path / "sitecustomize.py").write_text(UNCLIPPED)
    option = tmp_path / "options" / "scenario" / "one.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(ONE)
    own = ["--config-dir=options", "canary=gradient", "canary.count=24", "dataset.len_training=100"]
    made = ["scenario=one", "dataset.phases={train: 10, dev: 10, final: 10}"]
    steps = [f"dataset.recipe.{key}" for key in ("steps=20", "batch_size=50", "clip_norm=0.1")]
    steps += ["dataset.recipe.optimizer.lr=5", "dataset.recipe.optimizer.momentum=0"]
    cell = ["metric=canary_projection", "formula=none", "plots=off"]
    run("mico_exp", *own, *made, *steps, *cell, cwd=tmp_path)
    shown = run("mico_exp.audit", *own, "scenarios=[one]", cwd=tmp_path).stdout
    (one,) = json.loads((tmp_path / "audits" / "digits_gradient.json").read_text())["scenarios"]
    assert one["contradicted"]
    assert f"{one['verdict']}\n" in shown
    assert one["verdict"].startswith("contradicts ε = 1 (replace-one ")
    assert one["attack"]["tpr_at_fpr_0.1"] > one["ceiling"]["tpr_at_fpr_0.1"]


def test_where_truth_is_not_known_halves_of_the_train_models_are_judged(world, tmp_path):
    folder = tmp_path / "user"
    shutil.copytree(world[0], folder)
    shutil.rmtree(folder / "data" / "truth")
    run("mico_exp.audit", *SWEPT_SIZES, "scenarios=[lo]", cwd=folder)
    (one,) = told(folder).values()
    assert one["attack"]["judged_on"] == "5 train models"
    assert "Bonferroni" in one["attack"]["chosen_on"]  # five shadows are too few to choose by
    assert (one["lower"]["models"], one["lower"]["bits"]) == (5, 50)
    assert one["lower"]["tries"] == 6 * 13


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["guesses=51", "scenarios=[inf]"], "digits_inf: `guesses` must be at most the 50 bits"),
        (["delta=0"], "`delta` must be a number in (0, 1), got 0."),
        (["confidence=95"], "`confidence` must be a number in (0.5, 1), got 95."),
        (["game=pairs"], "`game` must be null or one of paired, independent, one_per_model"),
        (["game=one_per_model", "scenarios=[inf]"], "needs models with one challenge point each"),
        (["mechanism={steps: 3}"], "`mechanism` must give noise_multiplier, sample_rate, steps"),
        (
            ["mechanism={noise_multiplier: 2, sample_rate: 0.1, steps: 200}"],
            "`mechanism` is of one scenario, and digits_hi, digits_lo claim an ε",
        ),
        (["selection.rule=one_se"], "`selection.rule` is of no use to an audit"),
        (["confidense=0.9"], "confidense"),
    ],
)
def test_bad_input_is_one_line_and_ends_with_status_2(world, typed, named):
    done = run("mico_exp.audit", *SWEPT_SIZES, *typed, cwd=world[0], status=2)
    assert named in done.stderr
    assert TRACED or "Traceback" not in done.stderr


def test_a_mechanism_that_is_not_what_a_build_tells_is_refused(tmp_path):
    built = {"noise_multiplier": 2.48, "sample_rate": 0.1, "steps": 400}
    (tmp_path / RECORD).write_text(json.dumps(built))
    setups = {"lo": SimpleNamespace(folder=tmp_path)}
    how = SimpleNamespace(challenge=SimpleNamespace(setups=setups))
    claimed = {"inf": None, "lo": Claim(4.0, 1e-5)}
    check_mechanism(how, Mechanism(2.481, 0.1, 400), claimed)
    for other in (Mechanism(2.6, 0.1, 400), Mechanism(2.48, 0.1, 401), Mechanism(2.48, 0.2, 400)):
        with pytest.raises(InputError, match=r"multiplier 2\.48, sample_rate 0\.1"):
            check_mechanism(how, other, claimed)


def test_models_that_record_another_epsilon_are_named(world, tmp_path):
    folder = tmp_path / "user"
    shutil.copytree(world[0], folder)
    place = folder / "data" / "digits" / "digits_lo" / "dev"
    (next(place.iterdir()) / "epsilon").write_text("3.9\n")
    done = run("mico_exp.audit", *SWEPT_SIZES, "scenarios=[lo]", cwd=folder, status=2)
    assert "models record ε = 3.9–" in done.stderr
    assert "but `scenario.epsilon` is 4: they must agree to 2%." in done.stderr


def statement(**changes):
    proven = Bounded("one_run", 0.31, None, "loss/1", 0.1, 100, 10, 8, 1)
    curve = Bounded("one_run_gaussian", 0.4, 0.12, "loss/1", 0.1, 100, 10, 8, 1)
    values = {
        "scenario": "digits_lo",
        "claimed": Claim(4.0, 1e-5, 3.98, 8.26, "3.9922", 2.48, 0.1, 400),
        "confidence": 0.95,
        "delta": 1e-5,
        "relation": "replace_one",
        "floor": proven,
        "methods": (proven, curve),
        "estimate": Estimated(0.2, 0.1, None),
        "ceilings": {"add_remove": {"tpr_at_fpr_0.1": 0.349}},
        "attack": Attack("loss/1", "paired", "validation", "dev, final", 2, 0.134),
        "contradicted": False,
    }
    return Statement(**values | changes)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        (
            {},
            "consistent with ε = 4 (replace-one 8.26 at the σ trained with); the attack proves "
            "ε ≥ 0.31; at FPR 0.1 it gets 0.134 of the 0.349 that add/remove allows",
        ),
        (
            {"claimed": None, "ceilings": {}},
            "no ε is claimed; the attack proves ε ≥ 0.31; at FPR 0.1 it gets 0.134",
        ),
        (
            {"claimed": Claim(0.1, 1e-5), "contradicted": True, "ceilings": {}},
            "contradicts ε = 0.1 (σ is not known); the attack proves ε ≥ 0.31; at FPR 0.1 it gets "
            "0.134",
        ),
        (
            {"claimed": Claim(4.0, 1e-5, 7.98, 15.5, None, 1.5, 0.1, 400), "ceilings": {}},
            "consistent with ε = 4 (the accountant says 8.0; replace-one 15.50 at the σ trained "
            "with); the attack proves ε ≥ 0.31; at FPR 0.1 it gets 0.134",
        ),
        (
            {"floor": Bounded("one_run", 0.0, None, "loss/1", 0.1, 100, 10, 5, 1), "ceilings": {}},
            "consistent with ε = 4 (replace-one 8.26 at the σ trained with); the attack proves no "
            "ε above 0; at FPR 0.1 it gets 0.134",
        ),
    ],
)
def test_verdict_is_one_line(changes, verdict):
    assert statement(**changes).verdict == verdict


@pytest.mark.parametrize(
    ("claim", "swapped"),
    [
        (Claim(4.0, 1e-5, 3.98, 8.26), (8.26, 1e-5)),
        (Claim(4.0, 1e-5, 7.98, 15.5), (8.0, (1 + math.exp(4)) * 1e-5)),  # of what is claimed
        (Claim(4.0, 1e-5, 2.0, 4.1), (8.0, (1 + math.exp(4)) * 1e-5)),
        (Claim(4.0, 1e-5, None, None), (8.0, (1 + math.exp(4)) * 1e-5)),
        (Claim(800.0, 1e-5), (1600.0, 1.0)),
    ],
)
def test_a_claim_of_swaps_is_that_of_the_mechanism_where_it_is_one_of_the_claim(claim, swapped):
    assert claim.of("replace_one") == pytest.approx(swapped)
    assert claim.of("add_remove") == (claim.epsilon, claim.delta)


def without_none(told):
    if not isinstance(told, dict):
        return told
    return {key: without_none(value) for key, value in told.items() if value is not None}


def test_a_record_is_read_back_as_it_was_written():
    scenarios = {
        "digits_lo": statement().told(),
        "digits_inf": statement(scenario="digits_inf", claimed=None, contradicted=True).told(),
    }
    written = AuditRecord("digits", "0.1", {"digits_lo": "a", "digits_inf": "b"}, scenarios)
    Draft202012Validator(SCHEMA).validate(written.told())
    assert AuditRecord.from_told(json.loads(written.file)) == written
    found = AuditRecord.from_run(written.to_run())
    assert found == replace(written, said=without_none(scenarios))


def test_a_record_says_nothing_where_an_audit_is_not_whole():
    told = statement().told()
    written = AuditRecord("digits", "0.1", {}, {"digits_lo": told}).to_run()
    assert [*AuditRecord.from_run(written).by_scenario()] == ["digits_lo"]
    strange = {"a/b": "x", "a/b/c": "y", "plain": "x", "d/e/f": "x", "d/e": "y"}
    foreign = replace(written, params=strange, metrics={"g": 1.0, "nan/lower": math.nan})
    assert AuditRecord.from_run(foreign).by_scenario() == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lower/epsilon", math.nan),
        ("lower/mu", None),
        ("lower/right", -1),
        ("attack/chosen_on", None),
        ("claimed/delta", None),
        ("claimed/steps", "many"),
        ("verdict", None),
    ],
)
def test_a_record_with_a_field_that_cannot_be_is_not_whole(key, value):
    written = AuditRecord("digits", "0.1", {}, {"digits_lo": statement().told()}).to_run()
    name = f"digits_lo/{key}"
    kept = {
        "params": {one: text for one, text in written.params.items() if one != name},
        "metrics": {one: number for one, number in written.metrics.items() if one != name},
    }
    if value is not None:
        kept["params" if isinstance(value, str) else "metrics"][name] = value
    assert AuditRecord.from_run(replace(written, **kept)).by_scenario() == {}
