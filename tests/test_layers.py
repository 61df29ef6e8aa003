"""The house's plan, read from the imports: who may know what, and no cycle."""

import ast
import graphlib
from pathlib import Path

import pytest

import mico_exp

MODULES = {path.stem: path for path in Path(mico_exp.__file__).parent.glob("*.py")}
COMMANDS = {
    *("__main__", "build", "doctor", "download", "extract", "report", "score"),
    *("select_best", "store"),
}


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

    visit(ast.parse(path.read_text()))
    return found


def own(path, **options):
    names = {
        name.split(".")[1] for name in imports(path, **options) if name.startswith("mico_exp.")
    }
    return names & MODULES.keys()


def who_imports(package):
    return {
        name
        for name, path in MODULES.items()
        if any(found.partition(".")[0] == package for found in imports(path))
    }


def test_only_commands_know_hydra():
    assert who_imports("hydra") | who_imports("omegaconf") <= COMMANDS | {
        "advice",
        "choices",
        "choosing",
        "cli",
        "options",
        "sweep",
        "variants",
    }


def test_only_tracking_knows_mlflow():
    assert who_imports("mlflow") == {"tracking"}


def test_matplotlib_is_for_figures():
    assert who_imports("matplotlib") == {"figures"}


@pytest.mark.parametrize("name", ["formulas", "calibration", "scoring", "selection", "figures"])
def test_arrays_need_no_torch(name):
    seen, ahead = set(), [name]
    while ahead:
        module = ahead.pop()
        seen.add(module)
        assert "torch" not in {found.partition(".")[0] for found in imports(MODULES[module])}
        ahead += own(MODULES[module]) - seen


def test_there_is_no_cycle():
    graph = {name: own(path, types_too=True) - {name} for name, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_nobody_imports_a_command():
    for name, path in MODULES.items():
        assert not own(path) & (COMMANDS - {name}), name


def test_functions_fit_on_a_screen():
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, f"{path.name}: {node.name}"
