"""What the doctor says of data of one's own: membership, twins, and whether models know them."""

import numpy as np
import pytest
import torch
from commands import run

RECORDS, MODELS, CLASSES, WIDTH = 60, 6, 3, 16
OPTION = f"""name: own
scenarios: [inf]
records:
  _target_: mico_exp.challenge.arrays.from_files
  inputs: inputs.npy
  labels: labels.npy
model:
  _target_: torch.nn.Linear
  in_features: {WIDTH}
  out_features: {CLASSES}
"""


def world(folder, *, copied=0, order=(0, 1, 2), keep=None, rows=MODELS, transposed=False):
    """Linear models of records in three clusters, and who was trained on what."""
    draw = np.random.default_rng(0)
    labels = np.arange(RECORDS) % CLASSES
    inputs = draw.normal(0, 0.5, (RECORDS, WIDTH)) + np.eye(CLASSES, WIDTH)[labels] * 4
    inputs = inputs.astype(np.float32)
    if keep is None:
        keep = draw.random((MODELS, RECORDS)) < 0.5
    inputs[RECORDS - copied :] = inputs[:copied]
    keep = keep.copy()
    keep[:, :copied], keep[:, RECORDS - copied :] = True, False
    train = folder / "data" / "own" / "own_inf" / "train"
    for number in range(len(keep)):
        targets = np.eye(CLASSES)[np.array(order)[labels]] * 8 - 4
        weight = np.linalg.lstsq(inputs, targets, rcond=None)[0].T + draw.normal(0, 0.01, (3, 16))
        (train / f"model_{number}").mkdir(parents=True)
        state = {"weight": torch.tensor(weight).float(), "bias": torch.zeros(CLASSES)}
        torch.save(state, train / f"model_{number}" / "model.pt")
    np.save(train / "keep.npy", keep[:rows].T if transposed else keep[:rows])
    np.save(folder / "inputs.npy", inputs)
    np.save(folder / "labels.npy", labels)
    (folder / "options" / "dataset").mkdir(parents=True)
    (folder / "options" / "dataset" / "own.yaml").write_text(OPTION)
    return keep


def doctor(folder, status=0):
    done = run("mico_exp.doctor", "--config-dir=options", "dataset=own", cwd=folder, status=status)
    return done.stdout


def row(shown, title):
    """What the table of data says under a title."""
    lines = [line.strip("│ ").split("│") for line in shown.splitlines() if line.startswith("│")]
    return next(cells[1].strip() for cells in lines if cells[0].strip() == title)


def test_all_in_one_screen(tmp_path):
    keep = world(tmp_path, copied=6)
    shown = doctor(tmp_path)
    counts = keep.sum(axis=0)
    told = {
        "records": "60",
        "inputs": "float32 (16,)",
        "classes": "3, 20 records each",
        "members told by": "keep.npy",
        "members of a model": f"{keep.sum(1).min()}–{keep.sum(1).max()}",
        "points told by": "all records",
        "points of a model": "60",
        "in models of a point": f"0–6, none at {(counts == 0).sum()} of 60",
        "out models of a point": f"0–6, none at {(counts == 6).sum()} of 60",
        "copies": f"{6 * MODELS / (~keep).sum():.1%}".replace("%", " %"),
    }
    assert {title: row(shown, title) for title in told} == told
    inside, outside = row(shown, "accuracy").split(" / ")
    assert float(inside) == float(outside) == 1.0
    assert "of non-members have the inputs of a record that the model was trained on" in shown
    assert len(shown.splitlines()) <= 40
    assert "An attack can run." in shown


FAULTS = {
    "another order": ({"order": (1, 2, 0)}, 0, "models and records do not go together"),
    "no out model": ({"keep": np.ones((MODELS, RECORDS), bool)}, 1, "has left out any challenge"),
    "no in model": ({"keep": np.zeros((MODELS, RECORDS), bool)}, 1, "was trained on any challenge"),
    "a mask that is too short": ({"rows": 5}, 1, "must have a row for each of 6 models"),
    "a mask the other way": ({"transposed": True}, 1, "keep.npy must have a row for each"),
}


@pytest.mark.parametrize(("changes", "status", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_is_told_in_one_line(tmp_path, changes, status, message):
    world(tmp_path, **changes)
    shown = doctor(tmp_path, status)
    (line,) = [one for one in shown.splitlines() if message in one]
    assert line.startswith("Problem: " if status else "Note: ")


def test_commands_know_the_scenarios_and_what_cannot_be(tmp_path):
    """Of a pool with one scenario, no recipe, no phases and no sizes."""
    world(tmp_path)
    option = ["--config-dir=options", "dataset=own"]
    run("mico_exp.extract", *option, "metrics=loss", cwd=tmp_path)
    assert [one.name for one in (tmp_path / "data" / "store" / "own").iterdir()] == ["own_inf"]
    built = run("mico_exp.build", *option, cwd=tmp_path, status=1).stderr
    assert built == (
        "dataset `own` has no recipe: it cannot be built here, its models come from elsewhere.\n"
    )
    kept = run("mico_exp.store", "prune", *option, cwd=tmp_path).stdout
    assert kept.startswith("0 columns removed")
