"""A run's record: what is written is read, what others write does no harm, keys have one home."""

import ast
import json
import math
from dataclasses import fields, replace

import pytest
from test_layers import MODULES

from mico_exp.common.identity import CellIdentity
from mico_exp.runs import record as records
from mico_exp.runs.record import CellRecord, Entries, SelectionRecord, SweepRecord
from mico_exp.runs.statements import (
    TOP_NUMBERS,
    AuditRecord,
    ComparisonRecord,
    GateRecord,
    RiskRecord,
)

IDENTITY = CellIdentity(*(f"{i}" * 8 for i in range(len(fields(CellIdentity)))))
WHOLE = CellRecord(
    challenge="digits",
    dataset="digits",
    scenario="inf",
    metric="kfac[damping=0.5]",
    formula="1",
    metric_changes='["metric.function.damping=0.5"]',
    identity=IDENTITY,
    len_training=300,
    len_challenge=50,
    seed=0,
    epsilon=4.0,
    recorded_epsilon="3.99–4.01",
    num_records=1797,
    unique_points=1768,
    models={"train": 100, "dev": 50, "final": 50},
    told={"auc": 0.61, "low": 0.58, "high": 0.64},
    members_told="yes",
    outlier_models=2,
    nan_models=1,
    parameters_seen=0.25,
    left_out="cnn.0, cnn.3",
    extracted={"logits": 200, "gradients": 150},
    extraction_seconds={"logits": 1.5, "gradients": 60.25},
    figures={"val/auc": 0.6, "val/tpr_at_fpr_0.1": 0.2, "out_fallback_rate": 0.0},
    seconds=61.5,
    code_version="0.1.0+abc",
    versions="python 3.11",
    overrides="metric=kfac metric.function.damping=0.5",
    sweep="abc",
)


def logged(entries):
    """What MLflow gives back: every param as text, every metric as a float."""
    params = {key: str(value) for key, value in entries.params.items()}
    metrics = {key: float(value) for key, value in entries.metrics.items()}
    return Entries(params, metrics, dict(entries.tags))


@pytest.mark.parametrize(
    "record",
    [
        WHOLE,
        replace(WHOLE, epsilon=None, recorded_epsilon=None, seconds=None, told={}, extracted={}),
        CellRecord(challenge="ddp", dataset="sst2", scenario="ddp", metric="loss", formula="0"),
        *(replace(WHOLE, **{f.name: f.default}) for f in fields(CellRecord) if f.default is None),
    ],
)
def test_what_is_written_is_read(record):
    assert CellRecord.from_run(logged(record.to_run())) == record


def test_the_keys_are_those_of_runs_that_were_logged_before():
    """MLflow's searches, views and scripts of users hang on them."""
    entries = WHOLE.to_run()
    assert entries.params == {
        "dataset": "digits",
        "scenario": "inf",
        "metric": "kfac[damping=0.5]",
        "formula": "1",
        "len_training": 300,
        "len_challenge": 50,
        "seed": 0,
        "epsilon": 4.0,
        "recorded_epsilon": "3.99–4.01",
        "num_records": 1797,
        "unique_points": 1768,
        "train_models": 100,
        "dev_models": 50,
        "final_models": 50,
    }
    assert entries.metrics == {
        "val/auc": 0.6,
        "val/tpr_at_fpr_0.1": 0.2,
        "out_fallback_rate": 0.0,
        "members_auc": 0.61,
        "members_low": 0.58,
        "members_high": 0.64,
        "outlier_models": 2,
        "nan_models": 1,
        "parameters_seen": 0.25,
        "extracted_models/logits": 200,
        "extracted_models/gradients": 150,
        "extraction_seconds/logits": 1.5,
        "extraction_seconds/gradients": 60.25,
        "seconds": 61.5,
    }
    assert entries.tags == {
        "kind": "cell",
        "challenge": "digits",
        "code_version": "0.1.0+abc",
        "versions": "python 3.11",
        "overrides": "metric=kfac metric.function.damping=0.5",
        "sweep": "abc",
        "metric_changes": '["metric.function.damping=0.5"]',
        "formula_changes": "[]",
        "members_told": "yes",
        "left_out": "cnn.0, cnn.3",
        **IDENTITY.tags(),
    }


@pytest.mark.parametrize(
    ("challenge", "name"), [("digits", "inf/loss/0"), ("ddp", "digits_inf/loss/0")]
)
def test_a_run_is_named_by_its_cell(challenge, name):
    record = CellRecord(challenge, "digits", "inf", "loss", "0")
    assert record.name == name
    assert (record.folder, record.cell) == ("digits_inf", "loss/0")


def test_a_run_that_somebody_else_wrote():
    """Nothing is there, or nothing as it must be: nothing is raised, and nothing believed."""
    assert CellRecord.from_run(Entries({}, {}, {})) == CellRecord()
    odd = {"epsilon": "high", "seed": "-1", "unique_points": "1e3", "train_models": "many"}
    odd |= {"len_training": "٣", "num_records": "9" * 5000}
    found = CellRecord.from_run(Entries(odd, {"seconds": math.nan, "own": 1.0}, {"kind": "x"}))
    assert math.isnan(found.epsilon)
    assert math.isnan(found.seconds)
    assert found.figures == {"own": 1.0}
    assert replace(found, epsilon=None, seconds=None, figures={}) == CellRecord()


def test_records_of_a_choice_and_of_a_sweep():
    chosen = SelectionRecord(
        *("digits", "max", "key", "0.1", {"digits_inf": "loss/0"}),
        figures={"digits_inf": {"val/auc": 0.6}},
        probability_best={"digits_inf": 0.5},
        procedure={"digits_inf": (0.2, 0.1, 0.3)},
    )
    entries = chosen.to_run()
    assert entries.params == {"challenge": "digits", "rule": "max", "digits_inf/cell": "loss/0"}
    assert entries.metrics == {
        "digits_inf/val/auc": 0.6,
        "digits_inf/probability_best": 0.5,
        "digits_inf/procedure": 0.2,
        "digits_inf/procedure_low": 0.1,
        "digits_inf/procedure_high": 0.3,
    }
    assert entries.tags["kind"] == "selection"
    assert entries.tags["choice"] == "key"
    swept = SweepRecord("digits", "abc", "0.1", {"digits_inf": 6}, {"digits_inf": 0.2}).to_run()
    assert swept.params == {"digits_inf/cells": 6}
    assert swept.metrics == {"digits_inf/tpr_at_fpr_0.1": 0.2}
    assert (swept.tags["kind"], swept.tags["sweep"]) == ("sweep", "abc")


RISK = {
    "cell": "loss/1",
    "fpr": 0.1,
    "records": 12,
    "exposed": 0,
    "unjudged": 1,
    "mean_tpr": 0.25,
    "summary": "digits_inf, loss/1: 0 of 12 records are exposed.",
}
LISTS = {
    "histogram": [3, 0, 9],
    "top": [dict.fromkeys(TOP_NUMBERS, 1)],
    "groups": {"class": [{"name": "0", "records": 12, "tpr": 0.25, "exposed": 0, "top": 1}]},
}
SAID = {
    RiskRecord: {"rule": "max", "folder": "audits", "digits_inf": RISK},
    ComparisonRecord: {
        "verdict": "TPR@0.1 of a/x is higher than that of b/x.",
        "first": {"scenario": "a/x", "cell": "loss/1"},
        "difference": {"auc": {"value": -0.125, "paired": True, "over_models": {"low": -0.5}}},
    },
    GateRecord: {
        "verdict": "Refused: one scenario, digits_inf: above max_tpr=0.1.",
        "passed": False,
        "limits": {"max_tpr": 0.1},
        "digits_inf": {"max_tpr": {"figure": 0.5, "passed": False}},
    },
}


@pytest.mark.parametrize("kind", SAID)
def test_what_is_said_is_read_back(kind):
    """Paths of two challenges too; what is None or a list is in the file alone."""
    contents = {"a/x": "1", "b/x": "2"} if kind is ComparisonRecord else {"digits_inf": "1"}
    written = kind("digits", "0.1", contents, SAID[kind])
    entries = written.to_run()
    assert entries.tags == {
        **kind.tags_of("digits"),
        "code_version": "0.1",
        **{f"content/{name}": text for name, text in contents.items()},
    }
    assert entries.tags["kind"] == kind.name
    assert kind.from_run(logged(entries)) == written
    more = replace(written, said={**SAID[kind], "none": None, "listed": [1, 2]})
    assert more.to_run() == entries
    assert kind.from_told(json.loads(more.file)) == more


def test_the_kinds_of_runs_are_told_apart():
    kinds = [kind.name for kind in (*SAID, AuditRecord)]
    assert sorted({*kinds, "cell", "selection", "sweep"}) == sorted(
        [*kinds, "cell", "selection", "sweep"]
    )


@pytest.mark.parametrize("told", [[], 5, {}, {"contents": 1}, {"contents": [1]}, None])
def test_what_no_command_has_written_is_no_record(told):
    with pytest.raises((KeyError, TypeError, ValueError)):
        RiskRecord.from_told(told)


@pytest.mark.parametrize(
    "change",
    [
        {"fpr": math.nan},
        {"exposed": "1"},
        {"summary": None},
        {"histogram": []},
        {"histogram": [1, -1]},
        {"histogram": None},
        {"top": [{}]},
        {"top": None},
        {"groups": {"class": [{"name": 3}]}},
        {"groups": {"class": None}},
        {"groups": []},
    ],
)
def test_a_risk_that_is_not_whole_is_not_told(change):
    whole = {**RISK, **LISTS}
    said = {"rule": "max", "digits_inf": whole, "digits_lo": {**whole, **change}}
    assert [*RiskRecord("digits", "0.1", {}, said).by_scenario()] == ["digits_inf"]


def keys():
    """Keys that say by their form that they are keys of runs."""
    entries = WHOLE.to_run()
    every = {*entries.params, *entries.tags, records.EXTRACTED, records.EXTRACTION_SECONDS}
    every |= {"probability_best", "outlier_models", "kind", records.CONTENT_OF}
    every -= {"precision", "known_sample", "allow_nan", "allow_outliers"}  # options, too
    every -= {"num_records", "len_training", "len_challenge"}
    plain = {"dataset", "scenario", "metric", "formula", "seed", "epsilon", "challenge", "sweep"}
    return every - plain - {"overrides", "versions", "error"}  # words for other things too


@pytest.mark.parametrize(
    "name", sorted(set(MODULES) - {"mico_exp.runs.record", "mico_exp.runs.statements"})
)
def test_no_other_module_spells_a_key(name):
    """Neither as a text, nor by reading a param or a tag by its name."""
    tree = ast.parse(MODULES[name].read_text())
    read = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("params", "tags")
    ]
    allowed = {"mico_exp.runs.tracking", "mico_exp.runs.own", "mico_exp.runs.client"}
    allowed |= {"mico_exp.config.typed", "mico_exp.config.sweep"}
    about_runs = name.split(".")[1] in ("runs", "config", "commands")
    if name not in allowed and about_runs:
        assert [one for one in read if not one.endswith("to_run().tags")] == []
    if about_runs:
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        typed = {"kind"} if name == "mico_exp.commands.new" else set()
        assert {one for one in texts if isinstance(one, str)} & keys() == typed
