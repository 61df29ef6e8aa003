"""What a score, a cell and a choice hang on, listed once.

The keys of the score store, the tags of a run and what is said of a run that is left out all come
from these lists. Two scores, cells or choices are the same where every entry is, and only there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace

from mico_exp.common.errors import printable
from mico_exp.common.fingerprints import digest


@dataclass(frozen=True)
class ScoreIdentity:
    """What the scores of one metric under one model hang on.

    model: hash of the files that decide what the model computes.
    network: hash of the network's definition, without weights.
    records: hash of the data set.
    metric: hash of the metric's code and arguments.
    told: what of the model's training set the metric is told; empty where it is told nothing.
    precision: in which models run.
    inference: hash of the package's code that runs models.
    """

    model: str
    network: str
    records: str
    metric: str
    told: str
    precision: str
    inference: str

    @property
    def key(self) -> str:
        """SHA-256 of all entries."""
        return digest(*vars(self).values())  # `astuple` copies them, which takes ten times as long

    @property
    def shared(self) -> str:
        """SHA-256 of all entries that the columns of a scenario's models have in common."""
        return replace(self, model="", told="").key


@dataclass(frozen=True)
class CellIdentity:
    """What the figures of a cell hang on, as far as it is no name of the cell.

    content: hash of models, records, seeds, solutions and sizes.
    network_code, metric_code, formula_code: hashes of what these do, arguments included.
    package_code: hash of the package's code from scores to figures.
    precision: in which models run.
    known_sample: how many known members and non-members of each model are drawn, as JSON.
    allow_nan, allow_outliers: which models are gone on without, as JSON.
    """

    content: str
    network_code: str
    metric_code: str
    formula_code: str
    package_code: str
    precision: str
    known_sample: str
    allow_nan: str
    allow_outliers: str

    def of_cell(self, metric_code: str, formula_code: str) -> "CellIdentity":
        """What a cell of this metric and formula hangs on, everything else alike."""
        return replace(self, metric_code=metric_code, formula_code=formula_code)

    @property
    def key(self) -> str:
        """SHA-256 of all entries."""
        return digest(*astuple(self))

    def tags(self) -> dict[str, str]:
        """The entries as tags of a run."""
        return asdict(self)

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> "CellIdentity":
        """Read the entries back; one that a run does not have is empty."""
        return cls(**{one.name: tags.get(one.name, "") for one in fields(cls)})

    def differences(self, other: "CellIdentity") -> list[str]:
        """Say in words how another cell's entries differ from these."""
        found = []
        for name, here in asdict(self).items():
            there = getattr(other, name)
            if there != here:
                told = printable(there, 80) or "not told"
                found.append(WORDS[name].format(there=told, here=here))
        return found


WORDS = {
    "content": "other models, records or seeds",
    "network_code": "another network",
    "metric_code": "a metric with other code",
    "formula_code": "a formula with other code",
    "package_code": "another version of the code",
    "precision": "compute.precision={there}, not {here}",
    "known_sample": "scenario.known_sample={there}, not {here}",
    "allow_nan": "compute.allow_nan={there}, not {here}",
    "allow_outliers": "compute.allow_outliers={there}, not {here}",
}
OTHER_CONTENT = WORDS["content"]


@dataclass(frozen=True)
class ChoiceIdentity:
    """What a choice hangs on.

    cells: scenario → the key of each compared cell, ``loss/1`` → hash of its identity and run.
    rule, simple_metrics, simple_formulas: how one of them is taken.
    resamples, halvings, seed, level: of the draws of models.
    code: hash of the package's code that compares and chooses.
    """

    cells: Mapping[str, Mapping[str, str]]
    rule: str
    simple_metrics: tuple[str, ...]
    simple_formulas: tuple[str, ...]
    resamples: int
    halvings: int
    seed: int
    level: int
    code: str

    @property
    def key(self) -> str:
        """SHA-256 of all entries."""
        return digest(json.dumps(asdict(self), sort_keys=True))
