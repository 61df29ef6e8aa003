"""The house in numbers: what a newcomer has to know before the data's way is seen.

    .venv/bin/python benchmarks/house.py [checkout]

Modules of every folder; import statements within functions; functions that take a configuration;
and the pairs of modules between which calls go while one cell runs whose scores are there.
"""

import ast
import os
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parents[1]
CELL = ["metric=loss", "formula=1", "scenario=inf", "plots=off"]
SMALL = ["dataset.len_training=120", "dataset.len_challenge=10", "dataset.recipe.steps=20"]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def within(tree: ast.Module) -> int:
    """Import statements within functions."""
    found = {
        id(node)
        for function in functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return len(found)


def takes_configuration(function: ast.FunctionDef) -> bool:
    return any(one.arg in ("cfg", "config") for one in function.args.args)


def still(package: Path) -> None:
    """What the source alone says."""
    paths = sorted(package.rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
    rooms = Counter(path.parent.relative_to(package).as_posix() for path in paths)
    print("modules: " + ", ".join(f"{room} {count}" for room, count in rooms.items()))
    imports = sum(map(within, trees.values()))
    print(f"imports within functions: {imports}, {1000 * imports / lines:.2f} per 1,000 lines")
    takers = {path: sum(map(takes_configuration, functions(tree))) for path, tree in trees.items()}
    where = [path.relative_to(package).as_posix() for path, count in takers.items() if count]
    print(f"functions that take a configuration: {sum(takers.values())} in {len(where)} modules")


def traced() -> None:
    """Run one cell in this process, and count whose functions call whose."""
    pairs: set[tuple[str, str]] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_back is None or frame.f_code.co_name == "<module>":
            return
        names = [one.f_globals.get("__name__", "") for one in (frame.f_back, frame)]
        if names[0] != names[1] and all(name.startswith("mico_exp.") for name in names):
            pairs.add((names[0], names[1]))

    sys.argv[1:] = [*CELL, *SMALL]
    sys.setprofile(look)
    runpy.run_module("mico_exp", run_name="__main__")
    sys.setprofile(None)
    rooms = {tuple(name.split(".")[1] for name in pair) for pair in pairs}
    print(f"pairs of modules that call one another in a cell: {len(pairs)}")
    print(f"of folders: {len({one for one in rooms if one[0] != one[1]})}")
    modules = {name for pair in pairs for name in pair}
    below = {pair for pair in pairs if not pair[1].startswith("mico_exp.common")}
    print(f"modules that a cell is run by: {len(modules)}; pairs but for common: {len(below)}")


def main() -> None:
    if sys.argv[1:] == ["traced"]:
        return traced()
    checkout = Path(sys.argv[1]).resolve() if sys.argv[1:] else HERE
    still(checkout / "mico_exp")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        first = [sys.executable, "-m", "mico_exp", *CELL, *SMALL]
        subprocess.run(first, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        again = [sys.executable, __file__, "traced"]
        subprocess.run(again, cwd=folder, env=environment, check=True)
    return None


if __name__ == "__main__":
    main()
