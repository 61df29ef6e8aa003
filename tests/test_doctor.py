"""Bad trees, one fault at a time: the doctor names it, and so does the pipeline before its work."""

import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from commands import run
from conftest import SIZES, tiny_recipe

from mico_exp.challenge import datasets
from mico_exp.challenge.points import challenge_points, known_training
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import load_scenario
from mico_exp.common.errors import InputError
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.runs.tracking import Tracker
from mico_exp.scores import estimate, gradients, metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import ModelRunner, Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.training.building import build

ARCHITECTURE = Architecture.of(MLP([64, 16, 10]))
EXPECTED = {"train": 12, "dev": 3, "final": 2}


@pytest.fixture
def tree(tmp_path, built):
    shutil.copytree(built, tmp_path / "data")
    return tmp_path / "data"


def examine(tree, sizes=SIZES):
    reports = estimate.examine(tree, "digits/digits_inf", EXPECTED, sizes, ARCHITECTURE)
    return reports, [finding for report in reports for finding in report.findings]


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def nan_weights(path):
    state = torch.load(path, weights_only=True)
    state["mlp.0.weight"][:2] = torch.inf
    torch.save(state, path)


def flip_a_bit(path):
    """In the values of a tensor, where nothing but the checksum can tell."""
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 500] ^= 16
    path.write_bytes(content)


def prefix_twice(path):
    state = torch.load(path, weights_only=True)
    torch.save({**state, "_module.mlp.2.bias": state["mlp.2.bias"]}, path)


def copy_from(source):
    """Put a file of the same scenario there."""
    return lambda path: shutil.copyfile(path.parents[2] / source, path)


def write(text):
    return lambda path: path.write_text(text)


FAULTS = {
    "empty seed": ("train/model_3/seed_training", write(""), "must be an integer"),
    "negative seed": ("train/model_3/seed_challenge", write("-4"), "must be an integer"),
    "seed in words": ("dev/model_13/seed_challenge", write("seven"), "got 'seven'"),
    "seed of 2^63": ("train/model_3/seed_membership", write(str(2**63)), "in [0, 2^63 - 1]"),
    "missing seed": ("train/model_3/seed_training", lambda p: p.unlink(), "is missing"),
    "another seed": ("train/model_3/seed_membership", write("5"), "disagrees with the seeds"),
    "short solution": (
        "train/model_3/solution.csv",
        write(",".join("10" * 9)),
        "expected one line of 20",
    ),
    "a 2 in a solution": (
        "train/model_3/solution.csv",
        write(",".join(["2", *"1010101010101010101"])),
        "20 values 0 or 1",
    ),
    "truncated weights": (
        "final/model_15/model.pt",
        lambda p: p.write_bytes(p.read_bytes()[:2000]),
        "model.pt: cannot be read",
    ),
    "malicious pickle": (
        "dev/model_13/model.pt",
        lambda p: p.write_bytes(pickle.dumps(Bomb())),
        "model.pt: cannot be read",
    ),
    "malicious torch file": (
        "dev/model_13/model.pt",
        lambda p: torch.save({"mlp.0.weight": Bomb()}, p),
        "model.pt: cannot be read",
    ),
    "another shape": (
        "train/model_3/model.pt",
        lambda p: torch.save(MLP([64, 8, 10]).state_dict(), p),
        "key `mlp.0.weight` must have shape (16, 64), got (8, 64)",
    ),
    "no weights": ("train/model_3/model.pt", lambda p: p.unlink(), "holds no weights"),
    "a flipped bit": ("train/model_3/model.pt", flip_a_bit, "differs from its checksum"),
    "a key twice": ("train/model_3/model.pt", prefix_twice, "key `mlp.2.bias` must be there once"),
    "two weights files": (
        "dev/model_13/pytorch_model.bin",
        copy_from("dev/model_13/model.pt"),
        "must hold one weights file, got model.pt and pytorch_model.bin",
    ),
    "weights of another": (
        "train/model_3/model.pt",
        copy_from("train/model_1/model.pt"),
        "model_1 and",
    ),
    "weights of another phase": (
        "dev/model_13/model.pt",
        copy_from("train/model_1/model.pt"),
        "hold equal weights",
    ),
    "infinite weights": ("train/model_3/model.pt", nan_weights, "128 weights are not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_named_and_fatal(tree, fault):
    place, spoil, message = FAULTS[fault]
    spoil(tree / "digits" / "digits_inf" / place)
    reports, findings = examine(tree)
    (finding,) = findings
    assert finding.fatal
    assert message in finding.message
    assert place.split("/")[1] in finding.message
    assert [report.sound for report in reports].count(False) == 1


def test_a_sound_tree_has_no_findings(built):
    reports, findings = examine(built)
    assert findings == []
    assert [(report.found, len(report.models)) for report in reports] == [(12, 12), (3, 3), (2, 2)]
    file = built / "digits" / "digits_inf" / "dev" / "model_12" / "model.pt"
    assert reports[1].weight_bytes == 3 * file.stat().st_size


def test_a_folder_that_is_no_model_is_fatal(tree):
    (tree / "digits" / "digits_inf" / "train" / "model_abc").mkdir()
    _, (finding,) = examine(tree)
    assert finding.fatal
    assert "model_abc: a model's folder must be named" in finding.message
    with pytest.raises(InputError, match="model_abc"):
        load_scenario(tree, "digits", "digits_inf", SIZES)


def test_all_that_is_there_twice_is_found(tree):
    """A number, seeds with other weights, and weights with other seeds, at once."""
    train = tree / "digits" / "digits_inf" / "train"
    (train / "model_7").rename(train / "model_03")
    for name in ("seed_challenge", "seed_training", "seed_membership", "solution.csv"):
        shutil.copy(train / "model_1" / name, train / "model_2" / name)
    for other in ("model_5", "model_6"):
        shutil.copy(train / "model_4" / "model.pt", train / other / "model.pt")
    flip_a_bit(train / "model_8" / "model.pt")
    reports, findings = examine(tree)
    said = [finding.message for finding in findings if finding.fatal]
    number, damage, seeds, weights = said
    assert number.startswith(f"{train / 'model_03'} and {train / 'model_3'} have the same number")
    assert f"{train / 'model_8' / 'model.pt'}: cannot be read" in damage
    assert seeds.startswith(f"{train / 'model_1'} and {train / 'model_2'} have the same seed_chal")
    assert weights.startswith(f"{train / 'model_4'} and {train / 'model_5'} hold equal weights")
    assert "(and 1 more)" in weights
    assert [len(report.models) for report in reports] == [11, 3, 2]


def test_a_gap_in_the_numbers_is_only_noted(tree):
    shutil.rmtree(tree / "digits" / "digits_inf" / "train" / "model_5")
    _, findings = examine(tree)
    assert not any(finding.fatal for finding in findings)
    text = " ".join(finding.message for finding in findings)
    assert "holds 11 models, 12 were expected" in text
    assert "gaps in its numbers: model_5" in text
    scenario = load_scenario(tree, "digits", "digits_inf", SIZES)
    assert challenge_points(scenario).solution.shape == (11, 20)


@pytest.mark.parametrize(("phase", "fatal"), [("train", True), ("dev", False), ("final", False)])
def test_a_missing_phase(tree, phase, fatal):
    shutil.rmtree(tree / "digits" / "digits_inf" / phase)
    _, (finding,) = examine(tree)
    assert finding.fatal is fatal
    assert phase in finding.place


def test_a_wrong_length_shows_in_every_solution(tree):
    _, findings = examine(tree, Sizes(1797, 120, 9))
    assert len(findings) == 12
    assert "expected one line of 18 values 0 or 1, got 20" in findings[0].message


def test_sizes_larger_than_the_data():
    with pytest.raises(InputError, match="300 records are too few"):
        Sizes(300, 295, 10)


@pytest.fixture(scope="module")
def larger(tmp_path_factory, digits):
    """A scenario with enough members for a clear word: 20 models × 30."""
    root = tmp_path_factory.mktemp("larger")
    sizes = Sizes(1797, 120, 30)
    build(root, tiny_recipe(sizes=sizes, models={"train": 20, "dev": 0, "final": 0}), digits)
    return load_scenario(root, "digits", "digits_inf", sizes)


def noted(scenario, records, folder):
    points = challenge_points(scenario)
    where = ARCHITECTURE, ScoreStore(folder / "store"), Processor("cpu")
    vitals = Extraction(scenario, points, records, *where).checkup.take()
    return estimate.check_vitals(scenario, vitals, points.solution)


def test_members_have_the_higher_score(larger, digits, tmp_path):
    assert noted(larger, digits, tmp_path) == []


def test_records_in_a_wrong_order_are_noted(larger, digits, tmp_path):
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(1797))
    wrong = datasets.Features(digits.features[shuffled], digits.labels[shuffled])
    (finding,) = noted(larger, wrong, tmp_path)
    assert not finding.fatal  # null experiments are a use
    assert "members cannot be told from non-members by the logit score (AUC 0." in finding.message
    assert "mean of 20 train models" in finding.message


def test_the_cost_is_of_the_right_size(built, digits):
    scenario = load_scenario(built, "digits", "digits_inf", SIZES)
    points = challenge_points(scenario)
    wanted = {"loss": metrics.loss, "logit": metrics.logit, "confidence": metrics.confidence}
    runner = ModelRunner(Processor("cpu"))

    def estimated(some):
        rates = estimate.measure(scenario, points, digits, ARCHITECTURE, runner, some)
        return estimate.estimate(scenario, points, rates, len(some))

    cost = estimated(wanted)
    assert cost.points == len(points.unique)
    assert cost.store_bytes == (12 * len(points.unique) + 5 * 20) * 3 * 12
    assert 0 < cost.seconds < 5
    assert cost.gradient_seconds == 0
    few, many = (
        estimated({"kfac": gradients.Kronecker(reference=n)}).gradient_seconds for n in (1, 1700)
    )
    assert 0 < few < many < 60


def test_ddp_seeds_that_are_missing_do_not_stop_an_attack(tmp_path, digits):
    build(tmp_path, tiny_recipe("digits_ddp", disclose_training=True), digits)
    (tmp_path / "digits" / "digits_ddp" / "dev" / "model_12" / "seed_training").unlink()
    scenario = load_scenario(tmp_path, "digits", "digits_ddp", SIZES)
    with pytest.raises(InputError, match=r"model_12/seed_training is missing"):
        known_training(scenario, "dev")
    assert known_training(scenario, "final").member.shape == (2, 1797)


def record(root, **of_phase):
    """Write what each phase's models in turn are to record as their ε."""
    scenario = load_scenario(root, "digits", "digits_inf", SIZES)
    for phase, values in of_phase.items():
        for i, model in enumerate(scenario.phases[phase]):
            (model.path / "epsilon").write_text(values[i % len(values)])
    return scenario


@pytest.mark.parametrize(
    ("recorded", "asked", "shown", "odd"),
    [
        ({}, None, None, None),
        ({}, 10, None, None),
        ({"train": ["9.9939"], "dev": ["9.99"]}, 10, "9.99–9.9939", None),
        ({"train": ["9.5", "10.5"]}, 10.0, "9.5–10.5", None),
        ({"train": ["9.49", "10"]}, 10, "9.49–10", "train (12), but `scenario.epsilon` is 10"),
        ({"train": ["10"], "final": ["10.51"]}, 10, "10–10.51", "10.51 in final (2), but"),
        ({"train": ["0.0101"]}, 0.02, "0.0101", None),  # as near as a search for noise comes
        (
            {"train": ["0.5"], "dev": ["0.5", "8"]},
            10,
            "0.5–8",
            "0.5 in train (12), 0.5–8 in dev (3)",
        ),
        ({"train": ["9.6"], "dev": ["10.4"]}, 10, "9.6–10.4", "10.4 in dev (3), but phases differ"),
        ({"train": ["4"]}, None, "4", "`scenario.epsilon` is null, no differential privacy"),
        ({"train": ["inf"], "dev": ["inf"]}, None, "inf", None),
        ({"train": ["inf"]}, 10, "inf", "`scenario.epsilon` is 10"),
        (
            {"train": ["inf"], "final": ["4"]},
            None,
            "4–inf",
            "inf in train (12), 4 in final (2), but",
        ),
    ],
)
def test_an_epsilon_that_is_not_the_scenarios_is_noted(tree, recorded, asked, shown, odd):
    every, finding = estimate.check_epsilon(record(tree, **recorded), asked)
    assert shown == (every and str(every))
    if odd is None:
        assert finding is None
    else:
        assert not finding.fatal
        assert finding.message.startswith("digits/digits_inf: models record ε = ")
        assert odd in finding.message


def test_phases_are_compared_where_the_scenarios_epsilon_is_not_known(tree):
    scenario = record(tree, train=["0.5"], dev=["0.5"])
    assert estimate.check_epsilon(scenario, known=False)[1] is None
    record(tree, final=["0.6"])
    assert "0.6 in final (2), but phases differ" in (
        estimate.check_epsilon(scenario, known=False)[1].message
    )


def test_an_epsilon_that_cannot_be_read_is_noted_and_named(tree):
    scenario = record(tree, train=["4", "unknown"])
    every, finding = estimate.check_epsilon(scenario, 4.0)
    assert every is None
    assert not finding.fatal
    assert "train/model_1/epsilon: ε must be a number above 0 or inf, got 'unknown'" in (
        finding.message
    )


def test_a_sweep_warns_of_it_once_and_the_doctor_notes_it(tree):
    record(tree, train=["0.5"], final=["8"])
    option = ["dataset.recipe=null", "dataset.len_training=120", "dataset.len_challenge=10"]
    option += ["dataset.model.widths=[64,16,10]"]
    cells = ["scenario=inf", "metric=loss", "formula=0,1", "plots=off", "-m"]
    swept = run("mico_exp", *cells, *option, cwd=tree.parent).stdout
    told = "digits/digits_inf: models record ε = 0.5 in train (12), 8 in final (2), but"
    assert swept.count(told) == 1
    assert swept.count("WARNING") == 1
    runs = Tracker("digits", tree.parent, create=False).finished({"kind": "cell"})
    assert [one.params["recorded_epsilon"] for one in runs] == ["0.5–8", "0.5–8"]
    examined = run("mico_exp.doctor", "scenarios=[inf]", *option, cwd=tree.parent).stdout
    assert examined.count(f"Note: {told} `scenario.epsilon` is null") == 1
    assert "An attack can run." in examined


def test_what_a_build_would_take(tmp_path):
    small = ["dataset.phases={train: 60, dev: 1, final: 0}", "dataset.recipe.steps=30"]
    told = run("mico_exp.doctor", "scenarios=[hi]", *small, cwd=tmp_path, status=1).stdout
    line = next(one for one in told.splitlines() if one.startswith("digits_hi is not there. "))
    assert re.fullmatch(
        r".* To build it: 61 models, 30 steps of [0-9.e-]+ s; about [0-9]+ s on \w+, in [12] "
        r"process\(es\), 1\.2 MB of disk\. python -m mico_exp\.build dataset=digits scenario=hi "
        r"'dataset\.phases=\{train: 60, dev: 1, final: 0\}' dataset\.recipe\.steps=30",
        line,
    )
    other = ["dataset=sst2", "scenarios=[inf]"]
    missing = run("mico_exp.doctor", *other, cwd=tmp_path, status=1).stdout
    assert "to build it" not in missing.lower()  # its records are what is said first
