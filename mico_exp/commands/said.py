"""What other commands said of the scenarios that are there, read back from their runs for a report.

Runs are somebody's word, and may be of models that were there before: what is not of what is there
now, or not whole, is left out. The newest counts.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mico_exp.common.errors import InputError, first_line
from mico_exp.runs.record import LoggedRun
from mico_exp.runs.statements import (
    RISK_FILE,
    AuditRecord,
    ComparisonRecord,
    GateRecord,
    RiskRecord,
    SaidRecord,
)
from mico_exp.runs.tracking import Tracker

log = logging.getLogger(__name__)
Told = Mapping[str, Any]


class Said(NamedTuple):
    """All of it: audits and risks by scenario, comparisons and gates with the newest first.

    A risk tells beside what `RiskRecord` has the ``folder`` of its files, and the ``run`` that has
    them as well. A comparison tells what was ``compared``, a gate whether it ``passed``, and both
    the ``verdict``, ``when`` and by which ``run``.
    """

    audits: Mapping[str, Told]
    risks: Mapping[str, Told]
    comparisons: Sequence[Told]
    gates: Sequence[Told]


def find_said(tracker: Tracker, challenge: str, contents: Mapping[str, str]) -> Said:
    """Find what was said; `contents` is scenario → key of what is there now."""
    asked = tracker, challenge, contents
    return Said(_audits(*asked), _risks(*asked), _comparisons(*asked), _gates(*asked))


def _audits(tracker: Tracker, challenge: str, contents: Mapping[str, str]) -> dict[str, Told]:
    """The newest audit of each scenario."""
    found: dict[str, Told] = {}
    for run in tracker.finished(AuditRecord.tags_of(challenge)):
        record = AuditRecord.from_run(run)
        for name, one in record.by_scenario().items():
            if record.contents.get(name, "") == contents.get(name):
                found.setdefault(name, one)
    return {name: found[name] for name in contents if name in found}


def _risks(tracker: Tracker, challenge: str, contents: Mapping[str, str]) -> dict[str, Told]:
    """The newest risk of each scenario's records, at the FPR of the newest of all."""
    found: dict[str, Told] = {}
    for run in tracker.finished(RiskRecord.tags_of(challenge)):
        logged = RiskRecord.from_run(run)
        wanted = [n for n, one in contents.items() if logged.contents.get(n) == one]
        if all(name in found for name in wanted) or (told := _read(tracker, run)) is None:
            continue
        for name in wanted:
            one = told.get(name)
            if one and all(other["fpr"] == one["fpr"] for other in found.values()):
                folder = str(logged.said.get("folder", "."))
                found.setdefault(name, {**one, "folder": folder, "run": run.id})
    return {name: found[name] for name in contents if name in found}


def _read(tracker: Tracker, run: LoggedRun) -> dict[str, Told] | None:
    """What a run's file says of each scenario; None where it cannot be read."""
    try:
        with TemporaryDirectory() as folder:
            told = tracker.artifact(run.id, RISK_FILE, Path(folder)).read_bytes()
        return RiskRecord.from_told(json.loads(told)).by_scenario()
    except (InputError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        about = "run %s is left out, whose %s cannot be read: %s"
        log.warning(about, run.id, RISK_FILE, first_line(error))
        return None


def _comparisons(
    tracker: Tracker, challenge: str, contents: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The newest of each comparison whose sides of this challenge are as they are there now."""
    paths = {f"{challenge}/{name}": one for name, one in contents.items()}
    found: dict[str, dict[str, Any]] = {}
    for run in tracker.finished(ComparisonRecord.tags_of(challenge)):
        record = ComparisonRecord.from_run(run)
        mine = [one for one in record.contents.items() if one[0].startswith(f"{challenge}/")]
        compared = record.said.get("compared")
        if mine and all(one in paths.items() for one in mine) and isinstance(compared, str):
            _keep(found, (compared,), run, record, {"compared": compared})
    return list(found.values())


def _gates(tracker: Tracker, challenge: str, contents: Mapping[str, str]) -> list[dict[str, Any]]:
    """The newest gate of each limits and scenarios, all of which are as they are there now."""
    found: dict[str, dict[str, Any]] = {}
    for run in tracker.finished(GateRecord.tags_of(challenge)):
        record = GateRecord.from_run(run)
        passed = record.said.get("passed")
        if record.contents and record.contents.items() <= contents.items():
            asked = record.said.get("limits"), sorted(record.contents)
            if isinstance(passed, bool):
                _keep(found, asked, run, record, {"passed": passed})
    return list(found.values())


def _keep(
    found: dict[str, dict[str, Any]],
    asked: Sequence[Any],
    run: LoggedRun,
    record: SaidRecord,
    more: Told,
) -> None:
    """Take what a run said in one line, unless a newer one was asked the same by the same rule."""
    verdict = record.said.get("verdict")
    key = json.dumps([*asked, record.said.get("rule")], sort_keys=True)
    if isinstance(verdict, str):
        when = datetime.fromtimestamp(run.started / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        found.setdefault(key, {**more, "verdict": verdict, "when": when, "run": run.id})
