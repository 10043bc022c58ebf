"""Task structure of a study: what `analysis.bands` measured, as far as it is there, beside the known truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy.stats import spearmanr

from brainfm_lib.verdict import RAW_VOXELS

if TYPE_CHECKING:
    from brainfm_lib.causal import Dial
    from brainfm_lib.runs import Run
    from brainfm_lib.study import Study

CHANCE = 0.5
MEASURES = {"frequency": "reliance", "dimension": "dimension"}  # dial -> what should follow it


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


def look_into(study: Study, tasks: Sequence[str] | None = None) -> dict[str, Run]:
    """Task (default: all) -> its run of band-limited images."""
    return {task: study.run(f"bands:{RAW_VOXELS}:{task}") for task in (study.tasks if tasks is None else tasks)}


def measured_dials(runs: dict[str, Run], dials: dict[str, Dial]) -> pd.DataFrame:
    """What is measured of each setting of the dials: dial, setting, value, estimate, low, high, by (in which way).

    Args:
        runs: Setting -> run of its band-limited images, from `look_into`.
        dials: Whose settings.
    """
    structure = structure_rows(runs).set_index("task")
    rows = []
    for name, dial in dials.items():
        measure = MEASURES[name]
        for setting, value in zip(dial.settings, dial.values, strict=True):
            row = structure.loc[setting]
            ends = {"low": row[f"{measure}_low"], "high": row[f"{measure}_high"]}
            found = {"estimate": row[measure], **ends, "by": row[f"{measure}_by"]}
            rows.append({"dial": name, "setting": setting, "value": value, **found})
    return pd.DataFrame(rows, columns=["dial", "setting", "value", "estimate", "low", "high", "by"])


def told_apart(rows: pd.DataFrame) -> bool:
    """Whether the intervals of a dial's first and last setting lie apart, in the direction in which it turns.

    Args:
        rows: Of one dial, from `measured_dials`.
    """
    rows = rows.sort_values("value")
    return bool(rows["high"].iloc[0] < rows["low"].iloc[-1])


def ordering(measured: pd.DataFrame) -> dict[str, float]:
    """Dial -> Spearman's correlation of what it is set to and what is measured."""
    return {
        str(name): float(spearmanr(rows["value"], rows["estimate"]).statistic)
        for name, rows in measured.groupby("dial")
    }
