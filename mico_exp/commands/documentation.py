"""What a report documents beside its figures: who attacks, what was tried, and what remains.

The elements are those that a controller is to be able to show of a model by Opinion 28/2024 of the
European Data Protection Board, paragraph 58. What only the controller can know is said to be so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mico_exp.challenge.phases import CALLED
from mico_exp.challenge.tree import Scenario
from mico_exp.commands.choosing import Chosen, Here
from mico_exp.config.options import option_names
from mico_exp.config.setup import Setup
from mico_exp.results.scoring import RANKING_FPR
from mico_exp.scores.estimate import check_epsilon

THEIRS = "Known to the controller alone: to be added."
SEES = {  # exposure → what the attacker is given
    "weights": "the model itself, with its weights",
    "logits": "all logits of the model at records of the attacker's choice",
    "probabilities": "all probabilities of the model at records of the attacker's choice",
    "rounded": "all probabilities, rounded, at records of the attacker's choice",
    "top5": "the highest probabilities at records of the attacker's choice",
    "label": "the predicted class alone, at records of the attacker's choice",
}
UNTRIED = (
    "extraction or regurgitation of training data, model inversion, inference of attributes, "
    "poisoning of the training set, an attacker with other shadow models than these"
)
LIMITS = (
    "A figure is of these attacks: a better one may exist, and none of them proves that no record "
    "can be told.",
    "It is an average over records: single records may be at a much higher risk "
    "(python -m mico_exp.risk).",
    "It is of models that were trained as these were, on records that are drawn as these are, half "
    "of which were trained on; where members are rarer, fewer of those that are called so are.",
    "It tells whether a record was trained on, not what is in it.",
    "Validation chose the cell, and is a little too high for it; dev and final took no part in it.",
)


@dataclass(frozen=True)
class Documented:
    """What is documented of one scenario, each a line of text by what it is about.

    adversary: what the attacker has. tried: what was tried, and what was not. remains: residual
    risk. elements: of the Opinion.
    """

    name: str
    adversary: Mapping[str, str]
    tried: Mapping[str, str]
    remains: str
    elements: Mapping[str, str]


def documented(setup: Setup, here: Here, chosen: Chosen, trained: str) -> Documented:
    """Document a scenario; `trained` says what privacy its models are said to have."""
    tried, remains = _tried(chosen), _remains(chosen)
    elements = _elements(setup, here, chosen, trained, remains)
    return Documented(setup.name, _adversary(here, chosen), tried, remains, elements)


def tested(chosen: Iterable[Chosen]) -> str:
    """On which days the runs that are compared were made, in UTC: ``2026-11-28``."""
    runs = (one.runs[cell.run_id].run for one in chosen for cell in one.selected.cells)
    days = sorted({datetime.fromtimestamp(one.started / 1000, UTC).date() for one in runs})
    first, last = days[0].isoformat(), days[-1].isoformat()
    return first if first == last else f"{first} to {last}"


def adversaries(documents: Sequence[Documented]) -> list[tuple[list[str], dict[str, str]]]:
    """Adversary and attacks tried, once for all scenarios (their names) where they are the same."""
    found: list[tuple[list[str], dict[str, str]]] = []
    for one in documents:
        lines = {**one.adversary, **one.tried}
        same = next((names for names, others in found if others == lines), None)
        if same is None:
            found.append(([one.name], lines))
        else:
            same.append(one.name)
    return found


def _adversary(here: Here, chosen: Chosen) -> dict[str, str]:
    exposure = chosen.runs[chosen.selected.best.run_id].record.exposure
    shadows = len(here.scenario.phases["train"]) + len(here.scenario.shadow)
    training = "everything but which of its challenge points are in it"
    return {
        "sees": SEES.get(exposure.partition(",")[0], exposure),
        "knows of the data": "each challenge record with its label, and the training sets of the "
        "shadow models",
        "knows of the target's training set": training if here.disclosed else "nothing",
        "has": f"{shadows} shadow models of the same kind, of whose training sets all is known; "
        "against one of them, the others",
    }


def _tried(chosen: Chosen) -> dict[str, str]:
    cells = [cell.cell.partition("/") for cell in chosen.selected.cells]
    axes = {"metric": [one[0] for one in cells], "formula": [one[2] for one in cells]}
    found = {"cells": f"{len(cells)}, by the rule on validation"}
    for group, labels in axes.items():
        names = dict.fromkeys(label.partition("[")[0] for label in labels)
        left = [name for name in option_names(group) if name not in names]
        found[f"{group}s"] = ", ".join(names)
        found[f"{group}s not tried"] = ", ".join(left) or "none of those that there are"
    return found | {"attacks not tried": UNTRIED}


def _remains(chosen: Chosen) -> str:
    """The official figure on models that took no part in the choice, or else in validation."""
    phase, (value, low, high) = _headline(chosen)
    wrong, right = round(1000 * RANKING_FPR), round(1000 * value)
    between = "" if low is None else f" (95 % interval {low:.3f} to {high:.3f})"
    return (
        f"In {phase}, of 1,000 members {right} are told{between} where {wrong} of 1,000 "
        f"non-members are wrongly called members; a guess tells {wrong}."
    )


def _headline(chosen: Chosen) -> tuple[str, tuple[float, float | None, float | None]]:
    for phase in ("final", "dev"):
        if (came := chosen.came_out.get(phase)) is not None:
            return CALLED[phase], (came["value"], came.get("low"), came.get("high"))
    verdict = chosen.selected.verdict
    return CALLED["train"], (verdict.tpr, *verdict.tpr_interval)


def _elements(
    setup: Setup, here: Here, chosen: Chosen, trained: str, remains: str
) -> dict[str, str]:
    models = {phase: len(some) for phase, some in here.scenario.phases.items()}
    counts = ", ".join(f"{count} {CALLED[phase]}" for phase, count in models.items())
    return {
        "Impact assessments, and decisions that none was needed": THEIRS,
        "Advice of the data protection officer": THEIRS,
        "Measures by design, with their threat model": f"Training: {_said(trained)}. The threat "
        "model is the adversary above. Selection and preparation of sources: " + THEIRS,
        "Measures over the life of the model": THEIRS,
        "Training data for each parameter": _ratio(setup, here),
        "Likelihood of re-identification by the state of the art": _figures(chosen),
        "Tests: by whom, when, how, how far": f"By: {THEIRS} When: {tested([chosen])}. How: "
        f"membership inference, {len(chosen.selected.cells)} cells of a metric and a formula. How "
        f"far: {here.num_points:,} challenge points in validation, models: {counts}.",
        "Results of the tests": "All cells with their intervals, the ROC curves and what was "
        "chosen are in this report, and in the file of the same name that ends in .json.",
        "Residual risk, as told to whoever deploys the model": remains,
    }


def _said(trained: str) -> str:
    return "no differential privacy" if trained == "none" else trained


def _figures(chosen: Chosen) -> str:
    verdict = chosen.selected.verdict
    low, high = verdict.tpr_interval
    parts = [f"validation TPR at FPR {RANKING_FPR} {verdict.tpr:.4f} ({low:.3f} to {high:.3f})"]
    parts += [f"{phase} {came['value']:.4f}" for phase, came in chosen.came_out.items()]
    return f"{'; '.join(parts)}; AUC {verdict.auc:.4f}, by {verdict.cell}."


def _ratio(setup: Setup, here: Here) -> str:
    models = here.scenario.phases["train"]
    counts = [one.num_training(here.scenario.sizes) for one in models]
    known = [one for one in counts if one is not None]
    if len(known) < len(counts):
        return "The number of training records is not told."
    if setup.source.outputs is not None:
        return (
            f"{counted(counts)} training records for parameters that are not told: outputs alone."
        )
    network = setup.architecture.make(models[0].path)
    parameters = sum(one.numel() for one in network.parameters())
    least, most = (count / parameters for count in (min(known), max(known)))
    ratio = f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
    return f"{counted(counts)} training records for {parameters:,} parameters: {ratio} for each."


def counted(counts: Iterable[int | None]) -> str:
    """Counts as one, or as the least and the most; a dash where one is not told."""
    known = list(counts)
    if None in known:
        return "–"
    ends = dict.fromkeys(f"{end(one for one in known if one is not None):,}" for end in (min, max))
    return "–".join(ends)


def privacy(scenario: Scenario, asked: float | None) -> str:
    """Say the ε of the option that a run had, and the one that the models record."""
    recorded, odd = check_epsilon(scenario, asked)
    option = "none" if asked is None else f"DP-SGD, ε = {asked:g}"
    if recorded is None:
        return option
    return f"{option} (recorded: {recorded}{', which differs' if odd else ''})"
