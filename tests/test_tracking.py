import http.server
import math
import os
import shutil
import signal
import sqlite3
import threading
import time
import traceback
from pathlib import Path

import pytest
from commands import call, start
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tracking_server import KNOWN, Answers

from mico_exp.common.errors import InputError, UnreachableError
from mico_exp.runs import database, tracking
from mico_exp.runs.client import Client
from mico_exp.runs.own import ENTRIES, Own
from mico_exp.runs.record import Entries
from mico_exp.runs.tracking import Tracker


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One database for all tests of this module: making one takes seconds."""
    return tmp_path_factory.mktemp("tracked")


def stored(tracker, run_id):
    return MlflowClient(tracker.database.uri).get_run(run_id)


def test_a_run_is_logged_whole(folder, tmp_path):
    tracker = Tracker("whole", folder)
    with tracker.run("inf/loss/1", {"kind": "cell"}) as run:
        run.params["metric"] = "loss"
        run.metrics |= {"val/auc": 0.64, "val/tpr_at_fpr_0.1": 0.2}
        run.tags["content"] = "abc"
        (run.artifacts / "note.txt").write_text("hello")
    found = stored(tracker, run.id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "inf/loss/1"
    assert found.data.params == {"metric": "loss"}
    assert found.data.metrics == {"val/auc": 0.64, "val/tpr_at_fpr_0.1": 0.2}
    assert found.data.tags["content"] == "abc"
    assert found.data.tags["kind"] == "cell"
    assert tracker.artifact(run.id, "note.txt", tmp_path).read_text() == "hello"
    assert (folder / "mlruns" / "whole" / run.id / "artifacts" / "note.txt").exists()


def test_a_failed_run_says_why(folder):
    tracker = Tracker("failed", folder)
    ids = []

    def broken():
        with tracker.run("broken", {}) as run:
            ids.append(run.id)
            run.params["metric"] = "loss"
            raise ZeroDivisionError("by nought")

    with pytest.raises(ZeroDivisionError):
        broken()
    found = stored(tracker, ids[0])
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "ZeroDivisionError: by nought"
    assert found.data.params == {"metric": "loss"}


def test_an_interrupted_run_is_killed(folder):
    tracker = Tracker("killed", folder)
    with pytest.raises(KeyboardInterrupt), tracker.run("stopped", {}) as run:
        raise KeyboardInterrupt
    assert stored(tracker, run.id).info.status == "KILLED"


def test_only_finished_runs_with_the_tags_come_back_newest_first(folder):
    tracker = Tracker("listed", folder)
    ids = []
    for kind in ("cell", "cell", "selection"):
        with tracker.run("run", {"kind": kind}) as run:
            run.metrics["value"] = 1.0
        ids.append(run.id)
    with pytest.raises(ValueError, match="broken"), tracker.run("run", {"kind": "cell"}):
        raise ValueError("broken")
    found = [run.id for run in tracker.finished({"kind": "cell"})]
    assert set(found) == set(ids[:2])
    started = [run.started for run in tracker.finished({"kind": "cell"})]
    assert started == sorted(started, reverse=True)


def test_the_environment_wins(folder, tmp_path, monkeypatch):
    elsewhere = Tracker("elsewhere", folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere.database.uri)
    with Tracker("team", tmp_path).run("run", {}):
        pass
    assert list(tmp_path.iterdir()) == []
    assert MlflowClient(elsewhere.database.uri).get_experiment_by_name("team") is not None


def test_what_must_exist_is_not_made(folder, tmp_path):
    with pytest.raises(InputError, match=r"mlflow\.db does not exist"):
        Tracker("digits", tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []
    Tracker("there", folder)
    with pytest.raises(InputError, match="no MLflow experiment absent"):
        Tracker("absent", folder, create=False)


def log_runs(folder, number):
    tracker = Tracker("together", Path(folder))
    for i in range(3):
        with tracker.run(f"{number}/{i}", {"kind": "cell"}) as run:
            run.metrics["value"] = float(i)


def test_processes_that_all_start_on_an_empty_folder(tmp_path):
    workers = [call(log_runs, tmp_path, number) for number in range(4)]
    assert [worker.ended().returncode for worker in workers] == [0] * 4
    assert len(Tracker("together", tmp_path).finished({"kind": "cell"})) == 12
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_deleted_experiment_says_how_to_bring_it_back(folder):
    tracker = Tracker("deleted", folder)
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(InputError, match=f"restore --experiment-id {tracker.experiment_id}"):
        Tracker("deleted", folder)


@pytest.mark.parametrize("uri", ["foo://x", "http://127.0.0.1:9"])
def test_a_server_that_cannot_be_used_is_an_error_at_once(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=f"MLflow at {uri} cannot be used"):
        Tracker("team", tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:S3cretPass@127.0.0.1:9",
        "http://user:S3cret%40tail@127.0.0.1:9/",
        "http://user:S3cret@S3tail@127.0.0.1:9",
        "http://user:S3cret/S3tail@127.0.0.1:9",
        "http://user:S3cret#S3tail@127.0.0.1:9",
        "http://127.0.0.1:9/?token=S3cretPass",
        "postgresql+absent://user:S3cretPass@127.0.0.1:9/db",
        "mysql+absent://user:S3cret/S3tail@127.0.0.1:9/db?ssl_key=S3cretPass",
        "sqlite://user:S3cret@127.0.0.1/db",
        "foo://user:S3cretPass@host",
        "user:S3cretPass@host:5000",
    ],
)
def test_an_address_that_fails_keeps_its_password(tmp_path, monkeypatch, uri, caplog, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"^MLflow at .* cannot be used: .") as failed:
        Tracker("team", tmp_path)
    said = (
        "".join(traceback.format_exception(failed.value))
        + caplog.text
        + "".join(capfd.readouterr())
    )
    assert "S3" not in said
    assert "\n" not in str(failed.value)


class _Server(Answers):
    """One that answers as it is told to, or not at all."""

    status = 500
    message = {"message": "S3cretPass is wrong"}  # noqa: RUF012

    def answer(self, name):
        if name in KNOWN or self.status:
            super().answer(name)
        else:
            self.connection.close()


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://user:S3cretPass@127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_server_has_a_run_logged_without_a_word_on_standard_output(server, monkeypatch, capsys):
    """A gate's answer is one line; MLflow would print two more, with the server's password."""
    monkeypatch.setattr(_Server, "status", 200)
    monkeypatch.setattr(_Server, "message", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    Tracker("here", Path.cwd()).log("run", Entries({}, {"value": 1.0}, {}), {})
    assert capsys.readouterr().out == ""


def _log_a_metric(tracker, folder):
    with tracker.run("run", {}) as run:
        run.metrics["value"] = 1.0


@pytest.mark.parametrize("status", [401, 500, 0])  # 0: the connection ends without an answer
@pytest.mark.parametrize(
    ("ask", "fault"),
    [
        (_log_a_metric, "does not end a run"),
        (lambda tracker, _: tracker.finished({}), "does not list its runs"),
        (lambda tracker, _: tracker.failed({}), "does not list its runs"),
        (lambda tracker, folder: tracker.artifact("r", "a.txt", folder), "gives no artifact a.txt"),
    ],
)
def test_a_server_that_fails_later_is_one_line(
    server, tmp_path, monkeypatch, status, ask, fault, caplog, capfd
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(_Server, "status", status)
    tracker = Tracker("team", tmp_path)
    with pytest.raises(InputError, match=rf"^MLflow at http://127\.0\.0\.1:\d+ {fault}") as failed:
        ask(tracker, tmp_path)
    said = (
        "".join(traceback.format_exception(failed.value))
        + caplog.text
        + "".join(capfd.readouterr())
    )
    assert "S3" not in said + tracker.address()
    assert "\n" not in str(failed.value)


def test_a_failed_runs_reason_has_no_password(folder, monkeypatch):
    tracker = Tracker("reasons", folder)
    reason = "OSError: cannot open sftp://me:hush@store/x with S3cretPass"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "S3cretPass")
    with pytest.raises(OSError, match="S3cretPass"), tracker.run("run", {}) as run:
        raise OSError(reason.removeprefix("OSError: "))
    expected = "OSError: cannot open sftp://store/x with ***"
    assert stored(tracker, run.id).data.tags["error"] == expected
    tracker.client.set_tag(run.id, "error", reason)  # as others may have logged it
    assert [one.tags["error"] for one in tracker.failed({})] == [expected]


def test_an_experiment_of_five_thousand_runs(tmp_path):
    """Made in SQL from one real run: all of them are found, by their pages."""
    tracker = Tracker("many", tmp_path)
    with tracker.run("inf/loss/0", {"kind": "cell"}) as run:
        run.params["metric"] = "loss"
        run.metrics["val/auc"] = 0.6
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for table in ("runs", "params", "latest_metrics", "tags"):
            names = [row[1] for row in database.execute(f"pragma table_info({table})")]
            read = ", ".join("? || run_uuid" if name == "run_uuid" else name for name in names)
            copy = f"insert into {table} ({', '.join(names)}) select {read} from {table} "
            many = [(f"{i:04d}", run.id) for i in range(4999)]
            database.executemany(f"{copy} where run_uuid = ?", many)
    with tracker.run("inf/loss/1", {"kind": "selection"}):
        pass
    found = tracker.finished({"kind": "cell"})
    assert len({one.id for one in found}) == 5000
    assert {one.params["metric"] for one in found} == {"loss"}
    assert {one.metrics["val/auc"] for one in found} == {0.6}


def test_runs_of_something_else_are_counted_and_not_read(folder):
    tracker = Tracker("counted", folder)
    for scenario, content in (("inf", "a"), ("inf", "b"), ("inf", "c"), ("hi", "b")):
        with tracker.run("run", {"kind": "cell", "content": content}) as run:
            run.params |= {"dataset": "digits", "scenario": scenario}
    with pytest.raises(OSError, match="on purpose"), tracker.run("run", {"kind": "cell"}):
        raise OSError("on purpose")
    asked = {"kind": "cell"}, {"dataset": "digits", "scenario": "inf"}, {"content": "a"}
    assert tracker.count_others(*asked) == 2
    tracker.client.delete_run(tracker.finished({"content": "c"})[0].id)
    assert tracker.count_others(*asked) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from mico_exp.runs.tracking import Tracker
with Tracker("dead", Path(sys.argv[1])).run("killed", {}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_whose_process_was_killed_ends_when_the_next_opens_the_experiment(folder):
    dead = start("-c", KILLED, str(folder), cwd=folder).ended()
    assert dead.returncode == -signal.SIGKILL
    tracker = Tracker("dead", folder)
    (left,) = tracker._search("RUNNING", {})
    alive, elsewhere, old = (
        tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
        for tags in (
            {"host": left.tags["host"], "process": tracking._process(os.getpid())},
            {"host": "another", "process": left.tags["process"]},
            {},
        )
    )
    recycled = f"{os.getpid()} since 12.00"  # a later process of the same number
    tags = {"host": left.tags["host"], "process": recycled}
    gone = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    with tracker.run("next", {}) as run:
        pass
    status = {one: stored(tracker, one).info.status for one in (alive, elsewhere, old)}
    assert set(status.values()) == {"RUNNING"}
    assert {stored(tracker, one).info.status for one in (left.id, gone)} == {"KILLED"}
    assert stored(tracker, run.id).info.status == "FINISHED"


def test_a_folder_that_was_copied_has_artifacts_of_its_own(folder, tmp_path):
    with Tracker("moved", folder).run("first", {}) as first:
        (first.artifacts / "note.txt").write_text("first")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    hidden = (folder / "mlruns" / "moved").rename(folder / "mlruns" / "hidden")
    try:
        tracker = Tracker("moved", copy)
        with tracker.run("second", {}) as second:
            (second.artifacts / "note.txt").write_text("second")
        for run, text in ((first, "first"), (second, "second")):
            found = tracker.artifact(run.id, "note.txt", tmp_path)
            assert found.read_text() == text
            assert found.is_relative_to(copy)
            # MLflow's own pages find it too
            uri = stored(tracker, run.id).info.artifact_uri
            assert uri.startswith((copy / "mlruns" / "moved").as_uri())
        assert not (folder / "mlruns" / "moved").exists()
    finally:
        hidden.rename(folder / "mlruns" / "moved")


def test_an_experiment_that_others_have_made_keeps_its_place(folder, tmp_path):
    Tracker("there", folder).client.create_experiment("theirs", (tmp_path / "apart").as_uri())
    with Tracker("theirs", folder).run("run", {}) as run:
        (run.artifacts / "note.txt").write_text("x")
    assert [one.read_text() for one in (tmp_path / "apart").rglob("note.txt")] == ["x"]
    assert not (folder / "mlruns" / "theirs").exists()


def test_a_folder_of_any_name_keeps_its_own_database_which_a_group_can_share(tmp_path, monkeypatch):
    place = tmp_path / "50%25 off? #1"
    place.mkdir()
    monkeypatch.chdir(place)  # as a command is
    before = os.umask(0o002)
    try:
        with Tracker("team", place).run("run", {"kind": "cell"}) as run:
            (run.artifacts / "note.txt").write_text("x")
    finally:
        os.umask(before)
    assert [one.name for one in tmp_path.iterdir()] == [place.name]
    modes = {one.name: one.stat().st_mode & 0o777 for one in place.iterdir()}
    assert modes == {"mlflow.db": 0o664, ".mlflow.db.lock": 0o664, "mlruns": 0o775}
    tracker = Tracker("team", place, create=False)
    assert [one.id for one in tracker.finished({"kind": "cell"})] == [run.id]
    assert tracker.artifact(run.id, "note.txt", tmp_path).read_text() == "x"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="MLflow keeps no runs in a folder whose name has"):
        Tracker("team", place)


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "postgresql://me@127.0.0.1:9/db", "mysql+x://127.0.0.1:9/db"]
)
def test_nobody_who_answers_is_known_at_once(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(
        UnreachableError, match=r"127\.0\.0\.1:9 does not answer: Connection refused"
    ):
        tracking.reach(tmp_path)
    assert time.monotonic() - started < 1  # MLflow alone asks a dead database for minutes


@pytest.mark.parametrize(
    ("uri", "proxies", "expected"),
    [
        ("http://host.here/", {}, ("host.here", 80)),
        ("https://host.here:8080/x", {}, ("host.here", 8080)),
        ("postgresql+psycopg2://me:pw@db/x", {}, ("db", 5432)),
        ("mssql+pyodbc://me:pw@mydsn", {}, None),  # the name of a source, not of a host
        ("sqlite:///mlflow.db", {}, None),
        ("http://host.here", {"ALL_PROXY": "http://127.0.0.1:1"}, None),
        ("http://host.here", {"http_proxy": "http://127.0.0.1:1"}, None),
        ("http://x:y/z", {}, None),
    ],
)
def test_who_is_to_answer(monkeypatch, uri, proxies, expected):
    for name in ("ALL_PROXY", "all_proxy", "http_proxy", "HTTP_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    assert database._server(uri) == expected


def test_a_name_that_is_none_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a..b:5000")
    with pytest.raises(InputError, match=r"cannot be used: a\.\.b:5000 does not answer"):
        Tracker("team", tmp_path)


def test_an_interrupt_while_a_run_is_logged_is_none_of_the_runs_failures(folder, monkeypatch):
    tracker = Tracker("interrupted", folder)

    def interrupted(*_, **__):
        raise SystemExit(130)

    monkeypatch.setattr(tracker.runs, "log", interrupted)
    with pytest.raises(SystemExit), tracker.run("run", {}) as run:
        run.metrics["value"] = 1.0
    assert stored(tracker, run.id).info.status == "KILLED"


def test_runs_are_read_as_mlflow_reads_them(tmp_path):
    """From the database itself, which is ten times as quick."""
    tracker = Tracker("it's", tmp_path)
    values = {"a": 0.1, "b": math.nan, "c": math.inf, "d": -1e-300}
    for number, status in enumerate(["FINISHED", "FINISHED", "FAILED", "FINISHED", "FINISHED"]):
        tags = {"kind": "cell" if number else "other", "text": 'it\'s "é"\n%_'}
        try:
            with tracker.run(f"run {number}", tags) as run:
                run.params |= {"x": number, "none": None}
                run.metrics |= values
                if status == "FAILED":
                    raise ValueError("broken")
        except ValueError:
            pass
        time.sleep(0.002)
    last = tracker.finished({})[0]
    tracker.client.log_metric(last.id, "a", 5.0, step=1)
    tracker.client.delete_run(tracker.finished({"kind": "cell"})[1].id)
    for status, tags in (("FINISHED", {}), ("FINISHED", {"kind": "cell"}), ("FAILED", {})):
        found = tracker._search(status, tags)
        by_mlflow = [
            run
            for run in tracker.client.search_runs([tracker.experiment_id], "", order_by=ORDER)
            if run.info.status == status and tags.items() <= run.data.tags.items()
        ]
        assert [one.id for one in found] == [run.info.run_id for run in by_mlflow]
        assert len(found) == {"FINISHED": 3 - len(tags), "FAILED": 1}[status]
        for one, run in zip(found, by_mlflow, strict=True):
            assert one.started == run.info.start_time
            assert (one.params, one.tags) == (run.data.params, run.data.tags)
            assert repr(sorted(one.metrics.items())) == repr(sorted(run.data.metrics.items()))


ORDER = ["attributes.start_time DESC"]


def test_runs_are_written_as_mlflow_writes_them(tmp_path, monkeypatch):
    """Every row of every table, but for what says which run it is, and when it was."""
    path = tmp_path / "mlflow.db"
    made = Tracker("both", tmp_path)
    own, client = Own(path), Client(made.database.uri)
    monkeypatch.setattr("time.time", lambda: 1e9)
    tags = {"mlflow.runName": "inf/loss/0", "mlflow.user": "me", "kind": "cell"}
    values = {"a": 0.1, "b/c": math.nan, "d": math.inf, "e.f": -math.inf, "g h": 3, "i": -1e-300}
    params = {f"p{i}": i for i in range(120)} | {"none": None, "long": "x" * 7000, "text": "ü%'"}
    told = Entries(params, values, {"kind": "again", "more": "1", "long": "é" * 9000})
    runs = []
    for way in (own, client):
        run = way.create(made.experiment_id, tags)
        way.log(run, told)
        way.end(run, "FAILED")
        way.tag(made.experiment_id, "of", "all")
        runs.append(run)
    with sqlite3.connect(path) as opened:
        mine, theirs = ({name: rows_of(opened, name, run) for name in LOGGED} for run in runs)
        found = opened.execute("SELECT * FROM experiment_tags").fetchall()
    opened.close()
    assert mine == theirs
    assert {name: len(rows) for name, rows in mine.items()} == LOGGED
    assert found == [("of", "all", int(made.experiment_id))]


LOGGED = {"runs": 1, "params": 123, "tags": 5, "metrics": 6, "latest_metrics": 6}


def rows_of(opened, table, run):
    """A table's rows of a run, by the columns' names, without the run's own."""
    found = opened.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run,))
    names = [one[0] for one in found.description]
    return sorted(repr(dict(zip(names, row, strict=True))).replace(run, "run") for row in found)


@pytest.mark.parametrize("table", ["runs", *ENTRIES])
def test_tables_of_another_version_are_left_to_mlflow(folder, tmp_path, table):
    copy = tmp_path / "mlflow.db"
    Tracker("there", folder)
    shutil.copyfile(folder / "mlflow.db", copy)
    assert isinstance(Tracker("there", tmp_path).runs, Own)
    with sqlite3.connect(copy) as opened:
        opened.execute(f"ALTER TABLE {table} ADD COLUMN new INTEGER")
    opened.close()
    tracker = Tracker("there", tmp_path)
    assert isinstance(tracker.runs, Client)
    with tracker.run("run", {"kind": "cell"}) as run:
        run.metrics["value"] = 1.0
    assert [one.id for one in tracker.finished({"kind": "cell"})] == [run.id]


@pytest.mark.parametrize("name", ["a@b", "a//b", "../a", "/a", "", "x" * 251])
def test_a_name_that_mlflow_refuses_is_refused(folder, name):
    tracker = Tracker("names", folder)
    for way in (tracker.runs, Client(tracker.database.uri)):
        run = way.create(tracker.experiment_id, {"mlflow.runName": "run", "mlflow.user": "me"})
        with pytest.raises((InputError, MlflowException)):
            way.log(run, Entries({}, {name: 1.0}, {}))
        assert stored(tracker, run).data.metrics == {}
