"""The command that looks after the score store: what is there, is it sound, what is of no use.

``python -m mico_exp.store list``, ``verify`` or ``prune dataset=cifar10``
"""

import sys
from collections.abc import Iterable
from dataclasses import replace

from omegaconf import DictConfig
from rich.table import Table

from mico_exp.common.atomic import exclusive, remove_leftovers
from mico_exp.common.errors import InputError
from mico_exp.common.terminal import progress, show
from mico_exp.config import challenges, compose
from mico_exp.config.metrics import stored_metrics
from mico_exp.config.setup import Setup
from mico_exp.models.devices import PRECISIONS
from mico_exp.scores.store import DAMAGED, Columns, Place, ScoreStore, StoredFile

ACTIONS = ("list", "verify", "prune")


def command(cfg: DictConfig) -> None:
    """List, verify or prune."""
    if cfg.action not in ACTIONS:
        raise InputError(f"`action` must be one of {', '.join(ACTIONS)}, got {cfg.action}.")
    store = compose.store(cfg)
    if not store.folder.is_dir():
        raise InputError(f"{store.folder} does not exist: nothing has been extracted here.")
    if cfg.action == "list":
        _list(store)
    elif cfg.action == "verify":
        _verify(store)
    else:
        _prune(challenges.challenge(cfg).setups.values(), store, force=cfg.force)


def _list(store: ScoreStore) -> None:
    table = Table(title=f"Scores in {store.folder}", title_justify="left")
    for title in ("scenario", "metric", "models", "columns", "files", "size"):
        table.add_column(title, justify="left" if title in ("scenario", "metric") else "right")
    files = [(file, _models(file)) for file in store.files()]
    for scenario, metric in sorted({(file.scenario, file.metric) for file, _ in files}):
        some = [pair for pair in files if (pair[0].scenario, pair[0].metric) == (scenario, metric)]
        columns = [model for _, models in some for model in models]
        counts = len(set(columns)), len(columns), len(some)
        size = sum(file.size for file, _ in some)
        table.add_row(scenario, metric, *map(str, counts), _megabytes(size))
    show(table)
    count = sum(len(models) for _, models in files)
    size = sum(file.size for file, _ in files)
    print(f"{count} columns in {len(files)} files, {_megabytes(size)}")


def _models(file: StoredFile) -> list[tuple[str, str]]:
    """Phase and model of each column of a file; none if it is damaged, which `verify` tells."""
    try:
        return file.models()
    except DAMAGED:
        return []


def _readable(file: StoredFile) -> Columns:
    """What is in a file; nothing if it is damaged, which `verify` tells."""
    try:
        return file.columns()
    except DAMAGED:
        return {}


def _verify(store: ScoreStore) -> None:
    files = list(store.files())
    damaged: list[StoredFile] = []
    with progress("Verifying", len(files), unit="file") as bar:
        for file in files:
            if (reason := file.damage()) is not None:
                damaged.append(file)
                bar.write(f"{file.path} is damaged: {reason}", file=sys.stdout)
            bar.update()
    if damaged:
        raise InputError(
            f"{len(damaged)} of {len(files)} files are damaged. The next run computes them anew, "
            "and `prune` removes those that no run would read."
        )
    print(f"{len(files)} files, all sound.")


def _prune(setups: Iterable[Setup], store: ScoreStore, *, force: bool) -> None:
    """Remove what no run on the present data, models and code of a challenge would read."""
    count = freed = 0
    for setup in setups:
        place = setup.path
        if not (store.folder / place).is_dir():
            continue
        with exclusive(store.lock(place), f"extracting {place}"):
            remove_leftovers(store.folder / place)
            wanted, files = _wanted(setup), list(store.files(place))
            found = [(file, _readable(file)) for file in files]
            kept = [_kept(file, columns, wanted) for file, columns in found]
            if files and not any(kept) and not force:
                raise InputError(
                    f"All {sum(len(columns) for _, columns in found)} columns of {place} would go: "
                    "are the options those of its extraction (`dataset.*`, `paths.*`)? "
                    "`force=true` removes them all the same."
                )
            for (file, columns), some in zip(found, kept, strict=True):
                if not some or len(some) < len(columns):
                    count += len(columns) - len(some)
                    freed += file.size - file.keep(some)
    print(f"{count} columns removed, {_megabytes(freed)} freed.")


def _kept(file: StoredFile, columns: Columns, wanted: set[tuple[str, Place]]) -> Columns:
    """Columns of a file that a run would read."""
    return {place: column for place, column in columns.items() if (file.metric, place) in wanted}


def _wanted(setup: Setup) -> set[tuple[str, Place]]:
    """Columns, by metric, that runs on a scenario as it now is would read, in whatever precision.

    Raises:
        InputError: the scenario is not there, or a metric's option cannot be used.
    """
    metrics = stored_metrics(disclosed=setup.found.discloses)
    wanted: set[tuple[str, Place]] = set()
    for precision in PRECISIONS:
        in_precision = replace(setup, processor=replace(setup.processor, precision=precision))
        for task in in_precision.extraction.addresses.tasks(metrics):
            wanted |= {(name, address.place) for name, address in task.addresses.items()}
    return wanted


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
