"""Risk, comparison and gate as a user types them after a small sweep, and the runs they log."""

import csv
import json
import shutil
from importlib.resources import files as inside
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import TRACED, run
from conftest import SWEPT, SWEPT_SIZES
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from jsonschema import Draft202012Validator
from mlflow import MlflowClient

from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import load_scenario
from mico_exp.commands import compare as comparing
from mico_exp.commands import gate
from mico_exp.common.errors import InputError
from mico_exp.config import statements
from mico_exp.config.typed import OPTIONS
from mico_exp.runs.statements import (
    COMPARISON_FILE,
    COMPARISON_TABLE,
    GATE_FILE,
    RISK_FILE,
    ComparisonRecord,
    GateRecord,
    RiskRecord,
)

MORE = ["selection.resamples=100"]
INF = [*SWEPT_SIZES, "scenarios=[inf]", *MORE]


@pytest.fixture(scope="module")
def world(swept, tmp_path_factory):
    """A user's folder after each command, and what they printed."""
    folder = tmp_path_factory.mktemp("said") / "user"
    shutil.copytree(swept[0], folder)
    known = folder / "known.csv"
    known.write_text("record,ward\n" + "".join(f"{i},{'AB'[i % 2]}\n" for i in range(0, 1797, 3)))
    pair = ("digits/digits_inf", "digits/lo")
    typed = {
        "risk": ("mico_exp.risk", *INF, "metadata=known.csv", "cell=loss/1", "top=3"),
        "pair": ("mico_exp.compare", *pair, *SWEPT_SIZES, *MORE),
        "alone": ("mico_exp.compare", "digits", *SWEPT_SIZES, *MORE),
        "passed": ("mico_exp.gate", *INF, "max_tpr=0.999"),
        "refused": ("mico_exp.gate", *INF, "max_tpr=0.01"),
        "mistyped": ("mico_exp.gate", *INF, "max_trp=0.5"),
    }
    ends = {"refused": 1, "mistyped": 2}
    shown = {k: run(*one, cwd=folder, status=ends.get(k, 0)) for k, one in typed.items()}
    return folder, shown


def logged(folder, kind, challenge="digits"):
    """Runs of a kind, the newest first: what they say, and their files by name."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(challenge).experiment_id
    tags = kind.tags_of(challenge)
    told = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
    for one in client.search_runs([experiment], told):
        assert (one.info.status, one.info.run_name) == ("FINISHED", kind.name)
        place = folder / "mlruns" / challenge / one.info.run_id / "artifacts"
        yield kind.from_run(one.data), {path.name: path for path in place.iterdir()}


FILES = {  # schema → the file by it, of the last command that wrote there
    "risk": "digits_risk",
    "gate": "digits_gate",
    "comparison": "digits_digits_inf_digits_digits_lo_compare",
    "comparison alone": "digits_compare",
}


def schema(name):
    return json.loads((inside("mico_exp") / "schemas" / f"{name}.json").read_text())


@pytest.mark.parametrize("which", FILES)
def test_files_for_programs_are_by_their_schemas(world, which):
    """And what the run has, to the last byte; what lacks a key or has a wrong value is refused."""
    text = (world[0] / "audits" / f"{FILES[which]}.json").read_bytes()
    of_kind = {"risk": RiskRecord, "gate": GateRecord}.get(which, ComparisonRecord)
    logs = [some for _, some in logged(world[0], of_kind)]
    assert text in [p.read_bytes() for some in logs for n, p in some.items() if ".json" in n]
    wanted = schema(f"{which.split()[0]}.schema")
    Draft202012Validator.check_schema(wanted)
    told, check = json.loads(text), Draft202012Validator(wanted)
    check.validate(told)
    assert not check.is_valid(told | {"more": 1})
    scenarios = {name.split("/")[-1] for name in told["contents"]}
    for way in ways(told):
        assert not check.is_valid(changed(told, way, [None])), way
        one_of_several = way in {(name,) for name in scenarios} and len(scenarios) > 1
        if not one_of_several and not {"contents", "groups"} & {*way[:-1]}:
            assert not check.is_valid(changed(told, way)), way


def ways(told):
    """Ways to all values in nested mappings."""
    for key, value in told.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in ways(value))


def changed(told, way, *value):
    """The same with another value at the end of a way, or with none."""
    first, *rest = way
    if rest:
        return told | {first: changed(told[first], rest, *value)}
    others = {key: one for key, one in told.items() if key != first}
    return others | ({first: value[0]} if value else {})


CAST = {"string": str, "integer": int, "number": float}


def follows(wanted, names, rows):
    """Tell whether a table is of Frictionless's Table Schema, as far as ours has any of it."""
    fields = wanted["fields"]
    if names != [field["name"] for field in fields]:
        return False
    key = [names.index(name) for name in wanted["primaryKey"]]
    if len({tuple(row[place] for place in key) for row in rows}) < len(rows):
        return False
    for row in rows:
        for field, text in zip(fields, row, strict=True):
            limits = field["constraints"]
            try:
                value = CAST[field["type"]](text)
            except ValueError:
                return False
            if limits["required"] and not text:
                return False
            if not isinstance(value, str) and not (
                limits.get("minimum", -1e300) <= value <= limits.get("maximum", 1e300)
            ):
                return False
    return True


def test_the_risks_table_is_by_its_schema(world):
    wanted = schema("risk.tableschema")
    with (world[0] / "audits" / "digits_risk.csv").open(newline="") as file:
        names, *rows = csv.reader(file)
    assert follows(wanted, names, rows)
    for column, wrong in {"scenario": "", "tpr": "1.2", "rank": "0", "in_mean": "nan"}.items():
        first = [wrong if name == column else one for name, one in zip(names, rows[0], strict=True)]
        assert not follows(wanted, names, [first, *rows[1:]]), column
    assert not follows(wanted, names, [*rows, rows[0]])
    assert not follows(wanted, names[::-1], [row[::-1] for row in rows])


def kept(told):
    """Of what a file says, what a run has as well."""
    if not isinstance(told, dict):
        return told
    pairs = ((key, kept(value)) for key, value in told.items() if not isinstance(value, list))
    return {key: value for key, value in pairs if value not in (None, {})}


def test_risk_of_every_challenge_record(world):
    folder, shown = world[0], world[1]["risk"].stdout
    with (folder / "audits" / "digits_risk.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == "scenario,record,in_mean,out_mean,tpr,rank,low,high"
    size = Sizes(1797, 120, 10)
    points = challenge_points(load_scenario(folder / "data", "digits", "digits_inf", size))
    both = points.is_member.any(axis=0) & ~points.is_member.all(axis=0)
    assert sorted(int(row["record"]) for row in rows) == points.unique[both].tolist()
    ranks = [int(row["rank"]) for row in rows]
    assert ranks == sorted(ranks)
    assert all(int(row["low"]) <= int(row["rank"]) <= int(row["high"]) for row in rows)
    assert f"0 of {len(rows)} records are exposed, each judged by all train models (10)" in shown
    assert f"{len(points.unique) - len(rows)} others lack models" in shown
    page = (folder / "audits" / "digits_risk.html").read_text()
    assert "by ward" in page
    assert rows[0]["record"] in shown


def test_risk_is_logged_with_its_files(world):
    ((record, files),) = logged(world[0], RiskRecord)
    for name in ("digits_risk.csv", "digits_risk.html"):
        assert files.pop(name).read_bytes() == (world[0] / "audits" / name).read_bytes()
    assert [*files] == [RISK_FILE]
    told = RiskRecord.from_told(json.loads(files[RISK_FILE].read_text()))
    assert kept(told.said) == record.said
    assert told.contents == record.contents
    with (world[0] / "audits" / "digits_risk.csv").open() as file:
        rows = list(csv.DictReader(file))
    (one,) = told.by_scenario().values()
    assert one["scenario"] == "digits_inf"
    tprs = [float(row["tpr"]) for row in rows]
    assert one["mean_tpr"] == pytest.approx(np.mean(tprs), abs=1e-5)
    assert one["histogram"] == [
        sum(a <= tpr < a + 0.04 - 1e-9 or (tpr == 1 and a > 0.95) for tpr in tprs)
        for a in np.arange(25) / 25
    ]
    assert [str(row["record"]) for row in one["top"]] == [row["record"] for row in rows[:3]]
    assert [*one["groups"]] == ["class", "ward"]
    for groups in one["groups"].values():
        assert sum(group["records"] for group in groups) == len(rows)


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("passed", "Passed: one scenario, digits_inf (confidence/"),
        ("refused", "dev and final, 5 models"),
        ("mistyped", "max_trp"),
    ],
)
def test_the_gate(world, which, words):
    done = world[1][which]
    assert words in done.stdout + done.stderr
    assert TRACED or "Traceback" not in done.stderr
    assert done.stdout.count("\n") == (which != "mistyped")


def test_a_gate_is_logged_whether_it_lets_pass_or_not(world):
    found = list(logged(world[0], GateRecord))
    for (record, files), which, most in zip(
        found, ("refused", "passed"), (0.01, 0.999), strict=True
    ):
        assert f"{record.said['verdict']}\n" == world[1][which].stdout
        assert record.said["passed"] == (which == "passed")
        assert record.said["limits"] == {"max_tpr": most}
        held = record.said["digits_inf"]["max_tpr"]
        assert f"at most {held['figure']:.4f} (one-sided 95 %)" in held["verdict"]
        assert [*files] == [GATE_FILE]
        told = GateRecord.from_told(json.loads(files[GATE_FILE].read_text()))
        assert kept(told.said) == record.said
        assert [*record.contents] == ["digits_inf"]


@pytest.mark.parametrize(
    ("which", "words"),
    [("pair", "TPR@0.1 of digits/digits_inf"), ("alone", "digits_frontier.png")],
)
def test_comparing(world, which, words):
    assert words in world[1][which].stdout


def test_comparisons_are_logged(world):
    (alone, drawn), (pair, files) = logged(world[0], ComparisonRecord)
    assert {*files} == {COMPARISON_FILE, COMPARISON_TABLE}
    assert {*drawn} == {*files, "digits_frontier.png"}
    plot = world[0] / "audits" / "digits_frontier.png"
    assert drawn["digits_frontier.png"].read_bytes() == plot.read_bytes()
    for record, some in ((alone, drawn), (pair, files)):
        told = ComparisonRecord.from_told(json.loads(some[COMPARISON_FILE].read_text()))
        assert kept(told.said) == record.said
    assert [*pair.contents] == ["digits/digits_inf", "digits/digits_lo"]
    assert sorted(alone.contents) == ["digits/digits_hi", "digits/digits_inf", "digits/digits_lo"]
    table = files[COMPARISON_TABLE].read_text()
    assert table.strip() in world[1]["pair"].stdout
    apart = pair.said["difference"]["tpr_at_fpr_0.1"]
    assert f"{apart['value']:+.4f}" in table
    line, written = world[1]["pair"].stdout.splitlines()[-2:]
    assert pair.said["verdict"].startswith(line)
    assert written == "Comparison: audits/digits_digits_inf_digits_digits_lo_compare.json"
    shown = alone.said["digits_lo"]
    assert f"digits_lo: TPR@0.1 {shown['tpr_at_fpr_0.1']:.4f} at accuracy" in alone.said["verdict"]


def test_a_choice_takes_none_of_them_for_a_cell(world, tmp_path):
    """The same choice to the last byte, and nothing is said to be left out."""
    name = "selection_digits.json"
    before = (world[0] / "submissions" / name).read_bytes()
    done = run("mico_exp.select_best", *SWEPT_SIZES, f"submissions={tmp_path}", cwd=world[0])
    assert (tmp_path / name).read_bytes() == before
    assert "left out" not in done.stdout + done.stderr


def test_a_comparison_of_two_challenges_is_logged_with_both(world, tmp_path):
    folder = tmp_path / "user"
    shutil.copytree(world[0], folder)
    for place in (folder / "data", folder / "data" / "truth"):
        shutil.copytree(place / "digits", place / "other")
    cell = ("metric=loss", "formula=1", "scenario=inf", "plots=off")
    run("mico_exp", *cell, *SWEPT, "scenario.challenge=other", cwd=folder)
    typed = ("digits/inf", "other/inf", "cell=loss/1", *SWEPT_SIZES, *MORE)
    shown = run("mico_exp.compare", *typed, cwd=folder).stdout
    assert "TPR@0.1 of digits/digits_inf cannot be told from that of other/digits_inf." in shown
    mine, theirs = (next(logged(folder, ComparisonRecord, of))[0] for of in ("digits", "other"))
    assert mine.said == theirs.said
    assert [*mine.contents] == ["digits/digits_inf", "other/digits_inf"]
    assert mine.said["difference"]["auc"]["paired"]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What a command works with, by what is typed, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def ask(name, *typed):
        with initialize_config_dir(str(OPTIONS), version_base="1.3"):
            cfg = compose(name, overrides=list(typed), return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            return {
                "gate": statements.gating,
                "compare": statements.comparing,
                "risk": statements.risking,
            }[name](cfg)

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
