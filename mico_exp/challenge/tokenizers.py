"""Tokenizers as they lie on disk, of which no code ever runs."""

import json
from pathlib import Path
from typing import Any

from mico_exp.common import require
from mico_exp.common.errors import InputError, first_line


def by_class(name: str) -> Any:
    """Load a tokenizer by a class of `transformers`: code that comes with it never runs.

    ``trust_remote_code=False`` is not enough. AutoTokenizer does not hand it to the class that
    the files name, and AutoModel or AutoProcessor there would ask at a prompt whether to run it.
    """
    from transformers import AutoTokenizer

    if name.startswith("~"):
        name = str(require.folder("dataset.records.tokenizer", name))
    try:
        if not (own := _own_code(name)):
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of odd files
        raise InputError(
            f"`dataset.records.tokenizer`: {name} is no tokenizer that is here or can be "
            f"fetched: {first_line(error)}"
        ) from error
    raise InputError(
        f"`dataset.records.tokenizer` must be a tokenizer of transformers, without code of its "
        f"own, got {name} with {own}."
    )


def _own_code(name: str) -> str:
    """Say where a tokenizer's files ask for code that is not a tokenizer of `transformers`."""
    from transformers.utils.hub import cached_file

    errors = {"_raise_exceptions_for_missing_entries": False}
    errors["_raise_exceptions_for_connection_errors"] = False
    for file in ("tokenizer_config.json", "config.json"):
        path = cached_file(name, file, **errors)
        told = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        if file == "tokenizer_config.json" and told.get("auto_map"):
            return f"`auto_map` in {file}"
        if (kind := told.get("tokenizer_class")) and not _is_tokenizer(kind):
            return f"`tokenizer_class` {kind} in {file}"
    return ""


def _is_tokenizer(kind: str) -> bool:
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    bare = kind.removesuffix("Fast")
    found = tokenizer_class_from_name(bare) or tokenizer_class_from_name(f"{bare}Fast")
    return isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)
