"""What one command tells to type next: pasted, it is about the same models, by the same options."""

import re
import shlex
import shutil

import pytest
import yaml
from commands import run
from conftest import SWEPT, SWEPT_SIZES

from mico_exp.config import advice

CANARIES = ["canary=noise", "canary.count=3", "canary.one_per_model=true"]
SHARED = ["challenge=mine", *CANARIES, "dataset.len_training=60", "paths.data=my data"]


@pytest.fixture
def typing(tmp_path):
    """Type a command beside a folder of options; gives the commands that it tells."""
    options = tmp_path / "my options" / "scenario"
    options.mkdir(parents=True)
    (options / "own.yaml").write_text(
        "name: own\nchallenge: ${dataset.name}${canary.suffix}\nepsilon: 3.0\ndelta: 1e-5\n"
        "disclose_training: false\nknown_sample: null\n"
    )

    def ask(*typed, status=1):
        done = run(*typed, "--config-dir=my options", cwd=tmp_path, status=status)
        found = re.findall(r"python -m [^`\n]*", done.stdout + done.stderr)
        return [shlex.split(one)[2:] for one in found]

    ask.folder = tmp_path
    return ask


def composed(folder, words):
    """Options that a pasted command works with; of a sweep, those of its first cell."""
    first = {"metric=loss,confidence": "metric=loss", "formula=0,1,2": "formula=0"}
    words = [first.get(word, word) for word in words if word != "-m"]
    return yaml.safe_load(run(*words, "--cfg=job", "--resolve", cwd=folder).stdout)


def check(found):
    """It is about what was typed."""
    assert found["challenge"] == "mine"
    assert (found["canary"]["name"], found["canary"]["count"]) == ("noise", 3)
    assert found["canary"]["one_per_model"] is True
    assert (found["dataset"]["len_training"], found["paths"]["data"]) == (60, "my data")


def test_a_choice_tells_the_sweep(typing):
    more = ["known_sample={members: 3, nonmembers: 2}", "compute.allow_nan=true"]
    (words,) = typing("mico_exp.select_best", "scenarios=[own]", *SHARED, *more)
    assert words[:2] == ["mico_exp", f"--config-dir={typing.folder / 'my options'}"]
    found = composed(typing.folder, words)
    check(found)
    assert found["scenario"]["name"] == "own"
    assert found["scenario"]["known_sample"] == {"members": 3, "nonmembers": 2}
    assert found["compute"]["allow_nan"] is True


def test_a_gate_tells_the_audit_and_that_the_sweep(typing):
    own = ["max_epsilon=4", "max_tpr=0.2", "cell=loss/1", "selection.rule=one_se"]
    more = ["scenarios=[own]", "audits=my audits", "selection.exposure=logits"]
    (words,) = typing("mico_exp.gate", "dataset=digits", *SHARED, *more, *own, status=2)
    assert words[:2] == ["mico_exp.audit", f"--config-dir={typing.folder / 'my options'}"]
    found = composed(typing.folder, words)
    check(found)
    assert (found["scenarios"], found["audits"]) == (["own"], "my audits")
    assert found["selection"]["exposure"] == "logits"
    (again,) = typing(*[word for word in words if not word.startswith("--")], status=2)
    assert again[0] == "mico_exp"
    assert {"dataset=digits", "scenario=own", "exposure=logits"} <= set(again)


def test_the_doctor_tells_the_build(typing):
    sizes = "dataset.phases={train: 2, dev: 1, final: 1}"
    (words,) = typing("mico_exp.doctor", "scenarios=[own]", *SHARED, sizes)
    found = composed(typing.folder, words)
    check(found)
    assert (words[0], found["scenario"]["name"]) == ("mico_exp.build", "own")
    assert found["dataset"]["phases"] == {"train": 2, "dev": 1, "final": 1}


def test_a_cell_tells_the_build_of_what_no_other_command_builds(typing):
    cell = ["scenario=own", "metric=loss", "formula=0", "seed=3"]
    fetch, words = typing("mico_exp", *cell, *SHARED, "+dataset.recipe.unasked=false")
    assert fetch == ["mico_exp.download", "dataset=mine", "paths.data=my data"]
    found = composed(typing.folder, words)
    check(found)
    assert (words[0], found["scenario"]["name"], found["seed"]) == ("mico_exp.build", "own", 3)


def test_where_there_is_nothing_to_compare_with_reference_models_are_told_of(typing):
    small = ["challenge=mine", *SWEPT_SIZES]
    run("mico_exp.build", "challenge=mine", *SWEPT, "scenario=inf", cwd=typing.folder)
    shutil.rmtree(typing.folder / "data" / "mine" / "digits_inf" / "train")
    (words,) = typing("mico_exp.select_best", "scenarios=[inf]", *small)
    found = composed(typing.folder, words)
    assert (words[0], found["dataset"]["len_training"]) == ("mico_exp.shadow", 120)
    assert (found["challenge"], found["scenario"]["name"]) == ("mine", "inf")


def test_of_a_run_all_is_repeated_that_sets_its_figures():
    kept = [*CANARIES, "scenario.challenge=mine", "dataset.len_training=60", "compute=mine"]
    told = shlex.join(["paths.data=my data", "plots=off", *kept, "compute.device=cpu"])
    assert advice.logged(told) == kept
