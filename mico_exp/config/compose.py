"""From a composed configuration to the objects that it names.

With `options`, which does so for metrics and formulas, the one place below the commands that reads
a configuration: all other modules take plain arguments.
"""

import json
import logging
import math
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mico_exp.attacks.calibration import Calibrated
from mico_exp.attacks.evidence import Evidence
from mico_exp.challenge.datasets import Records
from mico_exp.challenge.points import ChallengePoints, KnownSample, challenge_points, known_sample
from mico_exp.challenge.protocol import PHASES, Sizes
from mico_exp.challenge.tree import Scenario, load_scenario, scenario_folder
from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import FileFingerprints, definition
from mico_exp.common.identity import CellIdentity
from mico_exp.config.moved import check_places
from mico_exp.models.architectures import MLP, Architecture
from mico_exp.models.building import (
    PrivacyTarget,
    Recipe,
    build,
    check_built_from,
    is_complete,
    untrained,
)
from mico_exp.models.training import Plan
from mico_exp.results.cell import evaluate
from mico_exp.runs import provenance
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import Metric, Processor
from mico_exp.scores.soundness import check_records, check_training
from mico_exp.scores.store import ScoreStore
from mico_exp.scores.vitals import Vitals
from mico_exp.scores.workers import Workers

log = logging.getLogger(__name__)


def make(option: Any) -> Any:
    """Make what an option's `_target_` names; a user's mistake in it stays an `InputError`."""
    if OmegaConf.is_config(option):
        check_places(OmegaConf.to_container(option))
    try:
        return instantiate(option)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def records(cfg: DictConfig) -> Records:
    """Load the data set of `cfg.dataset`, once in a process: all cells of a sweep share it.

    Raises:
        InputError: it cannot be loaded, or holds another number of records than is told.
    """
    loaded = _records(OmegaConf.to_yaml(cfg.dataset.records, resolve=True))
    told, found = cfg.dataset.num_records, len(loaded.labels)
    if told is not None and told != found:
        raise InputError(
            f"`dataset.num_records` must be the number of records, {told!r} as told, but {found} "
            f"were loaded: seeds point into all of them. Are {cfg.dataset.name}'s records complete?"
        )
    return loaded


@cache
def _records(option: str) -> Records:
    loaded: Records = make(OmegaConf.create(option))
    check_records(loaded)
    return loaded


def architecture(cfg: DictConfig) -> Architecture:
    """Make the architecture of `cfg.dataset`."""
    return Architecture.of(make(cfg.dataset.model))


def scenario_name(cfg: DictConfig) -> str:
    """Folder of the chosen scenario, such as ``digits_inf``."""
    return f"{cfg.dataset.name}_{cfg.scenario.name}"


def sizes(cfg: DictConfig, num_records: int) -> Sizes:
    """Sizes of the chosen data set."""
    return Sizes(num_records, cfg.dataset.len_training, cfg.dataset.len_challenge)


def recipe(cfg: DictConfig, num_records: int) -> Recipe | None:
    """How the chosen scenario is built; None for a data set whose models come from elsewhere."""
    how = cfg.dataset.recipe
    if how is None:
        return None
    mlp = make(cfg.dataset.model)
    if not isinstance(mlp, MLP):
        raise InputError(f"`dataset.model` must be an MLP to be built, got {type(mlp).__name__}.")
    if set(cfg.dataset.phases) != set(PHASES):
        raise InputError(f"`dataset.phases` must name {PHASES}, got {list(cfg.dataset.phases)}.")
    return Recipe(
        challenge=cfg.challenge,
        scenario=scenario_name(cfg),
        seed=cfg.seed,
        sizes=sizes(cfg, num_records),
        models={phase: cfg.dataset.phases[phase] for phase in PHASES},
        widths=tuple(mlp.widths),
        plan=Plan(how.steps, how.batch_size, make(how.optimizer)),
        privacy=privacy(cfg),
        disclose_training=cfg.scenario.disclose_training,
    )


def epsilon(cfg: DictConfig) -> float | None:
    """Read the ε of the chosen scenario, wherever its models come from; None without privacy."""
    value = cfg.scenario.epsilon
    if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
        raise InputError(
            f"`scenario.epsilon` must be a finite number above 0, got {value!r}; "
            "`scenario.epsilon=null` is without differential privacy."
        )
    return value


def privacy(cfg: DictConfig) -> PrivacyTarget | None:
    """Read the privacy that the chosen scenario is built with; None without, or if not built here.

    Raises:
        InputError: no build can meet it, or there is no such ε.
    """
    asked, how = epsilon(cfg), cfg.dataset.recipe
    if asked is None or how is None:
        return None
    return PrivacyTarget(asked, cfg.scenario.delta, how.clip_norm)


def scenario(cfg: DictConfig, loaded: Records) -> Scenario:
    """Find the chosen scenario on disk, after building what is missing if it can be built.

    Raises:
        InputError: it was built from other records, cannot be built, or is not there.
    """
    built(cfg, loaded)
    name = scenario_name(cfg)
    return load_scenario(root(cfg), cfg.challenge, name, sizes(cfg, len(loaded.labels)))


def built(cfg: DictConfig, loaded: Records) -> bool | None:
    """Build what is missing of the chosen scenario; says whether anything was, None if it cannot.

    Raises:
        InputError: it was built from other records, or cannot be built.
    """
    try:
        check_built_from(folder(cfg), loaded)
    except InputError:
        check_steady(cfg)  # which says more, if it is not
        raise
    how = recipe(cfg, len(loaded.labels))
    if how is None:
        return None
    if not is_complete(root(cfg), how):
        check_steady(cfg)
        check_training(untrained(how), loaded)
    return build(root(cfg), how, loaded)


def folder(cfg: DictConfig) -> Path:
    """Where the chosen scenario lies."""
    return scenario_folder(root(cfg), cfg.challenge, scenario_name(cfg))


def check_steady(cfg: DictConfig) -> None:
    """Load the data set once more, before long work, and compare; once in a process.

    Raises:
        InputError: it is another one.
    """
    _check_steady(OmegaConf.to_yaml(cfg.dataset.records, resolve=True))


@cache
def _check_steady(option: str) -> None:
    first, again = _records(option), make(OmegaConf.create(option))
    if again.fingerprint != first.fingerprint:
        raise InputError(
            "`dataset.records` must give the same records in the same order every time, got others "
            "when they were loaded again: its loader is not deterministic. Does it shuffle without "
            "a seed?"
        )


def extraction(
    cfg: DictConfig, found: Scenario, points: ChallengePoints, loaded: Records
) -> Extraction:
    """Open the scores of a scenario."""
    return Extraction(
        found,
        points,
        loaded,
        architecture(cfg),
        store(cfg),
        processor(cfg),
        workers(cfg),
        known(cfg, found),
        allow_nan=allow_nan(cfg),
        allow_outliers=allow_outliers(cfg),
    )


def processor(cfg: DictConfig) -> Processor:
    """Say where and how models run."""
    return Processor(cfg.compute.device, cfg.compute.precision, cfg.compute.batch_size)


def allow_nan(cfg: DictConfig) -> bool:
    """Tell whether to go on without models that are not finite."""
    return _allowed(cfg, "allow_nan")


def allow_outliers(cfg: DictConfig) -> bool:
    """Tell whether to go on without models that are far from the others."""
    return _allowed(cfg, "allow_outliers")


def _allowed(cfg: DictConfig, name: str) -> bool:
    value = cfg.compute[name]
    if not isinstance(value, bool):
        raise InputError(f"`compute.{name}` must be true or false, got {value}.")
    return value


def cell_identity(cfg: DictConfig, found: Scenario, loaded: Records) -> CellIdentity:
    """What a cell of a scenario hangs on, but for its metric and formula.

    `cfg` is a cell's own, or that of a command which looks at the whole challenge.
    """
    files = FileFingerprints(store(cfg).fingerprints(found.path))
    return CellIdentity(
        content=provenance.content(found, loaded, files),
        network_code=architecture(cfg).key,
        metric_code="",
        formula_code="",
        package_code=package_code(),
        precision=processor(cfg).precision,
        known_sample=_known_sample(cfg, found),
        allow_nan=json.dumps(allow_nan(cfg)),
        allow_outliers=json.dumps(allow_outliers(cfg)),
    )


@cache
def package_code() -> str:
    """Hash of the package's code from scores to figures."""
    parts = (evaluate, Evidence, Calibrated, challenge_points, known_sample, Vitals)
    return definition(parts)  # attributes of what it is given are not followed from a function


def _known_sample(cfg: DictConfig, found: Scenario) -> str:
    """How many known members and non-members are drawn, as JSON."""
    option = _scenario_option(cfg, found)
    wanted = cfg.get("known_sample") or (option and option.known_sample)
    plain = None if wanted is None else OmegaConf.to_container(wanted, resolve=True)
    return json.dumps(plain, sort_keys=True)


def discloses(cfg: DictConfig, found: Scenario) -> bool:
    """Tell whether a scenario discloses training sets, by its option where there is one."""
    option = _scenario_option(cfg, found)
    return found.discloses if option is None else bool(option.disclose_training)


def _scenario_option(cfg: DictConfig, found: Scenario) -> DictConfig | None:
    """Option of a scenario: a cell's own, or that by its name; None where there is none."""
    if "scenario" in cfg:
        return cfg.scenario
    return _scenario(found.name.removeprefix(f"{cfg.dataset.name}_"))


@cache
def _scenario(name: str) -> DictConfig | None:
    loader = GlobalHydra.instance().config_loader()
    if name not in loader.get_group_options("scenario", ObjectType.CONFIG):
        return None
    return compose("config", overrides=[f"scenario='{name}'"]).scenario


def workers(cfg: DictConfig) -> Workers:
    """Make those who run models, and check that they can."""
    allow_nan(cfg), allow_outliers(cfg)
    made: Workers = make(cfg.compute.workers)
    made.check(processor(cfg))
    return made


def points(found: Scenario) -> ChallengePoints:
    """Find a scenario's challenge points, once for all cells in turn: 200 splits take a while."""
    return _points(_SameContent(found))


class _SameContent:
    """A scenario as a key of a cache: equal where all sizes, folders and seeds are."""

    def __init__(self, found: Scenario) -> None:
        self.scenario = found

    def __hash__(self) -> int:
        return hash(self.scenario.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameContent) and self.scenario == other.scenario


@lru_cache(maxsize=1)
def _points(key: _SameContent) -> ChallengePoints:
    return challenge_points(key.scenario)


def known(cfg: DictConfig, found: Scenario) -> dict[str, list[KnownSample]] | None:
    """Draw the sample of known members and non-members, where the scenario discloses them."""
    wanted = cfg.scenario.known_sample
    if wanted is None:
        return None
    for name in ("members", "nonmembers"):
        count = wanted.get(name)
        if type(count) is not int or count < 0:
            raise InputError(
                f"`scenario.known_sample.{name}` must be a whole number ≥ 0, got {count}."
            )
    return _known(_SameContent(found), wanted.members, wanted.nonmembers)


@lru_cache(maxsize=1)
def _known(key: _SameContent, members: int, nonmembers: int) -> dict[str, list[KnownSample]] | None:
    try:
        return known_sample(key.scenario, _points(key), members, nonmembers)
    except InputError as error:
        log.warning("%s No sample of known members is taken.", error)
        return None


def root(cfg: DictConfig) -> Path:
    """Root of the competition's tree."""
    if not str(cfg.paths.data or "").strip():
        raise InputError("`paths.data` must name a folder, got nothing.")
    return Path(cfg.paths.data)


def store(cfg: DictConfig) -> ScoreStore:
    """Open the score store."""
    root(cfg)  # the store lies within, unless it is told to be elsewhere
    return ScoreStore(Path(cfg.paths.store))


def plots(cfg: DictConfig) -> bool:
    """Tell whether runs are to have figures."""
    known = {"on": True, "off": False, True: True, False: False}
    if cfg.plots not in known:
        raise InputError(f"`plots` must be on or off, got {cfg.plots}.")
    return known[cfg.plots]


def of_challenge(cfg: DictConfig) -> dict[str, DictConfig]:
    """Compose the configuration of each scenario of a challenge, by the scenario's folder.

    For the commands that look at a whole challenge: ``ddp`` is one for several data sets, every
    other is that of its data set. What was given on the command line holds for all of them.
    """
    job = HydraConfig.get()
    given = [text for text in job.overrides.task if not text.startswith("dataset=")]
    shared = cfg.challenge == "ddp"
    datasets = cfg.datasets if shared else [job.runtime.choices["dataset"]]
    found = {}
    for dataset in datasets:
        overrides = [*given, f"dataset={dataset}"]
        composed: Any = compose(config_name=job.job.config_name, overrides=overrides)
        for scenario in ["ddp"] if shared else cfg.scenarios:
            found[f"{composed.dataset.name}_{scenario}"] = composed
    return found


def evidence(
    extraction: Extraction, loaded: Records, metrics: dict[str, Metric]
) -> Evidence | None:
    """Read what is known of a scenario by some metrics; None if any score is missing."""
    scores = {}
    for name, metric in metrics.items():
        if (found := extraction.read(name, metric)) is None:
            return None
        scores[name] = found
    labels = loaded.labels[extraction.points.unique].numpy()
    return Evidence(scores, extraction.points, labels, extraction.known)


def preset_cell(cfg: "DictConfig", scenario: str) -> str | None:
    """Cell that the preset names for a scenario; None without a preset."""
    cells = cfg.preset.cells
    if cells is None:
        return None
    if scenario not in cells:
        raise InputError(
            f"preset={cfg.preset.name} has no cell for {scenario}, only for {', '.join(cells)}."
        )
    return str(cells[scenario])
