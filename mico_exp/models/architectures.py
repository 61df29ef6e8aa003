"""The model architectures, and running many models of one as one.

Axes: M models, P points, F features, C classes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mico_exp.common.errors import InputError
from mico_exp.common.fingerprints import definition

State = Mapping[str, Tensor]
DP_PREFIX = "_module."  # Opacus wraps the model, and its state dict keeps the wrapper's name


class MLP(nn.Module):
    """Fully connected network with tanh between its layers; `widths` from input to classes.

    ``MLP([600, 128, 100])`` is the competition's Purchase-100 model.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (P, C) of inputs (P, F)."""
        logits: Tensor = self.mlp(inputs)
        return logits

    def stack(self, states: Sequence[State]) -> "StackedMLP":
        """Many models of this architecture as one, from their state dicts."""
        names = [name for name, _ in self.named_parameters()]
        return StackedMLP([torch.stack([state[name] for state in states]) for name in names])


class Offers(Protocol):
    """What a model may offer beside its logits. Most offer none of it, and need not.

    A model itself is an `nn.Module` whose file holds its state dict, and that gives logits (P, C)
    of inputs (P, …), or what `logits_of` takes them out of. `can_stack`, `bare`, `traced_part` and
    `ignored_keys` alone look for more.

    stored: the part whose state dict a file holds; where there is none, the whole model.
    traced: the part that gradients are taken of; where there is none, the whole model.
    ignored: keys that a file may have and that say nothing; where there are none, every key counts.
    """

    stored: nn.Module
    traced: nn.Module
    ignored: Sequence[str]

    def stack(self, states: Sequence[State]) -> "Stacked":
        """Many models of this architecture as one, from their state dicts; else each runs alone."""


class Stacked(Protocol):
    """M models of one architecture that are called as one."""

    def __call__(self, inputs: Any, *, own: bool = False) -> Tensor:
        """Logits (M, P, C); inputs (P, …) for all models, or with `own` (M, P, …), each its own."""

    @property
    def count(self) -> int:
        """How many models they are."""

    def widest(self, inputs: Any) -> int:
        """Bytes of the largest layer's output for inputs (P, …): what a batch's size depends on."""


class StackedMLP:
    """M multilayer perceptrons run together.

    parameters: weight (M, out, in) and bias (M, out) of every layer in turn.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)

    @classmethod
    def of_layers(cls, layers: Sequence[tuple[Tensor, Tensor]]) -> "StackedMLP":
        """Stack from pairs of weight and bias, as in `layers`."""
        return cls([tensor for layer in layers for tensor in layer])

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs of weight (M, out, in) and bias (M, out)."""
        return list(zip(self.parameters[::2], self.parameters[1::2], strict=True))

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Input (M, P, width) of every layer in turn, then the logits; inputs (M, P, F)."""
        signals = [inputs]
        for weight, bias in self.layers:
            last = signals[-1] if len(signals) == 1 else signals[-1].tanh_()
            signals.append(torch.baddbmm(bias.unsqueeze(1), last, weight.transpose(1, 2)))
        return signals

    def __call__(self, inputs: Tensor, *, own: bool = False) -> Tensor:
        """Logits (M, P, C) of inputs (P, F) for all models, or with `own` (M, P, F)."""
        if own:
            return self.activations(inputs)[-1]
        # All models see the same points: one large product, twice as fast as a batched one.
        (weight, bias), *others = self.layers
        models, width, features = weight.shape
        flat = torch.addmm(bias.view(-1), inputs, weight.view(models * width, features).T)
        signal = flat.view(len(inputs), models, width).transpose(0, 1)
        return StackedMLP.of_layers(others).activations(signal.tanh_())[-1] if others else signal

    @property
    def count(self) -> int:
        """How many models they are."""
        return len(self.parameters[0])

    def widest(self, inputs: Tensor) -> int:
        """Bytes of the largest layer's output for inputs (P, F)."""
        width = max(bias.shape[1] for _, bias in self.layers)
        return len(inputs) * len(self.parameters[0]) * width * inputs.element_size()

    def states(self) -> list[dict[str, Tensor]]:
        """State dicts of the M models, for `MLP.load_state_dict`."""
        names = [
            f"mlp.{2 * layer}.{part}"
            for layer in range(len(self.layers))
            for part in ("weight", "bias")
        ]
        return [
            {name: stacked[i].clone() for name, stacked in zip(names, self.parameters, strict=True)}
            for i in range(len(self.parameters[0]))
        ]


class CNN(nn.Module):
    """The competition's CIFAR-10 model: images (P, 3, 32, 32) to logits (P, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 128, kernel_size=8, stride=2, padding=3),
            nn.Tanh(),
            nn.MaxPool2d(kernel_size=3, stride=1),
            nn.Conv2d(128, 256, kernel_size=3),
            nn.Tanh(),
            nn.Conv2d(256, 256, kernel_size=3),
            nn.Tanh(),
            nn.AvgPool2d(kernel_size=2),
            nn.Flatten(),
            nn.Linear(6400, 10),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (P, 10) of inputs (P, 3, 32, 32)."""
        logits: Tensor = self.cnn(inputs)
        return logits


class TextClassifier(nn.Module):
    """A network of `transformers` under the contract of this module: batch in, logits out."""

    # Older releases of transformers saved these constant buffers, newer ones do not.
    ignored: Sequence[str] = (
        "roberta.embeddings.position_ids",
        "roberta.embeddings.token_type_ids",
    )

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def stored(self) -> nn.Module:
        """The network, whose state dict a file holds."""
        return self.network

    @property
    def traced(self) -> nn.Module:
        """What gradients are taken of: the classification head, or all where there is none."""
        head: nn.Module = getattr(self.network, "classifier", self.network)
        return head

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (P, C) of ``input_ids`` and ``attention_mask`` (P, L)."""
        return logits_of(self.network(**inputs))


def logits_of(output: Any) -> Tensor:
    """Take the logits (P, C) out of what a network gives: a tensor, or what it calls ``logits``.

    Log-probabilities will do as well: they differ from logits by one number for each point, which
    no metric sees.

    Raises:
        InputError: there is no tensor of floats.
    """
    if isinstance(output, Mapping):
        found = output.get("logits")
    else:
        found = getattr(output, "logits", output)
    if isinstance(found, Tensor) and found.is_floating_point():
        return found
    kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else type(output).__name__
    raise InputError(
        "a network must give logits, a tensor of floats (P, C) or a dictionary with such `logits`, "
        f"got {kind}. `take` of mico_exp.models.interpreted.Interpreted names a part of it."
    )


def bare(model: nn.Module) -> nn.Module:
    """The module whose state dict a model's file holds: what it offers as `stored`, or itself."""
    inner: nn.Module = getattr(model, "stored", model)
    return model if inner is model else bare(inner)


def roberta(folder: Path) -> nn.Module:
    """Make the RoBERTa classifier that ``config.json`` in a model's folder describes."""
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{path} is missing: it says what shape the model has.")
    try:
        return _roberta(path.read_text(encoding="utf-8"))
    except Exception as error:  # whatever transformers makes of an odd configuration
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: does not describe a RoBERTa model: {reason}") from error


# What of a ``config.json`` is read: all that decides RoBERTa's logits, and nothing that makes
# transformers load more. A model that asks for code, of its own or of the hub's, is another model.
SHAPE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "position_embedding_type"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "classifier_dropout", "is_decoder"),
    *("add_cross_attention", "num_labels", "id2label", "label2id"),
)
CODE = (
    *("auto_map", "quantization_config", "kernel_config", "use_kernels"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
)


@cache
def _roberta(config: str) -> nn.Module:
    """Make one network for a hundred folders with the same ``config.json``."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    told = json.loads(config)
    if asked := [key for key in CODE if told.get(key) and told[key] not in ("eager", "sdpa")]:
        raise ValueError(f"`{asked[0]}` asks for code that is not run here.")
    shape = RobertaConfig(**{key: told[key] for key in SHAPE if key in told})
    return TextClassifier(RobertaForSequenceClassification(shape))


@dataclass(frozen=True)
class Architecture:
    """How the models of a data set are made: `make` gives one, untrained, for a model's folder.

    `key` is the hash of its definition.
    """

    make: Callable[[Path], nn.Module]
    key: str

    @classmethod
    def of(cls, option: nn.Module | Callable[[Path], nn.Module]) -> "Architecture":
        """Take a module that serves for all folders, or a function that makes one for a folder."""
        if isinstance(option, nn.Module):
            return cls(partial(_same, option), definition(_anatomy(option)))
        return cls(option, definition(option))


def _anatomy(network: nn.Module) -> list[Any]:
    """All that decides a network's outputs beside what a state dict holds.

    Of every part its class, its plain attributes, what is called before and after it, and its
    buffers that are not saved; of what is saved the names and shapes alone.
    """
    return [[name, *_part(module)] for name, module in network.named_modules()]


def _part(module: nn.Module) -> list[Any]:
    usual = vars(nn.Module()).keys()
    hooks = {
        name: list(vars(module)[name].values()) for name in ("_forward_hooks", "_forward_pre_hooks")
    }
    saved = [*module._parameters.items(), *module._buffers.items()]
    shapes = {
        name: None if one is None else (tuple(one.shape), str(one.dtype)) for name, one in saved
    }
    unsaved = {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
    plain = {name: value for name, value in vars(module).items() if name not in usual}
    return [type(module), plain, hooks, shapes, unsaved]


def _same(module: nn.Module, folder: Path) -> nn.Module:  # noqa: ARG001
    return module


class Alone:
    """One model under the contract of `Stacked`, for architectures that know no faster way."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, inputs: Any, *, own: bool = False) -> Tensor:  # noqa: ARG002
        """Logits (1, P, C) of inputs (P, …), which are both all models' and its own."""
        return logits_of(self.model(inputs)).unsqueeze(0)

    @property
    def count(self) -> int:
        """One."""
        return 1

    def widest(self, inputs: Any) -> int:
        """Bytes of the largest layer's output, found by running the model."""
        seen: list[int] = []

        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.append(output.numel() * output.element_size())

        leaves = [module for module in self.model.modules() if not list(module.children())]
        hooks = [module.register_forward_hook(note) for module in leaves]
        try:
            note(self.model, inputs, logits_of(self.model(inputs)))
        finally:
            for hook in hooks:
                hook.remove()
        return max(seen)


def can_stack(model: nn.Module) -> bool:
    """Say whether many models of the architecture can run as one: whether it offers `stack`."""
    return callable(getattr(type(model), "stack", None))  # layers may be called so as well


def traced_part(model: nn.Module) -> nn.Module:
    """Part of a model that gradients are taken of: what it offers as `traced`, or all of it."""
    part: nn.Module = getattr(model, "traced", model)
    return part


def ignored_keys(model: nn.Module) -> Sequence[str]:
    """Keys of a file that say nothing: what a model offers as `ignored`, or none."""
    keys: Sequence[str] = getattr(model, "ignored", ())
    return keys


def stack(model: nn.Module, states: Sequence[State]) -> Stacked:
    """Many models as one; just one where the architecture cannot stack."""
    if can_stack(model):
        return cast(Offers, model).stack(states)
    (state,) = states
    return Alone(fill(model, state))


def fill(model: nn.Module, state: State) -> nn.Module:
    """Give a model its weights, which will not change again."""
    bare(model).load_state_dict(state)
    return model.eval().requires_grad_(False)
