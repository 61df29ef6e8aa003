"""Archives that the tests make, honest and hostile, through the command."""

import hashlib
import io
import os
import re
import shlex
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import HubServer
from omegaconf import OmegaConf

from mico_exp.challenge import archive
from mico_exp.commands import download
from mico_exp.common.errors import InputError
from mico_exp.config.typed import OPTIONS

FILES = {
    f"{scenario}/train/model_0/seed_challenge": b"7\n"
    for scenario in ("purchase100_inf", "purchase100_hi", "purchase100_lo")
}


def make_zip(path, files, prefix=""):
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(prefix + name, content)
    return path


def make_tar(path, files, prefix="", extra=()):
    with tarfile.open(path, "w:gz") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
        for entry in extra:
            made.addfile(entry)
    return path


def visible(folder):
    """Names in a folder, save for the lock of an unpacking."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("prefix", ["", "purchase100/", "./a/b/"])
def test_scenarios_end_up_in_their_place_whatever_wraps_them(tmp_path, make, prefix):
    path = make(tmp_path / "archive", FILES, prefix)
    names = ["purchase100_inf", "purchase100_hi", "purchase100_lo"]
    assert archive.unpack(path, tmp_path / "tree", names) == names
    for name, content in FILES.items():
        assert (tmp_path / "tree" / name).read_bytes() == content
    assert visible(tmp_path / "tree") == set(names)


def test_what_is_there_stays_as_it_is(tmp_path):
    path = make_zip(tmp_path / "archive.zip", FILES)
    mine = tmp_path / "tree" / "purchase100_hi" / "train"
    mine.mkdir(parents=True)
    new = archive.unpack(path, tmp_path / "tree", ["purchase100_inf", "purchase100_hi"])
    assert new == ["purchase100_inf"]
    assert list(mine.iterdir()) == []
    assert archive.unpack(path, tmp_path / "tree", ["purchase100_hi"]) == []


def link(name, target, kind=tarfile.SYMTYPE):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


HOSTILE = ["../outside", "/tmp/outside", "a/../../outside", "..\\outside", "C:\\outside"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_written_outside(tmp_path, make, name):
    path = make(tmp_path / "archive", {**FILES, name: b"evil"})
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match="would lie outside its folder: refused"):
        archive.unpack(path, tmp_path / "tree", ["purchase100_inf"])
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "tree"}
    assert visible(tmp_path / "tree") == set()


@pytest.mark.parametrize(
    "entry",
    [
        link("purchase100_inf/x", "/etc/passwd"),
        link("purchase100_inf/x", "../../.."),
        link("purchase100_inf/x", "/etc/passwd", tarfile.LNKTYPE),
        link("purchase100_inf/x", "", tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, entry):
    path = make_tar(tmp_path / "archive", FILES, extra=[entry])
    with pytest.raises(InputError, match="is a link or a device: refused"):
        archive.unpack(path, tmp_path / "tree", ["purchase100_inf"])
    assert visible(tmp_path / "tree") == set()


def test_links_in_a_zip_are_refused(tmp_path):
    path = make_zip(tmp_path / "archive", FILES)
    with zipfile.ZipFile(path, "a") as made:
        entry = zipfile.ZipInfo("purchase100_inf/x")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(entry, "/etc/passwd")
    with pytest.raises(InputError, match="is a link: refused"):
        archive.unpack(path, tmp_path / "tree", ["purchase100_inf"])
    assert visible(tmp_path / "tree") == set()


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_truncated_archive_leaves_nothing(tmp_path, make):
    files = {f"purchase100_inf/train/model_{i}/model.pt": os.urandom(5000) for i in range(9)}
    path = make(tmp_path / "archive", files)
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(InputError, match="archive"):
        archive.unpack(path, tmp_path / "tree", ["purchase100_inf"])
    assert visible(tmp_path / "tree") == set()


def test_a_damaged_directory_of_a_zip_is_one_line_or_harmless(tmp_path):
    path = make_zip(tmp_path / "archive.zip", {"s_inf/train/model_0/seed_challenge": b"7\n"})
    content, errors = path.read_bytes(), []
    for place in range(content.index(b"PK\1\2"), len(content)):
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        tree = tmp_path / f"tree-{place}"
        try:
            archive.unpack(path, tree, ["s_inf"])
            assert (tree / "s_inf" / "train" / "model_0" / "seed_challenge").read_bytes() == b"7\n"
        except InputError as error:
            errors.append(str(error))
    assert len(errors) > 20
    assert not [error for error in errors if "\n" in error]


def test_a_scenario_that_is_not_in_it(tmp_path):
    path = make_zip(tmp_path / "archive.zip", FILES)
    with pytest.raises(InputError, match="holds no scenario cifar10_inf, only purchase100_hi"):
        archive.unpack(path, tmp_path / "tree", ["cifar10_inf"])


def test_what_an_interrupted_unpacking_left_is_replaced(tmp_path):
    path = make_zip(tmp_path / "archive.zip", FILES)
    left = tmp_path / "tree" / ".archive.zip.unpacking" / "purchase100_inf" / "train" / "model_9"
    left.mkdir(parents=True)
    archive.unpack(path, tmp_path / "tree", ["purchase100_inf"])
    names = [p.name for p in (tmp_path / "tree" / "purchase100_inf" / "train").iterdir()]
    assert names == ["model_0"]


def test_free_disk_is_checked_first(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "archive.zip", FILES)
    assert archive.unpacked_size(path) == sum(map(len, FILES.values()))
    usage = type("Usage", (), {"free": 3})
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"needs 0\.0 GB of free disk"):
        archive.unpack(path, tmp_path / "tree", ["purchase100_inf"])
    assert not (tmp_path / "tree").exists()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """An archive whose MD5 is the published one, and the command's options to match."""
    (tmp_path / "given").mkdir()
    path = make_zip(tmp_path / "given" / "purchase100.zip", FILES, "purchase100/")
    options = OmegaConf.load(OPTIONS / "download.yaml")
    content = path.read_bytes()
    options.archives.purchase100.files["purchase100.zip"].md5 = hashlib.md5(content).hexdigest()
    (tmp_path / "conf").mkdir()
    OmegaConf.save(options, tmp_path / "conf" / "download.yaml")
    monkeypatch.setattr(download, "OPTIONS", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize("given", ["given/purchase100.zip", "given"])
def test_from_a_local_archive_to_the_tree(published, tmp_path, given, capsys):
    assert download.main(["dataset=purchase100", "--from", given]) == 0
    shown = capsys.readouterr().out
    assert "python -m mico_exp.doctor dataset=purchase100" in shown
    for name, content in FILES.items():
        assert (tmp_path / "data" / "purchase100" / name).read_bytes() == content
    assert download.main(["--from", given, "dataset=purchase100"]) == 0
    assert "are in data/purchase100 already" in capsys.readouterr().out


def test_another_root(published, tmp_path, capsys):
    place = f"paths.data={tmp_path / 'big disk'}"
    arguments = ["dataset=purchase100", "--from", "given", place]
    assert download.main(arguments) == 0
    (told,) = re.findall(r"python -m (.*)", capsys.readouterr().out)
    assert shlex.split(told) == ["mico_exp.doctor", "dataset=purchase100", place]
    assert (tmp_path / "big disk" / "purchase100" / "purchase100_lo").is_dir()


def test_a_wrong_md5_unpacks_nothing(published, tmp_path, capsys):
    published.write_bytes(published.read_bytes() + b"x")
    assert download.main(["dataset=purchase100", "--from", "given"]) == 1
    assert "MD5 must be" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=foo"], "must be one of cifar10, purchase100, sst2, ddp"),
        (["datasett=sst2"], "datasett"),
        (["dataset=sst2", "--from", "absent.tar.gz"], "must exist and be named one of sst2_inf"),
        (["dataset=sst2", "--from", "given"], "holds none of sst2_inf.tar.gz"),
        (["paths.data=x"], "dataset"),
    ],
)
def test_mistakes_are_one_line(published, capsys, arguments, message):
    assert download.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_published_sums_are_complete():
    options = OmegaConf.load(OPTIONS / "download.yaml")
    files = {name: f.md5 for a in options.archives.values() for name, f in a.files.items()}
    assert files == {
        "cifar10.zip": "c615b172eb42aac01f3a0737540944b1",
        "purchase100.zip": "67eba1f88d112932fe722fef85fb95fd",
        "sst2_lo.tar.gz": "205414dd0217065dcebe2d8adc1794a3",
        "sst2_hi.tar.gz": "d285958529fcad486994347478feccd2",
        "sst2_inf.tar.gz": "7dca44b191a0055edbde5c486a8fc671",
        "ddp.tar.gz": "1b9587c2bdf7867e43fb9da345f395eb",
    }


def test_a_hub_that_cannot_be_reached_says_what_else_to_do(published, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert download.main(["dataset=purchase100"]) == 1
    error = capsys.readouterr().err
    assert "szanella/MICO-purchase100 on the Hugging Face hub cannot be read" in error
    assert "--from FILE" in error


class NoWaiting:
    """Stands in for the `time` of a library that waits between attempts."""

    time, sleep = staticmethod(time.time), staticmethod(lambda _: None)


@pytest.fixture(scope="module")
def session():
    """The library's connections, closed at the end."""
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(published, session, tmp_path, monkeypatch):
    """A hub that keeps the tree unpacked; `published` has made the options."""
    for module in ("utils._http", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", NoWaiting)
    found = HubServer(FILES)
    with found.running() as endpoint:
        files = "/{repo_id}/resolve/{revision}/{filename}"
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + files)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield found


TREE = Path("data", "purchase100")
HI = "purchase100_hi/train/model_0/seed_challenge"
FETCH = ["dataset=purchase100"]


def placed():
    """Content of every file that a user sees under the challenge's folder."""
    files = [p.relative_to(TREE) for p in TREE.rglob("*") if p.is_file()]
    return {p.as_posix(): (TREE / p).read_bytes() for p in files if not p.parts[0].startswith(".")}


def of(*scenarios):
    return {name: content for name, content in FILES.items() if name.startswith(scenarios)}


def test_the_hub_may_keep_an_archive(hub, published):
    hub.files = {"purchase100.zip": published.read_bytes()}
    assert download.main(FETCH) == 0
    assert placed() == FILES
    assert not (TREE / ".download").exists()


def test_an_archive_of_the_hub_that_is_damaged_is_not_kept(hub, published, capsys):
    hub.files = {"purchase100.zip": b"damaged"}
    assert download.main(FETCH) == 1
    assert "MD5 must be" in capsys.readouterr().err
    assert not list(TREE.glob("**/*.zip"))


def test_an_archive_of_a_wrong_size_is_refused_before_its_md5(hub, published, capsys):
    hub.files = {"purchase100.zip": published.read_bytes()}
    hub.cut = {"purchase100.zip"}
    assert download.main(FETCH) == 1
    error = capsys.readouterr().err
    size = published.stat().st_size
    assert f"first purchase100.zip ({size - 1:,} of {size:,} bytes)" in error
    assert "MD5" not in error
    hub.cut = set()
    assert download.main(FETCH) == 0
    assert placed() == FILES


@pytest.mark.parametrize("prefix", ["", "some/where/"])
def test_the_hub_may_keep_the_tree_itself(hub, prefix):
    hub.files = {prefix + name: content for name, content in FILES.items()}
    hub.files["docs/purchase100_inf/readme.md"] = b"not a scenario"
    assert download.main(FETCH) == 0
    assert placed() == FILES
    assert not (TREE / ".download").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither purchase100.zip nor purchase100_inf"),
        (of("purchase100_inf"), "neither purchase100.zip nor purchase100_hi"),
        ({**FILES, f"old/{HI}": b"7"}, "holds purchase100_hi twice"),
        ({**FILES, "a/../../x": b"7"}, "'a/../../x' would lie outside its folder"),
    ],
)
def test_a_repository_that_does_not_fit(hub, capsys, files, message):
    hub.files = files
    assert download.main(FETCH) == 1
    assert message in capsys.readouterr().err
    assert hub.sent == []
    assert placed() == {}


def without_the_last_byte(hub):
    hub.cut = {HI}


def with_status(status):
    return lambda hub: hub.status.update({HI: status})


def with_a_connection_that_ends_early(hub):
    hub.broken = {HI}


@pytest.mark.parametrize(
    ("misbehave", "message"),
    [
        (with_status(503), f"1 of 1 files are not here whole, first {HI} (missing)"),
        (with_status(429), f"1 of 1 files are not here whole, first {HI} (missing)"),
        (with_status(404), f"1 of 1 files are not here whole, first {HI} (missing)"),
        (with_a_connection_that_ends_early, f"first {HI} (missing)"),
        (without_the_last_byte, f"first {HI} (1 of 2 bytes)"),
    ],
)
def test_a_file_that_does_not_come_is_named_and_the_next_attempt_goes_on(
    hub, capsys, misbehave, message
):
    misbehave(hub)
    assert download.main(FETCH) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert "The same command again fetches what is lacking" in error
    assert placed() == of("purchase100_inf")
    hub.status, hub.cut, hub.broken, hub.sent[:] = {}, set(), set(), []
    assert download.main(FETCH) == 0
    assert placed() == FILES
    assert not any(name.startswith("purchase100_inf") for name in hub.sent)


def test_files_that_are_here_are_not_fetched_again(hub):
    first, last = (f"purchase100_inf/train/model_{k}/seed_challenge" for k in (0, 9))
    hub.files = {first: b"7\n", last: b"8\n", **FILES}
    hub.status = {last: 503}
    assert download.main(FETCH) == 1
    assert placed() == {}
    hub.status = {}
    assert download.main(FETCH) == 0
    assert placed() == hub.files
    assert hub.sent.count(first) == 1


@pytest.mark.parametrize("status", [503, 429])
def test_half_of_a_scenario_is_none_when_the_hub_fails(hub, capsys, status):
    """The library returns without an error when files are here and the hub does not answer."""
    name = "purchase100_inf/train/model_9/seed_challenge"
    hub.files[name] = b"8\n"
    here = TREE / ".download" / hub.commit / name
    here.parent.mkdir(parents=True)
    here.write_bytes(b"8\n")
    hub.status = {"tree": status}
    assert download.main(FETCH) == 1
    expected = "1 of 2 files are not here whole, first purchase100_inf/train/model_0/seed_challenge"
    assert expected in capsys.readouterr().err
    assert placed() == {}
    hub.status = {}
    assert download.main(FETCH) == 0
    assert placed() == hub.files


def test_what_was_fetched_of_another_commit_is_not_mixed_in(hub):
    """Models of two commits may have the same names and sizes."""
    hub.status = {HI: 503}
    hub.files["purchase100_hi/train/model_9/seed_challenge"] = b"1\n"
    assert download.main(FETCH) == 1
    hub.status = {}
    hub.files = FILES | {"purchase100_hi/train/model_9/seed_challenge": b"2\n"}
    assert download.main(FETCH) == 0
    assert placed() == hub.files


def test_what_an_older_version_left_is_not_used(hub):
    for name in ("purchase100_inf/train/model_0/seed_challenge", "purchase100_hi/dev/model_3/x"):
        left = TREE / ".download" / name
        left.parent.mkdir(parents=True)
        left.write_bytes(b"1\n")
    assert download.main(FETCH) == 0
    assert placed() == FILES
    assert not (TREE / ".download").exists()


@pytest.mark.parametrize("packed", [True, False])
def test_a_listing_without_sizes(hub, published, capsys, packed):
    """An archive has its MD5; files alone could not be checked."""
    hub.files = {"purchase100.zip": published.read_bytes()} if packed else FILES
    hub.sizes = False
    assert download.main(FETCH) == (0 if packed else 1)
    assert placed() == (FILES if packed else {})
    if not packed:
        assert "does not tell the size of purchase100_inf/train" in capsys.readouterr().err


@pytest.mark.parametrize("status", [503, 429, 404, 401])
def test_a_listing_that_is_an_error(hub, capsys, status):
    hub.status = {"listing": status}
    assert download.main(FETCH) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert str(status) in error[0]
    assert not Path("data").exists()


def test_a_scenario_that_appears_meanwhile_stays_as_it_is(hub, capsys):
    mine = TREE / "purchase100_inf" / "mine"

    def appear(name):
        if name.startswith("purchase100_inf"):
            mine.parent.mkdir()
            mine.write_bytes(b"mine")

    hub.before = appear
    assert download.main(FETCH) == 1
    assert "purchase100_inf: cannot be put in place" in capsys.readouterr().err
    assert placed() == {"purchase100_inf/mine": b"mine"}
    assert download.main(FETCH) == 0
    assert placed() == {"purchase100_inf/mine": b"mine"} | of("purchase100_hi", "purchase100_lo")


def test_two_processes_at_once(hub, capsys):
    both = threading.Barrier(2, timeout=120)
    hub.before = lambda name: both.wait() if name == "listing" else None
    other = subprocess.Popen(
        [sys.executable, "-m", "mico_exp.download", *FETCH],
        env={**os.environ, "HF_ENDPOINT": huggingface_hub.constants.ENDPOINT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert download.main(FETCH) == 0
    theirs, error = other.communicate()
    assert other.returncode == 0, error
    assert sorted("now in" in shown for shown in (capsys.readouterr().out, theirs)) == [False, True]
    assert placed() == FILES
    assert sorted(hub.sent) == sorted(FILES)


def test_a_scenario_twice_in_an_archive_is_refused(tmp_path):
    path = make_zip(tmp_path / "archive.zip", {**FILES, **{f"old/{n}": b"" for n in FILES}})
    with pytest.raises(InputError, match="holds purchase100_hi twice"):
        archive.unpack(path, tmp_path / "tree", ["purchase100_inf"])
