"""Risk, comparison and gate as a user types them, after a small sweep that they only read."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import run
from conftest import SWEPT_SIZES
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import load_scenario
from mico_exp.commands import compare as comparing
from mico_exp.commands import gate
from mico_exp.common.errors import InputError
from mico_exp.config import compose as made
from mico_exp.config.typed import OPTIONS

INF = [*SWEPT_SIZES, "scenarios=[inf]", "selection.resamples=100"]


def test_risk_of_every_challenge_record(swept, tmp_path):
    known = tmp_path / "known.csv"
    known.write_text("record,ward\n" + "".join(f"{i},{'AB'[i % 2]}\n" for i in range(0, 1797, 3)))
    typed = (*INF, f"audits={tmp_path}", f"metadata={known}", "cell=loss/1", "top=3")
    shown = run("mico_exp.risk", *typed, cwd=swept[0]).stdout
    with (tmp_path / "digits_risk.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == "scenario,record,in_mean,out_mean,tpr,rank,low,high"
    size = Sizes(1797, 120, 10)
    points = challenge_points(load_scenario(swept[0] / "data", "digits", "digits_inf", size))
    both = points.is_member.any(axis=0) & ~points.is_member.all(axis=0)
    assert sorted(int(row["record"]) for row in rows) == points.unique[both].tolist()
    ranks = [int(row["rank"]) for row in rows]
    assert ranks == sorted(ranks)
    assert all(int(row["low"]) <= int(row["rank"]) <= int(row["high"]) for row in rows)
    assert f"0 of {len(rows)} records are exposed, each judged by all train models (10)" in shown
    assert f"{len(points.unique) - len(rows)} others lack models" in shown
    page = (tmp_path / "digits_risk.html").read_text()
    assert "by ward" in page
    assert rows[0]["record"] in shown


@pytest.mark.parametrize(
    ("typed", "status", "words"),
    [
        (["max_tpr=0.999"], 0, "Passed: one scenario, digits_inf (confidence/"),
        (["max_tpr=0.01"], 1, "dev and final, 5 models"),
        (["max_trp=0.5"], 2, "max_trp"),
    ],
)
def test_the_gate(swept, tmp_path, typed, status, words):
    done = run("mico_exp.gate", *INF, f"audits={tmp_path}", *typed, cwd=swept[0], status=status)
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == (status < 2)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["digits/digits_inf", "digits/lo"], "TPR@0.1 of digits/digits_inf"),
        (["digits"], "digits_frontier.png"),
    ],
)
def test_comparing(swept, tmp_path, typed, words):
    given = [*SWEPT_SIZES, "selection.resamples=100", f"audits={tmp_path}"]
    assert words in run("mico_exp.compare", *typed, *given, cwd=swept[0]).stdout


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What a command works with, by what is typed, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def ask(name, *typed):
        with initialize_config_dir(str(OPTIONS), version_base="1.3"):
            cfg = compose(name, overrides=list(typed), return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            return {"gate": made.gating, "compare": made.comparing, "risk": made.risking}[name](cfg)

    return ask


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["gate"], "A gate needs a limit"),
        (["gate", "max_tpr=1.5"], r"`max_tpr` must be a number in \[0, 1\], got 1.5."),
        (["gate", "max_epsilon=-1"], "`max_epsilon` must be"),
        (["gate", "max_tpr=0.5", "cell=loss"], "`cell` must be null or a metric and a formula"),
        (["compare"], "compare needs two scenarios, each as challenge/scenario, or one challenge"),
        (["compare", "first=digits/inf"], "compare needs two scenarios"),
        (["compare", "first=digits", "second=digits"], "compare needs two scenarios"),
        (["compare", "first=digits/inf", "second=digits/absent"], "no such scenario, only digits_"),
        (["risk", "fpr=1"], "`fpr` must be"),
        (["risk", "metadata=absent.csv"], "absent.csv is missing"),
    ],
)
def test_what_cannot_be_asked(asked, typed, words):
    with pytest.raises(InputError, match=words):
        asked(*typed)


def test_scenarios_are_named_by_challenge_and_folder_or_option(asked):
    sides = asked("compare", "first=digits/hi", "second=ddp/sst2_ddp")
    assert [list(one.challenge.setups) for one in sides] == [["digits_hi"], ["sst2_ddp"]]
    assert [one.challenge.name for one in sides] == ["digits", "ddp"]
    (mine,) = asked("compare", "first=mine", "dataset=purchase_like")
    assert [one.path for one in mine.challenge.setups.values()] == [
        f"mine/purchase_like_{name}" for name in ("inf", "hi", "lo")
    ]


def test_scenarios_of_other_records_have_no_difference():
    first, second = (
        SimpleNamespace(setup=SimpleNamespace(path=path, records=SimpleNamespace(labels=labels)))
        for path, labels in (("a/x", torch.zeros(3)), ("b/y", torch.ones(3)))
    )
    with pytest.raises(InputError, match="a/x and b/y are of different records"):
        comparing.check_comparable(first, second)
    comparing.check_comparable(first, first)


def audited(asked, content, most):
    """A gate of ε by what an audit's file says."""
    Path("audits").mkdir()
    Path("audits/digits.json").write_text(content)
    return asked("gate", "scenarios=[inf]", f"max_epsilon={most}")


LOWER = {
    "scenario": "digits_inf",
    "claimed": {"epsilon": 4.0, "replace_one": 8.26},
    "lower": {"epsilon": 0.31, "relation": "replace_one", "method": "one_run", "confidence": 0.95},
    "attack": {"cell": "loss/1"},
}


def bounded(epsilon):
    told = LOWER | {"lower": LOWER["lower"] | {"epsilon": epsilon}}
    return json.dumps({"contents": {"digits_inf": "this"}, "scenarios": [told]})


@pytest.mark.parametrize(
    ("most", "passes", "excess"), [(4, True, 0.0775), (0.3, False, 1.0333), (0, False, np.inf)]
)
def test_a_proven_bound_is_held_against_the_limit(asked, most, passes, excess):
    told = {"contents": {"digits_inf": "this"}, "scenarios": [LOWER]}
    how = audited(asked, json.dumps(told), most)
    found = gate.on_epsilon("digits_inf", "this", gate.read_audit(how), how)
    assert found.passes == passes
    assert found.excess == pytest.approx(excess, rel=1e-3)
    assert found.told.startswith(
        "digits_inf: the attack proves ε ≥ 0.31 of replace-one (one_run, loss/1, confidence 0.95; "
        "claimed: 4, replace-one 8.26), "
    )


def test_an_audit_by_other_code_is_warned_of(asked, caplog):
    told = {"contents": {"digits_inf": "this"}, "scenarios": [LOWER], "code_version": "0.0.1"}
    gate.read_audit(audited(asked, json.dumps(told), 4))
    assert "is of code version 0.0.1, not" in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is no audit"),
        ('{"contents": {"digits_inf": "other"}, "scenarios": []}', "with other models"),
        ('{"contents": {"digits_inf": "this"}, "scenarios": []}', "is no audit of digits_inf"),
        ('{"contents": {"digits_inf": "this"}, "scenarios": [{"a": 1}]}', "is no audit of"),
        (bounded(float("nan")), "is no audit of"),
        (bounded(float("inf")), "is no audit of"),
        (bounded(-1), "is no audit of"),
    ],
)
def test_an_audit_that_says_nothing_is_an_error(asked, content, words):
    how = audited(asked, content, 4)
    with pytest.raises(InputError, match=words):
        gate.on_epsilon("digits_inf", "this", gate.read_audit(how), how)
