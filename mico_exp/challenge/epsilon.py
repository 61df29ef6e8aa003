"""The ε that folders of models record, each in a file ``epsilon``."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mico_exp.challenge.tree import Scenario
from mico_exp.common import require
from mico_exp.common.errors import InputError


class EpsilonRange(NamedTuple):
    """Lowest and highest ε that the folders of some models record; infinite without privacy."""

    low: float
    high: float
    models: int

    def __str__(self) -> str:
        return "–".join(dict.fromkeys(f"{value:g}" for value in (self.low, self.high)))

    @classmethod
    def over(cls, some: Iterable["EpsilonRange"]) -> "EpsilonRange":
        """The range of several together, of which there is one at least."""
        lows, highs, models = zip(*some, strict=True)
        return cls(min(lows), max(highs), sum(models))


def recorded_epsilon(scenario: Scenario) -> dict[str, EpsilonRange]:
    """Find the range of ε in each phase, over the models that record theirs; most record none.

    Raises:
        InputError: a file ``epsilon`` holds something else.
    """
    found = {}
    for phase, models in scenario.phases.items():
        values = [read_epsilon(model.path / "epsilon") for model in models]
        if known := [value for value in values if value is not None]:
            found[phase] = EpsilonRange(min(known), max(known), len(known))
    return found


def read_epsilon(path: Path) -> float | None:
    """Read the ε that a model was trained with; ``inf`` is no privacy, None no such file.

    Raises:
        InputError: it is no positive number.
    """
    try:
        text = require.file(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: ε must be readable as text, got: {error}.") from error
    number = r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|\+?inf(inity)?"
    if not re.fullmatch(number, text, flags=re.IGNORECASE) or not float(text) > 0:
        raise InputError(f"{path}: ε must be a number above 0 or inf, got {text[:40]!r}.")
    return float(text)
