"""JupyterLab as a reader uses it: a notebook is opened, run, a control moved; a training is interrupted and goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.book.browser import Browser, needs_chromium

pytestmark = [pytest.mark.browser, needs_chromium]
ROOT = Path(__file__).parents[2]
STUDY = "from brainfm_lib import widgets\nfrom brainfm_lib.study import Study\n\nstudy = Study('tiny', steps=300)"
CELLS = {
    "explore.ipynb": [STUDY, "widgets.mask_explorer(study)"],
    "train.ipynb": [STUDY, "run = study.run('pretrain:mae')\nprint('made', run.id)"],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a JupyterLab over two short notebooks; runs and volumes in a folder of its own."""
    root = tmp_path_factory.mktemp("lab")
    for name, cells in CELLS.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, root / name)
    shutil.copy(ROOT / "notebooks" / "guide.md", root)
    (root / "settings").mkdir()
    shutil.copy(ROOT / "notebooks" / "lab.json", root / "settings" / "overrides.json")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BRAINFM_")}
    environment |= {f"BRAINFM_{name.upper()}": str(root / name) for name in ("runs", "store")}
    environment |= {"BRAINFM_ROOT": str(ROOT), "JUPYTER_CONFIG_DIR": str(root / "config")}
    environment |= {"JUPYTER_DATA_DIR": str(root / "data"), "IPYTHONDIR": str(root / "ipython")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--port=0",
        "--ip=127.0.0.1",
        f"--notebook-dir={root}",
    ]
    command += [f"--LabApp.app_settings_dir={root / 'settings'}"]
    command += ["--IdentityProvider.token=", "--expose-app-in-browser", "--allow-root"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = next(m.group(0) for line in process.stderr if (m := re.search(r"http://127\.0\.0\.1:\d+/lab", line)))
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)  # or its pipe fills up
    yield address
    process.terminate()
    process.wait(timeout=30)
    drain.wait(timeout=30)


def test_make_lab_opens_on_a_guide_whose_links_lead_to_notebooks(lab: str) -> None:
    opened = re.search(r"default_url=/lab(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert opened is not None
    with Browser(local=True) as browser:
        browser.visit(f"{lab}/workspaces/guide{opened[1]}")
        browser.wait_for("document.querySelectorAll('.jp-RenderedMarkdown h1').length > 0", 90)
        assert "Where to begin" in browser.evaluate("document.querySelector('.jp-RenderedMarkdown h1').innerText")
    linked = set(re.findall(r"\]\((\w+\.ipynb)\)", (ROOT / "notebooks" / "guide.md").read_text()))
    assert linked == {file.name for file in (ROOT / "notebooks").glob("*.ipynb")}


class Notebook:
    """A notebook in a tab, spoken to through JupyterLab's own commands."""

    def __init__(self, browser: Browser, address: str, name: str) -> None:
        self.browser = browser
        browser.visit(f"{address}/workspaces/{Path(name).stem}/tree/{name}")  # not the last one's tabs
        browser.wait_for("!!window.jupyterapp && !!document.querySelector('.jp-Notebook .jp-CodeCell')", 90)
        self.wait_until_idle()

    _now = "window.jupyterapp.shell.currentWidget"

    def wait_until_idle(self) -> None:
        """Until the kernel has nothing to do."""
        self.browser.wait_for(f"{self._now}?.sessionContext.session?.kernel?.status === 'idle'", 90)

    def command(self, name: str) -> None:
        self.browser.evaluate(f"void window.jupyterapp.commands.execute({json.dumps(name)})")

    def text(self) -> str:
        found = self.browser.evaluate(
            "[...document.querySelectorAll('.jp-OutputArea-output')].map(o => o.innerText).join('\\n')"
        )
        return str(found)

    def wait(self, condition: str, seconds: float = 120) -> Any:
        return self.browser.wait_for(condition, seconds)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser(local=True) as started:
        yield started


def test_run_all_and_move_a_control(lab: str, browser: Browser) -> None:
    notebook = Notebook(browser, lab, "explore.ipynb")
    notebook.command("notebook:run-all-cells")
    picture = "document.querySelector('.jupyter-widgets .jp-RenderedImage img')"
    notebook.wait(f"!!{picture} && {picture}.naturalWidth > 100", 240)
    before = browser.evaluate(f"{picture}.src")
    assert browser.evaluate("document.querySelectorAll('.jupyter-widgets .noUi-handle').length") == 2  # ratio and seed
    browser.evaluate("document.querySelector('.jupyter-widgets .noUi-handle').focus()")
    browser.press("ArrowLeft")
    notebook.wait(f"!!{picture} && {picture}.src !== {json.dumps(before)}")


def test_an_interrupted_training_goes_on(lab: str, browser: Browser) -> None:
    notebook = Notebook(browser, lab, "train.ipynb")
    notebook.command("notebook:run-all-cells")
    step = r"/\d\d+\/300/.test(document.body.innerText)"
    notebook.wait(step, 240)
    notebook.command("notebook:interrupt-kernel")
    notebook.wait("document.body.innerText.includes('KeyboardInterrupt')")
    notebook.wait_until_idle()
    assert "made pretrain-" not in notebook.text()
    time.sleep(1)  # what is asked of a kernel right after an error is dropped with the rest
    notebook.command("notebook:run-all-cells")
    notebook.wait("document.body.innerText.includes('made pretrain-')", 240)
    assert "KeyboardInterrupt" not in notebook.text()
