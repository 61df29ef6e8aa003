#!/bin/sh
# MLflow's telemetry: the general opt-out DO_NOT_TRACK=1 works, or does not, and what is written.
#
# Version: mlflow 3.17.2, CPython 3.11, Linux x86-64, no CI variables set.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mlflow==3.17.2
cd "$folder"
cat > ask.py <<'PYTHON'
import os
os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///runs.db"
asked = set()
import socket
real = socket.getaddrinfo
def listed(host, *rest, **more):
    asked.add(host)
    raise OSError("no network here")
socket.getaddrinfo = listed
import mlflow
import time
with mlflow.start_run():
    mlflow.log_metric("x", 1.0)
time.sleep(3)
print(sorted(map(str, asked)))
PYTHON
for setting in "NONE=1" "DO_NOT_TRACK=1" "MLFLOW_DISABLE_TELEMETRY=true"; do
    mkdir -p "home_$setting"
    printf '%s: ' "$setting"
    env -i PATH="$PATH" HOME="$folder/home_$setting" "$setting" "$folder/venv/bin/python" ask.py 2>/dev/null
    find "home_$setting" -type f
done
