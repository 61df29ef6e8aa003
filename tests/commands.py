"""Runs the project's commands as a user does, in processes of their own.

A process is forked off one that has imported what commands import: that takes most of the time
that a short command needs. ``fresh=True`` starts an interpreter instead.
"""

import atexit
import fcntl
import functools
import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, suppress
from pathlib import Path

HERE = Path(__file__).parent
TRACED = sys.gettrace() is not None  # as for coverage: Hydra then shows the trace of an error
IMPORTED = (  # by functions of ours and of libraries, once they are called
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin",
    "email.headerregistry",
    "hydra._internal.logging_config",
    "matplotlib.pyplot",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "opacus.accountants",
    "pytest",  # by test modules of which a process calls a function
    "scipy.stats",
    "sklearn.datasets",
    "torchvision.datasets",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.roberta.tokenization_roberta",
)


def run(*arguments, cwd, status=0, fresh=False, **environment):
    """Run ``python -m <arguments>`` in a folder, and check its exit status.

    A variable of the environment that is None is not there.
    """
    if fresh:
        command = [sys.executable, *_as_typed(arguments)]
        done = subprocess.run(
            command,
            cwd=cwd,
            env=_environment(environment),
            capture_output=True,
            text=True,
            check=False,
        )
    else:
        done = start(*arguments, cwd=cwd, **environment).ended()
    assert done.returncode == status, done.stdout + done.stderr
    return done


def warm():
    """Start the process that others are forked off, which then imports beside the first tests."""
    _server(os.getpid())


def start(*arguments, cwd, **environment):
    """Start ``python -m <arguments>``, or ``python -c <code> <arguments>``, and do not wait."""
    return Started(_as_typed(arguments), cwd, _environment(environment))


def call(function, *arguments, cwd=HERE):
    """Start a function of a test module, which is given texts."""
    code = f"import sys; from {function.__module__} import {function.__name__} as called; "
    code += "called(*sys.argv[1:])"
    return start("-c", code, *map(str, arguments), cwd=cwd, PYTHONPATH=str(HERE))


def _as_typed(arguments):
    return list(arguments) if arguments[0] == "-c" else ["-m", *arguments]


def _environment(wanted):
    inherited = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return {name: value for name, value in (inherited | wanted).items() if value is not None}


class Started:
    """A process that was forked off the one that is warm."""

    def __init__(self, command, cwd, environment):
        self.args = [sys.executable, *command]
        self._shown = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - until it ends
        readable, writable = os.pipe()
        self._told = os.fdopen(readable)
        job = {"command": command, "cwd": str(cwd), "environment": environment}
        with tempfile.TemporaryFile() as written:
            written.write(json.dumps(job).encode())
            written.flush()
            files = [written.fileno(), *(file.fileno() for file in self._shown), writable]
            socket.send_fds(_server(os.getpid())[0], [b"."], files)
        os.close(writable)
        self.pid = int(self._told.readline())

    def send_signal(self, number):
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def is_alive(self):
        return not select.select([self._told], [], [], 0)[0]

    def ended(self, timeout=600):
        """Wait for its end; gives its status and what it has shown."""
        if not select.select([self._told], [], [], timeout)[0]:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, timeout)
        status = int(self._told.readline())
        self._told.close()
        texts = [_content(file) for file in self._shown]
        return subprocess.CompletedProcess(self.args, status, *texts)


def _content(file):
    with file:
        file.seek(0)
        return file.read().decode()


@functools.cache
def _server(_process):
    """A line to the process that is warm, which all workers of a test session share."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    place = Path(tempfile.gettempdir()) / f"mico_exp_{session}"
    place.mkdir(exist_ok=True)
    address, server = str(place / "line"), None
    line = socket.socket(socket.AF_UNIX)
    with open(place / "lock", "w") as lock, socket.socket(socket.AF_UNIX) as listening:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not Path(address).exists():
            listening.bind(address)
            listening.listen()
            server = subprocess.Popen(
                [sys.executable, __file__, str(listening.fileno())],
                pass_fds=[listening.fileno()],
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        line.connect(address)
    return line, server  # which ends with the last of the workers, as their lines to it do


def _serve(listening):
    """Fork off a process for each job that comes; it gets the job, and None once none will."""
    _import_what_commands_do()
    lines = []
    while True:
        for line in select.select([listening, *lines], [], [])[0]:
            if line is listening:
                lines.append(listening.accept()[0])
                continue
            word, files, *_ = socket.recv_fds(line, 1, 4)
            if not word:
                lines.remove(line)
                line.close()
            elif not os.fork():
                for one in lines:
                    one.close()
                return _watched(*files)
            for file in files:
                os.close(file)
        with suppress(ChildProcessError):  # there is none
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not lines:
            return None


def _watched(written, out, err, told):
    """Fork once more, and tell the number and the status of the process that gets the job."""
    if child := os.fork():
        os.write(told, f"{child}\n".encode())
        _, ended = os.waitpid(child, 0)
        os.write(told, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    os.close(told)
    for file, number in ((out, 1), (err, 2), (os.open(os.devnull, os.O_RDONLY), 0)):
        os.dup2(file, number)
        os.close(file)
    with os.fdopen(written) as job:
        job.seek(0)
        return json.load(job)


def _import_what_commands_do():
    import gc
    import importlib
    import pkgutil

    import torch
    from hydra import compose, initialize_config_dir
    from hydra.core.plugins import Plugins

    import mico_exp
    from mico_exp.config.setup import package_code
    from mico_exp.config.typed import OPTIONS
    from mico_exp.scores.addresses import inference_code

    # What has a guard for `__main__` is a command, which `runpy` is to import.
    for found in pkgutil.walk_packages(mico_exp.__path__, "mico_exp."):
        source = Path(found.module_finder.path) / f"{found.name.rpartition('.')[2]}.py"
        if found.ispkg or '__name__ == "__main__"' not in source.read_text(encoding="utf-8"):
            with suppress(ImportError):  # of packages that are optional
                importlib.import_module(found.name)
    for name in IMPORTED:
        importlib.import_module(name)
    torch.optim.SGD([torch.zeros(1)])  # the first one imports the compiler
    Plugins.instance()  # looks for Hydra's plugins, once
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        compose("config", overrides=["metric=loss"], return_hydra_config=True)  # builds its parsers
    for code in (package_code, inference_code):
        code.__wrapped__()  # what it reads of functions is kept, and not what came out
    _copy_databases()
    gc.freeze()


def _copy_databases():
    """Have MLflow make an empty database once, which takes seconds, and copy it from then on."""
    import sqlalchemy
    from mlflow.store.db import utils

    make = utils._initialize_tables
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/mlflow.db"
        engine = sqlalchemy.create_engine(f"sqlite:///{place}")
        make(engine)
        engine.dispose()
        with closing(sqlite3.connect(place)) as made:
            content = made.serialize()

    def initialize(engine):
        if engine.dialect.name != "sqlite":
            return make(engine)
        with closing(sqlite3.connect(":memory:")) as made:
            made.deserialize(content)
            with closing(sqlite3.connect(engine.url.database)) as empty:
                return made.backup(empty)

    utils._initialize_tables = initialize


def _become(job):
    """Run a job as the interpreter runs what is typed; says with which status it ends."""
    import importlib
    import runpy
    import traceback

    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    kind, what, *arguments = job["command"]
    own = os.environ.get("PYTHONPATH", "")
    sys.path[:1] = [job["cwd"], *filter(None, own.split(os.pathsep))]
    importlib.invalidate_caches()
    try:
        sys.modules.pop("sitecustomize", None)
        with suppress(ImportError):
            importlib.import_module("sitecustomize")
        if kind == "-c":
            sys.argv = ["-c", *arguments]
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [what, *arguments]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
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
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        place = Path(listening.getsockname()).parent
        job = _serve(listening)
    if job is None:
        shutil.rmtree(place)
    else:
        ended = _become(job)
        threading._shutdown()  # as the interpreter does, in its order
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)  # taking down what was imported for all takes half a second
