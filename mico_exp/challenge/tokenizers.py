"""Tokenizers as they lie on disk, of which no code ever runs."""

import json
from pathlib import Path
from typing import Any

from mico_exp.common import require
from mico_exp.common.errors import InputError, first_line


def on_disk(folder: str) -> Any:
    """Load a tokenizer from a folder, by its ``tokenizer.json`` where there is one.

    `AutoTokenizer` of transformers 5 leaves out how that file says that text is normalised and cut
    for several families (DeBERTa, ALBERT, XLNet, XLM-R's kin …), and gives other ids than then.

    Raises:
        InputError: there is none, or it comes with code of its own.
    """
    from transformers import PreTrainedTokenizerFast

    path = require.existing_folder("dataset.records.tokenizer", folder)
    if not (path / "tokenizer.json").is_file():
        return by_class(str(path))
    try:
        return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:  # whatever transformers makes of odd files
        raise InputError(
            f"`dataset.records.tokenizer`: {path} holds no tokenizer: {first_line(error)}"
        ) from error


def gives_types(tokenizer: Any, folder: str) -> bool:
    """Whether a tokenizer's files, or the class that they name, say that it gives token types."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    path = Path(folder).expanduser() / "tokenizer_config.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kind = tokenizer_class_from_name(str(told.get("tokenizer_class"))) or type(tokenizer)
    names: list[str] = told.get("model_input_names") or kind.model_input_names
    return "token_type_ids" in names


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
