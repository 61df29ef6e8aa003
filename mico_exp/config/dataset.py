"""What a data set's option tells: where its records come from, its network, its canaries."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from mico_exp.common.errors import InputError
from mico_exp.config.keys import check_known, meant
from mico_exp.config.making import make
from mico_exp.config.source import Source
from mico_exp.models.recorded import recorded
from mico_exp.training.recipe import Canaries

OF_DATASET = (  # keys of its option
    *("name", "scenarios", "records", "model", "outputs"),
    *("num_records", "len_training", "len_challenge", "phases", "recipe"),
)
OF_CANARY = ("name", "suffix", "records", "count", "seed", "one_per_model")


def source(cfg: DictConfig) -> Source:
    """Where the records of `cfg.dataset` come from."""
    dataset = cfg.dataset
    check_keys(dataset)
    told = [key for key in ("records", "outputs") if dataset.get(key) is not None]
    if len(told) != 1:
        raise InputError(
            f"dataset/{dataset.name}.yaml must give `records` and a `model`, or `outputs` alone, "
            f"got {' and '.join(told) or 'neither'}."
        )
    option, count = dataset[told[0]], dataset.get("num_records")
    if (among := canaries(cfg)) is not None:
        if told[0] == "outputs":
            raise InputError(
                f"dataset/{dataset.name}.yaml gives outputs alone: canaries are for models that "
                "are built here."
            )
        how = cfg.canary
        option = OmegaConf.create(
            {**how.records, "records": option, "count": among.count, "seed": how.seed}
        )
        count = count + among.count if type(count) is int else count
    return Source(dataset.name, OmegaConf.to_yaml(option, resolve=True), count)


def canaries(cfg: DictConfig) -> Canaries | None:
    """What canaries there are among the records; None without.

    Raises:
        InputError: the option says what cannot be.
    """
    how = cfg.canary
    check_known("canary", how, OF_CANARY)
    if how.records is None:
        return None
    if missing := [key for key in OF_CANARY if how.get(key) is None]:
        raise InputError(f"`canary.{missing[0]}` must be told, got null.")
    return Canaries(how["count"], how.one_per_model)


def network(cfg: DictConfig) -> Any:
    """Make the network of `cfg.dataset`, or what makes one; a table where outputs are known alone.

    Raises:
        InputError: it is not told, or cannot be made.
    """
    dataset = cfg.dataset
    if dataset.get("outputs") is not None:
        if dataset.get("model") is not None:
            raise InputError(
                f"dataset/{dataset.name}.yaml must give `outputs` without a `model`, got both."
            )
        return recorded
    if dataset.get("model") is None:
        raise InputError(f"dataset/{dataset.name}.yaml must give a `model` beside its `records`.")
    return make(dataset.model)


def check_keys(dataset: DictConfig) -> None:
    """Refuse keys of a data set's option that nothing reads: they are misspelt, or misplaced.

    Raises:
        InputError: there is one; the message names it.
    """
    if unknown := [str(key) for key in dataset if key not in OF_DATASET]:
        raise InputError(
            f"dataset/{dataset.name}.yaml: `{unknown[0]}` must be one of {', '.join(OF_DATASET)}, "
            f"or an argument of one of these.{meant(unknown[0], OF_DATASET)}"
        )


def lacking(dataset: DictConfig) -> tuple[str, ...]:
    """What metrics may need and a data set does not give, of whose models only outputs are known.

    Raises:
        InputError: they cannot be loaded.
    """
    if (outputs := dataset.get("outputs")) is None:
        return ()
    return Source(dataset.name, OmegaConf.to_yaml(outputs, resolve=True), None).lacks
