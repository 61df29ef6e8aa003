import zipfile

import numpy as np
import pytest
from conftest import SIZES

from mico_exp import challenge, score, scoring
from mico_exp.errors import InputError
from mico_exp.submission import read_submission, write_submission


@pytest.fixture
def scenario(built):
    return challenge.load_scenario(built, "digits", "digits_inf", SIZES)


@pytest.fixture
def predictions(scenario):
    random = np.random.default_rng(0)
    shape = {"train": (12, 20), "dev": (3, 20), "final": (2, 20)}
    found = {phase: random.random(size, dtype=np.float32) for phase, size in shape.items()}
    found["dev"][0, :3] = [0.0, 1.0, 1e-30]
    return {"digits_inf": found}


@pytest.fixture
def archive(tmp_path, scenario, predictions):
    path = tmp_path / "predictions_digits.zip"
    write_submission(path, [scenario], predictions)
    return path


def test_the_layout_is_the_official_one(archive):
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        text = opened.read("digits/digits_inf/dev/model_12/prediction.csv").decode()
    expected = [f"digits/digits_inf/dev/model_{k}/prediction.csv" for k in (12, 13, 14)]
    expected += [f"digits/digits_inf/final/model_{k}/prediction.csv" for k in (15, 16)]
    assert names == expected
    assert text.count("\n") == 1
    assert text.startswith("0,1,0.000000000000000000000000000001,")
    assert len(text.split(",")) == 20


def test_values_come_back_exactly(archive, predictions):
    found = read_submission(archive)
    for i, row in enumerate(predictions["digits_inf"]["dev"]):
        values = found[f"digits/digits_inf/dev/model_{12 + i}"]
        assert np.array_equal(values.astype(np.float32), row)


def test_equal_predictions_make_equal_files(archive, tmp_path, scenario, predictions):
    write_submission(tmp_path / "again.zip", [scenario], predictions)
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1, np.inf])
def test_a_bad_value_is_never_written(tmp_path, scenario, predictions, value):
    predictions["digits_inf"]["final"][1, 7] = value
    with pytest.raises(InputError, match=r"final/model_16.* must be in \[0, 1\]"):
        write_submission(tmp_path / "bad.zip", [scenario], predictions)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_is_a_defect(tmp_path, scenario, predictions):
    predictions["digits_inf"]["final"] = predictions["digits_inf"]["final"][:1]
    with pytest.raises(ValueError, match="shorter"):
        write_submission(tmp_path / "bad.zip", [scenario], predictions)


def test_a_wrong_length_is_refused(tmp_path, scenario, predictions):
    predictions["digits_inf"]["dev"] = predictions["digits_inf"]["dev"][:, :19]
    with pytest.raises(InputError, match="has 19 values, expected 20"):
        write_submission(tmp_path / "bad.zip", [scenario], predictions)


def make_zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"readme.txt": "hello"}, r"readme\.txt is not of the form"),
        ({"a/b/train/model_0/prediction.csv": "0.5"}, "is not of the form"),
        ({"a/b/dev/model_0/prediction.csv": "0.5,x"}, "expected comma-separated numbers"),
        ({"a/b/dev/model_0/prediction.csv": "0.5,nan"}, "must be in"),
        ({"a/b/dev/model_0/prediction.csv": "0.5\n0.5"}, "expected one line, got 2"),
        ({}, r"no prediction\.csv"),
    ],
)
def test_what_is_no_submission(tmp_path, entries, message):
    with pytest.raises(InputError, match=message):
        read_submission(make_zip(tmp_path / "x.zip", entries))


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "x.zip").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as a zip"):
        read_submission(tmp_path / "x.zip")
    with pytest.raises(InputError, match="does not exist"):
        read_submission(tmp_path / "absent.zip")


def test_the_score_is_the_official_rule_on_the_pooled_models(archive, built, scenario, predictions):
    truth = challenge.read_truth(built, scenario)
    found = score.score_submission(archive, built / "truth")
    assert found.keys() == {"dev", "final"}
    for phase, of_scenario in found.items():
        expected = scoring.figures(truth[phase], predictions["digits_inf"][phase])
        assert of_scenario["digits_inf"] == pytest.approx(expected, abs=1e-12)


def test_the_mean_is_over_scenarios():
    figures = dict.fromkeys(score.COLUMNS, 0.2), dict.fromkeys(score.COLUMNS, 0.4)
    mean = score.mean_figures(dict(zip("ab", figures, strict=True)))
    assert mean == pytest.approx(dict.fromkeys(score.COLUMNS, 0.3))


def test_any_zip_against_a_folder_of_solutions(tmp_path, capsys):
    truth = tmp_path / "answers" / "c" / "s" / "final" / "model_7"
    truth.mkdir(parents=True)
    (truth / "solution.csv").write_text("1,0,1,0\n")
    path = make_zip(tmp_path / "x.zip", {"c/s/final/model_7/prediction.csv": "0.9,0.1,0.8,0.3"})
    assert score.main([str(path), "--truth", str(tmp_path / "answers")]) == 0
    shown = capsys.readouterr().out
    assert "final" in shown
    assert "1.0000" in shown


@pytest.mark.parametrize("gap", ["solution", "prediction", "challenge"])
def test_models_that_do_not_match_are_named(tmp_path, capsys, gap):
    for number in (7, 8):
        folder = tmp_path / "truth" / "c" / "s" / "final" / f"model_{number}"
        if gap == "challenge" or (gap == "solution" and number == 8):
            continue
        folder.mkdir(parents=True)
        (folder / "solution.csv").write_text("1,0\n")
    numbers = (7,) if gap == "prediction" else (7, 8)
    entries = {f"c/s/final/model_{n}/prediction.csv": "0.9,0.1" for n in numbers}
    path = make_zip(tmp_path / "x.zip", entries)
    assert score.main([str(path), "--truth", str(tmp_path / "truth")]) == 1
    message = capsys.readouterr().err
    assert {"solution": "model_8", "prediction": "model_8", "challenge": "--truth"}[gap] in message
