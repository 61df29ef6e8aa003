"""The command that fetches the competition's models, checks them and unpacks them.

``python -m mico_exp.download dataset=purchase100``, or ``--from`` archives that are here already.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mico_exp.challenge.archive import put_in_place, unpack, verify_md5
from mico_exp.challenge.hub import Hub
from mico_exp.challenge.phases import PHASES
from mico_exp.common import require
from mico_exp.common.atomic import exclusive
from mico_exp.common.errors import InputError
from mico_exp.config.typed import OPTIONS

EXAMPLES = """\
examples:
  python -m mico_exp.download dataset=purchase100
  python -m mico_exp.download dataset=sst2 --from sst2_inf.tar.gz --from sst2_hi.tar.gz
  python -m mico_exp.download dataset=ddp --from folder/of/archives paths.data=/big/disk
"""


def download(cfg: DictConfig, archives: Sequence[Path]) -> None:
    """Fetch, check and unpack the archives of one challenge.

    Args:
        cfg: ``conf/download.yaml``.
        archives: files that are here already, or folders of them; nothing is fetched then.
    """
    wanted = cfg.archives[cfg.dataset]
    folder = require.folder("paths.data", cfg.paths.data) / wanted.challenge
    here = _given(archives, list(wanted.files))
    hub = Hub(wanted.repository, cfg.repo_type, folder / ".download")
    for name, file in wanted.files.items():
        scenarios = list(file.scenarios)
        if not _absent(folder, scenarios):
            _report(name, [], scenarios, folder)
        elif name in here:
            verify_md5(here[name], file.md5)
            _report(name, unpack(here[name], folder, scenarios), scenarios, folder)
        elif archives:
            print(f"{name}: not among the archives given")
        else:
            _report(name, _from_hub(hub, name, file.md5, scenarios, folder), scenarios, folder)
    scenarios = [name for file in wanted.files.values() for name in file.scenarios]
    of_its_own = all(name.startswith(f"{cfg.dataset}_") for name in scenarios)
    what = f"dataset={cfg.dataset}" if of_its_own else f"challenge={wanted.challenge}"
    words = [what] if str(cfg.paths.data) == "data" else [what, f"paths.data={cfg.paths.data}"]
    print(f"Look at it with: python -m mico_exp.doctor {shlex.join(words)}")


def _given(archives: Sequence[Path], names: list[str]) -> dict[str, Path]:
    """Local archives by name, from files and folders that the user named."""
    found: dict[str, Path] = {}
    for path in archives:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        known = {file.name: file for file in files if file.name in names and file.is_file()}
        if not known:
            what = "holds none of" if path.is_dir() else "must exist and be named one of"
            raise InputError(f"{path}: {what} {', '.join(names)}.")
        found |= known
    return found


def _absent(folder: Path, scenarios: Sequence[str]) -> list[str]:
    return [scenario for scenario in scenarios if not (folder / scenario).exists()]


def _report(name: str, new: list[str], scenarios: list[str], folder: Path) -> None:
    if new:
        print(f"{name}: {', '.join(new)} now in {folder}")
    else:
        print(f"{name}: {', '.join(scenarios)} are in {folder} already")


def _from_hub(hub: Hub, name: str, md5: str, scenarios: list[str], folder: Path) -> list[str]:
    """Fetch an archive, or the scenarios that it would hold where the hub keeps them unpacked.

    One process at a time; the others then find the work done.
    """
    packed = name in hub.files()
    with exclusive(folder / ".download.lock", "downloading"):
        absent = _absent(folder, scenarios)
        if packed and absent:
            _fetch_archive(hub, name, md5, absent, folder)
        else:
            _fetch_scenarios(hub, name, absent, folder)
        shutil.rmtree(hub.folder, ignore_errors=True)
    return absent


def _fetch_archive(hub: Hub, name: str, md5: str, absent: list[str], folder: Path) -> None:
    path = hub.fetch([name], spare=hub.files()[name] or 0) / name
    try:
        verify_md5(path, md5)
    except InputError:
        path.unlink()  # or the next attempt would find it again
        raise
    unpack(path, folder, absent)


def _fetch_scenarios(hub: Hub, name: str, absent: list[str], folder: Path) -> None:
    """Put each scenario in its place as soon as it is here whole."""
    places = {scenario: _place(hub, name, scenario) for scenario in absent}
    for scenario, place in places.items():
        inside = {file: size for file, size in hub.files().items() if file.startswith(f"{place}/")}
        if unknown := [file for file, size in inside.items() if size is None]:
            raise InputError(
                f"{hub.repository} on the hub does not tell the size of {unknown[0]}: whether a "
                "download is complete could not be checked."
            )
        put_in_place(hub.fetch(list(inside)) / place, folder / scenario)


def _place(hub: Hub, name: str, scenario: str) -> str:
    """Where in the repository a scenario lies, whatever folders wrap it."""
    found = {
        str(folder.parent)
        for file in hub.files()
        for folder in PurePosixPath(file).parents
        if folder.name in PHASES and folder.parent.name == scenario
    }
    if not found:
        raise InputError(f"{hub.repository} on the hub has neither {name} nor {scenario}.")
    if len(found) > 1:
        raise InputError(f"{hub.repository} on the hub holds {scenario} twice: refused.")
    return found.pop()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mico_exp.download",
        description="Fetch the competition's models, check them, and unpack them into the tree.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="key=value",
        help="dataset=cifar10, purchase100, sst2 or ddp, and any other key of conf/download.yaml",
    )
    parser.add_argument(
        "--from",
        dest="archives",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="an archive that is here already, or a folder of them; nothing is fetched then",
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        download(_configuration(options.overrides), options.archives)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _configuration(overrides: list[str]) -> DictConfig:
    cfg = OmegaConf.load(OPTIONS / "download.yaml")
    OmegaConf.set_struct(cfg, True)
    try:
        merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist(overrides))
        chosen = str(merged.dataset)
    except OmegaConfBaseException as error:
        raise InputError(f"conf/download.yaml: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    require.folder("paths.data", merged.paths.data)
    if chosen not in merged.archives:
        raise InputError(f"`dataset` must be one of {', '.join(merged.archives)}, got {chosen}.")
    return merged
