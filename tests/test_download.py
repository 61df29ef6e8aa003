"""Archives that the tests make, honest and hostile, through the command."""

import hashlib
import io
import os
import stat
import tarfile
import zipfile

import pytest
from omegaconf import OmegaConf

from mico_exp import archive, cli, download
from mico_exp.errors import InputError

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
    options = OmegaConf.load(cli.OPTIONS / "download.yaml")
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


def test_another_root(published, tmp_path):
    arguments = ["dataset=purchase100", "--from", "given", f"paths.data={tmp_path / 'big'}"]
    assert download.main(arguments) == 0
    assert (tmp_path / "big" / "purchase100" / "purchase100_lo").is_dir()


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
    options = OmegaConf.load(cli.OPTIONS / "download.yaml")
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


class LocalHub:
    """Stands in for the network part: a folder with the files of a repository."""

    def __init__(self, origin):
        self.origin = origin

    def __call__(self, repository, repo_type, folder):
        assert (repository, repo_type) == ("szanella/MICO-purchase100", "dataset")
        self.repository, self.folder = repository, folder
        return self

    def files(self):
        found = [p for p in self.origin.rglob("*") if p.is_file()]
        return {p.relative_to(self.origin).as_posix(): p.stat().st_size for p in found}

    def fetch(self, names, sizes):
        for name in names:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes((self.origin / name).read_bytes())
        return self.folder


def test_the_hub_may_keep_an_archive(published, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "Hub", LocalHub(tmp_path / "given"))
    assert download.main(["dataset=purchase100"]) == 0
    for name, content in FILES.items():
        assert (tmp_path / "data" / "purchase100" / name).read_bytes() == content
    assert not list(tmp_path.glob("data/**/*.zip"))


def test_an_archive_of_the_hub_that_is_damaged_is_not_kept(published, tmp_path, monkeypatch):
    published.write_bytes(b"damaged")
    monkeypatch.setattr(download, "Hub", LocalHub(tmp_path / "given"))
    assert download.main(["dataset=purchase100"]) == 1
    assert not list(tmp_path.glob("data/**/*.zip"))


@pytest.mark.parametrize("prefix", ["", "some/where/"])
def test_the_hub_may_keep_the_tree_itself(published, tmp_path, monkeypatch, prefix):
    for name, content in FILES.items():
        path = tmp_path / "hub" / (prefix + name)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    monkeypatch.setattr(download, "Hub", LocalHub(tmp_path / "hub"))
    assert download.main(["dataset=purchase100"]) == 0
    for name, content in FILES.items():
        assert (tmp_path / "data" / "purchase100" / name).read_bytes() == content


def test_a_hub_with_neither(published, tmp_path, monkeypatch, capsys):
    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(download, "Hub", LocalHub(tmp_path / "hub"))
    assert download.main(["dataset=purchase100"]) == 1
    assert "neither purchase100.zip nor purchase100_inf" in capsys.readouterr().err


def test_a_scenario_twice_in_an_archive_is_refused(tmp_path):
    path = make_zip(tmp_path / "archive.zip", {**FILES, **{f"old/{n}": b"" for n in FILES}})
    with pytest.raises(InputError, match="holds purchase100_hi twice"):
        archive.unpack(path, tmp_path / "tree", ["purchase100_inf"])
