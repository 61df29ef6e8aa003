"""An option file that is begun for a data set of one's own, and what comes of it."""

import shlex

import numpy as np
import pytest
import torch
from commands import run

from mico_exp.commands.new import KINDS, main
from mico_exp.common.errors import InputError

NET = """import torch


class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(16, 3))
"""
RECORDS, MODELS, CLASSES = 60, 8, 3


def learned(inputs, labels, keep):
    """Weights (3, 16) of a network that knows some records by heart."""
    targets = np.eye(CLASSES)[labels[keep]] * 8 - 4
    return np.linalg.lstsq(inputs[keep], targets, rcond=None)[0].T


def fill_in(folder, kind):
    """Put the files where what was written says that they are."""
    draw = np.random.default_rng(0)
    labels = draw.integers(CLASSES, size=RECORDS)
    inputs = draw.normal(0, 1, (RECORDS, 16)).astype(np.float32) + np.eye(CLASSES, 16)[labels] * 2
    inputs = inputs.astype(np.float32)
    keep = draw.random((MODELS + 1, RECORDS)) < 0.5
    weights = [learned(inputs, labels, one) for one in keep]
    if kind == "outputs":
        logits = np.stack([inputs @ one.T for one in weights])
        np.savez(folder / "mine_own.npz", logits=logits, labels=labels, keep=keep)
        return
    (folder / "mine.py").write_text(NET)
    np.save(folder / "inputs.npy", inputs.reshape(RECORDS, 4, 4))
    np.save(folder / "labels.npy", labels)
    place = folder / "data" / "mine_own" / "mine_own_inf"
    for number, one in enumerate(weights):
        if kind == "single" and number < MODELS:
            continue
        path = place / ("final/model_0" if kind == "single" else f"train/model_{number}")
        path.mkdir(parents=True)
        state = {"1.weight": torch.tensor(one), "1.bias": torch.zeros(CLASSES)}
        torch.save(state, path / "model.pt")
    if kind == "models":
        np.save(place / "train" / "keep.npy", keep)
    if kind == "single":
        np.save(place / "challenge.npy", np.arange(RECORDS))
        truth = folder / "data" / "truth" / "mine_own" / "mine_own_inf" / "final" / "model_0"
        truth.mkdir(parents=True)
        np.save(truth / "members.npy", np.flatnonzero(keep[-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_composes_once_its_files_are_there(tmp_path, kind):
    """And the commands that are shown run as they are."""
    shown = run("mico_exp.new", "mine_own", f"kind={kind}", cwd=tmp_path).stdout
    *shadow, doctor, sweep, report = (
        shlex.split(line)[2:] for line in shown.splitlines() if line.startswith("python -m ")
    )
    missing = run(*doctor, cwd=tmp_path, status=1)
    assert "Traceback" not in missing.stdout + missing.stderr
    fill_in(tmp_path, kind)
    assert len(shadow) == (kind == "single")
    for words in shadow:
        fewer = [f"models={MODELS}", "dataset.recipe.epochs=9", "dataset.recipe.batch_size=8"]
        run(*words, *fewer, cwd=tmp_path)
    examined = run(*doctor, cwd=tmp_path).stdout
    assert "An attack can run." in examined
    if kind == "single":
        run(*sweep, "metric=loss", "formula=1", "plots=off", cwd=tmp_path)
        assert "reports/mine_own.html" in run(*report, cwd=tmp_path).stdout
        assert "final" in (tmp_path / "reports" / "mine_own.html").read_text()


def test_nothing_is_overwritten(tmp_path, capsys):
    folder = f"folder={tmp_path / 'my options'}"
    assert main(["one", folder]) == 0
    path = tmp_path / "my options" / "dataset" / "one.yaml"
    shown = capsys.readouterr().out
    assert f"--config-dir={tmp_path / 'my options'}" in shlex.split(shown)
    path.write_text("name: changed\n")
    with pytest.raises(InputError, match=r"one.yaml is there already, and nothing is overwritten"):
        main(["one", folder, "kind=outputs"])
    assert path.read_text() == "name: changed\n"


BAD = {
    "a dot": (["my.data"], "`NAME` must be a name of letters .* got 'my.data'"),
    "a blank": (["my data"], "got 'my data'"),
    "a folder": (["../x"], "got '../x'"),
    "a number": (["2024"], "and no number, got 2024"),
    "a fraction": (["1e5"], "got 100000.0"),
    "nothing": (["null"], "got None"),
    "a switch": (["on"], "got True"),
    "empty": ([""], "got ''"),
    "built in": (["sst2"], "sst2 is a data set that mico_exp has"),
    "a kind": (["a", "kind=many"], "`kind` must be one of models, single, outputs, got 'many'"),
    "a setting": (["a", "kinds=models"], "'kinds=models' must be one of kind=… and folder=…"),
    "no folder": (["a", "folder="], "`folder` must name a folder, got nothing"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_no_name_or_kind(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["my.data", "2024"])
def test_a_name_that_was_given_by_hand(tmp_path, name):
    place = tmp_path / "options" / "dataset"
    place.mkdir(parents=True)
    main(["fine", f"folder={tmp_path / 'options'}"])
    text = (place / "fine.yaml").read_text().replace("name: fine", f"name: {name}")
    (place / "fine.yaml").write_text(text)
    options = ["--config-dir=options", "dataset=fine"]
    told = run("mico_exp.select_best", *options, cwd=tmp_path, status=1).stderr
    assert told.startswith("`dataset.name` must be a name of letters (a to z), digits")
    assert told.count("\n") == 1
