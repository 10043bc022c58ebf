"""The book, built as a user builds it and looked at in a browser: the toy project's, and the real one's with `tiny`."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from brainfm_lib.report.offline import external_addresses
from tests.book import toy
from tests.book.browser import Browser, needs_axe, needs_chromium


def build(root: Path, profile: str = "quick") -> subprocess.CompletedProcess:
    """`jupyter-book build book`, from the interpreter's own folder, with nothing of ours in the environment."""
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BRAINFM_")} | {"BRAINFM_PROFILE": profile}
    command = [str(jupyter_book), "build", "book", "-W", "-n", "--keep-going"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1500)


@pytest.fixture(scope="session")
def toy_book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = toy.make_toy(tmp_path_factory.mktemp("toy-book"))
    toy.write_notebook(root, "20_pretrain", [toy.PLOTLY, toy.VIEW], {})
    done = build(root)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


@pytest.fixture(scope="session")
def real_book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project itself, with profile `tiny`, in a folder of its own: every notebook is executed."""
    root = tmp_path_factory.mktemp("real-book")
    for name in ("book", "notebooks", "data_manifest.yaml"):
        source = toy.ROOT / name
        ignore = shutil.ignore_patterns("_build", "_assets", "chapters", ".ipynb_checkpoints")
        shutil.copytree(source, root / name, ignore=ignore) if source.is_dir() else shutil.copy(source, root)
    done = build(root, "tiny")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return root


@pytest.fixture(params=["toy_book", "real_book"])
def book(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def pages(root: Path) -> list[Path]:
    html = root / "book" / "_build" / "html"
    names = [
        line.split(": ")[1].strip()
        for line in (root / "book" / "_toc.yml").read_text().splitlines()
        if "file:" in line or "root:" in line
    ]
    return [html / f"{name}.html" for name in names]


def test_every_page_is_built_and_every_chapter_has_output(book: Path) -> None:
    for page in pages(book):
        assert page.is_file(), page
        if page.parent.name == "chapters":
            assert 'class="cell_output' in page.read_text(), f"{page.name} shows no output"


def test_nothing_comes_from_the_network(book: Path) -> None:
    assert external_addresses(book / "book" / "_build" / "html") == {}


@pytest.mark.browser
@needs_chromium
def test_a_page_runs_no_script_from_elsewhere(toy_book: Path, tmp_path: Path) -> None:
    page = toy_book / "book" / "_build" / "html" / "glossary.html"
    foreign = page.with_name("foreign.html")
    tags = '<script src="http://127.0.0.1:9/x.js"></script><img src="http://127.0.0.1:9/x.png">'
    foreign.write_text(page.read_text().replace("</article>", f"{tags}</article>"))
    try:
        with Browser(local=True) as browser:
            browser.open(foreign)
            refused = [error for error in browser.errors if "Content Security Policy" in error]
            assert len(refused) == 2, browser.errors
    finally:
        foreign.unlink()


def test_no_error_output_and_no_local_path_on_any_page(book: Path) -> None:
    for page in pages(book):
        text = page.read_text()
        assert "Traceback" not in text, page
        assert str(book) not in text and "/tmp/" not in text, page


def test_second_build_executes_nothing(book: Path) -> None:
    states = sorted((book / "book" / "chapters").glob("*.state.json"))
    before = [json.loads(state.read_text())["made"] for state in states]
    done = build(book, "tiny" if len(states) > 2 else "quick")
    assert done.returncode == 0 and f"{len(states)} pages, 0 to execute" in done.stdout
    assert [json.loads(state.read_text())["made"] for state in states] == before


def test_plotly_is_loaded_only_where_it_draws(toy_book: Path) -> None:
    html = toy_book / "book" / "_build" / "html" / "chapters"
    assert "plotly.min.js" in (html / "20_pretrain.html").read_text()
    assert "plotly.min.js" not in (html / "10_data.html").read_text()


def test_a_raising_cell_ends_the_build_and_is_named(toy_book: Path, tmp_path: Path) -> None:
    root = shutil.copytree(toy_book, tmp_path / "broken")
    toy.write_notebook(root, "10_data", ["1 / 0"], {})
    done = build(root)
    assert done.returncode != 0
    assert (
        "notebooks/10_data.ipynb, cell 3: ZeroDivisionError: division by zero" in done.stderr.strip().splitlines()[-1]
    )


def test_a_new_reader_s_questions_lead_to_sections_that_are_there(real_book: Path) -> None:
    listed = (Path(__file__).parents[1] / "reader_questions.md").read_text()
    asked = re.findall(r"^\d+\. .+\? → `([\w/]+)` § (.+)$", listed, re.MULTILINE)
    assert len(asked) == 10
    for page, section in asked:
        text = (real_book / "book" / "_build" / "html" / f"{page}.html").read_text()
        found = [
            unescape(re.sub("<[^>]+>", "", title)) for title in re.findall(r"<h[1-4]>(.*?)</h[1-4]>", text, re.DOTALL)
        ]
        assert section in [title.rstrip("#").strip() for title in found], (page, section)


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_in_a_browser(book: Path, dark: bool) -> None:
    with Browser() as browser:
        for page in pages(book):
            browser.open(page, width=390 if dark else 1440, dark=dark)
            assert browser.errors == [], page
            assert [r for r in browser.requests if not r.startswith(("file:", "data:", "blob:", "about:"))] == []
            unseen = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
            assert browser.evaluate(unseen) == [], page
            formulas = browser.evaluate("document.querySelectorAll('.math').length")
            assert browser.evaluate("document.querySelectorAll('.math mjx-container svg').length") >= formulas, page
            assert browser.evaluate("document.querySelectorAll('mjx-merror').length") == 0, page
            undrawn = "[...document.querySelectorAll('svg.svg-inline--fa')].filter(i => !i.querySelector('path[d]'))"
            assert browser.evaluate("document.querySelectorAll('svg.svg-inline--fa').length") > 5, page
            assert browser.evaluate(f"{undrawn}.map(i => i.dataset.icon)") == [], page
            assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{page} is too wide"


@pytest.mark.browser
@needs_chromium
@needs_axe
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_page_shuts_anyone_out(real_book: Path, dark: bool) -> None:
    with Browser() as browser:
        for page in [*pages(real_book), *(real_book / "book" / "_build" / "html").glob("*index.html")]:
            browser.open(page, width=390 if dark else 1440, dark=dark)
            assert browser.barriers() == [], page


def test_every_figure_has_a_number_a_caption_and_words_and_the_numbers_behind_it(real_book: Path) -> None:
    html = real_book / "book" / "_build" / "html"
    named = [page for page in pages(real_book) if page.parent.name == "chapters"]
    links = 0
    for page in named:
        text = page.read_text()
        pictures = re.findall(r"<img[^>]*>", text)
        assert all(re.search(r'alt="(?!\.\./_images)[^"]{20,}"', picture) for picture in pictures), page
        figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
        assert figures or "Not run yet" in text, page  # the causal page, which reads what a command makes
        assert all("caption-number" in figure for figure in figures), page
        assert len(figures) == len(pictures), page
        for file in re.findall(r'href="(\.\./_downloads/[^"]+\.csv)"', text):
            lines = (page.parent / file).read_text().splitlines()
            assert len(lines) > 1 and "subject_id" not in lines[0] and "scan_uid" not in lines[0], file
            links += 1
    assert links > len(named) and (html / "chapters").is_dir()


def test_pages_are_light(real_book: Path) -> None:
    """A page with its pictures, scripts and styles, though most of these are shared and loaded once."""
    html = real_book / "book" / "_build" / "html"
    weights = {}
    for page in pages(real_book):
        loaded = re.findall(r'(?:src|href)="([^"#?]+\.(?:png|svg|jpg|js|css))', page.read_text())
        files = {(page.parent / name).resolve() for name in loaded} | {page}
        weights[page.name] = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    assert max(weights.values()) <= 8 and sorted(weights.values())[len(weights) // 2] <= 2, weights
    assert sum(file.stat().st_size for file in html.rglob("*") if file.is_file()) <= 80e6


def test_links_between_pages_lead_somewhere(real_book: Path) -> None:
    html = real_book / "book" / "_build" / "html"
    texts = {page: page.read_text() for page in html.rglob("*.html") if "_static" not in page.parts}
    for page, text in texts.items():
        for address in re.findall(r'<a [^>]*?href="([^"]+)"', text):
            name, _, anchor = unescape(address).partition("#")
            if re.match(r"[a-z]+:", name):
                continue
            target = (page.parent / name).resolve() if name else page
            assert target.is_file(), (page.name, address)
            if anchor and target in texts:
                assert f'id="{anchor}"' in texts[target], (page.name, address)


@pytest.mark.browser
@needs_chromium
def test_search_finds_a_word(real_book: Path) -> None:
    """From a server: a browser lets no page on a disk read another, and the search shows where in a page a word is."""
    html = str(real_book / "book" / "_build" / "html")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=html))
    Thread(target=server.serve_forever, daemon=True).start()
    with Browser(local=True) as browser:
        browser.visit(f"http://127.0.0.1:{server.server_port}/search.html?q=coherence")
        browser.wait_for("document.querySelector('#search-results').innerHTML.includes('30_spectra.html')")
        assert [error for error in browser.errors if "favicon" not in error] == []  # a server's question, not a page's
    server.shutdown()


@pytest.mark.browser
@needs_chromium
def test_plotly_and_view_img_draw(toy_book: Path) -> None:
    with Browser() as browser:
        browser.open(toy_book / "book" / "_build" / "html" / "chapters" / "20_pretrain.html")
        browser.wait_for("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
        inside = "document.querySelector('iframe').contentDocument"
        browser.wait_for(f"{inside} && {inside}.querySelectorAll('canvas').length > 0")


@pytest.mark.browser
@needs_chromium
def test_the_slider_over_the_spectrum_moves_the_pictures(real_book: Path) -> None:
    with Browser() as browser:
        browser.open(real_book / "book" / "_build" / "html" / "chapters" / "30_spectra.html")
        rail = "document.querySelector('.slider-rail-touch-rect')"
        browser.wait_for(f"{rail} !== null")
        browser.evaluate(f"{rail}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        cutoff = "document.querySelector('.js-plotly-plot').data.find(t => t.name === 'cut-off').x[0]"
        drawn = "document.querySelector('.js-plotly-plot .heatmaplayer image')"
        browser.wait_for(f"{drawn} !== null")
        picture = f"({drawn}?.getAttribute('xlink:href') ?? {drawn}?.getAttribute('href') ?? '')"
        before = browser.evaluate(cutoff), browser.evaluate(picture)
        place = browser.evaluate(f"(b => [b.x + 0.9 * b.width, b.y + b.height / 2])({rail}.getBoundingClientRect())")
        browser.click(*place)
        browser.wait_for(f"{cutoff} > {before[0]} && ![{json.dumps(before[1])}, ''].includes({picture})")
        assert browser.errors == []
