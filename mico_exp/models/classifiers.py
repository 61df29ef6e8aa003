"""Sequence classifiers of `transformers`, made by their own ``config.json``, and LoRA adapters.

Nothing is fetched, and no code runs but that of the installed packages. Weights are read by
`mico_exp.models.weights`, not by `from_pretrained`, which goes on with what is missing.
"""

import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from mico_exp.common import require
from mico_exp.common.errors import InputError, first_line, printable
from mico_exp.common.fingerprints import FileFingerprints, Status, digest
from mico_exp.models.architectures import CODE, TextClassifier, fill
from mico_exp.models.states import fitted, say
from mico_exp.models.weights import fingerprint, model_files, read_state, weights_file

Made = TypeVar("Made")
COMPILING = ("mra", "yoso")  # these build or fetch kernels when they are made
KERNELS = ("experts_implementation", "backbone", "use_pretrained_backbone", "use_timm_backbone")
BUILT_IN = ("eager", "sdpa")  # ways of attention that are torch's own
# What says nothing of a model's logits, or how they come: all are float32, in an object.
NAMES = (
    *("architectures", "model_type", "name_or_path", "transformers_version", "dtype"),
    *("torch_dtype", "output_attentions", "output_hidden_states", "return_dict", "torchscript"),
    *("use_return_dict", "attn_implementation", "finetuning_task"),
)
OPTIONAL = ("attention_mask", "token_type_ids")  # a network may know none of these
ADAPTER = "adapter_config.json"
LORA = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias", "use_rslora"),
    *("fan_in_fan_out", "modules_to_save", "layers_to_transform", "layers_pattern", "lora_bias"),
    *("rank_pattern", "alpha_pattern", "use_dora", "task_type"),
)
# What says where an adapter comes from, or how it was begun: its weights are in its file.
LORA_NAMES = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
    *("revision", "init_lora_weights"),
)
BEGUN = (None, True, False, "gaussian", "orthogonal")  # other ways change the base


class SequenceClassifier(TextClassifier):
    """A sequence classifier of `transformers`; what is padded gets the padding id of its own."""

    ignored = ()  # `states.fitted` knows what there may be

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (P, C) of ``input_ids`` and, where the network knows it, a mask (P, L)."""
        given = self._padded(dict(inputs))
        for name in _unknown(type(self.classifier)) & given.keys():
            say(f"{type(self.classifier).__name__} knows no `{name}`: it goes without.")
            del given[name]
        return super().forward(given)

    @property
    def classifier(self) -> nn.Module:
        """The network of `transformers` itself."""
        return self.network

    def _padded(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        config: Any = self.classifier.config
        pad: int | None = config.pad_token_id
        if pad is None or not {"input_ids", "attention_mask"} <= given.keys():
            return given
        ids = given["input_ids"]
        return {**given, "input_ids": ids.masked_fill(given["attention_mask"] == 0, pad)}


def _unknown(kind: Any) -> set[str]:
    """Inputs that a kind of network has no use for."""
    return set(OPTIONAL) - inspect.signature(kind.forward).parameters.keys()


def sequence_classifier(folder: Path) -> nn.Module:
    """Make the sequence classifier that ``config.json`` in a model's folder describes.

    Raises:
        InputError: there is none, it is no sequence classifier, or it asks for code.
    """
    path = folder / "config.json"
    return _described(path, lambda told: _network(json.dumps(_shape(told), sort_keys=True)))


def _described(path: Path, make: Callable[[dict[str, Any]], Made]) -> Made:
    """Make what a JSON file describes."""
    try:
        told = json.loads(require.file(path).read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise ValueError(f"must hold a dictionary, got a {type(told).__name__}.")
        return make(told)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: it says what shape the model has.") from error
    except InputError:
        raise
    except Exception as error:  # whatever transformers makes of an odd configuration
        raise InputError(
            f"{path}: describes no model that can be made here: {first_line(error)}"
        ) from error


def _shape(told: Mapping[str, Any]) -> dict[str, Any]:
    """What of a ``config.json`` decides a model's logits.

    Raises:
        ValueError: it asks for code, or for a model that is no sequence classifier.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    for key, value in _entries(told):
        if key in (*CODE, *KERNELS) and value and value not in BUILT_IN:
            raise ValueError(f"`{key}` asks for code that is not run here.")
    kind = told.get("model_type")
    if kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES or kind in COMPILING:
        raise ValueError(
            "`model_type` must be that of a sequence classifier of transformers that needs no "
            f"kernels, got {printable(repr(kind), 80)}."
        )
    kept = {k: v for k, v in told.items() if k not in NAMES and not k.startswith("_")}
    return {"model_type": kind, **kept}


def _entries(told: Any) -> Iterator[tuple[str, Any]]:
    """All keys of nested dictionaries, with what they hold."""
    if isinstance(told, dict):
        yield from told.items()
    for part in told.values() if isinstance(told, dict) else told if isinstance(told, list) else ():
        yield from _entries(part)


@cache
def _network(shape: str) -> SequenceClassifier:
    """Make one network for all folders with the same shape."""
    return SequenceClassifier(_untrained(json.loads(shape)))


def _untrained(shape: dict[str, Any]) -> nn.Module:
    from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    kinds: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    config = CONFIG_MAPPING[shape.pop("model_type")](**shape)
    network: nn.Module = kinds[type(config)](config)
    return network.float()


class Pretrained:
    """Makes sequence classifiers that begin as a pretrained network does, each with a fresh head.

    Args:
        folder: with its ``config.json`` and weights.
        num_labels: classes of the head, where ``config.json`` says otherwise.
    """

    def __init__(self, folder: str, num_labels: int | None = None) -> None:
        if num_labels is not None:
            require.whole("dataset.recipe.network.num_labels", num_labels, 2, other="null")
        self.folder, self.num_labels = folder, num_labels

    def __call__(self) -> nn.Module:
        """Make one; its head is drawn from PyTorch's own generator.

        Raises:
            InputError: the folder is not there, or does not hold such a network.
        """
        network = _untrained(dict(_described(self._place / "config.json", self._shape)))
        body = f"{network.base_model_prefix}."
        own = network.state_dict()
        heads = {name.partition(".")[0] for name in own if not name.startswith(body)}
        network.load_state_dict(_base_state(self._place, network, heads))
        return SequenceClassifier(network)

    @property
    def files(self) -> dict[str, str]:
        """What lies beside a model's weights: its ``config.json``."""
        told = _described(self._place / "config.json", self._relabelled)
        return {"config.json": json.dumps(told, indent=2)}

    @property
    def described(self) -> dict[str, Any]:
        """What tells its networks from others, wherever the folder lies."""
        return {"pretrained": _contents(self._place), "num_labels": self.num_labels}

    @property
    def _place(self) -> Path:
        return require.folder("dataset.recipe.network.folder", self.folder)

    def _shape(self, told: dict[str, Any]) -> dict[str, Any]:
        return _shape(self._relabelled(told))

    def _relabelled(self, told: dict[str, Any]) -> dict[str, Any]:
        return told if self.num_labels is None else _with_labels(told, self.num_labels)


def _with_labels(shape: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The same shape with so many classes."""
    kept = {key: value for key, value in shape.items() if key not in ("id2label", "label2id")}
    return {**kept, "num_labels": count}


class LoRA:
    """Makes sequence classifiers of one base and of the LoRA adapters in models' folders.

    A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``), as
    `peft` writes them.

    Args:
        base: folder of the base, with its ``config.json`` and weights. Its head may be another
            task's where the adapters bring one.
        num_labels: classes of the head, where the base's ``config.json`` says otherwise.

    Raises:
        InputError: the base is not there or cannot be used, or `peft` is not installed.
    """

    def __init__(self, base: str, num_labels: int | None = None) -> None:
        if num_labels is not None:
            require.whole("dataset.model.num_labels", num_labels, 2, other="null")
        _peft()
        self.num_labels = num_labels
        self.folder = str(require.folder("dataset.model.base", base))
        self.weights = _contents(Path(self.folder))  # a part of what scores hang on

    def __call__(self, folder: Path) -> nn.Module:
        """Make the network for an adapter's folder.

        Raises:
            InputError: it describes no LoRA adapter of that base.
        """
        where = self.folder, self.num_labels, self.weights
        return _described(
            folder / ADAPTER, lambda told: _adapted(*where, json.dumps(_lora(told), sort_keys=True))
        )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "LoRA adapters need `peft`, which is not installed: install mico_exp[lora]."
        ) from error
    return peft


def _contents(base: Path) -> str:
    """Hash of all that decides what a base computes, anew when a file has changed."""
    statuses = [(path, Status.of(path)) for path in model_files(base)]
    return _hashed(base, tuple(statuses))


@cache
def _hashed(base: Path, _statuses: tuple[Any, ...]) -> str:
    return digest(*fingerprint(base, FileFingerprints(Path())).files)  # remembered nowhere


def _lora(told: Mapping[str, Any]) -> dict[str, Any]:
    """What of an ``adapter_config.json`` decides what an adapter computes.

    Raises:
        ValueError: it is no plain LoRA.
    """
    usual = _peft().LoraConfig()
    if told.get("peft_type") != "LORA":
        raise ValueError(f"`peft_type` must be LORA, got {printable(repr(told.get('peft_type')))}.")
    if told.get("init_lora_weights") not in BEGUN:
        raise ValueError(
            "`init_lora_weights` must be a way that leaves the base as it is, got "
            f"{printable(repr(told['init_lora_weights']), 80)}: save the model merged."
        )
    for key, value in told.items():
        known = key in (*LORA, *LORA_NAMES)
        if not known and value and value != getattr(usual, key, None):
            raise ValueError(f"`{printable(key)}` is no part of a plain LoRA: save it merged.")
    return {key: told[key] for key in LORA if key in told}


class Adapted(SequenceClassifier):
    """A base with one adapter; its file holds the adapter alone."""

    @property
    def stored(self) -> nn.Module:
        """What a file's state dict is of."""
        return Adapter(self.network)

    @property
    def classifier(self) -> nn.Module:
        """The network of `transformers` within."""
        inner: nn.Module = self.network.get_base_model()  # type: ignore[operator]
        return inner

    @property
    def traced(self) -> nn.Module:
        """What gradients are taken of: the base with its adapter."""
        return self.network


class Adapter(nn.Module):
    """The weights of an adapter, under the keys that `peft` gives them in a file."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """Weights by the keys of a file."""
        found: dict[str, Any] = _peft().get_peft_model_state_dict(
            self.network, save_embedding_layers=False
        )
        return found

    def get_input_embeddings(self) -> nn.Module:
        """The base's, which says what token ids there are."""
        found: nn.Module = self.network.get_base_model().get_input_embeddings()  # type: ignore[operator]
        return found

    def load_state_dict(self, state: Mapping[str, Any], *_: Any, **__: Any) -> None:  # type: ignore[override]
        """Take weights, all of them.

        Raises:
            RuntimeError: a key is missing or unexpected.
        """
        own = self.state_dict().keys()
        for what, names in (("missing", own - state.keys()), ("unexpected", state.keys() - own)):
            if names:
                raise RuntimeError(f"key `{printable(sorted(names)[0])}` is {what}.")
        _peft().set_peft_model_state_dict(self.network, dict(state))


@cache
def _adapted(base: str, num_labels: int | None, _weights: str, adapter: str) -> Adapted:
    """Make one network for all folders with the same kind of adapter."""
    told, folder = json.loads(adapter), Path(base)
    shape = _described(folder / "config.json", _shape)
    if num_labels is not None:
        shape = _with_labels(shape, num_labels)
    network = _untrained(shape)
    heads = {"classifier", "score", *(told.get("modules_to_save") or ())}  # as peft has it
    fill(network, _base_state(folder, network, heads))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks by a name that transformers ends
        return Adapted(_peft().get_peft_model(network, _peft().LoraConfig(**told)))


def _base_state(folder: Path, network: nn.Module, heads: Set[str]) -> dict[str, Tensor]:
    """Weights of a base; heads that the adapter brings are left as they are in the network.

    Raises:
        InputError: the base cannot be read, or is none of this network.
    """
    path, own = weights_file(folder), network.state_dict()
    state, body = read_state(path), f"{network.base_model_prefix}."
    if not any(name.startswith(body) for name in state):
        state = {body + name: tensor for name, tensor in state.items()}
    # The head of another task, or a pooler that this one goes without, is no part of it.
    known = [name for name in state if name in own or name.startswith(body)]
    kept = {name: state[name] for name in known if not name.startswith(f"{body}pooler.")}
    kept |= {name: state[name] for name in known if name in own}
    brought = [name for name in own if name.partition(".")[0] in heads]
    return fitted(path, {**kept, **{name: own[name] for name in brought}}, network)
