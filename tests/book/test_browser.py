"""The browser of the page tests looks at the page that a reader ends on, however it is got to."""

from pathlib import Path

import pytest

from tests.book.browser import Browser, Navigated, needs_chromium

pytestmark = [pytest.mark.browser, needs_chromium]


def page(folder: Path, name: str, head: str = "") -> Path:
    target = folder / f"{name}.html"
    target.write_text(f"<!doctype html><html><head>{head}<title>{name}</title></head><body></body></html>")
    return target


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_page_that_only_points_on_is_not_the_page(tmp_path: Path, seconds: int) -> None:
    page(tmp_path, "meant")
    pointing = page(tmp_path, "pointing", f'<meta http-equiv="Refresh" content="{seconds}; url=meant.html">')
    with Browser() as browser:
        for _ in range(5):
            browser.open(pointing)
            assert browser.evaluate("document.title") == "meant"


def test_a_page_that_goes_away_under_a_question_is_asked_again(tmp_path: Path) -> None:
    leaving = "Promise.resolve(location.assign('meant.html')).then(() => new Promise(() => {}))"
    page(tmp_path, "meant")
    with Browser() as browser:
        browser.open(page(tmp_path, "leaving"))
        with pytest.raises(Navigated):
            browser.evaluate(leaving)
        browser.open(page(tmp_path, "leaving"))
        browser.wait_for(f"document.title === 'meant' || {leaving}")
        assert browser.evaluate("document.title") == "meant"
