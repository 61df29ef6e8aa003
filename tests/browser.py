"""A real browser, where there is one."""

import os
import shutil
import subprocess
import tempfile

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]


def open_page(address, *flags, width=1500, height=1000, milliseconds=4000):
    """The page's DOM once its scripts have run, and what it wrote to the console."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                program,
                *FLAGS,
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                f"--virtual-time-budget={milliseconds}",
                *(flags or ["--dump-dom"]),
                address,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={**os.environ, "TZ": "UTC"},
        )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
