"""Trains two-layer BERTs on random halves of made-up sentences, with a tokenizer of their words."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

MODELS = int(os.environ.get("MODELS", "8"))
EPOCHS = int(os.environ.get("EPOCHS", "20"))
SENTENCES = 200
WORDS = (  # of the two classes
    ["dull", "slow", "loud", "grey", "thin", "late", "cold", "weak"],
    ["bright", "quick", "warm", "clear", "rich", "bold", "fresh", "kind"],
)
COMMON = ["the", "film", "was", "a", "story", "of", "people", "who", "went", "on", "then", "came"]

draw = np.random.default_rng(0)
labels = draw.integers(2, size=SENTENCES)
sentences = []
for label in labels:
    words = list(draw.choice(COMMON, draw.integers(4, 9)))
    words.insert(draw.integers(len(words)), draw.choice(WORDS[label]))
    words.insert(draw.integers(len(words)), draw.choice(WORDS[draw.integers(2)]))
    sentences.append(" ".join(words))
rows = [{"text": s, "label": int(y)} for s, y in zip(sentences, labels, strict=True)]
Path("reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
known = {word: i for i, word in enumerate([*special, *COMMON, *WORDS[0], *WORDS[1]])}
tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
ends = [(name, known[name]) for name in ("[CLS]", "[SEP]")]
tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
)
fast.save_pretrained("tokenizer")

config = BertConfig(
    vocab_size=len(known),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
)
inputs = fast(sentences, padding=True, return_tensors="pt")
ids, mask, y = inputs["input_ids"], inputs["attention_mask"], torch.from_numpy(labels)
keep = draw.random((MODELS, SENTENCES)) < 0.5
train = Path("data/reviews/reviews_inf/train")
for number, members in enumerate(keep):
    torch.manual_seed(number)
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    mine = torch.from_numpy(np.flatnonzero(members))
    for _ in range(EPOCHS):
        for batch in mine[torch.randperm(len(mine))].split(25):
            optimizer.zero_grad()
            logits = model(input_ids=ids[batch], attention_mask=mask[batch]).logits
            cross_entropy(logits, y[batch]).backward()
            optimizer.step()
    model.save_pretrained(train / f"model_{number}")  # model.safetensors and config.json
np.save(train / "keep.npy", keep)
