import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import TRACED, run
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from mico_exp.cli import _can_set_mode
from mico_exp.common.errors import InputError
from mico_exp.config.typed import OPTIONS, check_choice, name_challenge, quote_choices
from mico_exp.runs.tracking import Tracker

GROUPS = {"dataset", "scenario", "metric", "formula", "compute"}


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("formula=0", "formula='0'"),
        ("formula=0,1,2", "formula='0','1','2'"),
        ("formula=0,none,2", "formula='0',none,'2'"),
        ("formula=choice(0,1)", "formula='0','1'"),
        ("formula=range(0,3)", "formula='0','1','2'"),
        ("scenario=inf", "scenario='inf'"),
        ("scenario=inf,hi,lo", "scenario='inf',hi,lo"),
        ("scenario='inf',hi", "scenario='inf',hi"),
        ("+formula=2", "+formula='2'"),
        ("metric=loss,confidence", "metric=loss,confidence"),
        ("formula=glob(*)", "formula=glob(*)"),
        ("seed=0,1", "seed=0,1"),
        ("dataset.len_training=200", "dataset.len_training=200"),
        ("-m", "-m"),
        ("--config-dir=x", "--config-dir=x"),
        ("formula=[", "formula=["),
        ("~formula", "~formula"),
        ("paths.data=/tmp/a b", "paths.data=/tmp/a b"),
    ],
)
def test_numbers_that_are_names_are_quoted(typed, given):
    assert quote_choices(typed, GROUPS) == given


@pytest.mark.parametrize("typed", ["formula=0", "formula=1", "scenario=inf", "formula=2"])
def test_hydra_takes_what_was_quoted(typed):
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        cfg = compose("config", overrides=[quote_choices(typed, GROUPS)])
    group, name = typed.split("=")
    assert cfg[group].name == name


def test_a_sweep_stays_a_sweep():
    parsed = OverridesParser.create().parse_override(quote_choices("formula=0,1,2", GROUPS))
    assert parsed.is_sweep_override()
    assert list(parsed.sweep_string_iterator()) == ["'0'", "'1'", "'2'"]


@pytest.mark.skipif(TRACED, reason="Hydra leaves its own words out where code is traced")
def test_a_wrong_option_lists_those_there_are(tmp_path):
    done = run("mico_exp", "metric=los", cwd=tmp_path, status=1)
    assert "Could not find 'metric/los'" in done.stderr
    assert "confidence" in done.stderr
    assert "mod_entropy" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_key(tmp_path):
    done = run("mico_exp", "metrc=loss", cwd=tmp_path, status=1)
    assert "metrc" in done.stderr
    assert TRACED or "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["mico_exp", "mico_exp.build", "mico_exp.select_best"])
def test_help_shows_the_options_and_imports_nothing_heavy(tmp_path, command):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{command}', '--help']\n"
        f"runpy.run_module('{command}', run_name='__main__', alter_sys=True)\n"
        "assert not {'torch', 'mlflow', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        "metric: agreement, all, canary_projection, confidence, correct, entropy, grad_alignment"
        in done.stdout
    )
    assert f"python -m {command}" in done.stdout


def test_a_run_and_a_choice_import_nothing_slow_that_they_do_without(tmp_path):
    with Tracker("digits", tmp_path).run("first", {"kind": "cell"}):
        pass
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import mico_exp.commands.attack, mico_exp.commands.select_best\n"
        "from mico_exp.runs.tracking import Tracker\n"
        "tracker = Tracker('digits', Path.cwd())\n"
        "with tracker.run('second', {'kind': 'cell'}) as run:\n"
        "    run.metrics['value'] = 1.0\n"
        "assert len(tracker.finished({'kind': 'cell'})) == 2\n"
        "slow = {'mlflow', 'sklearn', 'pandas', 'scipy.stats', 'opacus', 'dp_accounting'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_hydras_mode_is_asked_for_where_a_file_sets_one():
    files = [path.relative_to(OPTIONS) for path in Path(OPTIONS).rglob("*.yaml")]
    told = {file: yaml.safe_load((OPTIONS / file).read_text()) or {} for file in files}
    modes = {str(file) for file, one in told.items() if "mode" in one.get("hydra", {})}
    names = [file.stem for file in files if file.parent == Path()]
    assert modes == {f"{name}.yaml" for name in names if _can_set_mode(name, ["metric=loss", "-m"])}


@pytest.mark.parametrize(
    "typed", ["hydra.mode=RUN", "--config-dir=x", "-cd", "hydra/sweeper=mine", "hydra.searchpath=x"]
)
def test_hydras_mode_is_asked_for_where_a_user_may_set_it(typed):
    assert _can_set_mode("config", ["metric=loss", typed])


def test_a_mode_that_is_typed_holds(tmp_path):
    sweep = ["metric=loss,confidence", "scenario=inf", "compute.device=none"]
    done = run("mico_exp", *sweep, "hydra.mode=MULTIRUN", cwd=tmp_path, status=1)
    assert "Launching 2 jobs" in done.stdout
    done = run("mico_exp", *sweep, cwd=tmp_path, status=1)
    assert "Launching" not in done.stdout
    assert "Ambiguous value for argument 'metric=loss,confidence'" in done.stderr


def test_a_users_mistake_is_one_line(tmp_path):
    done = run("mico_exp.select_best", cwd=tmp_path, status=1)
    assert "Traceback" not in done.stderr
    advice = "python -m mico_exp dataset=digits scenario=inf,hi,lo metric=loss,confidence"
    assert f"{advice} formula=0,1,2 -m" in done.stderr


@pytest.mark.parametrize(
    ("typed", "follows", "given"),
    [
        ("challenge=mine", False, "challenge_name=mine"),
        ("challenge=ddp", False, "challenge=ddp"),
        ("challenge='ddp'", False, "challenge='ddp'"),
        ("challenge=theirs", False, "challenge=theirs"),
        ("challenge=mine", True, "scenario.challenge=mine"),
        ("scenario=ddp", True, "scenario=ddp"),
        ("-m", True, "-m"),
    ],
)
def test_a_challenge_is_an_option_or_a_name(tmp_path, typed, follows, given):
    (tmp_path / "challenge").mkdir()
    (tmp_path / "challenge" / "theirs.yaml").write_text("")
    assert name_challenge(typed, follows, [OPTIONS, tmp_path]) == given


@pytest.mark.parametrize("typed", ["experiment=[full,mine]", "metrics=[loss,logit]", "metric=loss"])
def test_lists_that_hydra_takes_stay(typed):
    check_choice(typed)


@pytest.mark.parametrize(
    "typed", ["metric=[loss]", "scenario=[hi,lo]", "formula=a/b", "metric=loss,a/b"]
)
def test_choices_that_cannot_be(typed):
    with pytest.raises(InputError):
        check_choice(typed)
