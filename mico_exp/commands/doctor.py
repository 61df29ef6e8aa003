"""The command that says in one screen whether a challenge's data are complete and consistent.

``python -m mico_exp.doctor dataset=cifar10`` ends with exit status 1 if an attack could not run.
"""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table

from mico_exp.common.errors import InputError
from mico_exp.common.terminal import show

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mico_exp.challenge.datasets import Records
    from mico_exp.challenge.points import ChallengePoints
    from mico_exp.challenge.tree import Scenario
    from mico_exp.common.arrays import Mask
    from mico_exp.scores.estimate import Cost, Finding, PhaseReport
    from mico_exp.scores.vitals import Vitals

MODELS_ASKED = 20  # of train, where a doctor is the first to ask
MOST_FINDINGS = 20  # listed; the table counts all


def command(cfg: "DictConfig") -> None:
    """Examine all scenarios of a challenge."""
    from mico_exp.config import compose

    overview = Table(title=f"Challenge {cfg.challenge} in {cfg.paths.data}", title_justify="left")
    for title in ("scenario", "phase", "models", "expected", "sound", "weights", ""):
        overview.add_column(
            title, justify="left" if title in ("scenario", "phase", "") else "right"
        )
    findings: list[Finding] = []
    costs: dict[str, Cost] = {}
    for name, of_scenario in compose.of_challenge(cfg).items():
        reports, cost = _examine(of_scenario, name, findings)
        for report in reports:
            overview.add_row(*_row(name, report))
        overview.add_section()
        if cost:
            costs[name] = cost
    show(overview)
    for name, cost in costs.items():
        print(
            f"{name}: {cost.points:,} unique points; extraction about {cost.seconds:,.0f} s, of "
            f"gradients {cost.gradient_seconds:,.0f} s, on {cfg.compute.device}, "
            f"{_size(cost.store_bytes)} of disk"
        )
    sys.exit(_conclude(findings))


def _examine(
    cfg: "DictConfig", name: str, findings: "list[Finding]"
) -> "tuple[list[PhaseReport], Cost | None]":
    """Examine one scenario; appends what it finds to `findings`."""
    from mico_exp.challenge.points import challenge_points
    from mico_exp.config import compose, options
    from mico_exp.scores.estimate import (
        Finding,
        as_scenario,
        check_built,
        check_epsilon,
        check_soundness,
        check_truth,
        check_vitals,
        estimate,
        examine,
    )
    from mico_exp.scores.inference import runner_on

    records, evaluator = None, None
    made = compose.architecture(cfg)
    try:
        evaluator = runner_on(compose.processor(cfg))
        records = compose.records(cfg)
        compose.check_steady(cfg)
    except InputError as error:
        findings.append(Finding(cfg.dataset.name, str(error)))
    num_records = cfg.dataset.num_records if records is None else len(records.labels)
    sizes = compose.sizes(cfg, num_records)
    path, expected = f"{cfg.challenge}/{name}", dict(cfg.dataset.phases)
    root, allow_nan = compose.root(cfg), compose.allow_nan(cfg)
    reports = examine(root, path, expected, sizes, made, allow_nan=allow_nan)
    for report in reports:
        findings += report.findings
    if not reports[0].models:
        return reports, None
    scenario = as_scenario(cfg.challenge, name, sizes, reports)
    findings += check_truth(root, scenario)
    if records is not None and (odd := check_built(root, scenario, records)):
        findings.append(odd)
    if odd := check_epsilon(scenario, *_epsilon(cfg, name))[1]:
        findings.append(odd)
    if records is None or evaluator is None:
        return reports, None
    points = challenge_points(scenario)
    asked = scenario, points, records, made, evaluator
    if unsound := check_soundness(*asked, allow_nan=allow_nan):
        findings += unsound
        return reports, None
    if not any(finding.fatal for finding in findings):
        findings += check_vitals(scenario, *_vitals(cfg, scenario, points, records))
    metrics = options.all_metrics(disclosed=scenario.discloses)
    return reports, estimate(*asked, metrics)


def _epsilon(cfg: "DictConfig", name: str) -> tuple[float | None, bool]:
    """ε of a scenario's option, and whether there is such an option."""
    from mico_exp.config import compose, options

    option = name.removeprefix(f"{cfg.dataset.name}_")
    if option not in options.option_names("scenario"):
        return None, False
    return compose.epsilon(options.option_of("scenario", option)), True


def _vitals(
    cfg: "DictConfig", scenario: "Scenario", points: "ChallengePoints", records: "Records"
) -> "tuple[Vitals, Mask]":
    """Vitals that were taken before, or of some train models; membership of the latter's points."""
    from mico_exp.challenge.points import challenge_points
    from mico_exp.config import compose

    if (known := compose.extraction(cfg, scenario, points, records).stored_vitals()) is not None:
        return known, points.solution
    some = replace(scenario, phases={"train": scenario.phases["train"][:MODELS_ASKED]})
    own = challenge_points(some)
    return compose.extraction(cfg, some, own, records).take_vitals(), own.solution


def _row(name: str, report: "PhaseReport") -> tuple[str, ...]:
    sign = "ok" if report.sound and report.found else "absent" if not report.found else "PROBLEM"
    return (
        name,
        report.name,
        str(report.found),
        str(report.expected),
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


def _conclude(findings: "list[Finding]") -> int:
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
