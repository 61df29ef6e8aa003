"""Where runs are kept: a database of this folder, or the server that ``MLFLOW_TRACKING_URI`` names.

The folder's own is ``mlflow.db``, and artifacts lie under ``mlruns/``, where a plain ``mlflow ui``
finds them. MLflow writes whole paths into it; a folder that was renamed or copied since keeps its
own artifacts all the same.
"""

import logging
import os
import socket
import sqlite3
import urllib.request
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from mico_exp.common.atomic import exclusive
from mico_exp.common.errors import InputError, UnreachableError, first_line
from mico_exp.common.redaction import clean, shown

NAME, ARTIFACTS = "mlflow.db", "mlruns"
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
CUTTING = set("?#%")  # what ends the path of an address, or stands for another letter
SECONDS_TO_CONNECT = 5
# It tells of every table that it makes, and of errors at length, which are told here.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Database:
    """What keeps the runs.

    uri: as MLflow takes it.
    shown: for people, without a password.
    folder: that holds the database and the artifacts; None where a server has them.
    """

    uri: str
    shown: str
    folder: Path | None

    def artifacts(self, experiment: str) -> Path | None:
        """Folder of an experiment's artifacts; None where a server has them."""
        return None if self.folder is None else self.folder / ARTIFACTS / experiment


@cache
def mlflow() -> Any:
    """MLflow, whose import takes two seconds; runs of the folder's own database need none."""
    import mlflow

    return mlflow


def find(folder: Path, *, create: bool) -> Database:
    """Find the database, after making the folder's own if it is not there and `create` says so.

    Raises:
        InputError: it is not there.
        UnreachableError: the server does not answer.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        check_answer(uri)
        return Database(uri, shown(uri), None)
    path = folder.absolute() / NAME
    if not path.exists():
        if not create:
            raise InputError(
                f"{path} does not exist: run a sweep first, or go to the folder of one."
            )
        _make(path)
    _check_file(path)
    return Database(_address(path), _plain(path), path.parent)


def _make(path: Path) -> None:
    """Make the database.

    One that several processes open while it is being made stays broken for good; so one makes it
    under another name, and the others find it whole.
    """
    with exclusive(path.with_name(".mlflow.db.lock"), "making the MLflow database"):
        if not path.exists():
            unfinished = path.with_name(".mlflow.db.tmp")
            unfinished.unlink(missing_ok=True)
            unfinished.touch()  # with the mode that the umask wants; SQLite's own is narrower
            try:
                mlflow().MlflowClient(_address(unfinished)).search_experiments(max_results=1)
                os.replace(unfinished, path)
            except Exception as error:  # whatever SQLAlchemy makes of a full disk
                unfinished.unlink(missing_ok=True)
                raise InputError(f"{path} cannot be made: {first_line(error)}.") from error


def _check_file(path: Path) -> None:
    """Try to open a database; MLflow would try for minutes.

    Raises:
        InputError: it cannot be.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as opened:
            opened.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise InputError(f"MLflow at {_plain(path)} cannot be used: {error}.") from error


def _address(path: Path) -> str:
    """Address of a database file: from the working directory where its letters end an address.

    Raises:
        InputError: they do even so.
    """
    if not CUTTING & set(str(path)):
        return _plain(path)
    near = os.path.relpath(path)
    if CUTTING & set(near):
        raise InputError(f"{path}: MLflow keeps no runs in a folder whose name has ?, # or %.")
    return _plain(Path(near))


def _plain(path: Path) -> str:
    return f"sqlite:///{path}"


def check_answer(uri: str) -> None:
    """Try whether somebody answers at an address at all; MLflow itself would try for minutes.

    Raises:
        UnreachableError: nobody does.
    """
    where = _server(uri)
    if where is None:
        return
    try:
        socket.create_connection(where, timeout=SECONDS_TO_CONNECT).close()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        reason = clean(f"{where[0]}:{where[1]} does not answer: {why}")
        raise UnreachableError(f"MLflow at {shown(uri)} cannot be used: {reason}.") from None


def _server(uri: str) -> tuple[str, int] | None:
    """Host and port of an address; None where there is none, or a proxy stands between."""
    try:
        parts = urlsplit(uri)
        scheme, host = parts.scheme.partition("+")[0], parts.hostname
        port = parts.port or PORTS.get(scheme)
    except ValueError:  # MLflow says what is wrong with it
        return None
    if host is None or port is None:
        return None
    if scheme not in PORTS:  # an ODBC source's name is no host
        return None
    by_proxy = {scheme, "all"} & urllib.request.getproxies().keys()
    if by_proxy and not urllib.request.proxy_bypass(host):
        return None
    return host, port


def own_artifacts(database: Database, experiment: str, number: str, location: str) -> Path | None:
    """Folder of an experiment's artifacts in the folder of its database; None if elsewhere.

    Where the database still names the place from which its folder was moved or copied, it is
    corrected, which MLflow's own pages need; one that may not be written stays as it is.

    Args:
        database: that has the experiment.
        experiment: its name.
        number: its number.
        location: of its artifacts, as the database has it.
    """
    if (place := database.artifacts(experiment)) is None:
        return None
    present = place.as_uri()
    if location != present:
        if not location.endswith(Path("/", ARTIFACTS, experiment).as_uri().removeprefix("file://")):
            return None  # somebody else has made the experiment
        if not place.exists() and Path(unquote(urlsplit(location).path)).exists():
            return None  # somewhere else on purpose
        with suppress(sqlite3.OperationalError):
            _correct(place.parents[1] / NAME, number, location, present)
    return place


def _correct(path: Path, number: str, old: str, new: str) -> None:
    with closing(sqlite3.connect(path)) as opened, opened:
        opened.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            (new, len(old) + 1, number, len(old) + 1, f"{old}/"),
        )
        opened.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, number)
        )
