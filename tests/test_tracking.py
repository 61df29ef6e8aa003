import http.server
import json
import multiprocessing
import sqlite3
import threading
import traceback

import pytest
from mlflow import MlflowClient

from mico_exp.common.errors import InputError
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


def _log_runs(folder, number):
    tracker = Tracker("together", folder)
    for i in range(3):
        with tracker.run(f"{number}/{i}", {"kind": "cell"}) as run:
            run.metrics["value"] = float(i)


def test_processes_that_all_start_on_an_empty_folder(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mico_exp.runs.tracking", "mlflow.tracking"])
    workers = [context.Process(target=_log_runs, args=(tmp_path, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
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


class _Server(http.server.BaseHTTPRequestHandler):
    """A tracking server with one experiment, which takes a run, then answers as it is told to."""

    status = 500
    known = {  # noqa: RUF012
        "get-by-name": {"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}},
        "create": {"run": {"info": {"run_id": "r", "experiment_id": "1"}, "data": {}}},
    }

    def do_GET(self):
        name = self.path.partition("?")[0].rpartition("/")[2]
        if name not in self.known and not self.status:
            self.connection.close()
            return
        body = json.dumps(self.known.get(name, {"message": "S3cretPass is wrong"})).encode()
        self.send_response(200 if name in self.known else self.status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://user:S3cretPass@127.0.0.1:{serving.server_port}"
        serving.shutdown()


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
