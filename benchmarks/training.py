"""Training here beside the same mechanism one by one with Opacus; ratios in one run.

    .venv/bin/python benchmarks/training.py [cnn purchase digits roberta] [--rounds 3] [--real OUT]
    .venv/bin/python benchmarks/training.py --func [--rounds 3]

Poisson sampling, q = batch / n, clipping norm, noise and the divisor are the same on both sides:
Opacus gives gradients by its hooks (`GradSampleModule`) and clips and adds noise by its
`DPOptimizer`, and `PrivacyEngine` has no part in it. Without privacy it is PyTorch's own loop.
Each measurement is a process of its own with one thread, in turns; seconds are the processor's,
without imports and without what is done once before the first step. What would take an hour is
told of fewer models and steps of the same kind, and multiplied. Memory is the most that training
took beside what lay there before.

Records are random ones of the right shape, or real with ``--real``, a folder with `health`
(Purchase-100's CSV), `fashion` (images.npy, labels.npy), and `movie` with `tokenizer`.

``--func`` sets the gradients of a step of many convolutional networks, one after another as they
are trained here, beside all of them at once by `torch.func`: `vmap` over stacked parameters, and
with privacy over records too. Both are in one process with one thread, by turns.
"""

import argparse
import functools
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import ROBERTA_BASE, bits, images, sentences
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from transformers import RobertaConfig, RobertaForSequenceClassification

from mico_exp.challenge import datasets
from mico_exp.challenge.records import Records, inputs_at
from mico_exp.models.architectures import CNN, MLP, TextClassifier
from mico_exp.training import stacked
from mico_exp.training.loop import train_networks, trained
from mico_exp.training.per_sample import study
from mico_exp.training.steps import Draws, Plan, Privacy

CPU = torch.device("cpu")
MB = 2**20
SMALL_ROBERTA = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class Row:
    """One comparison.

    models: of the whole task. steps: of each model, likewise. some, few: models and steps that are
    measured here, and of Opacus one model. longest: tokens that Opacus has sentences padded to.
    pieces: records at once for Opacus.
    """

    make: Callable[[], nn.Module]
    records: Callable[[Path | None], Records]
    optimizer: Callable[..., Any]
    privacy: Privacy | None
    records_each: int
    batch: int
    models: int
    steps: int
    some: int
    few: int
    pieces: int
    target: float
    longest: int | None = None


def digits(_: Path | None) -> Records:
    return datasets.digits()


def health(real: Path | None) -> Records:
    return datasets.purchase100(str(real / "health")) if real else bits(20_000)


def pictures(real: Path | None) -> Records:
    if real is None:
        return images(6_000)
    pixels, labels = np.load(real / "fashion/images.npy"), np.load(real / "fashion/labels.npy")
    pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[..., None].repeat(3, -1)
    colours = datasets.CIFAR10_MEAN, datasets.CIFAR10_STD
    return datasets.Images(pixels, torch.from_numpy(labels), *colours)


def texts(real: Path | None) -> Records:
    if real is None:
        return sentences(8_000)
    return datasets.sst2(str(real / "movie"), tokenizer=str(real / "tokenizer"))


def roberta() -> nn.Module:
    shape = RobertaConfig(**ROBERTA_BASE | SMALL_ROBERTA | {"intermediate_size": 512})
    return TextClassifier(RobertaForSequenceClassification(shape))


SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = functools.partial(torch.optim.Adam, lr=0.001)
ADAMW = functools.partial(torch.optim.AdamW, lr=5e-4)
DIGITS = (lambda: MLP([64, 64, 10])), digits, SGD
ROWS = {
    "digits inf": Row(*DIGITS, None, 300, 32, 200, 400, 50, 400, 64, 15),
    "digits dp": Row(*DIGITS, Privacy(1.3, 1.0), 300, 32, 400, 400, 50, 400, 64, 15),
    "purchase": Row(
        *((lambda: MLP([600, 128, 100])), health, ADAM, Privacy(0.6, 2.6)),
        *(10_000, 512, 50, 200, 50, 5, 1024, 5),
    ),
    "cnn": Row(CNN, pictures, SGD, Privacy(1.0, 2.6), 5_000, 128, 8, 20, 1, 3, 256, 1.5),
    "roberta": Row(
        *(roberta, texts, ADAMW, Privacy(0.6, 0.1)),
        *(5_000, 128, 1, 20, 1, 3, 16, 2, 67),
    ),
}


# ---------------------------------------------------------------- both sides


def ours(row: Row, records: Records) -> float:
    """Processor's seconds of the whole task; the first step is left out."""
    networks = [row.make() for _ in range(row.some)]
    plan = Plan(row.few + 1, row.batch, row.optimizer)
    own = [np.arange(row.records_each)] * row.some
    sources = [torch.Generator().manual_seed(i) for i in range(row.some)]
    began: list[float] = []

    def tick(*_: Any) -> None:
        began.append(time.process_time())

    if row.records is digits:  # as its builder has it: one generator for all of a chunk
        mlps = networks[0].stack([one.state_dict() for one in networks])
        some = torch.from_numpy(np.stack(own))
        given = records.inputs(some), records.labels[some]
        stacked.train(mlps, *given, plan, sources[0], row.privacy, tick)
    else:
        train_networks(networks, records, own, plan, sources, row.privacy, CPU, tick)
    assert len(began) == row.few + 1
    return (began[-1] - began[0]) * row.models / row.some * row.steps / row.few


def opacus(row: Row, records: Records) -> float:
    """The same of one model after another."""
    network = row.make().train()
    plan = Plan(row.few + 1, row.batch, row.optimizer)
    batches = Draws(torch.Generator().manual_seed(0), CPU).batches(
        plan, row.records_each, row.privacy
    )
    step = private(row, network) if row.privacy else plain(row, network)
    began: list[float] = []
    for positions in batches:
        inputs = padded(inputs_at(records, positions), row.longest)
        step(inputs, records.labels[positions])
        began.append(time.process_time())
    return (began[-1] - began[0]) * row.models * row.steps / row.few


def padded(inputs: Any, longest: int | None) -> Any:
    """Sentences as the competition has them, all of one length."""
    if longest is None:
        return inputs
    width = longest - inputs["input_ids"].shape[1]
    fill = {"input_ids": ROBERTA_BASE["pad_token_id"], "attention_mask": 0}
    return {
        name: nn.functional.pad(one, (0, width), value=fill[name]) for name, one in inputs.items()
    }


def plain(row: Row, network: nn.Module) -> Callable[[Any, torch.Tensor], None]:
    optimizer = row.optimizer(list(network.parameters()))

    def step(inputs: Any, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(network(inputs), labels).backward()
        optimizer.step()

    return step


def private(row: Row, network: nn.Module) -> Callable[[Any, torch.Tensor], None]:
    assert row.privacy is not None
    wrapped = GradSampleModule(network)
    optimizer = DPOptimizer(
        row.optimizer([one for one in network.parameters() if one.requires_grad]),
        noise_multiplier=row.privacy.noise_multiplier,
        max_grad_norm=row.privacy.clip_norm,
        expected_batch_size=row.batch,
    )

    def step(inputs: Any, labels: torch.Tensor) -> None:
        parts = list(torch.arange(len(labels)).split(row.pieces))
        for i, some in enumerate(parts):
            optimizer.zero_grad()
            whole = isinstance(inputs, torch.Tensor)
            given = inputs[some] if whole else {name: one[some] for name, one in inputs.items()}
            cross_entropy(wrapped(given), labels[some]).backward()
            optimizer.signal_skip_step(i < len(parts) - 1)
            optimizer.step()

    return step


# ---------------------------------------------------------------- networks at once, by torch.func


class Tiny(nn.Sequential):
    """A convolution for digits, 1,490 numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))


class Small(nn.Sequential):
    """Two convolutions for Fashion-MNIST, 20,490 numbers."""

    def __init__(self) -> None:
        first = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        second = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        super().__init__(*first, *second, nn.Flatten(), nn.Linear(1568, 10))


AT_ONCE = [  # class, shape of a record, networks, records of a batch
    (Tiny, (1, 8, 8), 8, 32),
    (Tiny, (1, 8, 8), 50, 32),
    (Small, (1, 28, 28), 8, 32),
    (CNN, (3, 32, 32), 8, 32),
    (CNN, (3, 32, 32), 8, 128),
]
AT_ONCE_CLIP, AT_ONCE_RECORDS = 2.6, 64  # of which all gradients are written out, of all networks


def in_turn(
    networks: list[nn.Module], inputs: torch.Tensor, labels: torch.Tensor, private: bool
) -> Callable[[], None]:
    """A step's gradients of each network (M, B, …), as the trainer finds them."""
    if private:
        make = study(networks[0], trained(networks[0]), inputs[0, :3], labels[0, :3])
        ways = [make(network, trained(network)) for network in networks]

    def step() -> None:
        for i, network in enumerate(networks):
            parameters = list(network.parameters())
            if private:
                sums = [torch.zeros_like(one) for one in parameters]
                ways[i](inputs[i], labels[i], AT_ONCE_CLIP, sums)
            else:
                torch.autograd.grad(cross_entropy(network(inputs[i]), labels[i]), parameters)

    return step


def at_once(
    networks: list[nn.Module], inputs: torch.Tensor, labels: torch.Tensor, private: bool
) -> Callable[[], None]:
    """The same by `torch.func`."""
    base = networks[0]
    stack = {
        name: torch.stack([dict(one.named_parameters())[name].detach() for one in networks])
        for name, _ in base.named_parameters()
    }

    def loss(state: dict[str, torch.Tensor], some: torch.Tensor, label: torch.Tensor) -> Any:
        return cross_entropy(functional_call(base, state, (some,)), label)

    def of_record(state: dict[str, torch.Tensor], one: torch.Tensor, label: torch.Tensor) -> Any:
        return loss(state, one[None], label[None])

    def step() -> None:
        if not private:
            vmap(grad(loss))(stack, inputs, labels)
            return
        size = max(1, AT_ONCE_RECORDS // len(networks))
        each = vmap(vmap(grad(of_record), (None, 0, 0)))
        for some, label in zip(inputs.split(size, 1), labels.split(size, 1), strict=True):
            found = each(stack, some, label).values()
            norms = torch.stack([one.flatten(2).square().sum(2) for one in found]).sum(0).sqrt()
            factors = (AT_ONCE_CLIP / (norms + 1e-6)).clamp(max=1)
            _ = [torch.einsum("mb,mb...->m...", factors, one) for one in found]

    return step


def together(rounds: int) -> None:
    """Print seconds of both for all networks' gradients of a step, and their ratio."""
    warnings.filterwarnings("ignore", message="There is a performance drop")
    torch.set_num_threads(1)
    for (make, shape, count, batch), private in itertools.product(AT_ONCE, (False, True)):
        networks = [make().train() for _ in range(count)]
        given = torch.randn(count, batch, *shape), torch.randint(10, (count, batch))
        steps = [side(networks, *given, private) for side in (in_turn, at_once)]
        found = []
        for _ in range(rounds + 1):
            ends = [time.process_time()]
            for step in steps:
                step()
                ends.append(time.process_time())
            found.append((ends[1] - ends[0], ends[2] - ends[1]))
        one, other = map(statistics.median, zip(*found[1:], strict=True))  # the first warms up
        ratios = [one / other for one, other in found[1:]]
        what = f"{count} {make.__name__}, batch {batch}{', DP' if private else ''}"
        print(
            f"{what:26} in turn {one:.4f} s, by torch.func {other:.4f} s; ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
            flush=True,
        )


# ---------------------------------------------------------------- measuring


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(name: str, side: str, real: Path | None) -> dict[str, float]:
    """One side, in this process."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    row = ROWS[name]
    records = row.records(real)
    row.optimizer([torch.zeros(1)])  # imports much
    before = peak()
    took = ours(row, records) if side == "ours" else opacus(row, records)
    return {"seconds": took, "memory": peak() - before}


def apart(name: str, side: str, real: Path | None) -> dict[str, float]:
    """One side, in a process of its own."""
    command = [sys.executable, __file__, name, "--side", side]
    command += ["--real", str(real)] if real else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compared(names: list[str], rounds: int, real: Path | None) -> None:
    """Print both sides of rows that make one task together, and their ratio."""
    ratios, sides = [], {"ours": [], "opacus": []}
    for _ in range(rounds):
        for side, found in sides.items():
            parts = [apart(name, side, real) for name in names]
            took = sum(one["seconds"] for one in parts)
            found.append((took, max(one["memory"] for one in parts)))
        ratios.append(sides["opacus"][-1][0] / sides["ours"][-1][0])
    row = ROWS[names[0]]
    told = {
        side: f"{statistics.median(took for took, _ in found):.1f} s, "
        f"{max(memory for _, memory in found):.0f} MB"
        for side, found in sides.items()
    }
    ratio = statistics.median(ratios)
    print(
        f"{' + '.join(names):24} ours {told['ours']}; one by one with Opacus {told['opacus']}; "
        f"ratio {ratio:.2f} ({min(ratios):.2f} - {max(ratios):.2f}), to reach {row.target}",
        flush=True,
    )


TASKS = {
    "digits": ["digits inf", "digits dp"],
    "purchase": ["purchase"],
    "cnn": ["cnn"],
    "roberta": ["roberta"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Training beside Opacus, one by one.")
    parser.add_argument("tasks", nargs="*", default=[*TASKS], help=", ".join(TASKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--real", type=Path, help="folder of real data sets")
    parser.add_argument("--func", action="store_true", help="networks at once by torch.func")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.func:
        together(asked.rounds)
        return
    if asked.side:
        print(json.dumps(measured(asked.tasks[0], asked.side, asked.real)))
        return
    for task in asked.tasks:
        compared(TASKS[task], asked.rounds, asked.real)


if __name__ == "__main__":
    main()
