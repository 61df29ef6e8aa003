"""The command that looks after the score store, on a real one."""

import json

import pytest
from commands import run

from mico_exp.scores.store import ScoreStore

METRICS = 7  # of logits, which are what `extract` computes unless told; a file each
COLUMNS = METRICS * 12
SMALL = ["dataset.phases={train: 8, dev: 2, final: 2}", "dataset.recipe.steps=20"]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extracted")
    run("mico_exp.extract", "scenario=inf", *SMALL, cwd=folder)
    return folder


def files(folder):
    return sorted((folder / "data" / "store").rglob("*.npz"))


def test_list_shows_what_is_there(extracted):
    shown = run("mico_exp.store", "list", cwd=extracted).stdout
    assert "digits/digits_inf" in shown
    assert "mod_entropy" in shown
    assert f"{COLUMNS} columns in {METRICS} files" in shown


def test_verify_finds_one_damaged_byte_and_the_next_run_mends_it(extracted):
    assert f"{METRICS} files, all sound." in run("mico_exp.store", "verify", cwd=extracted).stdout
    before = {path: path.read_bytes() for path in files(extracted)}
    path = files(extracted)[3]
    content = bytearray(before[path])
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    failed = run("mico_exp.store", "verify", cwd=extracted, status=1)
    assert f"{path.relative_to(extracted)} is damaged" in failed.stdout
    assert f"1 of {METRICS} files are damaged" in failed.stderr
    again = run("mico_exp.extract", "scenario=inf", *SMALL, cwd=extracted).stdout
    assert "logits: 12 models computed" in again
    assert {path: path.read_bytes() for path in files(extracted)} == before


def test_prune_removes_nothing_where_the_options_do_not_fit(extracted, tmp_path):
    before = files(extracted)
    place = f"paths.store={extracted / 'data' / 'store'}"
    prune = ["mico_exp.store", "prune", "scenarios=[inf]"]
    failed = run(*prune, place, cwd=tmp_path, status=1).stderr
    assert "digits_inf/train holds no folder named model_0" in failed
    other = "dataset.model.widths=[64,32,10]"
    failed = run(*prune, other, cwd=extracted, status=1).stderr
    assert f"All {COLUMNS} columns of digits/digits_inf would go" in failed
    assert files(extracted) == before
    half = run(
        "mico_exp.extract", "scenario=inf", "compute.precision=bfloat16", *SMALL, cwd=extracted
    )
    assert "logits: 12 models computed" in half.stdout
    assert "0 columns removed" in run(*prune, cwd=extracted).stdout
    for path in set(files(extracted)) - set(before):
        path.unlink()


def test_prune_removes_what_no_run_would_read(extracted):
    kept = files(extracted)
    seed = extracted / "data" / "digits" / "digits_inf" / "dev" / "model_8" / "model.pt"
    seed.write_bytes(seed.read_bytes() + b" ")  # another file, though torch reads it the same
    shown = run("mico_exp.store", "prune", "scenarios=[inf]", *SMALL, cwd=extracted).stdout
    assert f"{METRICS} columns removed" in shown
    assert files(extracted) == kept
    left = [
        place.model
        for file in ScoreStore(extracted / "data" / "store").files()
        for place in file.columns()
    ]
    assert sorted(set(left)) == sorted(f"model_{i}" for i in range(12) if i != 8)
    again = run("mico_exp.extract", "scenario=inf", *SMALL, cwd=extracted).stdout
    assert "logits: 1 models computed" in again
    assert json.loads((extracted / "data/store/digits/digits_inf/fingerprints.json").read_text())


def test_nothing_to_look_after(tmp_path):
    assert (
        "nothing has been extracted here"
        in run("mico_exp.store", "list", cwd=tmp_path, status=1).stderr
    )
    failed = run("mico_exp.store", "action=burn", cwd=tmp_path, status=1).stderr
    assert "`action` must be one of list, verify, prune, got burn" in failed
