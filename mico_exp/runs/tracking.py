"""Every run that is logged to MLflow, and every run that is read back."""

import getpass
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from packaging.version import Version

from mico_exp.common import signals
from mico_exp.common.errors import InputError, UnreachableError, first_line
from mico_exp.common.redaction import clean, clean_logs
from mico_exp.runs import database
from mico_exp.runs.client import Client
from mico_exp.runs.database import NAME, Database, mlflow
from mico_exp.runs.own import Own
from mico_exp.runs.record import (
    BEST_FIRST,
    CELLS,
    COLUMNS,
    ERROR,
    HOST,
    PROCESS,
    Entries,
    LoggedRun,
)

log = logging.getLogger(__name__)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is down is soon known
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # which has the server's password
MAX_TAG = 5000  # MLflow refuses longer values
UI = "http://127.0.0.1:5000"  # where `mlflow ui` answers
VIEWS_SINCE = Version("3.15")  # runs tables with columns of one's own, by their address
VIEW = "mico_exp"
_ended: set[tuple[str, str]] = set()  # databases' experiments whose dead runs have been ended


@dataclass
class Run:
    """What one run logs when it ends: fill the three dictionaries and the folder of artifacts.

    place: where artifacts lie then, on this machine; None where a server has them.
    """

    id: str
    artifacts: Path
    place: Path | None = None
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def note(self, entries: Entries) -> None:
        """Take what a record tells, in place of what an earlier one told."""
        self.params |= entries.params
        self.metrics |= entries.metrics
        self.tags |= entries.tags


def reach(folder: Path) -> None:
    """Find out whether MLflow answers, before long work starts.

    Raises:
        InputError: it does not.
    """
    found = database.find(folder, create=True)
    with _asking(found):
        runs = _runs_of(found)
        if isinstance(runs, Client):
            runs.mlflow.search_experiments(max_results=1)


@contextmanager
def _asking(where: Database, fault: str = "cannot be used") -> Iterator[None]:
    """Make one line of whatever goes wrong: of MLflow, of the database, of the network.

    Its cause is not kept: libraries put the whole address in their errors, password and all.
    """
    clean_logs()
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if where.folder is None:
            database.check_answer(where.uri)  # a server that is gone says it at greater length
        raise InputError(f"MLflow at {where.shown} {fault}: {clean(_reason(error))}") from None


def _runs_of(where: Database) -> Own | Client:
    """The runs of a database, by the quicker way where it is one that we know."""
    if where.folder is not None and (own := Own(where.folder / NAME)).is_known():
        return own
    return Client(where.uri)


def _status(error: BaseException) -> str:
    """What a run ends as that an error has broken off."""
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def _reason(error: Exception) -> str:
    """First line of an error that is about the error itself, and not about how it came up."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a")]
    return lines[0] if lines else first_line(error)


class Tracker:
    """One MLflow experiment, made if it is not there.

    Args:
        experiment: its name.
        folder: where ``mlflow.db`` and ``mlruns/`` are, unless ``MLFLOW_TRACKING_URI`` is set.
        create: make the database and the experiment; without, they must be there.

    Raises:
        InputError: the server does not answer, or what must be there is not.
    """

    def __init__(self, experiment: str, folder: Path, *, create: bool = True) -> None:
        self.database = database.find(folder, create=create)
        self.artifacts = self.database.artifacts(experiment)
        with self._asking("cannot be used"):
            self.runs = _runs_of(self.database)
            self.experiment_id = self._experiment(experiment, create)

    @cached_property
    def client(self) -> Any:
        """MLflow's own, for experiments to be made and artifacts that lie elsewhere."""
        return mlflow().MlflowClient(self.database.uri)

    def _experiment(self, name: str, create: bool) -> str:
        if known := self.runs.experiment(name):
            number, stage, location = known
            if stage != "active":
                raise InputError(
                    f"The MLflow experiment {name} in {self.database.shown} was deleted. Bring it "
                    f"back with: mlflow experiments restore --experiment-id {number}"
                )
            self.artifacts = database.own_artifacts(self.database, name, number, location)
            return number
        if not create:
            raise InputError(
                f"There is no MLflow experiment {name} in {self.database.shown}: run a sweep first."
            )
        place = self.artifacts.as_uri() if self.artifacts else None
        try:
            return str(self.client.create_experiment(name, artifact_location=place))
        except mlflow().exceptions.MlflowException:
            # Another process was faster, or there is a real fault, which then shows here.
            if known := self.runs.experiment(name):
                return known[0]
            raise

    def _end_dead(self) -> None:
        """End what processes of this machine have left running that were killed."""
        if (here := (self.database.uri, self.experiment_id)) in _ended:
            return
        _ended.add(here)
        with suppress(InputError), self._asking("lets no run be ended"):  # none fails for another
            for run in self._search("RUNNING", {HOST: socket.gethostname()}):
                if not _lives(run.tags.get(PROCESS, "")):
                    self.runs.end(run.id, "KILLED")

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """Open a run; what it was given is logged when the block ends, in two calls.

        It ends as FINISHED, as FAILED with the error in the tag ``error``, or as KILLED. One whose
        process is killed outright ends as KILLED when the next one opens the experiment.
        """
        self._end_dead()
        system = {"mlflow.runName": name, "mlflow.user": _user(), "mlflow.source.name": "mico_exp"}
        system |= {HOST: socket.gethostname(), PROCESS: _process(os.getpid())}
        with tempfile.TemporaryDirectory() as folder:
            run = None
            try:
                with signals.whole(), self._asking("takes no run"):
                    created = self.runs.create(self.experiment_id, {**system, **tags})
                    run = Run(created, Path(folder), self._place(created))
                yield run
            except BaseException as error:
                if run:
                    if isinstance(error, Exception):
                        run.tags[ERROR] = clean(f"{type(error).__name__}: {error}")[:MAX_TAG]
                    with suppress(InputError):  # the error that was first is the one to be told
                        self._end(run, _status(error))
                raise
            self._end(run, "FINISHED")

    def log(self, name: str, entries: Entries, files: Mapping[str, bytes]) -> None:
        """Log a run of which all is known: what it tells, and its files by their names."""
        with self.run(name, entries.tags) as run:
            run.note(entries)
            for file, content in files.items():
                (run.artifacts / file).write_bytes(content)

    def _end(self, run: Run, status: str) -> None:
        gone = False
        try:
            with self._asking("does not take what a run logs"):
                self._log(run)
        except BaseException as error:
            gone = isinstance(error, UnreachableError)
            if status == "FINISHED":
                status = _status(error)
            raise
        finally:
            if not gone:  # else it would be asked once more, for seconds
                with signals.whole(), self._asking("does not end a run"):
                    self.runs.end(run.id, status)

    def _asking(self, fault: str) -> AbstractContextManager[None]:
        return _asking(self.database, fault)

    def _log(self, run: Run) -> None:
        self.runs.log(run.id, Entries(run.params, run.metrics, run.tags))
        if not any(run.artifacts.iterdir()):
            return
        if run.place is None:
            self.client.log_artifacts(run.id, str(run.artifacts))
        else:
            run.place.mkdir(parents=True, exist_ok=True)
            for file in run.artifacts.iterdir():
                shutil.copyfile(file, run.place / file.name)

    def _place(self, run_id: str) -> Path | None:
        """Folder of a run's artifacts; None where a server has them."""
        return self.artifacts and self.artifacts / run_id / "artifacts"

    def finished(self, tags: Mapping[str, str]) -> list[LoggedRun]:
        """All finished runs that carry these tags, the newest first."""
        return self._search("FINISHED", tags)

    def count_others(
        self, tags: Mapping[str, str], params: Mapping[str, str], without: Mapping[str, str]
    ) -> int | None:
        """Count finished runs with these tags and params, but not those of `without`.

        None where a server has some, which would have to send all of them to be counted.
        """
        with self._asking("does not count its runs"):
            return self.runs.count(self.experiment_id, tags, params, without)

    def failed(self, tags: Mapping[str, str]) -> list[LoggedRun]:
        """All failed runs that carry these tags, the newest first; why is in the tag ``error``."""
        return self._search("FAILED", tags)

    def _search(self, status: str, tags: Mapping[str, str]) -> list[LoggedRun]:
        with self._asking("does not list its runs"):
            return list(map(_shown, self.runs.read(self.experiment_id, status, tags)))

    def address(self) -> str:
        """Give the address of the runs table, with a view of the cells, the best first.

        Where MLflow knows no such view it is that of the plain table.
        """
        shown = self.database.shown
        base = shown.partition("?")[0].rstrip("/") if shown.startswith("http") else UI
        plain = f"{base}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"
        if Version(version("mlflow")) < VIEWS_SINCE:
            return plain
        state = {
            "selectedColumns": COLUMNS,
            "columnOrder": COLUMNS,
            "searchFilter": CELLS,
            "orderByKey": BEST_FIRST,
            "orderByAsc": False,
        }
        now = int(time.time() * 1000)
        view = {"name": "mico_exp cells", "createdAt": now, "state": json.dumps(state)}
        try:
            name = f"mlflow.sharedViewState.{VIEW}"
            self.runs.tag(self.experiment_id, name, json.dumps(view))
        except Exception as error:  # a server may refuse it; the plain table is there
            log.debug("No view of the runs: %s", clean(first_line(error)))
            return plain
        return f"{plain}&viewStateShareKey={VIEW}"

    def artifact(self, run_id: str, name: str, folder: Path) -> Path:
        """Fetch one artifact of a run into `folder`, unless it lies on this machine."""
        if (place := self._place(run_id)) and (place / name).is_file():
            return place / name
        with self._asking(f"gives no artifact {name} of run {run_id}"):
            folder.mkdir(exist_ok=True)
            return Path(self.client.download_artifacts(run_id, name, str(folder)))


def _shown(run: LoggedRun) -> LoggedRun:
    """Clean a run's error, of which others may have logged more than is to be shown."""
    error = {ERROR: clean(run.tags[ERROR])} if ERROR in run.tags else {}
    return replace(run, tags={**run.tags, **error})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _process(number: int) -> str:
    """Name a process so that no later one is taken for it: its number and when it started."""
    return f"{number} since {psutil.Process(number).create_time():.2f}"


def _lives(name: str) -> bool:
    number = name.partition(" ")[0]
    if not number.isdecimal():
        return True  # nobody says which process it is
    try:
        return _process(int(number)) == name
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it is there, and somebody else's
        return True
