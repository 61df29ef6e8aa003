"""Commands among other people's disks, folders and servers."""

import http.server
import os
import shutil
import subprocess
import threading

import pytest
from commands import run
from tracking_server import Answers

TINY = [
    "dataset.len_training=120",
    "dataset.len_challenge=10",
    "dataset.phases={train: 3, dev: 1, final: 1}",
    "dataset.recipe.steps=10",
]
CELL = ["mico_exp", "metric=loss", "formula=0", "scenario=inf", "plots=off", *TINY]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with models and a database; tests copy it."""
    folder = tmp_path_factory.mktemp("built") / "user"
    folder.mkdir()
    run(*CELL, cwd=folder)
    return folder


def said(done):
    """The lines on standard error, of which there is no traceback."""
    assert "Traceback" not in done.stdout + done.stderr
    assert "Logging error" not in done.stdout + done.stderr
    return done.stderr.splitlines()


def a_file(path):
    path.write_text("x")


def a_dangling_link(path):
    path.symlink_to(path.parent / "gone" / "away")


@pytest.mark.parametrize(
    ("name", "make", "command"),
    [
        ("data", a_file, CELL),
        ("data", a_dangling_link, ["mico_exp.build", "scenario=inf", *TINY]),
        ("mlflow.db", lambda path: path.mkdir(), CELL),
        ("multirun", a_file, CELL),
        ("multirun", a_file, [*CELL, "-m"]),
        ("submissions", a_file, ["mico_exp.select_best", "scenarios=[inf]", *TINY[:2]]),
        ("reports", a_file, ["mico_exp.report", "scenarios=[inf]", *TINY[:2]]),
    ],
)
def test_what_is_in_the_way_is_one_line(built, tmp_path, name, make, command):
    folder = tmp_path / "user"
    if name in ("submissions", "reports"):
        shutil.copytree(built, folder)
    else:
        folder.mkdir()
    make(folder / name)
    lines = said(run(*command, cwd=folder, status=1))
    assert len([line for line in lines if "%|" not in line and line.strip()]) == 1, lines
    assert name in lines[-1]


def test_where_a_folder_for_temporary_files_is_absent_others_are_tried(built, tmp_path):
    shutil.copytree(built, tmp_path / "user")
    nowhere = {name: str(tmp_path / "nowhere") for name in ("TMPDIR", "TEMP", "TMP")}
    done = run(*CELL, cwd=tmp_path / "user", **nowhere)  # others are tried
    assert "validation TPR" in done.stdout


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    grid = ["mico_exp", "metric=loss", "formula=0,1", "scenario=inf", *TINY, "-m"]
    try:
        for size in ("64k", "1200k", "1400k"):  # full of a database, of models, of artifacts
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            lines = said(run(*grid, cwd=disk, status=1))
            about = [line for line in lines if "is full" in line or "No space left" in line]
            assert about, lines
            assert len(lines) <= 4, lines
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run(*grid, cwd=disk).stdout.count("validation TPR") == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_jobs_have_no_folders_of_their_own(tmp_path, mode):
    done = run(*CELL, "hydra.job.chdir=true", *mode, cwd=tmp_path, status=1)
    (line,) = said(done)
    assert line.startswith("`hydra.job.chdir` must be false: data, scores and runs belong to")
    assert "Runs:" not in done.stdout
    assert not list(tmp_path.rglob("mlflow.db"))


@pytest.mark.parametrize("key", ["paths.data", "paths.store"])
def test_a_path_is_a_folder(tmp_path, key):
    (line,) = said(run(*CELL, f"{key}=", cwd=tmp_path, status=1))
    assert line == f"`{key}` must name a folder, got nothing."


def test_paths_are_taken_as_a_shell_would(built, tmp_path):
    """From a folder of an odd name; one named 2024, and one of the user's own."""
    folder = tmp_path / "50% off? #1"
    folder.mkdir()
    shutil.copytree(built / "data", folder / "2024")
    where = ["paths.data=2024", "paths.store='~/scores'"]
    done = run(*CELL, *where, cwd=folder, HOME=str(tmp_path / "home"))
    assert "validation TPR" in done.stdout
    assert (tmp_path / "home" / "scores" / "digits" / "digits_inf").is_dir()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["50% off? #1", "home"]
    chosen = run("mico_exp.select_best", "scenarios=[inf]", *TINY[:2], *where, cwd=folder,
                 HOME=str(tmp_path / "home"))  # fmt: skip
    assert "digits_inf" in chosen.stdout


class Dying(Answers):
    """One that takes one run, and is gone."""

    def answer(self, name):
        if name == "create":
            self.server.shutdown()
            self.server.server_close()  # nobody listens any more
        super().answer(name)
        self.close_connection = True


def test_a_sweep_gives_up_where_its_server_is_gone(built, tmp_path):
    shutil.copytree(built / "data", tmp_path / "data")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dying)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    grid = [one for one in CELL if one != "formula=0"]
    place = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}"}
    place["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"  # it takes seconds between them
    done = run(*grid, "formula=0,1,2,none", "-m", cwd=tmp_path, status=1, **place)
    lines = said(done)
    assert sum("does not answer: Connection refused" in line for line in lines) == 1
    assert lines[-1].startswith("The sweep ends with job #1: twice in a row there was no answer.")
    assert "#2 :" not in done.stdout


BROKEN = {
    "tabs": ("name: tabs\n\tfunction: x\n", "tabs.yaml: line 2 cannot be read as YAML: found"),
    "twice": ("name: a\nname: b\n", "twice.yaml: line 2 cannot be read as YAML: found duplicate"),
    "empty": ("", "metric/empty.yaml must give a `name`, got none."),
}


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize("name", BROKEN)
def test_option_files_of_ones_own_that_say_nothing(tmp_path, name, mode):
    text, expected = BROKEN[name]
    (tmp_path / "options" / "metric").mkdir(parents=True)
    (tmp_path / "options" / "metric" / f"{name}.yaml").write_text(text)
    own = ["--config-dir=options", f"metric={name}", "formula=0", "scenario=inf", *TINY]
    lines = said(run("mico_exp", *own, *mode, cwd=tmp_path, status=1))
    assert len(lines) == 1
    assert expected in lines[0]


@pytest.mark.parametrize("name", ["solution.csv", "model.pt", "seed_training"])
def test_a_pipe_in_a_models_place_is_not_waited_for(built, tmp_path, name):
    shutil.copytree(built / "data", tmp_path / "data")
    path = tmp_path / "data" / "digits" / "digits_inf" / "train" / "model_0" / name
    path.unlink()
    os.mkfifo(path)
    (line,) = said(run(*CELL, cwd=tmp_path, status=1))
    assert line.endswith(f"model_0/{name} must be a file, got a pipe, a socket or a device.")
