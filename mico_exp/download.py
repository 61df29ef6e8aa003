"""The command that fetches the competition's models, checks them and unpacks them.

``python -m mico_exp.download dataset=purchase100``, or ``--from`` archives that are here already.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mico_exp.cli import OPTIONS, end_on_signals
from mico_exp.errors import InputError
from mico_exp.hub import Hub

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
    from mico_exp.archive import unpack, verify_md5
    from mico_exp.challenge import scenario_folder

    wanted = cfg.archives[cfg.dataset]
    folder = scenario_folder(Path(cfg.paths.data), wanted.challenge, "")
    here = _given(archives, list(wanted.files))
    for name, file in wanted.files.items():
        scenarios = list(file.scenarios)
        if all((folder / scenario).exists() for scenario in scenarios):
            print(f"{name}: {', '.join(scenarios)} are in {folder} already")
        elif name in here:
            verify_md5(here[name], file.md5)
            _report(name, unpack(here[name], folder, scenarios), folder)
        elif archives:
            print(f"{name}: not among the archives given")
        else:
            hub = Hub(wanted.repository, cfg.repo_type, folder / ".download")
            _report(name, _from_hub(hub, name, file.md5, scenarios, folder), folder)
    what = "challenge=ddp" if cfg.dataset == "ddp" else f"dataset={cfg.dataset}"
    print(f"Look at it with: python -m mico_exp.doctor {what}")


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


def _report(name: str, new: list[str], folder: Path) -> None:
    print(f"{name}: {', '.join(new)} now in {folder}")


def _from_hub(hub: Hub, name: str, md5: str, scenarios: list[str], folder: Path) -> list[str]:
    """Fetch an archive, or the scenarios that it would hold where the hub keeps them unpacked."""
    from mico_exp.archive import unpack, verify_md5

    files = hub.files()
    if name in files:
        path = hub.fetch([name], files) / name
        try:
            verify_md5(path, md5)
        except InputError:
            path.unlink()  # or the next attempt would find it again
            raise
        new = unpack(path, folder, scenarios)
        path.unlink()
        return new
    new = []
    for scenario in scenarios:
        inside = {file: file.split("/") for file in files if scenario in file.split("/")[:-1]}
        if not inside:
            raise InputError(f"{hub.repository} on the hub has neither {name} nor {scenario}.")
        place = hub.fetch(list(inside), files)
        parts = next(iter(inside.values()))
        folder.mkdir(parents=True, exist_ok=True)
        place.joinpath(*parts[: parts.index(scenario) + 1]).rename(folder / scenario)
        new.append(scenario)
    return new


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
    if not str(merged.paths.data or "").strip():
        raise InputError("`paths.data` must name a folder, got nothing.")
    if chosen not in merged.archives:
        raise InputError(f"`dataset` must be one of {', '.join(merged.archives)}, got {chosen}.")
    return merged


if __name__ == "__main__":
    end_on_signals()
    sys.exit(main())
