"""The command that begins the option file of a data set of one's own.

``python -m mico_exp.new NAME kind=models`` writes ``options/dataset/NAME.yaml``, with comments that
say what to fill in and which files lie where, and shows the commands that come next.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

from mico_exp.common import require
from mico_exp.common.errors import InputError, printable
from mico_exp.config.typed import OPTIONS

KINDS = {
    "models": "many models, and for each the records that it was trained on",
    "single": "one model whose privacy is asked about, and reference models yet to be trained",
    "outputs": "no model, but what models gave for each record",
}
FORMULAS = "0,1,2,lira_online"
METRICS = {"models": "loss,confidence", "single": "loss,confidence", "outputs": "logit"}


def main(arguments: list[str] | None = None) -> int:
    """Write the file, and show what to do next; returns the exit status."""
    name, kind, folder = _read(arguments)
    path = folder / "dataset" / f"{name}.yaml"
    _check_name(name)
    write(path, name, kind)
    told = f"--config-dir={shlex.quote(str(folder))} dataset={name}"
    cells = f"metric={METRICS[kind]} formula={FORMULAS}"
    print(f"{path} is for {KINDS[kind]}. Fill it in, put the files where it says, and then:\n")
    if kind == "single":
        print(f"python -m mico_exp.shadow {told} kind=pool models=64")
    print(f"python -m mico_exp.doctor {told}")
    print(f"python -m mico_exp {told} {cells} -m")
    print(f"python -m mico_exp.report {told}")
    return 0


def _read(arguments: Sequence[str] | None) -> tuple[str, str, Path]:
    """Name, kind and folder as they were typed.

    Raises:
        InputError: a kind that there is not, or a setting that there is not.
    """
    kinds = "".join(f"\n  kind={kind:9}{what}" for kind, what in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m mico_exp.new",
        usage=f"%(prog)s NAME [kind={'|'.join(KINDS)}] [folder=options]",
        description="Begin the option file of a data set of your own, FOLDER/dataset/NAME.yaml.",
        epilog=f"kinds:{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="of the data set")
    parser.add_argument("settings", nargs="*", help="kind=models, folder=options")
    typed = parser.parse_args(arguments)
    found = {"kind": "models", "folder": "options"}
    for text in typed.settings:
        key, _, value = text.partition("=")
        if key not in found:
            raise InputError(f"{printable(text, 80)!r} must be one of kind=… and folder=….")
        found[key] = value
    kind, folder = found.values()
    require.one_of("kind", kind, KINDS)
    return typed.name, kind, require.folder("folder", folder)


def _check_name(name: str) -> None:
    """Want a name that is one in YAML and on the command line too, and no option's already.

    Raises:
        InputError: it is none.
    """
    require.name("NAME", name)
    require.name("NAME", OmegaConf.create(f"name: {name}").name)
    if (OPTIONS / "dataset" / f"{name}.yaml").exists():
        raise InputError(f"`NAME` must be a new one: {name} is a data set that mico_exp has.")


def write(path: Path, name: str, kind: str) -> None:
    """Write an option file, where there is none.

    Raises:
        InputError: there is one.
    """
    pages = Environment(
        loader=PackageLoader("mico_exp", "templates/dataset"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    text = pages.get_template(f"{kind}.yaml").render(name=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path} is there already, and nothing is overwritten.") from None
