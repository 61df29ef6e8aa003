"""Runs the project's commands as a user does, in processes of their own.

A process is forked off one that has imported what commands import: that takes most of the time
that a short command needs. ``fresh=True`` starts an interpreter instead.
"""

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path


def run(*arguments, cwd, status=0, fresh=False, **environment):
    """Run ``python -m <arguments>`` in a folder, and check its exit status.

    A variable of the environment that is None is not there.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    wanted = {**inherited, **environment}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    command = [sys.executable, "-m", *arguments]
    if fresh:
        done = subprocess.run(
            command, cwd=cwd, env=wanted, capture_output=True, text=True, check=False
        )
    else:
        done = _forked(command, cwd, wanted)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def _forked(command, cwd, environment):
    with tempfile.TemporaryDirectory() as folder:
        shown = [Path(folder) / name for name in ("out", "err")]
        job = {"arguments": command[2:], "cwd": str(cwd), "environment": environment}
        server = _server(os.getpid())
        server.stdin.write(json.dumps(job | {"shown": list(map(str, shown))}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        texts = [path.read_text(encoding="utf-8") for path in shown]
    return subprocess.CompletedProcess(command, status, *texts)


@functools.cache
def _server(_process):
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    atexit.register(server.stdin.close)
    return server


def _serve():
    """Fork off a process for each job that is read, which gets the job; tell its status."""
    _import_what_commands_do()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def _import_what_commands_do():
    import gc
    import importlib
    import pkgutil

    import torch
    from hydra.core.plugins import Plugins

    import mico_exp

    # What has a guard for `__main__` is a command, which `runpy` is to import.
    for found in pkgutil.walk_packages(mico_exp.__path__, "mico_exp."):
        source = Path(found.module_finder.path) / f"{found.name.rpartition('.')[2]}.py"
        if found.ispkg or '__name__ == "__main__"' not in source.read_text(encoding="utf-8"):
            with contextlib.suppress(ImportError):  # of packages that are optional
                importlib.import_module(found.name)
    for name in (
        "matplotlib.pyplot",
        "mlflow.tracking",
        "mlflow.store.tracking.sqlalchemy_store",
    ):
        importlib.import_module(name)
    torch.optim.SGD([torch.zeros(1)])  # the first one imports the compiler
    Plugins.instance()  # looks for Hydra's plugins, once
    gc.freeze()


def _become(job):
    """Run a job as the interpreter runs ``python -m``; says with which status it ends."""
    import importlib
    import runpy
    import traceback

    for number, path in enumerate(job["shown"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    module, *arguments = job["arguments"]
    own = os.environ.get("PYTHONPATH", "")
    sys.path[:1] = [job["cwd"], *filter(None, own.split(os.pathsep))]
    sys.argv = [module, *arguments]
    importlib.invalidate_caches()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    job = _serve()
    if job is not None:
        ended = _become(job)
        threading._shutdown()  # as the interpreter does, in its order
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)  # taking down what was imported for all takes half a second
