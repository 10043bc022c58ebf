"""Task structure of a study: what `analysis.bands` measured, as far as it is there, beside the known truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from brainfm_lib.runs import Run
from brainfm_lib.study.tasks import TaskKinds
from brainfm_lib.verdict import RAW_VOXELS

CHANCE = 0.5


def structure_rows(runs: dict[str, Run]) -> pd.DataFrame:
    """One row a task.

    Args:
        runs: Task -> run of `bands:raw-voxels:task`.

    Returns:
        task, then auroc (of whole images), reliance and dimension, each with _low, _high and _by: in which way it was
        measured, "" where there has been one only or before ways had names. No reliance is told where the whole images'
        AUROC cannot be told from ½: it would be a share of what cannot be read at all.
    """
    rows = []
    for task, run in runs.items():
        row: dict[str, Any] = {"task": task}
        for name in ("whole", "reliance", "dimension"):
            found = run.table(name).iloc[0]
            key = "auroc" if name == "whole" else name
            row |= {key: found["estimate"], f"{key}_low": found["low"], f"{key}_high": found["high"]}
            row[f"{key}_by"] = found.get("by", "")
        row["reliance"] = row["reliance"] if row["auroc_low"] > CHANCE else float("nan")
        rows.append(row)
    names = ("auroc", "reliance", "dimension")
    columns = ["task", *(f"{name}{end}" for name in names for end in ("", "_low", "_high", "_by"))]
    return pd.DataFrame(rows, columns=columns)


def look_into(study: TaskKinds, tasks: Sequence[str] | None = None) -> dict[str, Run]:
    """Task (default: all) -> its run of band-limited images."""
    return {task: study.run(f"bands:{RAW_VOXELS}:{task}") for task in (study.tasks if tasks is None else tasks)}
