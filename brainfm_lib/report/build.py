"""Bring the report's notebooks up to date: execute those, and only those, whose page could have changed.

A page is out of date when one of these differs from what stands beside it in ``book/chapters``:

* the notebook's cells, code or prose;
* the parameters it would be given, save those in `RUN_PARAMETERS`, which act through runs alone;
* the code that draws: the modules that its cells import, up to `Study`, behind which the runs stand;
* the identity of any run that it asked for.

So a changed weight re-executes just the notebooks that show a run which depends on it.
"""

import ast
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml
from filelock import FileLock

from brainfm_lib.data.strict_yaml import load_yaml
from brainfm_lib.errors import InputError
from brainfm_lib.identity import PACKAGE, code_digest, imported_modules, stable_hash, write_atomic
from brainfm_lib.integrity import file_identity

_PARTS = ("study", "requests", "data", "encoders", "evaluation", "tasks", "leaks")
STUDY = ("brainfm_lib.study", *(f"brainfm_lib.study.{name}" for name in _PARTS))  # what `Study` is made of
# parameters that change a profile's values, and so show in the identity of the runs that they touch: see `Study`
RUN_PARAMETERS = frozenset(
    ("overrides", "spectral_weight", "spectral_high_pass", "vcr_weight", "mask_ratio", "learning_rate", "steps")
)
STUDY_PARAMETERS = RUN_PARAMETERS | {"profile", "manifest", "seed", "objective", "allow_leak", "retrain"}
ONLY, JUDGING = "only", "50_probes"  # in a parameter file: values of one notebook; the one that judges
DATA = "data"  # under chapters: the tables behind the figures
SWEEP_PAGE = "sweeps/page.ipynb"  # under notebooks: what every sweep's page is made with
SWEPT, SWEPT_ABOUT = "results.parquet", "about.json"  # what a sweep leaves in its folder: a table, title and question
REFERENCE, REFERENCE_PAGE = "book/reference/reference.json", "reference/page.ipynb"  # under notebooks: what reads it
SHIPPED_PROFILE = "book/reference/shipped.yaml"
Identify = Callable[[Mapping[str, Any], str], str]


class ReportError(RuntimeError):
    """The report cannot be built; the message names notebook, cell and error."""


@dataclass(frozen=True)
class Page:
    """A notebook and where its executed form is staged, under a name and a title of its own where it has them."""

    notebook: Path
    chapters: Path
    alias: str = ""
    title: str = ""

    @property
    def name(self) -> str:
        """Name of the page: of the notebook, without its ending, where the page has none of its own."""
        return self.alias or self.notebook.stem

    def beside(self, ending: str) -> Path:
        """Staged file: ``.ipynb``, ``.result.json`` (the runs it used) or ``.state.json`` (the rest)."""
        return self.chapters / f"{self.name}{ending}"

    def cells(self) -> list[dict[str, Any]]:
        """Cells of the notebook, each with its source as one string."""
        cells = json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]
        return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def bring_up_to_date(root: Path, *, profile: str | None = None, identify: Identify | None = None) -> list[str]:
    """Execute what is out of date of ``notebooks/NN_*.ipynb`` and stage it under ``book/chapters``.

    Args:
        root: The project's folder.
        profile: Name of a file in ``notebooks/params``; default `default_profile`.
        identify: (parameters, request) -> run id, without making the run; default: `Study.identify`.

    Returns:
        Names of the notebooks that were executed.

    Raises:
        InputError: The profile is missing or names a parameter that no notebook declares.
        ReportError: A cell raised.
    """
    profile = profile or default_profile(root)
    identify = identify or study_identify(root)
    pages, chapters = find_pages(root), root / "book" / "chapters"
    chapters.mkdir(parents=True, exist_ok=True)
    given = profile_parameters(root, profile, pages)
    swept, referring = sweep_pages(root), reference_pages(root)
    given |= {page.name: {**declared_parameters(page), "sweep": name} for page, name in swept.items()}
    given |= {page.name: declared_parameters(page) for page in referring}  # what ships, beside its own profile
    pages = [*pages, *referring, *swept]
    with FileLock(chapters / ".lock"):
        _forget_others(pages, chapters)
        reasons = {page: out_of_date(page, given[page.name], identify) for page in pages}
        stale = [page for page in pages if reasons[page]]
        print(f"notebooks ({profile}): {len(pages)} pages, {len(stale)} to execute", flush=True)
        for page in stale:
            print(f"  {page.name}: {reasons[page]}", flush=True)
        for page in stale:
            make(page, given[page.name], root)
    return [page.name for page in stale]


def judged_profile(root: Path, manifest: str | Path | None = None) -> str:
    """The profile of the encoders that the report judges, of which its parameter file may say another than its name."""
    name = default_profile(root, manifest)
    if not (root / "notebooks" / "params" / f"{name}.yaml").is_file():
        return name
    given = profile_parameters(root, name, find_pages(root)).get(JUDGING, {})
    return str(given.get("profile", name))


def default_profile(root: Path, manifest: str | Path | None = None) -> str:
    """Name of the profile that the report is made with: ``BRAINFM_PROFILE``.

    Where that is not set, ``shipped`` if encoders of every arm ship for what the manifest pretrains on, else ``quick``.
    """
    named = os.environ.get("BRAINFM_PROFILE")
    if named or not (root / SHIPPED_PROFILE).is_file():
        return named or "quick"
    from brainfm_lib.reference.shipped import every_arm_ships  # what runs need: seconds of imports

    with rooted(root):
        return "shipped" if every_arm_ships(manifest) else "quick"


def find_pages(root: Path) -> list[Page]:
    """The report's notebooks, in the order of their numbers."""
    files = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return [Page(file, root / "book" / "chapters") for file in files]


def reference_pages(root: Path) -> list[Page]:
    """The page that reads the reference run, where one ships, beside what the project's own manifest gives."""
    there = (root / REFERENCE).is_file() and not os.environ.get("BRAINFM_MANIFEST")
    return [Page(root / "notebooks" / REFERENCE_PAGE, root / "book" / "chapters", "reference_results")] if there else []


def sweep_pages(root: Path) -> dict[Page, str]:
    """A page for each sweep that has a table, and the sweep's name."""
    notebook, chapters = root / "notebooks" / SWEEP_PAGE, root / "book" / "chapters"
    names = sorted(file.parent.name for file in (root / "sweeps").glob(f"*/{SWEPT}"))
    return {Page(notebook, chapters, f"sweep_{name}", about_sweep(root, name)["title"]): name for name in names}


def about_sweep(root: Path, name: str) -> dict[str, str]:
    """Title and question of a sweep, as they were when its table was written."""
    return json.loads((root / "sweeps" / name / SWEPT_ABOUT).read_text(encoding="utf-8"))


def sweep_identity(root: Path, name: str) -> str:
    """Hash of a sweep's table; "absent" where there is none."""
    return file_identity("sweep", root / "sweeps" / name / SWEPT)


def profile_parameters(root: Path, profile: str, pages: list[Page]) -> dict[str, dict[str, Any]]:
    """Return, for each notebook, its declared defaults with the profile's values laid over them.

    Values under ``only`` are for one notebook: ``only: {70_causal: {profile: quick}}``.

    Raises:
        InputError: No such profile, or it names a parameter that no notebook declares.
    """
    folder = root / "notebooks" / "params"
    file = folder / f"{profile}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in folder.glob("*.yaml")))
        raise InputError(
            f"No profile {profile!r} in {folder}: name one of {known} (BRAINFM_PROFILE, --profile), or write a file "
            "there that says 'profile: FILE', the path of a YAML profile of your own from the project's folder."
        )
    try:
        values = load_yaml(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not YAML ({' '.join(str(error).split())}): mend that line.") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} must hold names and values, such as 'profile: quick'.")
    declared = {page.name: declared_parameters(page) for page in pages}
    own = values.pop(ONLY, {})
    if not isinstance(own, dict) or not all(isinstance(given, dict) for given in own.values()):
        raise InputError(f"{file}: write {ONLY}: {{notebook: {{name: value}}}}.")
    unknown = set(values).difference(*declared.values()) if declared else set()
    unknown |= {key for name, given in own.items() for key in set(given).difference(declared.get(name, ()))}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise InputError(f"{file} sets {names}, which no parameters cell declares: correct the name.")
    return {
        name: {key: own.get(name, {}).get(key, values.get(key, default)) for key, default in defaults.items()}
        for name, defaults in declared.items()
    }


def declared_parameters(page: Page) -> dict[str, Any]:
    """Names and default values in the cell tagged ``parameters``, read without running it.

    Raises:
        InputError: There is not exactly one such cell, or it holds more than ``name = literal`` lines.
    """
    cells = [cell["source"] for cell in page.cells() if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{page.notebook} has {len(cells)} cells tagged 'parameters': tag exactly one.")
    found: dict[str, Any] = {}
    for node in ast.parse(cells[0]).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        try:
            for target in targets:
                found[target.id] = ast.literal_eval(node.value)  # type: ignore[union-attr]
        except (AttributeError, ValueError, TypeError):
            raise InputError(
                f"{page.notebook}, parameters cell, line {node.lineno}: write only 'name = literal'."
            ) from None
    return found


def out_of_date(page: Page, parameters: Mapping[str, Any], identify: Identify) -> str | None:
    """Say why a page has to be made again, or None where it need not."""
    if not all(page.beside(ending).is_file() for ending in (".ipynb", ".state.json", ".result.json")):
        return "not executed yet"
    state = json.loads(page.beside(".state.json").read_text(encoding="utf-8"))
    now = current_state(page, parameters)
    if state["notebook"] != now["notebook"]:
        return "its cells changed"
    if state["parameters"] != now["parameters"]:
        names = [k for k in now["parameters"] if state["parameters"].get(k) != now["parameters"][k]]
        return f"its parameters changed ({', '.join(names) or 'fewer'})"
    if state["code"] != now["code"]:
        return "the code that draws it changed"
    for request, run in json.loads(page.beside(".result.json").read_text(encoding="utf-8"))["runs"].items():
        try:
            if identify(parameters, request) != run:
                return f"the run behind {request} changed"
        except InputError as problem:  # an arm or a task that is gone; the notebook says so where it is not
            return f"{request} cannot be identified ({problem})"
    return None


def current_state(page: Page, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the page rests on, runs aside, as plain values."""
    cells = page.cells()
    text = [[cell["cell_type"], cell["source"], sorted(cell["metadata"].get("tags", []))] for cell in cells]
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    passed = {key: value for key, value in parameters.items() if key not in RUN_PARAMETERS}
    return {
        "notebook": hashlib.sha256(json.dumps(text).encode()).hexdigest()[:12],
        "parameters": json.loads(json.dumps(passed)),
        "code": drawing_digest(code),
    }


def drawing_digest(cells: list[str]) -> str:
    """Hash the code of this package that cells use directly.

    The import closure ends at `Study`, which counts with its own text and the data code behind it, for it hands
    out volumes. The rest behind it makes runs and is part of their identity.
    """
    modules = {
        name
        for source in cells
        for node in ast.walk(ast.parse(_without_magics(source)))
        for name in _imported(node)
        if name.split(".")[0] == PACKAGE
    }
    behind = {m for m in imported_modules(STUDY) if m not in STUDY and not m.startswith(f"{PACKAGE}.data")}
    study = code_digest(STUDY, without=behind) if modules else ""
    return stable_hash([study, code_digest(sorted(modules), without=STUDY)])


def make(page: Page, parameters: Mapping[str, Any], root: Path, stream: TextIO | None = None) -> None:
    """Execute one notebook and stage it, with its result and its state, in place of what stood there.

    Progress goes to `stream`, by default the terminal.

    Raises:
        ReportError: A cell raised, or no result was written. What was executed stays in ``chapters/failed``.
    """
    from brainfm_lib.report.execution import CellError, Progress, clean, execute  # papermill: a second of imports

    failed = page.chapters / "failed" / page.notebook.name
    failed.parent.mkdir(exist_ok=True)
    state = current_state(page, parameters)
    name = page.notebook.relative_to(root) if page.notebook.is_relative_to(root) else page.notebook.name
    try:
        with Progress(page.name, stream) as progress:
            result = execute(page.notebook, failed, parameters, root=root, progress=progress)
    except CellError as problem:
        raise ReportError(
            f"{name}, cell {problem.cell}: {problem.error} (the executed notebook is kept at {failed})"
        ) from problem
    except FileNotFoundError as problem:
        raise ReportError(f"{name}: {problem}") from problem
    page.beside(".state.json").unlink(missing_ok=True)
    state |= {"minutes": round(progress.minutes, 2), "made": time.strftime("%Y-%m-%d %H:%M:%S")}
    cleaned, data = clean(failed, page.name, page.title)
    _write_data(page, data)
    for path, text in (
        (page.beside(".ipynb"), cleaned),
        (page.beside(".result.json"), json.dumps(result, indent=1)),
        (page.beside(".state.json"), json.dumps(state, indent=1)),  # last: it vouches for the other two
    ):
        write_text(path, text)
    failed.unlink()


def study_identify(root: Path) -> Identify:
    """Return `Study.identify` over the project in `root`, with one study for each set of parameters."""
    studies: dict[str, Any] = {}

    def identify(parameters: Mapping[str, Any], request: str) -> str:
        kind, _, name = request.partition(":")
        if kind == "sweep":
            return sweep_identity(root, name)
        if kind == "reference":
            return file_identity("reference", root / REFERENCE)
        key = stable_hash(dict(parameters))
        with rooted(root):
            if key not in studies:
                studies[key] = open_study(parameters)
            return studies[key].identify(request)

    return identify


def open_study(parameters: Mapping[str, Any]) -> Any:
    """Return the `Study` that a notebook opens when it is given these parameters."""
    from brainfm_lib.study import Study  # only here: a report without runs needs none of what it imports

    return Study(**{name: value for name, value in parameters.items() if name in STUDY_PARAMETERS})


@contextmanager
def rooted(root: Path) -> Iterator[None]:
    """Make `root` the project's folder, whatever the working directory is."""
    before = os.environ.get("BRAINFM_ROOT")
    os.environ["BRAINFM_ROOT"] = str(root)
    try:
        yield
    finally:
        del os.environ["BRAINFM_ROOT"]
        if before is not None:
            os.environ["BRAINFM_ROOT"] = before


def write_text(path: Path, text: str) -> bool:
    """Write `text` atomically where it differs from what is there; say whether it did."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True


def _write_data(page: Page, files: Mapping[str, str]) -> None:
    """Put the tables behind a page's figures in place of those that lay there."""
    folder = page.chapters / DATA
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*"):
        if _page_of(file) == page.name and file.name not in files:
            file.unlink()
    for name, text in files.items():
        write_text(folder / name, text)


def _forget_others(pages: list[Page], chapters: Path) -> None:
    """Remove what was staged for notebooks that are gone."""
    names = {page.name for page in pages}
    for pattern in ("[0-9][0-9]_*", "sweep_*", "reference_*", f"{DATA}/*"):
        for file in chapters.glob(pattern):
            if _page_of(file) not in names:
                file.unlink()


def _page_of(file: Path) -> str:
    """Name, which may have dots, of the page that a staged file or a figure's table is of."""
    return re.sub(r"(\.ipynb|\.(result|state)\.json|(\.[^.]+){2}\.csv)$", "", file.name)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def _without_magics(source: str) -> str:
    """Python of a cell: IPython's lines (``%matplotlib``, ``!ls``) become ``pass``."""
    lines = (
        line[: len(line) - len(line.lstrip())] + "pass" if line.lstrip()[:1] in ("%", "!") else line
        for line in source.splitlines()
    )
    return "\n".join(lines)
