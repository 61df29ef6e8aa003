"""Which metrics are computed: for a cell, in one pass through a model, and for the store."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from omegaconf import DictConfig, OmegaConf

from mico_exp.common.errors import InputError, first_line
from mico_exp.config.cells import COMBINED, unmet
from mico_exp.config.choices import (
    Choice,
    chosen_exposure,
    exposure_of,
    named_metrics,
    single_metrics,
    usual_metrics,
)
from mico_exp.config.exposing import OF_DATA, SEEN, USUAL, Exposure, seen_by
from mico_exp.config.making import make
from mico_exp.config.options import option_names, option_of, said_by
from mico_exp.scores.families import GRADIENTS, LOGITS, Metric, family_of

log = logging.getLogger(__name__)


def metrics_of(metric: Choice, scenario: str, disclosed: bool) -> dict[str, Metric]:
    """Make the metrics of a cell: the chosen one, or all that ``all`` stands for.

    Raises:
        InputError: one needs what `scenario` or the exposure does not give.
    """
    exposure = metric.exposure
    if metric.function is not None:
        return exposure.seen({metric.name: make(metric.function)})
    if metric.narrowed is None:
        return all_metrics(disclosed=disclosed, exposure=exposure)
    names = _allowed(metric.narrowed, scenario, disclosed, exposure)
    return exposure.seen(usable(names))


def all_metrics(*, disclosed: bool, exposure: Exposure = USUAL) -> dict[str, Metric]:
    """Make every metric that ``all`` stands for.

    Args:
        disclosed: the scenario discloses training sets.
        exposure: what of the models is seen.
    """
    return exposure.seen(usable(combined(disclosed, exposure)))


def stored_metrics(*, disclosed: bool) -> dict[str, Metric]:
    """Make every metric under every exposure, as the store may have them.

    Raises:
        InputError: an option of a metric cannot be used, and nobody knows what is its.
    """
    made = usable(single_metrics())
    if broken := sorted(set(single_metrics()) - set(made)):
        raise InputError(f"conf/metric/{broken[0]}.yaml cannot be used: its scores would go.")
    found: dict[str, Metric] = {}
    for name in option_names("exposure"):
        exposure = exposure_of(name)
        some = computable(made, disclosed, exposure)
        found |= exposure.seen({one: made[one] for one in some})
    return found


def extracted_metrics(cfg: DictConfig) -> dict[str, Metric]:
    """Make the metrics that `extract` is to compute: those in `metrics`, or all of a family."""
    disclosed, exposure = bool(cfg.scenario.disclose_training), chosen_exposure(cfg)
    if cfg.metrics in (LOGITS, GRADIENTS):
        every = all_metrics(disclosed=disclosed, exposure=exposure)
        return {name: one for name, one in every.items() if family_of(one) == cfg.metrics}
    if cfg.metrics == COMBINED:
        return all_metrics(disclosed=disclosed, exposure=exposure)
    names = _allowed(named_metrics(cfg.metrics), cfg.scenario.name, disclosed, exposure)
    return exposure.seen(usable(names))


def pass_metrics(
    chosen: Mapping[str, Metric],
    named: Sequence[str],
    disclosed: bool,
    exposures: Sequence[Exposure] = (USUAL,),
) -> dict[str, Metric]:
    """Make the metrics that a pass through a model computes: the chosen, and those of the sweep.

    Those of one family come from the same pass, so a later cell finds its scores ready.

    Args:
        chosen: by their names.
        named: of the sweep.
        disclosed: the scenario discloses training sets.
        exposures: of the sweep, each of which sees all that it lets be computed.
    """
    found = dict(chosen)
    made: dict[str, Metric] = {}
    for exposure in exposures:
        every = COMBINED in named
        names = combined(disclosed, exposure) if every else computable(named, disclosed, exposure)
        wanted = [name for name in names if exposure.named(name) not in found]
        made |= usable(name for name in wanted if name not in made)
        seen = exposure.seen({name: made[name] for name in wanted if name in made})
        found |= {name: one for name, one in seen.items() if name not in found}
    return found


def computable(names: Iterable[str], disclosed: bool, exposure: Exposure) -> list[str]:
    """Names of the metrics that scenario and exposure let be computed.

    One that cannot be composed is kept, for whoever makes it to say so.
    """
    told = [name for name in names if disclosed or "disclosure" not in _needs_of_metric(name)]
    return [name for name in told if exposure.lets(_seen_by_metric(name))]


def combined(disclosed: bool, exposure: Exposure) -> list[str]:
    """Names of the metrics that ``all`` stands for."""
    names = computable(usual_metrics(), disclosed, exposure)
    return [name for name in names if exposure.combines(_seen_by_metric(name))]


def _allowed(
    names: Sequence[str], scenario: str, disclosed: bool, exposure: Exposure
) -> Sequence[str]:
    """Names given in `metrics`, all of which scenario and exposure let be computed.

    Raises:
        InputError: there is none, or one needs what is not given.
    """
    if not names:
        raise InputError("`metrics` must name at least one metric, got none.")
    words = {"scenario": f"scenario={scenario}", "exposure": f"exposure={exposure.name}"}
    words |= {"dataset": "this data set"}
    given = {*exposure.gives, *OF_DATA, *(["disclosure"] if disclosed else [])} - {*exposure.lacks}
    for name in names:
        for need in (*_needs_of_metric(name), *_seen_by_metric(name)):
            if need in ("disclosure", *SEEN, *OF_DATA) and need not in given:
                why = unmet(need, exposure.lacks, words)
                raise InputError(f"`metrics` names {name}: {why}.")
    return names


@cache
def _needs_of_metric(name: str) -> tuple[str, ...]:
    needs = said_by("metric", name, "needs")
    return tuple(needs) if OmegaConf.is_list(needs) else ()


@cache
def _seen_by_metric(name: str) -> tuple[str, ...]:
    return tuple(seen_by({"needs": _needs_of_metric(name)}))


def usable(names: Iterable[str]) -> dict[str, Metric]:
    """Make metrics by the names of their options; one that cannot be used is left out."""
    made: dict[str, Metric] = {}
    for name in names:
        try:
            made[name] = make(option_of("metric", name).function)
        except Exception as error:  # whatever it is, it is no reason to stop the other metrics
            reason = first_line(error)
            log.warning("conf/metric/%s.yaml cannot be used, and is left out: %s", name, reason)
    return made
