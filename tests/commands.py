"""Runs the project's commands as a user does, in a process of their own."""

import os
import subprocess
import sys


def run(*arguments, cwd, status=0, **environment):
    """Run ``python -m <arguments>`` in a folder, and check its exit status.

    A variable of the environment that is None is not there.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    wanted = {**inherited, **environment}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={name: value for name, value in wanted.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done
