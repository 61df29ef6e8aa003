"""Trains random forests on random halves of 600 digits, and writes what they give as a table."""

import os

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

MODELS = int(os.environ.get("MODELS", "16"))

digits = load_digits()
RECORDS = int(os.environ.get("RECORDS", "600"))
x, y = digits.data[:RECORDS], digits.target[:RECORDS]
tables = []
for number, mask in enumerate(np.random.default_rng(0).random((MODELS, len(y))) < 0.5):
    forest = RandomForestClassifier(n_estimators=50, random_state=number).fit(x[mask], y[mask])
    table = pd.DataFrame(forest.predict_proba(x)).add_prefix("p_")
    tables.append(table.assign(model=number, record=range(len(y)), member=mask * 1, label=y))
pd.concat(tables).to_csv("outputs.csv", index=False)
