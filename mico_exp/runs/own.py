"""Runs in the folder's own database, read and written as MLflow does, without its import.

MLflow makes an object of every entry and a transaction of every few; to read takes it ten times as
long. It makes the tables itself, and keeps those that it has made otherwise in another version.
"""

import logging
import posixpath
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from mico_exp.common.errors import InputError
from mico_exp.runs.record import Entries, LoggedRun

log = logging.getLogger(__name__)
# What MLflow has in a row, by the table, and what it writes of a run that nothing is told of.
ENTRIES = {
    "params": ("key", "value", "run_uuid"),
    "tags": ("key", "value", "run_uuid"),
    "metrics": ("key", "value", "timestamp", "run_uuid", "step", "is_nan"),
    "latest_metrics": ("key", "value", "timestamp", "step", "is_nan", "run_uuid"),
    "experiment_tags": ("key", "value", "experiment_id"),
}
UNTOLD = {"source_type": "UNKNOWN", "source_name": "", "entry_point_name": "", "source_version": ""}
RUN = (
    *("run_uuid", "name", "user_id", "status", "start_time", "end_time", "lifecycle_stage"),
    *("artifact_uri", "experiment_id", "deleted_time", *UNTOLD),
)
NAMES = re.compile(r"[/\w.\- :]{1,250}")  # that MLflow takes, as long as they are plain paths
MAX_PARAM, MAX_TAG = 6000, 8000  # letters, after which MLflow cuts them
SECONDS_TO_WAIT = 20  # for another process that writes, as long as MLflow does


class Own:
    """The runs of a database of MLflow's in SQLite, at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_known(self) -> bool:
        """Tell whether the tables are those that are written here."""
        with self._opened() as opened:
            return all(
                set(columns) == {row[1] for row in opened.execute(f"PRAGMA table_info({table})")}
                for table, columns in {"runs": RUN, **ENTRIES}.items()
            )

    def experiment(self, name: str) -> tuple[str, str, str] | None:
        """Number, stage and place of artifacts of an experiment; None if it is not there."""
        asked = "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments"
        with self._opened() as opened:
            found = opened.execute(f"{asked} WHERE name = ?", (name,)).fetchone()
        return None if found is None else (str(found[0]), str(found[1]), str(found[2]))

    def create(self, experiment: str, tags: Mapping[str, str]) -> str:
        """Begin a run of an experiment; says its id.

        Raises:
            InputError: the experiment was deleted.
        """
        number, now = uuid.uuid4().hex, _now()
        with self._opened() as opened:
            asked = "SELECT artifact_location FROM experiments WHERE experiment_id = ?"
            place = opened.execute(f"{asked} AND lifecycle_stage = 'active'", (experiment,))
            if (found := place.fetchone()) is None:
                raise InputError(f"Experiment {experiment} was deleted.")
            run = UNTOLD | {
                "run_uuid": number,
                "name": tags["mlflow.runName"],
                "user_id": tags["mlflow.user"],
                "status": "RUNNING",
                "start_time": now,
                "end_time": None,
                "lifecycle_stage": "active",
                "artifact_uri": _below(found[0], f"{number}/artifacts"),
                "experiment_id": int(experiment),
                "deleted_time": None,
            }
            _insert(opened, "runs", RUN, [tuple(run[name] for name in RUN)])
            _insert(opened, "tags", ENTRIES["tags"], [(*one, number) for one in tags.items()])
        return number

    def log(self, run: str, entries: Entries) -> None:
        """Write all that a run logs, at once.

        Raises:
            InputError: an entry's name is none of MLflow's, or the run was deleted.
        """
        for name in (*entries.params, *entries.metrics, *entries.tags):
            _check_name(name)
        now = _now()
        params = [(name, _cut(name, one, MAX_PARAM), run) for name, one in entries.params.items()]
        tags = [(name, _cut(name, one, MAX_TAG), run) for name, one in entries.tags.items()]
        values = {name: _stored(value) for name, value in entries.metrics.items()}
        with self._opened() as opened:
            _check_active(opened, run)
            _insert(opened, "params", ENTRIES["params"], params)
            every = [(name, value, now, run, 0, nan) for name, (value, nan) in values.items()]
            _insert(opened, "metrics", ENTRIES["metrics"], every)
            latest = [(name, value, now, 0, nan, run) for name, (value, nan) in values.items()]
            _insert(opened, "latest_metrics", ENTRIES["latest_metrics"], latest)
            _insert(opened, "tags", ENTRIES["tags"], tags)

    def end(self, run: str, status: str) -> None:
        """Write what a run ended as, and when.

        Raises:
            InputError: it was deleted.
        """
        with self._opened() as opened:
            _check_active(opened, run)
            asked = "UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?"
            opened.execute(asked, (status, _now(), run))

    def tag(self, experiment: str, name: str, value: str) -> None:
        """Write a tag of an experiment."""
        with self._opened() as opened:
            entry = (name, value, int(experiment))
            _insert(opened, "experiment_tags", ENTRIES["experiment_tags"], [entry])

    def read(self, experiment: str, status: str, tags: Mapping[str, str]) -> list[LoggedRun]:
        """Runs of an experiment that are of a status and carry these tags, the newest first."""
        conditions, values = _conditions(experiment, status, tags)
        with self._opened() as opened:

            def entries(table: str, value: str = "o.value") -> dict[str, dict[str, Any]]:
                """Of each run, by key; of runs that another process has logged since none."""
                found: dict[str, dict[str, Any]] = {run: {} for run in started}
                asked = f"SELECT o.run_uuid, o.key, {value} FROM {table} o"
                asked = f"{asked} JOIN runs r USING (run_uuid) WHERE {conditions}"
                for run, key, one in opened.execute(asked, values):
                    if run in found:
                        found[run][key] = one
                return found

            asked = f"SELECT run_uuid, start_time FROM runs r WHERE {conditions}"
            newest = opened.execute(f"{asked} ORDER BY start_time DESC, run_uuid", values)
            started: dict[str, int] = dict(newest.fetchall())
            params, found_tags = entries("params"), entries("tags")
            metrics = entries("latest_metrics", "CASE WHEN o.is_nan THEN 'nan' ELSE o.value END")
        return [
            LoggedRun(params[run], _floats(metrics[run]), found_tags[run], run, at)
            for run, at in started.items()
        ]

    def count(
        self,
        experiment: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        without: Mapping[str, str],
    ) -> int:
        """How many finished runs carry these tags and params, and none of the tags `without`."""
        conditions, values = _conditions(experiment, "FINISHED", tags, params, without)
        with self._opened() as opened:
            asked = f"SELECT COUNT(*) FROM runs r WHERE {conditions}"
            return int(opened.execute(asked, values).fetchone()[0])

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database, of which all that is done takes effect together."""
        opened = sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT, isolation_level="IMMEDIATE")
        with closing(opened), opened:
            yield opened


def _insert(
    opened: sqlite3.Connection, table: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]
) -> None:
    """Write rows into a table, tags in the place of those that are there."""
    verb = "REPLACE" if table in ("tags", "experiment_tags") else "INSERT"
    places = ", ".join("?" * len(columns))
    opened.executemany(f"{verb} INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)


def _cut(name: str, value: object, most: int) -> str:
    """A value as text of at most so many letters; warns where it has more."""
    text = str(value)
    if len(text) > most:
        log.warning("%s of a run is cut to the %d letters that MLflow takes", name, most)
    return text[:most]


def _stored(value: float) -> tuple[float, bool]:
    """A metric as MLflow keeps it: finite, and whether it is no number."""
    if np.isnan(value):
        return 0.0, True
    return float(np.clip(value, -np.finfo(float).max, np.finfo(float).max)), False


def _floats(found: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in found.items()}


def _below(place: str, path: str) -> str:
    """Address of what lies below another."""
    parts = urlsplit(place)
    return urlunsplit(parts._replace(path=posixpath.join(parts.path, path)))


def _check_name(name: str) -> None:
    is_path = posixpath.normpath(name) == name and not name.startswith(("/", ".."))
    if not (NAMES.fullmatch(name) and is_path):
        raise InputError(f"MLflow takes no entry of the name {name!r}.")


def _check_active(opened: sqlite3.Connection, run: str) -> None:
    asked = "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
    if opened.execute(asked, (run,)).fetchone() is None:
        raise InputError(f"Run {run} was deleted.")


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _conditions(
    experiment: str,
    status: str,
    tags: Mapping[str, str],
    params: Mapping[str, str] = MappingProxyType({}),
    without: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, list[str]]:
    """Conditions on a run `r` in SQL, and their values."""
    has = (
        "{}EXISTS (SELECT 1 FROM {} h WHERE h.run_uuid = r.run_uuid AND h.key = ? AND h.value = ?)"
    )
    wanted = [(has.format("", "tags"), *one) for one in tags.items()]
    wanted += [(has.format("", "params"), *one) for one in params.items()]
    wanted += [(has.format("NOT ", "tags"), *one) for one in without.items()]
    conditions = ["r.experiment_id = ?", "r.status = ?", "r.lifecycle_stage = 'active'"]
    conditions += [condition for condition, *_ in wanted]
    values = [experiment, status, *(value for _, *pair in wanted for value in pair)]
    return " AND ".join(conditions), values
