"""Outputs as other tools leave them on disk: the same as in arrays."""

import json
import pickle

import numpy as np
import pytest
import yaml
from documented import block, outputs_of
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from mico_exp.challenge.output_trees import leakpro, mi_lira_2021, privacy_meter, sacro
from mico_exp.challenge.outputs import arrays
from mico_exp.common.errors import InputError
from mico_exp.models.recorded import take_in

M, N, C = 11, 20, 3  # so many models that 10 is before 2 as text


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    return {
        "logits": draw.normal(size=(M, N, C)).astype(np.float32),
        "keep": draw.random((M, N)) < 0.5,
        "labels": draw.integers(C, size=N),
    }


def p_label(pool):
    odds = np.exp(pool["logits"])
    return (odds / odds.sum(axis=2, keepdims=True))[:, np.arange(N), pool["labels"]]


def check_same(found, **expected):
    np.savez("same.npz", **expected)
    same = arrays("same.npz")
    for row in range(len(same.keep)):
        assert np.array_equal(found.logits(row), same.logits(row))
    assert np.array_equal(found.keep, same.keep)
    assert np.array_equal(found.labels, same.labels)
    assert (found.kind, found.phases) == (same.kind, same.phases)
    assert found.files
    assert all(path.is_file() for path in found.files)


def write_lira(folder, pool):
    """As train.py, inference.py and score.py write; the second augmentation is the mirror image."""
    folder.mkdir()
    rest = np.zeros(5, dtype=np.int64)  # the data set may be longer than --dataset_size
    np.save(folder / "x_train.npy", np.zeros((N + 5, 2, 2, 3)))
    np.save(folder / "y_train.npy", np.concatenate([pool["labels"], rest]))
    for i in range(M):
        place = folder / f"experiment-{i}_{M}"
        for name in ("logits", "scores", "ckpt", "tb"):
            (place / name).mkdir(parents=True)
        (place / "hparams.json").write_text(json.dumps({"arch": "wrn28-2", "expid": i}))
        np.save(place / "keep.npy", pool["keep"][i])
        both = np.stack([pool["logits"][i], pool["logits"][i] + 1 + i], axis=1)[:, None]
        scores = np.log(p_label(pool)[i] / (1 - p_label(pool)[i])).astype(np.float64)
        for epoch, shift in ((99, 7), (100, 0)):
            np.save(place / "logits" / f"{epoch:010d}.npy", both + np.float32(shift))
            np.save(place / "scores" / f"{epoch:010d}.npy", np.stack([scores, -scores], 1) + shift)


def test_mi_lira_2021(tmp_path, pool):
    write_lira(tmp_path / "exp", pool)
    found = mi_lira_2021("exp")
    check_same(found, **pool)
    assert found.models[10] == "experiment-10_11"
    mean = np.stack([pool["logits"][i] + (1.0 + i) / 2 for i in range(M)])
    others = {name: pool[name] for name in ("keep", "labels")}
    by_mean = mi_lira_2021("exp", augmentations="mean")
    np.savez("mean.npz", logits=mean, **others)
    assert by_mean.logits(3) == pytest.approx(arrays("mean.npz").logits(3), rel=1e-5, abs=1e-5)
    p = p_label(pool)
    scores = np.log(p / (1 - p)).astype(np.float64)
    check_same(mi_lira_2021("exp", values="scores"), scores=scores, keep=pool["keep"])


def write_privacy_meter(folder, pool):
    (folder / "models").mkdir(parents=True)
    (folder / "signals").mkdir()
    np.save(folder / "models" / "memberships.npy", pool["keep"])
    np.save(folder / "signals" / "rmia_signals.npy", p_label(pool).T)
    np.save(folder / "signals" / "rmia_signals_pop.npy", p_label(pool).T[:7])


def test_privacy_meter(tmp_path, pool):
    write_privacy_meter(tmp_path / "log", pool)
    check_same(privacy_meter("log"), p_label=p_label(pool), keep=pool["keep"])


POPULATION = 50


def write_leakpro(folder, pool, binary=False):
    """The target's cache, and those of shadow models, each in an order of its own."""
    folder.mkdir()
    draw = np.random.default_rng(2)
    records = np.sort(draw.permutation(POPULATION)[:N])
    keep, labels = np.zeros((M, POPULATION), dtype=bool), np.full(POPULATION, 2)
    keep[:, records], labels[records] = pool["keep"], pool["labels"]
    np.save("keep.npy", keep)
    np.save("labels.npy", labels)
    for i in range(M):
        name = f"sm_{i}_8ca1" if i < M - 1 else "target_77ff"
        order = draw.permutation(N)
        logits = pool["logits"][i][order]
        np.save(folder / f"{name}_logits.npy", logits[:, 1] if binary else logits)
        np.save(folder / f"{name}_indices.npy", records[order])
        with (folder / f"metadata_{i}.pkl").open("wb") as file:
            pickle.dump({"train_indices": np.flatnonzero(keep[i])}, file)
    return records


def test_leakpro(tmp_path, pool):
    records = write_leakpro(tmp_path / "cache", pool)
    phases = ["train"] * (M - 1) + ["final"]
    found = leakpro("cache", "labels.npy", "keep.npy", target=True)
    check_same(found, **pool, phases=phases)
    assert found.names == tuple(map(str, records))
    assert found.models[:2] == ("sm_0_8ca1", "sm_1_8ca1")
    np.save("keep.npy", np.load("keep.npy")[:-1])
    without = {name: array[:-1] for name, array in pool.items() if name != "labels"}
    check_same(leakpro("cache", "labels.npy", "keep.npy"), **without, labels=pool["labels"])


def test_leakpro_of_one_output(tmp_path, pool):
    pool["labels"] %= 2
    write_leakpro(tmp_path / "cache", pool, binary=True)
    pool["logits"] = np.stack([np.zeros((M, N), np.float32), pool["logits"][..., 1]], axis=2)
    found = leakpro("cache", "labels.npy", "keep.npy", target=True)
    check_same(found, **pool, phases=["train"] * (M - 1) + ["final"])


MEMBERS = 12


def write_sacro(folder, pool, suffix="csv"):
    """As Target.save writes target.yaml, with arrays that were written as CSV instead."""
    folder.mkdir()
    odds = np.exp(pool["logits"][0].astype(np.float64))
    p = odds / odds.sum(axis=1, keepdims=True)
    told = {"dataset_name": "x", "features": {}, "generalisation_gap": 0.1, "safemodel": []}
    for name, rows in (("train", slice(MEMBERS)), ("test", slice(MEMBERS, None))):
        for key, array in ((f"proba_{name}", p[rows]), (f"y_{name}", pool["labels"][rows])):
            told[f"{key}_path"] = f"{key}.{suffix}"
            if suffix == "csv":
                np.savetxt(folder / f"{key}.csv", array, delimiter=",")
            else:
                (folder / f"{key}.pkl").write_bytes(pickle.dumps(array))
    told |= {"X_train_path": "X_train.pkl", "indices_train_path": ""}
    (folder / "target.yaml").write_text(yaml.dump(told, sort_keys=False))
    return p


def test_sacro(tmp_path, pool):
    p = write_sacro(tmp_path / "target", pool)
    keep = np.arange(N)[None] < MEMBERS
    check_same(sacro("target/target.yaml"), probabilities=p[None], keep=keep, labels=pool["labels"])
    names = np.array(["no", "yes", "perhaps"])
    (tmp_path / "target" / "y_test.csv").write_text("\n".join(names[pool["labels"][MEMBERS:]]))
    (tmp_path / "target" / "y_train.csv").write_text("\n".join(names[pool["labels"][:MEMBERS]]))
    found = sacro("target/target.yaml", classes=names.tolist())
    check_same(found, probabilities=p[None], keep=keep, labels=pool["labels"])


def saved(name, array):
    return lambda place: np.save(place / name, array)


def written(name, text):
    return lambda place: (place / name).write_text(text)


def without(name):
    return lambda place: (place / name).unlink()


def made_twice(place):
    (place / "experiment-3_64").mkdir()


def another_order(place):
    np.save(place / "sm_1_8ca1_indices.npy", np.arange(N))


def of_target(**changes):
    def change(place):
        path = place / "target.yaml"
        path.write_text(yaml.dump({**yaml.safe_load(path.read_text()), **changes}))

    return change


E3 = f"experiment-3_{M}"
LEAK = {"labels": "labels.npy", "keep": "keep.npy", "target": True}
BAD = {
    "no experiments": (write_lira, mi_lira_2021, {"folder": "same"}, made_twice, "same is missing"),
    "an experiment twice": (write_lira, mi_lira_2021, {}, made_twice, "must hold one experiment 3"),
    "no epoch": (
        write_lira,
        mi_lira_2021,
        {},
        lambda place: [one.unlink() for one in (place / E3 / "logits").iterdir()],
        rf"{E3}.logits: must hold the logits of an epoch, .* inference.py writes; got none",
    ),
    "axes": (
        write_lira,
        mi_lira_2021,
        {},
        saved(f"{E3}/logits/0000000200.npy", np.zeros((N, C))),
        r"0000000200.npy: must be \(records, 1, augmentations, classes\), got \(20, 3\)",
    ),
    "another length": (
        write_lira,
        mi_lira_2021,
        {},
        saved(f"{E3}/logits/0000000200.npy", np.zeros((N + 1, 1, 2, C))),
        r"0000000200.npy: must be \(20, 1, 2, 3\) as .*, got \(21, 1, 2, 3\)",
    ),
    "keep": (
        write_lira,
        mi_lira_2021,
        {},
        saved(f"{E3}/keep.npy", np.ones(N - 1, dtype=bool)),
        r"keep.npy: must be a mask of bool \(20,\), got bool of shape \(19,\)",
    ),
    "no keep": (write_lira, mi_lira_2021, {}, without(f"{E3}/keep.npy"), "keep.npy: cannot be re"),
    "few labels": (
        write_lira,
        mi_lira_2021,
        {},
        saved("y_train.npy", np.zeros(3, dtype=int)),
        "y_train.npy: must be the classes of at least 20 records, .* int64 of shape .3,",
    ),
    "augmentations": (
        write_lira,
        mi_lira_2021,
        {"augmentations": "all"},
        made_twice,
        "augmentations` must be first or mean, got 'all'",
    ),
    "NaN": (
        write_lira,
        mi_lira_2021,
        {},
        saved(f"{E3}/logits/0000000200.npy", np.full((N, 1, 2, C), np.nan)),
        f"model {E3}: `logits` must be finite, got nan for record 0",
    ),
    "a sample": (
        write_privacy_meter,
        privacy_meter,
        {},
        saved("signals/rmia_signals.npy", np.ones((N - 2, M))),
        r"must be \(records, models\), \(20, 11\) as .* got \(18, 11\); which records a sample was",
    ),
    "no signals": (
        write_privacy_meter,
        privacy_meter,
        {"signals": "signals/loss_signals.npy"},
        made_twice,
        "loss_signals.npy: cannot be read as an array: ",
    ),
    "pickled signals": (
        write_privacy_meter,
        privacy_meter,
        {"signals": "models/model_0.pkl"},
        made_twice,
        "model_0.pkl is a pickle, which is not opened: write an array",
    ),
    "p above one": (
        write_privacy_meter,
        privacy_meter,
        {},
        saved("signals/rmia_signals.npy", np.full((N, M), 1.5)),
        r"`p_label` must be in \[0, 1\], got 1.5 for record 0",
    ),
    "no keep of LeakPro": (
        write_leakpro,
        leakpro,
        {**LEAK, "keep": None},
        str,
        "keep` must name a mask .* is a pickle, which is not opened. Write their train_indices",
    ),
    "a pickle as keep": (
        write_leakpro,
        leakpro,
        {**LEAK, "keep": "cache/metadata_0.pkl"},
        str,
        "metadata_0.pkl is a pickle, which is not opened: write an array",
    ),
    "keep without the target": (
        write_leakpro,
        leakpro,
        {**LEAK, "target": False},
        str,
        r"keep.npy: must be a mask of bool \(10, 50\), a row for each model .* shape \(11, 50\)",
    ),
    "no indices": (
        write_leakpro,
        leakpro,
        LEAK,
        without("sm_1_8ca1_indices.npy"),
        "indices.npy is missing: nothing else tells which records sm_1_8ca1_logits.npy is of",
    ),
    "other records": (write_leakpro, leakpro, LEAK, another_order, "must be of the records of "),
    "two targets": (
        write_leakpro,
        leakpro,
        LEAK,
        saved("target_22_logits.npy", np.ones(3)),
        "must hold the target's logits, one file target.*_logits.npy, got target_22_l",
    ),
    "few classes": (
        write_leakpro,
        leakpro,
        LEAK,
        saved("../labels.npy", np.zeros(7, dtype=int)),
        r"must be a mask of bool \(11, 7\)",
    ),
    "a pickle of SACRO": (
        lambda folder, pool: write_sacro(folder, pool, "pkl"),
        sacro,
        {},
        str,
        "proba_train.pkl is a pickle, which is not opened. Write proba_train.csv without a header, "
        "and name it in target.yaml as `proba_train_path`",
    ),
    "no probabilities": (
        write_sacro,
        sacro,
        {},
        of_target(proba_test_path=""),
        "target.yaml: must name a file as `proba_test_path`, got nothing. Write proba_test.csv",
    ),
    "a header": (
        write_sacro,
        sacro,
        {},
        written("proba_test.csv", "a,b,c\n.1,.2,.7\n"),
        "proba_test.csv: must hold numbers, separated by commas and without a header: ",
    ),
    "few columns": (
        write_sacro,
        sacro,
        {},
        written("proba_test.csv", "0.5,0.5\n"),
        "proba_test.csv: must have 3 columns, as .*proba_train.csv has, got 2",
    ),
    "a label": (
        write_sacro,
        sacro,
        {},
        written("y_test.csv", "0\n-1\n"),
        "y_test.csv: the label in line 1 must be a whole number from 0 on, or be in `classes`, got",
    ),
    "few lines": (
        write_sacro,
        sacro,
        {},
        written("y_test.csv", "0\n1\n"),
        "y_test.csv: must have a label for each of 8 rows of probabilities, got 2",
    ),
    "no YAML": (write_sacro, sacro, {}, written("target.yaml", "[:"), "cannot be read as YAML"),
    "no mapping": (write_sacro, sacro, {}, written("target.yaml", "3"), "must be a mapping"),
}


@pytest.mark.parametrize(
    ("write", "read", "how", "change", "message"), BAD.values(), ids=BAD.keys()
)
def test_what_no_tree_may_be(tmp_path, pool, write, read, how, change, message):
    names = {mi_lira_2021: "exp", privacy_meter: "log", leakpro: "cache", sacro: "target"}
    name = names[read]
    write(tmp_path / name, pool)
    change(tmp_path / name)
    first = {"file": f"{name}/target.yaml"} if read is sacro else {"folder": name}
    with pytest.raises(InputError, match=message) as caught:
        take_in(tmp_path / "c" / "i", tmp_path / "t", read(**{**first, **how}), "key")
    assert "\n" not in str(caught.value)


DOCUMENTED = {
    "mi_lira_2021": (write_lira, "exp/cifar10"),
    "Privacy Meter": (write_privacy_meter, "demo"),
    "LeakPro": (write_leakpro, "attack_cache_folder"),
    "SACRO": (write_sacro, "target"),
}


@pytest.mark.parametrize("title", DOCUMENTED)
def test_trees_as_documented(tmp_path, pool, title):
    write, folder = DOCUMENTED[title]
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    write(tmp_path / folder, pool)
    assert len(block(title).splitlines()) <= 5 or title == "LeakPro"
    outputs = outputs_of(title)
    first = pool["logits"][0] - pool["logits"][0, :, :1]
    if title == "Privacy Meter":
        assert outputs.values(0).tolist() == p_label(pool)[0].tolist()
    else:
        found = outputs.logits(0)
        assert found - found[:, :1] == pytest.approx(first, abs=1e-5)


def test_arrays_as_documented(tmp_path, pool):
    np.savez("pool.npz", **pool)
    check_same(outputs_of("Outputs alone"), **pool)


def test_forest_as_documented(tmp_path, monkeypatch):
    """By the lines of the page, which have 3 lines of Python and 5 of YAML."""
    monkeypatch.chdir(tmp_path)
    x, numbers = load_iris(return_X_y=True)
    y = np.array(["virginica", "setosa", "versicolor"])[numbers]
    keep = np.random.default_rng(0).random((3, len(x))) < 0.5
    forest = RandomForestClassifier(10, n_jobs=2, random_state=0)
    models = [forest.__class__(**forest.get_params()).fit(x[one], y[one]) for one in keep]
    title = "A forest, or any classifier with `predict_proba`"
    lines = block(title, "python")
    exec(lines, {"np": np, "models": models, "x": x, "y": y, "keep": keep})
    outputs = outputs_of(title)
    right = [np.mean(outputs.logits(row).argmax(axis=1) == outputs.labels) for row in range(3)]
    by_models = [model.score(x, y) for model in models]
    assert right == pytest.approx(by_models)
    assert np.array_equal(outputs.keep, keep)
    assert len(lines.splitlines()) == 3
    assert len(block(title).splitlines()) == 5
