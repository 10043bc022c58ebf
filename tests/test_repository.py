"""The files around the code agree with each other."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DECLARED = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]


def pins() -> dict[str, list[Requirement]]:
    """Name -> pins; there are several where platforms or Python versions differ."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(requirement.name.lower(), []).append(requirement)
    return found


def test_environment_and_pyproject_name_the_same_packages_and_ranges() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    assert {str(Requirement(e)) for e in listed if not e.startswith("-")} == {str(r) for r in DECLARED}
    assert "-c constraints.txt" in listed and "-e ." in listed
    assert f"python{PROJECT['requires-python']}" in environment


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda r: r.name)
def test_every_dependency_is_pinned_inside_its_range(requirement: Requirement) -> None:
    for pin in pins()[requirement.name.lower()]:
        (version,) = pin.specifier
        assert version.operator == "==" and requirement.specifier.contains(version.version, prereleases=True), pin


def test_no_pin_is_bound_to_one_kind_of_machine() -> None:
    for name, entries in pins().items():
        assert not name.startswith(("nvidia", "cuda", "triton")), name
        assert all("+" not in str(entry.specifier) for entry in entries), name


def test_every_file_that_make_installs_has_a_hash_but_torch() -> None:
    lines = (ROOT / "constraints-hashed.txt").read_text().replace(" \\\n", " ").splitlines()
    words = [line.split("    --hash=sha256:") for line in lines if not line.startswith("#")]
    plain = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [found[0].strip() for found in words] == plain
    assert [found[0].split("==")[0] for found in words if len(found) == 1] == ["torch"]
    assert all(re.fullmatch("[0-9a-f]{64}", digest.strip()) for found in words for digest in found[1:])
    assert "-c constraints-hashed.txt -e" in (ROOT / "Makefile").read_text()


def test_licence_is_mit_everywhere() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert PROJECT["license"] == "MIT"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"


def test_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert "2606.13315" in citation["references"][0]["url"]


def test_versions_agree() -> None:
    import brainfm_lib

    assert brainfm_lib.__version__ == PROJECT["version"]


def test_time_budget_stays_within_twenty_minutes_and_names_every_notebook() -> None:
    minutes = yaml.safe_load((ROOT / "book" / "budget.yaml").read_text())["minutes"]
    assert sum(minutes.values()) <= 20
    assert {path.stem for path in NOTEBOOKS} <= set(minutes)


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().rstrip().endswith("make test")
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_tests_stay_out_of_a_store_that_a_user_has_set() -> None:
    code = "import os, tests.conftest; print([name for name in os.environ if name.startswith('BRAINFM_')])"
    environment = {**os.environ, "BRAINFM_STORE": "/theirs", "BRAINFM_RUNS": "/theirs", "BRAINFM_PROFILE": "paper"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() in ("[]", "['BRAINFM_SOAK']")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_clean_and_take_parameters(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "outputs are committed"
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    names = {node.targets[0].id for node in ast.parse("".join(tagged[0]["source"])).body}
    assert {"profile", "manifest", "seed", "overrides", "result"} <= names


def imported(file: Path, modules: dict[str, Path]) -> set[Path]:
    """Files of the package that a file imports anywhere in it, for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{file} has an import that starts from where it stands"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {modules.get(name, modules.get(node.module)) for name in names}
        elif isinstance(node, ast.Import):
            found |= {modules.get(alias.name) for alias in node.names}
    return {path for path in found if path not in (None, file)}


@pytest.fixture(scope="module")
def graph() -> dict[Path, set[Path]]:
    """File of the package -> files that it imports."""
    files = sorted((ROOT / "brainfm_lib").rglob("*.py"))
    names = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    modules = {".".join(parts).removesuffix(".__init__"): file for parts, file in zip(names, files, strict=True)}
    found = {file: imported(file, modules) for file in files}
    assert sum(map(len, found.values())) > len(files)
    return found


def test_no_files_import_each_other_in_a_circle(graph: dict[Path, set[Path]]) -> None:
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


def test_files_import_from_the_same_row_of_the_readme_or_from_rows_above_it(graph: dict[Path, set[Path]]) -> None:
    library = ROOT / "brainfm_lib"
    rows = (ROOT / "README.md").read_text().partition("| in `brainfm_lib/` |")[2].split("\n\n")[0].splitlines()[2:]
    row = {library / name: n for n, line in enumerate(rows) for name in re.findall("`([^`]+)`", line.split("|")[1])}
    assert len(row) > 20 and all(path.exists() for path in row)
    place = {file: next((row[path] for path in (file, *file.parents) if path in row), None) for file in graph}
    for file, here in place.items():
        if here is None or file.name == "__main__.py":  # the way from a package to the command line
            continue
        queue, seen = list(graph[file]), set()
        while queue:  # through files that stand in no row
            other = queue.pop()
            there = place[other]
            assert there is None or there <= here, f"{file.relative_to(library)} reaches {other.relative_to(library)}"
            if there is None:
                queue += graph[other] - seen
                seen |= graph[other]


@pytest.mark.parametrize("file", sorted((ROOT / "brainfm_lib").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400


def test_every_citation_is_in_the_bibliography() -> None:
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE))
    sources = [*(ROOT / "book").glob("*.md"), *NOTEBOOKS]
    used = {
        key.strip()
        for source in sources
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", source.read_text())
        for key in keys.split(",")
    }
    assert used <= known
