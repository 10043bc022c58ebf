"""The tidy table of a sweep: a row a cell, task and metric, with what was varied and what it cost."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.identity import write_atomic
from brainfm_lib.report.build import SWEPT, SWEPT_ABOUT
from brainfm_lib.runs import Run, get_run
from brainfm_lib.sweep.cells import page_of, result_of
from brainfm_lib.sweep.plan import Cell, Sweep
from brainfm_lib.verdict import KINDS


def collect(sweep: Sweep, cells: list[Cell]) -> pd.DataFrame:
    """Read the runs that finished cells used.

    Args:
        sweep: Theirs.
        cells: Those that `cells.Done` finds nothing wrong with.

    Returns:
        cell, a column for each parameter that the sweep sets, arm, task, protocol, metric, estimate, low, high,
        n_subjects, run, pretrain (the run), volumes_seen, train_seconds, heldout (last held-out loss).
    """
    rows: list[pd.DataFrame] = []
    for cell in cells:
        result = result_of(sweep, cell)
        runs = {request: get_run(name) for request, name in result["runs"].items() if request.split(":")[0] in WANTED}
        cost: dict[str, dict[str, Any]] = {}
        for request, run in runs.items():
            kind, arm, *_ = request.split(":")
            if kind == "pretrain":
                cost[arm] = _cost(run)
        for request, run in runs.items():
            kind, arm, *rest = request.split(":")
            if kind not in KINDS or "@" in request:
                continue
            table = run.table("results")[["metric", "estimate", "low", "high", "n_subjects"]]
            named = {"arm": arm, "task": rest[0], "protocol": KINDS[kind], "run": run.id, **cost.get(arm, {})}
            rows.append(table.assign(cell=cell.id, **dict(cell.point), **named))
    if not rows:
        return pd.DataFrame()
    joined = pd.concat(rows, ignore_index=True)
    first = ["cell", *cells[0].point, "arm", "task", "protocol", "metric", "estimate", "low", "high"]
    return joined[[*first, *(name for name in joined.columns if name not in first)]]


WANTED = (*KINDS, "pretrain")
IN_WORDS = "results.csv"  # the same table, to be read without a program


def write_results(sweep: Sweep, cells: list[Cell]) -> pd.DataFrame:
    """`collect` into ``results.parquet`` and ``results.csv`` of the sweep's folder, and beside them what it asks."""
    table = collect(sweep, cells)
    write_about(sweep, simulated=_simulated(cells, table))
    for name, write in ((SWEPT, table.to_parquet), (IN_WORDS, table.to_csv)):
        with write_atomic(sweep.folder / name) as temporary:
            write(temporary, index=False)
    return table


def write_about(sweep: Sweep, **more: Any) -> None:
    """Note in the sweep's folder what it asks, and which file its cells and its table come from."""
    about = {"title": sweep.title, "question": sweep.question, "file": sweep.file, **more}
    with write_atomic(sweep.folder / SWEPT_ABOUT) as temporary:
        temporary.write_text(json.dumps(about), encoding="utf-8")


def forget_results(sweep: Sweep) -> bool:
    """Remove the table of a sweep none of whose cells stands; say whether there was one."""
    there = (sweep.folder / SWEPT).is_file()
    for name in (SWEPT, IN_WORDS):
        (sweep.folder / name).unlink(missing_ok=True)
    return there


def _simulated(cells: list[Cell], table: pd.DataFrame) -> list[str]:
    """Tasks of a sweep's table whose scans are simulated, by the manifests that its cells were given."""
    found: set[str] = set()
    for path in {cell.parameters.get("manifest") or None for cell in cells}:
        known = load_manifest(path)
        found |= {name for name, task in known.tasks.items() if known.cohorts[task.cohort].kind == "phantom"}
    return sorted(found & set(table.get("task", [])))


def notebook_of(sweep: Sweep, cell: Cell) -> str:
    """Path, from the project's root, of the notebook of a cell that failed, or of its folder where it left none."""
    page = page_of(sweep, cell)
    failed = page.chapters / "failed" / page.notebook.name
    return str((failed if failed.is_file() else page.chapters).relative_to(sweep.folder.parent.parent))


def _cost(run: Run) -> dict[str, Any]:
    said = run.provenance
    found = {"pretrain": run.id, "volumes_seen": said.get("volumes_seen"), "train_seconds": said.get("train_seconds")}
    if (run.path / "metrics.parquet").is_file():
        metrics = run.table("metrics")
        if "heldout" in metrics and metrics["heldout"].notna().any():
            found["heldout"] = float(metrics["heldout"].dropna().iloc[-1])
    return found
