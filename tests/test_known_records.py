"""A build knows its records, and a data set its number of records."""

import shutil

import pytest
from commands import run

SMALL = [
    "scenario=inf",
    "dataset.len_training=120",
    "dataset.len_challenge=10",
    "dataset.phases={train: 3, dev: 1, final: 1}",
    "dataset.recipe.steps=5",
]
LOADERS = """
import numpy as np
from mico_exp.challenge.datasets import Features, digits

def taken(index):
    found = digits()
    return Features(found.features[index], found.labels[index])

def same():
    return taken(np.arange(1797))

def sorted_by_label():
    return taken(np.argsort(digits().labels.numpy(), kind="stable"))

def shuffled():
    return taken(np.random.default_rng().permutation(1797))

def from_one():
    found = taken(np.arange(1797))
    found.labels += 1
    return found

def without_the_last():
    return taken(np.arange(1796))
"""
CELL = ("mico_exp", "metric=loss", "formula=1", "plots=off")


def loaded_by(name):
    return f"dataset.records._target_=loaders.{name}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    (folder / "loaders.py").write_text(LOADERS)
    run("mico_exp.build", *SMALL, cwd=folder)
    return folder


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def content(folder):
    return {p: p.stat().st_mtime_ns for p in (folder / "data").rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("command", "name", "changes", "words"),
    [
        (CELL, "sorted_by_label", [], "was built from other records than are loaded now"),
        (("mico_exp.build",), "sorted_by_label", [], "was built from other records"),
        (("mico_exp.extract",), "sorted_by_label", [], "was built from other records"),
        (CELL, "shuffled", [], "its loader is not deterministic"),
        (CELL, "without_the_last", [], "1797 as told, but 1796 were loaded"),
        (CELL, "same", ["dataset.num_records=1796"], "1796 as told, but 1797 were loaded"),
        (("mico_exp.build",), "same", ["dataset.num_records=1796"], "1796 as told, but 1797"),
    ],
)
def test_records_that_are_not_those_of_the_models(copy, command, name, changes, words):
    before = content(copy)
    refused = run(*command, *SMALL, loaded_by(name), *changes, cwd=copy, status=1).stderr
    assert words in refused
    assert "Traceback" not in refused
    assert content(copy) == before


def test_a_build_is_not_finished_with_other_records(copy):
    shutil.rmtree(copy / "data" / "digits" / "digits_inf" / "train" / "model_1")
    before = content(copy)
    refused = run("mico_exp.build", *SMALL, loaded_by("sorted_by_label"), cwd=copy, status=1)
    assert "was built from other records" in refused.stderr
    assert content(copy) == before
    run("mico_exp.build", *SMALL, loaded_by("same"), cwd=copy)


def test_a_shuffling_loader_is_told_before_anything_is_built(copy):
    shutil.rmtree(copy / "data")
    refused = run("mico_exp.build", *SMALL, loaded_by("shuffled"), cwd=copy, status=1).stderr
    assert "its loader is not deterministic" in refused
    assert not list((copy / "data").rglob("model_*"))


def test_nothing_is_trained_on_labels_that_no_logit_stands_for(copy):
    shutil.rmtree(copy / "data")
    refused = run("mico_exp.build", *SMALL, loaded_by("from_one"), cwd=copy, status=1).stderr
    assert "labels must be 0 … 9" in refused
    assert not list((copy / "data").rglob("model_*"))


def test_a_count_that_is_not_told_is_not_compared(copy):
    shown = run(*CELL, *SMALL, "dataset.num_records=null", cwd=copy).stdout
    assert "inf/loss/1: validation" in shown
