"""What autodoc needs to read docstrings that were written as plain text: characters of its markup are escaped."""

import re
from typing import Any

from sphinx.application import Sphinx

CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
MARKUP = re.compile(r"([*|]|(?<=\w)_(?!\w))")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", escape, priority=100)  # before napoleon makes fields of it
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def escape(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Outside of code, stars, bars and trailing underscores mean themselves; single backticks are code."""
    for number, line in enumerate(lines):
        if line.strip() == "Attributes:":  # several names on one line are read as name and type there, not so here
            line = line.replace("Attributes:", "Args:")
        parts = CODE.split(line)
        plain = [MARKUP.sub(r"\\\1", part) if place % 2 == 0 else as_code(part) for place, part in enumerate(parts)]
        lines[number] = "".join(plain)


def as_code(part: str) -> str:
    """``code`` for `code`."""
    return part if part.startswith("``") else f"`{part}`"
