"""Controls work in a live kernel, and stand still where nobody is there to turn them."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from IPython.display import Markdown
from jupyter_client.manager import KernelManager
from matplotlib.figure import Figure

from brainfm_lib import widgets
from brainfm_lib.figures.interactive import Interactive
from brainfm_lib.study import Study
from brainfm_lib.words import Words
from tests.data.scans import save_scan

ARMS = ("mae", "vcr-jepa")
SETUP = """
from brainfm_lib import widgets
from brainfm_lib.study import Study
study = Study("tiny", progress=False)
runs = {arm: study.run(f"reconstruction:{arm}") for arm in ("mae", "vcr-jepa")}
names, geometry = ["one", "two", "three", "four"], study.profile.geometry
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Runs and volumes of the project's own study with `tiny`, made once for this file."""
    folder = tmp_path_factory.mktemp("widgets")
    asked = {"BRAINFM_RUNS": str(folder / "runs"), "BRAINFM_STORE": str(folder / "store")}
    before = {name: os.environ.get(name) for name in asked}
    os.environ.update(asked)
    yield asked
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture
def study(folders: dict[str, str]) -> Study:
    return Study("tiny", progress=False)


@pytest.fixture(scope="module")
def kernel(folders: dict[str, str]) -> Iterator["Kernel"]:
    with Kernel({**os.environ, **folders}) as started:
        yield started


class Kernel:
    """A kernel of this interpreter that is spoken to as JupyterLab does, or as papermill does."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.kernel_spec.argv[0] = sys.executable  # type: ignore[union-attr]
        self.manager.start_kernel(env=environment, cwd=str(Path(__file__).parents[1]))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def __enter__(self) -> "Kernel":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def __call__(self, code: str, *, asks: bool = True) -> str:
        """What the code prints; `asks`: whether the front end can be asked for input."""
        said: list[str] = []

        def take(message: dict) -> None:
            if message["msg_type"] == "stream":
                said.append(message["content"]["text"])

        ask = self.client.execute_interactive(code, allow_stdin=asks, output_hook=take, timeout=300)
        assert ask["content"]["status"] == "ok", "\n".join(ask["content"].get("traceback", []))
        return "".join(said).strip()


def test_each_thing_stands_still_where_nobody_is_there(study: Study) -> None:
    runs = {arm: study.run(f"reconstruction:{arm}") for arm in ARMS}
    geometry = study.profile.geometry
    assert not widgets.live()
    assert isinstance(widgets.mask_explorer(study), Figure)
    assert isinstance(widgets.scan_explorer(study, runs, ["one"]), Interactive)
    assert isinstance(widgets.loss_explorer(runs, geometry, high_pass=0.3), Figure)
    assert isinstance(widgets.latent_explorer(study, ["mae", "vcr-jepa"]), Figure)
    assert isinstance(widgets.cohort_browser(study), Figure)
    command = widgets.run_launcher(study)
    assert isinstance(command, Markdown) and "brainfm pretrain --profile tiny --seed 0 --objective mae" in command.data
    assert isinstance(widgets.scan_explorer(study, {}, []), Words)
    assert isinstance(widgets.loss_explorer({}, geometry, high_pass=0.3), Words)


def test_a_page_holds_no_whole_scan_of_a_person_and_nothing_known_of_one(study: Study, tmp_path: Path) -> None:
    runs = {arm: study.run(f"reconstruction:{arm}") for arm in ARMS}
    shown = widgets.cohort_browser(study)
    assert shown.axes[0].get_title(loc="center") == study.cohort(study.cohorts_in_use[0]).scans["contrast"].iloc[0]
    save_scan(tmp_path / "scans" / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    cohorts = {"people": {"kind": "bids", "root": "scans"}}
    manifest = tmp_path / "data_manifest.yaml"
    manifest.write_text(yaml.safe_dump({"version": 1, "pretraining": ["people"], "cohorts": cohorts, "tasks": {}}))
    of_people = Study("tiny", manifest, progress=False)
    assert "not put into a page whole" in widgets.scan_explorer(of_people, runs, ["one"]).data


def test_papermill_is_nobody_and_a_front_end_is_somebody(kernel: Kernel) -> None:
    ask = "from brainfm_lib import widgets; print(widgets.live())"
    assert kernel(ask, asks=False) == "False" and kernel(ask, asks=True) == "True"


def test_turning_a_control_changes_the_picture(kernel: Kernel) -> None:
    kernel(SETUP)
    said = kernel(
        """
shown = widgets.mask_explorer(study)
controls = {c.description: c for c in shown.children[:-1]}
before = shown.result.get_suptitle()
controls["ratio"].value = 0.5
controls["kind"].value = "block"
print(before, shown.result.get_suptitle(), sep="\\n")
"""
    )
    first, second = said.splitlines()
    assert "random mask: 16 of 64 tokens seen (25.0%)" in first and "block mask: 32 of 64 tokens seen (50.0%)" in second


def test_other_slices_scans_and_arms_can_be_asked_for(kernel: Kernel) -> None:
    kernel(SETUP)
    said = kernel(
        """
shown = widgets.scan_explorer(study, runs, names)
controls = {c.description: c for c in shown.children[:-1]}
print(shown.result.get_suptitle(), shown.result.axes[0].get_ylabel())
controls["plane"].value, controls["arm"].value = "coronal", "vcr-jepa"
controls["slice"].value = 3
print(shown.result.get_suptitle(), shown.result.axes[0].get_ylabel())
"""
    )
    first, second = said.splitlines()
    assert first.startswith("one · axial") and first.endswith(" MAE")
    assert second.startswith("one · coronal") and second.endswith(" VCR-JEPA")


def test_what_the_loss_sees_follows_its_cut_off(kernel: Kernel) -> None:
    kernel(SETUP)
    said = kernel(
        """
shown = widgets.loss_explorer(runs, geometry, high_pass=0.3)
controls = {c.description: c for c in shown.children[:-1]}
print(shown.result.axes[2].get_title(loc="left"))
controls["high_pass"].value = 0.6
print(shown.result.axes[2].get_title(loc="left"))
shown = widgets.latent_explorer(study, ["mae", "vcr-jepa"])
print(shown.result.get_suptitle())
shown.children[1].value = 2
print(shown.result.get_suptitle())
"""
    )
    assert "ρ = 0.30" in said and "ρ = 0.60" in said
    assert said.splitlines()[-2:] == ["MAE, component 1", "MAE, component 2"]


def test_a_training_is_stopped_and_goes_on(kernel: Kernel, folders: dict[str, str]) -> None:
    kernel(
        """
import time
from brainfm_lib import widgets
from brainfm_lib.study import Study
study = Study("tiny", seed=7, steps=400, progress=False)
box = widgets.run_launcher(study)
arm, start, stop = box.children[0].children
"""
    )
    kernel("start.click()")
    runs = Path(folders["BRAINFM_RUNS"])
    under_way = "import re\nwhile not re.search(r'\\d\\d+/400', box.children[1].value): time.sleep(0.05)\n"
    kernel(under_way + "assert start.disabled and not stop.disabled")
    kernel("stop.click()")
    wait = "end = time.monotonic() + 240\nwhile start.disabled and time.monotonic() < end: time.sleep(0.2)\n"
    assert "press pretrain to go on" in kernel(wait + "print(box.children[1].value)")
    assert kernel('from brainfm_lib.runs import find\nprint(find(study.config("pretrain:mae")))') == "None"
    assert "finished" in kernel("start.click()\n" + wait + "print(box.children[1].value)")
    assert "pretrain-" in kernel('print(find(study.config("pretrain:mae")).id)')
    assert json.loads((next(runs.glob("pretrain-*")) / "provenance.json").read_text())
