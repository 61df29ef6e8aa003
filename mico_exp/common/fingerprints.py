"""What makes two things the same: files by their bytes, functions by their code."""

import contextlib
import dis
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GenericAlias,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple

import numpy as np

from mico_exp.common.atomic import write_text
from mico_exp.common.errors import InputError

PLAIN = (bool, int, float, complex, str, bytes, type(None))
WRITTEN = (*PLAIN, Enum, PurePath, re.Pattern, range, slice, np.dtype)  # data that repr() tells
CONTAINERS = (tuple, list, set, frozenset, dict)
PACKAGE = __name__.partition(".")[0]
INSTALLED = {"site-packages", "dist-packages"}  # folders of what others wrote
MEMORY_VERSION = 3  # of what checks say: raise it when one changes
RACY_SECONDS = 2.0  # a file changed this recently may change again within one clock tick


def digest(*parts: str) -> str:
    """SHA-256 of the parts in order, as hexadecimal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Status(NamedTuple):
    """What the file system says of a file: something else once it is written again.

    modified, changed: nanoseconds since 1970, of its content and of anything about it.
    """

    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: str | Path) -> "Status":
        """Look at a file or folder.

        Raises:
            OSError: it cannot be looked at.
        """
        found = os.stat(path)
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def is_at_rest(self) -> bool:
        """It was not modified so recently that it may be again, and nothing would tell."""
        return time.time() - self.modified / 1e9 > RACY_SECONDS


def stamp(*folders: Path) -> str | None:
    """Hash of what the file system says of all that lies in folders: equal if nothing has changed.

    None where something has changed so recently that it might again, and nothing would tell.
    """
    found = [one for folder in folders for one in _statuses(folder)]
    latest = max((status.changed for _, status in found), default=0)
    return None if time.time() - latest / 1e9 < RACY_SECONDS else digest(repr(found))


def _statuses(folder: Path) -> Iterator[tuple[str, Status]]:
    """Path and status of all that lies in a folder, and of itself."""
    for place, _, files in os.walk(folder, followlinks=True):
        for path in (place, *(f"{place}/{name}" for name in files)):
            with contextlib.suppress(OSError):  # a link to nowhere: whoever reads it will tell
                yield path, Status.of(path)


class FileFingerprints:
    """SHA-256 of files, remembered on disk between runs while nothing about the file changes.

    A remembered value counts only while inode, size and both time stamps are the same, as in
    git's index; so the 780 MB of a CIFAR-10 scenario are read once and not for every grid cell.
    What a check said of a file is remembered with it; a file that failed is not remembered.
    One object looks at a file once: a command works with one.
    """

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self._changed = False
        self._known: dict[str, list[Any]] = {}
        self._seen: dict[tuple[Path, Callable[[Path], str]], tuple[str, str]] = {}
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
            if (path, check) not in self._seen:
                self._seen[path, check] = self._look(path, check)
            return self._seen[path, check]
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}.") from error

    def _look(self, path: Path, check: Callable[[Path], str]) -> tuple[str, str]:
        status = Status.of(path)
        seen = [check.__name__, *status]
        name = str(path.absolute())
        if (known := self._known.get(name)) and known[:-2] == seen:
            return str(known[-2]), str(known[-1])
        found = check(path)
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
        if status.is_at_rest:
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
    """SHA-256 of what a function, class or callable object does, as it is in memory.

    That is its compiled code, which an edit of its file does not change, and all of the user's own
    code and of this package that it names, with constants, defaults and the arguments bound by
    `functools.partial`. Comments, docstrings and layout do not count, nor does what installed
    packages do: of those the name counts alone. Another minor version of Python compiles otherwise,
    and so gives another hash.
    """
    return digest(json.dumps(_describe(target, {})))


def _describe(target: Any, seen: dict[int, Any]) -> Any:
    """Say of a value, as nested lists, what can change what it does; each function once."""
    if isinstance(target, WRITTEN):
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
    target = _unwrapped(target)
    if isinstance(target, MethodType):
        return ["method", _describe(target.__func__, seen), _describe(target.__self__, seen)]
    name = f"{getattr(target, '__module__', '')}.{_qualified(target)}"
    if isinstance(target, (FunctionType, type)) and not _is_own(_module(target)):
        return name
    if id(target) in seen:
        return name
    seen[id(target)] = target  # held, or its number might be another's
    if isinstance(target, FunctionType):
        cells = [_content(cell) for cell in target.__closure__ or ()]
        parts = [target.__defaults__, target.__kwdefaults__, cells, _mentioned(target)]
        return [_code(target.__code__), _describe(parts, seen)]
    if isinstance(target, type):
        bases = [base for base in target.__bases__ if base is not object]
        return [target.__qualname__, _describe([bases, _members(target)], seen)]
    return _describe_object(target, name, seen)


def _describe_object(target: Any, name: str, seen: dict[int, Any]) -> Any:
    """Say it of what is neither plain data nor a function or class: by its type and its state."""
    if not isinstance(target, BuiltinFunctionType) and hasattr(target, "__array__"):
        array = np.asarray(target)
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(target, (property, staticmethod, classmethod, functools.cached_property)):
        inner = [getattr(target, part, None) for part in ("fget", "fset", "__func__", "func")]
        return [type(target).__name__, _describe(inner, seen)]
    if not hasattr(target, "__dict__") and not _is_own(type(target).__module__):
        return name
    return [_describe(type(target), seen), _describe(_state(target), seen)]


def _state(target: Any) -> dict[str, Any]:
    """An object's attributes, without those that it computes of the others once and keeps."""
    kept = functools.cached_property
    found = {
        key: value
        for key, value in getattr(target, "__dict__", {}).items()
        if key != "__doc__" and not isinstance(getattr(type(target), key, None), kept)
    }
    for one in type(target).__mro__:
        for key, slot in vars(one).items() if "__slots__" in vars(one) else ():
            if isinstance(slot, MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # nothing is in it
                    found[f"{one.__qualname__}.{key}"] = slot.__get__(target)
    return found


def _unwrapped(target: Any) -> Any:
    """What installed wrappers hide, as `functools.cache`; a wrapper of one's own is code."""
    if not callable(target):
        return target
    return inspect.unwrap(target, stop=_is_code)


def _is_code(target: Any) -> bool:
    return isinstance(target, type) or (
        isinstance(target, FunctionType) and _is_own(_module(target))
    )


def _module(target: FunctionType | type) -> str | None:
    """Module that something was written in; `functools.wraps` gives a wrapper another's name."""
    if isinstance(target, FunctionType):
        return str(target.__globals__.get("__name__", "builtins"))
    return target.__module__


def _qualified(target: Any) -> str:
    return str(getattr(target, "__qualname__", type(target).__qualname__))


def _content(cell: CellType) -> Any:
    """What a closure holds; a name that is not bound yet holds nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


@functools.cache
def _code(code: CodeType) -> list[Any]:
    """A code object as nested lists: its signature and its instructions, without their lines.

    A docstring is a constant that no instruction loads, and so does not count.
    """
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    signature = [names, code.co_argcount, code.co_posonlyargcount, code.co_flags]
    body = [[step.opname, _argument(step, code.co_consts)] for step in dis.get_instructions(code)]
    return [signature, body, code.co_exceptiontable.hex()]


def _argument(step: dis.Instruction, constants: tuple[Any, ...]) -> Any:
    if step.opname == "KW_NAMES":  # a call's keywords, which Python 3.11's `dis` does not tell
        return repr(constants[step.arg or 0])
    return _constant(step.argval) if step.opcode in dis.hasconst else step.argrepr


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, (tuple, frozenset)):
        parts = [_constant(part) for part in value]
        return parts if isinstance(value, tuple) else sorted(parts, key=repr)
    return repr(value)


# What the interpreter and `dataclass` add to a class, or what only words are.
BOOKKEEPING = {
    "__abstractmethods__", "__annotations__", "__dataclass_fields__", "__dataclass_params__",
    "__dict__", "__doc__", "__firstlineno__", "__module__", "__orig_bases__", "__parameters__",
    "__qualname__", "__static_attributes__", "__weakref__", "_abc_impl", "_is_protocol",
}  # fmt: skip


def _members(target: type) -> dict[str, Any]:
    """What a class defines by itself, methods and data.

    Data between double underscores are the interpreter's, which may write them at any time
    (``__slotnames__`` once an instance has been copied).
    """
    return {
        key: value
        for key, value in vars(target).items()
        if key not in BOOKKEEPING
        and not (key.startswith("__") and key.endswith("__") and not _is_method(value))
    }


def _is_method(value: object) -> bool:
    return callable(value) or hasattr(value, "__get__")


def _mentioned(function: FunctionType) -> dict[str, Any]:
    """What of the user's own code, of this package, and of data a function names."""
    names = _names(function.__code__)
    found: dict[str, Any] = {}
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        found |= _reached(value, names) if isinstance(value, ModuleType) else {name: value}
    for module in _imports(function):
        found |= _reached(module, names)
    return {name: found[name] for name in sorted(found) if _counts(found[name])}


def _reached(module: ModuleType, names: set[str]) -> dict[str, Any]:
    """What a function with these names can reach through a module, as far as it is one's own."""
    found: dict[str, Any] = {}
    if not _is_own(module.__name__):
        return found
    for name in names & vars(module).keys():
        value = vars(module)[name]
        if isinstance(value, ModuleType):
            if value.__name__.startswith(f"{module.__name__}."):  # downwards alone: it ends
                found |= _reached(value, names)
        else:
            found[name] = value
    return found


def _imports(function: FunctionType) -> Iterator[ModuleType]:
    """Modules of one's own that a function imports when it is called."""
    package = function.__globals__.get("__package__")
    for written in _imported(function.__code__):
        name = importlib.util.resolve_name(written, package)
        if _is_own(name) and _place(name.partition(".")[0]) is not None:
            yield importlib.import_module(name)


@functools.cache
def _imported(code: CodeType) -> list[str]:
    """Modules that a function imports, as they are written there: a dot for each level."""
    found = []
    for one in _codes(code):
        if dis.opmap["IMPORT_NAME"] not in one.co_code[::2]:  # of most; to read all steps is slow
            continue
        steps = list(dis.get_instructions(one))
        for level, step in zip(steps[:-2], steps[2:], strict=True):
            if step.opname == "IMPORT_NAME":
                dots = "." * level.argval if isinstance(level.argval, int) else ""
                found.append(f"{dots}{step.argval}")
    return found


def _counts(value: Any) -> bool:
    """Tell data and one's own code from the code of others."""
    if isinstance(value, (ModuleType, GenericAlias)):
        return False
    value = _unwrapped(value)
    if isinstance(value, (FunctionType, type)):
        return _is_own(_module(value))
    return (
        isinstance(value, (*WRITTEN, *CONTAINERS, functools.partial))
        or hasattr(value, "__array__")
        or _is_own(type(value).__module__)
    )


def _is_own(module: str | None) -> bool:
    """Tell this package's modules and those that the user wrote from installed ones."""
    return bool(module) and _is_own_package(str(module).partition(".")[0])


@functools.cache
def _is_own_package(name: str) -> bool:
    if name in (PACKAGE, "__main__"):
        return True
    if name in sys.stdlib_module_names:
        return False
    place = _place(name)  # of what was made by hand there is none
    return place is None or not INSTALLED & set(place.parts)


def _place(package: str) -> Path | None:
    """Where a package lies; it is not imported for that."""
    found: Any = sys.modules.get(package)
    if found is not None:
        places = [getattr(found, "__file__", None), *getattr(found, "__path__", ())]
    else:
        found = importlib.util.find_spec(package)
        places = [] if found is None else [found.origin, *(found.submodule_search_locations or ())]
    known = [Path(place).absolute() for place in places if place is not None]
    return known[0] if known else None


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType) -> set[str]:
    """Every global or attribute that a function and the functions within it mention."""
    return {name for one in _codes(code) for name in one.co_names}
