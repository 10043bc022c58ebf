"""What makes two things the same: canonical hashes of values and of code, and writes that are all or nothing."""

import ast
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from brainfm_lib.errors import InputError

PACKAGE = "brainfm_lib"
PACKAGE_DIR = Path(__file__).parent


def canonical(value: Any) -> Any:
    """Return `value` as plain JSON material whose text is the same wherever the value is the same."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if hasattr(value, "item"):  # a NumPy scalar
        return canonical(value.item())
    raise TypeError(f"no canonical form for {type(value).__name__}: {value!r}")


def stable_hash(value: Any, length: int = 12) -> str:
    """Hash plain values (dataclasses, mappings, sequences, scalars) the same on every machine and in every process."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


# What this process started with: code that was imported does not change when its file does.
_STARTED = {file: (_stamp(file), file.read_bytes()) for file in PACKAGE_DIR.rglob("*.py")}


def _check_unchanged(closure: Mapping[str, Path]) -> None:
    """Raise an InputError if the code of a loaded module has changed since this process started."""
    for name, file in closure.items():
        if name not in sys.modules or file not in _STARTED:
            continue
        stamp, source = _STARTED[file]
        if stamp != _stamp(file) and _syntax(source)[0] != _parsed(file, _stamp(file))[0]:
            raise InputError(
                f"{file.relative_to(PACKAGE_DIR.parent)} was changed after this process had loaded it, so its results "
                "would be filed under code that did not make them: restart the kernel or the command."
            )


def module_file(module: str) -> Path | None:
    """Source file of a module of this package, or None where there is no such module."""
    return _located(module, PACKAGE_DIR)


@cache
def _located(module: str, package: Path) -> Path | None:
    parts = module.split(".")
    base = package.joinpath(*parts[1:])
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if parts[0] == PACKAGE and candidate.is_file():
            return candidate
    return None


@cache
def _parsed(file: Path, stamp: tuple[int, int]) -> tuple[str, frozenset[str]]:
    return _syntax(file.read_bytes())


def _syntax(source: bytes) -> tuple[str, frozenset[str]]:
    """Hash of the syntax tree without docstrings, and the names of this package's modules that it imports."""
    tree = ast.parse(source)
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module)
            imported.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and isinstance(
            body, list
        ):
            first = body[0] if body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                body[0] = ast.copy_location(ast.Pass(), first)
    digest = hashlib.sha256(ast.dump(tree, include_attributes=False).encode()).hexdigest()
    return digest, frozenset(name for name in imported if name.split(".")[0] == PACKAGE)


def imported_modules(modules: Iterable[str], *, without: Iterable[str] = ()) -> dict[str, Path]:
    """Return the modules of this package that `modules` reach through imports, themselves included, with their files.

    Imports are read from the source, those inside functions too; nothing is executed. A package counts with its
    ``__init__``. `without` names modules at which the search stops (they and what only they reach are left out).
    """
    stop, found, queue = set(without), {}, list(modules)
    while queue:
        name = queue.pop()
        if name in found or name in stop:
            continue
        file = module_file(name)
        if file is None:
            continue  # a function or class named in ``from module import name``
        found[name] = file
        parent = name.rpartition(".")[0]
        queue.extend([*_parsed(file, _stamp(file))[1], *([parent] if parent else [])])
    return found


def code_digest(modules: Iterable[str], *, without: Iterable[str] = ()) -> str:
    """Hash the code that `modules` use: syntax trees of their import closure, without docstrings and comments.

    Raises:
        InputError: A loaded module's file has changed since this process started.
    """
    closure = imported_modules(modules, without=without)
    _check_unchanged(closure)
    return stable_hash({name: _parsed(file, _stamp(file))[0] for name, file in closure.items()})


@contextmanager
def write_atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on failure removed.

    Works for a file and for a folder (which must not exist yet).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: The system refuses, as it refuses any other file: no space, no permission.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
