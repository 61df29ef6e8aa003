"""What a run holds: every param, metric, tag and file of it by its key, written and read back here.

No other module spells a key. What a foreign or an older run does not say, or says wrongly, reads as
what a field is by default: runs are somebody's word, and whoever needs more checks it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from mico_exp.common.identity import CellIdentity
from mico_exp.results.scoring import RANKING_FPR

PREDICTIONS = "predictions.npz"  # files of a cell
CONFIGURATION = "config.yaml"
ROC_PLOT = "roc.png"
SCORES_PLOT = "scores.png"
TABLE = "selection.txt"  # of a selection
AUDIT_TABLE = "audit.txt"  # of an audit
RISK_FILE = "risk.json"  # of the risk of records
COMPARISON_FILE, COMPARISON_TABLE = "comparison.json", "comparison.txt"  # of a comparison
GATE_FILE = "gate.json"  # of a gate
AUDIT_NUMBERS = ("epsilon", "delta", "mu", "confidence", "models", "bits", "guesses", "right")
RISK_NUMBERS = ("fpr", "records", "exposed", "unjudged", "mean_tpr")
TOP_NUMBERS = ("record", "label", "models", "in_mean", "out_mean", "tpr", "rank", "low", "high")
GROUP_NUMBERS = ("records", "tpr", "exposed", "top")
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


@dataclass(frozen=True)
class SaidRecord:
    """What a command said of scenarios, as a run of a kind of its own.

    contents: scenario → key of its models, records and membership.
    said: all of it, nested, what is of a scenario under its name. A number is a metric and a text a
        param, by the keys on the way to it with slashes between; lists are in the run's file alone.
    """

    challenge: str
    code_version: str
    contents: Mapping[str, str]
    said: Mapping[str, Any]
    name: ClassVar[str]

    @classmethod
    def tags_of(cls, challenge: str) -> dict[str, str]:
        """Tags of a challenge's runs of this kind."""
        return {"kind": cls.name, "challenge": challenge}

    def told(self) -> dict[str, Any]:
        """Write it for a file."""
        return {**self._head(), **self.said}

    def _head(self) -> dict[str, Any]:
        names = ("challenge", "code_version")
        return {name: getattr(self, name) for name in names} | {"contents": dict(self.contents)}

    @classmethod
    def from_told(cls, told: Any) -> Self:
        """Read what `told` has written.

        Raises:
            KeyError, TypeError, ValueError: it is nothing like that.
        """
        said = dict(told)
        contents = {str(name): str(text) for name, text in dict(said.pop("contents")).items()}
        challenge, version = (str(said.pop(key, "")) for key in ("challenge", "code_version"))
        return cls(challenge, version, contents, said)

    @property
    def file(self) -> bytes:
        """What `told` gives, as JSON."""
        text = json.dumps(self.told(), indent=2, allow_nan=False, ensure_ascii=False)
        return f"{text}\n".encode()

    def to_run(self) -> Entries:
        """Write it as params, metrics and tags; what is None or a list is not written."""
        params: dict[str, Any] = {}
        metrics: dict[str, float] = {}
        for key, value in _leaves("", self.said):
            if type(value) in (int, float):
                metrics[key] = value
            else:
                params[key] = value
        tags = self.tags_of(self.challenge) | {"code_version": self.code_version}
        tags |= {f"{CONTENT_OF}{name}": one for name, one in self.contents.items()}
        return Entries(params, metrics, tags)

    @classmethod
    def from_run(cls, run: Entries) -> Self:
        """Read what `to_run` has written; whole numbers come as such."""
        said: dict[str, Any] = {}
        numbers = {key: int(v) if float(v).is_integer() else v for key, v in run.metrics.items()}
        for key, value in {**run.params, **numbers}.items():
            one = value == "True" if value in ("True", "False") else value
            _put(said, key.split("/"), one)
        contents = {
            key.removeprefix(CONTENT_OF): text
            for key, text in run.tags.items()
            if key.startswith(CONTENT_OF)
        }
        challenge, version = (run.tags.get(key, "") for key in ("challenge", "code_version"))
        return cls(challenge, version, contents, said)


class AuditRecord(SaidRecord):
    """An audit: of each scenario what `auditing.statement` tells."""

    name = "audit"

    @property
    def scenarios(self) -> list[Mapping[str, Any]]:
        """What is said of each."""
        return [one for one in self.said.values() if isinstance(one, Mapping)]

    def by_scenario(self) -> dict[str, Mapping[str, Any]]:
        """What is said of each that the record is whole of; runs are somebody's word."""
        told = {str(one.get("scenario")): one for one in self.scenarios}
        return {name: one for name, one in told.items() if _is_whole(one)}

    def told(self) -> dict[str, Any]:
        """Write it for ``audits/<challenge>.json``."""
        return {**self._head(), "scenarios": self.scenarios}

    @classmethod
    def from_told(cls, told: Any) -> Self:
        """Read what `told` has written.

        Raises:
            KeyError, TypeError, ValueError: it is nothing like that.
        """
        found = super().from_told(told)
        scenarios = [dict(one) for one in found.said["scenarios"]]
        return replace(found, said={str(one.get("scenario")): one for one in scenarios})


class RiskRecord(SaidRecord):
    """Risk of single records: ``rule`` and ``folder`` of its files, and of each scenario figures.

    The histogram, the first records and the groups are lists, and so in the file alone.
    """

    name = "risk"

    def by_scenario(self) -> dict[str, Mapping[str, Any]]:
        """What is said of each that a file's record is whole of."""
        return {name: one for name, one in self.said.items() if _tells_risk(one)}


class ComparisonRecord(SaidRecord):
    """A comparison: two sides with their differences, or all scenarios of a challenge.

    Scenarios of two challenges may have the same name: `contents` has them as challenge/scenario.
    """

    name = "comparison"


class GateRecord(SaidRecord):
    """A gate: whether it let pass, by which limits, and what was held against them."""

    name = "gate"


def _put(place: dict[str, Any], way: Sequence[str], value: Any) -> None:
    """Put a value at the end of a way through nested mappings, unless something is there."""
    for step in way[:-1]:
        if not isinstance(place := place.setdefault(step, {}), dict):
            return
    place.setdefault(way[-1], value)


def _leaves(start: str, told: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """All values of nested mappings but None and lists, by the way to them."""
    for key, value in told.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{start}{key}/", value)
        elif value is not None and not isinstance(value, list):
            yield f"{start}{key}", value


def _is_whole(told: Mapping[str, Any]) -> bool:
    """Tell whether an audit says of a scenario what a report shows of it."""
    lower, attack, claimed = (told.get(key, {}) for key in ("lower", "attack", "claimed"))
    if not all(isinstance(one, Mapping) for one in (lower, attack, claimed)):
        return False
    texts = [told.get("verdict"), lower.get("method")]
    texts += [attack.get(key) for key in ("cell", "chosen_on", "judged_on")]
    numbers = [lower.get(key) for key in AUDIT_NUMBERS]
    numbers += [value for key, value in claimed.items() if key != "recorded"]
    numbers += [claimed.get(key) for key in ("epsilon", "delta") if claimed]
    return all(isinstance(one, str) for one in texts) and all(
        type(one) in (int, float) and 0 <= one < math.inf for one in numbers
    )


def _tells_risk(told: Any) -> bool:
    """Tell whether a file says of a scenario what a report shows of it."""
    if not isinstance(told, Mapping) or not isinstance(told.get("groups"), Mapping):
        return False
    counts = told.get("histogram")
    return (
        all(isinstance(told.get(key), str) for key in ("cell", "summary"))
        and _have_numbers([told], RISK_NUMBERS)
        and isinstance(counts, list)
        and all(type(one) is int and one >= 0 for one in counts)
        and sum(counts) > 0
        and _have_numbers(told.get("top"), TOP_NUMBERS)
        and all(_have_numbers(some, GROUP_NUMBERS) for some in told["groups"].values())
        and all(
            isinstance(one.get("name"), str) for some in told["groups"].values() for one in some
        )
    )


def _have_numbers(rows: Any, keys: Sequence[str]) -> bool:
    """Tell whether it is a list of mappings, each with a finite number at each key."""
    return isinstance(rows, list) and all(
        isinstance(row, Mapping)
        and all(type(row.get(key)) in (int, float) and math.isfinite(row[key]) for key in keys)
        for row in rows
    )


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
