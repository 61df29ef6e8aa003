"""What makes two things the same: files by their bytes, functions by their code."""

import ast
import functools
import hashlib
import inspect
import json
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from mico_exp.atomic import write_text

RACY_SECONDS = 2.0  # a file changed this recently may change again within one clock tick


def digest(*parts: str) -> str:
    """SHA-256 of the parts in order, as hexadecimal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class FileFingerprints:
    """SHA-256 of files, remembered on disk between runs while nothing about the file changes.

    A remembered value counts only while inode, size and both time stamps are the same, as in
    git's index; so the 780 MB of a CIFAR-10 scenario are read once and not for every grid cell.
    """

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self._changed = False
        try:
            self._known: dict[str, list[Any]] = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def of(self, path: Path) -> str:
        """SHA-256 of the file's content, as hexadecimal."""
        status = path.stat()
        seen = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        name = str(path.absolute())
        if (known := self._known.get(name)) and known[:-1] == seen:
            return str(known[-1])
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - status.st_mtime > RACY_SECONDS:
            self._known[name] = [*seen, value]
            self._changed = True
        return value

    def save(self) -> None:
        """Remember what was read. Two processes may overwrite each other: it is only a memory."""
        if self._changed:
            write_text(self.memory, json.dumps(self._known), durable=False)
            self._changed = False


def definition(target: Any) -> str:
    """SHA-256 of what a function or class does: its code and all of its package that it uses.

    Comments, docstrings and layout do not count; constants, helpers and the arguments bound by
    `functools.partial` do.
    """
    return digest(*sorted(set(_definitions(target, set()))))


def _definitions(target: Any, seen: set[int]) -> Iterator[str]:
    if id(target) in seen:
        return
    seen.add(id(target))
    if isinstance(target, functools.partial):
        yield f"partial {target.args!r} {sorted(target.keywords.items())!r}"
        yield from _definitions(target.func, seen)
        return
    yield _normalised_source(target)
    package = target.__module__.partition(".")[0]
    for function in _functions(target):
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            if isinstance(value, (bool, int, float, str, bytes, tuple)):
                yield f"{name} = {value!r}"
            elif getattr(value, "__module__", "").partition(".")[0] == package:
                yield from _definitions(value, seen)


def _functions(target: Any) -> list[FunctionType]:
    if isinstance(target, FunctionType):
        return [target]
    members = [getattr(value, "__func__", value) for value in vars(target).values()]
    members += [value.fget for value in members if isinstance(value, property)]
    return [value for value in members if isinstance(value, FunctionType)]


def _names(code: CodeType) -> set[str]:
    """Every global that a function and the functions within it mention."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _normalised_source(target: Any) -> str:
    tree = ast.parse(textwrap.dedent(inspect.getsource(target)))
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
