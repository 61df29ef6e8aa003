"""Processes that share work: what they do, and how they end."""

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from mico_exp.common import cores, pool
from mico_exp.common.errors import InputError


@pytest.fixture(params=["fork", "spawn"])
def method(request, monkeypatch):
    monkeypatch.setattr(pool, "start_method", lambda: request.param)
    monkeypatch.setattr(pool, "SECONDS_TO_START", 0)
    return request.param


def write(path, tell):
    for _ in range(4):
        tell(0.25)
    path.write_text(str(os.getpid()))
    return path.name


def fail(path, tell):
    raise InputError("`x` must be\ngood.") if "refused" in path.name else KeyError("defect")


def die(path, tell):
    os.kill(os.getpid(), signal.SIGKILL) if pool.is_worker() else None


def test_every_piece_is_done_once_and_told_of(method, tmp_path):
    told, pieces = [], [tmp_path / str(number) for number in range(5)]
    done = list(pool.spread(write, pieces, 2, told.append))
    assert sorted(done) == [(number, str(number)) for number in range(5)]
    assert sum(told) == 5
    by = {int(path.read_text()) for path in pieces}
    assert len(by - {os.getpid()}) == 2
    assert (os.getpid() in by) == (method == "spawn")  # which tries first whether it pays
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("processes", "count"), [(1, 3), (4, 1), (4, 0)])
def test_where_there_is_little_to_share_nobody_else_is_asked(processes, count, tmp_path):
    pieces = [tmp_path / str(number) for number in range(count)]
    list(pool.spread(write, pieces, processes, lambda _: None))
    assert [int(path.read_text()) for path in pieces] == [os.getpid()] * count


def test_what_pays_not_is_done_here(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "start_method", lambda: "spawn")
    pieces = [tmp_path / str(number) for number in range(5)]
    list(pool.spread(write, pieces, 2, lambda _: None))
    assert {int(path.read_text()) for path in pieces} == {os.getpid()}


@pytest.mark.parametrize(
    ("work", "name", "error", "said"),
    [
        (fail, "refused", InputError, "`x` must be\ngood."),
        (fail, "failed", pool.PoolError, "KeyError: 'defect'"),
        (die, "dead", InputError, ": its process was ended by signal 9, 4 times: was it"),
    ],
)
def test_what_goes_wrong_elsewhere_is_raised_here(work, name, error, said, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "start_method", lambda: "fork")
    with pytest.raises(error) as caught:
        list(pool.spread(work, [tmp_path / f"{name}{i}" for i in range(4)], 2, lambda _: None))
    assert said in str(caught.value)
    assert not multiprocessing.active_children()


def die_at_first(path, tell):
    """Ends its process at the first and second time, in the middle of what it says."""
    tries = path.with_suffix(".tries")
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    tell(0.25)
    if "dead" in path.name and len(tries.read_text()) < 3:
        time.sleep(pool.SECONDS_BETWEEN)
        tell(0.25)  # which is heard, and so to be taken back
        if len(tries.read_text()) == 2:
            os.write(tell.head.fileno(), struct.pack("!i", 100) + b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    tell(0.75)
    return path.name


def test_one_that_is_killed_is_replaced_and_its_piece_begun_again(method, tmp_path, caplog):
    told, pieces = [], [tmp_path / name for name in ("a", "dead", "b", "c")]
    done = dict(pool.spread(die_at_first, pieces, 2, told.append))
    assert done == dict(enumerate(path.name for path in pieces))
    tries = {path.stem: len(path.read_text()) for path in tmp_path.glob("*.tries")}
    assert tries == {"a": 1, "dead": 3, "b": 1, "c": 1}
    assert -0.5 in told
    assert sum(told) == 4
    assert caplog.text.count("/dead begins again: its process was ended by signal 9") == 2
    assert not multiprocessing.active_children()


def die_afterwards(path, tell):
    tell(1)
    if path.name == "0":
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return path.name


def test_one_that_is_killed_between_two_pieces_is_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pool, "start_method", lambda: "fork")
    monkeypatch.setattr(pool, "SECONDS_BETWEEN", 0)
    pieces = [tmp_path / str(number) for number in range(6)]
    hear = lambda _: time.sleep(0.3)  # noqa: E731 (the first is dead when its result is read)
    assert len(list(pool.spread(die_afterwards, pieces, 2, hear))) == 6
    assert caplog.text.count("begins again") == 1


def is_alive(one):
    try:
        return one.status() != psutil.STATUS_ZOMBIE  # nobody may fetch an orphan's status
    except psutil.NoSuchProcess:
        return False


COMMAND = """
    import os, sys, time
    from pathlib import Path
    from mico_exp.common import pool, process

    def wait(piece, tell):
        Path(piece).write_text(str(os.getpid()))
        time.sleep(60)

    with process.command():
        list(pool.spread(wait, sys.argv[1:], 2, print))
"""


@pytest.mark.parametrize("to_all", [True, False], ids=["to all", "to the head"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_all_of_them_at_once(number, to_all, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(COMMAND), tmp_path / "a", tmp_path / "b"]
    head = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    deadline = time.monotonic() + 60
    while len([one for one in tmp_path.iterdir() if one.read_text()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = [psutil.Process(int(one.read_text())) for one in tmp_path.iterdir()]
    (os.killpg if to_all else os.kill)(head.pid, number)
    _, said = head.communicate(timeout=20)
    if number == signal.SIGKILL:
        assert (head.returncode, said) == (-9, "")
    else:
        assert head.returncode == 128 + number
        assert said.splitlines() == ["Interrupted; the same command goes on where it stopped."]
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_environment_says_how_many_cores(monkeypatch):
    here = len(os.sched_getaffinity(0))
    for told, cores_used in [("1", 1), ("3", 3), ("4,2", 4), ("", here), ("0", here), ("x", here)]:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert cores.usable() == cores_used
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores.usable() == here


def test_the_affinity_mask_is_kept_to(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores.usable() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, [2]),
        ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, [1]),
        ("0::/", {}, []),
        ("3:cpu,cpuacct:/x\n2:memory:/y", {"cpu/x/cpu.cfs_quota_us": "400000"}, []),
        (
            "3:cpu,cpuacct:/x\n2:memory:/y",
            {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"},
            [4],
        ),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
    ],
)
def test_a_containers_share_of_time_counts(groups, files, expected, tmp_path):
    (tmp_path / "own").write_text(groups + "\n")
    for name, content in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(content + "\n")
    assert cores._quotas(tmp_path / "root", tmp_path / "own") == expected


def test_one_of_a_pool_starts_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "start_method", lambda: "fork")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    pieces = [tmp_path / "a", tmp_path / "b"]
    work = lambda path, _: path.write_text(str(cores.for_processes()))  # noqa: E731
    list(pool.spread(work, pieces, 2, print))
    assert [path.read_text() for path in pieces] == ["1", "1"]
    assert cores.for_processes() == 2
