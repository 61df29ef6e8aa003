"""What a user knows of records beside: read strictly, and in groups."""

import numpy as np
import pytest

from mico_exp.auditing.metadata import Metadata
from mico_exp.common.errors import InputError


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "known.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as CSV"),
        (b"record,city\n0,\xff\n", "cannot be read as CSV"),
        ("id,city\n0,Ulm\n", "must have a column record and others, got id, city"),
        ("record\n0\n", "must have a column record and others, got record"),
        ("record,city\n-1,Ulm\n", "a whole number from 0 on, got '-1'"),
        ("record,city\n1.0,Ulm\n", "a whole number from 0 on, got '1.0'"),
        ("record,city\n,Ulm\n", "a whole number from 0 on, got ''"),
        ("record,city\n7,Ulm\n07,Bonn\n", "record 07 must be there once"),
    ],
)
def test_a_file_of_another_form_is_one_error_that_names_it(written, text, said):
    path = written(text)
    with pytest.raises(InputError) as caught:
        Metadata(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_texts_are_groups_and_what_is_not_told_is_one(written):
    path = written("\ufeffrecord,city,note\n 3 ,Ulm,\n5,Bonn,a\n4,,b\n")
    groups = Metadata(path).groups(np.array([5, 3, 4, 9]))
    assert {name: list(names) for name, names in groups.items()} == {
        "city": ["Bonn", "Ulm", "–", "–"],
        "note": ["a", "–", "b", "–"],
    }


def test_records_that_nobody_was_asked_about_are_an_error(written):
    path = written("record,city\n3,Ulm\n")
    with pytest.raises(InputError, match="none of its records is among those"):
        Metadata(path).groups(np.array([5, 6]))


def test_few_numbers_are_groups_and_many_are_put_into_quarters(written):
    ages = np.random.default_rng(0).permutation(40) * 1.5
    rows = "".join(f"{record},{age},{record % 3}\n" for record, age in enumerate(ages))
    groups = Metadata(written(f"record,age,ward\n{rows}40,,0\n")).groups(np.arange(41))
    assert list(groups["ward"]) == [str(record % 3) for record in range(40)] + ["0"]
    assert groups["age"][40] == "–"
    names, counts = np.unique(groups["age"][:40], return_counts=True)
    assert list(counts) == [10] * 4
    for record, age in enumerate(ages):
        low, high = map(float, groups["age"][record].split(" to "))
        assert low <= age <= high
    assert len(names) == 4


def test_one_text_among_numbers_leaves_them_as_they_are(written):
    rows = "".join(f"{record},{record}\n" for record in range(20))
    groups = Metadata(written(f"record,age\n{rows}20,old\n")).groups(np.arange(21))
    assert list(groups["age"]) == [*map(str, range(20)), "old"]
