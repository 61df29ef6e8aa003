"""What a GPU does: the tests marked `gpu`, extraction beside a bare loop, a whole track; one JSON.

    .venv/bin/python benchmarks/gpu.py [--out gpu.json]

At most five minutes on one card, with nothing but a checkout and its packages. Weights and records
are random, and nothing is fetched. Exit status 0 if all tests pass and nothing breaks, 1 if not,
77 where there is no GPU, with the reason. A target that is missed is told, and is no failure.
``--device cpu --small`` runs all of it small on a processor, as a test of the script itself.

A figure is of models in turn at the same points. The first one's seconds have the inputs prepared
and copied, which later ones find there; the bare loop is the module called on batches of the same
size that lie ready on the card, with the same precision. The ratio is that of 100 models, the
train models of a track: 100 · bare / (first + 99 · later).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from mico_exp.challenge import datasets, protocol
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.records import Records, inputs_at
from mico_exp.challenge.tree import load_scenario, write_solution
from mico_exp.models.architectures import CNN, MLP, Architecture, bare, roberta
from mico_exp.models.devices import allow_tf32, describe, open_device
from mico_exp.models.workers import Local
from mico_exp.runs.provenance import code_version
from mico_exp.scores import metrics
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import PRECISIONS, Processor, Shard, Work, runner_on
from mico_exp.scores.stacks import MODELS_AT_ONCE
from mico_exp.scores.store import ScoreStore
from mico_exp.training import stacked
from mico_exp.training.loop import train_networks
from mico_exp.training.steps import Plan, Privacy

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = 77  # the exit status that Automake and Meson take for it
LIMIT, TESTS_LIMIT = 300.0, 140.0  # seconds
ROUNDS, MODELS, TRACK = 3, 4, 100
RECIPE, EVERY = 20.0, 20  # seconds of a recipe, and steps between looks at the card's clock
COMPETITION = 4.0  # models an hour: 15 minutes of a GPU each
SECONDS_A_MODEL = 2.0  # with slower cards, fewer points
METRICS = {"loss": metrics.loss, "confidence": metrics.confidence}
CIFAR10, SMALL_TRACK = Sizes(60_000, 50_000, 100), Sizes(60, 30, 2)
ROBERTA_BASE = {
    "model_type": "roberta",
    "vocab_size": 50_265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "num_labels": 2,
}
ROBERTA_SMALL = ROBERTA_BASE | {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 48}


@dataclass
class Card:
    """What computes, and by which software."""

    name: str
    driver: str
    memory_bytes: int
    capability: str
    torch: str
    cuda: str
    cudnn: str
    python: str
    cores: int


@dataclass
class Tests:
    """How the tests marked `gpu` ended."""

    passed: int
    failed: list[str]
    skipped: list[str]
    seconds: float


@dataclass
class Figure:
    """Extraction of one architecture in one precision beside a bare loop.

    first_s, later_s, bare_s: seconds of a model (of 25 MLPs at once); medians.
    """

    name: str
    precision: str
    unit: str
    points: int
    batch: int
    rate: float
    bare_rate: float
    ratio: float
    ratio_range: list[float]
    first_s: float
    later_s: float
    bare_s: float
    peak_bytes: int
    target: float | None


@dataclass
class Layout:
    """A bare loop of the CNN with the channels of its images and weights first or last."""

    precision: str
    channels: str
    rate: float
    unit: str = "images/s"


@dataclass
class Track:
    """CIFAR-10's track from models on disk to scores in the store; a target for 200 models only."""

    models: int
    points: int
    seconds: float
    target_s: float | None
    unit: str = "s"


@dataclass
class Training:
    """MLPs of the embedded challenge, trained 50 at a time by DP-SGD or SGD."""

    privacy: bool
    models: int
    steps: int
    rate: float
    unit: str = "models/s"


@dataclass
class Recipe:
    """MICO's CNN trained by the competition's recipe, some steps of it.

    rate: models an hour, of steps like these; to be set beside the competition's 15 minutes of a
    GPU for each model. track_h: hours that 200 models take.
    """

    scenario: str
    precision: str
    measured: int
    steps: int
    steps_a_second: float
    rate: float
    ratio: float
    track_h: float
    peak_bytes: int
    target: float | None
    unit: str = "models/h"


@dataclass
class Report:
    """All of it, as it is written; stages: seconds of each."""

    card: Card
    code: str
    small: bool
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    tests: Tests | None = None
    figures: list[Figure] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    track: Track | None = None
    training: list[Training] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


# ---------------------------------------------------------------- card, clock and tests


def card(device: torch.device) -> Card:
    capability, memory = "", 0
    if device.type == "cuda":
        told = torch.cuda.get_device_properties(device)
        capability, memory = f"{told.major}.{told.minor}", told.total_memory
    versions = torch.__version__, str(torch.version.cuda), str(torch.backends.cudnn.version())
    where = describe(device), driver(device), memory, capability
    return Card(*where, *versions, platform.python_version(), os.cpu_count() or 1)


def driver(device: torch.device) -> str:
    tool = shutil.which("nvidia-smi")
    if device.type == "cpu" or tool is None:
        return ""
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return (told.stdout.splitlines() or [""])[0].strip()


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """How long work takes until the card, too, is done."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_tests(files: list[str], device: str, limit: float) -> Tests:
    """Run tests in a process of their own, and read how each ended."""
    started = time.perf_counter()
    environment = os.environ | {"MICO_EXP_TEST_DEVICE": device}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", *files, f"--junitxml={found}"]
        try:
            done = subprocess.run(
                [*command, "-p", "no:cacheprovider"],
                cwd=ROOT,
                env=environment,
                timeout=limit,
                stdout=sys.stderr,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Tests(0, [f"no end within {limit:.0f} s"], [], limit)
        passed, failed, skipped = outcomes(found) if found.exists() else (0, [], [])
    if done.returncode and not failed:
        failed = [f"pytest ended with status {done.returncode}: is it installed?"]
    return Tests(passed, failed, skipped, time.perf_counter() - started)


def outcomes(file: Path) -> tuple[int, list[str], list[str]]:
    """How many tests passed, and the names of those that failed and were skipped, each with why."""
    passed, failed, skipped = 0, [], []
    for case in ElementTree.parse(file).iter("testcase"):
        wrong = [one for one in case if one.tag in ("failure", "error")]
        left = case.find("skipped")
        told = (wrong or [left])[0]
        line = "" if told is None else f"{case.get('name')}: {told.get('message', '')}"[:300]
        if wrong:
            failed.append(line)
        elif left is not None:
            skipped.append(line)
        else:
            passed += 1
    return passed, failed, skipped


# ---------------------------------------------------------------- records and models


def images(count: int) -> Records:
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
    labels = torch.from_numpy(random.integers(10, size=count))
    return datasets.Images(pixels, labels, datasets.CIFAR10_MEAN, datasets.CIFAR10_STD)


def sentences(count: int) -> Records:
    """Random tokens in sentences whose lengths are distributed as SST-2's."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.round(random.lognormal(2.35, 0.62, count)), 3, 67).astype(int)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.integers(5, 50_000, starts[-1]).astype(np.int32)
    return datasets.Sentences(tokens, starts, torch.from_numpy(random.integers(2, size=count)), 1)


def bits(count: int) -> Records:
    random = np.random.default_rng(0)
    packed = random.integers(256, size=(count, 76), dtype=np.uint8)
    packed[:, 0] %= 100
    return datasets.Bits(packed, 600, "random")


def write_models(folder: Path, make: Any, count: int, config: dict[str, Any]) -> list[Path]:
    """Write models that share their random weights: of a large one the file is there once."""
    folders = [folder / f"model_{i}" for i in range(count)]
    for one in folders:
        one.mkdir(parents=True)
        (one / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    network = bare(make(folders[0])).cpu()  # RoBERTa's is one for all, and may have run already
    torch.save(network.state_dict(), folders[0] / "model.pt")
    for other in folders[1:]:
        os.link(folders[0] / "model.pt", other / "model.pt")
    return folders


@dataclass(frozen=True)
class Family:
    """An architecture with records of its kind."""

    name: str
    unit: str
    make: Any  # as an option gives it: a module that serves for all folders, or of a folder
    records: Callable[[int], Records]
    points: int
    together: int = 1
    config: dict[str, Any] = field(default_factory=dict)
    target: float | None = None


def families(small: bool) -> list[Family]:
    """The three of the competition: points as many as its train models are asked at."""
    text = ROBERTA_SMALL if small else ROBERTA_BASE
    cnn, words, mlps = (8, 48, 200) if small else (29_200, 29_900, 18_300)
    purchase = "MLPs of Purchase-100", "records/s, of all models", MLP([600, 128, 100])
    return [
        Family("MICO's CNN", "images/s", CNN(), images, cnn, target=0.9),
        Family("RoBERTa-base", "sentences/s", roberta, sentences, words, config=text, target=0.9),
        Family(*purchase, bits, mlps, together=MODELS_AT_ONCE),
    ]


# ---------------------------------------------------------------- figures


class Measured:
    """One family in one precision on one device, ready to be timed."""

    def __init__(self, family: Family, device: str, precision: str, folder: Path) -> None:
        self.family, self.processor = family, Processor(device, precision)
        self.runner = runner_on(self.processor)
        self.device, self.records = self.runner.device, family.records(family.points)
        self.architecture = Architecture.of(family.make)
        self.together = family.together
        count = self.together * MODELS
        self.folders = write_models(folder, self.architecture.make, count, family.config)
        self.models = self.runner.load(self.architecture, self.folders[: self.together])
        self.points = np.arange(family.points)

    @torch.no_grad()
    def prepare(self) -> None:
        """Lay the batches of an extraction ready on the device."""
        sizes = self.records.sizes(self.points)
        per_size = self.runner.bytes_per_size(
            self.models, self.records, self.points, sizes, shared=True
        )
        self.cut = [self.points[some] for some in self.runner.batches.cut(sizes, per_size)]
        wanted = map(torch.from_numpy, self.cut)
        self.ready = [self.runner.kept.moved(inputs_at(self.records, one)) for one in wanted]

    @torch.no_grad()
    def bare(self) -> None:
        """Forward passes of one model, or of those that are stacked, and nothing else."""
        allow_tf32(self.processor.precision == "tf32")
        coarse = self.processor.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=coarse):
            for inputs in self.ready:
                self.models(inputs)

    def fit(self) -> None:
        """Take fewer points on a card where all of them take too long."""
        self.prepare()
        self.bare()  # warms up
        took = seconds(self.device, self.bare)
        if took > SECONDS_A_MODEL:
            count = max(1000, int(len(self.points) * SECONDS_A_MODEL / took))
            self.points = self.points[:count]
            self.prepare()

    def extract(self, order: np.ndarray) -> list[float]:
        """Seconds until each model's scores are there; other points than the round before."""
        work = Work(self.architecture, self.records, METRICS, self.processor)
        points = np.broadcast_to(self.points[order], (self.together, len(order)))
        groups = np.array_split(np.array(self.folders, object), MODELS)
        shards = (Shard(tuple(group), points) for group in groups)
        times = [time.perf_counter(), *(time.perf_counter() for _ in Local().map(work, shards))]
        return list(np.diff(times))

    def figure(self, rounds: int) -> Figure:
        """Extraction and the bare loop by turns, after one round that warms up."""
        self.fit()
        random, found = np.random.default_rng(0), []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(rounds + 1):
            first, *later = self.extract(random.permutation(len(self.points)))
            each = statistics.median(later)
            found.append((first, each, seconds(self.device, self.bare)))
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        ratios = [TRACK * loop / (first + (TRACK - 1) * each) for first, each, loop in found[1:]]
        first, each, loop = (statistics.median(column) for column in zip(*found[1:], strict=True))
        asked, ratio = self.together * len(self.points), statistics.median(ratios)
        return Figure(
            name=self.family.name,
            precision=self.processor.precision,
            unit=self.family.unit,
            points=len(self.points),
            batch=len(self.cut[0]),
            rate=asked / each,
            bare_rate=asked / loop,
            ratio=ratio,
            ratio_range=[min(ratios), max(ratios)],
            first_s=first,
            later_s=each,
            bare_s=loop,
            peak_bytes=peak,
            target=self.family.target if self.processor.precision == "float32" else None,
        )


def figure(family: Family, device: str, precision: str, rounds: int) -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        found = Measured(family, device, precision, Path(folder)).figure(rounds)
    low, high = found.ratio_range
    print(
        f"{found.name:22}{found.precision:10}{found.rate:14,.0f} {found.unit}; bare "
        f"{found.bare_rate:,.0f}; ratio {found.ratio:.2f} ({low:.2f} - {high:.2f})"
        f"{missed(found.target is not None and found.ratio < found.target)}"
    )
    return found


def missed(really: bool) -> str:
    return "  MISSED" if really else ""


@torch.no_grad()
def layouts(device: torch.device, small: bool) -> list[Layout]:
    """Time the CNN with channels first and last: `ModelRunner` chooses by precision."""
    found, records = [], images(4 if small else 8192)
    for precision in PRECISIONS[: 1 if small else None]:
        allow_tf32(precision == "tf32")
        for name, layout in (("first", torch.contiguous_format), ("last", torch.channels_last)):
            model = CNN().eval().to(device).to(memory_format=layout)
            ready = records.inputs(torch.arange(len(records.labels))).to(device)
            ready = ready.contiguous(memory_format=layout)
            coarse = precision == "bfloat16"
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=coarse):
                took = [seconds(device, lambda: model(ready)) for _ in range(4)]  # noqa: B023
            found.append(Layout(precision, name, len(ready) / statistics.median(took[1:])))
            print(f"  channels {name:6}{precision:10}{found[-1].rate:14,.0f} images/s")
    return found


# ---------------------------------------------------------------- a whole track, and training


def write_track(root: Path, sizes: Sizes, counts: dict[str, int]) -> None:
    """Write CIFAR-10's track as the competition has it, of random models."""
    random, number = np.random.default_rng(0), 0
    for phase, count in counts.items():
        for _ in range(count):
            place = root / "cifar10" / "cifar10_inf" / phase / f"model_{number}"
            place.mkdir(parents=True)
            torch.manual_seed(number)
            torch.save(CNN().state_dict(), place / "model.pt")
            seeds = [int(seed) for seed in random.integers(2**63 - 1, size=3)]
            (place / "seed_challenge").write_text(str(seeds[0]))
            if phase == "train":
                (place / "seed_training").write_text(str(seeds[1]))
                (place / "seed_membership").write_text(str(seeds[2]))
                solution = protocol.split(sizes, *seeds).solution
                (place / "solution.csv").write_text(write_solution(solution))
            number += 1


def track(device: str, small: bool, share: float) -> Track:
    """Extract a track's scores, or a share of its models' where the card is slow."""
    sizes = SMALL_TRACK if small else CIFAR10
    full = {"train": 2, "dev": 2, "final": 2} if small else {"train": 100, "dev": 50, "final": 50}
    counts = {phase: max(2, int(count * share)) for phase, count in full.items()}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_track(root, sizes, counts)
        records = images(sizes.records)
        scenario = load_scenario(root, "cifar10", "cifar10_inf", sizes)
        points, made = challenge_points(scenario), Architecture.of(CNN())
        store, processor = ScoreStore(root / "store"), Processor(device)
        job = Extraction(scenario, points, records, made, store, processor)
        took = seconds(open_device(device), lambda: job.compute(METRICS))
    models, target = sum(counts.values()), 60.0 if counts == full and not small else None
    found = Track(models, len(points.unique), took, target)
    print(
        f"{models} CNNs at {found.points:,} points: {took:.1f} s"
        f"{missed(target is not None and took > target)}"
    )
    return found


def trained(device: torch.device, small: bool) -> list[Training]:
    """Train models of the embedded challenge, without and with DP-SGD."""
    digits, steps, found = datasets.digits(), 4 if small else 400, []
    models = 50
    order = torch.rand(models, 1797, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    own = order[:, :300]
    inputs, labels = digits.features[own].to(device), digits.labels[own].to(device)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    for privacy in (None, Privacy(1.0, 1.0)):
        source = torch.Generator(device).manual_seed(0)
        plan = Plan(steps, 32, optimizer)

        def once() -> None:
            mlps = stacked.initial_mlps(models, [64, 64, 10], source)  # noqa: B023
            stacked.train(mlps, inputs, labels, plan, source, privacy)  # noqa: B023

        once()
        rate = models / seconds(device, once)
        found.append(Training(privacy is not None, models, steps, rate))
        print(f"training{' by DP-SGD' if privacy else '':12}{rate:10.1f} models/s")
    return found


def recipe(device: torch.device, private: bool, limit: float, small: bool) -> Recipe:
    """Train MICO's CNN by its recipe, `inf` or `hi`, for so many seconds at most."""
    records = images(40 if small else 60_000)
    n, epochs, batch = (32, 1, 4) if small else (50_000, 50, 512 if private else 32)
    whole = -(-n // batch) * epochs
    ticks: list[float] = []

    def tick(_: Any) -> None:
        if len(ticks) % EVERY == 0:
            wait(device)
        ticks.append(time.perf_counter())
        if ticks[-1] - ticks[0] > limit and not small:
            raise TimeoutError

    rate = partial(torch.optim.SGD, lr=0.5 if private else 0.005)
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.96)
    plan = Plan(4 if small else whole, batch, rate, schedule)
    asked = records, [np.arange(n)], plan, [torch.Generator().manual_seed(0)]
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(TimeoutError):
        train_networks([CNN()], *asked, Privacy(0.698, 2.6) if private else None, device, tick)
    wait(device)
    warm = min(EVERY, len(ticks) // 2)
    speed = (len(ticks) - 1 - warm) / (time.perf_counter() - ticks[warm])
    an_hour = 3600 * speed / whole
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    found = Recipe(
        *("hi" if private else "inf", "float32", len(ticks), whole, speed, an_hour),
        *(an_hour / COMPETITION, 200 / an_hour, peak, None if small else 10.0),
    )
    late = missed(found.target is not None and found.ratio < found.target)
    print(
        f"MICO's CNN, {found.scenario}: {speed:.1f} steps/s, {an_hour:.1f} models/h of {whole:,} "
        f"steps, {found.ratio:.1f} times the competition's; 200 in {found.track_h:.1f} h{late}"
    )
    return found


# ---------------------------------------------------------------- all of it


class Stages:
    """Runs one thing after another within the limit; what breaks is noted, and the rest goes on."""

    def __init__(self, report: Report) -> None:
        self.report, self.started = report, time.perf_counter()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return LIMIT - (time.perf_counter() - self.started)

    def run(self, name: str, needs: float, stage: Callable[[], object]) -> None:
        """Run a stage that needs so many seconds, if there is time for it."""
        if self.left < needs:
            self.report.left_out[name] = f"{self.left:.0f} s were left of {LIMIT:.0f}"
            return
        began = time.perf_counter()
        try:
            stage()
        except Exception as error:
            traceback.print_exc()
            self.report.errors[name] = f"{type(error).__name__}: {error}"
        self.report.stages[name] = time.perf_counter() - began
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(report: Report, device: str, small: bool, tests: bool) -> None:
    stages, place = Stages(report), open_device(device)

    def run_marked() -> None:
        files = ["tests/test_gpu.py", "-m", "gpu"]
        report.tests = run_tests(files, device, TESTS_LIMIT)

    def whole() -> None:
        rate = next((one.rate for one in report.figures if "CNN" in one.name), 0.0)
        share = 1.0 if small else min(1.0, 0.6 * stages.left * rate / (TRACK * 29_200))
        report.track = track(device, small, share)

    if tests:
        stages.run("tests", TESTS_LIMIT / 2, run_marked)
    *others, mlps = families(small)
    for family in (*others, mlps):
        rounds = 1 if small else ROUNDS
        stages.run(
            f"{family.name}, float32",
            20,
            lambda: report.figures.append(figure(family, device, "float32", rounds)),  # noqa: B023
        )
    stages.run("track", 30, whole)
    stages.run("training", 10, lambda: report.training.extend(trained(place, small)))
    for private in (False, True):
        stages.run(
            f"recipe {'hi' if private else 'inf'}",
            RECIPE + 5,
            lambda: report.recipes.append(recipe(place, private, RECIPE, small)),  # noqa: B023
        )
    stages.run("layouts", 10, lambda: report.layouts.extend(layouts(place, small)))
    for precision in PRECISIONS[1 : 2 if small else None]:
        for family in others:
            stages.run(
                f"{family.name}, {precision}",
                25,
                lambda: report.figures.append(figure(family, device, precision, 1)),  # noqa: B023
            )
    report.seconds = time.perf_counter() - stages.started


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a GPU does here, as one JSON.")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file to write")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script")
    parser.add_argument("--small", action="store_true", help="all of it small")
    parser.add_argument("--no-tests", action="store_true", help="figures alone")
    asked = parser.parse_args(arguments)
    if asked.device != "cpu" and not torch.cuda.is_available():
        built = f"of CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        print(f"skipped: no GPU can be used here by torch {torch.__version__}, a build {built}")
        return SKIPPED
    report = Report(card(open_device(asked.device)), code_version(), asked.small)
    print(f"{report.card.name}, driver {report.card.driver or '-'}, torch {report.card.torch}")
    measure(report, asked.device, asked.small, not asked.no_tests)
    asked.out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    for name, why in {**report.errors, **report.left_out}.items():
        print(f"{name}: {why}")
    failed = report.tests.failed if report.tests else []
    if report.tests:
        print(f"tests: {report.tests.passed} passed, {len(failed)} failed")
    print(f"{asked.out}: {report.seconds:.0f} s")
    return 1 if failed or report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
