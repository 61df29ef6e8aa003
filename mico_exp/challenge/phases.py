"""The phases of a scenario, by the names of their folders, in the order of their models' numbers.

By themselves, so that whoever needs no more imports no torch.
"""

PHASES = ("train", "dev", "final")
SHADOW = "shadow"  # reference models, which no attack is tried on; a folder beside the phases
SUBMITTED = ("dev", "final")  # whose membership is secret, and what a submission predicts
# What they are called before people: train models, each of them left out, validate an attack.
CALLED = {"train": "validation", "dev": "dev", "final": "final"}
