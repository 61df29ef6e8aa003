import copy
import functools
import hashlib
import importlib
import importlib.util
import json
import linecache
import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import RACY_SECONDS, FileFingerprints, definition, stamp
from mico_exp.models import architectures
from mico_exp.models.architectures import MLP, roberta
from mico_exp.scores import metrics

MODULE = '''
import functools
import torch
SCALE = {scale}
TABLE = {{"a": [{table}]}}
WEIGHTS = torch.tensor([1.0, {weight}])
DEFAULT = {default}

@functools.cache
def cached(x):
    return x + {cached}

def helper(x, power=DEFAULT):
    {helper}

def metric(logits, labels):
    """{doc}"""
    return helper(logits, DEFAULT) * SCALE * TABLE["a"] * WEIGHTS + cached(1)  # {comment}

class Model:
    def forward(self, x):
        return helper(x)
'''


PLAIN = {
    "scale": 2,
    "helper": "return x + 1",
    "doc": "Text.",
    "comment": "why",
    "table": 1,
    "weight": 0.5,
    "default": 3,
    "cached": 1,
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    def make(number, **changes):
        path = tmp_path / f"made_{number}.py"
        path.write_text(MODULE.format(**{**PLAIN, **changes}))
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


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 3},
        {"helper": "return x + 2"},
        {"table": 2},
        {"weight": 0.25},
        {"default": 4},
        {"cached": 2},
        {"scale": 1, "table": 2},
        {"scale": 3, "default": 2},
    ],
)
def test_constants_and_helpers_count(load, change):
    before = definition(load(1).metric)
    assert definition(load(2, **change).metric) != before


def test_what_ran_counts_and_not_what_the_file_says_now(load, tmp_path):
    """An edit during a run leaves the function in memory, and so its hash, as they are."""
    made = load(1)
    path = tmp_path / "made_1.py"
    path.write_text(MODULE.format(**{**PLAIN, "helper": "return x - 1"}))
    linecache.checkcache(str(path))
    before = definition(made.metric), definition(made.Model)
    path.write_text(MODULE.format(**PLAIN))
    linecache.checkcache(str(path))
    again = load(1)
    assert (definition(again.metric), definition(again.Model)) == before


@pytest.mark.parametrize("comment", ["# x", "", "        # deeper", '"""More words."""'])
def test_blank_lines_and_comments_do_not_count(load, comment):
    before = definition(load(1).helper)
    assert definition(load(2, helper=f"{comment}\n\n    return x + 1").helper) == before


HELPERS = """
import re
WORD = re.compile("{pattern}")
def help(x):
    return x + {number}
class Lens:
    factor = {factor}
    def __call__(self, x):
        return x * self.factor
lens = Lens()
"""
CALLERS = {
    "from": "from {helpers} import help, WORD, lens\ndef f(x): return lens(help(x)), WORD.match(x)",
    "module": "import {helpers}\n"
    "def f(x): return {helpers}.lens({helpers}.help(x)), {helpers}.WORD.match(x)",
    "inside": "def f(x):\n    from {helpers} import help, WORD, lens\n"
    "    return lens(help(x)), WORD.match(x)",
    "method": "from {helpers} import *\nclass F:\n"
    "    def __call__(self, x): return lens(help(x)), WORD.match(x)\nf = F()",
    "lambda": "from {helpers} import *\nf = lambda x: (lens(help(x)), WORD.match(x))",
}


@pytest.mark.parametrize("caller", CALLERS)
def test_helpers_in_another_file_of_the_users_count(tmp_path, monkeypatch, caller):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    kinds = [("a", 1, 2.0), ("a", 1, 2.0), ("b", 1, 2.0), ("a", 2, 2.0), ("a", 1, 3.0)]
    for i, (pattern, number, factor) in enumerate(kinds):
        names = {"pattern": pattern, "number": number, "factor": factor}
        (tmp_path / "own_helpers.py").write_text(HELPERS.format(**names) + "\n" * i)
        (tmp_path / "own_caller.py").write_text(CALLERS[caller].format(helpers="own_helpers"))
        for name in ("own_helpers", "own_caller"):
            monkeypatch.delitem(sys.modules, name, raising=False)
            Path(importlib.util.cache_from_source(tmp_path / f"{name}.py")).unlink(missing_ok=True)
        importlib.invalidate_caches()
        found.append(definition(importlib.import_module("own_caller").f))
    assert found[0] == found[1]
    assert len(set(found)) == 4


def test_what_others_installed_counts_by_its_name_alone():
    assert definition(np.linalg.norm) != definition(np.linalg.svd)
    assert definition(torch.nn.Linear) != definition(torch.nn.Conv2d)


def test_helpers_reached_through_a_module_count(monkeypatch):
    from mico_exp.attacks import calibration

    namespace = {"calibration": calibration, "__name__": "mico_exp.made"}
    exec("def outer(logits, labels):\n    return calibration.scale(logits)", namespace)
    outer = namespace["outer"]
    before = definition(outer)
    monkeypatch.setattr(calibration, "scale", calibration.stand_in)
    assert definition(outer) != before


class Tempered:
    """A metric with a parameter, as an object."""

    def __init__(self, temperature):
        self.temperature = temperature

    def __call__(self, logits, labels):
        return metrics.loss(logits / self.temperature, labels)


def test_a_definition_is_the_same_in_another_process():
    code = "from mico_exp.common import fingerprints\n"
    code += "from mico_exp.models.architectures import MLP\n"
    code += "from mico_exp.scores import metrics\n"
    code += "print(fingerprints.definition(metrics.loss), fingerprints.definition(MLP))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [definition(metrics.loss), definition(MLP)]


def test_callable_objects_count_with_their_parameters():
    assert definition(Tempered(1.0)) == definition(Tempered(1.0))
    assert definition(Tempered(1.0)) != definition(Tempered(2.0))


def test_a_definition_does_not_change_by_use():
    before = definition(roberta)
    with pytest.raises(ValueError, match=r"config\.json"):
        roberta(Path("/nowhere"))
    architectures._roberta(
        json.dumps({"hidden_size": 8, "num_attention_heads": 1, "vocab_size": 9})
    )
    assert definition(roberta) == before


class Lazy:
    """A metric that keeps what it has computed."""

    @functools.cached_property
    def scale(self):
        return 2.0

    def __call__(self, logits, labels):
        return metrics.loss(logits * self.scale, labels)


def test_what_an_object_or_a_class_keeps_of_its_use_does_not_count():
    metric = Lazy()
    before = definition(metric)
    copy.copy(metric)(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    metric(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    pickle.dumps(metric)  # writes __slotnames__ into the class
    assert "scale" in vars(metric)
    assert "__slotnames__" in vars(Lazy)
    assert definition(metric) == before


def times(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(logits, labels):
            return function(logits, labels) * factor

        return wrapper

    return decorate


class Slotted:
    __slots__ = ("__hidden", "nothing")

    def __init__(self, temperature):
        self.__hidden = temperature

    def __call__(self, logits, labels):
        return metrics.loss(logits / self.__hidden, labels)


@dataclass(slots=True)
class SlottedToo:
    temperature: float = 1.0

    def __call__(self, logits, labels):
        return metrics.loss(logits / self.temperature, labels)


class Family:
    def __init__(self, factor):
        self.factor = factor

    def one(self, logits, labels):
        return metrics.loss(logits, labels) * self.factor

    def other(self, logits, labels):
        return metrics.loss(logits, labels) + self.factor

    @classmethod
    def third(cls, logits, labels):
        return metrics.loss(logits, labels)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (times(1)(metrics.loss), times(2)(metrics.loss)),
        (times(1)(metrics.loss), times(1)(metrics.confidence)),
        (Slotted(1.0), Slotted(2.0)),
        (SlottedToo(1.0), SlottedToo(2.0)),
        (Slotted(1.0), SlottedToo(1.0)),
        (Family(1).one, Family(2).one),
        (Family(1).one, Family(1).other),
        (Family(1).one, Family.third),
    ],
)
def test_wrappers_slots_and_methods_count(first, second):
    assert definition(first) == definition(first)
    assert definition(first) != definition(second)
    assert definition(functools.partial(first)) != definition(functools.partial(second))


def test_what_an_installed_wrapper_hides_counts():
    assert definition(functools.cache(metrics.loss)) == definition(metrics.loss)
    assert definition(torch.no_grad()(metrics.loss)) != definition(torch.no_grad()(metrics.logit))


def test_the_names_of_keywords_count():
    def one(x):
        return torch.sum(x, dim=0)

    def other(x):
        return torch.sum(x, axis=0)

    assert definition(one) != definition(other)


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


def sound(path):
    if path.read_bytes() == b"bad":
        raise InputError(f"{path} is damaged.")
    return "sound"


def write_old(path, content):
    path.write_bytes(content)
    os.utime(path, (1, 1))


def test_a_check_is_made_once_and_remembered(tmp_path, monkeypatch):
    path, memory = tmp_path / "model.pt", tmp_path / "fingerprints.json"
    write_old(path, b"good")
    with FileFingerprints(memory) as files:
        first = files.checked(path, sound)
    assert first == (hashlib.sha256(b"good").hexdigest(), "sound")
    monkeypatch.setattr(Path, "read_bytes", None)
    assert FileFingerprints(memory).checked(path, sound) == first


def test_a_damaged_file_is_refused_again_and_again(tmp_path):
    path, memory = tmp_path / "model.pt", tmp_path / "fingerprints.json"
    write_old(path, b"bad")
    for _ in range(2):
        with pytest.raises(InputError, match="is damaged"), FileFingerprints(memory) as files:
            files.checked(path, sound)


def test_what_was_hashed_without_the_check_is_checked(tmp_path):
    path, memory = tmp_path / "model.pt", tmp_path / "fingerprints.json"
    write_old(path, b"bad")
    with FileFingerprints(memory) as files:
        files.of(path)
        with pytest.raises(InputError, match="is damaged"):
            files.checked(path, sound)
    with pytest.raises(InputError, match="is damaged"):
        FileFingerprints(memory).checked(path, sound)


def test_a_memory_from_before_there_were_checks_vouches_for_nothing(tmp_path):
    path, memory = tmp_path / "model.pt", tmp_path / "fingerprints.json"
    write_old(path, b"bad")
    status = path.stat()
    seen = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memory.write_text(json.dumps({str(path): [*seen, hashlib.sha256(b"bad").hexdigest()]}))
    with pytest.raises(InputError, match="is damaged"):
        FileFingerprints(memory).checked(path, sound)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "config.json").mkdir()
    for name in ("config.json", "missing"):
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            FileFingerprints(tmp_path / "fingerprints.json").of(tmp_path / name)


@pytest.mark.parametrize(
    "content", ["{broken", "[]", "3", "{}", '{"version": 3}', '{"version": 3, "files": 3}']
)
def test_a_damaged_memory_is_only_forgotten(tmp_path, content):
    (tmp_path / "fingerprints.json").write_text(content)
    (tmp_path / "file").write_bytes(b"x")
    assert len(FileFingerprints(tmp_path / "fingerprints.json").of(tmp_path / "file")) == 64


def test_a_stamp_tells_any_change_of_files(tmp_path):
    """And says nothing of what may change again within the clock's tick."""
    one, other = tmp_path / "one" / "model", tmp_path / "other"
    one.mkdir(parents=True)
    (one / "seed").write_text("1")
    assert stamp(tmp_path / "one", other) is None
    time.sleep(RACY_SECONDS + 0.1)
    first = stamp(tmp_path / "one", other)
    assert first == stamp(tmp_path / "one", other)
    assert first is not None
    changes = [
        lambda: (one / "seed").write_text("2"),
        lambda: (one / "more").touch(),
        lambda: (one / "more").unlink(),
        lambda: other.mkdir(),
        lambda: os.utime(one / "seed", ns=(1, 1)),
    ]
    seen = [digest_of_all(tmp_path / "one", other)]
    for change in changes:
        change()
        seen.append(digest_of_all(tmp_path / "one", other))
    assert len(set(seen)) == len(seen)


def digest_of_all(*folders):
    """A stamp, whenever it is."""
    with mock.patch("mico_exp.common.fingerprints.RACY_SECONDS", 0):
        return stamp(*folders)
