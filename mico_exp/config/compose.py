"""From a composed configuration to one frozen object for each command that works with one scenario.

With the other modules of this package the one place that reads a configuration: commands get what
is made here, and what is below them takes plain arguments. What is wrong with a configuration is
said before anything is read or built.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mico_exp.attacks.calibration import Formula
from mico_exp.attacks.evidence import Attack
from mico_exp.challenge.phases import PHASES
from mico_exp.common import require
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import stamp
from mico_exp.config.choices import Choice, formula_of, named_metrics, swept_exposures, written
from mico_exp.config.codes import code
from mico_exp.config.dataset import canaries, network, source
from mico_exp.config.keys import typed_keys, typed_of_dataset
from mico_exp.config.making import make
from mico_exp.config.metrics import extracted_metrics, metrics_of, pass_metrics
from mico_exp.config.recipe import recipe
from mico_exp.config.scenario import claim, epsilon, known_sample, scenario_option
from mico_exp.config.setup import Setup
from mico_exp.models.architectures import Architecture
from mico_exp.runs import provenance
from mico_exp.runs.record import CellRecord
from mico_exp.scores.families import Metric
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore

OF_ASKING = ("precision", "batch_size", "allow_nan", "allow_outliers")  # of `compute`
# Keys that no setup hangs on.
OF_A_CELL = ("metric", "formula", "exposure", "metrics", "exposures", "sweep", "plots")
_last_setup: dict[tuple[str, str | None], Setup] = {}  # at most one


@dataclass(frozen=True, eq=False)
class Cell:
    """A cell of the grid: all that the main command works with.

    metrics: by name, those that the cell is made of.
    pass_metrics: those that a pass through a model computes, of the whole sweep.
    metric_code, formula_code: hashes of what they do, arguments included.
    claim: (ε, δ) of the scenario's option; None without privacy.
    plots: whether its run is to have them.
    """

    setup: Setup
    metrics: Mapping[str, Metric]
    pass_metrics: Mapping[str, Metric]
    formula: Formula | Attack
    metric_code: str
    formula_code: str
    claim: tuple[float, float] | None
    plots: bool


def record(cfg: DictConfig, metric: Choice, formula: Choice) -> CellRecord:
    """What a cell's run tells before it begins."""
    return CellRecord(
        challenge=cfg.challenge,
        dataset=cfg.dataset.name,
        scenario=cfg.scenario.name,
        metric=metric.label,
        formula=formula.label,
        metric_changes=written(metric),
        formula_changes=written(formula),
        len_training=cfg.dataset.get("len_training"),
        len_challenge=None if canaries(cfg) else cfg.dataset.get("len_challenge"),
        seed=cfg.seed,
        epsilon=cfg.scenario.epsilon,
        code_version=provenance.code_version(),
        versions=provenance.versions(),
        overrides=shlex.join(HydraConfig.get().overrides.task),
        sweep=cfg.sweep or HydraConfig.get().runtime.output_dir,
    )


def cell(cfg: DictConfig, metric: Choice, formula: Choice) -> Cell:
    """Make all that a cell works with.

    Raises:
        InputError: something cannot be made, or a cell like that cannot run here.
    """
    disclosed = bool(cfg.scenario.disclose_training)
    metrics = metrics_of(metric, cfg.scenario.name, disclosed)
    made = formula_of(formula)
    hashes = code(metric, metrics), code(formula)
    drawn, found = plots(cfg), _setup_of_cell(cfg)
    found.workers.check(found.processor.device)
    named = named_metrics(cfg.metrics)
    seen = swept_exposures(cfg, metric.exposure)
    passed = pass_metrics(metrics, named, disclosed, seen)
    return Cell(found, metrics, passed, made, *hashes, claim(cfg.scenario), drawn)


def extracting(cfg: DictConfig) -> tuple[Setup, Mapping[str, Metric]]:
    """Make what an extraction works with, and the metrics that it computes."""
    found = setup(cfg)
    found.workers.check(found.processor.device)
    return found, extracted_metrics(cfg)


def building(cfg: DictConfig) -> Setup:
    """Make what a build works with.

    Raises:
        InputError: there is no recipe, or something is set that a build has no use for.
    """
    found = training(cfg)
    if cfg.dataset.get("outputs") is not None:
        return found
    if found.recipe is None:
        raise InputError(
            f"dataset `{found.dataset}` has no recipe: it cannot be built here, its models come "
            "from elsewhere."
        )
    if not found.expected:
        raise InputError(
            f"`dataset.phases` must name {PHASES}, got none: there is nothing to build."
        )
    return found


@dataclass(frozen=True, eq=False)
class Referring:
    """A scenario, and the reference models that it is to have, as `Setup.train_references` says."""

    setup: Setup
    kind: str
    target: str | None
    models: int | None
    among: str | None
    rest: str


def referring(cfg: DictConfig) -> Referring:
    """Make what the training of reference models works with.

    Raises:
        InputError: something is set that it has no use for.
    """
    return Referring(training(cfg), cfg.kind, cfg.target, cfg.models, cfg.among, cfg.rest)


def training(cfg: DictConfig) -> Setup:
    """Make a scenario for a command that trains models.

    Raises:
        InputError: something is set that such a command has no use for.
    """
    typed = typed_keys()
    for key in OF_ASKING:
        if f"compute.{key}" in typed:
            own = "; models train in `dataset.recipe.precision`" if key == "precision" else ""
            raise InputError(
                f"`compute.{key}` is about models that are asked: a build, which trains them, has "
                f"no use for it{own}."
            )
    return setup(cfg)


def setup(cfg: DictConfig, named: tuple[str, str] | None = None, *, recipes: bool = False) -> Setup:
    """Make a scenario as a command works with it.

    Args:
        cfg: of the command; its data set is the one that is meant.
        named: options of data set and scenario, of a command that looks at a whole challenge; None
            for the scenario that is chosen.
        recipes: of such a command, that it asks how scenarios are built.
    """
    require.name("dataset.name", cfg.dataset.name)
    choices, typed = HydraConfig.get().runtime.choices, typed_of_dataset()
    option: Any = cfg.scenario if named is None else scenario_option(named[1])
    asked = named is None or "known_sample" in cfg  # other commands look at no sample
    members, nonmembers = known_sample(cfg, option) if asked else (None, None)
    built = named is None or recipes or any(key.startswith("recipe.") for key in typed)
    model = network(cfg)
    return Setup(
        challenge=cfg.challenge,
        dataset=cfg.dataset.name,
        scenario=str(option.name) if named is None else named[1],
        root=root(cfg),
        store=store(cfg),
        source=source(cfg),
        architecture=Architecture.of(model),
        len_training=cfg.dataset.get("len_training"),
        len_challenge=1 if canaries(cfg) else cfg.dataset.get("len_challenge"),  # each by itself
        epsilon=None if option is None else epsilon(option),
        disclosed=None if option is None else bool(option.disclose_training),
        known_members=members,
        known_nonmembers=nonmembers,
        expected=dict(cfg.dataset.get("phases") or {}),
        recipe=recipe(cfg, option, model) if built and option is not None else None,
        unasked=bool((cfg.dataset.get("recipe") or {}).get("unasked", True)),
        options=named or (choices["dataset"], choices["scenario"]),
        typed=typed,
        **_computing(cfg),
    )


def _setup_of_cell(cfg: DictConfig) -> Setup:
    """Make the scenario of a cell, or give that of the cell before if nothing of it has changed.

    What it has found out of models, points and content then holds on: a third of a cell's time.
    """
    made, choices = setup(cfg), HydraConfig.get().runtime.choices
    whole: Any = OmegaConf.to_container(cfg, resolve=True)
    others = {key: value for key, value in whole.items() if key not in OF_A_CELL}
    asked = repr((others, sorted(made.typed), choices["dataset"], choices["scenario"], Path.cwd()))
    files = stamp(made.folder, made.truth_folder)
    if files is None or (asked, files) not in _last_setup:
        _last_setup.clear()
        _last_setup[asked, files] = made
    return _last_setup[asked, files]


def _computing(cfg: DictConfig) -> dict[str, Any]:
    """Where and how models run, for a command that runs any."""
    if "compute" not in cfg:
        return {}
    how = cfg.compute
    return {
        "processor": Processor(how.device, how.precision, how.batch_size),
        "workers": make(how.workers),
        "allow_nan": require.switch("compute.allow_nan", how.allow_nan),
        "allow_outliers": require.switch("compute.allow_outliers", how.allow_outliers),
    }


def root(cfg: DictConfig) -> Path:
    """Root of the competition's tree."""
    return require.folder("paths.data", cfg.paths.data)


def store(cfg: DictConfig) -> ScoreStore:
    """Open the score store."""
    root(cfg)  # the store lies within, unless it is told to be elsewhere
    return ScoreStore(require.folder("paths.store", cfg.paths.store))


def plots(cfg: DictConfig) -> bool:
    """Tell whether runs are to have plots."""
    known = {"on": True, "off": False, True: True, False: False}
    if cfg.plots not in known:
        raise InputError(f"`plots` must be on or off, got {cfg.plots!r}.")
    return known[cfg.plots]
