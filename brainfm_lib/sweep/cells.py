"""One cell of a sweep: whether it is done, how it is made, and what of it is kept."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from brainfm_lib.errors import InputError
from brainfm_lib.identity import write_atomic
from brainfm_lib.integrity import damage
from brainfm_lib.paths import runs_dir, shipped_dir
from brainfm_lib.report.build import Page, ReportError, current_state, make, out_of_date, study_identify
from brainfm_lib.runs import PROVENANCE, Run
from brainfm_lib.sweep.plan import Cell, Sweep

ERROR = "error.json"
UNMADE, STALE, GONE = "not made yet", "out of date", "with runs gone or damaged"
NO_RUN = ("cohort", "study", "optional", "sweep", "reference")  # kinds of requests that are not answered by a run


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        cell: Its identifier.
        error: What went wrong, in a sentence; empty where nothing did.
        seconds: How long it took.
    """

    cell: str
    error: str
    seconds: float = 0.0


def page_of(sweep: Sweep, cell: Cell) -> Page:
    """The sweep's notebook, staged into the cell's own folder."""
    return Page(sweep.page.notebook, sweep.folder / "cells" / cell.id)


class Done:
    """Which cells of a sweep need not be made again, and what the others lack."""

    def __init__(self, sweep: Sweep, root: Path) -> None:
        self.sweep = sweep
        self._identify = study_identify(root)
        self._whole: set[str] = set()  # runs whose files were compared with their digests

    @cached_property
    def _state(self) -> dict[str, Any]:
        """What a cell would be made from now; all drawing code is read for it, once there is a cell to compare."""
        return current_state(self.sweep.page, {})

    @cached_property
    def _shipped(self) -> dict[str, Path]:
        """Folders of the runs that came with the project, by identifier."""
        found = {}
        for file in (shipped_dir() / "runs").glob(f"[!.]*/{PROVENANCE}"):
            with suppress(InputError):  # a provenance that cannot be read vouches for nothing
                found[Run(file.parent).id] = file.parent
        return found

    def __call__(self, cell: Cell) -> bool:
        """Whether a cell stands as it would be made now, and every file of its runs is what was written."""
        return not self.lack(cell)

    def lack(self, cell: Cell, *, whole: bool = True) -> str:
        """Why a cell has to be made, or "" where it need not.

        Args:
            cell: Of the sweep.
            whole: Compare the files of its runs with their digests, once in a process; else they only have to be there.
        """
        page = page_of(self.sweep, cell)
        file = page.beside(".state.json")
        if not file.is_file():
            return UNMADE
        state = json.loads(file.read_text(encoding="utf-8"))
        if any(state[name] != self._state[name] for name in ("notebook", "code")):
            return STALE
        if out_of_date(page, cell.parameters, self._identify) is not None:
            return STALE
        named = result_of(self.sweep, cell)["runs"].items()
        runs = [run for request, run in named if request.partition(":")[0] not in NO_RUN]
        return "" if all(self._stands(run, whole) for run in runs) else GONE

    def _stands(self, name: str, whole: bool) -> bool:
        """Whether a run is there; one that is damaged is set aside by the cell that needs it, when that is made."""
        made_here = runs_dir() / name
        folder = made_here if (made_here / PROVENANCE).is_file() else self._shipped.get(name)
        if folder is None or not whole or name in self._whole:
            return folder is not None
        try:
            wrong = damage(folder, Run(folder).provenance.get("files", {}))
        except InputError:
            return False
        if wrong is None:
            self._whole.add(name)
        return wrong is None


def run_cell(sweep: Sweep, cell: Cell, root: Path) -> str:
    """Execute a cell and stage it; return what went wrong, or "". A failed cell keeps its notebook and the error."""
    page = page_of(sweep, cell)
    error = page.chapters / ERROR
    try:
        page.chapters.mkdir(parents=True, exist_ok=True)
        make(page, cell.parameters, root, stream=io.StringIO())
    except ReportError as problem:
        said = str(problem)
    except OSError as problem:
        said = f"{problem.strerror or problem}: {problem.filename or page.chapters}"
    except Exception as problem:  # whatever it is, it costs this cell alone
        said = f"{type(problem).__name__}: {problem}"
    else:
        error.unlink(missing_ok=True)
        return ""
    with suppress(OSError), write_atomic(error) as temporary:  # where the disk is full, the terminal alone says it
        temporary.write_text(json.dumps({"error": said, "point": dict(cell.point)}, indent=1), encoding="utf-8")
    return said


def result_of(sweep: Sweep, cell: Cell) -> dict[str, Any]:
    """What the cell's notebook wrote: which runs it used."""
    return json.loads(page_of(sweep, cell).beside(".result.json").read_text(encoding="utf-8"))
