#!/bin/sh
# torch.load does not compare a weights file with the checksums that the file itself holds.
#
# Version: torch 2.15.0, CPython 3.11, Linux x86-64.
# Behaviour: torch.save writes a zip archive, whose entries have a CRC-32 each. When one bit of a
#   weight is another, Python's zipfile names the damaged entry, and torch.load, with
#   weights_only=True or mmap=True too, gives the other weight without a word.
# Seen: "zipfile: model/data/0", and for both ways of loading "1.0 became 1.5, no error".
# Why it matters: a copied or mirrored model with a damaged byte is evaluated as if it were sound.
#   Who hashes the file anyway can call zipfile.ZipFile(path).testzip() in the same pass.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import struct
import zipfile
from pathlib import Path

import torch

path = Path("model.pt")
torch.save({"weight": torch.full((100,), 1.0)}, path)
content = bytearray(path.read_bytes())
place = content.index(struct.pack("<f", 1.0) * 100)
content[place + 2] ^= 0x40  # one bit of the first weight: 1.0 becomes 1.5
path.write_bytes(content)

with zipfile.ZipFile(path) as archive:
    damaged = archive.testzip()
print("zipfile:", damaged)
assert damaged is not None and damaged.endswith("data/0")
for options in ({"weights_only": True}, {"weights_only": True, "mmap": True}):
    weight = torch.load(path, **options)["weight"]
    print(*options, f": 1.0 became {weight[0].item()}, no error")
    assert weight[0].item() == 1.5 and weight[1].item() == 1.0
PYTHON
echo "as described"
