"""The competition's protocol: three seeds to the index arrays of one model.

Every model has 2m *challenge points*, half of them members of its training set.

Axes: P = 2m challenge points of one model, N records of the data set.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mico_exp.common import require
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError

MAX_SEED = 2**63 - 1
SECRETS = ("member", "nonmember", "training", "evaluation")  # sets that may not be disclosed


@dataclass(frozen=True)
class Sizes:
    """How many records there are (N), how many a model trains on, and how many are members (m).

    The latter two are what seeds are drawn by; None where lists tell membership (`lists`).
    """

    records: int
    training: int | None = None
    challenge: int | None = None

    def __post_init__(self) -> None:
        require.whole("num_records", self.records, 1)
        if self.training is None and self.challenge is None:
            return
        require.whole("len_training", self.training, 1)
        require.whole("len_challenge", self.challenge, 1)
        assert self.training is not None
        assert self.challenge is not None
        if self.training < self.challenge:
            raise InputError(
                "`len_training` must be at least `len_challenge`, "
                f"got {self.training} and {self.challenge}."
            )
        if self.records < self.training + self.challenge:
            raise InputError(
                f"{self.records} records are too few for `len_training` = {self.training} and "
                f"`len_challenge` = {self.challenge}: at least their sum is needed."
            )


@dataclass(frozen=True, eq=False)
class Split:
    """Record indices of one model, each (n,) int64; None where it is not disclosed.

    The model was trained on `member` + `training`; `evaluation` and `nonmember` it never saw.
    """

    challenge: Indices
    member: Indices | None
    nonmember: Indices | None
    training: Indices | None
    evaluation: Indices | None

    @property
    def solution(self) -> NDArray[np.bool_] | None:
        """(P,) True where the challenge point is a member, in the order of `challenge`."""
        return None if self.member is None else np.isin(self.challenge, self.member)

    def filled(self, other: "Split") -> "Split":
        """The same, with what is not disclosed here as the other has it."""
        named = {
            name: getattr(self if getattr(self, name) is not None else other, name)
            for name in SECRETS
        }
        return Split(self.challenge, **named)

    def agrees(self, other: "Split") -> bool:
        """Whether both name the same records wherever both disclose some."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in SECRETS]
        return all(
            a is None or b is None or np.array_equal(np.sort(a), np.sort(b)) for a, b in pairs
        )

    def trained_on(self, num_records: int) -> NDArray[np.bool_]:
        """(N,) True where the model was trained on the record; all must be disclosed."""
        assert self.member is not None
        assert self.training is not None
        mask = np.zeros(num_records, dtype=bool)
        mask[self.member] = mask[self.training] = True
        return mask


def of_seeds(sizes: Sizes) -> tuple[int, int]:
    """How many a model trains on, and m, which seeds cannot do without.

    Raises:
        InputError: they are not told.
    """
    if sizes.training is None or sizes.challenge is None:
        raise InputError(
            "`dataset.len_training` and `dataset.len_challenge` must be whole numbers where seeds "
            "tell membership, got null."
        )
    return sizes.training, sizes.challenge


def permutation(seed: int, n: int) -> Indices:
    """Draw the competition's permutation of n indices for a 63-bit seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator).numpy()


def split(
    sizes: Sizes,
    seed_challenge: int,
    seed_training: int | None = None,
    seed_membership: int | None = None,
) -> Split:
    """Derive a model's index sets from its seeds as the competition does.

    `random_split` gives indices into what was split, so member and non-member point into the
    challenge set and training and evaluation into the rest; here all are record indices.
    """
    training_size, m = of_seeds(sizes)
    order = permutation(seed_challenge, sizes.records)
    challenge, rest = order[: 2 * m], order[2 * m :]
    training = evaluation = member = nonmember = None
    if seed_training is not None:
        drawn = rest[permutation(seed_training, len(rest))]
        training, evaluation = drawn[: training_size - m], drawn[training_size - m :]
    if seed_membership is not None:
        drawn = challenge[permutation(seed_membership, 2 * m)]
        nonmember, member = drawn[:m], drawn[m:]
    return Split(challenge, member, nonmember, training, evaluation)
