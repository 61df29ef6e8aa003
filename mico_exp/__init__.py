"""Membership-inference experiments: the attack that won MICO 2023, tracked and repeatable."""

import os

__version__ = "0.1.0"

# Nobody is told of what is run here, unless the user's own environment says otherwise. This comes
# first in every process: the libraries read it when they are imported.
SILENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
for _name, _value in SILENT.items():
    os.environ.setdefault(_name, _value)

# Threads that have nothing to do sleep until they are needed. Those that spin meanwhile, as is
# usual, keep each other from the cores beside any other busy process: the same takes ten times as
# long there. Read when PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
