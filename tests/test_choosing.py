"""What the choice believes of runs that others can write, on one small sweep for real."""

import html
import io
import logging
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import run
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from mlflow import MlflowClient

from mico_exp.commands.choosing import choice_identity, choose, find_scenarios
from mico_exp.common.errors import InputError
from mico_exp.common.identity import WORDS
from mico_exp.config.statements import choosing
from mico_exp.config.typed import OPTIONS
from mico_exp.results import scoring
from mico_exp.runs.cells_alike import candidate
from mico_exp.runs.cells_alike import cells as read
from mico_exp.runs.tracking import Tracker

SIZES = ["dataset.len_training=120", "dataset.len_challenge=10"]
SMALL = [
    *SIZES,
    "dataset.phases={train: 12, dev: 3, final: 2}",
    "dataset.recipe.steps=100",
    "plots=off",
]
NAME = "digits_inf"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    grid = ["metric=loss,confidence", "formula=0,1", "scenario=inf"]
    run("mico_exp", *grid, *SMALL, "-m", cwd=folder)
    one = ["metric=confidence", "formula=rmia_offline", "formula.function.a=0.5", "scenario=inf"]
    run("mico_exp", *one, *SMALL, cwd=folder)
    return folder


class World:
    """The sweep, which a test may spoil: what it did is undone afterwards."""

    def __init__(self, folder):
        self.folder = folder
        self.client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self.undo = []

    def runs(self):
        experiment = self.client.get_experiment_by_name("digits").experiment_id
        found = self.client.search_runs([experiment], "tags.kind = 'cell'")
        return {one.info.run_name: one for one in found}

    def cell(self, name):
        return self.runs()[f"inf/{name}"].info.run_id

    def best(self):
        """Name and id of the best cell as it was logged."""
        runs = self.runs()
        name = max(runs, key=lambda name: runs[name].data.metrics["val/tpr_at_fpr_0.1"])
        return name.removeprefix("inf/"), runs[name].info.run_id

    def tag(self, run_id, name, value):
        old = self.client.get_run(run_id).data.tags[name]
        self.undo.append(lambda: self.client.set_tag(run_id, name, old))
        self.client.set_tag(run_id, name, value)

    def run(self, like, params):
        """Log a run with the tags of another, and params."""
        tags = {k: v for k, v in like.data.tags.items() if not k.startswith("mlflow.")}
        new = self.client.create_run(like.info.experiment_id, tags=tags).info.run_id
        self.undo.append(lambda: self.client.delete_run(new))
        for key, value in params.items():
            self.client.log_param(new, key, value)
        self.client.set_terminated(new)
        return new

    def write(self, path, content):
        """Write a file, or remove it with None."""
        old = path.read_bytes()
        self.undo.append(lambda: path.write_bytes(old))
        path.unlink() if content is None else path.write_bytes(content)

    def path(self, run_id):
        folder = self.client.get_run(run_id).info.artifact_uri.removeprefix("file://")
        return Path(folder) / "predictions.npz"

    def predictions(self, run_id):
        with np.load(self.path(run_id)) as file:
            return dict(file)

    def put(self, run_id, **arrays):
        """Give a run other predictions."""
        buffer = io.BytesIO()
        np.savez(buffer, **{**self.predictions(run_id), **arrays})
        self.write(self.path(run_id), buffer.getvalue())

    def choose(self, *overrides):
        cfg = composed(self.folder, overrides)
        HydraConfig.instance().set_config(cfg)
        how = choosing(cfg, "submissions")
        scenarios = find_scenarios(how.challenge, how.selection)
        tracker = Tracker("digits", self.folder, create=False)
        chosen = choose(how.challenge, how.selection, tracker, scenarios)
        return chosen[NAME], choice_identity(how.selection, chosen)


@cache
def composed(folder, overrides):
    given = ["scenarios=['inf']", f"paths.data={folder / 'data'}", *SIZES]
    quick = [] if "selection.resamples=500" in overrides else ["selection.resamples=100"]
    return compose("select_best", overrides=[*given, *quick, *overrides], return_hydra_config=True)


@pytest.fixture(scope="module", autouse=True)
def options():
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        yield


@pytest.fixture
def world(swept, caplog):
    caplog.set_level(logging.WARNING)
    found = World(swept)
    yield found
    for undo in reversed(found.undo):
        undo()


def cells(chosen):
    return {verdict.cell for verdict in chosen.selected.cells}


EVERY = {f"{m}/{f}" for m in ("loss", "confidence") for f in "01"}
EVERY |= {"confidence/rmia_offline[a=0.5]"}


def test_all_present_runs_are_compared_and_none_is_told_of(world, caplog):
    chosen, identity = world.choose()
    assert cells(chosen) == EVERY
    assert chosen.selected.best.cell == world.best()[0]
    assert set(identity.cells[NAME]) == EVERY
    assert not caplog.records


@pytest.mark.parametrize("entry", WORDS)
def test_a_run_that_hangs_on_something_else_is_left_out(world, caplog, entry):
    best, run_id = world.best()
    world.tag(run_id, entry, "other")
    chosen, _ = world.choose()
    assert cells(chosen) == EVERY - {best}
    here = world.runs()["inf/loss/0" if best != "loss/0" else "inf/loss/1"].data.tags[entry]
    words = WORDS[entry].format(there="other", here=here)
    assert f"{NAME}: 1 of 5 runs are left out: {words} (1)" in caplog.text


BROKEN = {
    "no JSON": ("formula_changes", "[", "its changes must be a list of texts"),
    "no list": ("formula_changes", '{"a": 1}', "its changes must be a list of texts"),
    "no texts": ("metric_changes", "[1]", "its changes must be a list of texts"),
    "deep": ("metric_changes", "[" * 4000, "its changes must be a list of texts"),
    "another argument": ("formula_changes", '["formula.function.x=1"]', "a change must be"),
    "a target": ("formula_changes", '["formula.function._target_=marker.mark"]', "a change must"),
    "a new target": (
        "metric_changes",
        '["+metric.function.x={_target_: marker.mark}"]',
        "a change must be",
    ),
    "a list of metrics": ("metric_changes", '["metrics=[loss]"]', "a change must be"),
    "another group": ("formula_changes", '["dataset.records._target_=marker.mark"]', "a change"),
    "a search path": ("formula_changes", '["hydra.searchpath=[file:///tmp]"]', "a change must be"),
    "another name": ("formula_changes", '["formula.function.w=1.0"]', "its changes make it"),
}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A function that leaves a mark when it is called, and another when it is imported."""
    mark = tmp_path / "mark"
    (tmp_path / "marker.py").write_text(
        f"open({str(mark)!r}, 'w').close()\ndef mark(*_, **__):\n    raise SystemExit('ran')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return mark


@pytest.mark.parametrize("kind", BROKEN)
def test_a_run_whose_tags_say_what_none_from_here_would(world, caplog, marker, kind):
    tag, value, words = BROKEN[kind]
    run_id = world.cell("loss/0")
    world.tag(run_id, tag, value)
    chosen, _ = world.choose("selection.allow_unreadable=true")
    assert cells(chosen) == EVERY - {"loss/0"}
    assert f"{NAME}: run {run_id}, loss/0, is left out: " in caplog.text
    assert words in caplog.text
    assert not marker.exists()


@pytest.mark.parametrize(
    ("metric", "formula", "words"),
    [
        ("marker.mark", "0", "there is no metric=marker.mark here"),
        ("loss", "../../etc/passwd", "there is no formula=../../etc/passwd here"),
        ("loss[bold]", "0", "it is called loss[bold], but its changes make it loss"),
        ("loss", "x" * 4000, "there is no formula=xxx"),
        ("", "", "there is no metric= here"),
    ],
)
def test_a_run_of_an_option_that_is_not_here(world, caplog, marker, metric, formula, words):
    """A run that somebody else wrote, under names of their own."""
    old = world.runs()["inf/loss/0"]
    world.run(old, {**old.data.params, "metric": metric, "formula": formula})
    chosen, _ = world.choose()
    assert cells(chosen) == EVERY
    assert words in caplog.text
    assert not marker.exists()


def test_a_newer_run_that_logged_nothing(world, caplog):
    old = world.runs()["inf/loss/0"]
    world.run(old, old.data.params)
    chosen, _ = world.choose()
    assert cells(chosen) == EVERY - {"loss/0"}
    assert "loss/0 is left out: " in caplog.text


def spoil(world, run_id, kind):
    """Give a run predictions that cannot be believed."""
    found = world.predictions(run_id)
    solution, train = found["train_solution"], found["train"]
    if kind == "equal to their solution":
        world.put(run_id, train=solution.astype(np.float32))
    elif kind == "another solution":
        world.put(run_id, train_solution=~solution)
    elif kind == "another solution with its own scores":
        world.put(run_id, train_solution=~solution, train=(~solution).astype(np.float32))
    elif kind == "NaN":
        world.put(run_id, train=np.where(train == train.max(), np.nan, train))
    elif kind == "another shape":
        world.put(run_id, train=train[:, :-2], train_solution=solution[:, :-2])
    elif kind == "fewer models":
        world.put(run_id, train=train[:-1], train_solution=solution[:-1])
    else:
        world.write(world.path(run_id), b"PK\x03\x04 and nothing" if kind == "no array" else None)


KINDS = {
    "equal to their solution": "its predictions give TPR 1.0000 in validation, where it logged 0.",
    "another solution": "are for another membership than the train models have",
    "another solution with its own scores": "are for another membership than the train models",
    "NaN": "NaN",
    "another shape": "its validation predictions must have shape (12, 20), got (12, 18)",
    "fewer models": "its validation predictions must have shape (12, 20), got (11, 20)",
    "no array": "cannot be read as predictions",
    "gone": "predictions.npz",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_run_is_left_out_and_named_and_the_best_one_stops_the_choice(world, caplog, kind):
    best, run_id = world.best()
    other = next(cell for cell in sorted(EVERY) if cell != best)
    spoil(world, world.cell(other), kind)
    chosen, _ = world.choose()
    assert cells(chosen) == EVERY - {other}
    assert f"{NAME}/{other} is left out: " in caplog.text
    assert KINDS[kind] in caplog.text
    spoil(world, run_id, kind)
    with pytest.raises(
        InputError, match=r"the best cell as it was logged, .* cannot be used: "
    ) as got:
        world.choose()
    assert KINDS[kind] in str(got.value)
    assert "selection.allow_unreadable=true" in str(got.value)
    chosen, _ = world.choose("selection.allow_unreadable=true")
    assert cells(chosen) == EVERY - {other, best}


@pytest.mark.parametrize("rule", ["one_se", "auc_one_se"])
def test_any_cell_that_a_rule_might_take_stops_the_choice(world, rule):
    """Within a standard error of the best by the logged interval, or not."""
    runs = world.runs()
    figures = {name.removeprefix("inf/"): one.data.metrics for name, one in runs.items()}
    key = "val/tpr_at_fpr_0.1"
    best = max(figures.values(), key=lambda one: one[key])
    least = best[key] - (best[f"{key}_high"] - best[f"{key}_low"]) / (2 * 1.96)
    near = {name for name, one in figures.items() if one[key] >= least}
    assert len(near) > 1
    for name in sorted(EVERY):
        world.write(world.path(world.cell(name)), None)
        if name in near:
            with pytest.raises(InputError, match=r"as it was logged, .* cannot be used: "):
                world.choose(f"selection.rule={rule}")
        else:
            assert name not in cells(world.choose(f"selection.rule={rule}")[0])
        world.undo.pop()()


def test_a_figure_that_is_not_finite_is_none(world):
    """NaN, that is: MLflow keeps infinity as the largest number."""
    _, run_id = world.best()
    world.client.log_metric(run_id, "extracted_models/other", np.nan)
    run = next(one for one in finished_of(world) if one.id == run_id)
    assert not np.isfinite(run.metrics["extracted_models/other"])
    (cell,) = read([run])
    assert "extracted_models/other" not in candidate(cell).figures


def finished_of(world):
    return Tracker("digits", world.folder, create=False).finished({"kind": "cell"})


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 20), np.float32)[:2], "dev predictions must have shape (3, 20), got (2, 20)"),
        (np.full((3, 20), np.nan, np.float32), "dev predictions must be in [0, 1], got nan"),
        (np.full((3, 20), 1.5, np.float32), "dev predictions must be in [0, 1], got 1.5"),
    ],
)
def test_predictions_of_other_phases_are_looked_at_where_they_are_chosen(
    world, caplog, array, words
):
    best, run_id = world.best()
    world.put(run_id, dev=array)
    with pytest.raises(InputError, match="which was chosen, cannot be used") as caught:
        world.choose()
    assert words in str(caught.value)
    chosen, _ = world.choose("selection.allow_unreadable=true")
    assert best not in cells(chosen)
    assert words in caplog.text


def test_truth_is_read_where_it_lies_now(world, caplog):
    best, run_id = world.best()
    logged = world.client.get_run(run_id).data.metrics
    chosen, _ = world.choose()
    for phase in ("dev", "final"):
        assert chosen.came_out[phase]["value"] == logged[f"{phase}/tpr_at_fpr_0.1"]
        assert chosen.came_out[phase]["low"] == logged[f"{phase}/tpr_at_fpr_0.1_low"]
    assert not caplog.records
    place = world.folder / "data" / "truth" / "digits" / NAME / "dev"
    paths = sorted(place.glob("model_*/solution.csv"))
    rows = [[value == "0" for value in path.read_text().strip().split(",")] for path in paths]
    for path, row in zip(paths, rows, strict=True):
        world.write(path, (",".join(str(int(value)) for value in row) + "\n").encode())
    chosen, _ = world.choose()
    value = scoring.roc(rows, chosen.predictions["dev"]).tpr_at(0.1)
    assert chosen.came_out["dev"]["value"] == value
    (record,) = caplog.records
    told = f"{best} gives dev {value:.4f} where the run logged "
    assert told in record.getMessage()
    assert "final" not in record.getMessage()


def test_the_choice_takes_runs_of_the_precision_that_it_is_told(world, caplog):
    run_id = world.cell("confidence/0")
    world.tag(run_id, "precision", "bfloat16")
    chosen, _ = world.choose("compute.precision=bfloat16")
    assert cells(chosen) == {"confidence/0"}
    assert "compute.precision=float32, not bfloat16 (4)" in caplog.text


def test_what_is_chosen_has_a_key_of_its_own(world):
    _, first = world.choose()
    assert world.choose()[1].key == first.key
    for other in ("selection.rule=one_se", "selection.resamples=500"):
        assert world.choose(other)[1].key != first.key
    world.tag(world.cell("loss/0"), "precision", "bfloat16")
    assert world.choose()[1].key != first.key


OWN = """name: own
function:
  _target_: mico_exp.attacks.formulas.offset
  _partial_: true
  w: 0.25
"""


def test_names_are_shown_whole_and_what_is_printed_can_be_pasted(swept):
    """With options of one's own, a variant whose name has brackets, and a blank in a path."""
    place = swept / "my options" / "formula"
    place.mkdir(parents=True)
    (place / "own.yaml").write_text(OWN)
    own = f"--config-dir={swept / 'my options'}"
    run("mico_exp", own, "metric=loss", "formula=own", "scenario=inf", *SMALL, cwd=swept)
    told = run("mico_exp.select_best", own, "scenarios=[inf,hi]", *SIZES, cwd=swept, status=1)
    (advice,) = re.findall(r"Run: (python .*)", told.stderr)
    shown = run("mico_exp.select_best", own, "scenarios=[inf]", *SIZES, cwd=swept).stdout
    run("mico_exp.report", own, "scenarios=[inf]", *SIZES, cwd=swept)
    page = html.unescape((swept / "reports" / "digits.html").read_text())
    (block,) = re.findall(r"<pre>(.*?)</pre>", page, flags=re.S)
    commands = block.strip().splitlines()
    assert len(commands) == 5  # the grid, the variant, one's own, the choice, the report
    assert "confidence/rmia_offline[a=0.5]" in page
    logged = next((swept / "mlruns").rglob("selection.txt")).read_text()
    assert logged.strip() in shown
    before = {row: value for row, value in figures(swept).items() if "own" not in row}
    assert advice.endswith(" -m")
    for words in [*map(shlex.split, commands), [*shlex.split(advice), *SMALL[2:]]]:
        assert words[:2] == ["python", "-m"]
        assert own in words
        run(*words[2:], *(["plots=off"] if words[2] == "mico_exp" else []), cwd=swept)
    after = figures(swept)
    assert {name: after[name] for name in before} == before  # the same cells, with the same figures
    assert len([name for name in after if name.startswith("hi/")]) == 6


def figures(folder):
    return {
        name: one.data.metrics["val/tpr_at_fpr_0.1"] for name, one in World(folder).runs().items()
    }
