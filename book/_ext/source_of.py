"""Directive `source-of`: the code of a function as it stands, without its docstring, under the file's name."""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.directives.code import container_wrapper
from sphinx.util.docutils import SphinxDirective


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("source-of", SourceOf)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


class SourceOf(SphinxDirective):
    """``source-of:: package.module.function`` or ``package.module.Class.method``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The code block, in a container with its caption."""
        name = self.arguments[0]
        text, file = code_of(name)
        self.env.note_dependency(str(file))
        block = nodes.literal_block(text, text, language="python")
        self.set_source_info(block)
        return [container_wrapper(self, block, f"`{module_of(name).__name__.replace('.', '/')}.py`")]


def module_of(name: str) -> ModuleType:
    """The module at the beginning of a dotted name."""
    parts = name.split(".")
    module = importlib.import_module(parts[0])
    for end in range(2, len(parts)):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            break
    return module


def code_of(name: str) -> tuple[str, Path]:
    """Source of a function without its docstring, and its file."""
    thing: Any = module_of(name)
    for part in name.removeprefix(thing.__name__ + ".").split("."):
        thing = getattr(thing, part)
    thing = inspect.unwrap(thing)
    lines = textwrap.dedent(inspect.getsource(thing)).splitlines()
    function = ast.parse("\n".join(lines)).body[0]
    assert isinstance(function, ast.FunctionDef), name
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines), Path(inspect.getsourcefile(thing) or "")
