"""Records that a data set has twice, or nearly: of a non-member's twin a model may well know.

Axes: N records, L that are looked at, Q challenge points that others are compared with, D numbers
of a record, G groups of records with the same inputs.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mico_exp.challenge.records import Inputs, Records
from mico_exp.common.arrays import Indices, Mask

LOOKED_BYTES = 1 << 30  # of inputs, at most
AT_ONCE = 1024  # records
COMPARED = 500  # challenge points that are compared with others
PRODUCTS = 10**10  # of two numbers, for all distances together: a second or two
MOST_TEXTS = 20_000  # that are compared with
NEIGHBOURS = 6  # of a record, itself among them
NEAR = 0.2  # of the usual distance to the nearest other record
NEAR_TOKENS = 0.8  # of the tokens that either has, which both have
UNSEEN = -1  # group of a record that was not looked at


@dataclass(frozen=True, eq=False)
class Groups:
    """Records with the same inputs.

    of: (N,) number of a record's group; `UNSEEN` where it was not looked at.
    first: (G,) a record of each group.
    """

    of: Indices
    first: Indices

    @property
    def looked_at(self) -> int:
        """How many records were."""
        return int(np.count_nonzero(self.of != UNSEEN))

    def trained_on(self, members: Mask) -> Mask:
        """(G,) True for groups that have a record of the members (N,)."""
        found = np.zeros(len(self.first), dtype=bool)
        groups = self.of[members]
        found[groups[groups != UNSEEN]] = True
        return found


class Near(NamedTuple):
    """Groups that are nearly the same.

    pairs: (E, 2) a group that was compared, and one near it. compared: (Q,) groups that were.
    others: how many groups they were compared with. rule: what near means.
    """

    pairs: Indices
    compared: Indices
    others: int
    rule: str

    def to(self, groups: Mask) -> Mask:
        """(G,) True for groups that are near one of the `groups` (G,)."""
        found = np.zeros_like(groups)
        found[self.pairs[groups[self.pairs[:, 1]], 0]] = True
        return found


def groups(records: Records) -> Groups:
    """Find records whose inputs are the same to the last bit, among all or evenly many."""
    count = len(records.labels)
    each = len(b"".join(next(_contents(records, np.arange(1)))))
    some = spread(np.arange(count), max(LOOKED_BYTES // max(each, 1), 1))
    of = np.full(count, UNSEEN)
    known: dict[bytes, int] = {}
    first: list[int] = []
    for record, parts in zip(some.tolist(), _contents(records, some), strict=True):
        hashed = hashlib.blake2b(b"|".join(parts), digest_size=16).digest()
        of[record] = known.setdefault(hashed, len(known))
        if len(known) > len(first):
            first.append(record)
    return Groups(of, np.array(first))


def spread(indices: Indices, most: int) -> Indices:
    """At most so many of the indices, evenly spaced."""
    places = np.linspace(0, len(indices) - 1, min(len(indices), most))
    return indices[np.unique(places.astype(np.int64))]


def _contents(records: Records, indices: Indices) -> Iterator[list[bytes]]:
    """What each record's inputs are, part by part, without what a batch is padded with."""
    for start in range(0, len(indices), AT_ONCE):
        inputs = records.inputs(torch.from_numpy(indices[start : start + AT_ONCE]))
        parts = _parts(inputs)
        mask = parts.get("attention_mask")
        for row in range(len(next(iter(parts.values())))):
            rows = [part[row] for part in parts.values()]
            if mask is not None:
                kept = mask[row].astype(bool)
                rows = [one[kept] if one.shape == kept.shape else one for one in rows]
            yield [one.tobytes() for one in rows]


def _parts(inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Arrays of inputs, by name."""
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    return {name: part.numpy() for name, part in named.items()}


def near(records: Records, found: Groups, points: Indices) -> Near:
    """Find what is nearly the same as some of the points, evenly spaced.

    Of numbers, other records within a fifth of the distance that a record usually has to its
    nearest other one (Euclidean; the median), or of token ids those that have four fifths of all
    their tokens in common (Jaccard). They are compared with as many others as a second or two
    allows, evenly spaced.

    Args:
        records: of the data set.
        found: its groups, of each of which one record is compared.
        points: (U,) challenge points.
    """
    compared = np.unique(found.of[points])
    compared = spread(compared[compared != UNSEEN], COMPARED)
    sample = _parts(records.inputs(torch.from_numpy(found.first[:1])))
    numeric = any(part.dtype.kind == "f" for part in sample.values())
    width = sum(part[0].size for part in sample.values())
    most = PRODUCTS // max(len(compared) * width, 1) if numeric else MOST_TEXTS
    others = np.union1d(compared, spread(np.arange(len(found.first)), max(most, 1)))
    rows = np.searchsorted(others, compared)
    closest = _near_numbers if numeric else _near_tokens
    pairs, rule = closest(records, found.first[others], rows)
    return Near(
        np.stack([compared[pairs[:, 0]], others[pairs[:, 1]]], 1), compared, len(others), rule
    )


def _near_numbers(records: Records, others: Indices, rows: Indices) -> tuple[Indices, str]:
    """Pairs (E, 2) of places in `rows` and in `others` that are near by distance."""
    rule = f"nearer than {NEAR:g} of the usual distance to the nearest"
    if len(others) < 2:
        return np.empty((0, 2), np.int64), rule
    numbers = torch.from_numpy(np.concatenate(list(_flat(records, others))))
    numbers -= numbers.mean(dim=0)  # or rounding of what all share would count
    some = numbers[rows]
    place = torch.cdist(some, numbers).topk(min(NEIGHBOURS, len(others)), largest=False).indices
    exact = (some[:, None] - numbers[place]).norm(dim=2).numpy()
    distance = np.where(place.numpy() == rows[:, None], np.inf, exact)
    usual = np.median(distance.min(axis=1))
    row, column = np.nonzero(distance <= NEAR * usual)
    return np.stack([row, place.numpy()[row, column]], 1), rule


def _flat(records: Records, indices: Indices) -> Iterator[NDArray[np.float32]]:
    """Numbers (B, D) of records, some at a time."""
    for start in range(0, len(indices), AT_ONCE):
        parts = _parts(records.inputs(torch.from_numpy(indices[start : start + AT_ONCE]))).values()
        flat = [part.reshape(len(part), -1) for part in parts if part.dtype.kind == "f"]
        yield np.concatenate(flat, axis=1).astype(np.float32)


def _near_tokens(records: Records, others: Indices, rows: Indices) -> tuple[Indices, str]:
    """Pairs (E, 2) of places in `rows` and in `others` that are near by the tokens they share."""
    from scipy.sparse import csr_array

    sets = list(_token_sets(records, others))
    sizes = np.array([len(one) for one in sets])
    starts, tokens = np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(sets)
    has = csr_array((np.ones(len(tokens), np.float32), tokens, starts))
    shared = (has[rows] @ has.T).toarray()
    either = sizes[rows, None] + sizes - shared
    shared[np.arange(len(rows)), rows] = 0  # itself
    pairs = np.argwhere(shared >= NEAR_TOKENS * np.maximum(either, 1))
    return pairs, f"with {NEAR_TOKENS:.0%} of their tokens in common"


def _token_sets(records: Records, indices: Indices) -> Iterator[Indices]:
    """Different whole numbers of each record."""
    for start in range(0, len(indices), AT_ONCE):
        parts = _parts(records.inputs(torch.from_numpy(indices[start : start + AT_ONCE])))
        ids = parts.get("input_ids", next(iter(parts.values())))
        mask = parts.get("attention_mask", np.ones_like(ids)).astype(bool)
        for row, kept in zip(ids, mask, strict=True):
            yield np.unique(row[kept])
