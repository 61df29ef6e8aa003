"""What the attacker sees of a model, as it is chosen: what it lets be computed, and its name.

Names and codes of what is computed from the weights are as if there were no exposures. Another
one is a change of the metric: ``loss[exposure=rounded, decimals=2]``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mico_exp.common.errors import InputError, printable
from mico_exp.common.fingerprints import digest
from mico_exp.config import variants
from mico_exp.config.making import make
from mico_exp.config.variants import Function
from mico_exp.runs.record import EXPOSURE, USUAL_EXPOSURE
from mico_exp.scores.exposures import seen_through
from mico_exp.scores.families import Metric
from mico_exp.scores.perturbation import PerturbedMetric

LABEL, CONFIDENCES, WEIGHTS = "label", "confidences", "weights"
CLASSES, INPUTS, LIKELIHOOD = "classes", "inputs", "likelihood"
LOGITS = "logits"
OF_DATA = (
    CLASSES,
    INPUTS,
    LIKELIHOOD,
    LOGITS,
)  # what there is whoever looks, unless only outputs are known
SEEN = (LABEL, CONFIDENCES, WEIGHTS)  # what there is to see, each with all before it


def seen_by(option: Mapping[str, Any]) -> list[str]:
    """What a metric needs to see, by its option; confidences where that says nothing of it.

    One that looks at more than the record's own class says so by ``classes``, one that changes the
    records by ``inputs``, and one that reads scores as probabilities by ``likelihood``.
    """
    needs = option.get("needs") or ()
    return [need for need in needs if need in (*SEEN, *OF_DATA)] or [CONFIDENCES]


@dataclass(frozen=True)
class Exposure:
    """What the attacker sees.

    name: of its option. changed: arguments that are set otherwise than in its file.
    function: `_target_` and arguments; None where metrics are given what the models give.
    gives: those of `SEEN`.
    lacks: what the data set does not give, whoever looks: weights, or of `OF_DATA`.
    """

    name: str = USUAL_EXPOSURE
    changed: Mapping[str, Any] | None = None
    function: Function | None = None
    gives: tuple[str, ...] = SEEN
    lacks: tuple[str, ...] = ()

    @classmethod
    def of(cls, option: Mapping[str, Any], changed: Mapping[str, Any] | None = None) -> "Exposure":
        """Take an option, with arguments set otherwise."""
        function = option["function"]
        if changed:
            function = variants.applied(function, changed)
        return cls(str(option["name"]), changed, function, tuple(option.get("gives") or ()))

    @property
    def is_usual(self) -> bool:
        """It is the one that no name tells."""
        return self.name == USUAL_EXPOSURE

    @property
    def label(self) -> str:
        """Its own name, ``rounded[decimals=2]``."""
        return variants.label(self.name, self.changed or {})

    @property
    def changes(self) -> list[str]:
        """Overrides that choose it."""
        if self.is_usual:
            return []
        return [f"{EXPOSURE}={self.name}", *variants.overrides(EXPOSURE, self.changed or {})]

    def named(self, label: str) -> str:
        """Name of a metric, ``loss`` or ``all[metrics=[loss]]``, of what it gives."""
        if self.is_usual:
            return label
        return variants.joined(label, {EXPOSURE: self.name, **(self.changed or {})})

    def lets(self, needs: Sequence[str]) -> bool:
        """Tell whether a metric that needs to see this can be computed."""
        return {*needs} <= {*self.gives, *OF_DATA} - {*self.lacks}

    def combines(self, needs: Sequence[str]) -> bool:
        """Tell whether ``metric=all`` stands for a metric, among others.

        One of the label alone is part of it where nothing else is: others see what it sees.
        """
        of_label = [need for need in needs if need in SEEN] == [LABEL]
        return self.lets(needs) and (not of_label or CONFIDENCES not in self.gives)

    def code(self, metric: str) -> str:
        """Hash of a metric that is given what it gives, from the hash of the metric itself."""
        return metric if self.function is None else digest(metric, variants.code(self.function))

    def seen(self, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        """Metrics of what it gives, by their names.

        Raises:
            InputError: one needs the weights.
        """
        exposure = None if self.function is None else make(self.function)
        found: dict[str, Metric] = {}
        for name, metric in metrics.items():
            if isinstance(metric, PerturbedMetric):  # it sees labels alone, whatever is shown
                found[name] = metric
            elif exposure is None:
                found[self.named(name)] = metric
            else:
                found[self.named(name)] = seen_through(exposure, name, metric)
        return found


USUAL = Exposure()


def split(changes: Sequence[Any]) -> tuple[list[Any], str, list[Any]]:
    """Changes of a metric itself, the name of its exposure, and the changes of that.

    Raises:
        InputError: there are changes of an exposure, and no name before them.
    """
    own = [text for text in changes if not str(text).startswith(EXPOSURE)]
    others = [text for text in changes if str(text).startswith(EXPOSURE)]
    if not others:
        return own, USUAL_EXPOSURE, []
    key, _, name = str(others[0]).partition("=")
    if key != EXPOSURE or name == USUAL_EXPOSURE:
        told = printable(json.dumps(others[0]), 80)
        raise InputError(f"a change must be `{EXPOSURE}=<name>` of another exposure, got {told}")
    return own, name, others[1:]
