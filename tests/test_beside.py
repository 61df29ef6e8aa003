"""Work beside this process: done when `finish` returns, and what fails is told."""

import logging
import os
import signal
import time

import pytest

from mico_exp.common import beside, pool

# of Python 3.12 on, of forks where there are threads: these only write a file
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """Work is done in forks, though pytest's own workers have threads."""
    monkeypatch.setattr(pool, "start_method", lambda: "fork")


@pytest.fixture(params=[1, 3])
def cores(request, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(request.param))
    return request.param


def test_it_is_done_when_all_is_finished(cores, tmp_path):
    def write(number):
        time.sleep(0.1)
        (tmp_path / str(number)).write_text(str(os.getpid()))

    for number in range(5):
        beside.do(lambda number=number: write(number), "a number")
    beside.finish()
    writers = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert len(writers) == (5 if cores > 1 else 1)
    assert (os.getpid() in writers) == (cores == 1)


def test_no_more_run_than_there_are_cores_for(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    most = []
    for number in range(6):
        beside.do(lambda number=number: time.sleep(0.02 * number), "nothing")
        most.append(len(beside._running))
    beside.finish()
    assert max(most) == 2
    assert not beside._running


def test_what_fails_is_told(cores, tmp_path, capfd):
    handler = logging.StreamHandler()  # a fork's own; pytest's capture is this process's
    logging.getLogger("mico_exp").addHandler(handler)
    beside.do(lambda: (tmp_path / "none" / "file").write_text("x"), "inf/loss/0: its plots")
    beside.finish()
    logging.getLogger("mico_exp").removeHandler(handler)
    shown = capfd.readouterr().err
    assert shown.count("inf/loss/0: its plots cannot be made: ") == 1
    assert "No such file" in shown


def test_a_process_that_is_killed_is_told(monkeypatch, caplog):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    here = os.getpid()
    beside.do(lambda: os.getpid() == here or os.kill(os.getpid(), signal.SIGKILL), "its plots")
    beside.finish()
    assert [record.message for record in caplog.records] == [
        "its plots cannot be made: its process was killed."
    ]


def test_it_goes_on_where_the_command_is_interrupted(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    beside.do(lambda: (time.sleep(0.3), (tmp_path / "file").write_text("x")), "a file")
    time.sleep(0.1)
    for child in beside._running:
        os.kill(child, signal.SIGINT)
    beside.finish()
    assert (tmp_path / "file").read_text() == "x"
