"""`benchmarks/gpu.py` itself, as far as it goes without a GPU."""

import dataclasses
import json
import typing

import gpu
import pytest
import torch


def fits(value, kind):
    """Tell whether a value out of JSON is what an annotation says."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            return False
        kinds = typing.get_type_hints(kind)
        return value.keys() == kinds.keys() and all(fits(value[key], kinds[key]) for key in kinds)
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(fits(one, arguments[0]) for one in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(one, arguments[1]) for one in value.values())
    if arguments:
        return any(fits(value, one) for one in arguments)
    return type(value) in ((int, float) if kind is float else (kind,))


def test_all_of_it_small_on_a_processor(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--no-tests", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert fits(report, gpu.Report)
    assert not fits({**report, "seconds": "5"}, gpu.Report)
    assert report["card"]["torch"] == torch.__version__
    assert report["errors"] == report["left_out"] == {}
    found = {(one["name"], one["precision"]): one for one in report["figures"]}
    names = ["MICO's CNN", "RoBERTa-base", "MLPs of Purchase-100"]
    assert [name for name, precision in found if precision == "float32"] == names
    for one in found.values():
        low, high = one["ratio_range"]
        assert 0 < low <= one["ratio"] <= high
        asked = one["points"] * (gpu.MODELS_AT_ONCE if "MLP" in one["name"] else 1)
        assert one["rate"] == pytest.approx(asked / one["later_s"])
    assert found["MICO's CNN", "float32"]["target"] == found["RoBERTa-base", "float32"]["target"]
    assert (report["track"]["models"], report["track"]["target_s"]) == (6, None)
    assert [one["privacy"] for one in report["training"]] == [False, True]
    assert [one["scenario"] for one in report["recipes"]] == ["inf", "hi"]
    for one in report["recipes"]:
        assert (one["measured"], one["steps"]) == (4, 8)
        assert one["rate"] == pytest.approx(3600 * one["steps_a_second"] / 8)
        assert one["track_h"] == pytest.approx(200 / one["rate"])
    assert "ratio" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out)]) == 77
    assert capsys.readouterr().out.startswith("skipped: no GPU can be used here by torch ")
    assert not out.exists()


TESTS = """
import os, pytest
def test_good(): assert os.environ["MICO_EXP_TEST_DEVICE"] == "cuda:1"
@pytest.mark.parametrize("x", [1, 2])
def test_bad(x): assert x == 1
def test_left(): pytest.skip("no reason")
def test_broken(absent): pass
"""


def test_how_each_test_ended_is_read(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    found = gpu.run_tests([str(tmp_path)], "cuda:1", 60)
    assert found.passed == 2
    assert [line.partition(":")[0] for line in found.failed] == ["test_bad[2]", "test_broken"]
    assert found.skipped == ["test_left: no reason"]
    (tmp_path / "test_some.py").write_text("def test_good(")
    broken = gpu.run_tests([str(tmp_path)], "cpu", 60)
    assert (broken.passed, len(broken.failed)) == (0, 1)
    assert gpu.run_tests([str(tmp_path)], "cpu", 0.01).failed == ["no end within 0 s"]


def test_what_breaks_or_has_no_time_left_is_noted_and_the_rest_goes_on(monkeypatch, capsys):
    report = gpu.Report(gpu.card(torch.device("cpu")), "code", small=True)
    stages, done = gpu.Stages(report), []
    stages.run("broken", 10, lambda: [][0])
    stages.run("good", 10, lambda: done.append(1))
    stages.run("long", gpu.LIMIT + 1, lambda: done.append(2))
    assert report.errors == {"broken": "IndexError: list index out of range"}
    assert done == [1]
    assert list(report.left_out) == ["long"]
    assert list(report.stages) == ["broken", "good"]
