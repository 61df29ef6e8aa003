"""What is chosen as metric, formula and exposure: by which label it is logged, and read back.

What a run of another person says of itself is read as data: see `variants`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mico_exp.attacks.calibration import Formula
from mico_exp.attacks.evidence import Attack
from mico_exp.common.errors import InputError, printable
from mico_exp.config import variants
from mico_exp.config.cells import COMBINED
from mico_exp.config.dataset import lacking
from mico_exp.config.exposing import USUAL, Exposure, split
from mico_exp.config.making import make
from mico_exp.config.options import function_of, option_names, option_of, plain, said_by


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
    exposure: Exposure = USUAL


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


def _choice(cfg: DictConfig, group: str) -> Choice:
    _check_name(cfg, group)
    name = str(cfg[group].name)
    if is_combined(group, name):
        named = named_metrics(cfg.metrics)
        names = None if not named or COMBINED in named or cfg.metrics == COMBINED else named
        return Choice(name, combined_label(names), _narrowing(names), None, names)
    function = plain(cfg[group].function)
    changed = variants.changed(group, name, function_of(group, name), function)
    changes = variants.overrides(group, changed)
    return Choice(name, variants.label(name, changed), changes, function)


def _check_name(cfg: DictConfig, group: str) -> None:
    """Compare what an option calls itself with its file, or with the formula it stands for."""
    option, name = HydraConfig.get().runtime.choices[group], str(cfg[group].name)
    if name == option:
        return
    if group != "formula":
        file = f"conf/{group}/{option}.yaml"
        raise InputError(f"{file}: `name` must be that of its file, got {name}.")
    target = cfg.formula.function._target_
    if name not in option_names(group) or function_of(group, name)["_target_"] != target:
        raise InputError(
            f"conf/formula/{option}.yaml: `name` must be {option} as its file, or that of the "
            f"option that it stands for, got {name}."
        )


def is_combined(group: str, name: str) -> bool:
    """Tell whether a choice is the metric that stands for several."""
    return group == "metric" and name == COMBINED


def chosen_exposure(cfg: DictConfig) -> Exposure:
    """Read what the attacker sees.

    Raises:
        InputError: it is not its option file with other arguments.
    """
    _check_name(cfg, "exposure")
    name = str(cfg.exposure.name)
    usual, here = function_of("exposure", name), plain(cfg.exposure.function)
    found = exposure_of(name, variants.changed("exposure", name, usual or {}, here or {}))
    return replace(found, lacks=lacking(cfg.dataset))


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


def exposure_of(name: str, changed: Mapping[str, Any] | None = None) -> Exposure:
    """An exposure by its option, with arguments set otherwise."""
    return Exposure.of(plain(option_of("exposure", name)), changed)


def single_metrics() -> list[str]:
    """Names of all metrics but the one that stands for several."""
    return [name for name in option_names("metric") if name != COMBINED]


def usual_metrics() -> list[str]:
    """The same without those for canaries, which say so by `of`."""
    return [name for name in single_metrics() if not _is_of_canaries(name)]


def _is_of_canaries(name: str) -> bool:
    """Tell whether a metric is for canaries; one that cannot be composed is for all records."""
    return said_by("metric", name, "of") == "canaries"


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


def combined_label(names: Sequence[str] | None) -> str:
    """Name of ``all``, or of what it is narrowed to."""
    return COMBINED if names is None else f"{COMBINED}[{_narrowing(names)[0]}]"


def _narrowing(names: Sequence[str] | None) -> list[str]:
    """Overrides that narrow ``all``."""
    return [] if names is None else [f"metrics=[{','.join(names)}]"]


def written(chosen: Choice) -> str:
    """Changes of a chosen metric or formula as `logged_code` reads them."""
    return json.dumps(list(chosen.changes))


def logged_choice(group: str, labelled: str, written: str, lacks: tuple[str, ...] = ()) -> Choice:
    """Read the metric or formula of a run whose `logged_code` is that of the present."""
    name = labelled.partition("[")[0]
    texts: list[Any] = json.loads(written)
    own, exposure = exposed_by(texts) if group == "metric" else (texts, USUAL)
    exposure = replace(exposure, lacks=lacks)
    if is_combined(group, name):
        return Choice(name, labelled, texts, None, narrowed_by(own), exposure)
    return Choice(name, labelled, texts, function_with(group, name, own), None, exposure)


def function_with(group: str, name: str, changes: Sequence[Any]) -> dict[str, Any]:
    """Function of an option with changes that a run tells, which need not be from here.

    Raises:
        InputError: one is no change of an argument of it.
    """
    usual = function_of(group, name)
    return variants.applied(usual, variants.read(group, changes, usual))


def exposed_by(changes: Sequence[Any]) -> tuple[list[Any], Exposure]:
    """Changes of a metric itself, and the exposure that the others name.

    Raises:
        InputError: there is no such exposure here, or it has no such argument.
    """
    own, name, others = split(changes)
    if name not in option_names("exposure"):
        raise InputError(f"there is no exposure={printable(name, 80)} here")
    usual = function_of("exposure", name) or {}
    return own, exposure_of(name, variants.read("exposure", others, usual))


def narrowed_by(changes: Sequence[Any]) -> list[str] | None:
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


def formula_of(chosen: Choice) -> Formula | Attack:
    """Make the formula of a cell."""
    function: Formula | Attack = make(chosen.function)
    return function
