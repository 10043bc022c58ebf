"""What built pages need so that they stand alone: local scripts, and a check that nothing is fetched."""

import re
import shutil
from html.parser import HTMLParser
from importlib.metadata import files
from pathlib import Path

from brainfm_lib.identity import write_atomic

MATHJAX = "mathjax/tex-svg-full.js"
PLOTLY = "plotly/plotly.min.js"
ICONS = "_static/scripts/fontawesome.js"
# One icon of that script: its name, size, other names, place in the font, outline or two of them.
_ICON = re.compile(r'"?(?P<name>[a-z0-9-]+)"?:\[\d+,\d+,\[(?P<others>[^\]]*)\],"[0-9a-f]*",(?:"[^"]*"|\[[^\]]*\])\],?')
_ICON_NAME = re.compile(r"\bfa-([a-z0-9-]+)")

# attributes whose address a browser fetches by itself; an <a href> waits for a click and is allowed
_FETCHED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "track": ("src",),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
_LINKS_THAT_FETCH_NOTHING = {"author", "canonical", "license", "next", "prev", "search"}
_EXTERNAL = re.compile(r"(?:https?:)?//[\w.-]+\.\w+", re.IGNORECASE)
_IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s;]+)", re.IGNORECASE)
_IN_SCRIPT = re.compile(r"(?:\bimport\b[^;\n]*?|\bfetch\(|\.src\s*=\s*|require\(\[?)[\"'`]((?:https?:)?//[^\"'`]+)")


def copy_assets(assets: Path, own: Path) -> None:
    """Copy MathJax and plotly.js from their installed packages, and our own style sheet, into the book's assets.

    Args:
        assets: Folder that the book serves as ``_static``; made if missing. Nothing is copied twice.
        own: Folder with our own style sheets.
    """
    import plotly  # only its location: the package's own imports are lazy

    sources = {
        MATHJAX: _installed("sphinx-mathjax-offline", "tex-svg-full.js"),
        PLOTLY: Path(plotly.__file__).parent / "package_data" / "plotly.min.js",
    }
    sources |= {sheet.name: sheet for sheet in own.glob("*.css")}
    for name, source in sources.items():
        target = assets / name
        if not target.is_file() or target.stat().st_mtime_ns != source.stat().st_mtime_ns:
            with write_atomic(target) as temporary:
                shutil.copy2(source, temporary)


def keep_used_icons(html_dir: Path) -> None:
    """Leave of the theme's icons, which weigh more than most pages, those that a page or a script names.

    Args:
        html_dir: Folder with the built pages and their ``_static``.
    """
    target = html_dir / ICONS
    if not target.is_file():
        return
    texts = [file for file in html_dir.rglob("*") if file.suffix in (".html", ".js") and file.name != target.name]
    used = {name for file in texts for name in _ICON_NAME.findall(file.read_text(encoding="utf-8", errors="replace"))}

    def kept(entry: re.Match[str]) -> str:
        names = {entry["name"], *re.findall(r'"([a-z0-9-]+)"', entry["others"])}
        return entry[0] if names & used else ""

    script = _installed("pydata-sphinx-theme", target.name, largest=True).read_text(encoding="utf-8")
    with write_atomic(target) as temporary:
        temporary.write_text(_ICON.sub(kept, script), encoding="utf-8")


def external_addresses(html_dir: Path) -> dict[str, list[str]]:
    """Find what built pages would fetch from elsewhere: scripts, styles, images, fonts, frames.

    Hyperlinks are not fetched until clicked, and are allowed. Documents inside ``srcdoc`` are searched too.

    Args:
        html_dir: Folder with the built pages and their ``_static``.

    Returns:
        File (relative to `html_dir`) -> the addresses found in it; empty where all is well.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(html_dir.rglob("*")):
        if file.suffix not in (".html", ".css") or not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        addresses = _in_html(text) if file.suffix == ".html" else _IN_CSS.findall(text)
        if addresses:
            found[str(file.relative_to(html_dir))] = sorted(set(addresses))
    return found


def _installed(package: str, name: str, *, largest: bool = False) -> Path:
    """Find a file by its name among those of an installed package: the first, or the largest."""
    matches = [Path(str(file.locate())) for file in files(package) or [] if file.name == name]
    return max(matches, key=lambda file: file.stat().st_size) if largest else matches[0]


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        values = {name: value or "" for name, value in attrs}
        if tag == "link" and set(values.get("rel", "").split()) <= _LINKS_THAT_FETCH_NOTHING:
            return
        for name in _FETCHED.get(tag, ()):
            self.found += [p for p in re.split(r"[\s,]+", values.get(name, "")) if _EXTERNAL.match(p)]
        self.found += _IN_CSS.findall(values.get("style", ""))
        if "srcdoc" in values:
            self.found += _in_html(values["srcdoc"])

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.found += _IN_CSS.findall(data)
        elif self._inside == "script":
            self.found += _IN_SCRIPT.findall(data)


def _in_html(text: str) -> list[str]:
    parser = _Addresses()
    parser.feed(text)
    return parser.found
