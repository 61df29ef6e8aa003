"""Lets a release pass or not: by what an attack got, and by what it proves of ε.

``python -m mico_exp.gate max_tpr=0.15 max_epsilon=4`` ends with status 0 if every scenario keeps
both limits, with 1 if one does not, and with 2 if that cannot be said. The worst scenario decides.
It is written to ``audits/<challenge>_gate.json`` with either of the first two, and logged as the
run ``gate``.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from mico_exp.auditing.difference import upper_limit
from mico_exp.auditing.games import REPLACE_ONE
from mico_exp.auditing.limits import NAMES
from mico_exp.commands.choosing import describe_rule
from mico_exp.commands.known import Known, find_known, named
from mico_exp.common.atomic import write_bytes
from mico_exp.common.errors import InputError, first_line
from mico_exp.common.process import Refused
from mico_exp.config import advice, statements
from mico_exp.config.statements import Gating
from mico_exp.results.scoring import RANKING_FPR
from mico_exp.runs import provenance
from mico_exp.runs.statements import GATE_FILE, AuditRecord, GateRecord
from mico_exp.runs.tracking import Tracker

log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """One limit on one scenario: which, and how far the figure is beyond it, as their quotient.

    figure: that is held against the limit. told: all of it in words.
    """

    scenario: str
    limit: str
    figure: float
    excess: float
    told: str

    @property
    def passes(self) -> bool:
        """The limit is kept."""
        return self.excess <= 1


def command(cfg: DictConfig) -> None:
    """Look at every scenario, write, log and print what is found; refuse where a limit is broken.

    Raises:
        Refused: one does not.
    """
    how = statements.gating(cfg)
    audit = None if how.max_epsilon is None else read_audit(how)
    tracker = Tracker(how.challenge.name, Path.cwd(), create=False)
    found = find_known(how, tracker)
    verdicts = [one for known in found for one in _verdicts(how, known, audit)]
    worst = max(verdicts, key=lambda one: one.excess)
    record = _record(how, found, verdicts, worst)
    write_bytes(how.folder / f"{how.challenge.name}_gate.json", record.file)
    tracker.log(record.name, record.to_run(), {GATE_FILE: record.file})
    print(record.said["verdict"])
    if not worst.passes:
        raise Refused


def _record(
    how: Gating, found: Sequence[Known], verdicts: Sequence[Verdict], worst: Verdict
) -> GateRecord:
    """What the run ``gate`` tells."""
    count = f"the worst of {len(found)} scenarios" if len(found) > 1 else "one scenario"
    said: dict[str, Any] = {
        "verdict": f"{'Passed' if worst.passes else 'Refused'}: {count}, {worst.told}.",
        "passed": worst.passes,
        "rule": describe_rule(how.selection),
        "limits": {"max_tpr": how.max_tpr, "max_epsilon": how.max_epsilon},
    }
    for one in verdicts:
        held = {"figure": one.figure, "passed": one.passes, "verdict": one.told}
        said.setdefault(one.scenario, {})[one.limit] = held
    contents = {known.setup.name: known.here.identity.content for known in found}
    return GateRecord(how.challenge.name, provenance.code_version(), contents, said)


def _verdicts(how: Gating, known: Known, audit: AuditRecord | None) -> list[Verdict]:
    found = []
    if how.max_tpr is not None:
        found.append(_on_tpr(known, how.max_tpr))
    if how.max_epsilon is not None and audit is not None:
        content = known.here.identity.content
        found.append(on_epsilon(known.setup.name, content, audit, how))
    return found


def _on_tpr(known: Known, most: float) -> Verdict:
    name, phases = known.setup.name, named(known.phases)
    try:
        upper = upper_limit(known.samples(known.phases))
    except InputError as error:
        raise InputError(f"{name}, {known.cell}, {phases}: {error}") from error
    told = (
        f"{name} ({known.cell}, {phases}, {upper.of}): TPR at FPR {RANKING_FPR} is "
        f"{upper.tpr:.4f}, at most {upper.limit:.4f} (one-sided 95 %), "
        f"{_against(upper.limit, most)} max_tpr={most:g}"
    )
    return Verdict(name, "max_tpr", upper.limit, _quotient(upper.limit, most), told)


def on_epsilon(name: str, content: str, audit: AuditRecord, how: Gating) -> Verdict:
    """Hold what an audit proves of a scenario against the limit.

    Raises:
        InputError: it says nothing of the scenario, or of other models than have this content.
    """
    assert how.max_epsilon is not None
    most = how.max_epsilon
    if audit.contents.get(name) != content:
        raise InputError(
            f"{_path(how)}: {name} was not audited, or with other models. Run: {_command()}"
        )
    try:
        (told,) = (one for one in audit.scenarios if one["scenario"] == name)
        proven = _proven(told)
        lower = _number(told["lower"]["epsilon"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{_path(how)}: is no audit of {name}. Run: {_command()}") from error
    text = f"{name}: {proven}, {_against(lower, most)} max_epsilon={most:g}"
    return Verdict(name, "max_epsilon", lower, _quotient(lower, most), text)


def _proven(told: Mapping[str, Any]) -> str:
    """What an audit proves of which relation, how, and what is claimed of it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no audit.
    """
    lower, claimed = told["lower"], told["claimed"]
    relation = NAMES[lower["relation"]]
    claim = "none"
    if claimed is not None:
        claim = f"{_number(claimed['epsilon']):g}"
        if lower["relation"] == REPLACE_ONE and claimed.get("replace_one") is not None:
            claim += f", {relation} {_number(claimed['replace_one']):.4g}"
    how = f"{lower['method']}, {told['attack']['cell']}, "
    how += f"confidence {_number(lower['confidence']):g}"
    proven = f"the attack proves ε ≥ {_number(lower['epsilon']):.4g} of {relation}"
    return f"{proven} ({how}; claimed: {claim})"


def _number(value: Any) -> float:
    """A finite number that is not negative.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not 0 <= (number := float(value)) < math.inf:
        raise ValueError(f"{number} cannot be.")
    return number


def _against(value: float, most: float) -> str:
    return "above" if value > most else "within"


def _quotient(value: float, most: float) -> float:
    """How many times the limit; a limit of 0 is kept by 0 alone."""
    if most == 0:
        return math.inf if value > 0 else 0.0
    return value / most


def _path(how: Gating) -> Path:
    return how.folder / f"{how.challenge.name}.json"


def _command() -> str:
    own = ("max_tpr", "max_epsilon", "cell")
    return advice.command("mico_exp.audit", *advice.typed(*own, *statements.OF_RULES))


def read_audit(how: Gating) -> AuditRecord:
    """Read what `python -m mico_exp.audit` has written.

    Raises:
        InputError: it is not there, or nothing like that.
    """
    path = _path(how)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing, which tells proven ε. Run: {_command()}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {first_line(error)}") from error
    try:
        found = AuditRecord.from_told(told)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is no audit. Run: {_command()}") from error
    if (here := provenance.code_version()) != found.code_version:
        log.warning("%s is of code version %s, not %s", path, found.code_version, here)
    return found
