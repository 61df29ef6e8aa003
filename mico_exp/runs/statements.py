"""Statements on a challenge as runs and files: audits, risk of records, comparisons and gates.

What is said of models is one nested mapping, so a figure more needs nothing here. What a file or a
run says wrongly is no record: both are somebody's word.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from mico_exp.runs.record import CONTENT_OF, Entries

AUDIT_TABLE = "audit.txt"  # of an audit
RISK_FILE = "risk.json"  # of the risk of records
COMPARISON_FILE, COMPARISON_TABLE = "comparison.json", "comparison.txt"  # of a comparison
GATE_FILE = "gate.json"  # of a gate
AUDIT_NUMBERS = ("epsilon", "delta", "mu", "confidence", "models", "bits", "guesses", "right")
RISK_NUMBERS = ("fpr", "records", "exposed", "unjudged", "mean_tpr")
TOP_NUMBERS = ("record", "label", "models", "in_mean", "out_mean", "tpr", "rank", "low", "high")
GROUP_NUMBERS = ("records", "tpr", "exposed", "top")


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
