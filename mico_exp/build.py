"""The command that makes a challenge: trains its models and writes the competition's tree.

``python -m mico_exp.build dataset=digits`` builds all scenarios, ``scenario=hi`` one of them.
"""

import logging
from typing import TYPE_CHECKING

from mico_exp import cli
from mico_exp.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("mico_exp.build")


def command(cfg: "DictConfig") -> None:
    """Build one scenario; Hydra calls this for each."""
    from mico_exp import choices
    from mico_exp.challenge import scenario_folder
    from mico_exp.recipe import build

    choices.privacy(cfg)  # what is wrong with it is said before anything is read
    records = choices.records(cfg)
    recipe = choices.recipe(cfg, len(records.labels))
    if recipe is None:
        raise InputError(f"dataset `{cfg.dataset.name}` has no recipe: it cannot be built here.")
    root = choices.root(cfg)
    done = build(root, recipe, records)
    folder = scenario_folder(root, recipe.challenge, recipe.scenario)
    log.info("%s: %s", folder, "built" if done else "complete, nothing to do")


if __name__ == "__main__":
    cli.launch(command, "build")
