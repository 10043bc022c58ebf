"""One cell of a sweep: whether it is done, how it is made, and what of it is kept."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from brainfm_lib.identity import write_atomic
from brainfm_lib.report import Page, ReportError, current_state, make, out_of_date, study_identify
from brainfm_lib.sweep.plan import Cell, Sweep

ERROR = "error.json"


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
    """Which cells of a sweep need not be made again."""

    def __init__(self, sweep: Sweep, root: Path) -> None:
        self.sweep = sweep
        self._identify = study_identify(root)

    @cached_property
    def _state(self) -> dict[str, Any]:
        """What a cell would be made from now; all drawing code is read for it, once there is a cell to compare."""
        return current_state(self.sweep.page, {})

    def __call__(self, cell: Cell, *, quick: bool = False) -> bool:
        """Whether a cell stands as it would be made now; `quick` does not look at the runs behind it."""
        page = page_of(self.sweep, cell)
        file = page.beside(".state.json")
        if not file.is_file():
            return False
        state = json.loads(file.read_text(encoding="utf-8"))
        if any(state[name] != self._state[name] for name in ("notebook", "code")):
            return False
        return quick or out_of_date(page, cell.parameters, self._identify) is None


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
