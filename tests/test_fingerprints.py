import functools
import importlib.util
import os
import sys
import time

import pytest

from mico_exp import metrics
from mico_exp.fingerprints import FileFingerprints, definition

MODULE = '''
import torch
SCALE = {scale}

def helper(x):
    {helper}

def metric(logits, labels):
    """{doc}"""
    return helper(logits) * SCALE  # {comment}

class Model:
    def forward(self, x):
        return helper(x)
'''


@pytest.fixture
def load(tmp_path, monkeypatch):
    def make(number, scale=2, helper="return x + 1", doc="Text.", comment="why"):
        path = tmp_path / f"made_{number}.py"
        path.write_text(MODULE.format(scale=scale, helper=helper, doc=doc, comment=comment))
        spec = importlib.util.spec_from_file_location("made", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "made", module)
        spec.loader.exec_module(module)
        return module

    return make


def test_words_do_not_count(load):
    first = load(1)
    before = definition(first.metric), definition(first.Model)
    second = load(2, doc="Other text.", comment="other")
    assert (definition(second.metric), definition(second.Model)) == before


@pytest.mark.parametrize("change", [{"scale": 3}, {"helper": "return x + 2"}])
def test_constants_and_helpers_count(load, change):
    assert definition(load(1).metric) != definition(load(2, **change).metric)


def test_a_class_counts_with_what_its_methods_use(load):
    before = definition(load(1).Model)
    assert definition(load(2, helper="return x * 2").Model) != before


def test_bound_arguments_count():
    plain = definition(functools.partial(metrics.loss))
    assert plain == definition(functools.partial(metrics.loss))
    assert plain != definition(functools.partial(metrics.loss, labels=1))
    assert definition(metrics.loss) != definition(metrics.confidence)


def test_a_file_is_read_again_when_it_changes(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"one")
    old = time.time() - 60
    os.utime(path, (old, old))
    memory = tmp_path / "memory" / "fingerprints.json"
    files = FileFingerprints(memory)
    first = files.of(path)
    files.save()
    assert memory.exists()

    path.write_bytes(b"two")
    os.utime(path, (old, old))  # same size and time stamp; only the change time tells
    assert FileFingerprints(memory).of(path) != first
    path.write_bytes(b"one")
    assert FileFingerprints(memory).of(path) == first


def test_a_remembered_file_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    files = FileFingerprints(tmp_path / "fingerprints.json")
    first = files.of(path)
    files.save()
    monkeypatch.setattr("hashlib.file_digest", None)
    assert FileFingerprints(tmp_path / "fingerprints.json").of(path) == first


def test_a_damaged_memory_is_only_forgotten(tmp_path):
    (tmp_path / "fingerprints.json").write_text("{broken")
    (tmp_path / "file").write_bytes(b"x")
    assert len(FileFingerprints(tmp_path / "fingerprints.json").of(tmp_path / "file")) == 64
