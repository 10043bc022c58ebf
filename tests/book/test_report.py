"""The report executes what is out of date, and nothing else."""

import json
from pathlib import Path

import pytest

from brainfm_lib.errors import InputError
from brainfm_lib.identity import module_file
from brainfm_lib.report import build
from tests.book import toy


class Identities:
    """Stands in for `Study.identify`: run identifiers that a test can change."""

    def __init__(self) -> None:
        self.runs = {"pretrain:sl-mae": "pretrain-1"}
        self.asked: list[str] = []

    def __call__(self, parameters: dict, request: str) -> str:
        self.asked.append(request)
        return self.runs[request]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy project, brought up to date once."""
    root = toy.make_toy(tmp_path_factory.mktemp("toy"))
    write_plain(root)
    assert build.bring_up_to_date(root, identify=Identities()) == ["10_data", "20_pretrain"]
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    import shutil

    return shutil.copytree(made, tmp_path / "project")


def write_plain(root: Path, data: str = "print(profile, seed)", prose: str = toy.PROSE) -> None:
    toy.write_notebook(root, "10_data", [data], {}, prose)
    toy.write_notebook(root, "20_pretrain", ["spectral_weight"], {"pretrain:sl-mae": "pretrain-1"})


def test_nothing_changed_nothing_executed(project: Path) -> None:
    identify = Identities()
    assert build.bring_up_to_date(project, identify=identify) == []
    assert identify.asked == ["pretrain:sl-mae"]


def test_staged_notebook_has_outputs_the_profiles_values_and_no_local_paths(project: Path) -> None:
    text = (project / "book" / "chapters" / "10_data.ipynb").read_text()
    outputs = [o for cell in json.loads(text)["cells"] for o in cell.get("outputs", [])]
    assert outputs[0]["text"] in ("quick 1\n", ["quick 1\n"])
    assert "papermill" not in text and "/tmp" not in text and "some-kernel" not in text


def test_touched_prose_executes_only_that_notebook(project: Path) -> None:
    write_plain(project, prose=toy.PROSE + "\n\nOne more sentence.")
    assert build.bring_up_to_date(project, identify=Identities()) == ["10_data"]


def test_changed_run_executes_only_the_notebooks_that_used_it(project: Path) -> None:
    identify = Identities()
    identify.runs["pretrain:sl-mae"] = "pretrain-2"
    pages = build.find_pages(project)
    given = build.profile_parameters(project, "quick", pages)
    reasons = [build.out_of_date(page, given[page.name], identify) for page in pages]
    assert reasons == [None, "the run behind pretrain:sl-mae changed"]


def test_parameters_that_act_through_runs_are_compared_through_runs(project: Path) -> None:
    params = project / "notebooks" / "params" / "quick.yaml"
    params.write_text("profile: quick\nseed: 1\nspectral_weight: 0.5\noverrides: {optimiser.steps: 3}\n")
    assert build.bring_up_to_date(project, identify=Identities()) == []
    params.write_text("profile: quick\nseed: 2\n")
    pages = build.find_pages(project)
    given = build.profile_parameters(project, "quick", pages)
    reasons = [build.out_of_date(page, given[page.name], Identities()) for page in pages]
    assert reasons == ["its parameters changed (seed)"] * 2


def test_a_profile_may_say_something_of_one_notebook_alone(project: Path) -> None:
    params = project / "notebooks" / "params" / "quick.yaml"
    pages = build.find_pages(project)
    params.write_text("seed: 1\nonly: {20_pretrain: {seed: 5}}\n")
    given = build.profile_parameters(project, "quick", pages)
    assert (given["10_data"]["seed"], given["20_pretrain"]["seed"]) == (1, 5)
    for text, message in (
        ("only: {20_pretrain: {seeed: 5}}\n", "seeed, which no parameters cell declares"),
        ("only: {20_pretrrain: {seed: 5}}\n", "seed, which no parameters cell declares"),
        ("only: {20_pretrain: 5}\n", "write only: {notebook: {name: value}}"),
        ("only: 5\n", "write only: {notebook: {name: value}}"),
    ):
        params.write_text(text)
        with pytest.raises(InputError, match=message):
            build.profile_parameters(project, "quick", pages)


def test_the_default_profile_is_quick_unless_told_or_encoders_ship(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainfm_lib.reference import shipped

    monkeypatch.delenv("BRAINFM_PROFILE", raising=False)
    assert build.default_profile(project) == "quick"
    (project / build.SHIPPED_PROFILE).parent.mkdir(parents=True)
    (project / build.SHIPPED_PROFILE).write_text("geometry: {grid: [32, 32, 32], spacing: 5.75}\n")
    for ships, profile in ((True, "shipped"), (False, "quick")):
        monkeypatch.setattr(shipped, "every_arm_ships", lambda manifest: ships)  # noqa: B023
        assert build.default_profile(project) == profile
    monkeypatch.setenv("BRAINFM_PROFILE", "tiny")
    assert build.default_profile(project) == "tiny"


def test_run_parameters_are_those_of_the_study() -> None:
    from brainfm_lib.study import FLAT_NAMES

    assert {"overrides", *FLAT_NAMES} == build.RUN_PARAMETERS


def test_all_that_a_study_is_made_of_counts_for_pages() -> None:
    from brainfm_lib.study import Study

    modules = {base.__module__ for base in Study.__mro__}
    assert {name for name in modules if name.startswith("brainfm_lib.")} <= set(build.STUDY)
    assert all(module_file(name) for name in build.STUDY)


def test_drawing_code_counts_and_code_behind_the_study_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[tuple[str, ...], set[str]] = {}
    behind = dict.fromkeys(["brainfm_lib.study", "brainfm_lib.data.store", "brainfm_lib.pretrain.loop"])

    def code_digest(names: list[str], without: set[str]) -> str:
        asked[tuple(names)] = set(without)
        return "digest"

    monkeypatch.setattr(build, "code_digest", code_digest)
    monkeypatch.setattr(build, "imported_modules", lambda names: behind)
    build.drawing_digest(["%matplotlib inline\nfrom brainfm_lib import figures", "import numpy"])
    assert asked[build.STUDY] == {"brainfm_lib.pretrain.loop"}
    assert asked[("brainfm_lib", "brainfm_lib.figures")] == set(build.STUDY)


def test_a_raising_cell_is_named_and_the_page_before_is_kept(project: Path) -> None:
    before = (project / "book" / "chapters" / "10_data.ipynb").read_text()
    write_plain(project, data="def f():\n    raise ValueError('no such\\nvolume')\nf()")
    with pytest.raises(build.ReportError, match=r"notebooks/10_data\.ipynb, cell 3: ValueError: volume"):
        build.bring_up_to_date(project, identify=Identities())
    assert (project / "book" / "chapters" / "10_data.ipynb").read_text() == before
    failed = json.loads((project / "book" / "chapters" / "failed" / "10_data.ipynb").read_text())
    assert any(o["output_type"] == "error" for cell in failed["cells"] for o in cell.get("outputs", []))


def test_a_dying_kernel_is_named(project: Path) -> None:
    write_plain(project, data="import os\nos._exit(3)")
    with pytest.raises(build.ReportError, match=r"10_data\.ipynb, cell 3: DeadKernelError"):
        build.bring_up_to_date(project, identify=Identities())


def test_a_notebook_that_is_gone_leaves_no_page(project: Path) -> None:
    (project / "notebooks" / "10_data.ipynb").unlink()
    build.bring_up_to_date(project, identify=Identities())
    assert not list((project / "book" / "chapters").glob("10_data*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("spectral_wieght: 1\n", "spectral_wieght, which no parameters cell declares"), (None, "No profile 'quick'")],
)
def test_unknown_parameters_and_profiles_are_refused(project: Path, text: str | None, message: str) -> None:
    params = project / "notebooks" / "params" / "quick.yaml"
    params.write_text(text) if text else params.unlink()
    with pytest.raises(InputError, match=message):
        build.bring_up_to_date(project, identify=Identities())


def test_parameters_cell_must_be_plain(project: Path) -> None:
    notebook = project / "notebooks" / "10_data.ipynb"
    notebook.write_text(notebook.read_text().replace("seed = 0", "seed = int(0)"))
    with pytest.raises(InputError, match=r"10_data\.ipynb, parameters cell, line 2"):
        build.bring_up_to_date(project, identify=Identities())
