"""Sets what the attacks prove of ε beside what is claimed, and beside what that allows.

``python -m mico_exp.audit`` reads the runs of a sweep, prints a verdict on every scenario, writes
``audits/<challenge>.json`` and logs it all as the run ``audit``. Cell and guesses are chosen on
validation, and the bound is computed once on dev and final models; where their truth is not known,
on one half of the train models, with the other half as shadows.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig
from rich.table import Table

from mico_exp.auditing import ceiling, methods
from mico_exp.auditing.floor import INDEPENDENT, ONE_PER_MODEL, PAIRED, Attacked, Rows
from mico_exp.auditing.games import ADD_REMOVE, REPLACE_ONE
from mico_exp.auditing.halves import (
    FEWEST_TO_CHOOSE,
    SHADOWS,
    TARGETS,
    Halves,
    halve,
    is_balanced,
    of_halves,
)
from mico_exp.auditing.methods import How
from mico_exp.auditing.statement import MOST_APART, Attack, Claim, Statement
from mico_exp.challenge.epsilon import EpsilonRange, recorded_epsilon
from mico_exp.commands.choosing import Found, Here, find_cells, find_scenarios, predictions_of
from mico_exp.common.atomic import write_bytes
from mico_exp.common.errors import InputError
from mico_exp.common.terminal import as_text, show
from mico_exp.config import choices
from mico_exp.config.metrics import metrics_of
from mico_exp.config.setup import Setup
from mico_exp.config.statements import Auditing, auditing
from mico_exp.models.folders import has_canaries
from mico_exp.results.cell import calibrate_phases, read_validation, with_both_classes
from mico_exp.results.scoring import RANKING_FPR, roc
from mico_exp.results.selection import Candidate
from mico_exp.runs import provenance
from mico_exp.runs.record import PREDICTIONS, CellRecord
from mico_exp.runs.statements import AUDIT_TABLE, AuditRecord
from mico_exp.runs.tracking import Tracker
from mico_exp.training.mechanism import Mechanism, of_build

log = logging.getLogger(__name__)


def command(cfg: DictConfig) -> None:
    """Audit, print, write and log."""
    how = auditing(cfg)
    scenarios = find_scenarios(how.challenge, how.selection)
    claimed = {name: _claimed(how, name, here) for name, here in scenarios.items()}
    if how.mechanism is not None:
        check_mechanism(how, how.mechanism, claimed)
    claims = {name: _accounted(how, name, claim) for name, claim in claimed.items()}
    tracker = Tracker(how.challenge.name, Path.cwd(), create=False)
    found = find_cells(how.challenge, how.selection, tracker, scenarios)
    stated = {
        name: _stated(how, name, here, tracker, found, claims[name])
        for name, here in scenarios.items()
    }
    path = how.folder / f"{how.challenge.name}.json"
    contents = {name: here.identity.content for name, here in scenarios.items()}
    statements = {name: one.told() for name, one in stated.items()}
    record = AuditRecord(how.challenge.name, provenance.code_version(), contents, statements)
    write_bytes(path, record.file)
    shown = table(how.challenge.name, how.confidence, stated)
    files = {path.name: record.file, AUDIT_TABLE: as_text(shown).encode()}
    tracker.log(record.name, record.to_run(), files)
    show(shown)
    for name, one in stated.items():
        print(f"{name}: {one.verdict}")
    print(f"Audit: {path}")


# ---------------------------------------------------------------- claims


def _claimed(how: Auditing, name: str, here: Here) -> Claim | None:
    """What option or models claim of a scenario; None where that is no ε.

    Raises:
        InputError: models record another ε than the option says.
    """
    setup = how.challenge.setups[name]
    recorded = _recorded(setup, here)
    epsilon = setup.epsilon
    if epsilon is None and recorded is not None:
        epsilon = recorded.high  # nothing else says what is claimed
    if epsilon is None or not math.isfinite(epsilon):
        return None
    told = None if recorded is None else str(recorded)
    return Claim(epsilon, how.claimed_deltas[name], recorded=told)


def check_mechanism(
    how: Auditing, mechanism: Mechanism, claimed: Mapping[str, Claim | None]
) -> None:
    """Refuse a mechanism that is told of several scenarios, or of one that was built with another.

    Raises:
        InputError: it is.
    """
    private = [name for name, claim in claimed.items() if claim is not None]
    if len(private) > 1:
        raise InputError(
            f"`mechanism` is of one scenario, and {', '.join(private)} claim an ε: name one by "
            "`scenarios=`."
        )
    for name in private:
        folder = how.challenge.setups[name].folder
        built = of_build(folder)
        if built is not None and not mechanism.is_like(built):
            sigma, rate, steps = built.plain
            raise InputError(
                f"`mechanism` is not that of {folder}, which was built with noise_multiplier "
                f"{sigma:.4g}, sample_rate {rate:.4g}, steps {steps}: leave it out."
            )


class Promise(NamedTuple):
    """What is claimed of a scenario, and what comes of that.

    mechanism: that its models were trained with; None where it is not known. ceilings: TPR that is
    allowed, by relation: of the mechanism where it is known, else of the claim.
    """

    claim: Claim | None
    mechanism: Mechanism | None
    ceilings: dict[str, dict[str, float]]


def _accounted(how: Auditing, name: str, claim: Claim | None) -> Promise:
    """A claim with what the accountant says of the mechanism that its models were trained with."""
    if claim is None:
        return Promise(None, None, {})
    mechanism = how.mechanism or of_build(how.challenge.setups[name].folder)
    if mechanism is None:
        alone = ceiling.of_claim(claim.epsilon, claim.delta)
        return Promise(claim, None, {ADD_REMOVE: alone.figures()})
    spent, swapped = (
        ceiling.epsilon_of(mechanism, claim.delta, one) for one in (ADD_REMOVE, REPLACE_ONE)
    )
    accounted, replaced = (one if math.isfinite(one) else None for one in (spent, swapped))
    known = replace(claim, accounted=accounted, replace_one=replaced, **asdict(mechanism))
    if known.is_exceeded:
        log.warning(
            "%s: the accountant says ε = %.4g, and %g is claimed", name, spent, claim.epsilon
        )
    profiles = {one: ceiling.of_mechanism(mechanism, one) for one in (ADD_REMOVE, REPLACE_ONE)}
    allowed = {of: one.figures() for of, one in profiles.items() if one is not None}
    return Promise(known, mechanism, allowed)


def _recorded(setup: Setup, here: Here) -> EpsilonRange | None:
    """The ε that models record, over all phases; None where they record none."""
    found = recorded_epsilon(here.scenario).values()
    if not found:
        return None
    every = EpsilonRange.over(found)
    if setup.disclosed is not None:  # there is an option, which claims something
        claimed = math.inf if setup.epsilon is None else setup.epsilon
        if not all(_alike(one, claimed) for one in (every.low, every.high)):
            option = "null" if setup.epsilon is None else f"{setup.epsilon:g}"
            raise InputError(
                f"{setup.folder}: models record ε = {every} in their files `epsilon`, but "
                f"`scenario.epsilon` is {option}: they must agree to {MOST_APART:.0%}."
            )
    return every


def _alike(recorded: float, claimed: float) -> bool:
    return recorded == claimed or abs(recorded - claimed) <= MOST_APART * claimed < math.inf


# ---------------------------------------------------------------- attacks


def _stated(
    how: Auditing,
    name: str,
    here: Here,
    tracker: Tracker,
    found: Found,
    promise: Promise,
) -> Statement:
    """Audit one scenario."""
    claim = promise.claim
    try:
        game = how.game or _game_of(here, how.challenge.setups[name].folder)
        attacked = _attacked(how, name, here, tracker, found, raw=game == ONE_PER_MODEL)
        _check_game(game, attacked)
        shares = methods.shares_of(how.guesses, attacked, game)
        asked = How(how.deltas[name], 1 - how.confidence, game, shares, how.seed)
        bounded = methods.prove(attacked, asked, promise.mechanism)
        estimated = methods.estimate(attacked, asked, bounded[0].cell)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    rows = attacked.targets[bounded[0].cell][-1]
    attack = Attack(
        cell=bounded[0].cell,
        game=game,
        chosen_on=attacked.chosen_on,
        judged_on=attacked.judged_on,
        models=attacked.models,
        tpr=roc(rows.solution, rows.scores, rows.there).tpr_at(RANKING_FPR),
    )
    return Statement(
        scenario=name,
        claimed=claim,
        confidence=how.confidence,
        delta=asked.delta,
        relation=asked.relation,
        floor=bounded[0],
        methods=bounded,
        estimate=estimated,
        ceilings=promise.ceilings,
        attack=attack,
        contradicted=claim is not None and methods.contradicts(bounded[0], claim, asked),
    )


def _game_of(here: Here, folder: Path) -> str:
    """The game that membership was drawn for, as far as models and the record of a build tell."""
    if _is_single(here):
        return ONE_PER_MODEL
    return INDEPENDENT if has_canaries(folder) else PAIRED


def _is_single(here: Here) -> bool:
    return all(there.shape[1] == 1 for there in here.there.values())


def _check_game(game: str, attacked: Attacked) -> None:
    if game != ONE_PER_MODEL:
        return
    if not all(rows.single for some in attacked.targets.values() for rows in some):
        raise InputError(f"`game={game}` needs models with one challenge point each.")


def _attacked(
    how: Auditing, name: str, here: Here, tracker: Tracker, found: Found, *, raw: bool
) -> Attacked:
    """The cells on the models that they are chosen by, and on those that the bound is of."""
    known = dict(with_both_classes(here.truth, here.there))
    candidates = found.candidates[name]
    setup = how.challenge.setups[name]
    if here.truth and not known:
        raise InputError(
            f"all challenge points of the {' and '.join(here.truth)} models are of one class; "
            "members and non-members are needed."
        )
    records = {one.cell: found.runs[one.run_id].record for one in candidates}
    if not known:
        models = len(here.scenario.phases["train"])
        halves = halve(models, how.seed, str(setup.folder))
        if is_balanced(setup.points):
            log.warning(
                "%s: each record is in exactly half of the train models, so that membership of one "
                "half of them tells that of the other: bounds are not right.",
                name,
            )
        cells = {cell: _on_halves(setup, one, halves) for cell, one in records.items()}
        judged, shadows = f"{len(halves.targets)} train models", len(halves.shadows)
        on = f"{shadows} other train models"
        return _sorted(cells, (TARGETS,), judged, on, shadows + len(here.scenario.shadow))
    rows = {
        one.cell: _recomputed(setup, records[one.cell], known)
        if raw
        else _logged(tracker, one, here, known)
        for one in candidates
    }
    shadows = len(here.scenario.phases["train"]) + len(here.scenario.shadow)
    return _sorted(rows, tuple(known), ", ".join(known), "validation", shadows)


def _sorted(
    cells: Mapping[str, Mapping[str, Rows]],
    phases: Sequence[str],
    judged_on: str,
    chosen_on: str,
    shadows: int,
) -> Attacked:
    """Cells by phase; where few shadows validate, the best of all is taken and paid for."""
    targets = {cell: [rows[phase] for phase in phases] for cell, rows in cells.items()}
    if shadows < FEWEST_TO_CHOOSE:
        return Attacked(None, targets, judged_on, f"{judged_on} (Bonferroni)")
    validation = {cell: rows[SHADOWS] for cell, rows in cells.items()}
    return Attacked(validation, targets, judged_on, chosen_on)


def _logged(
    tracker: Tracker, one: Candidate, here: Here, known: Mapping[str, Any]
) -> dict[str, Rows]:
    """A cell's predictions as its run has them, with the truth that is here.

    Raises:
        InputError: they cannot be read, or are of other models.
    """
    with TemporaryDirectory() as folder:
        told, _ = read_validation(tracker.artifact(one.run_id, PREDICTIONS, Path(folder)))
    if not np.array_equal(told, here.solution):
        raise InputError(f"run {one.run_id} is of another membership than the train models have.")
    predictions = predictions_of(tracker, one, here.there)
    truth = {SHADOWS: here.solution, **known}
    return {
        phase: Rows(solution, predictions[phase].astype(float), here.there[phase])
        for phase, solution in truth.items()
    }


def _recomputed(setup: Setup, record: CellRecord, known: Mapping[str, Any]) -> dict[str, Rows]:
    """A cell's calibrated scores, which are of one scale in all phases."""
    evidence, formula = _evidence(setup, record)
    truth = {SHADOWS: evidence.points.solution, **known}
    found = calibrate_phases(evidence, formula)
    return {
        phase: Rows(one, found[phase].scores, found[phase].there) for phase, one in truth.items()
    }


def _on_halves(setup: Setup, record: CellRecord, halves: Halves) -> dict[str, Rows]:
    """A cell's calibrated scores of one half of the train models, with the other as shadows."""
    evidence, formula = _evidence(setup, record)
    halved, solution = of_halves(evidence, halves)
    truth = {SHADOWS: halved.points.solution, TARGETS: solution}
    found = calibrate_phases(halved, formula)
    return {
        phase: Rows(one, found[phase].scores, found[phase].there) for phase, one in truth.items()
    }


def _evidence(setup: Setup, record: CellRecord) -> tuple[Any, Any]:
    """Scores that a cell was made of, and its formula, which is that of the present.

    Raises:
        InputError: a score is not in the store.
    """
    told = record.metric, record.metric_changes, setup.source.lacks
    metric = choices.logged_choice("metric", *told)
    formula = choices.logged_choice("formula", record.formula, record.formula_changes)
    metrics = metrics_of(metric, setup.scenario, setup.discloses)
    evidence = setup.evidence(metrics)
    if evidence is None:
        raise InputError(
            f"the scores of {record.cell} are not in the store any more: run the sweep again."
        )
    return evidence, choices.formula_of(formula)


# ---------------------------------------------------------------- what is shown


def table(challenge: str, confidence: float, stated: Mapping[str, Statement]) -> Table:
    """Lay out an audit for a terminal."""
    result = Table(
        title=f"What the attacks on {challenge} prove, at {confidence:.0%} confidence",
        title_justify="left",
        caption="Proven is what holds of swapping records where members were paired with "
        "non-members. All methods and an estimate are in the file.",
        caption_justify="left",
    )
    for title in ("scenario", "cell"):
        result.add_column(title, overflow="fold")
    titles = ("claimed\nε", "replace-\none", "proven\nε", "μ", "right", "TPR\n@0.1", "allowed")
    for title in titles:
        result.add_column(title, justify="right")
    for name, one in stated.items():
        result.add_row(name, *_row(one))
    return result


def _row(one: Statement) -> list[str]:
    claim, proven = one.claimed, one.floor
    swapped = None if claim is None else claim.replace_one
    allowed = one.ceilings.get(ADD_REMOVE)
    return [
        proven.cell,
        "–" if claim is None else f"{claim.epsilon:g}",
        "–" if swapped is None else f"{swapped:.2f}",
        f"{proven.epsilon:.2f}",
        f"{one.mu:.2f}",
        f"{proven.right} of {proven.guesses}",
        f"{one.attack.tpr:.3f}",
        "–" if allowed is None else f"{allowed[f'tpr_at_fpr_{RANKING_FPR}']:.3f}",
    ]
