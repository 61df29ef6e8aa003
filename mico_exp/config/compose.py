"""From a composed configuration to one frozen object for each command.

With `cells`, `choices` and `metrics`, which do so for metrics and formulas, the one place that
reads a configuration: commands get what is made here, and what is below them takes plain arguments.
What is wrong with a configuration is said here, before anything is read or built.
"""

import difflib
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mico_exp.attacks.calibration import Formula
from mico_exp.attacks.evidence import Attack
from mico_exp.auditing.floor import GAMES
from mico_exp.challenge.phases import PHASES
from mico_exp.common import require
from mico_exp.common.atomic import check_writable
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import stamp
from mico_exp.config import choices, options
from mico_exp.config.codes import code
from mico_exp.config.making import make
from mico_exp.config.metrics import extracted_metrics, metrics_of, pass_metrics
from mico_exp.config.setup import Setup, Source
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.models.recorded import recorded
from mico_exp.results.selection import RULES
from mico_exp.runs import provenance
from mico_exp.runs.record import USUAL_EXPOSURE, CellRecord
from mico_exp.scores.inference import Metric, Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.training.mechanism import Mechanism, told_by
from mico_exp.training.recipe import Canaries, Fresh, PrivacyTarget, Recipe, planned

# Keys that no setup hangs on.
OF_DATASET = (
    *("name", "scenarios", "records", "model", "outputs"),
    *("num_records", "len_training", "len_challenge", "phases", "recipe"),
)
OF_TRAINING = (  # keys of a recipe, and of its `private`
    *("steps", "epochs", "batch_size", "optimizer", "schedule", "schedule_each", "augment"),
    *("precision", "clip_norm", "accountant"),
)
LENGTHS = ("steps", "epochs")  # of which one takes the other's place
OF_RECIPE = (*OF_TRAINING, "network", "private", "unasked")
OF_CANARY = ("name", "suffix", "records", "count", "seed", "one_per_model")
OF_ASKING = ("precision", "batch_size", "allow_nan", "allow_outliers")  # of `compute`
OF_A_CELL = ("metric", "formula", "exposure", "metrics", "exposures", "sweep", "plots")
OF_RULES = ("selection.rule", "selection.simplicity", "selection.resamples")
USUAL_DELTA = 1e-5  # of bounds on scenarios without differential privacy: the competition's
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


@dataclass(frozen=True)
class Selection:
    """How a cell is chosen.

    rule: one of `RULES`. preset: name of the preset, and cells: scenario → the cell that it names;
    None where the rule chooses.
    simple_metrics, simple_formulas: from the simplest on.
    resamples: draws of models.
    allow_unreadable: go on without the best cells where their predictions cannot be used.
    exposure: name of the one whose cells are candidates; None for all.
    """

    rule: str
    preset: str
    cells: Mapping[str, str] | None
    simple_metrics: tuple[str, ...]
    simple_formulas: tuple[str, ...]
    resamples: int
    allow_unreadable: bool
    exposure: str | None = USUAL_EXPOSURE

    def preset_cell(self, scenario: str) -> str | None:
        """Cell that the preset names for a scenario; None without a preset."""
        if self.cells is None:
            return None
        if scenario not in self.cells:
            raise InputError(
                f"preset={self.preset} has no cell for {scenario}, only for "
                f"{', '.join(self.cells)}."
            )
        return self.cells[scenario]


@dataclass(frozen=True, eq=False)
class Challenge:
    """A whole challenge: its scenarios by their folders."""

    name: str
    root: Path
    setups: Mapping[str, Setup]


@dataclass(frozen=True, eq=False)
class Choosing:
    """A choice in every scenario of a challenge, and the folder for what comes of it."""

    challenge: Challenge
    selection: Selection
    folder: Path


@dataclass(frozen=True, eq=False)
class Risking(Choosing):
    """A choice, and how single records are judged by it.

    fpr: of each record's own threshold. top: how many are listed. metadata: file of the user's.
    """

    fpr: float
    top: int
    metadata: Path | None


@dataclass(frozen=True, eq=False)
class Referring:
    """A scenario, and the reference models that it is to have, as `Setup.train_references` says."""

    setup: Setup
    kind: str
    target: str | None
    models: int | None
    among: str | None
    rest: str


@dataclass(frozen=True, eq=False)
class Auditing:
    """What an audit works with.

    confidence: of each bound. deltas, claimed_deltas: scenario → δ of its bounds, and of its claim.
    game: one of `floor.GAMES`; None where the points of the models say it.
    guesses: how many are made of all bits; None where validation chooses.
    mechanism: of DP-SGD, of models that were not built here; None where it is not told.
    seed: of matchings and halves.
    """

    challenge: Challenge
    selection: Selection
    folder: Path
    confidence: float
    deltas: Mapping[str, float]
    claimed_deltas: Mapping[str, float]
    game: str | None
    guesses: int | None
    mechanism: Mechanism | None
    seed: int


@dataclass(frozen=True, eq=False)
class Gating(Choosing):
    """A choice, and the limits that it must keep: None where there is none.

    max_tpr: of TPR at FPR 0.1. max_epsilon: of the proven ε.
    """

    max_tpr: float | None
    max_epsilon: float | None


# ---------------------------------------------------------------- commands


def record(cfg: DictConfig, metric: choices.Choice, formula: choices.Choice) -> CellRecord:
    """What a cell's run tells before it begins."""
    return CellRecord(
        challenge=cfg.challenge,
        dataset=cfg.dataset.name,
        scenario=cfg.scenario.name,
        metric=metric.label,
        formula=formula.label,
        metric_changes=choices.written(metric),
        formula_changes=choices.written(formula),
        len_training=cfg.dataset.get("len_training"),
        len_challenge=None if canaries(cfg) else cfg.dataset.get("len_challenge"),
        seed=cfg.seed,
        epsilon=cfg.scenario.epsilon,
        code_version=provenance.code_version(),
        versions=provenance.versions(),
        overrides=shlex.join(HydraConfig.get().overrides.task),
        sweep=cfg.sweep or HydraConfig.get().runtime.output_dir,
    )


def cell(cfg: DictConfig, metric: choices.Choice, formula: choices.Choice) -> Cell:
    """Make all that a cell works with.

    Raises:
        InputError: something cannot be made, or a cell like that cannot run here.
    """
    disclosed = bool(cfg.scenario.disclose_training)
    metrics = metrics_of(metric, cfg.scenario.name, disclosed)
    made = choices.formula_of(formula)
    hashes = code(metric, metrics), code(formula)
    drawn, found = plots(cfg), _setup_of_cell(cfg)
    found.workers.check(found.processor.device)
    named = choices.named_metrics(cfg.metrics)
    seen = choices.swept_exposures(cfg, metric.exposure)
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
    typed = _typed_keys()
    for key in OF_ASKING:
        if f"compute.{key}" in typed:
            own = "; models train in `dataset.recipe.precision`" if key == "precision" else ""
            raise InputError(
                f"`compute.{key}` is about models that are asked: a build, which trains them, has "
                f"no use for it{own}."
            )
    return setup(cfg)


def choosing(cfg: DictConfig, key: str) -> Choosing:
    """Make what a choice works with, which writes into the folder that `key` names."""
    how = selection(cfg)  # what is wrong with it is said first
    folder = require.folder(key, cfg[key])
    check_writable(folder)
    found = challenge(cfg)
    return Choosing(found, of_cell(how, cfg.get("cell"), found), folder)


def of_cell(how: Selection, cell: Any, found: Challenge) -> Selection:
    """Take one cell in all scenarios instead of a choice, where one is typed: ``confidence/1``."""
    if cell is None:
        return how
    if not isinstance(cell, str) or not all(cell.partition("/")):
        raise InputError(f"`cell` must be null or a metric and a formula, loss/1, got {cell!r}.")
    return replace(how, preset=f"cell={cell}", cells=dict.fromkeys(found.setups, cell))


def risking(cfg: DictConfig) -> Risking:
    """Make what a judgement of single records works with."""
    require.between("fpr", cfg.fpr, 0, 1)
    require.whole("top", cfg.top, 1)
    told = cfg.metadata
    metadata = None if told is None else require.existing_file("metadata", told)
    how = choosing(cfg, "audits")
    return Risking(how.challenge, how.selection, how.folder, cfg.fpr, cfg.top, metadata)


def auditing(cfg: DictConfig) -> Auditing:
    """Make what an audit works with.

    Raises:
        InputError: something cannot be.
    """
    require.between("confidence", cfg.confidence, 0.5, 1)
    if cfg.delta is not None:
        require.between("delta", cfg.delta, 0, 1)
    if cfg.game not in (None, *GAMES):
        raise InputError(f"`game` must be null or one of {', '.join(GAMES)}, got {cfg.game}.")
    if cfg.guesses is not None:
        require.whole("guesses", cfg.guesses, 1)
    require.whole("audit_seed", cfg.audit_seed, 0)
    _check_unused("an audit, which chooses by what would be proven", OF_RULES)
    told = None if cfg.mechanism is None else told_by(cfg.mechanism, "mechanism")
    how = choosing(cfg, "audits")
    setups = how.challenge.setups.values()
    claimed = {one.name: delta(_scenario(one.scenario)) for one in setups}
    return Auditing(
        how.challenge,
        how.selection,
        how.folder,
        cfg.confidence,
        {name: one if cfg.delta is None else cfg.delta for name, one in claimed.items()},
        claimed,
        cfg.game,
        cfg.guesses,
        told,
        cfg.audit_seed,
    )


def _typed_keys() -> set[str]:
    """Keys that were set on the command line."""
    return {text.lstrip("+").partition("=")[0] for text in HydraConfig.get().overrides.task}


def _check_unused(who: str, keys: Iterable[str]) -> None:
    """Refuse keys that were typed and that a command has no use for."""
    for key in _typed_keys():
        if any(key == one or key.startswith(f"{one}.") for one in keys):
            raise InputError(f"`{key}` is of no use to {who}.")


def delta(option: DictConfig | None) -> float:
    """δ of a scenario's claim; the usual one where it has none.

    Raises:
        InputError: it is none with which an ε can be bounded.
    """
    value = None if option is None else option.delta
    if value is None:
        return USUAL_DELTA
    require.between("scenario.delta", value, 0, 1)
    return float(value)


def claim(option: DictConfig) -> tuple[float, float] | None:
    """(ε, δ) that a scenario's option claims, δ = 0 among it; None without privacy.

    Raises:
        InputError: one of them cannot be.
    """
    if (asked := epsilon(option)) is None:
        return None
    value = USUAL_DELTA if option.get("delta") is None else option.delta
    require.within("scenario.delta", value, 0, 1)
    return asked, float(value)


def challenge(cfg: DictConfig, *, recipes: bool = False) -> Challenge:
    """Make the scenarios of a challenge, for the commands that look at a whole one.

    With `recipes` they know how they are built, also where nothing of that was typed.

    ``ddp`` is one for several data sets, every other is that of its data set. What was given on
    the command line holds for all of them.
    """
    job = HydraConfig.get()
    given = [text for text in job.overrides.task if not text.startswith("dataset=")]
    scenarios = _scenarios(cfg)
    datasets = _names(cfg.get("datasets")) or [job.runtime.choices["dataset"]]
    found = {}
    for dataset in datasets:
        overrides = [*given, f"dataset={dataset}"]
        composed: Any = compose(config_name=job.job.config_name, overrides=overrides)
        for name in scenarios:
            one = setup(composed, (dataset, name), recipes=recipes)
            found[one.name] = one
    return Challenge(cfg.challenge, root(cfg), found)


def comparing(cfg: DictConfig) -> list[Choosing]:
    """Make what a comparison works with: two scenarios, or one challenge with all of its own."""
    how, folder = selection(cfg), require.folder("audits", cfg.audits)
    texts = [str(cfg[key]) for key in ("first", "second") if cfg[key] is not None]
    wanted = "two scenarios, each as challenge/scenario, or one challenge"
    if not texts or (len(texts) == 2) != all("/" in text for text in texts):
        raise InputError(f"compare needs {wanted}, got {' and '.join(texts) or 'nothing'}.")
    check_writable(folder)
    found = [_named(text) for text in texts]
    return [Choosing(one, of_cell(how, cfg.cell, one), folder) for one in found]


def _named(text: str) -> Challenge:
    """A challenge by its name, or one scenario of it: ``digits``, ``digits/digits_lo``.

    Its name is that of a challenge's option, or of a data set's; or of neither, and then of a
    challenge on the data set that is chosen.

    Raises:
        InputError: it has no such scenario.
    """
    name, _, wanted = text.partition("/")
    job = HydraConfig.get()
    sides = ("first=", "second=", "dataset=", "challenge=", "challenge_name=")
    given = [one for one in job.overrides.task if not one.startswith(sides)]
    data = job.runtime.choices["dataset"]
    if name in options.option_names("challenge"):
        given.append(f"challenge={name}")
    elif name in options.option_names("dataset"):
        data = name
    else:
        require.name("challenge", name)
        given.append(f"challenge_name={name}")
    cfg: Any = compose(job.job.config_name, overrides=[*given, f"dataset={data}"])
    known, found = _scenarios(cfg), {}
    datasets = _names(cfg.get("datasets")) or [data]
    for dataset in datasets:
        composed: Any = compose(job.job.config_name, overrides=[*given, f"dataset={dataset}"])
        for one in [wanted.removeprefix(f"{dataset}_")] if wanted else known:
            made = setup(composed, (dataset, one))
            if one in known or made.folder.is_dir():
                found[made.name] = made
    if not found:
        listed = ", ".join(f"{dataset}_{one}" for dataset in datasets for one in known)
        raise InputError(f"{text}: {name} has no such scenario, only {listed}.")
    return Challenge(cfg.challenge, root(cfg), found)


def gating(cfg: DictConfig) -> Gating:
    """Make what a gate works with."""
    if cfg.max_tpr is None and cfg.max_epsilon is None:
        raise InputError("A gate needs a limit, `max_tpr`, `max_epsilon` or both, got none.")
    if cfg.max_tpr is not None:
        require.within("max_tpr", cfg.max_tpr, 0, 1)
    if cfg.max_epsilon is not None:
        require.at_least("max_epsilon", cfg.max_epsilon, 0)
    how, folder = selection(cfg), require.folder("audits", cfg.audits)
    found = challenge(cfg)
    return Gating(found, of_cell(how, cfg.cell, found), folder, cfg.max_tpr, cfg.max_epsilon)


# ---------------------------------------------------------------- their parts


def _scenarios(cfg: DictConfig) -> list[str]:
    """Scenarios of a challenge.

    Raises:
        InputError: there is none.
    """
    if scenarios := _names(cfg.get("scenarios")):
        return scenarios
    raise InputError("`scenarios` must name at least one scenario of the challenge, got none.")


def setup(cfg: DictConfig, named: tuple[str, str] | None = None, *, recipes: bool = False) -> Setup:
    """Make a scenario as a command works with it.

    Args:
        cfg: of the command; its data set is the one that is meant.
        named: options of data set and scenario, of a command that looks at a whole challenge; None
            for the scenario that is chosen.
        recipes: of such a command, that it asks how scenarios are built.
    """
    require.name("dataset.name", cfg.dataset.name)
    choices, typed = HydraConfig.get().runtime.choices, _typed()
    option: Any = cfg.scenario if named is None else _scenario(named[1])
    asked = named is None or "known_sample" in cfg  # other commands look at no sample
    members, nonmembers = _known_sample(cfg, option) if asked else (None, None)
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
        "allow_nan": _switch(how, "allow_nan"),
        "allow_outliers": _switch(how, "allow_outliers"),
    }


def _typed() -> frozenset[str]:
    """Keys of the data set that were set on the command line, such as ``recipe.steps``."""
    keys = (text.lstrip("+").partition("=")[0] for text in HydraConfig.get().overrides.task)
    return frozenset(key.removeprefix("dataset.") for key in keys if key.startswith("dataset."))


def _names(value: Any) -> list[str]:
    """Names that were given as a list, or as one."""
    several = isinstance(value, list) or OmegaConf.is_list(value)
    return [str(one) for one in value] if several else [str(value)] * bool(value)


def source(cfg: DictConfig) -> Source:
    """Where the records of `cfg.dataset` come from."""
    dataset = cfg.dataset
    check_keys(dataset)
    told = [key for key in ("records", "outputs") if dataset.get(key) is not None]
    if len(told) != 1:
        raise InputError(
            f"dataset/{dataset.name}.yaml must give `records` and a `model`, or `outputs` alone, "
            f"got {' and '.join(told) or 'neither'}."
        )
    option, count = dataset[told[0]], dataset.get("num_records")
    if (among := canaries(cfg)) is not None:
        if told[0] == "outputs":
            raise InputError(
                f"dataset/{dataset.name}.yaml gives outputs alone: canaries are for models that "
                "are built here."
            )
        how = cfg.canary
        option = OmegaConf.create(
            {**how.records, "records": option, "count": among.count, "seed": how.seed}
        )
        count = count + among.count if type(count) is int else count
    return Source(dataset.name, OmegaConf.to_yaml(option, resolve=True), count)


def canaries(cfg: DictConfig) -> Canaries | None:
    """What canaries there are among the records; None without.

    Raises:
        InputError: the option says what cannot be.
    """
    how = cfg.canary
    _check_known("canary", how, OF_CANARY, "")
    if how.records is None:
        return None
    if missing := [key for key in OF_CANARY if how.get(key) is None]:
        raise InputError(f"`canary.{missing[0]}` must be told, got null.")
    return Canaries(how["count"], how.one_per_model)


def check_keys(dataset: DictConfig) -> None:
    """Refuse keys of a data set's option that nothing reads: they are misspelt, or misplaced.

    Raises:
        InputError: there is one; the message names it.
    """
    if unknown := [str(key) for key in dataset if key not in OF_DATASET]:
        alike = difflib.get_close_matches(unknown[0], OF_DATASET, n=1)
        hint = f" Is `{alike[0]}` meant?" if alike else ""
        raise InputError(
            f"dataset/{dataset.name}.yaml: `{unknown[0]}` must be one of {', '.join(OF_DATASET)}, "
            f"or an argument of one of these.{hint}"
        )


def network(cfg: DictConfig) -> Any:
    """Make the network of `cfg.dataset`, or what makes one; a table where outputs are known alone.

    Raises:
        InputError: it is not told, or cannot be made.
    """
    dataset = cfg.dataset
    if dataset.get("outputs") is not None:
        if dataset.get("model") is not None:
            raise InputError(
                f"dataset/{dataset.name}.yaml must give `outputs` without a `model`, got both."
            )
        return recorded
    if dataset.get("model") is None:
        raise InputError(f"dataset/{dataset.name}.yaml must give a `model` beside its `records`.")
    return make(dataset.model)


def _scenario(name: str) -> DictConfig | None:
    """Option of a scenario; None where there is none of that name."""
    if name not in options.option_names("scenario"):
        return None
    return options.option_of("scenario", name)


def _known_sample(cfg: DictConfig, option: DictConfig | None) -> tuple[int | None, int | None]:
    """How many known members and non-members are drawn: as a command is told, or the option."""
    wanted = cfg.get("known_sample") or (option and option.known_sample)
    if wanted is None:
        return None, None
    for name in ("members", "nonmembers"):
        count = wanted.get(name)
        if type(count) is not int or count < 0:
            raise InputError(
                f"`scenario.known_sample.{name}` must be a whole number ≥ 0, got {count!r}."
            )
    return wanted.members, wanted.nonmembers


def epsilon(option: DictConfig) -> float | None:
    """Read the ε of a scenario, wherever its models come from; None without privacy."""
    value: float | None = option.epsilon
    if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
        raise InputError(
            f"`scenario.epsilon` must be a finite number above 0, got {value!r}; "
            "`scenario.epsilon=null` is without differential privacy."
        )
    return value


def recipe(cfg: DictConfig, option: DictConfig, model: Any) -> Callable[..., Recipe] | None:
    """How a scenario of an option is built; None for a data set whose models come from elsewhere.

    Raises:
        InputError: no build can be like that, or meet the privacy that is asked for.
    """
    how = cfg.dataset.get("recipe")
    if how is None:
        return None
    phases = cfg.dataset.get("phases") or {}  # without any it is for reference models alone
    if phases and set(phases) != set(PHASES):
        raise InputError(f"`dataset.phases` must name {PHASES}, got {list(phases)}.")
    asked = epsilon(option)
    told = _training(how, private=asked is not None, typed=_typed())
    accountant, clip_norm = told.pop("accountant", "prv"), told.pop("clip_norm", None)
    privacy = None
    if asked is not None:
        privacy = PrivacyTarget(asked, option.delta, clip_norm, accountant)
    stacked = isinstance(model, MLP) and how.get("network") is None
    return partial(
        planned,
        challenge=cfg.challenge,
        scenario=f"{cfg.dataset.name}_{option.name}",
        seed=cfg.get("seed", 0),  # which other commands do not compare
        models={phase: phases.get(phase, 0) for phase in PHASES},
        widths=tuple(model.widths) if stacked else None,
        network=None if stacked else _fresh(cfg.dataset, model),
        privacy=privacy,
        disclose_training=option.disclose_training,
        canaries=canaries(cfg),
        **told,
    )


def _training(how: DictConfig, *, private: bool, typed: Iterable[str]) -> dict[str, Any]:
    """What a recipe tells of training; with privacy what its `private` tells in its place.

    There null takes a key away; of `steps` and `epochs` one takes the other's place.
    """
    plain = {str(key): value for key, value in how.items()}
    other = {str(key): value for key, value in (how.get("private") or {}).items()}
    _check_known("recipe", plain, OF_RECIPE)
    _check_known("recipe.private", other, OF_TRAINING)
    told = {key: plain[key] for key in OF_TRAINING if plain.get(key) is not None}
    if private:
        hidden = set(other)
        if any(other.get(key) is not None for key in LENGTHS):
            hidden |= {*LENGTHS}
        _check_seen(hidden, other, typed)
        told = {key: value for key, value in told.items() if key not in hidden}
        told |= {key: value for key, value in other.items() if value is not None}
    for key in ("batch_size", "optimizer"):
        if key not in told:
            raise InputError(f"`dataset.recipe.{key}` must be told, got null.")
    made = ("optimizer", "schedule", "augment")
    return {key: make(value) if key in made else value for key, value in told.items()}


def _check_seen(hidden: Iterable[str], other: Mapping[str, Any], typed: Iterable[str]) -> None:
    """Refuse what was typed where `private` has something else in its place.

    Raises:
        InputError: there is such a key.
    """
    of_private = {key.split(".")[2] for key in typed if key.startswith("recipe.private.")}
    for key in sorted(typed):
        first, _, name = key.partition(".")
        part, _, rest = name.partition(".")
        alike = LENGTHS if part in LENGTHS else (part,)
        if first != "recipe" or part not in hidden or of_private.intersection(alike):
            continue
        own = part if part in other else next(one for one in LENGTHS if one in other)
        meant = ".".join(filter(None, ("dataset.recipe.private", own, rest)))
        raise InputError(
            f"`dataset.{key}` has no meaning for a scenario with an epsilon, where "
            f"`dataset.recipe.private.{own}` takes its place: set `{meant}`."
        )


def _check_known(
    place: str, told: Iterable[Any], known: tuple[str, ...], within: str = "dataset."
) -> None:
    if unknown := [str(key) for key in told if key not in known]:
        alike = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Is `{alike[0]}` meant?" if alike else ""
        key = f"{within}{place}.{unknown[0]}"
        raise InputError(f"`{key}` must be one of {', '.join(known)}.{hint}")


def _fresh(dataset: DictConfig, model: Any) -> Fresh:
    """How a network begins: as the recipe says, or as `dataset.model` makes one."""
    option = dataset.recipe.get("network")
    if option is None and not isinstance(model, nn.Module):
        raise InputError(
            "`dataset.recipe.network` must say how a network begins where `dataset.model` is a "
            "function of a model's folder, got null."
        )
    option = dataset.model if option is None else option
    made = make(option) if OmegaConf.is_config(option) else option
    if not callable(made):
        raise InputError(
            "`dataset.recipe.network` must be a torch module, or a function that makes one, got "
            f"{made!r:.80}."
        )
    told: Any = OmegaConf.to_container(option, resolve=True)
    return Fresh(partial(make, told) if isinstance(made, nn.Module) else made, told)


def selection(cfg: DictConfig) -> Selection:
    """Read the rule and the effort of the comparison."""
    how, cells = cfg.selection, cfg.preset.cells
    if how.rule not in RULES:
        raise InputError(f"`selection.rule` must be one of {', '.join(RULES)}, got {how.rule}.")
    if type(how.resamples) is not int or how.resamples < 100:
        raise InputError(
            f"`selection.resamples` must be a whole number ≥ 100, got {how.resamples!r}."
        )
    return Selection(
        rule=how.rule,
        preset=str(cfg.preset.name),
        cells=None if cells is None else {str(name): str(one) for name, one in cells.items()},
        simple_metrics=_simplicity(how, "metric"),
        simple_formulas=_simplicity(how, "formula"),
        resamples=how.resamples,
        allow_unreadable=_switch(how, "allow_unreadable", "selection"),
        exposure=_exposure(how.exposure),
    )


def _exposure(wanted: Any) -> str | None:
    known = options.option_names("exposure")
    if wanted is not None and wanted not in known:
        raise InputError(
            f"`selection.exposure` must be null or one of {', '.join(known)}, got {wanted}."
        )
    return wanted


def _simplicity(how: DictConfig, group: str) -> tuple[str, ...]:
    names = tuple(str(name) for name in how.simplicity[group])  # 0 is typed as a number
    known = options.option_names(group)
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"`selection.simplicity.{group}` must name options of {', '.join(known)}, "
            f"got {unknown[0]}."
        )
    return names


def _switch(cfg: DictConfig, name: str, place: str = "compute") -> bool:
    value = cfg[name]
    if not isinstance(value, bool):
        raise InputError(f"`{place}.{name}` must be true or false, got {value!r}.")
    return value


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
