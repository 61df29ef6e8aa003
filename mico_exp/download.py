"""The command that fetches the competition's models, checks them and unpacks them.

``python -m mico_exp.download dataset=purchase100``, or ``--from`` archives that are here already.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mico_exp.cli import OPTIONS
from mico_exp.errors import InputError

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
        if all((folder / scenario).exists() for scenario in file.scenarios):
            print(f"{name}: {', '.join(file.scenarios)} are in {folder} already")
            continue
        if archives and name not in here:
            print(f"{name}: not among the archives given")
            continue
        path = here.get(name) or fetch(wanted.repository, name, cfg.repo_type, folder)
        verify_md5(path, file.md5)
        new = unpack(path, folder, list(file.scenarios))
        print(f"{name}: unpacked {', '.join(new)} into {folder}; {path} is needed no more")
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


def fetch(repository: str, name: str, repo_type: str, folder: Path) -> Path:
    """Fetch one file from the Hugging Face hub, beside the tree; an earlier part is gone on with.

    Raises:
        InputError: the hub, the repository or the file cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    from mico_exp.archive import check_free_disk

    try:
        url = hf_hub_url(repository, name, repo_type=repo_type)
        size = get_hf_file_metadata(url).size or 0
        check_free_disk(folder, 2 * size)  # the archive, and what it unpacks to
        place = folder / ".download"
        print(f"Fetching {name}, {size / 1e9:.1f} GB, from {repository} into {place}")
        return Path(hf_hub_download(repository, name, repo_type=repo_type, local_dir=place))
    except InputError:
        raise
    except Exception as error:  # its HTTP library, and so what it raises, changes with releases
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{name} cannot be fetched from {repository} on the hub: {reason}. With the archive at "
            "hand: --from FILE."
        ) from error


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
    if chosen not in merged.archives:
        raise InputError(f"`dataset` must be one of {', '.join(merged.archives)}, got {chosen}.")
    return merged


if __name__ == "__main__":
    sys.exit(main())
