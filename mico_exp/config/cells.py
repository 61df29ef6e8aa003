"""Which combinations of options are cells with a meaning, and why others have none.

An option's `needs` names what it cannot do without, and `gives` what it offers.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mico_exp.common.errors import InputError
from mico_exp.config.dataset import lacking
from mico_exp.config.exposing import OF_DATA, SEEN, seen_by
from mico_exp.config.options import composed, option_names, option_of, said_by

log = logging.getLogger(__name__)
COMBINED = "all"  # the metric that stands for several
CELL = ("metric", "formula", "scenario", "exposure")  # groups that a cell is of
REASONS = {
    COMBINED: "it combines metrics, so it takes metric=all",
    "probability": "it compares probabilities, which {metric} are not",
    "disclosure": "it needs disclosed training sets, and {scenario} keeps them",
    "label": "it needs the predicted class, which {exposure} does not show",
    "confidences": "it needs a confidence of every class, which {exposure} does not show",
    "weights": "it needs the model's weights, which {exposure} does not show",
    "classes": "it needs all classes",
    "inputs": "it needs the records themselves",
    "likelihood": "it needs a probability of the record's class",
    "logits": "it needs logits",
}
LACKS = {
    "weights": "it needs the model's weights, and of {dataset} only outputs are known",
    "classes": "it looks at all classes, and {dataset} has one number a record",
    "inputs": "it needs the records themselves, and of {dataset} only outputs are known",
    "likelihood": "it needs a probability, and {dataset} has scores, which metric=logit takes as "
    "they are",
    "logits": "it shows logits, which of {dataset} are not known",
}


def refusal(
    metric: DictConfig,
    formula: DictConfig,
    scenario: DictConfig,
    exposure: DictConfig,
    dataset: DictConfig,
) -> str | None:
    """Say why a cell has no meaning, from its five options; None where it has one.

    An option's `needs` names what it cannot do without, of an exposure what it shows; `gives` of a
    metric and of an exposure what they offer.

    Raises:
        InputError: the outputs of a data set that has them alone cannot be loaded.
    """
    lacks = lacking(dataset)
    given = {*(metric.get("gives") or ()), *(exposure.get("gives") or ())}
    given |= {"disclosure"} if scenario.disclose_training else set()
    given = (given | {*OF_DATA}) - {*lacks}
    words = {"metric": f"scores of metric={metric.name}", "scenario": f"scenario={scenario.name}"}
    words |= {"exposure": f"exposure={exposure.name}", "dataset": f"dataset={dataset.name}"}
    asked = {
        "metric": (metric, seen_by(metric)),
        "formula": (formula, []),
        "exposure": (exposure, []),
    }
    for what, (option, seen) in asked.items():
        for need in dict.fromkeys([*(option.get("needs") or ()), *seen]):
            if need not in REASONS:
                known = ", ".join(REASONS)
                raise InputError(f"`needs` of {option.name} must be of {known}, got {need}.")
            if need not in given:
                return f"{what}={option.name}: {unmet(need, lacks, words)}"
    if COMBINED in given and COMBINED not in (formula.get("needs") or ()):
        return f"formula={formula.name}: it takes one metric, not metric={metric.name}"
    return None


def unmet(need: str, lacks: Collection[str], words: Mapping[str, str]) -> str:
    """Say why a need is not met, and what would meet it."""
    if need in lacks:
        return LACKS[need].format(**words)
    return f"{REASONS[need].format(**words)}{_offered_by(need)}"


@cache
def _offered_by(need: str) -> str:
    """Say which options offer what is needed, where that is not said already."""
    if need == COMBINED:
        return ""
    groups = {"disclosure": "scenario"} | dict.fromkeys(SEEN, "exposure")
    group = groups.get(need, "metric")
    names = [name for name in option_names(group) if _offers(group, name, need)]
    return f" ({group}={','.join(names)})" if names else ""


def _offers(group: str, name: str, need: str) -> bool:
    """Tell whether an option offers something; one that cannot be composed offers nothing."""
    if group == "scenario":
        return bool(said_by(group, name, "disclose_training"))
    return need in (said_by(group, name, "gives") or ())


def check_cell(cfg: DictConfig) -> None:
    """Refuse a cell without meaning.

    Raises:
        InputError: it has none, and why.
    """
    for group in CELL:
        _check_named(group, HydraConfig.get().runtime.choices.get(group), cfg[group])
    options = (cfg[group] for group in (*CELL, "dataset"))
    if (reason := refusal(*options)) is not None:
        raise InputError(f"{cfg.scenario.name}/{cfg.metric.name}/{cfg.formula.name}: {reason}.")


def sensible_cells(jobs: Iterable[Sequence[str]], meaningless: str) -> list[list[str]]:
    """Keep the jobs of a sweep, each by its overrides, that are cells with a meaning.

    Args:
        jobs: overrides of each.
        meaningless: ``skip`` the other cells, or ``refuse`` the whole sweep because of them.

    Raises:
        InputError: the sweep is refused, or all of it would be skipped; each reason is named.
    """
    if meaningless not in ("refuse", "skip"):
        raise InputError(f"`hydra.sweeper.meaningless` must be refuse or skip, got {meaningless}.")
    reasons = [(list(job), _refusal_of(job)) for job in jobs]
    sensible = [job for job, reason in reasons if reason is None]
    refused = Counter(reason for _, reason in reasons if reason is not None)
    if not refused:
        return sensible
    if sensible and meaningless == "skip":
        about = "%d of %d cells have no meaning, and are left out (meaningless=refuse says why)"
        log.info(about, sum(refused.values()), len(reasons))
        return sensible
    listed = [f"  {reason} ({count} of {len(reasons)} jobs)" for reason, count in refused.items()]
    lines = ["These cells have no meaning, and so nothing is begun:", *listed]
    if sensible:
        lines.append("hydra.sweeper.meaningless=skip sweeps the others.")
    raise InputError("\n".join(lines))


def _refusal_of(job: Sequence[str]) -> str | None:
    """`refusal` of the cell that overrides choose."""
    texts = {group: [one for one in job if is_of([group], one)] for group in (*CELL, "dataset")}
    names = {group: _named(group, some) for group, some in texts.items()}
    plain = [group for group, some in texts.items() if names[group] and len(some) == 1]
    # What is changed beside its choice, or is not chosen, is composed, all of it at once.
    others = [one for group, some in texts.items() if group not in plain for one in some]
    options = {
        group: option_of(group, name) if name and group in plain else composed(*others)[group]
        for group, name in names.items()
    }
    return refusal(*(_check_named(group, names[group], one) for group, one in options.items()))


def _named(group: str, texts: Iterable[str]) -> str | None:
    """Name of the option of a group that overrides choose; None where they choose none."""
    chosen = (text.partition("=")[2].strip("'") for text in texts if text.startswith(f"{group}="))
    return next(chosen, None)


def _check_named(group: str, chosen: Any, option: Any) -> DictConfig:
    """Want an option that says who it is, which an empty file does not."""
    if not isinstance(option, DictConfig) or not option.get("name"):
        raise InputError(f"{group}/{chosen}.yaml must give a `name`, got none.")
    return option


def is_of(groups: Collection[str], override: str) -> bool:
    """Tell whether an override, ``metric=loss`` or ``metric.name=x``, is of one of the groups."""
    return override.lstrip("+~").partition("=")[0].split(".")[0] in groups
