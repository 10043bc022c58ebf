"""What a browser would fetch from elsewhere is found, and what it would not is left alone."""

from pathlib import Path

import pytest

from brainfm_lib.offline import copy_assets, external_addresses


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
