"""Labels as files have them, and the numbers of their classes."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mico_exp.common.errors import InputError, printable

OPTION = "dataset.records.classes"
WHOLE = re.compile(r"0|[1-9][0-9]{0,17}")  # as a number of a class is written


def numbered(
    values: Sequence[Any] | NDArray[Any], classes: Sequence[Any] | None, where: str
) -> Tensor:
    """Numbers (N,) int64, from 0 on, of the classes that labels (N,) name.

    Args:
        values: of the records.
        classes: the labels that there may be, in the order of their numbers, compared as text;
            None where labels are numbers already.
        where: what holds them, as messages name it.

    Raises:
        InputError: names the first record whose label is none, or says what `classes` must be.
    """
    order = None if classes is None else order_of(classes)
    if order is None and isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        if len(values) and values.min() < 0:
            raise _refused(where, int((values < 0).argmax()), values, classes)
        return torch.from_numpy(values.astype(np.int64))
    numbers = [number_of(str(value), order) for value in values]
    if None in numbers:
        raise _refused(where, numbers.index(None), values, classes)
    return torch.tensor(numbers, dtype=torch.int64)


def check_same(stated: Sequence[Any] | None, own: Sequence[str], where: str) -> None:
    """Compare classes that are stated with those that a data set numbers by itself.

    Raises:
        InputError: they are others, or in another order.
    """
    if stated is None or list(order_of(stated)) == list(own):
        return
    told = set(own) == set(order_of(stated))
    raise InputError(
        f"`{OPTION}` must be the classes of {where} in its own order, {few(own)}, got "
        f"{'another order' if told else 'others'}: {few(stated)}."
    )


def order_of(classes: Sequence[Any], option: str = OPTION) -> dict[str, int]:
    """Number of each class by its text, in the order of the numbers.

    Args:
        classes: what an option lists.
        option: which.

    Raises:
        InputError: they are no list of different labels, or numbers in another order.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
        raise InputError(f"`{option}` must be a list of labels, got {classes!r:.80}.")
    names = [str(one) for one in classes]
    order = {name: number for number, name in reversed(list(enumerate(names)))}
    if len(order) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"`{option}` must name each label once, got {printable(twice)!r} twice.")
    ascending = [str(number) for number in range(len(names))]
    if names != ascending and sorted(names) == sorted(ascending):
        raise InputError(
            f"`{option}` has the numbers 0 … {len(names) - 1} in another order, {few(names)}: "
            "labels that are numbers from 0 on keep them, so leave it out."
        )
    return dict(reversed(order.items()))


def number_of(text: str, order: dict[str, int] | None) -> int | None:
    """Number of the class that a label names; None where it names none."""
    if order is not None:
        return order.get(text)
    return int(text) if WHOLE.fullmatch(text) else None


def _refused(
    where: str, record: int, values: Sequence[Any] | NDArray[Any], classes: Sequence[Any] | None
) -> InputError:
    found = values[record]
    found = found.item() if isinstance(found, np.generic) else found
    rule = "a whole number from 0 on, or be in `classes`, where there are none"
    rule = rule if classes is None else f"one of `{OPTION}`, {few(classes)}"
    return InputError(f"{where}: label of record {record} must be {rule}, got {found!r:.80}.")


def few(names: Sequence[Any]) -> str:
    """Name the first of some."""
    shown = ", ".join(printable(str(name), 40) for name in names[:10])
    return f"{shown}, … ({len(names)} in all)" if len(names) > 10 else shown
