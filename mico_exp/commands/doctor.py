"""The command that says in one screen whether a challenge's data are complete and consistent.

``python -m mico_exp.doctor dataset=cifar10`` ends with exit status 1 if an attack could not run.
"""

import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial

from omegaconf import DictConfig
from rich.table import Table

from mico_exp.challenge.points import ChallengePoints, challenge_points
from mico_exp.challenge.tree import Scenario
from mico_exp.common.arrays import Mask
from mico_exp.common.errors import InputError, MetricError
from mico_exp.common.terminal import show
from mico_exp.config import compose, options
from mico_exp.config.setup import Setup
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
from mico_exp.scores.inference import Metric, runner_on
from mico_exp.scores.vitals import Vitals

MODELS_ASKED = 20  # of train, where a doctor is the first to ask
MOST_FINDINGS = 20  # listed; the table counts all


def command(cfg: DictConfig) -> None:
    """Examine all scenarios of a challenge."""
    challenge = compose.challenge(cfg)
    title = f"Challenge {challenge.name} in {challenge.root}"
    overview = Table(title=title, title_justify="left")
    for title in ("scenario", "phase", "models", "expected", "sound", "weights", ""):
        overview.add_column(
            title, justify="left" if title in ("scenario", "phase", "") else "right"
        )
    findings: list[Finding] = []
    costs: dict[str, Cost] = {}
    known: dict[Hashable, Rates] = {}
    for name, setup in challenge.setups.items():
        reports, cost = _examine(setup, findings, known)
        for report in reports:
            overview.add_row(*_row(name, report))
        overview.add_section()
        if cost:
            costs[name] = cost
    show(overview)
    for name, cost in costs.items():
        device = challenge.setups[name].processor.device
        print(
            f"{name}: {cost.points:,} unique points; extraction about {cost.seconds:,.0f} s, of "
            f"gradients {cost.gradient_seconds:,.0f} s, on {device}, "
            f"{_size(cost.store_bytes)} of disk"
        )
    sys.exit(_conclude(findings))


def _examine(
    setup: Setup, findings: list[Finding], known: dict[Hashable, Rates]
) -> tuple[list[PhaseReport], Cost | None]:
    """Examine one scenario; appends what it finds to `findings`, and what it measures to `known`.

    Scenarios of one network, one data set and the same metrics take as long as one another.
    """
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
    if not reports[0].models:
        return reports, None
    scenario = as_scenario(setup.challenge, setup.name, sizes, reports)
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
    if not any(finding.fatal for finding in findings):
        findings += check_vitals(scenario, *_vitals(setup, scenario, points))
    metrics = options.all_metrics(disclosed=scenario.discloses)
    alike = setup.dataset, made.key, tuple(metrics)
    if alike not in known:
        known[alike] = _measured(scenario.path, partial(measure, *asked), metrics, findings)
    return reports, estimate(scenario, points, known[alike], len(metrics))


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


def _vitals(setup: Setup, scenario: Scenario, points: ChallengePoints) -> tuple[Vitals, Mask]:
    """Vitals that were taken before, or of some train models; membership of the latter's points."""
    every = setup.extraction_at(scenario, points)
    if (known := every.stored_vitals()) is not None:
        return known, every.vital.solution
    some = replace(scenario, phases={"train": scenario.phases["train"][:MODELS_ASKED]})
    few = setup.extraction_at(some, challenge_points(some))
    return few.take_vitals(), few.vital.solution


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
    unique = dict.fromkeys(findings)  # a missing data set is found by each scenario
    fatal = [finding.message for finding in unique if finding.fatal]
    notes = [finding.message for finding in unique if not finding.fatal]
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
