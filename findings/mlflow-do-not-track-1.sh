#!/bin/sh
# DO_NOT_TRACK=1, as the convention has it, does not turn MLflow's telemetry off; "true" does.
#
# Version: mlflow 3.17.2, CPython 3.11, Linux x86-64, without a CI variable.
# Behaviour: on its first run in a process MLflow asks the network for its telemetry's settings and
#   keeps an installation id in ~/.config/mlflow/telemetry.json. MLFLOW_DISABLE_TELEMETRY=true and
#   DO_NOT_TRACK=true stop both. The convention (consoledonottrack.com) is DO_NOT_TRACK=1, and with
#   that value nothing is stopped.
# Seen: hosts asked and files written, for each setting:
#   NONE=1                          config.mlflow-telemetry.io   telemetry.json
#   DO_NOT_TRACK=1                  config.mlflow-telemetry.io   telemetry.json
#   DO_NOT_TRACK=true               -                            -
#   MLFLOW_DISABLE_TELEMETRY=true   -                            -
# Why it matters: whoever audits models on confidential data sets one of these and relies on it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mlflow==3.17.2
cat > "$folder/run.py" <<'PYTHON'
import os
import socket
import time

asked = set()


def note(host, *rest, **more):
    asked.add(str(host))
    raise OSError("names are noted here, and not looked up")


socket.getaddrinfo = note
os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///runs.db"

import mlflow

with mlflow.start_run():
    mlflow.log_metric("x", 1.0)
time.sleep(12)  # it asks from a thread of its own
print(" ".join(sorted(asked)) or "-")
PYTHON
cd "$folder"
for setting in NONE=1 DO_NOT_TRACK=1 DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true; do
    home="$folder/home_$setting"
    mkdir "$home"
    rm -f runs.db
    hosts=$(env -i PATH="$PATH" HOME="$home" "$setting" venv/bin/python run.py 2>/dev/null)
    files=$(find "$home" -name telemetry.json | wc -l)
    echo "$setting: asked $hosts, $files installation id"
    case $setting in
        *=1) test "$hosts" = config.mlflow-telemetry.io -a "$files" -eq 1 ;;
        *) test "$hosts" = - -a "$files" -eq 0 ;;
    esac
done
echo "as described"
