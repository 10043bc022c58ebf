"""What a browser would fetch from elsewhere is found, and what it would not is left alone."""

import shutil
import subprocess
from pathlib import Path

import pytest

from brainfm_lib.report.offline import _ICON, ICONS, _installed, copy_assets, external_addresses, keep_used_icons


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/css">',
        '<link rel="shortcut icon" href="https://example.org/i.ico">',
        '<img src="a.png" srcset="a.png 1x, https://example.org/b.png 2x">',
        '<iframe src="https://example.org"></iframe>',
        "<style>@font-face { src: url(https://example.org/f.woff2) }</style>",
        '<p style="background: url(//example.org/x.png)"></p>',
        '<iframe srcdoc="&lt;script src=&quot;https://example.org/x.js&quot;&gt;&lt;/script&gt;"></iframe>',
        '<script type="module">import x from "https://example.org/x.js"</script>',
        '<svg><image href="https://example.org/x.png"/></svg>',
    ],
)
def test_fetched_addresses_are_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.html").write_text(text)
    assert list(external_addresses(tmp_path)) == ["page.html"]


@pytest.mark.parametrize(
    "text",
    [
        '<a href="https://arxiv.org/abs/2606.13315">the paper</a>',
        '<script src="_static/a.js"></script>',
        '<link rel="canonical" href="https://example.org/page.html">',
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>',
        '<img src="data:image/png;base64,AAAA//aa.bb">',
        "<script>// see https://example.org</script>",
    ],
)
def test_what_waits_for_a_click_is_allowed(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.html").write_text(text)
    assert external_addresses(tmp_path) == {}


def test_assets_are_copied_once(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "companion.css").write_text("p { color: red }")
    copy_assets(tmp_path / "assets", own)
    times = {file: file.stat().st_ctime_ns for file in (tmp_path / "assets").rglob("*.*")}
    assert {file.name for file in times} == {"tex-svg-full.js", "plotly.min.js", "companion.css"}
    copy_assets(tmp_path / "assets", own)
    assert times == {file: file.stat().st_ctime_ns for file in times}


def test_icons_that_nothing_names_are_cut(tmp_path: Path) -> None:
    script = tmp_path / ICONS
    script.parent.mkdir(parents=True)
    script.write_text("made by an earlier build")
    (tmp_path / "page.html").write_text('<i class="fas fa-download"></i><i class="fa-solid fa-search fa-lg"></i>')
    (tmp_path / "_static" / "theme.js").write_text('toggle("fa-moon")')
    keep_used_icons(tmp_path)
    kept = script.read_text()
    whole = _installed("pydata-sphinx-theme", "fontawesome.js", largest=True).read_text()
    assert len(kept) < len(whole) / 10
    assert "For license information" in kept.splitlines()[0]
    for name in ("download", "magnifying-glass", "moon"):  # the second by another name of it
        assert icon(name, kept) == icon(name, whole) != ""
    assert icon("ambulance", kept) == "" and icon("monero", kept) == ""
    if shutil.which("node"):
        subprocess.run(["node", "--check", str(script)], check=True)


def icon(name: str, script: str) -> str:
    return next((found[0].rstrip(",") for found in _ICON.finditer(script) if found["name"] == name), "")
