"""The house's plan, read from the imports: who may know what, and no cycle."""

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

import mico_exp

PACKAGE = Path(mico_exp.__file__).parent
# Each may import those before it, and itself; the doors come last.
ORDER = [
    *("common", "challenge", "models", "training", "scores", "attacks", "results", "auditing"),
    *("runs", "config", "commands", "doors"),
]
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}


def room(name):
    """Package of a module."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 else "doors"


@cache
def tree(path):
    return ast.parse(path.read_text())


@cache
def imports(path, *, types_too=False):
    """Every dotted name that a module imports, at its top or within a function."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            if not types_too:
                return
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(path))
    return found


def own(path, **options):
    return imports(path, **options) & MODULES.keys()


def rooms_that_import(package):
    return {
        room(name)
        for name, path in MODULES.items()
        if any(found.partition(".")[0] == package for found in imports(path))
    }


def test_every_room_is_in_the_order():
    assert {room(name) for name in MODULES} == {*ORDER}


@pytest.mark.parametrize("name", MODULES)
def test_data_flows_one_way(name):
    later = ORDER[ORDER.index(room(name)) + 1 :]
    assert not [one for one in own(MODULES[name], types_too=True) if room(one) in later]


def test_only_commands_and_config_know_hydra():
    known = {"config", "commands", "doors"}
    assert rooms_that_import("hydra") | rooms_that_import("omegaconf") <= known


@pytest.mark.parametrize(
    ("package", "modules"),
    [("mlflow", ["runs.database"]), ("matplotlib", ["results.plots"])],
)
def test_few_modules_alone_know_a_library(package, modules):
    found = [
        name
        for name, path in MODULES.items()
        if any(one.partition(".")[0] == package for one in imports(path))
    ]
    assert found == [f"mico_exp.{module}" for module in modules]


@pytest.mark.parametrize("room_of_arrays", ["attacks", "results", "auditing"])
def test_arrays_need_no_torch(room_of_arrays):
    for name, path in MODULES.items():
        if room(name) == room_of_arrays:
            assert "torch" not in {found.partition(".")[0] for found in imports(path)}, name


def test_there_is_no_cycle():
    graph = {name: own(path, types_too=True) - {name} for name, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_nobody_imports_a_door():
    doors = {name for name in MODULES if room(name) == "doors"} - {"mico_exp.cli", "mico_exp"}
    for name, path in MODULES.items():
        assert not own(path) & doors, name


def test_doors_are_three_lines():
    for name, path in MODULES.items():
        if room(name) == "doors" and name not in ("mico_exp.cli", "mico_exp.__init__"):
            assert len(tree(path).body) <= 4, name


def test_functions_fit_on_a_screen():
    for path in MODULES.values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, f"{path.name}: {node.name}"
