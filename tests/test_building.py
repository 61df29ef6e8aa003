"""Builds of any network: what is written, and how a build ends, goes on and is refused."""

import json
import logging
import re
import resource
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from conftest import SIZES, tiny_recipe
from failing import once_deadly
from safetensors.torch import load_file, save_file
from test_recipe import contents
from torch import nn
from worlds import ROBERTA, write_sst2

from mico_exp.challenge import datasets
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.records import Features
from mico_exp.challenge.tree import load_scenario
from mico_exp.common import pool
from mico_exp.common.errors import InputError
from mico_exp.config import compose
from mico_exp.config.dataset import network as network_of
from mico_exp.config.recipe import recipe
from mico_exp.models.architectures import roberta
from mico_exp.models.classifiers import Pretrained
from mico_exp.models.weights import load_state
from mico_exp.scores.trial import check_training
from mico_exp.training import building
from mico_exp.training.building import build, is_complete
from mico_exp.training.making import Making, step_seconds
from mico_exp.training.mechanism import of_build
from mico_exp.training.recipe import Fresh, PrivacyTarget
from mico_exp.training.steps import Plan


class Pictures(nn.Sequential):
    """A convolution for digits as pictures, and dropout, which draws random numbers."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 10))
        )


class Diverging(Pictures):
    """Gives no numbers where it was so drawn."""

    def forward(self, inputs):
        odd = self[0].bias[0] > 0
        return super().forward(inputs) * (torch.nan if odd else 1)


SGD = partial(torch.optim.SGD, lr=0.1)
PLAN = Plan(12, 16, SGD, partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9))
ONE = {"train": 1, "dev": 0, "final": 0}
LENGTHS = "len_training", "len_challenge"
PRIVATE = PrivacyTarget(4.0, 1e-5, 1.0, "pld")


def pictures(digits=None):
    digits = digits or datasets.digits()
    return Features(digits.features.view(-1, 1, 8, 8), digits.labels)


def recipe_of(make=Pictures, **changes):
    usual = {"widths": None, "network": Fresh(make, {"_target_": make.__name__}), "plan": PLAN}
    return tiny_recipe(**{**usual, "models": {"train": 3, "dev": 1, "final": 1}, **changes})


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    build(root, recipe_of(), pictures())
    return root


def test_a_network_is_written_with_what_it_gives_on_members_and_others(tree, digits):
    scenario = load_scenario(tree, "digits", "digits_inf", SIZES)
    records, states = pictures(digits), []
    for folder in scenario.phases["train"]:
        model = Pictures()
        states.append(load_state(folder.path / "model.pt", model))
        model.load_state_dict(states[-1])
        right = (model.eval()(records.features).argmax(dim=1) == digits.labels).numpy()
        split = folder.split(SIZES)
        members = np.concatenate([split.member, split.training])
        for name, some in (("accuracy", split.evaluation), ("accuracy_members", members)):
            assert (folder.path / name).read_text() == f"{right[some].mean():.4f}\n"
    assert not torch.equal(states[0]["0.weight"], states[1]["0.weight"])
    told = json.loads((tree / "digits" / "digits_inf" / "build.json").read_text())
    assert told["network"] == {"_target_": "Pictures"}
    assert told["schedule"] == "ExponentialLR(gamma=0.9) each epoch"
    assert (told["widths"], told["steps"]) == (None, 12)


def test_processes_make_the_same_tree_and_so_does_one_that_was_interrupted(
    tree, digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(pool, "start_method", lambda: "fork")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    written, write = [], building.Writer.write

    def interrupted(writer, made):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(made.number)
        write(writer, made)

    monkeypatch.setattr(building.Writer, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, recipe_of(), pictures(digits))
    assert len(list(tmp_path.rglob("model.pt"))) == 2
    monkeypatch.setattr(building.Writer, "write", write)
    assert build(tmp_path, recipe_of(), pictures(digits))
    assert contents(tmp_path) == contents(tree)
    assert not build(tmp_path, recipe_of(), pictures(digits))


class Deadly(Pictures):
    """Its first process is killed while it trains, as where memory runs out."""

    def __init__(self, marker):
        super().__init__()
        self.marker = marker

    def forward(self, inputs):
        logits = super().forward(inputs)
        if self.training:
            once_deadly(logits, torch.zeros(len(inputs), dtype=torch.int64), self.marker)
        return logits


def test_a_process_that_is_killed_costs_no_more_than_its_model(
    tree, digits, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(pool, "start_method", lambda: "fork")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    deadly = Fresh(partial(Deadly, tmp_path / "killed"), {"_target_": "Pictures"})
    build(tmp_path / "tree", recipe_of(network=deadly), pictures(digits))
    assert contents(tmp_path / "tree") == contents(tree)
    assert re.search(r"model_\d begins again: its process was ended by signal 9", caplog.text)


def build_slowly(root):
    """A build whose steps take a while, so that it can be met at any of them."""
    step = torch.optim.SGD.step

    def slow(*arguments):
        time.sleep(0.02)
        return step(*arguments)

    torch.optim.SGD.step = slow
    build(Path(root), recipe_of(), pictures())


def test_a_build_may_be_killed_at_any_instant(tree, tmp_path):
    for after in (0.1, 0.6):
        process = call(build_slowly, tmp_path)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.ended()
    for model in tmp_path.rglob("model.pt"):
        load_state(model, Pictures())
    assert call(build_slowly, tmp_path).ended().returncode == 0
    assert contents(tmp_path) == contents(tree)


def test_of_two_builders_at_once_one_waits(tree, tmp_path):
    both = [call(build_slowly, tmp_path) for _ in range(2)]
    assert [one.ended().returncode for one in both] == [0, 0]
    assert contents(tmp_path) == contents(tree)


def test_differential_privacy_of_a_network(digits, tmp_path):
    build(tmp_path, recipe_of(privacy=PRIVATE, models=ONE), pictures())
    folder = tmp_path / "digits" / "digits_inf" / "train" / "model_0"
    state = torch.load(folder / "model.pt", weights_only=True)
    assert all(name.startswith("_module.") for name in state)
    assert 4 - 0.01 < float((folder / "epsilon").read_text()) <= 4
    told = json.loads((folder.parents[1] / "build.json").read_text())
    assert (told["accountant"], told["clip_norm"]) == ("pld", 1.0)
    known = of_build(folder.parents[1])
    del told["noise_multiplier"]
    (tmp_path / "build.json").write_text(json.dumps(told))  # as it was written at first
    assert known == of_build(tmp_path)  # found by a search, to the same bit
    assert known.noise_multiplier == recipe_of(privacy=PRIVATE).privacy_for().noise_multiplier


def test_a_model_that_diverges_is_named_and_the_others_are_there(tmp_path, digits):
    how, records = recipe_of(Diverging), pictures(digits)
    for _ in range(2):  # the second time nothing else is left to do
        with pytest.raises(InputError, match="could not be trained, all others are") as caught:
            build(tmp_path, how, records)
        found = {path.parent.name for path in tmp_path.rglob("model.pt")}
        named = {
            f"model_{k}"
            for k in range(5)
            if f"model_{k}: its loss is not finite" in str(caught.value)
        }
        assert found | named == {f"model_{k}" for k in range(5)}
        assert found
        assert named
        assert not found & named
        assert not is_complete(tmp_path, how)


def test_a_full_disk_is_one_line(tmp_path, digits):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    heeded = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, usual[1]))
        with pytest.raises(InputError, match=r"cannot be written: File too large\.$"):
            build(tmp_path, recipe_of(), pictures(digits))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, heeded)
    assert not list(tmp_path.rglob("model_*"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan": replace(PLAN, steps=13)}, "steps = 12, but 13"),
        ({"plan": replace(PLAN, schedule=None)}, "each epoch', but None"),
        ({"plan": replace(PLAN, schedule_each="step")}, "each epoch', but .* each step'"),
        ({"network": Fresh(Pictures, {"_target_": "Other"})}, "network = .*Pictures.*Other"),
        ({"seed": 1}, "seed = 0, but 1"),
    ],
)
def test_another_recipe_is_refused_with_what_differs(changes, said, tree, digits):
    with pytest.raises(InputError, match=f"was built with .*{said}"):
        build(tree, recipe_of(**changes), pictures(digits))


def test_other_records_are_refused(tree, digits):
    other = Features(pictures(digits).features * 2, digits.labels)
    with pytest.raises(InputError, match="built from other records than are loaded now"):
        build(tree, recipe_of(), other)


def test_models_from_elsewhere_stay_as_they_are(tree, digits, tmp_path):
    shutil.copytree(tree, tmp_path / "data")
    scenario = tmp_path / "data" / "digits" / "digits_inf"
    (scenario / "build.json").unlink()
    shutil.rmtree(tmp_path / "data" / "truth")
    before = contents(tmp_path)
    assert is_complete(tmp_path / "data", recipe_of())
    assert not build(tmp_path / "data", recipe_of(), pictures(digits))
    assert contents(tmp_path) == before
    shutil.rmtree(scenario / "dev")
    with pytest.raises(InputError, match=r"holds models but no build\.json"):
        build(tmp_path / "data", recipe_of(), pictures(digits))


def test_a_network_that_is_no_new_one_is_refused(digits):
    shared = Pictures()
    with pytest.raises(InputError, match="must give another network every time, got the same"):
        building.untrained(recipe_of(network=Fresh(lambda: shared)))
    with pytest.raises(InputError, match="must give a torch module, got method"):
        building.untrained(recipe_of(network=Fresh(lambda: shared.forward)))


class Silent(Pictures):
    """Gives something, but no logits."""

    def forward(self, inputs):
        return {"hidden": super().forward(inputs)}


def test_a_network_that_gives_no_logits_is_refused_before_any_work(digits):
    with pytest.raises(InputError, match=r"`dataset\.model`.* a network must give logits"):
        check_training(building.untrained(recipe_of(Silent)), pictures(digits))


def test_the_time_of_a_step(digits):
    plan = Plan(400, 16, SGD)
    piece = next(building.planned_pieces(recipe_of(plan=plan))).piece
    making = Making(recipe_of(plan=plan), plan, pictures(digits), None, None, "cpu")
    started = time.perf_counter()
    each = step_seconds(making, piece)
    assert 0 < each < (time.perf_counter() - started) / 5


# ---------------------------------------------------------------- pretrained networks


@pytest.fixture
def pretrained(tmp_path):
    """A RoBERTa as it comes from pretraining: no head of this task, keys without a prefix."""
    from transformers import RobertaConfig, RobertaModel

    folder = tmp_path / "roberta"
    folder.mkdir()
    network = RobertaModel(RobertaConfig(**ROBERTA))
    save_file(
        {k: v.contiguous() for k, v in network.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({**ROBERTA, "num_labels": 7}))
    return folder


def test_a_build_begins_with_a_pretrained_network(pretrained, tmp_path):
    write_sst2(tmp_path / "sst2", np.random.default_rng(0))
    records = datasets.sst2(tmp_path / "sst2", str(tmp_path / "sst2" / "tokenizer"), 67)
    begin = Fresh(Pretrained(str(pretrained), num_labels=2))
    one, other = begin.network(0), begin.network(1)
    name = "roberta.encoder.layer.0.attention.self.query.weight"
    for network in (one, other):
        state = network.stored.state_dict()
        kept = load_file(pretrained / "model.safetensors")
        assert torch.equal(state[name], kept[name.removeprefix("roberta.")])
        assert state["classifier.out_proj.weight"].shape == (2, 32)
    head = "classifier.dense.weight"
    assert not torch.equal(one.stored.state_dict()[head], other.stored.state_dict()[head])
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    sizes = {"sizes": Sizes(300, 150, 6), "models": ONE}
    how = recipe_of(network=begin, plan=Plan(2, 16, optimizer), **sizes)
    build(tmp_path / "data", how, records)
    folder = tmp_path / "data" / "digits" / "digits_inf" / "train" / "model_0"
    assert json.loads((folder / "config.json").read_text()) == {**ROBERTA, "num_labels": 2}
    load_state(folder / "model.pt", roberta(folder))
    (pretrained / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"roberta holds no weights: expected one of"):
        begin.network(0)


# ---------------------------------------------------------------- recipes in option files


def recipe_from(composed, *overrides):
    cfg = composed(*overrides)
    how = recipe(cfg, cfg.scenario, network_of(cfg))
    sizes = (cfg.dataset.num_records, cfg.dataset.len_training, cfg.dataset.len_challenge)
    return how(sizes=Sizes(*sizes))


@pytest.mark.parametrize(
    ("dataset", "scenario", "steps", "batch", "rate", "clip"),
    [
        ("cifar10", "inf", 50 * 1563, 32, 0.005, None),
        ("cifar10", "hi", 50 * 98, 512, 0.5, 2.6),
        ("cifar10", "ddp", 50 * 98, 512, 0.5, 2.6),
        ("purchase100", "inf", 30 * 293, 512, 0.001, None),
        ("purchase100", "lo", 30 * 293, 512, 0.001, 2.6),
        ("sst2", "inf", 3 * 702, 96, 5e-5, None),
        ("sst2", "lo", 3 * 66, 1024, 5e-4, 0.1),
        ("digits", "lo", 400, 32, 0.1, 1.0),
    ],
)
def test_the_competitions_recipes(dataset, scenario, steps, batch, rate, clip, composed):
    made = recipe_from(composed, f"dataset={dataset}", f"scenario='{scenario}'")
    assert (made.plan.steps, made.plan.batch_size) == (steps, batch)
    assert made.plan.optimizer.keywords["lr"] == rate
    assert (made.privacy and made.privacy.clip_norm) == clip
    assert made.sample_rate == batch / made.sizes.training
    assert made.privacy is None or made.privacy.accountant == (
        "prv" if dataset == "digits" else "pld"
    )


def rates(plan, steps, every):
    optimizer = plan.optimizer([torch.zeros(1, requires_grad=True)])
    schedule, found = plan.schedule(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found[::every]


def test_the_competitions_schedules(composed):
    cifar = recipe_from(composed, "dataset=cifar10", "scenario=hi").plan
    assert cifar.schedule_each == "epoch"
    assert np.allclose(rates(cifar, 3, 1), [0.5, 0.5 * 0.96, 0.5 * 0.96**2])
    purchase = recipe_from(composed, "dataset=purchase100", "scenario='inf'").plan
    assert np.allclose(rates(purchase, 12, 5), [1e-3, 9e-4, 8.1e-4])


def test_sizes_are_the_users(composed):
    small = ["dataset.len_training=200", "dataset.phases.train=20", "dataset.num_records=600"]
    for change, steps in (("epochs=2", 2 * 7), ("epochs=null", None)):
        more = ["dataset.recipe.steps=9"] if steps is None else []
        made = recipe_from(composed, "dataset=cifar10", *small, f"dataset.recipe.{change}", *more)
        assert (made.plan.steps, made.total) == (steps or 9, 120)
    assert made.plan_for(400).steps == 9
    by_epochs = recipe_from(composed, "dataset=cifar10", *small, "dataset.recipe.epochs=2")
    assert by_epochs.plan_for(400).steps == 2 * 13
    private = [
        "scenario=hi",
        "+dataset.recipe.private.steps=7",
        "dataset.recipe.private.batch_size=8",
    ]
    assert recipe_from(composed, "dataset=cifar10", *small, *private).plan.steps == 7
    bare = recipe_from(
        *(composed, "dataset=cifar10", "scenario=hi", "+dataset.recipe.private.schedule=null"),
        *("dataset.recipe.batch_size=16", "dataset.recipe.private.batch_size=64"),
    )
    assert (bare.plan.schedule, bare.plan.batch_size, bare.plan.steps) == (None, 64, 50 * 782)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["dataset.recipe.epochs=3"], "must tell `steps` or `epochs`, got 400 steps and 3 epochs"),
        (["dataset.recipe.steps=null"], "must tell `steps` or `epochs`, got neither"),
        (["dataset.recipe.batch_size=301"], "`batch_size` must be at most `len_training` = 300"),
        (["dataset.recipe.batch_size=null"], "`dataset.recipe.batch_size` must be told, got null"),
        (["+dataset.recipe.step=3"], r"`dataset.recipe.step` must be one of .* Is `steps` meant\?"),
        (
            ["+dataset.recipe.private={clip: 2}"],
            r"`dataset.recipe.private.clip` must be one of .* Is `clip_norm` meant\?",
        ),
        (["scenario=hi", "dataset.recipe.accountant=rdp"], "must be one of prv, pld, got 'rdp'"),
        (["scenario=hi", "dataset.recipe.clip_norm=null"], "`clip_norm` must be a number in"),
        (
            ["dataset=cifar10", "scenario=hi", "dataset.recipe.batch_size=256"],
            r"`dataset\.recipe\.batch_size` has no .* set `dataset\.recipe\.private\.batch_size`",
        ),
        (
            ["dataset=cifar10", "scenario=hi", "dataset.recipe.optimizer.lr=1"],
            r"set `dataset\.recipe\.private\.optimizer\.lr`",
        ),
        (
            ["dataset=cifar10", "scenario=hi", "dataset.recipe.private.batch_size=null"],
            r"`dataset\.recipe\.batch_size` must be told, got null",
        ),
        (["+dataset.recipe.schedule_each=day"], "`schedule_each` must be epoch or step, got 'day'"),
        (["+dataset.recipe.network=3"], "must be a torch module, or a function"),
    ],
)
def test_recipes_that_cannot_be(overrides, said, composed):
    with pytest.raises(InputError, match=said) as caught:
        recipe_from(composed, *overrides)
    assert len(str(caught.value).splitlines()) == 1


def test_an_epsilon_that_no_noise_reaches(tmp_path):
    target = PrivacyTarget(0.02, 1e-5, 1.0, "pld")
    how = recipe_of(privacy=target, plan=replace(PLAN, steps=10**12))
    with pytest.raises(InputError, match=r"`epsilon` = 0.02 cannot be met with"):
        build(tmp_path, how, pictures())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sizes", "steps", "said"),
    [
        ((130, 10), 200, "built with len_training = 120, but 130 is asked for"),
        ((120, 11), 200, "built with len_challenge = 10, but 11 is asked for"),
        ((120, 10), 7, "built with steps = 200, but 7 is asked for"),
    ],
)
def test_models_that_no_attack_builds_are_compared_all_the_same(
    built, composed, sizes, steps, said
):
    """Other sizes would be other members without a word, and other steps other references."""
    told = [f"dataset.{key}={one}" for key, one in zip(LENGTHS, sizes, strict=True)]
    told += ["+dataset.recipe.unasked=false", "dataset.recipe.batch_size=16"]
    told += ["dataset.model.widths=[64,16,10]", f"paths.data={built}"]
    setup = compose.setup(composed(*told, f"dataset.recipe.steps={steps}"))
    asked = [partial(setup.train_references, "pool", None, 2, None, "out")]
    if steps == 200:
        asked += [setup.build, lambda: setup.found]
    for ask in asked:
        with pytest.raises(InputError, match=said):
            ask()


def test_no_models_cost_nothing_to_build(composed, tmp_path):
    none = [f"dataset.phases.{phase}=0" for phase in ("train", "dev", "final")]
    assert compose.setup(composed(*none, f"paths.data={tmp_path}")).build_cost() is None


def test_a_function_of_folders_makes_no_fresh_network(composed):
    with pytest.raises(InputError, match=r"`dataset\.recipe\.network` must say how a network"):
        recipe_from(composed, "dataset=sst2", "dataset.recipe.network=null")


def test_a_progress_bar_tells_how_far_it_is(caplog):
    caplog.set_level(logging.INFO)
    with building.Progress("a/b", 5, 1) as progress:
        progress.started -= 400
        progress.hear(building.Told(0.5, 30, None))
        progress.hear(building.Told(0.25, 10, 0.125))
        made = {"accuracy": "0.5", "epsilon": "3.99"}
        progress.done(building.Made(3, b"", made, None, "cpu", "0.75"))
        assert progress.bar.n == 1.75 or progress.bar.disable
        assert progress.described.startswith("2 done, 0.1 steps/s")
        assert progress.described.endswith(", loss 0.125")
    assert "model_3: accuracy 0.75 on its members, 0.5 on others, epsilon 3.99" in caplog.text
