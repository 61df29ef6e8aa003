"""What a scenario's option tells: the privacy that it claims, and the sample that is known."""

import math

from omegaconf import DictConfig

from mico_exp.common import require
from mico_exp.common.errors import InputError
from mico_exp.config.options import option_names, option_of

USUAL_DELTA = 1e-5  # of bounds on scenarios without differential privacy: the competition's


def scenario_option(name: str) -> DictConfig | None:
    """Option of a scenario; None where there is none of that name."""
    if name not in option_names("scenario"):
        return None
    return option_of("scenario", name)


def epsilon(option: DictConfig) -> float | None:
    """Read the ε of a scenario, wherever its models come from; None without privacy."""
    value: float | None = option.epsilon
    if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
        raise InputError(
            f"`scenario.epsilon` must be a finite number above 0, got {value!r}; "
            "`scenario.epsilon=null` is without differential privacy."
        )
    return value


def delta(option: DictConfig | None) -> float:
    """δ of a scenario's claim; the usual one where it has none.

    Raises:
        InputError: it is none with which an ε can be bounded.
    """
    value = _delta(option)
    require.between("scenario.delta", value, 0, 1)
    return float(value)


def _delta(option: DictConfig | None) -> float:
    """δ as an option tells it, or the usual one."""
    told: float | None = None if option is None else option.get("delta")
    return USUAL_DELTA if told is None else told


def claim(option: DictConfig) -> tuple[float, float] | None:
    """(ε, δ) that a scenario's option claims, δ = 0 among it; None without privacy.

    Raises:
        InputError: one of them cannot be.
    """
    if (asked := epsilon(option)) is None:
        return None
    value = _delta(option)
    require.within("scenario.delta", value, 0, 1)
    return asked, float(value)


def known_sample(cfg: DictConfig, option: DictConfig | None) -> tuple[int | None, int | None]:
    """How many known members and non-members are drawn: as a command is told, or the option."""
    wanted = cfg.get("known_sample") or (option and option.known_sample)
    if wanted is None:
        return None, None
    for name in ("members", "nonmembers"):
        count = wanted.get(name)
        if type(count) is not int or count < 0:
            raise InputError(
                f"`scenario.known_sample.{name}` must be a whole number ≥ 0, got {count!r}."
            )
    return wanted.members, wanted.nonmembers
