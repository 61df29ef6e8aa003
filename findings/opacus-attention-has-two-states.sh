#!/bin/sh
# Opacus's attention has one state dict by itself and another one inside a network.
#
# Version: opacus 1.6.0, torch 2.15.0, CPython 3.11, Linux x86-64.
# Behaviour: DPMultiheadAttention.state_dict() gives the four names of torch's own layer
#   (in_proj_weight, ...), whose query, key and value are one tensor, and it reads such a state. As a
#   part of a network the same layer gives eight other names (qlinear.weight, klinear.weight, ...),
#   and refuses the four. Its load_state_dict takes no `strict`, and returns None where torch
#   promises the missing and unexpected keys.
# Seen: "alone 4 names, inside 8, in common beside out_proj: []", a TypeError for strict=True, None,
#   "by itself it reads the state of torch's layer", and a RuntimeError inside a network.
# Why it matters: weights of a network that was trained without privacy do not load into the same
#   network made ready for DP training, though they do layer by layer; and a tool that compares the
#   keys of a file with those of the layer, or looks at what load_state_dict returns, fails.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 opacus==1.6.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from opacus.layers import DPMultiheadAttention
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = DPMultiheadAttention(8, 2)


network, alone = Network(), DPMultiheadAttention(8, 2)
inside = {name.removeprefix("attention.") for name in network.state_dict()}
names = set(alone.state_dict())
both = {name for name in inside & names if not name.startswith("out_proj")}
print(f"alone {len(names)} names, inside {len(inside)}, in common beside out_proj: {sorted(both)}")
assert (len(names), len(inside), both) == (4, 8, set())
assert names == set(nn.MultiheadAttention(8, 2).state_dict())

try:
    alone.load_state_dict(alone.state_dict(), strict=True)
    raise AssertionError("it takes strict")
except TypeError as error:
    print("strict=True:", error)
found = alone.load_state_dict(alone.state_dict())
print("load_state_dict returns", found)
assert found is None

usual = Network()
usual.attention = nn.MultiheadAttention(8, 2)
assert alone.load_state_dict(usual.attention.state_dict()) is None
print("by itself it reads the state of torch's layer")
assert not any(network.load_state_dict(network.state_dict()))  # nothing missing or unexpected
try:
    network.load_state_dict(usual.state_dict())
    raise AssertionError("it reads the other state")
except RuntimeError as error:
    print("inside a network:", str(error).splitlines()[1].strip()[:60])
PYTHON
echo "as described"
