"""What `brainfm sweep` does: plan, skip what is done, make the rest, collect, and say what failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from brainfm_lib.errors import InputError
from brainfm_lib.paths import project_root
from brainfm_lib.report import SWEPT
from brainfm_lib.sweep.cells import Done, Outcome
from brainfm_lib.sweep.collect import notebook_of, write_results
from brainfm_lib.sweep.plan import Cell, Sweep, choose, load_sweep
from brainfm_lib.sweep.pool import Line, run_cells

EXECUTORS = ("local", "slurm", "submitit-local")
LISTED = 20  # cells that a dry run names


def run_sweep(
    path: str | Path,
    *,
    workers: int = 1,
    where: str = "local",
    only: str | None = None,
    profile: str | None = None,
    max_cells: int = 1000,
) -> int:
    """Bring a sweep up to date and write its table; return how many cells failed.

    Args:
        path: Of the sweep's file, or its name.
        workers: Cells at a time on this machine.
        where: ``local``, ``slurm``, or ``submitit-local`` to try the jobs of a cluster here.
        only: Make only cells that meet this, see `plan.choose`.
        profile: In place of the file's.
        max_cells: See `plan.load_sweep`.

    Raises:
        InputError: The file is wrong, or another process works on the same sweep.
    """
    sweep, root = load_sweep(path, profile=profile, max_cells=max_cells), project_root()
    if where not in EXECUTORS or workers < 1:
        raise InputError(f"Choose an executor among {', '.join(EXECUTORS)}, and at least one worker.")
    cells = choose(sweep.cells, only)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(sweep.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"Another process works on {sweep.name}: wait for it, or end it.") from None
    try:
        done = Done(sweep, root)
        todo = [cell for cell in cells if not done(cell)]
        print(
            f"{sweep.name}: {len(cells)} cells, {len(cells) - len(todo)} done before, {len(todo)} to make", flush=True
        )
        failed = _make(sweep, todo, root, workers, where)
        finished = [cell for cell in sweep.cells if done(cell, quick=True)]
        if finished:
            table = write_results(sweep, finished)
            print(f"{sweep.folder.relative_to(root) / SWEPT}: {len(table):,} rows of {len(finished)} cells")
        for cell, outcome in failed:
            print(f"failed: {describe(cell)}: {outcome.error}\n        {notebook_of(sweep, cell)}")
        return len(failed)
    finally:
        lock.release()


def dry_run(
    path: str | Path, *, only: str | None = None, profile: str | None = None, max_cells: int = 1000
) -> Iterator[str]:
    """What `run_sweep` would make, a line a cell; runs behind finished cells are not looked at."""
    sweep = load_sweep(path, profile=profile, max_cells=max_cells)
    done, cells = Done(sweep, project_root()), choose(sweep.cells, only)
    states = [done(cell, quick=True) for cell in cells]
    left = len(cells) - sum(states)
    yield f"{sweep.name}: {len(cells)} cells of {sweep.page.name}, {sum(states)} done, {left} to make"
    for cell, state in list(zip(cells, states, strict=True))[:LISTED]:
        yield f"  {cell.id}  {'done   ' if state else 'to make'}  {describe(cell)}"
    if len(cells) > LISTED:
        yield f"  and {len(cells) - LISTED:,} more"


def describe(cell: Cell) -> str:
    """What a cell varies, in a line."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in cell.point.items())


def _make(sweep: Sweep, todo: list[Cell], root: Path, workers: int, where: str) -> list[tuple[Cell, Outcome]]:
    if not todo:
        return []
    by_id, line = {cell.id: cell for cell in todo}, Line(len(todo), workers)
    if where == "local":
        outcomes = run_cells(sweep, todo, root, workers)
    else:
        from brainfm_lib.sweep.slurm import run_jobs

        outcomes = run_jobs(sweep, todo, root, cluster="slurm" if where == "slurm" else "local")
    failed = []
    try:
        for outcome in outcomes:
            cell = by_id[outcome.cell]
            line.add(outcome, describe(cell))
            if outcome.error:
                failed.append((cell, outcome))
    finally:
        outcomes.close()  # type: ignore[attr-defined]
        line.end()
    return failed
