"""What reference models are worth where out models are scarce, as on SST-2.

    .venv/bin/python benchmarks/references.py [FOLDER] [--sentences TABLE] [--epochs 10] [--seed 0]

A point of SST-2 has 1.28 out models among 100 train models, since a model leaves out 872 of 68,221
sentences. Here 60 train and 60 final models (an embedding of words, their mean, two dense layers)
leave out 51 of 2,400, so that it has as many. TABLE has columns `sentence` and `label` (CSV, TSV,
parquet): the first 2,400 rows in a random order are taken; without one, sentences are generated,
whose labels are partly noise. EPOCHS tell how much the models know by heart. To them come reference
models of each kind; the cell of every row is chosen among `METRICS` × `FORMULAS` by the train
models' validation, and scored on the final models, which took no part in it. Intervals are a paired
bootstrap over those, 95 %.

What has been trained stays in the folder (a temporary one unless named).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from mico_exp.attacks.evidence import Evidence
from mico_exp.challenge.points import challenge_points
from mico_exp.challenge.protocol import Sizes
from mico_exp.challenge.records import Records
from mico_exp.challenge.texts import from_file
from mico_exp.challenge.tree import find_scenario, load_scenario, scenario_folder
from mico_exp.challenge.truth import read_truth
from mico_exp.config.making import make
from mico_exp.config.metrics import all_metrics
from mico_exp.config.typed import OPTIONS
from mico_exp.models.architectures import Architecture
from mico_exp.models.workers import Local
from mico_exp.results.cell import calibrate_phases
from mico_exp.results.scoring import RANKING_FPR
from mico_exp.results.selection import highest
from mico_exp.results.statistics import Ranked, compare, draw, interval
from mico_exp.scores.extraction import Extraction
from mico_exp.scores.inference import Processor
from mico_exp.scores.store import ScoreStore
from mico_exp.training.building import build
from mico_exp.training.drawing import Among
from mico_exp.training.recipe import Fresh, Recipe, planned
from mico_exp.training.shadow import Pool, Run, groups_for

RECORDS, WORDS, WIDTH = 2400, 3000, 32
SIZES = Sizes(RECORDS, training=2349, challenge=50)
MODELS = {"train": 60, "dev": 0, "final": 60}
METRICS = ("loss", "confidence", "logit")
FORMULAS = ("none", "0", "1", "2", "lira_online", "lira_offline", "lira_shrunk", "rmia_online")
POOLS = (4, 8, 16, 32, 64)
OTHERS = (("like_train", None, 32), ("leave_out", "final", 1))
DRAWS = 2000
TREE = ("text", "text_inf")


class Words(nn.Module):
    """Logits of a sentence by the mean of its words' embeddings."""

    def __init__(self, words: int = WORDS, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, 2) of token ids and mask (B, T)."""
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        total = (self.embedding(inputs["input_ids"]) * mask).sum(dim=1)
        found: Tensor = self.layers(total / mask.sum(dim=1).clamp(min=1))
        return found


def sentences(table: Path | None) -> tuple[list[str], list[int]]:
    """Sentences and labels: of a table in a random order, or generated."""
    random = np.random.default_rng(0)
    if table is not None:
        read = {".parquet": pd.read_parquet, ".tsv": partial(pd.read_csv, sep="\t")}
        found = read.get(table.suffix, pd.read_csv)(table)
        found = found.iloc[random.permutation(len(found))[:RECORDS]]
        return found["sentence"].tolist(), found["label"].astype(int).tolist()
    weights = random.normal(size=WORDS)
    lengths = random.integers(4, 40, size=RECORDS)
    drawn = [random.zipf(1.3, size=length) % WORDS for length in lengths]
    sums = np.array([weights[one].mean() for one in drawn])
    labels = sums + 0.5 * sums.std() * random.normal(size=RECORDS) > np.median(sums)
    return [" ".join(f"w{i}" for i in one) for one in drawn], labels.astype(int).tolist()


def load(folder: Path, table: Path | None) -> Records:
    """Write sentences and a tokenizer of their commonest words, and read them as anyone's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text, labels = sentences(table)
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=WORDS, special_tokens=["<pad>", "<unk>"])
    made.train_from_iterator(text, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", model_input_names=["input_ids"]
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    pd.DataFrame({"sentence": text, "label": labels}).to_parquet(folder / "text.parquet")
    return from_file(
        folder / "text.parquet",
        text="sentence",
        label="label",
        tokenizer=folder / "tokenizer",
        max_length=67,
        token_types=False,
    )


def recipe(seed: int, epochs: int, **settings: Any) -> Recipe:
    """How all models are trained."""
    usual = {"sizes": SIZES, "models": MODELS, "challenge": TREE[0], "scenario": TREE[1]}
    return planned(
        epochs=epochs,
        batch_size=96,
        optimizer=partial(torch.optim.AdamW, lr=5e-3),
        privacy=None,
        network=Fresh(Words, {"network": "Words"}),
        seed=seed,
        **usual | settings,
    )


@dataclass(frozen=True, eq=False)
class Row:
    """What came of some reference models.

    cell: chosen by validation. tpr: of it on final models. draws: (R,) of that. of: cell → TPR of
    each one, with draws. out: out models of a point. seconds: of training and of asking them.
    """

    cell: str
    of: dict[str, tuple[float, np.ndarray]]
    out: float
    references: int

    @property
    def tpr(self) -> float:
        """TPR of the chosen cell."""
        return self.of[self.cell][0]

    def gain(self, before: "Row", mine: str, theirs: str) -> str:
        """How much higher a cell is than another one of another row, with its interval."""
        (one, draws), (other, others) = self.of[mine], before.of[theirs]
        low, high = interval(draws - others)
        return f"{one - other:+.4f} [{low:+.4f}, {high:+.4f}]"


class World:
    """The built models, and reference models of several kinds beside them."""

    def __init__(self, folder: Path, records: Records, seed: int, epochs: int) -> None:
        self.folder, self.records, self.seed, self.epochs = folder, records, seed, epochs
        self.store = ScoreStore(folder / "store")
        with initialize_config_dir(str(OPTIONS), version_base="1.3"):
            self.metrics = {name: options_metric(name) for name in METRICS}
            self.formulas = {
                name: make(compose("config", overrides=[f"formula='{name}'"]).formula.function)
                for name in FORMULAS
            }

    def root(self, name: str) -> Path:
        """A tree of the same models for references of one kind."""
        place = scenario_folder(self.folder / name, *TREE)
        place.mkdir(parents=True, exist_ok=True)
        built = scenario_folder(self.folder / "built", *TREE)
        for phase in ("train", "final", "build.json"):
            if not (place / phase).exists():
                (place / phase).symlink_to(built / phase)
        return self.folder / name

    def add(self, name: str, kind: str, target: str | None, models: int) -> None:
        """Train references of a kind, so many in all or for each target."""
        root = self.root(name)
        found = find_scenario(root, *TREE, SIZES)
        how, drawn = partial(recipe, self.seed, self.epochs), Among.of(RECORDS, None, "out")
        groups = groups_for(found, Run(kind, None, models), target, drawn, how)
        Pool(scenario_folder(root, *TREE), self.seed).train(groups, self.records, "cpu", Local())

    def row(self, name: str) -> Row:
        """Ask all models, and judge all cells."""
        root = self.root(name)
        scenario = load_scenario(root, *TREE, SIZES)
        points = challenge_points(scenario)
        asked = scenario, points, self.records, Architecture.of(Words()), self.store
        extraction = Extraction(*asked, Processor("cpu"))
        extraction.compute(self.metrics)
        labels = self.records.labels[points.unique].numpy()
        truth = read_truth(self.folder / "built", scenario)["final"]
        weights = draw(len(truth), DRAWS)
        validation, of = {}, {}
        for metric, formula in product(METRICS, FORMULAS):
            if formula == "rmia_online" and metric != "confidence":
                continue
            scores = {metric: extraction.read(metric, self.metrics[metric])}
            evidence = Evidence(scores, points, labels)  # type: ignore[arg-type]
            found = calibrate_phases(evidence, self.formulas[formula])
            ranked = Ranked(truth, found["final"].predictions)
            cell = f"{metric}/{formula}"
            draws = ranked.tpr_at(RANKING_FPR, weights)
            of[cell] = ranked.curve.tpr_at(RANKING_FPR), draws
            validation[cell] = points.solution, found["train"].predictions
        best = compare(validation.values(), highest, count=300, halvings=0).chosen
        out = float((~points.is_member).sum(axis=0).mean())
        return Row(list(validation)[best], of, out, len(scenario.shadow))


def options_metric(name: str) -> Any:
    return all_metrics(disclosed=False)[name]


def rows(world: World) -> Iterator[tuple[str, Row, float]]:
    """Every row with its name and the seconds that it took in all."""
    yield "none", world.row("none"), 0.0
    spent = 0.0
    for count in POOLS:
        started = time.perf_counter()
        world.add("pool", "pool", None, count)
        found = world.row("pool")
        spent += time.perf_counter() - started
        yield f"pool, {count}", found, spent
    for kind, target, count in OTHERS:
        started = time.perf_counter()
        world.add(kind, kind, target, count)
        found = world.row(kind)
        told = f"{kind}, one a target" if target else f"{kind}, {count}"
        yield told, found, time.perf_counter() - started


def main() -> None:
    """Train, ask, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--sentences", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    records = load(folder, given.sentences)
    started = time.perf_counter()
    build(folder / "built", recipe(given.seed, given.epochs), records)
    each = (time.perf_counter() - started) / sum(MODELS.values())
    print(f"{sum(MODELS.values())} models, {each:.2f} s each", flush=True)
    world, before = World(folder, records, given.seed, given.epochs), None
    print(
        "references | models | out models a point | seconds | cell | TPR@0.1 | gain | "
        "of the cell before\n---|---|---|---|---|---|---|---"
    )
    for name, row, seconds in rows(world):
        before = before or row
        gain = row.gain(before, row.cell, before.cell)
        alike = row.gain(before, before.cell, before.cell)
        print(
            f"{name} | {row.references} | {row.out:.2f} | {seconds:.0f} | {row.cell} | "
            f"{row.tpr:.4f} | {gain} | {alike}",
            flush=True,
        )
        every = ", ".join(f"{cell} {one:.4f}" for cell, (one, _) in row.of.items())
        print(f"  {every}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
