import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import SIZES

from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import ModelFolder, Scenario, load_scenario
from mico_exp.challenge.truth import read_truth
from mico_exp.commands import score
from mico_exp.common.errors import InputError
from mico_exp.results import scoring
from mico_exp.results.conventions import CONVENTIONS, by_convention
from mico_exp.results.submission import pack_submission, read_submission, submitted_models


def write(path, scenarios, predictions):
    path.write_bytes(pack_submission(path, scenarios, predictions))


@pytest.fixture
def scenario(built):
    return load_scenario(built, "digits", "digits_inf", SIZES)


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
    write(path, [scenario], predictions)
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
    write(tmp_path / "again.zip", [scenario], predictions)
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:  # whenever they are written
        assert {entry.date_time for entry in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_what_is_written_is_deflated(archive):
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            assert entry.compress_type == zipfile.ZIP_DEFLATED
            assert entry.compress_size < 0.7 * entry.file_size


PHASES = {"dev": 3, "final": 4}  # and the number of their model


def test_scenarios_of_one_challenge_may_differ_in_their_sizes(tmp_path):
    random, scenarios, predictions = np.random.default_rng(0), [], {}
    for name, challenge in (("small", 1), ("large", 40)):
        folders = {p: (ModelFolder(tmp_path / f"model_{k}", 1),) for p, k in PHASES.items()}
        scenarios.append(Scenario("c", name, Sizes(500, 90, challenge), folders))
        shape = (1, 2 * challenge)
        predictions[name] = {p: random.random(shape, dtype=np.float32) for p in folders}
    write(tmp_path / "x.zip", scenarios, predictions)
    found = read_submission(tmp_path / "x.zip")
    assert len(found) == 4
    for name, of_phase in predictions.items():
        for phase, (row,) in of_phase.items():
            values = found[f"c/{name}/{phase}/model_{PHASES[phase]}"]
            assert np.array_equal(values.astype(np.float32), row)


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1, np.inf])
def test_a_bad_value_is_never_written(tmp_path, scenario, predictions, value):
    predictions["digits_inf"]["final"][1, 7] = value
    with pytest.raises(InputError, match=r"final/model_16.* must be in \[0, 1\]"):
        write(tmp_path / "bad.zip", [scenario], predictions)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_is_a_defect(tmp_path, scenario, predictions):
    predictions["digits_inf"]["final"] = predictions["digits_inf"]["final"][:1]
    with pytest.raises(ValueError, match="shorter"):
        write(tmp_path / "bad.zip", [scenario], predictions)


def test_a_wrong_length_is_refused(tmp_path, scenario, predictions):
    predictions["digits_inf"]["dev"] = predictions["digits_inf"]["dev"][:, :19]
    with pytest.raises(InputError, match="has 19 values, expected 20"):
        write(tmp_path / "bad.zip", [scenario], predictions)


def make_zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)
    return path


ENTRY = "a/b/dev/model_0/prediction.csv"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"readme.txt": "hello"}, r"readme\.txt is not of the form"),
        ({"a/b/train/model_0/prediction.csv": "0.5"}, "is not of the form"),
        ({"a/b/dev/model_٣/prediction.csv": "0.5"}, "is not of the form"),
        ({"a/b/dev/model_²/prediction.csv": "0.5"}, "is not of the form"),
        ({"a/b/dev/model_+3/prediction.csv": "0.5"}, "is not of the form"),
        ({"./b/dev/model_0/prediction.csv": "0.5"}, "is not of the form"),
        ({f"./{ENTRY}": "0.5"}, "is not of the form"),
        ({"a/../dev/model_0/prediction.csv": "0.5"}, "is not of the form"),
        ({f"{ENTRY}/": "0.5"}, "is not of the form"),
        ({"a\n/b/dev/model_0/prediction.csv": "0.5"}, r"a\\n/b/dev.* is not of the form"),
        ({ENTRY: "0.5", "A/b/dev/model_1/prediction.csv": "0.5"}, "one challenge, got A, a"),
        ({ENTRY: "0.5\n0.5"}, "expected one line, got 2"),
        ({ENTRY: "0.5\r\n0.5\r\n"}, "expected one line, got 2"),
        ({ENTRY: ""}, "is empty"),
        ({ENTRY: " \r\n"}, "is empty"),
        ({ENTRY: "\ufeff0.5"}, "byte-order mark"),
        ({ENTRY: "0.5".encode("utf-16")}, "bytes that are not ASCII"),
        ({}, r"no prediction\.csv"),
    ],
)
def test_what_is_no_submission(tmp_path, entries, message):
    with pytest.raises(InputError, match=message) as caught:
        read_submission(make_zip(tmp_path / "x.zip", entries))
    assert "\n" not in str(caught.value)


NUMBERS = ["0", "1", "0.5", "1.", ".5", "+0.5", "-0.0", "1e-3", "1E0", "0.1e+1", " 0.5\t", "00.5"]
NO_NUMBERS = [
    *("", "x", "nan", "inf", "-inf", "Infinity", "1.5", "-0.1", "1e1", "2e400"),
    *("0_1", "1_0e-1_0", "0.2_5", "0x1", "0x1p-1", "0b1", "1e", ".", "e1", "--0", "0.5f", "0;5"),
    *("1/2", "0 .5", "0.5 0.5", "50%", "True", "'0.5'", "0.5\x0b", "0.5\x00"),
]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_numbers_are_read(tmp_path, end):
    path = make_zip(tmp_path / "x.zip", {ENTRY: ",".join(NUMBERS) + end})
    assert read_submission(path)["a/b/dev/model_0"].tolist() == [float(text) for text in NUMBERS]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_is_named_with_its_place(tmp_path, text):
    path = make_zip(tmp_path / "x.zip", {ENTRY: f"0.5,{text}"})
    message = f"numbers, each of which must be in [0, 1], got {text!r} as value 2."
    with pytest.raises(InputError, match=re.escape(message)):
        read_submission(path)


@pytest.mark.parametrize("text", ["\u0663", "0.\u0665", "\uff11", "\u00b2", "0.5\u00a0", "½"])
def test_digits_are_those_of_ascii(tmp_path, text):
    path = make_zip(tmp_path / "x.zip", {ENTRY: f"0.5,{text}".encode()})
    with pytest.raises(InputError, match="not ASCII"):
        read_submission(path)


@pytest.mark.parametrize("text", ["0.5,", ",0.5", "0.5,,0.5"])
def test_a_blank_is_no_value(tmp_path, text):
    with pytest.raises(InputError, match="got '' as value"):
        read_submission(make_zip(tmp_path / "x.zip", {ENTRY: text}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "other",
    [ENTRY, "a/B/dev/model_0/prediction.csv", "a/b/dev/model_00/prediction.csv"],
)
@pytest.mark.parametrize("content", ["0.5", "0.25"])
def test_a_model_twice_is_refused_and_both_are_named(tmp_path, other, content):
    path = make_zip(tmp_path / "x.zip", [(ENTRY, "0.5"), (other, content)])
    with pytest.raises(InputError, match=f"one model twice: {ENTRY} and {other}"):
        read_submission(path)
    with pytest.raises(InputError, match="one model twice"):
        submitted_models(path)


def test_folders_have_entries_of_their_own(tmp_path):
    folders = {"a/": "", "a/b/": "", "a/b/dev/": "", "a/b/dev/model_0/": ""}
    path = make_zip(tmp_path / "x.zip", {**folders, ENTRY: "0.5"})
    assert list(read_submission(path)) == submitted_models(path) == ["a/b/dev/model_0"]


def test_a_file_that_is_far_too_large_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(ENTRY, b"0," * 10**7)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"at most 12,800 bytes, which 200 values .*000"):
        read_submission(tmp_path / "x.zip", longest=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("most", [1, 2])
def test_a_file_may_be_as_long_as_its_values_can_be(tmp_path, most):
    """64 bytes each, to the very byte."""
    for size in (64 * most, 64 * most + 1):
        path = make_zip(tmp_path / "x.zip", {ENTRY: "0." + "0" * (size - 2)})
        if size == 64 * most:
            assert read_submission(path, longest=most)["a/b/dev/model_0"].tolist() == [0]
        else:
            with pytest.raises(InputError, match=rf"at most {64 * most} bytes, .* got {size}\."):
                read_submission(path, longest=most)


def test_where_nobody_says_how_many_values_there_are_thousands_are_read(tmp_path):
    path = make_zip(tmp_path / "x.zip", {ENTRY: "0.123456789," * (2**14 - 1) + "1"})
    assert len(read_submission(path)["a/b/dev/model_0"]) == 2**14
    path = make_zip(tmp_path / "x.zip", {ENTRY: "0" * (2**20 + 1)})
    with pytest.raises(InputError, match="at most 1,048,576 bytes, which 16,384 values take"):
        read_submission(path)


def test_a_header_that_lies_of_the_size_is_not_believed(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(ENTRY, b"0," * 10**7)
    content = (tmp_path / "x.zip").read_bytes()
    true, told = ((size).to_bytes(4, "little") for size in (2 * 10**7, 100))
    assert content.count(true) == 2
    (tmp_path / "x.zip").write_bytes(content.replace(true, told))
    tracemalloc.start()
    with pytest.raises(InputError, match="cannot be read as a zip: Bad CRC"):
        read_submission(tmp_path / "x.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr(ENTRY, "0.5")
    with pytest.raises(InputError, match=f"must be stored or deflated, got method {method}"):
        read_submission(tmp_path / "x.zip")


def test_an_encrypted_file_is_refused(tmp_path):
    path = make_zip(tmp_path / "x.zip", {ENTRY: "0.5"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # among the flags
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"prediction\.csv is encrypted"):
        read_submission(path)


def test_a_damaged_byte_is_one_line_or_harmless(tmp_path):
    path = make_zip(tmp_path / "x.zip", {ENTRY: "0.5,0.25"})
    content, errors = path.read_bytes(), []
    for place, value in enumerate(content):
        for other in (255, value ^ 1):
            path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
            try:
                (found,) = read_submission(path).values()
                assert found.tolist() == [0.5, 0.25]
            except InputError as error:
                errors.append(str(error))
    assert len(errors) > len(content)
    assert not [error for error in errors if "\n" in error]


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "x.zip").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as a zip"):
        read_submission(tmp_path / "x.zip")
    with pytest.raises(InputError, match="does not exist"):
        read_submission(tmp_path / "absent.zip")


def test_the_score_is_the_official_rule_on_the_pooled_models(archive, built, scenario, predictions):
    truth = read_truth(built, scenario)
    found = score.score_submission(archive, built / "truth")
    assert found.keys() == {"dev", "final"}
    for phase, of_scenario in found.items():
        expected = scoring.figures(truth[phase], predictions["digits_inf"][phase])
        assert of_scenario["digits_inf"] == pytest.approx(expected, abs=1e-12)


def test_conventions_stand_side_by_side(archive, built, scenario, predictions, capsys):
    assert score.main([str(archive), "--truth", str(built / "truth"), "--conventions"]) == 0
    shown = capsys.readouterr().out
    expected = by_convention(
        read_truth(built, scenario)["final"], predictions["digits_inf"]["final"]
    )
    rows = [line.strip("│ ").split("│") for line in shown.splitlines() if "│" in line]
    values = [[cell.strip() for cell in row[-4:]] for row in rows[len(rows) // 2 :]]
    columns = zip(*(expected[name] for name in CONVENTIONS), strict=True)
    assert values == [[f"{value:.4f}" for value in column] for column in columns]


def test_the_mean_is_over_scenarios():
    figures = dict.fromkeys(score.COLUMNS, 0.2), dict.fromkeys(score.COLUMNS, 0.4)
    mean = score.mean_figures(dict(zip("ab", figures, strict=True)))
    assert mean == pytest.approx(dict.fromkeys(score.COLUMNS, 0.3))


@pytest.fixture
def answers(tmp_path):
    """Writes a truth of two models and a submission of them, and scores it; gives the error."""

    def scored(solutions, predictions, capsys, status=1):
        for number, text in zip((7, 8), solutions, strict=True):
            folder = tmp_path / "truth" / "c" / "s" / "final" / f"model_{number}"
            folder.mkdir(parents=True)
            (folder / "solution.csv").write_text(text)
        entries = {
            f"c/s/final/model_{number}/prediction.csv": text
            for number, text in zip((7, 8), predictions, strict=True)
        }
        path = make_zip(tmp_path / "x.zip", entries)
        assert score.main([str(path), "--truth", str(tmp_path / "truth")]) == status
        error = capsys.readouterr().err
        assert error.count("\n") == status
        return error

    return scored


GOOD = "0.9,0.1,0.8,0.3"


@pytest.mark.parametrize(
    ("second", "found"),
    [("0.9,0.1,0.8", "got 3"), (GOOD + ",0.5", "got 5"), ("0.9", "got 1")],
)
def test_a_wrong_count_is_the_submissions_fault(answers, capsys, second, found):
    error = answers(["1,0,1,0\n"] * 2, [GOOD, second], capsys)
    assert "x.zip: c/s/final/model_8/prediction.csv must hold 4 values, as" in error
    assert "model_8/solution.csv does" in error
    assert found in error


def test_models_may_have_unequal_numbers_of_points(answers, capsys):
    answers(["1,0,1,0", "1,0,1,0,1"], [GOOD, GOOD + ",0.5"], capsys, status=0)


@pytest.mark.parametrize("predictions", [[GOOD, GOOD], [GOOD + ",0.5"] * 2])
@pytest.mark.parametrize(
    ("solution", "message"),
    [
        ("1,0,1,0,", "got '' among them"),
        ("1,0,,0", "got '' among them"),
        ("1,0,0_1,0", "got '0_1' among them"),
        ("1,0,1.0,0", "got '1.0' among them"),
        ("1,0,+1,0", "got '+1' among them"),
        ("1,0,\u0661,0", "not ASCII"),
        ("\ufeff1,0,1,0", "byte-order mark"),
        ("1,0\n1,0\n", "expected one line, got 2"),
        ("", "expected one line of values 0 or 1, got 0"),
    ],
)
def test_a_wrong_truth_is_named_whatever_was_submitted(
    answers, capsys, solution, message, predictions
):
    error = answers(["1,0,1,0", solution], predictions, capsys)
    assert "model_8/solution.csv" in error
    assert "x.zip" not in error
    assert message in error


@pytest.mark.parametrize("value", "01")
def test_a_truth_of_one_class_is_named(answers, capsys, value):
    error = answers([",".join(value * 4)] * 2, [GOOD] * 2, capsys)
    assert "truth/c/s/final: the truth must hold members and non-members" in error
    assert f"got {value} alone" in error


def test_windows_line_ends_do_not_matter(answers, capsys):
    solutions, predictions = ["1,0,1,0\r\n", "1, 0, 1, 0"], [GOOD + "\r\n", GOOD]
    answers(solutions, predictions, capsys, status=0)


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
