"""Models that are trained elsewhere, by whatever means, put into the competition's tree.

::

    for model in own_models("data", "mine", "mine_inf", Sizes(1797, 300, 50), {"train": 100}):
        network = train(records[model.training])
        model.save(network.state_dict())
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mico_exp.challenge.phases import PHASES
from mico_exp.challenge.protocol import MAX_SEED, Sizes, Split
from mico_exp.challenge.tree import ModelFolder, scenario_folder
from mico_exp.challenge.truth import truth_folder
from mico_exp.common.arrays import Indices
from mico_exp.common.errors import InputError
from mico_exp.models.folders import begin, packed, write_model


@dataclass(frozen=True, eq=False)
class OwnModel:
    """A model that is to be trained.

    phase: train, dev or final. number: among all models.
    training: (n,) indices of the records to train it on, members of its challenge included.
    """

    phase: str
    number: int
    training: Indices
    truth: Path | None
    split: Split
    seeds: ModelFolder
    disclose_training: bool

    def save(self, state: Mapping[str, torch.Tensor], **told: float) -> None:
        """Write its folder, whole or not at all.

        Args:
            state: its `state_dict()`.
            told: ``accuracy``, ``epsilon``, where they are known.
        """
        files = {name: f"{value:g}" for name, value in told.items()}
        disclosed = self.disclose_training
        where = self.seeds.path, self.truth, self.seeds, self.split
        write_model(*where, packed(state), files, disclose_training=disclosed)


def own_models(
    root: str | Path,
    challenge: str,
    scenario: str,
    sizes: Sizes,
    models: Mapping[str, int],
    seed: int = 0,
    *,
    disclose_training: bool = False,
) -> Iterator[OwnModel]:
    """Give each model that is not there yet, in the order train, dev, final.

    The same seed gives the same records to train on, so that what was interrupted goes on.

    Args:
        root: of the tree, `paths.data`.
        challenge: folder of all its scenarios, which an option names.
        scenario: folder of this one, ``<data set>_<scenario>``.
        sizes: how many records there are, are trained on, and are members at stake.
        models: phase → how many.
        seed: of who is a member of what.
        disclose_training: dev and final models tell their training sets, but for the challenge.

    Raises:
        InputError: there is no such phase, or the folder was begun otherwise: with other sizes,
            numbers of models, seed or disclosure.
    """
    if unknown := sorted(set(models) - set(PHASES)):
        raise InputError(f"`models` must name phases of {', '.join(PHASES)}, got {unknown[0]!r}.")
    within = scenario_folder(Path(root), challenge, scenario)
    apart = scenario_folder(truth_folder(Path(root)), challenge, scenario)
    asked = {
        "seed": seed,
        "records": sizes.records,
        "len_training": sizes.training,
        "len_challenge": sizes.challenge,
        "models": {phase: models.get(phase, 0) for phase in PHASES},
        "disclose_training": disclose_training,
    }
    begin(within, asked)
    number = 0
    for phase in PHASES:
        for _ in range(models.get(phase, 0)):
            place = Path(phase) / f"model_{number}"
            seeds = ModelFolder(
                within / place, *_seeds(seed, f"{challenge}/{scenario}/{phase}", number)
            )
            truth = None if phase == "train" else apart / place / "solution.csv"
            if not seeds.path.is_dir() or (truth is not None and not truth.exists()):
                split = seeds.split(sizes)
                assert split.training is not None
                trained = np.concatenate([split.member, split.training])
                yield OwnModel(phase, number, trained, truth, split, seeds, disclose_training)
            number += 1


def _seeds(seed: int, name: str, number: int) -> list[int]:
    """Seeds of a model's challenge, training and membership."""
    source = np.random.SeedSequence([seed, zlib.crc32(name.encode()), number])
    return [int(one) for one in np.random.default_rng(source).integers(MAX_SEED, size=3)]
