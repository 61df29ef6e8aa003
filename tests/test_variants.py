"""Options with other arguments, as they are written and, from whomever, read back."""

import json

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mico_exp.common.errors import InputError
from mico_exp.config import variants

OFFSET = {
    "_target_": "mico_exp.attacks.formulas.offset",
    "_partial_": True,
    "w": 0.5,
    "k": 0.0,
    "centre": "mean",
}
NESTED = {
    "_target_": "mico_exp.attacks.disclosure.Conformal",
    "base": OFFSET,
    "cs": [0.1, 1.0],
    "none": None,
}


@pytest.mark.parametrize(
    ("usual", "set_to", "label"),
    [
        (OFFSET, {}, "x"),
        (OFFSET, {"w": 1.0}, "x[w=1.0]"),
        (OFFSET, {"w": "counts", "k": 1}, "x[w=counts, k=1]"),
        (OFFSET, {"centre": "null"}, 'x[centre="null"]'),
        (OFFSET, {"centre": "two words=[]"}, 'x[centre="two words=[]"]'),
        (OFFSET, {"w": None}, "x[w=null]"),
        (NESTED, {"base.w": 0.25, "cs": [0.5]}, "x[base.w=0.25, cs=[0.5]]"),
        (NESTED, {"none": True}, "x[none=true]"),
    ],
)
def test_a_variant_is_read_back_as_it_was_written(usual, set_to, label):
    here = variants.applied(usual, set_to)
    found = variants.changed("formula", "x", usual, here)
    assert found == set_to
    assert variants.label("x", found) == label
    texts = variants.overrides("formula", found)
    assert variants.read("formula", texts, usual) == set_to
    assert variants.applied(usual, variants.read("formula", texts, usual)) == here
    for text in texts:  # and Hydra reads the same
        parsed = OverridesParser.create().parse_override(text)
        assert f"{parsed.key_or_group}".startswith("formula.function.")
        assert json.loads(text.partition("=")[2]) == set_to[text[17:].partition("=")[0]]
        assert parsed.value() == set_to[text[17:].partition("=")[0]]


def without(name):
    return {key: value for key, value in OFFSET.items() if key != name}


@pytest.mark.parametrize(
    ("here", "key"),
    [
        ({**OFFSET, "_target_": "os.system"}, "_target_"),
        ({**OFFSET, "_partial_": False}, "_partial_"),
        ({**OFFSET, "gamma": 2}, "gamma"),
        (without("k"), "k"),
        ({**OFFSET, "w": {"a": 1}}, "w"),
        ({**OFFSET, "w": [[1]]}, "w"),
    ],
)
def test_what_is_no_variant_is_refused(here, key):
    with pytest.raises(
        InputError, match=rf"`formula\.function\.{key}.*must be as conf/formula/x\.ya"
    ):
        variants.changed("formula", "x", OFFSET, here)


@pytest.mark.parametrize(
    "text",
    [
        "formula.function._target_=os.system",
        'formula.function._target_="os.system"',
        'formula.function.base._target_="os.system"',
        "formula.function._args_=[1]",
        "formula.function._recursive_=true",
        "formula.function.__class__=1",
        "formula.function={}",
        "formula.function=1",
        "formula.function.w",
        "formula.function.w=",
        "formula.function.w=counts",
        'formula.function.w={"_target_": "os.system"}',
        'formula.function.w=[{"_target_": "os.system"}]',
        "formula.function.w=[[1]]",
        "formula.function.w=${oc.env:HOME}",
        "formula.function.w=NaN",
        "formula.function.w=" + "[" * 100_000,
        "formula.function.new=1",
        "+formula.function.w=1",
        "++formula.function.w=1",
        "~formula.function.w",
        "formula=offset",
        "formula.name=1",
        "metric.function.w=1",
        "hydra.searchpath=[file:///tmp]",
        "hydra/launcher=joblib",
        "--config-dir=/tmp",
        "-m",
        "",
        3,
        None,
        ["formula.function.w=1"],
        {"formula.function.w": 1},
    ],
    ids=lambda text: str(text)[:40],
)
def test_a_change_from_elsewhere_is_an_argument_or_nothing(text):
    with pytest.raises(InputError, match="a change must be") as caught:
        variants.read("formula", [text], {**NESTED, "w": 1})
    assert len(str(caught.value)) < 300


def test_the_code_of_a_function_is_its_own_and_its_arguments():
    plain = variants.code(OFFSET)
    assert plain == variants.code(dict(reversed(OFFSET.items())))
    others = [{"w": 0.25}, {"k": 1.0}, {"centre": "median"}]
    codes = {variants.code(variants.applied(OFFSET, one)) for one in others}
    assert len(codes | {plain}) == 4
    assert variants.code({**OFFSET, "_target_": "mico_exp.attacks.formulas.attack_r"}) != plain
    inner = variants.code(NESTED), variants.code(variants.applied(NESTED, {"base.w": 1.0}))
    assert inner[0] != inner[1]
