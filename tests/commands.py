"""Runs the project's commands as a user does, in a process of their own."""

import os
import subprocess
import sys


def run(*arguments, cwd, status=0, **environment):
    """Run ``python -m <arguments>`` in a folder, and check its exit status."""
    inherited = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done
