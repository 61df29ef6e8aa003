"""What makes two things the same: files by their bytes, functions by their code."""

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, GenericAlias, ModuleType
from typing import Any

import numpy as np

from mico_exp.atomic import write_text
from mico_exp.errors import InputError

PLAIN = (bool, int, float, complex, str, bytes, type(None))
CONTAINERS = (tuple, list, set, frozenset, dict)
MEMORY_VERSION = 2  # 1 remembered files without a check; raise it when a check changes
RACY_SECONDS = 2.0  # a file changed this recently may change again within one clock tick


def digest(*parts: str) -> str:
    """SHA-256 of the parts in order, as hexadecimal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class FileFingerprints:
    """SHA-256 of files, remembered on disk between runs while nothing about the file changes.

    A remembered value counts only while inode, size and both time stamps are the same, as in
    git's index; so the 780 MB of a CIFAR-10 scenario are read once and not for every grid cell.
    What a check said of a file is remembered with it; a file that failed is not remembered.
    """

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self._changed = False
        self._known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(memory.read_text(encoding="utf-8"))
            if known["version"] == MEMORY_VERSION:
                self._known |= known["files"]

    def __enter__(self) -> "FileFingerprints":
        return self

    def __exit__(self, *_: object) -> None:
        self.save()  # what was read is remembered even if something then fails

    def of(self, path: Path) -> str:
        """SHA-256 of the file's content, as hexadecimal.

        Raises:
            InputError: the file cannot be read.
        """
        return self.checked(path, _unchecked)[0]

    def checked(self, path: Path, check: Callable[[Path], str]) -> tuple[str, str]:
        """SHA-256 of the file's content, and what `check`, a function, says of the file.

        Raises:
            InputError: the file cannot be read, or `check` refuses it.
        """
        try:
            return self._look(path, check)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}.") from error

    def _look(self, path: Path, check: Callable[[Path], str]) -> tuple[str, str]:
        status = path.stat()
        times = [status.st_mtime_ns, status.st_ctime_ns]
        seen = [check.__name__, status.st_ino, status.st_size, *times]
        name = str(path.absolute())
        if (known := self._known.get(name)) and known[:-2] == seen:
            return str(known[-2]), str(known[-1])
        found = check(path)
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - status.st_mtime > RACY_SECONDS:
            self._known[name] = [*seen, value, found]
            self._changed = True
        return value, found

    def save(self) -> None:
        """Remember what was read. Two processes may overwrite each other: it is only a memory."""
        if self._changed:
            with contextlib.suppress(OSError, InputError):
                memory = {"version": MEMORY_VERSION, "files": self._known}
                write_text(self.memory, json.dumps(memory), durable=False)
            self._changed = False


def _unchecked(path: Path) -> str:  # noqa: ARG001
    return ""


def definition(target: Any) -> str:
    """SHA-256 of what a function, class or callable object does.

    That is its code and all of its package that it names, with constants, defaults and the
    arguments bound by `functools.partial`. Comments, docstrings and layout do not count, nor does
    what other packages do.
    """
    return digest(json.dumps(_describe(target, set())))


def _describe(target: Any, seen: set[int]) -> Any:
    """Say of a value, as nested lists, what can change what it does; each function once."""
    if isinstance(target, PLAIN):
        return repr(target)
    if isinstance(target, (tuple, list)):
        return [_describe(part, seen) for part in target]
    if isinstance(target, (set, frozenset)):
        return sorted(map(repr, target))
    if isinstance(target, dict):
        return [[repr(key), _describe(value, seen)] for key, value in target.items()]
    if isinstance(target, functools.partial):
        return [
            "partial",
            *(_describe(p, seen) for p in (target.func, target.args, target.keywords)),
        ]
    if callable(target):
        target = inspect.unwrap(target)  # what functools.cache and other wrappers hide
    if id(target) in seen:
        return getattr(target, "__qualname__", type(target).__qualname__)
    seen.add(id(target))
    if isinstance(target, FunctionType):
        cells = [cell.cell_contents for cell in target.__closure__ or ()]
        parts = [target.__defaults__, target.__kwdefaults__, cells, _mentioned(target)]
        return [_normalised_source(target), _describe(parts, seen)]
    if isinstance(target, type):
        package = target.__module__.partition(".")[0]
        bases = [base for base in target.__bases__ if _belongs(base, package)]
        return [_normalised_source(target), _describe([*_functions(target), *bases], seen)]
    if not isinstance(target, BuiltinFunctionType) and hasattr(target, "__array__"):
        array = np.asarray(target)
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if not hasattr(target, "__dict__"):
        return getattr(target, "__qualname__", type(target).__qualname__)
    state = {name: value for name, value in vars(target).items() if name != "__doc__"}
    return [_describe(type(target), seen), _describe(state, seen)]


def _mentioned(function: FunctionType) -> dict[str, Any]:
    """Globals that a function names: data, and functions and classes of its own package."""
    package = function.__module__.partition(".")[0]
    names = _names(function.__code__)
    found: dict[str, Any] = {}
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            if value.__name__.partition(".")[0] == package:
                inner = {n: getattr(value, n) for n in names if hasattr(value, n)}
                found |= {n: v for n, v in inner.items() if _belongs(v, package)}
        elif _belongs(value, package):
            found[name] = value
    return dict(sorted(found.items()))


def _belongs(value: Any, package: str) -> bool:
    """Tell data and the package's own code from the code of others."""
    if isinstance(value, (ModuleType, GenericAlias)):
        return False
    if callable(value):
        value = inspect.unwrap(value)
    if isinstance(value, (FunctionType, type)):
        return value.__module__.partition(".")[0] == package
    return isinstance(value, (*PLAIN, *CONTAINERS)) or hasattr(value, "__array__")


def _functions(target: type) -> list[FunctionType]:
    """Methods of a class, in whatever they are wrapped."""
    members = [getattr(value, "__func__", value) for value in vars(target).values()]
    members += [value.fget for value in members if isinstance(value, property)]
    return [value for value in members if isinstance(value, FunctionType)]


def _names(code: CodeType) -> set[str]:
    """Every global or attribute that a function and the functions within it mention."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


@functools.cache  # a function's source never changes while it lives
def _normalised_source(target: FunctionType | type) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(target)))
    except (OSError, TypeError, SyntaxError):  # written in C, typed at a prompt, or a lambda
        code = getattr(target, "__code__", None)
        return f"{target.__module__}.{target.__qualname__}{code and code.co_code.hex()}"
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
