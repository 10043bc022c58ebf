"""Sphinx extension of the book: notebooks first, through papermill; then pages that need nothing from the network."""

import atexit
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

from brainfm_lib.errors import InputError
from brainfm_lib.report import build, fragments, offline

log = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    book = Path(app.srcdir)
    try:
        build.bring_up_to_date(book.parent)
        fragments.write_all(book.parent)
    except (InputError, build.ReportError) as problem:
        raise _refusal(str(problem)) from None
    offline.copy_assets(book / "_assets", book / "_ext")
    app.add_css_file("companion.css")
    app.connect("html-page-context", choose_scripts, priority=900)
    app.connect("html-page-context", name_parts, priority=900)
    app.connect("html-page-context", shut_out, priority=900)
    app.connect("build-finished", lighten)
    app.connect("build-finished", check_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def choose_scripts(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out thebe, which loads itself from the network; plotly.js and MathJax only where a page needs them."""
    if "Plotly.newPlot" in context.get("body", ""):
        app.add_js_file(offline.PLOTLY, priority=150)
    unneeded = ["thebe"] if re.search(r'class="[^"]*\bmath\b', context.get("body", "")) else ["thebe", "mathjax"]
    context["script_files"][:] = [
        file for file in context["script_files"] if not any(name in str(file).lower() for name in unneeded)
    ]


# Scripts, styles, pictures and connections of this book alone; `file:` is this book too where it is opened from a disk.
POLICY = (
    "default-src 'self' file: data: blob:; script-src 'self' file: blob: 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' file: 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self' file:"
)


def shut_out(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Forbid browsers to load anything from elsewhere, whatever a cell may have put on a page."""
    context["metatags"] = (
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />{context.get("metatags", "")}'
    )


def name_parts(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Say to a screen reader what the theme leaves unsaid, and unsay roles that it gives against the standard."""
    if "body" in context:
        for said in (' role="doc-biblioentry"', ' role="list"'):
            context["body"] = context["body"].replace(said, "")
    tree = context.get("generate_toctree_html")
    if tree is not None:
        toggle = '<summary aria-label="Show or hide the pages of this section">'
        context["generate_toctree_html"] = lambda *words, **named: str(tree(*words, **named)).replace(
            "<summary>", toggle
        )


def lighten(app: Sphinx, exception: Exception | None) -> None:
    """Cut the theme's icons down to those in use."""
    if exception is None and app.builder.format == "html":
        offline.keep_used_icons(Path(app.outdir))


def check_pages(app: Sphinx, exception: Exception | None) -> None:
    """Refuse a report that would fetch anything from the network."""
    if exception is not None or app.builder.format != "html":
        return
    for page, addresses in offline.external_addresses(Path(app.outdir)).items():
        raise _refusal(f"{page} would load {', '.join(addresses)} from the network.")


def _refusal(message: str) -> ExtensionError:
    """The error, and its message once more as the last line of all: jupyter-book buries it under a traceback."""
    atexit.register(print, f"\nThe report was not built: {message}", file=sys.stderr)
    return ExtensionError(message)
