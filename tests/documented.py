"""Option files that docs/own_models.md shows, as a command reads them."""

import re
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir

from mico_exp.config.dataset import source
from mico_exp.config.typed import OPTIONS

PAGE = Path(__file__).parents[1] / "docs" / "own_models.md"


def block(title, language="yaml"):
    """The first block of a language that the page shows under a title."""
    section = re.split(rf"\n#+ {re.escape(title)}\n", PAGE.read_text(encoding="utf-8"))[1]
    return section.split(f"```{language}\n")[1].split("```")[0]


def outputs_of(title):
    """Outputs by the option file that the page shows under a title, in the present folder."""
    option = block(title)
    name = yaml.safe_load(option)["name"]
    path = Path("options", "dataset", f"{name}.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(option)
    place = f"hydra.searchpath=[file://{Path('options').absolute()}]"
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        return source(compose("extract", overrides=[place, f"dataset={name}"])).outputs
