"""Outputs in tables: the same as in arrays, whatever the order of rows and columns."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from commands import run
from documented import block, outputs_of
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from pyarrow import parquet

from mico_exp.challenge.output_tables import long, wide
from mico_exp.challenge.outputs import OF_LABEL, arrays
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import load_scenario
from mico_exp.challenge.truth import read_truth
from mico_exp.common.errors import InputError
from mico_exp.config import choices, codes
from mico_exp.config.dataset import source
from mico_exp.config.metrics import metrics_of, pass_metrics
from mico_exp.config.typed import OPTIONS
from mico_exp.models.recorded import take_in

M, N, C = 4, 12, 3
CLASSES = ["cat", "dog", "ship"]
OF_ALL = {"confidence", "logit", "loss", "margin"}
OF_CLASSES = {"entropy", "mod_entropy", "mod_entropy_stable"}
MODELS = ["run-a", "run-b", "run-c", "run-d"]
RECORDS = [f"{7 * i}" for i in range(N)]  # 7 is before 14 by number, and after it as text


@pytest.fixture
def pool():
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(C), (M, N))
    labels = draw.integers(C, size=N)
    own = p[:, np.arange(N), labels]
    return {
        "probabilities": p,
        "logits": np.log(p),
        "p_label": own,
        "loss": -np.log(own),
        "scores": draw.normal(size=(M, N)),
        "keep": draw.random((M, N)) < 0.5,
        "labels": labels,
    }


def shuffled(rows):
    return [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]


def long_rows(pool, kind, lists=False):
    """A dictionary for each model and record, in no order."""
    rows = []
    for m, n in np.ndindex(M, N):
        values = pool[kind][m, n]
        row = {"model": MODELS[m], "record": RECORDS[n], "member": int(pool["keep"][m, n])}
        if kind in OF_LABEL:
            row[kind] = float(values)
        else:
            row["label"] = CLASSES[pool["labels"][n]]
            if lists:
                row["p"] = values.tolist()
            else:
                row |= {
                    f"p_{name}": float(values[c]) for c, name in shuffled([*enumerate(CLASSES)])
                }
        rows.append(row)
    return shuffled(rows)


def write(path, rows):
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return str(path)
    with path.open("w", newline="") as file:
        sheet = csv.DictWriter(
            file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
        )
        sheet.writeheader()
        sheet.writerows(rows)
    return str(path)


def check_same(found, pool, kind, folder, **others):
    """Compare with arrays of the same content, in the order of the names."""
    labels = {} if kind in OF_LABEL else {"labels": pool["labels"]}
    np.savez(folder / "same.npz", **{kind: pool[kind]}, keep=pool["keep"], **labels, **others)
    same = arrays(str(folder / "same.npz"))
    for row in range(M):
        assert found.logits(row) == pytest.approx(same.logits(row), rel=1e-12)
    assert np.array_equal(found.keep, same.keep)
    assert np.array_equal(found.labels, same.labels)
    assert (found.kind, found.phases) == (same.kind, same.phases)
    assert found.names == tuple(RECORDS)
    assert found.models == tuple(MODELS)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("kind", OF_LABEL)
def test_long_tables_of_one_number(tmp_path, pool, kind, suffix):
    path = write(tmp_path / f"pool{suffix}", long_rows(pool, kind))
    check_same(long(path, kind), pool, kind, tmp_path)


@pytest.mark.parametrize("values", ["p_*", [f"p_{name}" for name in CLASSES], "p"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_long_tables_of_every_class(tmp_path, pool, kind, values):
    rows = long_rows(pool, kind, lists=values == "p")
    path = write(tmp_path / f"pool.{'parquet' if values == 'p' else 'csv'}", rows)
    check_same(long(path, kind, values, classes=CLASSES), pool, kind, tmp_path)


def test_columns_by_number_are_ordered_by_it(tmp_path, pool):
    """And labels that are numbers need no list of classes; a table may be in several files."""
    rows = long_rows(pool, "logits")
    for row in rows:
        row |= {f"z{c}": row.pop(f"p_{name}") for c, name in enumerate(CLASSES)}
        row["label"] = CLASSES.index(row["label"])
    halves = rows[:20], rows[20:]
    paths = [write(tmp_path / f"{i}.csv", half) for i, half in enumerate(halves)]
    check_same(long(paths, "logits", "z*"), pool, "logits", tmp_path)


def wide_rows(pool, kind, of=None):
    """A dictionary for each record, in no order, with the models in another than theirs."""
    places = [2, 0, 3, 1]
    values = pool[kind] if of is None else pool[of].astype(int)
    rows = [
        {"record": RECORDS[n], **{MODELS[m]: values[m, n].item() for m in places}} for n in range(N)
    ]
    return shuffled(rows) if of is None else rows


@pytest.mark.parametrize("kind", OF_LABEL)
@pytest.mark.parametrize("told", ["table", "mask", "suffix"])
def test_wide_tables(tmp_path, pool, kind, told):
    rows, of_members = wide_rows(pool, kind), wide_rows(pool, kind, "keep")
    how = {"members": write(tmp_path / "members.csv", of_members)}
    if told == "mask":  # in the order of the table's own columns and rows
        order = [RECORDS.index(row["record"]) for row in rows]
        np.save(tmp_path / "keep.npy", pool["keep"][[2, 0, 3, 1]][:, order])
        how = {"members": str(tmp_path / "keep.npy")}
    if told == "suffix":
        by_name = {row["record"]: row for row in of_members}
        for row in rows:
            row |= {f"{name}_in": by_name[row["record"]][name] for name in MODELS}
        how = {"suffix": "_in"}
    found = wide(write(tmp_path / "pool.csv", rows), kind, **how)
    check_same(found, pool, kind, tmp_path)


def lacking_long(folder, pool, missing):
    rows = [
        {**row, "phase": "final" if row["model"] == "run-d" else "train"}
        for row in long_rows(pool, "loss")
    ]
    rows = [row for row in rows if (row["model"], row["record"]) not in missing]
    return long(write(folder / "pool.csv", rows), "loss")


def lacking_wide(folder, pool, missing):
    rows = wide_rows(pool, "loss")
    for row in rows:
        row |= {model: "" for model, record in missing if row["record"] == record}
    members = write(folder / "members.csv", wide_rows(pool, "loss", "keep"))
    return wide(write(folder / "pool.csv", rows), "loss", members, phases={"run-d": "final"})


@pytest.mark.parametrize("read", [lacking_long, lacking_wide])
def test_a_target_is_asked_about_what_it_has(tmp_path, pool, read):
    outputs = read(tmp_path, pool, {("run-d", "14"), ("run-d", "0")})
    place = tmp_path / "data" / "c" / "c_inf", tmp_path / "data" / "truth" / "c" / "c_inf"
    take_in(*place, outputs, "key")
    scenario = load_scenario(tmp_path / "data", "c", "c_inf", Sizes(N))
    points = challenge_points(scenario)
    left = [n for n in range(N) if n not in (0, 2)]
    assert points.points_of("final", 0).tolist() == left
    assert points.points_of("train", 1).tolist() == list(range(N))
    truth = read_truth(tmp_path / "data", scenario)["final"]
    assert truth.tolist() == [pool["keep"][3, left].tolist()]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lacking_long, "got none of model run-b and record 14 .1 pairs have none"),
        (lacking_wide, "column 'run-b' is missing a value in row"),
    ],
)
def test_a_train_model_must_have_every_record(tmp_path, pool, read, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, pool, {("run-b", "14")})


def change(place, **values):
    return lambda rows: [row | values if i == place else row for i, row in enumerate(rows)]


def renamed(old, new):
    return lambda rows: [{new if k == old else k: v for k, v in row.items()} for row in rows]


def everywhere(**values):
    return lambda rows: [row | values for row in rows]


def same(rows):
    return rows


def relabelled(rows):
    first = rows[0]
    others = [name for name in CLASSES if name != first["label"]]
    return [first | {"label": others[0]}, *rows[1:]]


P = {"kind": "probabilities", "values": "p_*", "classes": CLASSES}
BAD_LONG = {
    "no column": (renamed("member", "in"), P, "must have column 'member', by .*member`, got model"),
    "a pair twice": (lambda rows: [*rows, rows[0]], P, "got 2 of model run-. and record"),
    "two labels": (relabelled, P, "a record must have one label, got '.*' with model run-"),
    "another label": (everywhere(label="bird"), P, "must be one of .*classes`, cat, .* got 'bird'"),
    "labels without classes": (
        renamed("p_ship", "p_0"),
        {**P, "classes": None},
        r"columns p_\* must end in the classes, 0, 1, 2, got",
    ),
    "numbers in another order": (same, {**P, "classes": [1, 0, 2]}, "in another order, 1, 0, 2"),
    "columns in another order": (
        same,
        {**P, "values": ["p_dog", "p_cat", "p_ship"]},
        "in the order of the classes, cat, dog, ship, got p_dog, p_cat, p_ship",
    ),
    "few columns": (
        same,
        {**P, "values": ["p_cat", "p_dog"]},
        "as many classes as .* has values of, 2, got 3",
    ),
    "no list": (same, {**P, "values": "p_cat"}, "must hold lists of numbers.* got double"),
    "member 2": (change(3, member=2), P, "'member' must be 1 or true .* got 2 in row 3"),
    "member yes": (everywhere(member="yes"), P, "'member' must hold numbers, 1 or true .* 'yes'"),
    "no number": (change(3, p_cat="NA"), P, "'p_cat' must hold numbers, got 'NA' in row 3"),
    "an empty field": (change(3, p_cat=""), P, "'p_cat' is missing a value in row 3"),
    "above one": (change(3, p_cat=1.5), P, "model run-.: `probabilities` must be in .* record "),
    "a kind": (same, {**P, "kind": "p"}, "kind` must be one of logits, .* got 'p'"),
    "classes of one number": (
        renamed("p_cat", "loss"),
        {"kind": "loss", "classes": CLASSES},
        "classes` is for values of every class, got kind loss",
    ),
    "two phases": (change(3, phase="final"), P, "must be of one phase"),
    "no train": (everywhere(phase="final"), P, "must hold train models, got none"),
}


@pytest.mark.parametrize(("changed", "how", "message"), BAD_LONG.values(), ids=BAD_LONG.keys())
def test_what_no_long_table_may_be(tmp_path, pool, changed, how, message):
    rows = long_rows(pool, "probabilities")
    if "phase" in message:
        rows = [row | {"phase": "train"} for row in rows]
    path = write(tmp_path / "pool.csv", changed(rows))
    with pytest.raises(InputError, match=message) as caught:
        take_in(tmp_path / "c" / "i", tmp_path / "t", long(path, **how), "key")
    assert "\n" not in str(caught.value)


def ragged(rows):
    return [rows[0] | {"p": [0.5, 0.5]}, *rows[1:]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (ragged, "of one length, 2 as the first, got 3 in row 1"),
        (everywhere(p=["a", "b"]), "lists of numbers, got list"),
        (change(0, p=None), "of one length, .* got none in row 0|got none in row 0"),
    ],
)
def test_what_no_column_of_lists_may_be(tmp_path, pool, changed, message):
    path = write(tmp_path / "p.parquet", changed(long_rows(pool, "probabilities", lists=True)))
    with pytest.raises(InputError, match=message):
        long(path, "probabilities", "p", classes=CLASSES)


BAD_WIDE = {
    "a kind of every class": (same, {"kind": "logits"}, "must be one of p_label, loss, scores"),
    "a record twice": (lambda rows: [*rows, rows[0]], {}, "a row for each record, got 2 of record"),
    "no members": (same, {"members": None}, "must tell `members`, .* or `suffix`, .* got neither"),
    "both": (same, {"suffix": "_in"}, "got both"),
    "no such columns": (same, {"members": None, "suffix": "_in"}, "must have column 'run-c_in'"),
    "another record": (change(2, record="1"), {}, "must have the records of .* only one .* '1'"),
    "another model": (renamed("run-b", "run-x"), {}, "members.csv: must have column 'run-x'"),
    "no model": (same, {"models": ["run-e"]}, "must have column 'run-e', by .*models`"),
    "phase of no model": (same, {"phases": {"run-e": "final"}}, "must name models, .* 'run-e'"),
    "a mask the other way": (
        same,
        {"members": "keep.npy"},
        r"mask of bool \(4, 12\), .* got bool of shape \(12, 4\)",
    ),
    "no such file": (same, {"members": "nothing.csv"}, "nothing.csv is missing: see `dataset.out"),
    "a pickle": (same, {"members": "pool.pkl"}, "pool.pkl: must be a table, .csv"),
}


@pytest.mark.parametrize(("changed", "how", "message"), BAD_WIDE.values(), ids=BAD_WIDE.keys())
def test_what_no_wide_table_may_be(tmp_path, pool, changed, how, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("keep.npy", pool["keep"].T)
    (tmp_path / "pool.pkl").write_bytes(b"cos\nsystem\n")
    write(tmp_path / "members.csv", wide_rows(pool, "loss", "keep"))
    path = write(tmp_path / "pool.csv", changed(wide_rows(pool, "loss")))
    with pytest.raises(InputError, match=message) as caught:
        wide(path, **{"kind": "loss", "members": "members.csv", **how})
    assert "\n" not in str(caught.value)


def test_long_table_as_documented(tmp_path, pool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "predictions.csv", long_rows(pool, "probabilities"))
    check_same(outputs_of("A long table"), pool, "probabilities", tmp_path)


def test_wide_table_as_documented(tmp_path, pool):
    """By the commands of the page, and the one that needs other models says so of one alone."""
    option = block("A wide table")
    assert len(option.splitlines()) <= 7
    options = tmp_path / "options" / "dataset"
    options.mkdir(parents=True)
    (options / "losses.yaml").write_text(option)
    write(tmp_path / "losses.csv", wide_rows(pool, "loss"))
    write(tmp_path / "members.csv", wide_rows(pool, "loss", "keep"))
    usual = ["mico_exp", "--config-dir=options", "plots=off", "-m"]
    grid = ["dataset=losses", "metric=loss,entropy,grad_norm", "formula=0"]
    refused = run(*usual, *grid, cwd=tmp_path, status=1).stderr
    assert "metric=entropy: it looks at all classes, and dataset=losses has one number a" in refused
    assert "metric=grad_norm: it needs the model's weights, and of dataset=losses only" in refused
    assert not (tmp_path / "data").exists()
    done = run(*usual, *grid, "hydra.sweeper.meaningless=skip", cwd=tmp_path)
    assert done.stdout.count("validation TPR") == 1
    done = run("mico_exp.select_best", usual[1], grid[0], cwd=tmp_path).stdout
    assert "No submission: losses/losses_inf has no dev and no final models." in done
    assert [one.name for one in (tmp_path / "submissions").iterdir()] == ["selection_losses.json"]
    run("mico_exp.report", usual[1], grid[0], cwd=tmp_path)
    assert (tmp_path / "reports" / "losses.html").is_file()
    usual.append("metric=loss")
    (options / "one.yaml").write_text(f"{option}  models: [run-b]\n".replace("losses\n", "one\n"))
    done = run(*usual, "dataset=one", "formula=none,0", cwd=tmp_path, status=1)
    assert done.stdout.count("validation") == 1
    assert "loss/0: Calibration needs at least one shadow model for each target" in done.stderr


@pytest.mark.parametrize("kind", ["logits", "loss"])
def test_what_outputs_let_be_computed(tmp_path, pool, kind, monkeypatch):
    """And a run of all of it is known again by its code."""
    monkeypatch.chdir(tmp_path)
    np.savez("pool.npz", **{name: pool[name] for name in (kind, "keep", "labels")})
    Path("options/dataset").mkdir(parents=True)
    option = block("Outputs alone").replace(
        "pool.npz", f"{tmp_path}/pool.npz"
    )  # it is kept by name
    Path("options/dataset/mine.yaml").write_text(option)
    place = f"hydra.searchpath=[file://{tmp_path}/options]"
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        typed = [place, "dataset=mine", "metric=all", "formula=stack"]
        cfg = compose("config", overrides=typed, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        chosen = choices.choice(cfg, "metric")
        found = metrics_of(chosen, "inf", False)
        assert set(found) == OF_ALL | (OF_CLASSES if kind == "logits" else set())
        lacks = source(cfg).lacks
        written = choices.written(chosen)
        code = codes.code(chosen, found)
        assert codes.logged_code("metric", "all", written, False, lacks) == code
        assert codes.logged_code("metric", "all", written, False) != code
        passed = pass_metrics({}, ["entropy", "kfac"], False, [chosen.exposure])
        assert set(passed) == ({"entropy"} if kind == "logits" else set())
