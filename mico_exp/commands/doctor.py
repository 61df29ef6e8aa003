"""The command that says in one screen whether a challenge's data are complete and consistent.

``python -m mico_exp.doctor dataset=cifar10`` ends with exit status 1 if an attack could not run.
"""

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from omegaconf import DictConfig
from rich.table import Table

from mico_exp.challenge import twins
from mico_exp.challenge.points import ChallengePoints, challenge_points
from mico_exp.challenge.records import Records
from mico_exp.challenge.tree import Scenario
from mico_exp.common.errors import InputError, MetricError
from mico_exp.common.terminal import show
from mico_exp.config import advice, challenges
from mico_exp.config.exposing import Exposure
from mico_exp.config.metrics import all_metrics
from mico_exp.config.setup import Setup
from mico_exp.scores import glance
from mico_exp.scores.estimate import (
    Cost,
    Finding,
    PhaseReport,
    Rates,
    as_scenario,
    check_built,
    check_epsilon,
    check_soundness,
    check_truth,
    check_vitals,
    estimate,
    examine,
    measure,
)
from mico_exp.scores.families import Metric
from mico_exp.scores.inference import runner_on
from mico_exp.scores.vitals import Vitals

MODELS_ASKED = 20  # of train, where a doctor is the first to ask
MOST_FINDINGS = 20  # listed; the table counts all


@dataclass
class Seen:
    """What has been found out of a challenge so far.

    rates, groups: what networks take and copies among records, for scenarios with the same.
    facts: scenario → its data at a glance. near: what near copies are, where any were looked for.
    """

    findings: list[Finding] = field(default_factory=list)
    rates: dict[Hashable, Rates] = field(default_factory=dict)
    groups: dict[str, twins.Groups] = field(default_factory=dict)
    facts: dict[str, glance.Facts] = field(default_factory=dict)
    near: str | None = None

    def note(self, path: str, lines: Iterable[str], *, fatal: bool = False) -> None:
        """Add what was found of a scenario."""
        self.findings += [Finding(path, f"{path}: {line}", fatal) for line in lines]

    @property
    def is_fatal(self) -> bool:
        """Something keeps an attack from running."""
        return any(finding.fatal for finding in self.findings)


def command(cfg: DictConfig) -> None:
    """Examine all scenarios of a challenge."""
    challenge = challenges.challenge(cfg, recipes=True)
    title = f"Challenge {challenge.name} in {challenge.root}"
    overview = Table(title=title, title_justify="left")
    for title in ("scenario", "phase", "models", "expected", "sound", "weights", ""):
        overview.add_column(
            title, justify="left" if title in ("scenario", "phase", "") else "right"
        )
    seen = Seen()
    costs: dict[str, Cost] = {}
    builds: list[str] = []
    for name, setup in challenge.setups.items():
        reports, cost = _examine(setup, seen)
        for report in reports:
            overview.add_row(*_row(name, report))
        overview.add_section()
        if cost:
            costs[name] = cost
        elif not reports[0].found and (told := _build_cost(setup, seen)):
            builds.append(told)
    show(overview)
    print(*builds, sep="\n", end="\n" * bool(builds))
    if seen.facts:
        show(_data(seen.facts))
    if seen.near is not None:
        print(
            "Copies: non-members with the inputs of a record that the model was trained on; near "
            f"copies: of {seen.near}. Accuracy: on members / on non-members."
        )
    for name, cost in costs.items():
        device = challenge.setups[name].processor.device
        print(
            f"{name}: {cost.points:,} unique points; extraction about {cost.seconds:,.0f} s, of "
            f"gradients {cost.gradient_seconds:,.0f} s, on {device}, "
            f"{_size(cost.store_bytes)} of disk"
        )
    sys.exit(_conclude(seen.findings))


def _build_cost(setup: Setup, seen: Seen) -> str | None:
    """Say what a scenario takes to build that is not there; None if it cannot be built here."""
    try:
        if setup.recipe is None or (found := setup.build_cost()) is None:
            return None
    except InputError as error:
        seen.findings.append(Finding(setup.path, str(error)))
        return None
    each = f"{found.steps:,} steps of {found.step_seconds:.3g} s"
    where = f"{setup.processor.device}, in {found.processes} process(es)"
    return (
        f"{setup.name} is not there. To build it: {found.models} models, {each}; about "
        f"{_hours(found.seconds)} on {where}, {_size(found.disk_bytes)} of disk. "
        f"{advice.of_scenario('build', setup.options)}"
    )


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


def _examine(setup: Setup, seen: Seen) -> tuple[list[PhaseReport], Cost | None]:
    """Examine one scenario.

    Scenarios of one network, one data set and the same metrics take as long as one another.
    """
    findings = seen.findings
    records, evaluator = None, None
    try:
        evaluator = runner_on(setup.processor)
        records = setup.records
        setup.source.check_steady()
        if setup.source.outputs is not None:
            setup.build()
    except InputError as error:
        findings.append(Finding(setup.dataset, str(error)))
    sizes = setup.sizes(setup.source.told if records is None else len(records.labels))
    made, expected = setup.architecture, dict(setup.expected)
    reports = examine(setup.root, setup.path, expected, sizes, made, allow_nan=setup.allow_nan)
    for report in reports:
        findings += report.findings
    scenario = as_scenario(setup.challenge, setup.name, sizes, reports)
    if "train" not in scenario.phases:
        return reports, None
    findings += check_truth(setup.root, scenario)
    if records is not None and (odd := check_built(setup.root, scenario, records)):
        findings.append(odd)
    if records is not None:
        findings += _about_recipe(setup)
    if odd := check_epsilon(scenario, setup.epsilon, setup.disclosed is not None)[1]:
        findings.append(odd)
    if records is None or evaluator is None:
        return reports, None
    points = challenge_points(scenario)
    asked = scenario, points, records, made, evaluator
    odd_answers = check_soundness(*asked, allow_nan=setup.allow_nan)
    findings += odd_answers
    if any(finding.fatal for finding in odd_answers):
        return reports, None
    if odd_answers:
        asked = *asked[:-1], runner_on(replace(setup.processor, batch_size=1))
    _glance(setup, scenario, points, records, seen)
    given = Exposure(lacks=setup.source.lacks)
    metrics = all_metrics(disclosed=scenario.discloses, exposure=given)
    alike = setup.dataset, made.key, tuple(metrics)
    if alike not in seen.rates:
        seen.rates[alike] = _measured(scenario.path, partial(measure, *asked), metrics, findings)
    return reports, estimate(scenario, points, seen.rates[alike], len(metrics))


def _glance(
    setup: Setup, scenario: Scenario, points: ChallengePoints, records: Records, seen: Seen
) -> None:
    """Look at a scenario's data: membership, and if that has a meaning, twins and accuracy."""
    path, outputs = scenario.path, setup.source.outputs
    facts, lines = glance.of_membership(scenario, points)
    seen.facts[setup.name] = facts
    seen.note(path, lines, fatal=True)
    if outputs is None:
        seen.facts[setup.name] = glance.of_records(records) | facts
        copies, lines = _about_twins(setup, scenario, points, records, seen)
        seen.facts[setup.name] |= copies
        seen.note(path, lines)
    if seen.is_fatal:
        return
    vitals, taken_at = _vitals(setup, scenario, points)
    seen.findings += check_vitals(scenario, vitals, taken_at.solution)
    if outputs is None or outputs.gives_classes:
        accuracy, lines = glance.of_accuracy(vitals, taken_at, records)
        seen.facts[setup.name] |= accuracy
        seen.note(path, lines)


def _about_twins(
    setup: Setup, scenario: Scenario, points: ChallengePoints, records: Records, seen: Seen
) -> tuple[glance.Facts, list[str]]:
    """Look for copies of records; the same ones for all scenarios of a data set."""
    if setup.dataset not in seen.groups:
        seen.groups[setup.dataset] = twins.groups(records)
    groups = seen.groups[setup.dataset]
    near = twins.near(records, groups, points.unique)
    seen.near = (
        f"{len(near.compared):,} points beside {near.others:,} of {groups.looked_at:,} records, "
        f"{near.rule}"
    )
    return glance.of_twins(glance.Twins.of(scenario, points, groups, near))


def _data(facts: Mapping[str, glance.Facts]) -> Table:
    """Lay out all scenarios' data."""
    table = Table(title="Data", title_justify="left")
    table.add_column("")
    for name in facts:
        table.add_column(name, overflow="fold")
    for title in dict.fromkeys(title for told in facts.values() for title in told):
        table.add_row(title, *(told.get(title, "–") for told in facts.values()))
    return table


def _measured(
    path: str,
    ask: Callable[[Mapping[str, Metric]], Rates],
    metrics: Mapping[str, Metric],
    findings: list[Finding],
) -> Rates:
    """What the networks take; notes where some of the metrics cannot be had of them."""
    try:
        return ask(metrics)
    except MetricError as error:
        findings.append(Finding(path, f"{path}: {error}", fatal=False))
        return ask({})


def _about_recipe(setup: Setup) -> list[Finding]:
    """Tell where a recipe that was typed is not that of the models."""
    try:
        setup.check_recipe()
    except InputError as error:
        return [Finding(setup.path, str(error))]
    return []


def _vitals(
    setup: Setup, scenario: Scenario, points: ChallengePoints
) -> tuple[Vitals, ChallengePoints]:
    """Vitals that were taken before, or of some train models; and the points they are of."""
    every = setup.extraction_at(scenario, points).checkup
    if (known := every.stored()) is not None:
        return known, every.points
    some = replace(scenario, phases={"train": scenario.phases["train"][:MODELS_ASKED]})
    few = setup.extraction_at(some, challenge_points(some)).checkup
    return few.take(), few.points


def _row(name: str, report: PhaseReport) -> tuple[str, ...]:
    sign = "ok" if report.sound and report.found else "absent" if not report.found else "PROBLEM"
    return (
        name,
        report.name,
        str(report.found),
        "–" if report.expected is None else str(report.expected),
        str(len(report.models)),
        _size(report.weight_bytes),
        sign,
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _conclude(findings: list[Finding]) -> int:
    """Print what was found, the fatal first; returns the exit status."""
    # A missing data set is found by each scenario, and a mask of the wrong shape by each model.
    fatal = list(dict.fromkeys(one.message for one in findings if one.fatal))
    notes = list(dict.fromkeys(one.message for one in findings if not one.fatal))
    for title, messages in (("Problem", fatal), ("Note", notes)):
        for message in messages[:MOST_FINDINGS]:
            print(f"{title}: {message}")
        if len(messages) > MOST_FINDINGS:
            print(f"{title}: … and {len(messages) - MOST_FINDINGS} more")
    if fatal:
        print(f"{len(fatal)} problem(s): an attack could not run, or would mean nothing.")
        return 1
    print("An attack can run.")
    return 0
