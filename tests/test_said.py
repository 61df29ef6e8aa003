"""What was said is read back of what is there now, whole, and the newest; from a real store."""

import shutil
import time

import pytest
from test_record import LISTS, RISK

from mico_exp.commands.said import find_said
from mico_exp.runs.statements import RISK_FILE, ComparisonRecord, GateRecord, RiskRecord
from mico_exp.runs.tracking import Tracker

NOW = {"digits_inf": "i", "digits_lo": "l"}
WHOLE = {**RISK, **LISTS}
GATE = {"verdict": "Passed: this.", "passed": True, "limits": {"max_tpr": 0.1}, "rule": "max"}
PAIR = {"verdict": "Higher.", "compared": "digits/digits_inf less b/x", "rule": "max"}


@pytest.fixture
def tracker(swept, tmp_path):
    """The experiment of a sweep, in a copy of its database."""
    shutil.copy(swept[0] / "mlflow.db", tmp_path)
    return Tracker("digits", tmp_path, create=False)


def log(tracker, record, **files):
    """Log a record; the next is of a later millisecond."""
    file = {RISK_FILE: record.file} if isinstance(record, RiskRecord) else {}
    tracker.log(record.name, record.to_run(), {**file, **files})
    time.sleep(0.002)


def risk(contents, folder="audits", **changes):
    said = {name: {**WHOLE, **changes} for name in contents}
    return RiskRecord("digits", "0.1", contents, {"folder": folder, **said})


def gate(contents, **changes):
    return GateRecord("digits", "0.1", contents, {**GATE, **changes})


def compared(contents, **changes):
    return ComparisonRecord("digits", "0.1", contents, {**PAIR, **changes})


def test_nothing_was_said(tracker):
    assert find_said(tracker, "digits", NOW) == ({}, {}, [], [])


def test_of_what_was_there_before_nothing_is_told(tracker):
    log(tracker, risk({"digits_inf": "other"}))
    log(tracker, gate({"digits_inf": "i", "digits_lo": "other"}))
    log(tracker, gate({"digits_inf": "i", "digits_hi": "h"}))  # which the report is not of
    log(tracker, gate({}))
    log(tracker, compared({"digits/digits_inf": "other", "b/x": "i"}))
    log(tracker, compared({"b/x": "i"}))
    assert find_said(tracker, "digits", NOW) == ({}, {}, [], [])


def test_the_newest_risk_of_each_scenario_at_the_newest_fpr(tracker):
    log(tracker, risk(NOW, "oldest", exposed=9))
    log(tracker, risk(NOW, "old", fpr=0.01))
    log(tracker, risk({"digits_inf": "i"}, "new"))
    found = find_said(tracker, "digits", NOW).risks
    assert [*found] == ["digits_inf", "digits_lo"]
    assert {name: one["folder"] for name, one in found.items()} == {
        "digits_inf": "new",
        "digits_lo": "oldest",
    }
    (newest, *_, oldest) = tracker.finished(RiskRecord.tags_of("digits"))
    assert (found["digits_inf"]["run"], found["digits_lo"]["run"]) == (newest.id, oldest.id)


def test_a_file_that_cannot_be_read_is_left_out_with_a_warning(tracker, caplog):
    log(tracker, risk({"digits_inf": "i"}, "sound"))
    broken = risk(NOW, "broken")
    tracker.log(broken.name, broken.to_run(), {RISK_FILE: b"{"})
    time.sleep(0.002)
    tracker.log(broken.name, broken.to_run(), {})
    found = find_said(tracker, "digits", NOW).risks
    assert [one["folder"] for one in found.values()] == ["sound"]
    assert caplog.text.count("is left out, whose risk.json cannot be read") == 2


def test_a_risk_that_is_not_whole_is_passed_over(tracker):
    log(tracker, risk({"digits_inf": "i"}, "whole"))
    log(tracker, risk({"digits_inf": "i"}, "broken", top=[{"record": "first"}]))
    assert find_said(tracker, "digits", NOW).risks["digits_inf"]["folder"] == "whole"


def test_of_each_gate_and_comparison_the_newest(tracker):
    log(tracker, gate(NOW, verdict="foreign", rule={"of": "another"}))
    log(tracker, gate(dict(reversed(NOW.items())), verdict="old"))
    log(tracker, gate(NOW, verdict="older", limits={"max_tpr": 0.2, "max_epsilon": 4}))
    log(tracker, gate(NOW, verdict="other limits", limits={"max_epsilon": 4, "max_tpr": 0.2}))
    log(tracker, gate({"digits_lo": "l"}, verdict="other scenarios"))
    log(tracker, gate(NOW, verdict="new", passed=False))
    log(tracker, gate(NOW, verdict=None, limits={"max_tpr": 0.3}))
    log(tracker, gate(NOW, passed="maybe", limits={"max_tpr": 0.4}))
    here, elsewhere = {"digits/digits_inf": "i", "b/x": "whatever"}, {"digits/digits_lo": "l"}
    log(tracker, compared(here, verdict="old"))
    log(tracker, compared(elsewhere, verdict="alone", compared="digits"))
    log(tracker, compared(here, verdict="new"))
    log(tracker, compared(here, compared=None))
    said = find_said(tracker, "digits", NOW)
    assert [(one["verdict"], one["passed"]) for one in said.gates] == [
        ("new", False),
        ("other scenarios", True),
        ("other limits", True),
        ("foreign", True),
    ]
    assert [(one["verdict"], one["compared"]) for one in said.comparisons] == [
        ("new", "digits/digits_inf less b/x"),
        ("alone", "digits"),
    ]
    runs = {
        one.id
        for kind in (GateRecord, ComparisonRecord)
        for one in tracker.finished(kind.tags_of("digits"))
    }
    assert {one["run"] for one in (*said.gates, *said.comparisons)} < runs
