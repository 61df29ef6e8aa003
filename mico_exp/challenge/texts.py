"""Records that are sentences of a table, or pairs of sentences, by any tokenizer on disk.

Axes: N records, B indices asked for, T tokens of all records.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mico_exp.challenge import tokenizers
from mico_exp.challenge.datasets import Sentences
from mico_exp.challenge.labels import numbered
from mico_exp.challenge.records import Records, fingerprint_arrays
from mico_exp.challenge.tables import PLACE, Table
from mico_exp.common import require
from mico_exp.common.errors import InputError, printable

CHUNK = 10_000  # records that are tokenised at once


class Texts(Sentences):
    """Tokenised sentences, with token types where the model takes them.

    types: (T,) type of each of `tokens`, such as 1 in the second sentence of a pair; None for
        models that take none.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        starts: NDArray[np.int64],
        labels: Tensor,
        pad: int,
        types: NDArray[np.int32] | None,
    ) -> None:
        super().__init__(tokens, starts, labels, pad)
        self.types = types

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of token ids, token types, labels and padding."""
        types = [] if self.types is None else [self.types]
        pad = np.array(self.pad)
        return fingerprint_arrays(self.tokens, self.starts, self.labels.numpy(), pad, *types)

    def inputs(self, indices: Tensor) -> Mapping[str, Tensor]:
        """``input_ids``, ``attention_mask`` and perhaps ``token_type_ids`` (B, longest) int64."""
        found = dict(super().inputs(indices))
        if self.types is not None:
            chosen = indices.numpy()
            ends = zip(self.starts[chosen], self.starts[chosen + 1], strict=True)
            types = np.concatenate([self.types[start:end] for start, end in ends])
            mask = found["attention_mask"]
            given = torch.zeros_like(mask)
            given[mask.bool()] = torch.from_numpy(types.astype(np.int64))
            found["token_type_ids"] = given
        return found


def from_file(
    file: str | Sequence[str],
    text: str | Sequence[str],
    label: str,
    tokenizer: str,
    max_length: int,
    classes: Sequence[Any] | None = None,
    pad: int | None = None,
    token_types: bool | None = None,
) -> Records:
    """Load records from the sentences of a table, tokenised once.

    Args:
        file: or files, one after another, as `Table` takes them.
        text: column of the sentences, or two columns of the first and second of each pair.
        label: column of the labels.
        tokenizer: folder of a Hugging Face tokenizer.
        max_length: tokens that longer records are cut to, as the tokenizer cuts them.
        classes: label values in the order of their numbers; None where they are numbers from 0 on.
        pad: token id that batches are padded with; None for the tokenizer's.
        token_types: whether models take `token_type_ids`; None for what the tokenizer's class says.

    Raises:
        InputError: names the file, column and row that are not what they must be.
    """
    require.whole(f"{PLACE}.max_length", max_length, 1)
    told = [text] if isinstance(text, str) else text
    if not isinstance(told, Sequence) or not 1 <= len(told) <= 2:
        raise InputError(f"`{PLACE}.text` must name one column or two, got {text!r:.80}.")
    table = Table(file, [*map(str, told), str(label)])
    names = table.named("text", told)
    (label,) = table.named("label", str(label))
    labels = numbered(table.values(label), classes, table.where)
    tool = tokenizers.on_disk(tokenizer)
    columns = [_sentences(table, name) for name in names]
    tokens, types, starts = _tokenised(tool, columns, max_length)
    types_or_none = types if _takes(tool, tokenizer, token_types, types) else None
    return Texts(tokens, starts, labels, _padding(tool, tokenizer, pad), types_or_none)


def _sentences(table: Table, name: str) -> list[str]:
    """Sentences (N,) of a column."""
    sentences = table.values(name)
    for record, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise InputError(
                f"{table.where}: column {printable(name)!r} must hold text, got {sentence!r:.80} "
                f"in record {record}."
            )
    return sentences


def _tokenised(
    tool: Any, columns: Sequence[Sequence[str]], max_length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Token ids and types (T,) of all records one after another, and where each starts."""
    ids, types, lengths = [], [], [0]
    for start in tqdm(range(0, len(columns[0]), CHUNK), desc="Tokenising", disable=None):
        some = [column[start : start + CHUNK] for column in columns]
        found = tool(*some, truncation=True, max_length=max_length, return_token_type_ids=True)
        lengths += [len(one) for one in found["input_ids"]]
        ids += [np.asarray(one, np.int32) for one in found["input_ids"]]
        types += [np.asarray(one, np.int32) for one in found["token_type_ids"]]
    return np.concatenate(ids), np.concatenate(types), np.cumsum(lengths)


def _takes(tool: Any, folder: str, told: bool | None, types: NDArray[np.int32]) -> bool:
    """Whether models are given token types."""
    if told is not None and not isinstance(told, bool):
        raise InputError(f"`{PLACE}.token_types` must be true, false or null, got {told!r:.80}.")
    says_so = tokenizers.gives_types(tool, folder)
    if told is None and not says_so and types.any():
        raise InputError(
            f"`{PLACE}.token_types` must be true or false: {folder} gives token types, and does "
            "not say whether its model takes them (BERT, ALBERT and XLNet do, DistilBERT does not)."
        )
    return says_so if told is None else told


def _padding(tool: Any, folder: str, told: int | None) -> int:
    """Token id that batches are padded with."""
    pad = tool.pad_token_id if told is None else told
    if pad is None:
        raise InputError(
            f"`{PLACE}.pad` must be the token id that batches are padded with, `pad_token_id` of "
            f"the model's config.json: {folder} has none."
        )
    require.whole(f"{PLACE}.pad", pad, 0)
    return int(pad)
