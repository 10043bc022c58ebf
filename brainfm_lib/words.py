"""Text on a page: what comes from elsewhere (titles, names of sites) as words and never code; names and counts."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from IPython.display import Markdown

_OURS = re.compile(r"&lt;(/?(?:br|small|b))&gt;")  # the tags that tables of this package lay out their cells with


class Words(Markdown):
    """Markdown without HTML: a < is a <."""

    def __init__(self, text: str) -> None:
        super().__init__(text.replace("<", "&lt;"))


def cell(value: object) -> object:
    """What a cell of a table holds, so that no tag but ours means anything; other values than text as they are."""
    return _OURS.sub(r"<\1>", html.escape(value, quote=False)) if isinstance(value, str) else value


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: "a", "a and b", "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def counted(number: int, noun: str) -> str:
    """A number and its noun, which takes an s unless there is one: "1 scan", "1,200 scans"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
