"""What is installed from a wheel works without a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_carries_the_options(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    options = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    carried = installed / "mico_exp" / "conf"
    assert {path.relative_to(carried) for path in carried.rglob("*.yaml")} == options
    code = (
        "import mico_exp, runpy, sys\n"
        f"assert mico_exp.__file__.startswith({str(installed)!r})\n"
        "sys.argv = ['mico_exp', 'formula=2', 'scenario=inf', '--cfg', 'job']\n"
        "runpy.run_module('mico_exp', run_name='__main__', alter_sys=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mico_exp.attacks.formulas.offset" in done.stdout
