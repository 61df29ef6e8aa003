"""Nothing is asked of other machines that the user did not ask for."""

import pytest
from commands import run
from listener import heard, listening

SMALL = ["dataset.phases={train: 8, dev: 2, final: 2}", "dataset.recipe.steps=20", "plots=off"]


def test_a_cell_tells_nobody(tmp_path):
    listener = listening(tmp_path)
    cell = ["mico_exp", "metric=loss", "formula=1", "scenario=inf", *SMALL]
    assert "validation TPR" in run(*cell, cwd=tmp_path, fresh=True, **listener).stdout
    assert heard(tmp_path) == []
    assert not (tmp_path / "config" / "mlflow").exists()  # an installation id would be there


def test_the_listener_hears(tmp_path):
    (tmp_path / "asks.py").write_text(
        "import contextlib, socket\n"
        "for host in ('127.0.0.1', '192.0.2.1'):\n"
        "    with contextlib.suppress(OSError):\n"
        "        socket.create_connection((host, 9), timeout=0.01)\n"
    )
    run("asks", cwd=tmp_path, fresh=True, **listening(tmp_path))
    assert [line.split(" by ")[0] for line in heard(tmp_path)] == [
        "socket.getaddrinfo 192.0.2.1",
        "socket.connect 192.0.2.1",
    ]


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("MLFLOW_DISABLE_TELEMETRY", "true", "false"),
        ("HF_HUB_DISABLE_TELEMETRY", "1", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0", "1"),
    ],
)
def test_the_users_own_setting_wins(tmp_path, name, ours, theirs):
    (tmp_path / "shows.py").write_text(f"import os, mico_exp\nprint(os.environ[{name!r}])\n")
    for told, expected in ((None, ours), (theirs, theirs)):
        assert run("shows", cwd=tmp_path, fresh=True, **{name: told}).stdout.strip() == expected
