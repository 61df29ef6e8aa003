"""What a run holds: every param, metric, tag and file of it by its key, written and read back here.

No other module spells a key, but for `statements` on a challenge. What a foreign or an older run
does not say, or says wrongly, reads as what a field is by default: runs are somebody's word, and
whoever needs more checks it.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mico_exp.common.identity import CellIdentity
from mico_exp.results.scoring import RANKING_FPR

PREDICTIONS = "predictions.npz"  # files of a cell
CONFIGURATION = "config.yaml"
ROC_PLOT = "roc.png"
SCORES_PLOT = "scores.png"
TABLE = "selection.txt"  # of a selection
CONTENT_OF = "content/"  # start of the tags that tell the contents of scenarios
ERROR = "error"  # tag of a run that failed
HOST, PROCESS = "host", "process"  # tags: where a run was made, and by which process
VALIDATED_TPR = f"val/tpr_at_fpr_{RANKING_FPR}"
VALIDATED_AUC = "val/auc"
CELLS = "tags.kind = 'cell'"  # as MLflow's search has it
COLUMNS = [  # of a table of cells
    "params.`scenario`",
    "params.`metric`",
    "params.`formula`",
    f"metrics.`{VALIDATED_TPR}`",
    f"metrics.`{VALIDATED_TPR}_low`",
    f"metrics.`{VALIDATED_TPR}_high`",
    f"metrics.`{VALIDATED_AUC}`",
]
BEST_FIRST = f"metrics.`{VALIDATED_TPR}`"
COUNTED = (
    *("len_training", "len_challenge", "seed", "num_records"),
    *("unique_points", "validation_points"),
)
TEXTS = (
    *("code_version", "versions", "overrides", "sweep", "metric_changes", "formula_changes"),
    "left_out",
)
SINGLE = ("outlier_models", "nan_models", "parameters_seen", "seconds")
MODELS = "_models"  # end of train_models, dev_models, final_models
TOLD = "members_"  # start of what membership in the train models' scores is told apart by
EXTRACTED, EXTRACTION_SECONDS = "extracted_models", "extraction_seconds"  # by family, after a slash
NO_CHANGES = json.dumps([])
EXPOSURE, USUAL_EXPOSURE = "exposure", "weights"  # of a metric's changes; the usual is none


@dataclass(frozen=True)
class Entries:
    """What MLflow keeps of a run beside its files."""

    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class LoggedRun(Entries):
    """A run that is in a database; `started` in milliseconds since 1970."""

    id: str
    started: int


@dataclass(frozen=True)
class CellRecord:
    """One cell of the grid on one scenario.

    challenge: of the tree, and MLflow's experiment.
    dataset, scenario, metric, formula: names of the options; variants as `config.variants` writes
        them.
    metric_changes, formula_changes: what was set otherwise than in these options, as JSON.
    identity: what the figures hang on beside; of empty entries until it is known.
    epsilon: of the scenario's option; None without differential privacy, NaN if it was no number.
    recorded_epsilon: what the models themselves tell.
    models: phase → how many there are.
    told: how well members are told apart in the train models' own scores, as `vitals.Told` has it.
    members_told: whether they are at all, ``yes`` or ``no``.
    parameters_seen: the least share of a network's parameters that a metric of gradients sees.
    left_out: the modules that it does not.
    extracted, extraction_seconds: family → models that were run for this cell, and seconds.
    figures: of the result, as `results.cell.Result` has them.
    seconds: of the whole run.
    code_version, versions: of the package and of libraries.
    overrides: as they were typed, quoted for a shell.
    sweep: name that a sweep's runs share.
    """

    challenge: str = ""
    dataset: str = ""
    scenario: str = ""
    metric: str = ""
    formula: str = ""
    metric_changes: str = NO_CHANGES
    formula_changes: str = NO_CHANGES
    identity: CellIdentity = field(default_factory=lambda: CellIdentity.of_tags({}))
    len_training: int | None = None
    len_challenge: int | None = None
    seed: int | None = None
    epsilon: float | None = None
    recorded_epsilon: str | None = None
    num_records: int | None = None
    unique_points: int | None = None
    validation_points: int | None = None
    models: Mapping[str, int] = field(default_factory=dict)
    told: Mapping[str, float] = field(default_factory=dict)
    members_told: str | None = None
    outlier_models: float | None = None
    nan_models: float | None = None
    parameters_seen: float | None = None
    left_out: str = ""
    extracted: Mapping[str, float] = field(default_factory=dict)
    extraction_seconds: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    code_version: str = ""
    versions: str = ""
    overrides: str = ""
    sweep: str = ""

    @property
    def folder(self) -> str:
        """Folder of the scenario, such as ``digits_inf``."""
        return f"{self.dataset}_{self.scenario}"

    @property
    def cell(self) -> str:
        """Name within the scenario, ``loss/1``."""
        return f"{self.metric}/{self.formula}"

    @property
    def exposure(self) -> str:
        """What the attacker sees, as its changes say: ``rounded``, ``rounded, decimals=2``."""
        try:
            changes = [str(text) for text in json.loads(self.metric_changes)]
        except (ValueError, TypeError, RecursionError):
            return USUAL_EXPOSURE
        keys = (f"{EXPOSURE}=", f"{EXPOSURE}.function.")
        texts = [text.removeprefix(key) for text in changes for key in keys if text.startswith(key)]
        return ", ".join(texts) or USUAL_EXPOSURE

    @property
    def name(self) -> str:
        """Name of the run, ``inf/loss/1``; with the data set where a challenge has several."""
        of_one = self.challenge == self.dataset
        return f"{self.scenario if of_one else self.folder}/{self.cell}"

    def to_run(self) -> Entries:
        """Write it as params, metrics and tags; what is None or empty is not written."""
        names = ("dataset", "scenario", "metric", "formula")
        params: dict[str, Any] = {name: getattr(self, name) for name in names}
        params |= _told({name: getattr(self, name) for name in COUNTED})
        params |= {"epsilon": self.epsilon} | _told({"recorded_epsilon": self.recorded_epsilon})
        params |= {f"{phase}{MODELS}": count for phase, count in self.models.items()}
        metrics = {f"{TOLD}{name}": value for name, value in self.told.items()}
        metrics |= _told({name: getattr(self, name) for name in SINGLE})
        metrics |= {f"{EXTRACTED}/{family}": n for family, n in self.extracted.items()}
        for family, seconds in self.extraction_seconds.items():
            metrics[f"{EXTRACTION_SECONDS}/{family}"] = seconds
        metrics |= self.figures
        tags = cells_of(self.challenge) | {name: getattr(self, name) for name in TEXTS}
        tags |= {**self.identity.tags(), "members_told": self.members_told or ""}
        return Entries(params, metrics, {key: text for key, text in tags.items() if text})

    @classmethod
    def from_run(cls, run: Entries) -> "CellRecord":
        """Read what `to_run` has written; see the module for what else there may be."""
        params, metrics, tags = run.params, dict(run.metrics), run.tags
        found: dict[str, Any] = {name: metrics.pop(name, None) for name in SINGLE}
        found["told"] = _taken(metrics, TOLD)
        found["extracted"] = _taken(metrics, f"{EXTRACTED}/")
        found["extraction_seconds"] = _taken(metrics, f"{EXTRACTION_SECONDS}/")
        for name in ("dataset", "scenario", "metric", "formula"):
            found[name] = str(params.get(name, ""))
        found |= {name: _whole(params.get(name)) for name in COUNTED}
        found |= {name: tags.get(name, "") for name in (*TEXTS, "challenge")}
        for name in ("metric_changes", "formula_changes"):
            found[name] = found[name] or NO_CHANGES
        return cls(
            **found,
            identity=CellIdentity.of_tags(tags),
            epsilon=_number(params.get("epsilon")),
            recorded_epsilon=params.get("recorded_epsilon"),
            models=_models(params),
            members_told=tags.get("members_told"),
            figures=metrics,
        )


@dataclass(frozen=True)
class SelectionRecord:
    """A choice: the run ``selection``.

    choice: key of what it hangs on.
    cells: scenario → the chosen cell. figures: scenario → those of its run, by name.
    probability_best: scenario → how often resampling chooses it.
    procedure: scenario → nested estimate of the whole choice, with both ends of its interval.
    """

    challenge: str
    rule: str
    choice: str
    code_version: str
    cells: Mapping[str, str]
    figures: Mapping[str, Mapping[str, float]]
    probability_best: Mapping[str, float]
    procedure: Mapping[str, tuple[float, float, float]]
    name = "selection"

    def to_run(self) -> Entries:
        """Write it as params, metrics and tags."""
        params: dict[str, Any] = {"challenge": self.challenge, "rule": self.rule}
        params |= {f"{scenario}/cell": cell for scenario, cell in self.cells.items()}
        metrics = {
            f"{scenario}/{figure}": value
            for scenario, figures in self.figures.items()
            for figure, value in figures.items()
        }
        for scenario, value in self.probability_best.items():
            metrics[f"{scenario}/probability_best"] = value
        for scenario, values in self.procedure.items():
            for end, value in zip(("", "_low", "_high"), values, strict=True):
                metrics[f"{scenario}/procedure{end}"] = value
        tags = {"kind": "selection", "challenge": self.challenge, "choice": self.choice}
        return Entries(params, metrics, {**tags, "code_version": self.code_version})


@dataclass(frozen=True)
class SweepRecord:
    """A sweep as a whole: the run ``sweep``.

    cells: scenario → how many were compared. best: scenario → the highest validation TPR.
    """

    challenge: str
    sweep: str
    code_version: str
    cells: Mapping[str, int] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    name = "sweep"

    def to_run(self) -> Entries:
        """Write it as params, metrics and tags."""
        params = {f"{scenario}/cells": count for scenario, count in self.cells.items()}
        metrics = {f"{name}/tpr_at_fpr_{RANKING_FPR}": tpr for name, tpr in self.best.items()}
        tags = {"kind": "sweep", "challenge": self.challenge, "sweep": self.sweep}
        return Entries(params, metrics, {**tags, "code_version": self.code_version})


def cells_of(challenge: str, sweep: str | None = None) -> dict[str, str]:
    """Tags of a challenge's cells, or of those of one sweep."""
    return {"kind": "cell", "challenge": challenge} | ({} if sweep is None else {"sweep": sweep})


def of_content(content: str) -> dict[str, str]:
    """Tags of runs on these models, records and membership."""
    return {"content": content}


def of_scenario(dataset: str, scenario: str) -> dict[str, str]:
    """Params of a scenario's runs."""
    return {"dataset": dataset, "scenario": scenario}


def error_of(run: Entries) -> str:
    """Why a run failed, in its own words; empty where it does not say."""
    return run.tags.get(ERROR, "")


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _taken(metrics: dict[str, float], start: str) -> dict[str, float]:
    """Take out all metrics whose keys have this start."""
    names: Iterable[str] = [key for key in metrics if key.startswith(start)]
    return {key.removeprefix(start): metrics.pop(key) for key in names}


def _models(params: Mapping[str, Any]) -> dict[str, int]:
    """Phase → models, from all params that tell them."""
    counts = {key.removesuffix(MODELS): _whole(params[key]) for key in params if MODELS in key}
    return {phase: count for phase, count in counts.items() if count is not None}


def _whole(value: Any) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _number(value: Any) -> float | None:
    if value is None or str(value) == "None":
        return None
    try:
        return float(value)
    except ValueError:
        return math.nan
