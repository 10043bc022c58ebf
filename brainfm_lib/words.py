"""Text from elsewhere (a manifest's titles, names of sites) on a page: words, and never code."""

from __future__ import annotations

import html
import re

from IPython.display import Markdown

_OURS = re.compile(r"&lt;(/?(?:br|small|b))&gt;")  # the tags that tables of this package lay out their cells with


class Words(Markdown):
    """Markdown without HTML: a < is a <."""

    def __init__(self, text: str) -> None:
        super().__init__(text.replace("<", "&lt;"))


def cell(value: object) -> object:
    """What a cell of a table holds, so that no tag but ours means anything; other values than text as they are."""
    return _OURS.sub(r"<\1>", html.escape(value, quote=False)) if isinstance(value, str) else value
