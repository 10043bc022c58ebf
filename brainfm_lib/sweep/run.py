"""What `brainfm sweep` does: plan, skip what is done, make the rest, collect, and say what failed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from brainfm_lib.errors import InputError
from brainfm_lib.paths import project_root
from brainfm_lib.report.build import SWEPT, SWEPT_ABOUT, about_sweep
from brainfm_lib.sweep.cells import UNMADE, Done, Outcome
from brainfm_lib.sweep.collect import forget_results, notebook_of, write_about, write_results
from brainfm_lib.sweep.plan import LISTED, Cell, Sweep, choose, load_sweep
from brainfm_lib.sweep.pool import Line, run_cells
from brainfm_lib.termination import ended_by_sigterm

EXECUTORS = ("local", "slurm", "submitit-local")


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
        workers: Cells at a time on this machine; on a cluster the file's `slurm.at_once` counts.
        where: ``local``, ``slurm``, or ``submitit-local`` to try the jobs of a cluster here.
        only: Make only cells that meet this, see `plan.choose`.
        profile: In place of the file's.
        max_cells: See `plan.load_sweep`.

    Raises:
        InputError: The file is wrong, or another process works on the same sweep.
        Terminated: SIGTERM came; what was finished before stays.
    """
    sweep, root = load_sweep(path, profile=profile, max_cells=max_cells), project_root()
    if where not in EXECUTORS or workers < 1:
        raise InputError(f"Choose an executor among {', '.join(EXECUTORS)}, and at least one worker.")
    if where == "slurm" and workers > 1:
        raise InputError("-j counts cells on this machine: for slurm write 'slurm: {at_once: N}' in the sweep's file.")
    _refuse_anothers_folder(sweep, root)
    cells = choose(sweep.cells, only)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(sweep.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"Another process works on {sweep.name}: wait for it, or end it.") from None
    try:
        if not (sweep.folder / SWEPT_ABOUT).is_file():
            with suppress(OSError):  # where the disk is full, cells say so
                write_about(sweep)
        done = Done(sweep, root)
        todo = [cell for cell in cells if not done(cell)]
        print(
            f"{sweep.name}: {len(cells)} cells, {len(cells) - len(todo)} done before, {len(todo)} to make", flush=True
        )
        with ended_by_sigterm():  # workers and their kernels are ended too, and leave nothing behind
            failed = _make(sweep, todo, root, workers, where)
        _write(sweep, done, {cell.id for cell, _ in failed}, root)
        for cell, outcome in failed:
            print(f"failed: {describe(cell)}: {outcome.error}\n        {notebook_of(sweep, cell)}")
        return len(failed)
    finally:
        lock.release()


def dry_run(
    path: str | Path, *, only: str | None = None, profile: str | None = None, max_cells: int = 1000
) -> Iterator[str]:
    """What `run_sweep` would make, a line a cell; files of finished runs are not compared with their digests."""
    sweep, root = load_sweep(path, profile=profile, max_cells=max_cells), project_root()
    _refuse_anothers_folder(sweep, root)
    done, cells = Done(sweep, root), choose(sweep.cells, only)
    lacks = [done.lack(cell, whole=False) for cell in cells]
    left = sum(map(bool, lacks))
    yield f"{sweep.name}: {len(cells)} cells of {sweep.page.name}, {len(cells) - left} done, {left} to make"
    for cell, lack in list(zip(cells, lacks, strict=True))[:LISTED]:
        why = "" if lack in ("", UNMADE) else f"  ({lack})"
        yield f"  {cell.id}  {'to make' if lack else 'done   '}  {describe(cell)}{why}"
    if len(cells) > LISTED:
        yield f"  and {len(cells) - LISTED:,} more"


def describe(cell: Cell) -> str:
    """What a cell varies, in a line."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in cell.point.items())


def _refuse_anothers_folder(sweep: Sweep, root: Path) -> None:
    """Two files of one name would write each other's table; a file that moved keeps its own."""
    if not (sweep.folder / SWEPT_ABOUT).is_file():
        return
    other = about_sweep(root, sweep.name).get("file", sweep.file)
    if other != sweep.file and (root / other).is_file():
        folder = sweep.folder.relative_to(root)
        raise InputError(f"{folder} is the folder of the sweep in {other}: give {sweep.file} another name.")


def _write(sweep: Sweep, done: Done, failed: set[str], root: Path) -> None:
    """Put the cells that stand into the table, and say how many do not, and why."""
    lacks = ["failed" if cell.id in failed else done.lack(cell) for cell in sweep.cells]
    finished = [cell for cell, lack in zip(sweep.cells, lacks, strict=True) if not lack]
    file = sweep.folder.relative_to(root) / SWEPT
    if finished:
        print(f"{file}: {len(write_results(sweep, finished)):,} rows of {len(finished)} cells")
    elif forget_results(sweep):
        print(f"{file} is removed: no cell is up to date")
    left_out = Counter(lack for lack in lacks if lack)
    if left_out:
        print(f"left out of the table: {', '.join(f'{count} {why}' for why, count in left_out.items())}")


def _make(sweep: Sweep, todo: list[Cell], root: Path, workers: int, where: str) -> list[tuple[Cell, Outcome]]:
    if not todo:
        return []
    by_id = {cell.id: cell for cell in todo}
    line = Line(len(todo), sweep.slurm.at_once if where == "slurm" else workers)
    if where == "local":
        outcomes = run_cells(sweep, todo, root, workers)
    else:
        from brainfm_lib.sweep.slurm import run_jobs

        outcomes = run_jobs(sweep, todo, root, cluster="slurm" if where == "slurm" else "local", workers=workers)
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
