"""Sentences of SST-2's lengths through a RoBERTa of base size: sorted batches or padding to 67.

    .venv/bin/python benchmarks/sst2_padding.py

Random weights, and random tokens in sentences whose lengths are distributed as SST-2's: about half
of the train set are phrases of fewer than ten tokens. Both ways run by turns in one process.
"""

import statistics
import time

import numpy as np
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from mico_exp.challenge.datasets import Sentences
from mico_exp.models.architectures import Alone, TextClassifier
from mico_exp.scores import metrics
from mico_exp.scores.inference import ModelRunner, Processor

SENTENCES, LONGEST, BATCH, REPEATS = 384, 67, 32, 3


def sentences() -> Sentences:
    random = np.random.default_rng(0)
    lengths = np.clip(np.round(random.lognormal(2.35, 0.62, SENTENCES)), 3, LONGEST).astype(int)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.integers(5, 50_000, starts[-1]).astype(np.int32)
    labels = torch.from_numpy(random.integers(2, size=SENTENCES))
    print(
        f"{SENTENCES} sentences: mean {lengths.mean():.1f} tokens, {(lengths < 10).mean():.0%} "
        f"of fewer than ten, longest {lengths.max()}"
    )
    return Sentences(tokens, starts, labels, 1)


@torch.inference_mode()
def padded(model: TextClassifier, records: Sentences) -> np.ndarray:
    """Score all sentences in their order, each padded to 67 tokens, in batches of 32."""
    found = []
    for indices in torch.arange(SENTENCES).split(BATCH):
        inputs = records.inputs(indices)
        more = LONGEST - inputs["input_ids"].shape[1]
        full = {
            "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, more), value=1),
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, more)),
        }
        found.append(metrics.loss(model(full), records.labels[indices]))
    return torch.cat(found).numpy()


def main() -> None:
    torch.manual_seed(0)
    shape = RobertaConfig(
        vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, num_labels=2
    )
    model = TextClassifier(RobertaForSequenceClassification(shape)).eval()
    records, runner = sentences(), ModelRunner(Processor())
    points = np.arange(SENTENCES)[None]
    ratios, rates = [], []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        ours = runner.scores(Alone(model), records, points, {"loss": metrics.loss})["loss"][0]
        middle = time.perf_counter()
        theirs = padded(model, records)
        ended = time.perf_counter()
        ratios.append((ended - middle) / (middle - started))
        rates.append(SENTENCES / (middle - started))
        difference = np.abs(ours - theirs).max()
    ratios, rates = ratios[1:], rates[1:]  # the first round warms up
    print(f"sentences/s, sorted batches  {statistics.median(rates):.1f}")
    low, high = min(ratios), max(ratios)
    print(f"padding to 67 / sorted       {statistics.median(ratios):.2f} ({low:.2f} - {high:.2f})")
    print(f"largest difference of log p  {difference:.1e}")


if __name__ == "__main__":
    main()
