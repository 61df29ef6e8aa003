"""Models of which only outputs are known: arrays of NumPy, and the tree that is made of them."""

import itertools
import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from mico_exp.challenge.outputs import KINDS, arrays
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import load_scenario
from mico_exp.challenge.truth import read_truth
from mico_exp.common.errors import InputError
from mico_exp.config.dataset import check_keys
from mico_exp.config.setup import Source
from mico_exp.models.architectures import Architecture
from mico_exp.models.recorded import recorded, take_in
from mico_exp.scores import metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.store import ScoreStore

M, N, C = 6, 40, 3


@pytest.fixture
def pool():
    """Logits of models that know their members, in float64."""
    draw = np.random.default_rng(0)
    keep, labels = draw.random((M, N)) < 0.5, draw.integers(C, size=N)
    logits = draw.normal(0, 1, (M, N, C))
    logits[:, np.arange(N), labels] += 2 * keep
    return {"logits": logits, "keep": keep, "labels": labels}


def told(pool, kind):
    """The same outputs as another kind, by the definitions."""
    odds = np.exp(pool["logits"])
    p = odds / odds.sum(axis=2, keepdims=True)
    own = p[:, np.arange(N), pool["labels"]]
    values = {
        "logits": pool["logits"],
        "probabilities": p,
        "p_label": own,
        "loss": -np.log(own),
        "scores": np.log(own / (1 - own)),
    }
    others = {name: array for name, array in pool.items() if name != "logits"}
    return others | {kind: values[kind]}


def scores_of(root, outputs, metric):
    """Scores (M, N) as a cell reads them."""
    take_in(root / "c" / "c_inf", root / "truth" / "c" / "c_inf", outputs, "key")
    scenario = load_scenario(root, "c", "c_inf", Sizes(len(outputs.labels)))
    points = challenge_points(scenario)
    architecture = Architecture.of(recorded)
    store = ScoreStore(root / "store")
    extraction = Extraction(scenario, points, outputs.records, architecture, store)
    extraction.compute({"m": metric})
    found = extraction.read("m", metric)
    assert np.array_equal(points.is_member, outputs.keep)
    return found.shadow


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["file", "folder"])
def test_every_kind_gives_the_same_scores(tmp_path, pool, kind, place):
    of_kind = told(pool, kind)
    if place == "file":
        path = tmp_path / "pool.npz"
        np.savez(path, **of_kind)
    else:
        path = tmp_path / "pool"
        path.mkdir()
        for name, array in of_kind.items():
            np.save(path / f"{name}.npy", array)
    outputs = arrays(str(path))
    assert outputs.gives_classes == (kind in ("logits", "probabilities"))
    found = scores_of(tmp_path, outputs, metrics.logit)
    assert found == pytest.approx(told(pool, "scores")["scores"], rel=1e-5, abs=1e-5)


def test_a_tree_like_any_other(tmp_path, pool):
    phases = ["train"] * 3 + ["dev", "final", "train"]
    np.savez(tmp_path / "p.npz", **pool, phases=phases, challenge=[7, 3, 9])
    outputs = arrays(str(tmp_path / "p.npz"))
    root = tmp_path / "data"
    place = root / "c" / "c_inf", root / "truth" / "c" / "c_inf", outputs
    assert take_in(*place, "key")
    scenario = load_scenario(root, "c", "c_inf", Sizes(N))
    rows = {phase: [one.number for one in models] for phase, models in scenario.phases.items()}
    assert rows == {"train": [0, 1, 2, 5], "dev": [3], "final": [4]}
    points = challenge_points(scenario)
    for phase, numbers in rows.items():
        assert points.of_phase[phase].tolist() == [[7, 3, 9]] * len(numbers)
    assert points.solution.tolist() == pool["keep"][[0, 1, 2, 5]][:, [7, 3, 9]].tolist()
    truth = read_truth(root, scenario)
    assert truth["final"].tolist() == [pool["keep"][4, [7, 3, 9]].tolist()]
    for _, model in scenario.models():
        table = load_file(model.path / "model.safetensors")["outputs"]
        assert np.array_equal(table, pool["logits"][model.number])
    assert not list(scenario.phases["dev"][0].path.glob("*.npy"))  # nothing of its membership
    assert not take_in(*place, "key")


def test_taking_in_goes_on_where_it_stopped(tmp_path, pool):
    np.savez(tmp_path / "p.npz", **pool)
    place = tmp_path / "c" / "c_inf", tmp_path / "t"
    good = arrays(str(tmp_path / "p.npz"))
    take_in(*place, good, "key")
    expected = (place[0] / "train" / "model_5" / "model.safetensors").read_bytes()
    kept = (place[0] / "train" / "model_0" / "model.safetensors").stat().st_mtime_ns
    (place[0] / "train" / "keep.npy").unlink()
    (place[0] / "train" / "model_5" / "model.safetensors").unlink()
    (place[0] / "train" / "model_5").rmdir()
    assert take_in(*place, good, "key")
    assert (place[0] / "train" / "model_5" / "model.safetensors").read_bytes() == expected
    assert (place[0] / "train" / "model_0" / "model.safetensors").stat().st_mtime_ns == kept
    with pytest.raises(InputError, match="was made of other outputs"):
        take_in(*place, good, "another")
    (place[0] / "outputs.json").write_text("[")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        take_in(*place, good, "key")
    (place[0] / "outputs.json").unlink()
    with pytest.raises(InputError, match="was not made of outputs"):
        take_in(*place, good, "key")


@pytest.mark.parametrize("kind", ["probabilities", "p_label"])
def test_probabilities_of_exactly_0_and_1_tie(tmp_path, pool, kind, caplog):
    """As those of a forest do: what ties in p ties in every score, and that is said."""
    labels = pool["labels"]
    p = np.random.default_rng(1).integers(5, size=(M, N)) / 4
    p[:, :2] = [0, 1]
    if kind == "probabilities":
        every = np.repeat(((1 - p) / (C - 1))[..., None], C, axis=2)
        np.put_along_axis(every, np.broadcast_to(labels[None, :, None], (M, N, 1)), p[..., None], 2)
        values = every
    else:
        values = p
    np.savez(tmp_path / "p.npz", keep=pool["keep"], labels=labels, **{kind: values})
    outputs = arrays(str(tmp_path / "p.npz"))
    found = scores_of(tmp_path, outputs, metrics.logit)
    for row, column in itertools.product(range(M), range(N)):
        same = p == p[row, column]
        assert found[same] == pytest.approx(found[row, column], rel=1e-6), (row, column)
    order = [found[p == value].mean() for value in np.unique(p)]
    assert order == sorted(order)
    count = np.count_nonzero((p == 0) | (p == 1))
    assert f"{count} of {M * N} probabilities of records' classes are exactly 0 or 1" in caplog.text


def bad(**changes):
    return lambda pool: {**pool, **changes}


def without(name):
    return lambda pool: {key: value for key, value in pool.items() if key != name}


def with_value(kind, place, value):
    def change(pool):
        found = told(pool, kind)
        found[kind][place] = value
        return found

    return change


BAD = {
    "no mask": (without("keep"), "`keep` is missing"),
    "no classes": (without("labels"), "`labels` is missing"),
    "nothing": (without("logits"), "must hold one of logits, .*, got none, only keep, labels"),
    "two kinds": (bad(loss=np.ones((M, N))), "got logits, loss"),
    "a mask of another length": (
        bad(keep=np.ones((M, N - 1), bool)),
        r"`keep`: must be a mask of bool \(6, 40\), .*, got bool of shape \(6, 39\)",
    ),
    "a mask of other values": (bad(keep=np.full((M, N), 2)), "must be a mask"),
    "a mask of whole numbers": (bad(keep=np.ones((M, N), int)), "mask of bool .* got int64"),
    "axes": (bad(logits=np.ones((M, N))), r"\(models, records, classes\), got shape \(6, 40\)"),
    "classes outside": (bad(labels=np.full(N, 3)), r"labels must be in \[0, 2\].* got 3 for"),
    "classes below": (bad(labels=np.full(N, -1)), "whole numbers from 0 on"),
    "fractions": (bad(labels=np.full(N, 0.5)), "whole numbers from 0 on"),
    "challenge outside": (bad(challenge=[40]), r"in \[0, 39\], got .* with 40"),
    "challenge twice": (bad(challenge=[4, 4]), "with 4 2 times"),
    "no phase": (bad(phases=["test"] * M), "of train, dev, final, got 'test'"),
    "no train": (bad(phases=["dev"] * M), "must hold train models, got none"),
    "few phases": (bad(phases=["train"]), "a phase for each of 6 models"),
    "NaN": (with_value("logits", (2, 7, 1), np.nan), "model 2: `logits` must be finite.* record 7"),
    "above one": (with_value("p_label", (1, 3), 1.5), r"in \[0, 1\], got 1.5 for record 3"),
    "NaN in p": (with_value("p_label", (1, 3), np.nan), r"in \[0, 1\], got nan for record 3"),
    "a negative loss": (with_value("loss", (1, 3), -1), "at least 0, got -1.0 for record 3"),
    "sums": (with_value("probabilities", (1, 3), 1 / 5), "must sum to one, got 0.6 for record 3"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_what_no_outputs_may_be(tmp_path, pool, change, message):
    np.savez(tmp_path / "p.npz", **change(pool))
    with pytest.raises(InputError, match=message) as caught:
        take_in(tmp_path / "c" / "i", tmp_path / "t", arrays(str(tmp_path / "p.npz")), "key")
    assert "\n" not in str(caught.value)


def test_sums_that_are_slightly_off_are_told(tmp_path, pool, caplog):
    of_kind = told(pool, "probabilities")
    of_kind["probabilities"][1, 3] *= 1.001
    np.savez(tmp_path / "p.npz", **of_kind)
    take_in(tmp_path / "c" / "i", tmp_path / "t", arrays(str(tmp_path / "p.npz")), "key")
    said = [one.getMessage() for one in caplog.records if "do not sum to one" in one.getMessage()]
    assert len(said) == 1
    assert said[0].endswith("p.npz: model 1, record 3")
    assert "off by at most 0.001, in " in said[0]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", json.dumps({}).encode()])
def test_a_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"p.npz: cannot be read as arrays"):
        arrays(str(tmp_path / "p.npz"))


def test_a_pickle_is_not_opened(tmp_path, pool):
    np.savez(tmp_path / "p.npz", **pool, challenge=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"p.npz: cannot be read as arrays"):
        arrays(str(tmp_path / "p.npz"))


def test_half_precision_is_scored_in_single(tmp_path, pool):
    half = pool["logits"].astype(np.float16)
    np.savez(tmp_path / "p.npz", **{**pool, "logits": half})
    found = scores_of(tmp_path, arrays(str(tmp_path / "p.npz")), metrics.loss)
    single = torch.from_numpy(half.astype(np.float32))
    labels = torch.from_numpy(pool["labels"])
    assert np.array_equal(found, metrics.loss(single, labels).numpy())


def test_sums_of_four_decimals_are_not_told(tmp_path, pool, caplog):
    rounded = np.round(told(pool, "probabilities")["probabilities"], 4)
    assert np.abs(rounded.sum(axis=2) - 1).max() > 5e-5
    np.savez(tmp_path / "p.npz", **{**told(pool, "probabilities"), "probabilities": rounded})
    take_in(tmp_path / "c" / "i", tmp_path / "t", arrays(str(tmp_path / "p.npz")), "key")
    assert "do not sum to one" not in caplog.text


def test_what_was_begun_with_a_bad_value_is_made_anew(tmp_path, pool):
    """Nothing of a file that was refused stands in the way of the mended one."""
    place = tmp_path / "c" / "i", tmp_path / "t"
    bad = {**pool, "logits": pool["logits"].copy()}
    bad["logits"][3, 7, 1] = np.nan
    np.savez(tmp_path / "bad.npz", **bad)
    with pytest.raises(InputError, match="model 3: `logits` must be finite"):
        take_in(*place, arrays(str(tmp_path / "bad.npz")), "bad")
    assert (place[0] / "train" / "model_0").is_dir()
    other = {**pool, "logits": pool["logits"] + np.arange(C)}
    np.savez(tmp_path / "good.npz", **other)
    assert take_in(*place, arrays(str(tmp_path / "good.npz")), "good")
    for row in range(M):
        table = load_file(place[0] / "train" / f"model_{row}" / "model.safetensors")["outputs"]
        assert np.array_equal(table, other["logits"][row])


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("logits", {"weights", "inputs"}),
        ("probabilities", {"weights", "inputs", "logits"}),
        ("p_label", {"weights", "inputs", "logits", "classes"}),
        ("loss", {"weights", "inputs", "logits", "classes"}),
        ("scores", {"weights", "inputs", "logits", "classes", "likelihood"}),
    ],
)
def test_what_a_kind_does_not_tell(tmp_path, pool, kind, lacking):
    """A score of any scale is no probability, and sigmoid of it would tie the highest."""
    np.savez(tmp_path / "p.npz", **told(pool, kind))
    option = {"_target_": "mico_exp.challenge.outputs.arrays", "file": str(tmp_path / "p.npz")}
    assert set(Source("mine", OmegaConf.to_yaml(OmegaConf.create(option)), None).lacks) == lacking


def test_a_key_that_nothing_reads_is_refused():
    option = OmegaConf.create({"name": "mine", "outputs": {}, "keeps": "x.npy", "recipe": None})
    with pytest.raises(InputError, match=r"dataset/mine.yaml: `keeps` must be one of name, scen"):
        check_keys(option)
    with pytest.raises(InputError, match=r"`recordz` must be .*Is `records` meant\?"):
        check_keys(OmegaConf.create({"name": "mine", "recordz": {}}))
    del option.keeps
    check_keys(option)
