"""Where there is nothing to find nothing is found: by any cell, in any phase, in any choice.

The bound, and the same at full size through all commands, are in benchmarks/null.py.
"""

from dataclasses import replace
from functools import cache, partial
from itertools import product

import null
import numpy as np
import pytest
from commands import run
from conftest import tiny_recipe
from hydra import initialize_config_dir
from sklearn.ensemble import HistGradientBoostingRegressor

from mico_exp.attacks import learned
from mico_exp.attacks.evidence import Evidence
from mico_exp.attacks.learned import Quantile, Stack, StackSearch
from mico_exp.challenge.points import challenge_points, known_sample
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.tree import load_scenario
from mico_exp.challenge.truth import read_truth
from mico_exp.config import options
from mico_exp.config.cells import sensible_cells
from mico_exp.config.making import make
from mico_exp.config.metrics import all_metrics
from mico_exp.config.typed import OPTIONS
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.results.cell import calibrate_phases
from mico_exp.results.scoring import RANKING_FPR
from mico_exp.results.selection import auc_within_one_se, highest
from mico_exp.results.statistics import compare
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.training.building import build
from mico_exp.training.steps import Plan

SIZES = Sizes(records=1797, training=120, challenge=20)
MODELS = {"train": 16, "dev": 4, "final": 4}
ALIASES = {"midpoint", "in_mean", "standardized", "uncalibrated"}
SCRIPT = "lira_script"  # for pools in which no record lacks models
TREES = partial(HistGradientBoostingRegressor, max_iter=20, learning_rate=0.4)


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    """Twenty find what a hundred do that learn a quarter as fast, in a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "HistGradientBoostingRegressor", TREES)
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["own points", "shared points"])
def world(request, tmp_path_factory, digits):
    """Evidence of every metric on a built scenario over nothing, and the truth of its phases."""
    root = tmp_path_factory.mktemp("null") / "data"
    plan = Plan(30, 16, tiny_recipe().plan.optimizer)
    build(
        root,
        tiny_recipe("digits_ddp", sizes=SIZES, models=MODELS, plan=plan, disclose_training=True),
        digits,
    )
    scenario = load_scenario(root, "digits", "digits_ddp", SIZES)
    null.mislead(root, scenario, shared=request.param)
    scenario = load_scenario(root, "digits", "digits_ddp", SIZES)
    points = challenge_points(scenario)
    # Where all challenge points are shared, none is left whose membership could be told.
    known = known_sample(scenario, points, 40, 40) if not request.param else None
    where = ScoreStore(root / "store"), Processor("cpu"), None, known
    extraction = Extraction(scenario, points, digits, Architecture.of(MLP((64, 16, 10))), *where)
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        every = all_metrics(disclosed=not request.param)
        for name in ("correct", "agreement", "canary_projection"):  # which `all` leaves out
            every[name] = make(options.option_of("metric", name).function)
        metrics = {name: smaller(metric) for name, metric in every.items()}
        extraction.compute(metrics)
        scores = {name: extraction.read(name, metric) for name, metric in metrics.items()}
        labels = digits.labels[points.unique].numpy()
        evidence = Evidence(scores, points, labels, known or {})
        truth = {"train": points.solution, **read_truth(root, scenario)}
        scenario_option = "ddp" if known else "lo"
        yield evidence, truth, list(cells(scenario_option)), extraction


def smaller(metric):
    """Fewer reference records, which are what takes time."""
    return replace(metric, reference=40) if getattr(metric, "reference", 0) else metric


def cells(scenario):
    """Metric and formula of every cell of `experiment=full`, with what the formula makes."""
    formulas = [
        name
        for name in options.option_names("formula")
        if name not in ALIASES and not name.startswith(SCRIPT)
    ]
    jobs = [
        [f"metric={metric}", f"formula='{formula}'", f"scenario={scenario}"]
        for metric, formula in product(options.option_names("metric"), formulas)
    ]
    for metric, formula, _ in sensible_cells(jobs, "skip"):
        yield metric.removeprefix("metric="), *made(formula.removeprefix("formula=").strip("'"))


@cache
def made(formula):
    option = options.option_of("formula", formula)
    return option.name, make(option.function)


def test_no_cell_finds_members_where_there_is_nothing_to_find(world):
    """In validation, on dev and on final models, and in the nested estimate of the choice."""
    evidence, truth, every, _ = world
    points = evidence.points.of_phase
    chance = {phase: null.Chance(solution, points[phase]) for phase, solution in truth.items()}
    found, validation = {}, []
    for metric, formula, made in every:
        some = evidence.scores if metric == "all" else {metric: evidence.scores[metric]}
        for phase, one in calibrate_phases(replace(evidence, scores=some), made).items():
            for figure, z in chance[phase].deviations(one.predictions).items():
                found[metric, formula, phase, figure] = z
            if phase == "train":
                validation.append((truth["train"], one.predictions))
    assert len(every) > 190
    for rule in (highest, auc_within_one_se):
        nested = compare(validation, rule, count=60, halvings=60).procedure
        deviation = nested.interval.half_width / 1.96
        found[rule.__name__, "", "train", "nested"] = (nested.value - RANKING_FPR) / deviation
    limit = null.bound(len(found))
    assert {cell: z for cell, z in found.items() if abs(z) > limit} == {}


def test_that_models_tell_nothing_is_noticed(world):
    *_, extraction = world
    assert any(
        "members cannot be told from non-members" in one for one in extraction.checkup.findings
    )


@pytest.mark.parametrize("unequal", [False, True], ids=["every record of every model", "unequal"])
@pytest.mark.parametrize(
    "attack", [Stack(), StackSearch(), Quantile()], ids=["stack", "search", "q"]
)
def test_what_is_learnt_on_a_pool_over_nothing_is_nothing(attack, unequal):
    """Forty models that share a hundred records, whose membership could be read off the others."""
    evidence, truth = null.pool(unequal=unequal, metrics=2)
    some = null.only(evidence) if isinstance(attack, Quantile) else evidence
    for phase, one in attack(some).items():
        chance = null.Chance(truth[phase], evidence.points.of_phase[phase])
        for figure, z in chance.deviations(one.scores).items():
            assert abs(z) <= null.bound(24), (phase, figure)


def test_the_bound_would_have_caught_leave_one_out():
    """A point's means without the target, as plain formulas have them, give it away to trees."""
    evidence, truth = null.pool(seed=0)
    scores, solution = evidence.scores["metric_0"], truth["train"]
    shadow, member = scores.shadow, solution
    models = len(shadow)
    features = np.empty((*shadow.shape, 4))
    for target in range(models):
        others = np.delete(np.arange(models), target)
        inside = np.where(member[others], shadow[others], np.nan)
        outside = np.where(member[others], np.nan, shadow[others])
        features[target] = np.stack(
            [
                np.nanmean(inside, axis=0),
                np.nanmean(outside, axis=0),
                np.isfinite(inside).sum(axis=0),
                np.isfinite(outside).sum(axis=0),
            ],
            axis=1,
        )
    found = np.empty(shadow.shape)
    fold = np.arange(models) % 5
    for one in range(5):
        asked = (fold != one)[:, None] & ~solution
        trees = TREES(loss="quantile", quantile=0.9, random_state=0)
        trees.fit(features[asked], shadow[asked])
        level = trees.predict(features[fold == one].reshape(-1, 4)).reshape(-1, shadow.shape[1])
        found[fold == one] = shadow[fold == one] - level
    z = null.Chance(solution, evidence.points.of_phase["train"]).deviations(found)
    assert z["tpr"] > null.bound(24)


def test_the_deviations_are_those_of_independent_experiments():
    """Of scores over nothing, those of a point alike or not, z is a standard normal variable."""
    found = []
    for seed in range(400):
        random = np.random.default_rng(seed)
        solution = random.random((16, 30)) < 0.5
        points = np.tile(np.arange(30), (16, 1))
        inside, outside = random.normal(size=(2, 30))  # members of a point share an error
        shift = np.where(solution, inside, outside)
        scores = random.normal(size=solution.shape) + shift * (seed % 2)
        found.append(null.Chance(solution, points).deviations(scores))
    for figure in ("auc", "tpr"):
        for kind in (0, 1):
            z = np.array([one[figure] for one in found[kind::2]])
            assert abs(z.mean()) < 0.3
            assert 0.7 < z.std() < 1.3


@pytest.mark.parametrize("design", ["pool", "unequal"])
def test_a_pool_through_the_commands(tmp_path, design):
    """Forty models and twenty targets that are known by their scores for a hundred records."""
    formulas = ["0", "2", "attack_r", "lira_online", "lira_offline_pooled", "lira_shrunk"]
    figures = null.taken_in(tmp_path, design, formulas, run)
    assert len(figures) == len(formulas) * 2 * 2
    assert null.tell(figures)


def test_through_the_commands(tmp_path):
    """A sweep, its warning and the choice on a scenario in which all models share their points."""
    size = ["dataset.phases={train: 16, dev: 3, final: 3}", "dataset.len_challenge=20"]
    small = [*size, "dataset.len_training=120", "dataset.recipe.steps=30", "scenario=inf"]
    run("mico_exp.build", *small, cwd=tmp_path)
    sizes = Sizes(1797, 120, 20)
    scenario = load_scenario(tmp_path / "data", "digits", "digits_inf", sizes)
    null.mislead(tmp_path / "data", scenario, shared=True)
    grid = ["metric=confidence,all", "formula=1,quantile,stack", "hydra.sweeper.meaningless=skip"]
    given = [*small, "dataset.recipe=null", "plots=off", "metrics=[loss,confidence]"]
    shown = run("mico_exp", *grid, *given, "-m", cwd=tmp_path)
    assert shown.stdout.count("members cannot be told from non-members") == 1
    chosen = ["scenarios=[inf]", "dataset.len_challenge=20", "dataset.len_training=120"]
    run("mico_exp.select_best", *chosen, cwd=tmp_path)
    scenario = load_scenario(tmp_path / "data", "digits", "digits_inf", sizes)
    figures = list(null._of_cells(tmp_path, "shared", scenario))
    figures.append(null._of_choice(tmp_path, "shared", scenario, "max"))
    assert len(figures) == 3 * 3 * 2 + 1
    assert null.tell(figures)
