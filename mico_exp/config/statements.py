"""What the commands work with that choose a cell in every scenario and say something of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from mico_exp.auditing.floor import GAMES
from mico_exp.common import require
from mico_exp.common.atomic import check_writable
from mico_exp.common.errors import InputError
from mico_exp.config.challenges import Challenge, challenge, challenge_named
from mico_exp.config.keys import check_unused
from mico_exp.config.scenario import delta, scenario_option
from mico_exp.config.selection import Selection, of_cell, selection
from mico_exp.training.mechanism import Mechanism, told_by

OF_RULES = ("selection.rule", "selection.simplicity", "selection.resamples")


@dataclass(frozen=True, eq=False)
class Choosing:
    """A choice in every scenario of a challenge, and the folder for what comes of it."""

    challenge: Challenge
    selection: Selection
    folder: Path


def choosing(cfg: DictConfig, key: str) -> Choosing:
    """Make what a choice works with, which writes into the folder that `key` names."""
    how = selection(cfg)  # what is wrong with it is said first
    folder = require.folder(key, cfg[key])
    check_writable(folder)
    found = challenge(cfg)
    return Choosing(found, of_cell(how, cfg.get("cell"), found.setups), folder)


@dataclass(frozen=True, eq=False)
class Risking(Choosing):
    """A choice, and how single records are judged by it.

    fpr: of each record's own threshold. top: how many are listed. metadata: file of the user's.
    """

    fpr: float
    top: int
    metadata: Path | None


def risking(cfg: DictConfig) -> Risking:
    """Make what a judgement of single records works with."""
    require.between("fpr", cfg.fpr, 0, 1)
    require.whole("top", cfg.top, 1)
    told = cfg.metadata
    metadata = None if told is None else require.existing_file("metadata", told)
    how = choosing(cfg, "audits")
    return Risking(how.challenge, how.selection, how.folder, cfg.fpr, cfg.top, metadata)


@dataclass(frozen=True, eq=False)
class Auditing(Choosing):
    """A choice, and how what it gives away is proven.

    confidence: of each bound. deltas, claimed_deltas: scenario → δ of its bounds, and of its claim.
    game: one of `floor.GAMES`; None where the points of the models say it.
    guesses: how many are made of all bits; None where validation chooses.
    mechanism: of DP-SGD, of models that were not built here; None where it is not told.
    seed: of matchings and halves.
    """

    confidence: float
    deltas: Mapping[str, float]
    claimed_deltas: Mapping[str, float]
    game: str | None
    guesses: int | None
    mechanism: Mechanism | None
    seed: int


def auditing(cfg: DictConfig) -> Auditing:
    """Make what an audit works with.

    Raises:
        InputError: something cannot be.
    """
    require.between("confidence", cfg.confidence, 0.5, 1)
    if cfg.delta is not None:
        require.between("delta", cfg.delta, 0, 1)
    if cfg.game not in (None, *GAMES):
        raise InputError(f"`game` must be null or one of {', '.join(GAMES)}, got {cfg.game}.")
    if cfg.guesses is not None:
        require.whole("guesses", cfg.guesses, 1)
    require.whole("audit_seed", cfg.audit_seed, 0)
    check_unused("an audit, which chooses by what would be proven", OF_RULES)
    told = None if cfg.mechanism is None else told_by(cfg.mechanism, "mechanism")
    how = choosing(cfg, "audits")
    setups = how.challenge.setups.values()
    claimed = {one.name: delta(scenario_option(one.scenario)) for one in setups}
    return Auditing(
        how.challenge,
        how.selection,
        how.folder,
        cfg.confidence,
        {name: one if cfg.delta is None else cfg.delta for name, one in claimed.items()},
        claimed,
        cfg.game,
        cfg.guesses,
        told,
        cfg.audit_seed,
    )


@dataclass(frozen=True, eq=False)
class Gating(Choosing):
    """A choice, and the limits that it must keep: None where there is none.

    max_tpr: of TPR at FPR 0.1. max_epsilon: of the proven ε.
    """

    max_tpr: float | None
    max_epsilon: float | None


def gating(cfg: DictConfig) -> Gating:
    """Make what a gate works with."""
    if cfg.max_tpr is None and cfg.max_epsilon is None:
        raise InputError("A gate needs a limit, `max_tpr`, `max_epsilon` or both, got none.")
    if cfg.max_tpr is not None:
        require.within("max_tpr", cfg.max_tpr, 0, 1)
    if cfg.max_epsilon is not None:
        require.at_least("max_epsilon", cfg.max_epsilon, 0)
    how, folder = selection(cfg), require.folder("audits", cfg.audits)
    check_writable(folder)
    found = challenge(cfg)
    return Gating(found, of_cell(how, cfg.cell, found.setups), folder, cfg.max_tpr, cfg.max_epsilon)


def comparing(cfg: DictConfig) -> list[Choosing]:
    """Make what a comparison works with: two scenarios, or one challenge with all of its own."""
    how, folder = selection(cfg), require.folder("audits", cfg.audits)
    texts = [str(cfg[key]) for key in ("first", "second") if cfg[key] is not None]
    wanted = "two scenarios, each as challenge/scenario, or one challenge"
    if not texts or (len(texts) == 2) != all("/" in text for text in texts):
        raise InputError(f"compare needs {wanted}, got {' and '.join(texts) or 'nothing'}.")
    check_writable(folder)
    found = [challenge_named(text) for text in texts]
    return [Choosing(one, of_cell(how, cfg.cell, one.setups), folder) for one in found]
