"""The metrics and formulas that may be chosen: which there are, what they mean, what they do.

Beside `compose`, the one place below the commands that reads a configuration.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from mico_exp.attacks.calibration import Formula
from mico_exp.attacks.evidence import Attack
from mico_exp.common.errors import InputError, first_line, printable
from mico_exp.common.fingerprints import digest
from mico_exp.config import exposing, variants
from mico_exp.config.exposing import OF_DATA, SEEN, Exposure, seen_by
from mico_exp.config.making import make
from mico_exp.config.moved import check_places
from mico_exp.config.setup import Source
from mico_exp.config.typed import quote_choices
from mico_exp.scores.inference import GRADIENTS, LOGITS, Metric
from mico_exp.scores.perturbation import family_of

log = logging.getLogger(__name__)
COMBINED = "all"  # the metric that stands for several
WEIGHTS = Exposure()
NEVER_ASKED = ("challenge",)  # of an option of a scenario: it is the whole configuration's
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
                return f"{what}={option.name}: {_reason(need, lacks, words)}"
    if COMBINED in given and COMBINED not in (formula.get("needs") or ()):
        return f"formula={formula.name}: it takes one metric, not metric={metric.name}"
    return None


def lacking(dataset: DictConfig) -> tuple[str, ...]:
    """What metrics may need and a data set does not give, of whose models only outputs are known.

    Raises:
        InputError: they cannot be loaded.
    """
    if (outputs := dataset.get("outputs")) is None:
        return ()
    return Source(dataset.name, OmegaConf.to_yaml(outputs, resolve=True), None).lacks


def _reason(need: str, lacks: Collection[str], words: Mapping[str, str]) -> str:
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
    try:
        option = option_of(group, name)
    except Exception:
        return False
    if group == "scenario":
        return bool(option.disclose_training)
    return need in (option.get("gives") or ())


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
    return refusal(*(_chosen(group, job) for group in (*CELL, "dataset")))


def _chosen(group: str, job: Sequence[str]) -> DictConfig:
    """Option of a group that overrides choose; others of theirs do not change it."""
    texts = [text for text in job if is_of([group], text)]
    named = (text.partition("=")[2].strip("'") for text in texts if text.startswith(f"{group}="))
    name = next(named, None)
    option = option_of(group, name) if name and len(texts) == 1 else composed(*texts)[group]
    return _check_named(group, name, option)


def _check_named(group: str, chosen: Any, option: Any) -> DictConfig:
    """Want an option that says who it is, which an empty file does not."""
    if not isinstance(option, DictConfig) or not option.get("name"):
        raise InputError(f"{group}/{chosen}.yaml must give a `name`, got none.")
    return option


def is_of(groups: Collection[str], override: str) -> bool:
    """Tell whether an override, ``metric=loss`` or ``metric.name=x``, is of one of the groups."""
    return override.lstrip("+~").partition("=")[0].split(".")[0] in groups


def single_metrics() -> list[str]:
    """Names of all metrics but the one that stands for several."""
    return [name for name in option_names("metric") if name != COMBINED]


def usual_metrics() -> list[str]:
    """The same without those for canaries, which say so by `of`."""
    return [name for name in single_metrics() if not _is_of_canaries(name)]


@cache
def _is_of_canaries(name: str) -> bool:
    """Tell whether a metric is for canaries; one that cannot be composed is for all records."""
    try:
        return option_of("metric", name).get("of") == "canaries"
    except Exception:
        return False


def _sensible(names: Iterable[str], disclosed: bool, exposure: Exposure) -> list[str]:
    """Names of the metrics that scenario and exposure let be computed.

    One that cannot be composed is kept, for whoever makes it to say so.
    """
    told = [name for name in names if disclosed or "disclosure" not in _needs_of_metric(name)]
    return [name for name in told if exposure.lets(_seen_by_metric(name))]


def _combined(disclosed: bool, exposure: Exposure) -> list[str]:
    """Names of the metrics that ``all`` stands for."""
    names = _sensible(usual_metrics(), disclosed, exposure)
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
                reason = _reason(need, exposure.lacks, words)
                raise InputError(f"`metrics` names {name}: {reason}.")
    return names


@cache
def _needs_of_metric(name: str) -> tuple[str, ...]:
    try:
        return tuple(option_of("metric", name).get("needs") or ())
    except Exception:
        return ()


@cache
def _seen_by_metric(name: str) -> tuple[str, ...]:
    return tuple(seen_by({"needs": _needs_of_metric(name)}))


def named_metrics(wanted: Any) -> list[str]:
    """Names in `metrics`, which are computed beside the chosen one.

    Args:
        wanted: its value.

    Raises:
        InputError: it is no list of options.
    """
    if wanted is None:
        return []
    if wanted == COMBINED:
        return usual_metrics()
    known = option_names("metric")
    names = list(wanted) if OmegaConf.is_list(wanted) else [wanted]
    unknown = [str(name) for name in names if name not in known]
    if unknown:
        raise InputError(
            f"`metrics` must be null, all or a list of {', '.join(known)}, got {unknown[0]}."
        )
    return names


def all_metrics(*, disclosed: bool, exposure: Exposure = WEIGHTS) -> dict[str, Metric]:
    """Make every metric that ``all`` stands for.

    Args:
        disclosed: the scenario discloses training sets.
        exposure: what of the models is seen.
    """
    return exposure.seen(dict(_made_metrics(_combined(disclosed, exposure))))


def stored_metrics(*, disclosed: bool) -> dict[str, Metric]:
    """Make every metric under every exposure, as the store may have them.

    Raises:
        InputError: an option of a metric cannot be used, and nobody knows what is its.
    """
    made = dict(_made_metrics(single_metrics()))
    if broken := sorted(set(single_metrics()) - set(made)):
        raise InputError(f"conf/metric/{broken[0]}.yaml cannot be used: its scores would go.")
    found: dict[str, Metric] = {}
    for name in option_names("exposure"):
        exposure = exposure_of(name)
        some = _sensible(made, disclosed, exposure)
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
    return exposure.seen(dict(_made_metrics(names)))


def _made_metrics(names: Iterable[str]) -> Iterator[tuple[str, Metric]]:
    for name in names:
        try:
            yield name, make(option_of("metric", name).function)
        except Exception as error:  # whatever it is, it is no reason to stop the other metrics
            reason = first_line(error)
            log.warning("conf/metric/%s.yaml cannot be used, and is left out: %s", name, reason)


def option_names(group: str) -> list[str]:
    """Names of all options of a config group, in their fixed order."""
    return list(_names(GlobalHydra.instance().config_loader(), group))


@cache  # it takes some 30 ms, too
def _names(loader: ConfigLoader, group: str) -> list[str]:
    return list(loader.get_group_options(group, ObjectType.CONFIG))


@cache  # it takes some 30 ms, and options do not change while a process lives
def composed(*overrides: str) -> Any:
    """Compose the main configuration with some overrides."""
    return compose("config", overrides=list(overrides))


@cache
def option_of(group: str, name: str) -> DictConfig:
    """An option of a group, as the main configuration has it where it is chosen."""
    if (alone := _alone(group, name)) is not None:
        return alone
    typed = f"{group}={name}" if name.isidentifier() else f"{group}='{name}'"
    option: DictConfig = composed(quote_choices(typed, [group]))[group]  # as a sweep's jobs have it
    return option


def _alone(group: str, name: str) -> DictConfig | None:
    """An option whose file says all of it; None where others have a say, or there is none.

    Composing the whole configuration for it would take ten times as long.
    """
    option = file_of(cast(ConfigLoaderImpl, GlobalHydra.instance().config_loader()), group, name)
    if option is None:
        return None
    told: Any = OmegaConf.to_container(option)
    if "${" in str({key: value for key, value in told.items() if key not in NEVER_ASKED}):
        return None
    OmegaConf.set_struct(option, True)
    return option


def file_of(loader: ConfigLoaderImpl, group: str, name: str) -> DictConfig | None:
    """What the file of an option says; None where it includes others, or there is none."""
    found = loader.repository.load_config(f"{group}/{name}")
    if found is None or found.defaults_list or found.header.get("package"):
        return None
    return found.config if isinstance(found.config, DictConfig) else None


@dataclass(frozen=True)
class Choice:
    """The metric or the formula of a cell, before it is made.

    name: of its option.
    label: with what was set otherwise than in its option file: ``rmia_offline[a=0.5]`` is another
        column of the grid than ``rmia_offline``.
    changes: overrides that make the option file what it is here.
    function: `_target_` and arguments; None for ``metric=all``, which stands for several.
    narrowed: names that `metrics` narrows ``all`` to; None where it does not.
    exposure: what of the models a metric is computed of; part of its name and changes.
    """

    name: str
    label: str
    changes: Sequence[str]
    function: Mapping[str, Any] | None
    narrowed: Sequence[str] | None = None
    exposure: Exposure = WEIGHTS


def choice(cfg: DictConfig, group: str) -> Choice:
    """Read the chosen metric or formula, a metric with its exposure.

    Raises:
        InputError: it is not its option file with other arguments.
    """
    found = _choice(cfg, group)
    if group != "metric":
        return found
    exposure = chosen_exposure(cfg)
    changes = [*found.changes, *exposure.changes]
    return replace(found, label=exposure.named(found.label), changes=changes, exposure=exposure)


def chosen_exposure(cfg: DictConfig) -> Exposure:
    """Read what the attacker sees.

    Raises:
        InputError: it is not its option file with other arguments.
    """
    _check_name(cfg, "exposure")
    name = str(cfg.exposure.name)
    usual, here = _function("exposure", name), _plain(cfg.exposure.function)
    found = exposure_of(name, variants.changed("exposure", name, usual or {}, here or {}))
    return replace(found, lacks=lacking(cfg.dataset))


def exposure_of(name: str, changed: Mapping[str, Any] | None = None) -> Exposure:
    """An exposure by its option, with arguments set otherwise."""
    return Exposure.of(_plain(option_of("exposure", name)), changed)


def _choice(cfg: DictConfig, group: str) -> Choice:
    _check_name(cfg, group)
    name = str(cfg[group].name)
    if _is_combined(group, name):
        named = named_metrics(cfg.metrics)
        names = None if not named or COMBINED in named or cfg.metrics == COMBINED else named
        return Choice(name, combined_label(names), _narrowing(names), None, names)
    function = _plain(cfg[group].function)
    changed = variants.changed(group, name, _function(group, name), function)
    changes = variants.overrides(group, changed)
    return Choice(name, variants.label(name, changed), changes, function)


def written(chosen: Choice) -> str:
    """Changes of a chosen metric or formula as `logged_code` reads them."""
    return json.dumps(list(chosen.changes))


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
    return exposure.seen(dict(_made_metrics(names)))


def formula_of(chosen: Choice) -> Formula | Attack:
    """Make the formula of a cell."""
    function: Formula | Attack = make(chosen.function)
    return function


def logged_choice(group: str, labelled: str, written: str, lacks: tuple[str, ...] = ()) -> Choice:
    """Read the metric or formula of a run whose `logged_code` is that of the present."""
    name = labelled.partition("[")[0]
    texts: list[Any] = json.loads(written)
    own, exposure = _exposed_by(texts) if group == "metric" else (texts, WEIGHTS)
    exposure = replace(exposure, lacks=lacks)
    if _is_combined(group, name):
        return Choice(name, labelled, texts, None, _narrowed_by(own), exposure)
    usual = _function(group, name)
    function = variants.applied(usual, variants.read(group, own, usual))
    return Choice(name, labelled, texts, function, None, exposure)


def code(chosen: Choice, metrics: Iterable[str] = ()) -> str:
    """Hash of what a chosen metric or formula does, arguments included.

    Runs of other code are other experiments, whatever they are called.

    Args:
        chosen: what.
        metrics: names of those that were made for it, where it is ``metric=all``.
    """
    if chosen.function is None:
        names = tuple(name.partition("[")[0] for name in metrics)
        return chosen.exposure.code(_combined_code(names))
    return chosen.exposure.code(variants.code(chosen.function))


def pass_metrics(
    chosen: Mapping[str, Metric],
    named: Sequence[str],
    disclosed: bool,
    exposures: Sequence[Exposure] = (WEIGHTS,),
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
        names = _combined(disclosed, exposure) if every else _sensible(named, disclosed, exposure)
        wanted = [name for name in names if exposure.named(name) not in found]
        made |= dict(_made_metrics(name for name in wanted if name not in made))
        seen = exposure.seen({name: made[name] for name in wanted if name in made})
        found |= {name: one for name, one in seen.items() if name not in found}
    return found


def swept_exposures(cfg: DictConfig, chosen: Exposure) -> list[Exposure]:
    """Exposures of the same pass: the chosen, and those of the sweep."""
    named = cfg.get("exposures")
    names = [named] if isinstance(named, str) else list(named or ())
    known = option_names("exposure")
    if unknown := [str(name) for name in names if name not in known]:
        raise InputError(
            f"`exposures` must be null or a list of {', '.join(known)}, got {unknown[0]}."
        )
    others = (exposure_of(name) for name in names if name != chosen.name)
    return [chosen, *(replace(one, lacks=chosen.lacks) for one in others)]


def _check_name(cfg: DictConfig, group: str) -> None:
    """Compare what an option calls itself with its file, or with the formula it stands for."""
    option, name = HydraConfig.get().runtime.choices[group], str(cfg[group].name)
    if name == option:
        return
    if group != "formula":
        file = f"conf/{group}/{option}.yaml"
        raise InputError(f"{file}: `name` must be that of its file, got {name}.")
    target = cfg.formula.function._target_
    if name not in option_names(group) or _function(group, name)["_target_"] != target:
        raise InputError(
            f"conf/formula/{option}.yaml: `name` must be {option} as its file, or that of the "
            f"option that it stands for, got {name}."
        )


def combined_label(names: Sequence[str] | None) -> str:
    """Name of ``all``, or of what it is narrowed to."""
    return COMBINED if names is None else f"{COMBINED}[{_narrowing(names)[0]}]"


def _narrowing(names: Sequence[str] | None) -> list[str]:
    """Overrides that narrow ``all``."""
    return [] if names is None else [f"metrics=[{','.join(names)}]"]


def _is_combined(group: str, name: str) -> bool:
    return group == "metric" and name == COMBINED


def _function(group: str, name: str) -> Any:
    """`_target_` and arguments of an option, as its file has them."""
    return _plain(option_of(group, name).function)


def _plain(option: Any) -> Any:
    plain = OmegaConf.to_container(option, resolve=True) if OmegaConf.is_config(option) else option
    check_places(plain)
    return plain


@cache
def _combined_code(names: tuple[str, ...]) -> str:
    return digest(*(f"{name} {variants.code(_function('metric', name))}" for name in names))


@cache
def present_code(
    group: str,
    name: str,
    changes: tuple[str, ...] = (),
    disclosed: bool = False,
    lacks: tuple[str, ...] = (),
) -> str:
    """Hash of what an option does now, with some of its arguments set otherwise.

    Args:
        group: metric or formula.
        name: of the option.
        changes: overrides, which need not be from here.
        disclosed: the scenario discloses training sets, which decides what ``all`` stands for.
        lacks: what the data set does not give, which does so as well.

    Raises:
        InputError: there is no such option here, a change is no change of an argument of it, or
            what it names cannot be imported; or the exposure does not give what it needs.
    """
    if name not in option_names(group):
        raise InputError(f"there is no {group}={printable(name, 80)} here")
    if group == "metric":
        own, exposure = _exposed_by(changes)
        found = _code_seen(name, own, disclosed, replace(exposure, lacks=lacks))
        return exposure.code(found)
    return _code_of(group, name, changes)


def _code_seen(name: str, changes: Sequence[Any], disclosed: bool, exposure: Exposure) -> str:
    """Hash of what a metric does that an exposure lets be computed."""
    combined = _is_combined("metric", name)
    narrowed = _narrowed_by(changes) if combined else [name]
    if narrowed and _sensible(narrowed, True, exposure) != narrowed:
        raise InputError(f"exposure={exposure.name} does not show what metric={name} needs")
    if combined:
        made = _made_metrics(_combined(disclosed, exposure))
        return _combined_code(tuple(narrowed or (one for one, _ in made)))
    return _code_of("metric", name, changes)


def _exposed_by(changes: Sequence[Any]) -> tuple[list[Any], Exposure]:
    """Changes of a metric itself, and the exposure that the others name.

    Raises:
        InputError: there is no such exposure here, or it has no such argument.
    """
    own, name, others = exposing.split(changes)
    if name not in option_names("exposure"):
        raise InputError(f"there is no exposure={printable(name, 80)} here")
    usual = _function("exposure", name) or {}
    return own, exposure_of(name, variants.read("exposure", others, usual))


def _code_of(group: str, name: str, changes: Sequence[Any]) -> str:
    """Hash of what an option of one function does."""
    usual = _function(group, name)
    function = variants.applied(usual, variants.read(group, changes, usual))
    try:
        return variants.code(function)
    except Exception as error:  # whatever the import of it raises
        raise InputError(f"{group}={name} cannot be used: {first_line(error)}") from error


def _narrowed_by(changes: Sequence[Any]) -> list[str] | None:
    """Names that changes narrow ``all`` to; None where there is none.

    Raises:
        InputError: they do something else, or name what is not here.
    """
    if not changes:
        return None
    pattern, known = re.compile(r"metrics=\[([^\[\]]+)\]"), single_metrics()
    found = pattern.fullmatch(str(changes[0])) if len(changes) == 1 else None
    names = found[1].split(",") if found else []
    if not names or any(name not in known for name in names):
        told = printable(str(changes[0]), 80)
        raise InputError(f"a change must be `metrics=[<names>]` of metrics here, got {told}.")
    return names


def logged_code(
    group: str, labelled: str, written: str, disclosed: bool, lacks: tuple[str, ...] = ()
) -> str:
    """Hash of what a run's metric or formula does now, by what the run says of itself.

    Args:
        group: metric or formula.
        labelled: its name, ``rmia_offline[a=0.5]``.
        written: its changes, a JSON list of overrides.
        disclosed: as in `present_code`.
        lacks: as there.

    Raises:
        InputError: the run says what no run from here would.
    """
    name = labelled.partition("[")[0]
    try:
        texts = json.loads(written)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"its changes must be a list of texts, got {printable(written, 80)}")
    found = present_code(group, name, tuple(texts), disclosed, lacks)
    texts, exposure = _exposed_by(texts) if group == "metric" else (texts, WEIGHTS)
    if _is_combined(group, name):
        expected = exposure.named(combined_label(_narrowed_by(texts)))
    else:
        changes = variants.read(group, texts, _function(group, name))
        expected = exposure.named(variants.label(name, changes))
    if labelled != expected:
        raise InputError(
            f"it is called {printable(labelled, 80)}, but its changes make it {expected}"
        )
    return found


def logged_metrics(
    labelled: str, written: str, lacks: tuple[str, ...] = ()
) -> dict[str, Metric] | None:
    """Make the metric of a run that `logged_code` has taken; None where it stands for several.

    Args:
        labelled: its name.
        written: its changes.
        lacks: what the data set does not give.
    """
    name = labelled.partition("[")[0]
    if _is_combined("metric", name):
        return None
    own, exposure = _exposed_by(json.loads(written))
    usual = _function("metric", name)
    function = variants.applied(usual, variants.read("metric", own, usual))
    return replace(exposure, lacks=lacks).seen({name: make(function)})


def logged_formula(labelled: str, written: str) -> Formula | Attack:
    """Make the formula of a run that `logged_code` has taken."""
    usual = _function("formula", labelled.partition("[")[0])
    changes = variants.read("formula", json.loads(written), usual)
    made: Formula | Attack = make(variants.applied(usual, changes))
    return made
