"""Whether audits of what the builder made with DP-SGD ever contradict its claim, and do of faults.

    python benchmarks/audit_builder.py FOLDER                       # as it is, and with each fault
    python benchmarks/audit_builder.py FOLDER --only "as it is"

Each draw is a scenario of its own, whose name all its random numbers hang on: digits with gradient
canaries, each in by a coin of its own. Their bits are audited by themselves (`independent`), and in
pairs (`paired`). Models are built, attacked and audited by the commands that anybody would type, in
processes forked off this one; a fault lives in the one that builds. The confidence of an audit is
such that with a right mechanism the chance that any draw of a game contradicts the claim is 5 % at
most. FOLDER is made.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

import torch

from mico_exp import cli
from mico_exp.commands import attack, audit, build  # noqa: F401 - once, for all that is forked
from mico_exp.training import stacked
from mico_exp.training.steps import Privacy

DRAWS, EPSILON, DELTA, ANY = 20, 1.0, 1e-5, 0.05
RIGHT = "as it is"
PRIVATISE = stacked.privatise
OPTIONS = [
    *("--config-dir=options", "dataset=digits", "canary=gradient", "canary.count=24"),
    *("dataset.phases={train: 10, dev: 30, final: 30}", "dataset.len_training=100"),
    *("dataset.recipe.batch_size=50", "dataset.recipe.steps=20", "dataset.recipe.clip_norm=0.1"),
    *("dataset.recipe.optimizer.lr=5", "dataset.recipe.optimizer.momentum=0"),
    "dataset.recipe.accountant=pld",
]
GAMES = ("independent", "paired")
SCENARIO = f"""name: {{}}
challenge: ${{{{dataset.name}}}}${{{{canary.suffix}}}}
epsilon: {EPSILON}
delta: {DELTA}
disclose_training: false
known_sample: null
"""


def noise_divided(by):
    def privatise(total, privacy, size, generator):
        less = Privacy(privacy.noise_multiplier / by, privacy.clip_norm)
        return PRIVATISE(total, less, size, generator)

    return {"privatise": privatise}


def no_norms(signals, _):
    return torch.zeros(signals[0].shape[:2])


MECHANISMS = {
    RIGHT: {},
    "noise divided by 5": noise_divided(5),
    "noise divided by 10": noise_divided(10),
    "clipping off": {"_norms": no_norms},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=MECHANISMS, help="one of them")
    parser.add_argument("--draws", type=int, default=DRAWS)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    print(f"Claims of add/remove ε = {EPSILON:g} at δ = {DELTA:g}; {asked.draws} draws; each audit "
          f"at {1 - ANY / asked.draws:.2%} confidence, so that where a claim holds the chance that "
          f"any draw of a game contradicts it is {ANY:.0%} at most")  # fmt: skip
    for name in [asked.only] if asked.only else MECHANISMS:
        started = time.perf_counter()
        folder = asked.folder.resolve() / name.replace(" ", "_")
        for game, told in audited(folder, asked.draws, MECHANISMS[name]):
            show(f"{name}, {game}", told, each=name == RIGHT)
        print(f"  {name}: {time.perf_counter() - started:.0f} s", flush=True)


def audited(folder, draws, patches):
    """What the audits in each game say of every draw: the scenarios of their files."""
    names = [f"draw{number}" for number in range(draws)]
    for name in names:
        option = folder / "options" / "scenario" / f"{name}.yaml"
        option.parent.mkdir(parents=True, exist_ok=True)
        option.write_text(SCENARIO.format(name))
    every, listed = f"scenario={','.join(names)}", f"scenarios=[{','.join(names)}]"
    run(folder, "build", [*OPTIONS, every], patches)
    cells = ["metric=canary_projection,loss", "formula=none", "plots=off", "-m"]
    run(folder, "attack", [*OPTIONS, every, *cells])
    for game in GAMES:
        run(folder, "audit", [*OPTIONS, listed, f"game={game}", f"confidence={1 - ANY / draws}"])
        (file,) = (folder / "audits").glob("*.json")
        yield game, json.loads(file.read_text())["scenarios"]


def run(folder, command, arguments, patches=()):
    """Run a command in a process of its own, where names of the mechanism mean something else."""
    given = (folder, command, arguments, dict(patches))
    process = multiprocessing.get_context("fork").Process(target=_run, args=given)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{command} has failed: {folder / 'said.txt'}")


def _run(folder, command, arguments, patches):
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    for name, wrong in patches.items():
        setattr(stacked, name, wrong)
    sys.argv = [command, *arguments]
    cli.launch(command, "config" if command == "attack" else None)


def show(title, told, each):
    """What is proven of all draws, beside the claim of the relation that the bits are of."""
    lower, claim = told[0]["lower"], told[0]["claimed"]
    claimed = claim["epsilon" if lower["relation"] == "add_remove" else "replace_one"]
    proven = [one["lower"]["epsilon"] for one in told]
    against = sum(one["contradicted"] for one in told)
    print(f"{title}: contradicted in {against} of {len(told)}")
    print(
        f"  claim {claimed:.2f} of {lower['relation']}; proven by {lower['method']} of "
        f"{lower['bits']} bits: median {statistics.median(proven):.2f}, at most {max(proven):.2f}",
        flush=True,
    )
    if each:
        print("  each:", *(f"{one:.2f}" for one in proven))


if __name__ == "__main__":
    main()
