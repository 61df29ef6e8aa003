"""What holds for every command: signals, streams, and what the operating system refuses."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

TOLD = "from mico_exp.common import process, signals\nimport os, signal, sys, time\n"


def start(body, ignoring=None, **options):
    """Run a body within `process.command`, in an interpreter of its own."""
    text = TOLD + "with process.command():\n" + textwrap.indent(textwrap.dedent(body), "    ")
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    ignore = (lambda: signal.signal(ignoring, signal.SIG_IGN)) if ignoring else None
    return subprocess.Popen([sys.executable, "-c", text], preexec_fn=ignore, **given)


def ended(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_its_status_and_a_line(number):
    status, out, err = ended(start(f"os.kill(os.getpid(), {int(number)}); print('on')"))
    assert (status, out) == (128 + number, "")
    assert err.splitlines() == ["Interrupted; the same command goes on where it stopped."]


@pytest.mark.parametrize("caught", ["BaseException", "SystemExit"])
def test_a_library_that_catches_the_exit_does_not_swallow_the_signal(caught):
    body = f"""
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except {caught}:
            pass
        print("went on")
    """
    status, out, _ = ended(start(body))
    assert (status, out) == (143, "went on\n")


def test_an_error_of_the_clean_up_does_not_hide_the_signal():
    body = """
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise OSError("of a pool that is gone")
    """
    assert ended(start(body))[0] == 143


def test_a_second_signal_ends_at_once():
    body = """
        with signals.whole():
            print("ready", flush=True)
            time.sleep(30)
            print("slept")
        print("on")
    """
    process = start(body)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(signals_same() + 0.3)
    assert process.poll() is None  # the block is not cut off
    process.send_signal(signal.SIGTERM)
    status, out, _ = ended(process)
    assert (status, out) == (143, "")


def signals_same():
    from mico_exp.common.signals import SAME

    return SAME


def test_a_signal_that_comes_twice_at_once_is_one():
    """As a terminal's, which goes to a group, and to its head again by a wrapper."""
    body = """
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            print("closed")
    """
    status, out, err = ended(start(body))
    assert (status, out) == (130, "closed\n")
    assert err.count("Interrupted") == 1


def test_a_short_block_is_finished_first():
    body = """
        with signals.whole():
            os.kill(os.getpid(), signal.SIGTERM)
            print("whole")
        print("on")
    """
    assert ended(start(body))[:2] == (143, "whole\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_stays_ignored(number):
    body = f"os.kill(os.getpid(), {int(number)}); print('on')"
    assert ended(start(body, ignoring=number))[:2] == (0, "on\n")


TEXT = (
    "print('\\N{RUNNER} 0.1\\N{EN DASH}0.2 \\N{GREEK SMALL LETTER EPSILON} \\N{ALMOST EQUAL TO}')"
)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp850", "cp932", "cp1252"])
def test_letters_that_an_encoding_lacks_fail_nothing(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    process = start(f"{TEXT}; print('x\\N{{EN DASH}}', file=sys.stderr)", env=environment)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    shown = out.decode(encoding)
    assert shown.startswith("? 0.1")
    assert "Traceback" not in shown
    if encoding == "ascii":
        assert shown == "? 0.1-0.2 epsilon ~\n"


def test_whoever_stops_reading_takes_nothing_but_the_output():
    body = """
        import logging
        logging.basicConfig(stream=sys.stdout, level=logging.INFO)
        for i in range(20000):
            print("a line of some length, so that a pipe is full", flush=True)
            logging.info("another")
        sys.exit(3)
    """
    process = start(body)
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=60)
    assert process.returncode == 3
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_full_disk_under_the_output_fails_nothing():
    with open("/dev/full", "w") as full:
        status, _, err = ended(start("print('x', flush=True); print('y')", stdout=full))
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("open('/nowhere/at/all')", "/nowhere/at/all cannot be used: No such file or directory."),
        ("open('/')", "/ cannot be used: Is a directory."),
        ("os.mkdir('/dev/null/x')", "/dev/null/x cannot be used: Not a directory."),
        ("open('x' * 300, 'w')", f"{'x' * 300} cannot be used: File name too long."),
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", "No space left on device: in /"),
        ("import tempfile; tempfile.mkdtemp()", "No usable temporary directory found in "),
    ],
)
def test_what_the_system_refuses_is_one_line(body, said, tmp_path):
    nowhere = {name: str(tmp_path / "nowhere") for name in ("TMPDIR", "TEMP", "TMP")}
    if "tempfile" in body:
        body = f"import tempfile; tempfile._candidate_tempdir_list = lambda: ['/nowhere']; {body}"
    status, out, err = ended(start(body, env=os.environ | nowhere, cwd=tmp_path))
    assert (status, out) == (1, "")
    assert err.startswith(said)
    assert len(err.splitlines()) == 1


def test_a_defect_keeps_its_traceback():
    status, _, err = ended(start("{}['key']"))
    assert status == 1
    assert "KeyError: 'key'" in err
    assert "Traceback" in err


def test_plots_are_the_same_whatever_the_users_matplotlib_wants(tmp_path):
    """A notebook's backend in the environment, and TeX in a matplotlibrc."""
    body = """
        from mico_exp.results.plots import new_plot, png, rc_context, STYLE
        with rc_context(STYLE):
            figure = new_plot(2, 1, "title")
            figure.subplots().plot([0, 1])
        sys.stdout.buffer.write(png(figure))
    """
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nlines.linewidth: 9\n")
    (tmp_path / "plain").mkdir()
    shown = []
    for folder, backend in (("plain", None), (".", "module://matplotlib_inline.backend_inline")):
        environment = dict(os.environ) | ({"MPLBACKEND": backend} if backend else {})
        process = start(body, cwd=tmp_path / folder, env=environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        shown.append(out)
    assert shown[0].startswith(b"\x89PNG")
    assert shown[0] == shown[1]


def test_a_signal_counts_while_nobody_reads_what_is_said():
    """It comes while a line is being written, of which a pipe takes no more."""
    body = """
        import fcntl, logging, threading
        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        for i in range(100000):
            logging.info("a line of some length, so that the pipe is full before long")
        print("went on")
    """
    process = start(body)
    time.sleep(1.5)
    status, out, _ = ended(process)
    assert (status, out) == (143, "")


def test_whoever_wants_everything_gets_a_traceback():
    body = "from mico_exp.common.errors import InputError; raise InputError('wrong')"
    asked = os.environ | {"HYDRA_FULL_ERROR": "1"}
    assert ended(start(body))[::2] == (1, "wrong\n")
    assert "Traceback" in ended(start(body, env=asked))[2]
