"""Where a data set's records come from."""

from dataclasses import dataclass
from functools import cache, cached_property

from omegaconf import OmegaConf

from mico_exp.challenge.outputs import Outputs
from mico_exp.challenge.records import Records
from mico_exp.common.errors import InputError
from mico_exp.config.exposing import CLASSES, INPUTS, LIKELIHOOD, LOGITS, WEIGHTS
from mico_exp.config.making import make
from mico_exp.scores.soundness import check_records


@dataclass(frozen=True)
class Source:
    """Where a data set's records come from; loaded once in a process, whoever asks.

    name: of the data set.
    option: `dataset.records`, as YAML.
    told: how many records there must be; None where that is not told.
    """

    name: str
    option: str
    told: int | None

    @cached_property
    def records(self) -> Records:
        """The records.

        Raises:
            InputError: they cannot be loaded, or are more or fewer than is told.
        """
        made = _loaded(self.option)
        loaded: Records = made.records if isinstance(made, Outputs) else made
        if self.told is not None and self.told != (found := len(loaded.labels)):
            raise InputError(
                f"`dataset.num_records` must be the number of records, {self.told!r} as told, but "
                f"{found} were loaded: seeds point into all of them. Are {self.name}'s records "
                "complete?"
            )
        return loaded

    @property
    def outputs(self) -> Outputs | None:
        """What models gave, where nothing else is known of them."""
        made = _loaded(self.option)
        return made if isinstance(made, Outputs) else None

    @property
    def lacks(self) -> tuple[str, ...]:
        """What metrics and exposures may need and is not known, where only outputs are.

        Raises:
            InputError: the outputs cannot be loaded.
        """
        if (outputs := self.outputs) is None:
            return ()
        if outputs.kind == LOGITS:
            return WEIGHTS, INPUTS
        if outputs.gives_classes:
            return WEIGHTS, INPUTS, LOGITS
        odds = (LIKELIHOOD,) if outputs.kind == "scores" else ()
        return WEIGHTS, INPUTS, LOGITS, CLASSES, *odds

    def check_steady(self) -> None:
        """Load the records once more, before long work, and compare; once in a process.

        Raises:
            InputError: they are others.
        """
        _check_steady(self.option)


def _made(option: str) -> Records | Outputs:
    """Records or outputs, made by a function that is given plain lists and dictionaries."""
    return make(OmegaConf.create(option), _convert_="all")


@cache
def _loaded(option: str) -> Records | Outputs:
    loaded = _made(option)
    check_records(loaded.records if isinstance(loaded, Outputs) else loaded)
    return loaded


@cache
def _check_steady(option: str) -> None:
    if isinstance(first := _loaded(option), Outputs):
        return  # files of values, which are compared by their content
    again = _made(option)
    assert not isinstance(again, Outputs)
    if again.fingerprint != first.fingerprint:
        raise InputError(
            "`dataset.records` must give the same records in the same order every time, got others "
            "when they were loaded again: its loader is not deterministic. Does it shuffle without "
            "a seed?"
        )
