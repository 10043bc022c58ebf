"""Execute one notebook through papermill, in a kernel of this interpreter, with progress on the terminal."""

import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import nbformat
import papermill
from papermill.engines import NBClientEngine, papermill_engines

from brainfm_lib.report.plates import plates

KERNEL = "brainfm-private"
ENGINE = "brainfm-reporting"

# nilearn's views name an icon on the network, plainly or inside an escaped srcdoc
_ICON = re.compile(r"(?:<|&lt;)link[^<>&]*?rel=(?:\"|&quot;)(?:shortcut )?icon(?:\"|&quot;).*?(?:>|&gt;)", re.DOTALL)


class CellError(RuntimeError):
    """A cell of a notebook raised.

    Attributes:
        cell: Number of the cell, from 1, counted as in the notebook that a person wrote.
        error: Class and last line of the message.
    """

    def __init__(self, cell: int, error: str):
        super().__init__(f"cell {cell}: {error}")
        self.cell, self.error = cell, error


class Progress:
    """One terminal line for one notebook: cells done, time spent, last words on the kernel's stderr."""

    def __init__(self, name: str, stream: TextIO | None = None):
        self.name, self.stream = name, stream or sys.stdout
        self.done, self.total, self.said = 0, 0, ""
        self.live = self.stream.isatty()
        self._began, self._stop = time.monotonic(), threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        if self.live:
            self._ticker.start()
        else:
            print(f"  {self.name}: executing", file=self.stream, flush=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if self.live:
            self._ticker.join()
        state = "done" if kind is None else "stopped"
        print(f"{self._lead()}  {self._status()}  {state}", file=self.stream, flush=True)

    def write(self, text: str) -> None:
        """Take what the kernel writes to stderr (a training loop's progress bar, say)."""
        for part in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)):
            self.said = part.strip() or self.said

    def flush(self) -> None:
        """Nothing is held back."""

    @property
    def minutes(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self._began) / 60

    def _status(self) -> str:
        seconds = int(self.minutes * 60)
        return f"{self.name}: {self.done} of {self.total} cells, {seconds // 60}:{seconds % 60:02d}"

    def _lead(self) -> str:
        return "\r\x1b[2K" if self.live else ""

    def _tick(self) -> None:
        while not self._stop.wait(0.5):
            width = os.get_terminal_size(self.stream.fileno()).columns or 80
            line = f"  {self._status()}  {self.said}"
            print(f"{self._lead()}{line[: width - 1]}", end="", file=self.stream, flush=True)


class _ReportingEngine(NBClientEngine):
    """Papermill's own engine, with a word to `progress` after each cell."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        progress: Progress = kwargs.pop("progress")
        progress.total = len(nb_man.nb.cells)
        cell_complete = nb_man.cell_complete

        def complete(*args: Any, **cell: Any) -> Any:
            progress.done, progress.said = progress.done + 1, ""
            return cell_complete(*args, **cell)

        nb_man.cell_complete = complete
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register(ENGINE, _ReportingEngine)


def execute(notebook: Path, output: Path, parameters: Mapping[str, Any], *, root: Path, progress: Progress) -> dict:
    """Execute `notebook` into `output` and return what it wrote to ``result.json``.

    The kernel is this interpreter's, whatever kernels the user has installed, and works in a scratch folder;
    ``BRAINFM_ROOT`` tells it where the project is.

    Args:
        notebook: The notebook to run; it is not changed.
        output: Where the executed notebook goes, also when a cell raises.
        parameters: Values for names that the notebook's parameters cell declares.
        root: The project's folder.
        progress: The line on the terminal.

    Raises:
        CellError: A cell raised, or the kernel died under it.
        FileNotFoundError: The notebook left no ``result.json``.
    """
    with tempfile.TemporaryDirectory(prefix="brainfm-") as folder, _private_kernel(Path(folder), root):
        scratch = Path(folder) / "work"
        scratch.mkdir()
        try:
            papermill.execute_notebook(
                notebook,
                output,
                dict(parameters),
                engine_name=ENGINE,
                kernel_name=KERNEL,
                language="python",
                progress_bar=False,
                stderr_file=progress,
                cwd=scratch,
                progress=progress,
            )
        except papermill.PapermillExecutionError as problem:
            last = (problem.evalue or "").strip().splitlines()[-1:] or [""]
            raise CellError(_number(output, problem.cell_index), f"{problem.ename}: {last[0]}") from problem
        except Exception as problem:  # the kernel died, say: in the cell that was counted last
            error = f"{type(problem).__name__}: {problem}".splitlines()[0]
            raise CellError(_number(output, max(progress.done - 1, 0)), error) from problem
        result = scratch / str(parameters.get("result", "result.json"))
        if not result.is_file():
            raise FileNotFoundError(f"{notebook.name} wrote no {result.name}; its last cell has to.")
        return json.loads(result.read_text(encoding="utf-8"))


def clean(executed: Path, page: str, title: str = "") -> tuple[str, dict[str, str]]:
    """The executed notebook as a page, without papermill's bookkeeping, which holds local paths.

    Args:
        executed: By `execute`.
        page: Name of the page.
        title: Replaces, where given, the heading of its first cell.

    Returns:
        The page's text; and the tables behind its figures, see `plates.plates`.
    """
    notebook = nbformat.read(executed, as_version=4)
    if title:
        first = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
        first.source = "\n".join([f"# {title}", *first.source.splitlines()[1:]])
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.metadata["tags"], cell["id"] = [*tags, "hide-input"], "injected-parameters"  # papermill draws one anew
        if "outputs" in cell:  # warnings name the files that they come from, and so where they lie
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output["data"]["text/html"] = _ICON.sub("", output["data"]["text/html"])
    notebook.cells, files = plates(notebook.cells, page)
    return nbformat.writes(notebook), files


@contextmanager
def _private_kernel(folder: Path, root: Path) -> Iterator[None]:
    """Put a kernel for this interpreter before all others, and tell kernels where the project is."""
    spec = folder / "share" / "kernels" / KERNEL
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "--log-level=40", "-f", "{connection_file}"]
    # an empty IPython folder keeps the user's start-up files and history out
    environment = {"IPYTHONDIR": str(folder / "ipython")}
    content = {"argv": argv, "display_name": KERNEL, "language": "python", "env": environment}
    (spec / "kernel.json").write_text(json.dumps(content), encoding="utf-8")
    before = dict(os.environ)
    paths = [str(folder / "share"), before.get("JUPYTER_PATH")]
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, paths))
    os.environ["BRAINFM_ROOT"] = str(root)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without .pyc files imports take twice as long
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _number(executed: Path, index: int) -> int:
    """Number, from 1, of the cell at `index`, counted without the cells that papermill put in."""
    cells = nbformat.read(executed, as_version=4).cells if executed.is_file() else []
    tags = [cell.metadata.get("tags", []) for cell in cells]
    ours = [tag for tag in tags if "papermill-error-cell-tag" not in tag][: index + 1]
    return index + 1 - sum("injected-parameters" in tag for tag in ours)
