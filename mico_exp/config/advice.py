"""Commands that a person is told to type: whole, quoted, and made of what is known here.

What a run says that it was made with is repeated only where it sets what figures hang on, by plain
keys: a run may be somebody else's, and what is printed is pasted.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from hydra.core.hydra_config import HydraConfig

from mico_exp.config.keys import is_among, key_of
from mico_exp.runs.record import USUAL_EXPOSURE

# Of a run's overrides those that decide its figures, and of this session's also where things are.
OF_RUN = (
    *("dataset.", "canary=", "canary.", "scenario.", "seed="),
    *("compute=", "compute.precision=", "compute.allow_"),
)
OF_HERE = ("paths.", *OF_RUN)
# What commands about a whole challenge are told, as commands about one scenario take it.
OF_SCENARIO = {"challenge_name": "challenge", "known_sample": "scenario.known_sample"}
PLAIN_KEY = re.compile(
    r"\+{0,2}[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*([./][A-Za-z0-9]+(_[A-Za-z0-9]+)*)*"
)
GRID = "metric=loss,confidence formula=0,1,2"


def command(module: str, *words: str) -> str:
    """Write a command with this session's folder of options: ``python -m mico_exp …``.

    A main configuration of one's own is repeated where the command is the one that runs.
    """
    flags = [*_config_dir(), *_config_name(module)]
    return " ".join(["python -m", module, *map(shlex.quote, [*flags, *words])])


def _config_name(module: str) -> list[str]:
    """``--config-name`` as it was given here, if it was and this is the same command."""
    job = HydraConfig.get().job
    usual = "config" if job.name == "mico_exp" else job.name
    here = module.removeprefix("mico_exp.") == job.name
    return [f"--config-name={job.config_name}"] if here and job.config_name != usual else []


def _config_dir() -> list[str]:
    """``--config-dir`` as it was given here, if it was."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"--config-dir={one.path}" for one in sources if one.provider == "command-line"]


def of_scenario(name: str, options: tuple[str, str], *words: str) -> str:
    """Write a command about one scenario, by its options, with all that decides what it is."""
    where = [f"dataset={_listed(options[:1])}", f"scenario={_listed(options[1:])}"]
    return command(f"mico_exp.{name}", *where, *words, *given())


def download(challenge: str) -> str:
    """Write the command that fetches a challenge of the competition, which knows no options."""
    paths = [text for text in HydraConfig.get().overrides.task if text.startswith("paths.data=")]
    return f"python -m mico_exp.download {shlex.join([f'dataset={challenge}', *paths])}"


def sweep(
    datasets: Iterable[str], scenarios: Iterable[str], grid: Sequence[str], more: Sequence[str]
) -> str:
    """Write the sweep of a grid over scenarios, ``metric=… formula=…``."""
    where = [f"dataset={_listed(datasets)}", f"scenario={_listed(scenarios)}"]
    return command("mico_exp", *where, *grid, *more, "-m")


def _listed(names: Iterable[str]) -> str:
    """Option names as one override's value, each once; quoted where Hydra's grammar wants it."""
    plain = re.compile(r"[A-Za-z0-9_./+:%@-]+")  # `cli` quotes what looks like a number
    return ",".join(name if plain.fullmatch(name) else f"'{name}'" for name in dict.fromkeys(names))


def advice(
    missing: Sequence[tuple[str, str]],
    cells: Sequence[str | None],
    exposure: str | None = USUAL_EXPOSURE,
) -> str:
    """Say what makes the runs that are missing.

    Args:
        missing: data set and scenario of each, by their options.
        cells: the one that is wanted of each, ``loss/1``; None for any.
        exposure: that is wanted; None for any.
    """
    datasets, scenarios = zip(*missing, strict=True)
    grid = GRID.split()
    if exposure not in (None, USUAL_EXPOSURE):
        grid = ["experiment=exposure", f"exposure={exposure}"]
    if wanted := [cell.split("/") for cell in cells if cell is not None]:
        metrics, formulas = zip(*wanted, strict=True)
        grid = [f"metric={_listed(metrics)}", f"formula={_listed(formulas)}"]
    return f"Run: {sweep(datasets, scenarios, grid, given())}"


def given() -> list[str]:
    """Overrides of this session that decide what is compared, and where it is.

    They are written for commands about one scenario: cells, builds and reference models.
    """
    words = [_of_scenario(text) for text in HydraConfig.get().overrides.task]
    named = tuple(f"{key}{sign}" for key in OF_SCENARIO.values() for sign in "=.")
    return [text for text in words if text.lstrip("+").startswith((*OF_HERE, *named))]


def _of_scenario(override: str) -> str:
    """An override as a command about one scenario takes it."""
    for key, other in OF_SCENARIO.items():
        if override.startswith((f"{key}=", f"{key}.")):
            return override.replace(key, other, 1)
    return override


def typed(*but: str) -> list[str]:
    """All overrides of this session, for a command of the same kind.

    but: keys that it does not have; what is below them is left out too.
    """
    return [text for text in HydraConfig.get().overrides.task if not is_among(key_of(text), but)]


def logged(overrides: str) -> list[str]:
    """What of a run's overrides may be repeated."""
    try:
        words = shlex.split(overrides)
    except ValueError:
        return []
    return [word for word in words if word.lstrip("+").startswith(OF_RUN) and _is_plain(word)]


def _is_plain(override: str) -> bool:
    key, _, value = override.partition("=")
    return bool(PLAIN_KEY.fullmatch(key)) and "_target_" not in value


def repeat(sweeps: Mapping[tuple[str, ...], Mapping[str, Sequence[str]]]) -> list[str]:
    """Write sweeps again, as few as have the same cells.

    sweeps: (dataset, scenario, *overrides) → metric → its formulas.
    """
    rectangles: dict[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (dataset, scenario, *more), grid in sweeps.items():
        for formulas in dict.fromkeys(map(tuple, grid.values())):
            metrics = tuple(name for name, have in grid.items() if tuple(have) == formulas)
            key = (dataset, metrics, formulas, tuple(more))
            rectangles.setdefault(key, []).append(scenario)
    return [
        sweep(
            [dataset],
            scenarios,
            [f"metric={_listed(metrics)}", f"formula={_listed(formulas)}"],
            more,
        )
        for (dataset, metrics, formulas, more), scenarios in rectangles.items()
    ]
