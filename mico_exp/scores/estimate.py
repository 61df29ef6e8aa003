"""Whether a scenario on disk is complete and consistent, and what an attack on it will cost.

Unlike the pipeline, which stops at the first thing that is wrong, this goes on and lists them all.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mico_exp.challenge.epsilon import EpsilonRange, recorded_epsilon
from mico_exp.challenge.lists import check_keep
from mico_exp.challenge.phases import PHASES, SHADOW
from mico_exp.challenge.points import ChallengePoints, disclosed, undisclosed
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.records import Records
from mico_exp.challenge.tree import (
    ModelFolder,
    Scenario,
    arranged,
    check_solution,
    equal_seeds,
    equal_weights,
    look_for_models,
    model_number,
    read_model,
)
from mico_exp.challenge.truth import read_truth
from mico_exp.common.arrays import Indices, Mask
from mico_exp.common.errors import InputError
from mico_exp.common.terminal import progress
from mico_exp.models.architectures import Architecture, can_stack
from mico_exp.models.folders import check_built_from
from mico_exp.models.weights import (
    check_weights,
    load_state,
    not_finite,
    weights_bytes,
    weights_file,
)
from mico_exp.scores.families import Metric
from mico_exp.scores.gradients import GradientMetric, GradNorm
from mico_exp.scores.inference import ModelRunner
from mico_exp.scores.metrics import loss
from mico_exp.scores.soundness import check_records
from mico_exp.scores.stacks import MODELS_AT_ONCE
from mico_exp.scores.trial import Trial, trial_of
from mico_exp.scores.vitals import Vitals, findings
from mico_exp.scores.white_box import GradientRunner, Reference
from mico_exp.training.accountant import TOLERANCE

log = logging.getLogger(__name__)
BYTES_PER_SCORE = 12  # an index and a score
POINTS_ASKED = 128
CALLS, ENOUGH_SECONDS = 6, 1.0  # to find out how long one takes
MODELS_ASKED = 20  # for the check of members' scores
ALIKE = 0.05  # relative difference of two ε that is none


@dataclass(frozen=True)
class Finding:
    """Something about a place that a person should know; `fatal` if no attack could run."""

    place: str
    message: str
    fatal: bool = True


@dataclass
class PhaseReport:
    """What a phase holds: models found, expected and sound, bytes of weights, findings.

    expected: None where that is not told. weights: digests of the sound models' weights.
    """

    name: str
    expected: int | None
    models: list[ModelFolder] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    found: int = 0
    weight_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """No finding here keeps an attack from running."""
        return not any(finding.fatal for finding in self.findings)


@dataclass(frozen=True)
class Cost:
    """Estimated cost of extraction: seconds on the device, and bytes in the score store.

    gradient_seconds: of the second pass, for metrics of gradients; 0 without any.
    """

    points: int
    seconds: float
    gradient_seconds: float
    store_bytes: int


def examine_phase(
    folder: Path,
    name: str,
    expected: int | None,
    sizes: Sizes,
    architecture: Architecture,
    *,
    allow_nan: bool = False,
) -> PhaseReport:
    """Check every model folder of a phase: names, seeds, solution, splits and weights."""
    report = PhaseReport(name, expected)
    place = folder / name
    paths, faults = look_for_models(place)
    report.findings += [Finding(str(place), fault) for fault in faults]
    report.found = len(paths)
    report.findings += _about_numbers(place, name, expected, [model_number(path) for path in paths])
    try:
        check_keep(place, len(paths), sizes.records)
    except InputError as error:  # then of no model is it told what it was trained on
        report.findings.append(Finding(str(place), str(error)))
        return report
    with progress(f"Checking {place}", len(paths)) as bar:
        for row, path in enumerate(paths):
            try:
                model, weights, bad = _check_model(path, row, name, sizes, architecture)
                report.weight_bytes += weights_bytes(path)
                if bad:
                    message = f"{weights_file(path)}: {bad} weights are not finite."
                    report.findings.append(Finding(str(path), message, fatal=not allow_nan))
                if not bad or allow_nan:
                    report.models.append(model)
                    report.weights.append(weights)
            except InputError as error:
                report.findings.append(Finding(str(path), str(error)))
            bar.update()
    report.findings += _about_disclosure(folder, report)
    return report


def _about_disclosure(folder: Path, report: PhaseReport) -> list[Finding]:
    """Note the models of ddp that do not tell their training set; attacks can do without."""
    if not folder.name.endswith("_ddp") or report.name == "train":
        return []
    silent = [model for model in report.models if not model.discloses_training]
    return [
        Finding(str(one.path), f"{undisclosed(one)} is missing, which ddp discloses.", fatal=False)
        for one in silent
    ]


def _about_numbers(
    place: Path, phase: str, expected: int | None, numbers: Sequence[int]
) -> list[Finding]:
    if not numbers and phase == SHADOW:
        return []
    if not numbers:
        what = "holds no model_K folder"
        if phase == "train" and look_for_models(place.parent / SHADOW)[0]:
            message = f"{place} {what}: reference models stand in for train models."
            return [Finding(str(place), message, fatal=False)]
        if phase == "train":
            return [Finding(str(place), f"{place} {what}: there is nothing to calibrate with.")]
        return [Finding(str(place), f"{place} {what}: only validation is possible.", fatal=False)]
    findings = []
    if expected is not None and len(numbers) != expected:
        message = f"{place} holds {len(numbers)} models, {expected} were expected."
        findings.append(Finding(str(place), message, fatal=False))
    if gaps := sorted(set(range(numbers[0], numbers[-1])) - set(numbers)):
        named = ", ".join(f"model_{number}" for number in gaps[:5])
        message = f"{place} has gaps in its numbers: {named}{' …' if len(gaps) > 5 else ''}"
        findings.append(Finding(str(place), message, fatal=False))
    return findings


def _check_model(
    path: Path, row: int, phase: str, sizes: Sizes, architecture: Architecture
) -> tuple[ModelFolder, str, int]:
    """Read a model's seeds or lists, solution and weights.

    Returns the model, the digest of its weights, and how many of them are not finite.
    """
    model = read_model(path, row)
    if phase in ("train", SHADOW):
        disclosed(model, sizes)
    else:
        check_solution(model, sizes, path / "solution.csv")
        model.check_lists(sizes)
    weights = check_weights(weights_file(path))
    state = load_state(weights_file(path), architecture.make(path), mapped=True)
    return model, weights, not_finite(state)


def as_scenario(
    challenge: str, name: str, sizes: Sizes, reports: Sequence[PhaseReport]
) -> Scenario:
    """Scenario of the sound models; only for a look, never for figures."""
    found = {report.name: tuple(report.models) for report in reports}
    return arranged(challenge, name, sizes, found)


def check_soundness(
    scenario: Scenario,
    points: ChallengePoints,
    records: Records,
    architecture: Architecture,
    runner: ModelRunner,
    *,
    allow_nan: bool = False,
) -> list[Finding]:
    """Check the records at a scenario's points, and what a model gives for some of them."""
    folders = [model.path for _, model in scenario.models()]
    try:
        check_records(records, points.unique, architecture.make(folders[0]))
    except InputError as error:
        return [Finding(scenario.challenge, str(error))]
    trial = Trial(architecture, records, runner.processor, allow_nan)
    try:
        otherwise = trial(trial_of(records, points.unique, folders))
    except InputError as error:
        return [Finding(scenario.path, str(error))]
    told = f"{otherwise}: every record will be asked by itself, which takes longer."
    return [Finding(scenario.path, told, fatal=False)] if otherwise else []


def check_built(root: Path, scenario: Scenario, records: Records) -> Finding | None:
    """Find whether a scenario was built from other records."""
    try:
        check_built_from(root / scenario.path, records)
    except InputError as error:
        return Finding(scenario.path, str(error))
    return None


def check_vitals(scenario: Scenario, vitals: Vitals, solution: Mask) -> list[Finding]:
    """Note what seems wrong with a scenario's models; none of it keeps an attack from running."""
    names = {
        phase: [str(model.path) for model in models] for phase, models in scenario.phases.items()
    }
    found = findings(vitals, solution, names)
    return [Finding(scenario.path, f"{scenario.path}: {line}", fatal=False) for line in found]


class _Gradients(NamedTuple):
    """Seconds of one model: whatever it is asked for, and for each point more."""

    model: float
    each: float


class Rates(NamedTuple):
    """Seconds that a network takes here: to load a model, for a score, and for its gradients."""

    load: float
    score: float
    gradients: _Gradients


def measure(
    scenario: Scenario,
    points: ChallengePoints,
    records: Records,
    architecture: Architecture,
    runner: ModelRunner,
    metrics: Mapping[str, Metric],
) -> Rates:
    """Run some points through as many models as run at once."""
    train = scenario.phases["train"]
    stackable = can_stack(architecture.make(train[0].path))
    together = [model.path for model in train[: MODELS_AT_ONCE if stackable else 1]]
    started = time.perf_counter()
    models = runner.load(architecture, together)
    load = (time.perf_counter() - started) / len(together)
    some = np.random.default_rng(0).permutation(points.unique)[:POINTS_ASKED]
    asked = np.broadcast_to(some, (len(together), len(some)))
    runner.scores(models, records, asked[:, :1], {"loss": loss})  # imports what it needs
    seconds = _warm(lambda: runner.scores(models, records, asked, {"loss": loss}))
    gradients = _gradient_seconds(runner, records, some, train[0], architecture, metrics)
    return Rates(load, seconds / asked.size, gradients)


def estimate(scenario: Scenario, points: ChallengePoints, rates: Rates, metrics: int) -> Cost:
    """Estimate the extraction of so many metrics from what was measured on the same network."""
    count = sum(map(len, scenario.every.values()))
    own = [points.there(phase).sum() for phase in points.of_phase if phase != "train"]
    total = points.is_member.size + sum(own)
    # Every model is read five times: for its hash, its checksums and its digest, to see whether
    # it fits, and to run.
    seconds = rates.score * total + 5 * rates.load * count
    second_pass = rates.gradients.model * count + rates.gradients.each * total
    return Cost(len(points.unique), seconds, second_pass, total * metrics * BYTES_PER_SCORE)


def _gradient_seconds(
    runner: ModelRunner,
    records: Records,
    some: Indices,
    folder: ModelFolder,
    architecture: Architecture,
    metrics: Mapping[str, Metric],
) -> _Gradients:
    """Time the very metrics at many points and at few.

    Where all reference records would take long there are fewer, and each one more is taken to cost
    what a point costs `GradNorm`.
    """
    asked = {name: one for name, one in metrics.items() if isinstance(one, GradientMetric)}
    if not asked:
        return _Gradients(0.0, 0.0)
    model = runner.load_one(architecture, folder.path)
    few, known, asking = some[: max(len(some) // 4, 1)], Reference(), GradientRunner(runner)

    def seconds(points: Indices, wanted: Mapping[str, GradientMetric]) -> float:
        return _warm(lambda: asking.scores(model, records, points, wanted, few, known))

    seconds(few[:1], {"grad_norm": GradNorm()})  # imports what it needs
    plain = seconds(some, {"grad_norm": GradNorm()}) / len(some)
    more, small = plain * _references(asked.values(), len(records.labels)), asked
    if more > ENOUGH_SECONDS:
        small = {name: _with_references(one, len(few)) for name, one in asked.items()}
    else:
        more = 0.0  # it is within what is timed
    least = seconds(few, small)
    if len(few) == len(some):
        return _Gradients(more, least / len(some))
    each = max(seconds(some, small) - least, 0) / (len(some) - len(few))
    return _Gradients(max(least - each * len(few) + more, 0), each)


def _with_references(metric: GradientMetric, count: int) -> GradientMetric:
    """The same metric with fewer reference records, if it has any."""
    if "reference" not in getattr(metric, "__dataclass_fields__", {}):
        return metric
    fewer: GradientMetric = replace(metric, reference=count)  # type: ignore[type-var]
    return fewer


def _references(metrics: Iterable[GradientMetric], among: int) -> int:
    """How many reference records a model is asked at for all the metrics together."""
    seen = {
        one.observation: min(among if one.reference is None else one.reference, among)
        for one in metrics
    }
    return sum(seen.values())


def _warm(run: Callable[[], object]) -> float:
    """Seconds of a call once libraries have settled: the first few are up to a hundredfold."""
    found: list[float] = []
    while len(found) < CALLS and sum(found) < ENOUGH_SECONDS:
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return min(found)


def check_truth(root: Path, scenario: Scenario) -> list[Finding]:
    """Check the truth of dev and final models, as far as it is there."""
    try:
        read_truth(root, scenario)
    except InputError as error:
        return [Finding(scenario.path, str(error))]
    return []


def check_epsilon(
    scenario: Scenario, asked: float | None = None, known: bool = True
) -> tuple[EpsilonRange | None, Finding | None]:
    """Compare the ε that models record with the scenario's, and each phase's with the others'.

    No attack reads it, so whatever is found is only noted.

    Args:
        scenario: its models.
        asked: the scenario's ε; None without differential privacy.
        known: whether that is known at all; else phases alone are compared.

    Returns:
        the range over all models, None where none records its own, and what is odd about it.
    """
    try:
        recorded = recorded_epsilon(scenario)
    except InputError as error:
        return None, Finding(scenario.path, str(error), fatal=False)
    if not recorded:
        return None, None
    every = EpsilonRange.over(recorded.values())
    lows, highs, _ = zip(*recorded.values(), strict=True)
    target = math.inf if asked is None else asked
    if known and not (_alike(every.low, target) and _alike(every.high, target)):
        option = "null, no differential privacy" if asked is None else f"{asked:g}"
        odd = f"`scenario.epsilon` is {option}"
    elif not (_alike(min(lows), max(lows)) and _alike(min(highs), max(highs))):
        odd = "phases differ"
    else:
        return every, None
    told = ", ".join(f"{e} in {phase} ({e.models})" for phase, e in recorded.items())
    message = f"{scenario.path}: models record ε = {told}, but {odd}."
    return every, Finding(scenario.path, message, fatal=False)


def _alike(one: float, other: float) -> bool:
    """Tell whether two ε are the same but for how closely a search for noise meets its target."""
    return one == other or abs(one - other) <= max(ALIKE * other, TOLERANCE + 1e-4) < math.inf


def examine(
    root: Path,
    scenario_path: str,
    expected: dict[str, int],
    sizes: Sizes,
    made: Architecture,
    *,
    allow_nan: bool = False,
) -> list[PhaseReport]:
    """Check all phases of a scenario, ``digits/digits_inf``, under `root`.

    The reference models are the last, where there are any.
    """
    folder = root / scenario_path
    names = (*PHASES, SHADOW) if (folder / SHADOW).is_dir() else PHASES
    reports = [
        examine_phase(folder, name, expected.get(name), sizes, made, allow_nan=allow_nan)
        for name in names
    ]
    reports[0].findings += _about_twins(folder, reports)
    return reports


def _about_twins(folder: Path, reports: Sequence[PhaseReport]) -> list[Finding]:
    """Find models of whatever phase that are there twice."""
    models = [model for report in reports for model in report.models]
    weights = [digest for report in reports for digest in report.weights]
    paths = [model.path for model in models]
    said = equal_seeds(models), equal_weights(zip(paths, weights, strict=True))
    return [Finding(str(folder), message) for message in said if message]
