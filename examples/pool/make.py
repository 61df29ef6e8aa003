"""Makes a pool as LiRA has it: logits of many models for all records, and who was trained on what.

Nothing is trained: a model gives a record's class the higher a logit if it is a member.
"""

import os

import numpy as np

MODELS = int(os.environ.get("MODELS", "64"))
RECORDS, CLASSES = int(os.environ.get("RECORDS", "2000")), 10

draw = np.random.default_rng(0)
keep = draw.random((MODELS, RECORDS)) < 0.5
labels = draw.integers(CLASSES, size=RECORDS)
hard = draw.normal(3, 2, RECORDS)
logits = draw.normal(0, 1, (MODELS, RECORDS, CLASSES)).astype(np.float32)
logits[:, np.arange(RECORDS), labels] += hard + keep * draw.exponential(1, RECORDS)
np.savez("pool.npz", logits=logits, keep=keep, labels=labels)
