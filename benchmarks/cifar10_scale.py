"""Images/s through the competition's CNN: extraction, a bare forward loop, and the winner's loop.

    .venv/bin/python benchmarks/cifar10_scale.py [cuda]

All three by turns in one process, on the same images and models. The bare loop calls the module on
slices of a ready tensor, at the batch size and memory layout that the extraction chooses; the
winner's loop reads the images one by one with torchvision's transforms and a DataLoader. Also shows
how the batch size and the layout were chosen, and that models that run one after another are as
fast as models stacked by torch.func.vmap.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mico_exp.challenge import datasets
from mico_exp.models.architectures import CNN, Alone, Architecture
from mico_exp.scores import metrics
from mico_exp.scores.inference import ModelRunner, Processor

IMAGES, BATCH, REPEATS = 2048, 56, 5


class Pictures(Dataset):
    """What torchvision's CIFAR10 does with each image when it is asked for."""

    def __init__(self, records: datasets.Images) -> None:
        self.records = records
        scale = transforms.Normalize(datasets.CIFAR10_MEAN, datasets.CIFAR10_STD)
        self.transform = transforms.Compose([transforms.ToTensor(), scale])

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.records.pixels[index])
        return self.transform(image), int(self.records.labels[index])


def seconds(function: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(random.integers(10, size=IMAGES))
    records = datasets.Images(pixels, labels, datasets.CIFAR10_MEAN, datasets.CIFAR10_STD)
    runner = ModelRunner(Processor(sys.argv[1] if len(sys.argv) > 1 else "auto"))
    device, every = runner.device, torch.arange(IMAGES)
    print(f"{device}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as temporary:
        torch.manual_seed(0)
        torch.save(CNN().state_dict(), Path(temporary) / "model.pt")
        models = runner.load(Architecture.of(CNN()), [Path(temporary)])
    assert isinstance(models, Alone)
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    ready = records.inputs(every).to(device).contiguous(memory_format=layout)
    loader = DataLoader(Pictures(records), batch_size=1024)
    plain = CNN().to(device).eval()
    batch = BATCH if device.type == "cpu" else IMAGES

    def extraction() -> None:
        runner.scores(models, records, np.arange(IMAGES)[None], {"loss": metrics.loss})

    def bare() -> None:
        for some in ready.split(batch):
            models(some)

    def winner() -> None:
        torch.cat([plain(images.to(device)).cpu() for images, _ in loader])

    ways = {"extraction": extraction, "bare loop": bare, "winner's loop": winner}
    rounds = [
        {name: seconds(way, device) for name, way in ways.items()} for _ in range(REPEATS + 1)
    ]
    found = {name: [IMAGES / one[name] for one in rounds[1:]] for name in ways}
    for name, rates in found.items():
        spread = f"({min(rates):.0f} - {max(rates):.0f})"
        print(f"{name:15}{statistics.median(rates):8.0f} images/s {spread}")
    for other in ("bare loop", "winner's loop"):
        ratios = [a / b for a, b in zip(found["extraction"], found[other], strict=True)]
        spread = f"({min(ratios):.2f} - {max(ratios):.2f})"
        print(f"extraction / {other}: {statistics.median(ratios):.2f} {spread}")
    choose(plain, records.inputs(every[:1024]).to(device), device)


def choose(plain: CNN, images: torch.Tensor, device: torch.device) -> None:
    """Print images/s for batch sizes, layouts and four stacked models."""
    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        model = plain.to(memory_format=layout)
        laid = images.contiguous(memory_format=layout)
        for size in (8, 32, 56, 128, 512):
            parts = laid.split(size)
            seconds(lambda: model(parts[0]), device)  # noqa: B023
            took = seconds(lambda: [model(part) for part in parts], device)  # noqa: B023
            print(f"  {name} batch {size:4}: {len(images) / took:6.0f} images/s")
    copies = [CNN().to(device) for _ in range(4)]
    parameters, buffers = torch.func.stack_module_state(copies)

    def one(weights: object, inputs: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(plain, (weights, buffers), (inputs,))

    stacked = torch.func.vmap(one, in_dims=(0, None))
    seconds(lambda: stacked(parameters, images[:32]), device)
    took = seconds(lambda: [stacked(parameters, part) for part in images.split(32)], device)
    print(f"  four models by vmap, batch 32: {4 * len(images) / took:6.0f} images/s")


if __name__ == "__main__":
    main()
