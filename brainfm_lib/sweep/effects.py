"""What a sweep says: effects of each parameter, pairs of them, the best cell and how far its choice flatters it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from brainfm_lib.errors import InputError
from brainfm_lib.paths import project_root
from brainfm_lib.probes.results import resampled_auroc
from brainfm_lib.report.build import SWEPT
from brainfm_lib.runs import get_run

METRIC = "auroc"
FIXED = ("cell", "arm", "task", "protocol", "metric", "estimate", "low", "high")
MEASURED = ("n_subjects", "run", "pretrain", "volumes_seen", "train_seconds", "heldout")
DRAWS = 500


@dataclass(frozen=True)
class Outcomes:
    """AUROC of every cell on every task.

    Attributes:
        table: A row a cell and task: cell, the parameters, task, auroc, validation, train_seconds.
        resampled: (rows, DRAWS) the AUROC under resamples of the test subjects, the same for all cells of a task.
    """

    table: pd.DataFrame
    resampled: np.ndarray


def read_sweep(name: str) -> pd.DataFrame:
    """The table of a sweep, from its folder under the project's ``sweeps``.

    Raises:
        InputError: Nobody has run it.
    """
    file = project_root() / "sweeps" / name / SWEPT
    if not file.is_file():
        raise InputError(f"There is no table of a sweep {name!r}: `brainfm sweep {name}` makes it.")
    return pd.read_parquet(file)


def varied(table: pd.DataFrame) -> list[str]:
    """Parameters that differ between cells, the seed last."""
    names = [name for name in table.columns if name not in (*FIXED, *MEASURED)]
    found = [name for name in names if table[name].map(str).nunique() > 1]
    return [*(name for name in found if name != "seed"), *(["seed"] if "seed" in found else [])]


def outcomes(table: pd.DataFrame, protocol: str = "linear") -> Outcomes:
    """Read the probes behind a sweep's table.

    Args:
        table: From `read_sweep`.
        protocol: Whose results.

    Raises:
        InputError: A run behind the table is gone.
    """
    kept = table[(table["metric"] == METRIC) & (table["protocol"] == protocol)].reset_index(drop=True)
    rows, values = [], []
    for _, r in kept.iterrows():
        try:
            run = get_run(str(r["run"]))
        except InputError as error:
            raise InputError(f"{r['run']}, of cell {r['cell']}, is gone: `brainfm sweep` makes it again.") from error
        values.append(resampled_auroc(run.table("predictions"), DRAWS)[1])
        validation = float(run.table("chosen")["validation_auroc"].mean())
        point = {name: r[name] for name in (*varied(table), "cell", "arm", "task")}
        rows.append(
            {**point, "auroc": r["estimate"], "validation": validation, "train_seconds": r.get("train_seconds")}
        )
    return Outcomes(pd.DataFrame(rows), np.stack(values) if values else np.zeros((0, DRAWS)))


def main_effects(found: Outcomes, names: Sequence[str]) -> pd.DataFrame:
    """Mean AUROC over tasks at each level of each parameter, over cells that differ in that parameter alone.

    Where a sweep is not crossed (a list, a random draw, one that is not finished), these are the cells whose other
    settings occur with every level. Without any, all cells of a level count, and nothing is said of differences: they
    would be those of other settings too.

    Args:
        found: From `outcomes`.
        names: Parameters, from `varied`.

    Returns:
        parameter, level (text), order, cells, estimate, low, high (95 %, over test subjects; settings and seeds as they
        are), and difference, difference_low, difference_high from the parameter's first level on the same subjects.
    """
    rows = []
    for name in names:
        reference: tuple[float, np.ndarray] | None = None
        levels, at_level = _levels(found.table[name]), found.table[name].map(str)
        others = [other for other in (*names, "arm", "task") if other != name and other in found.table]
        rest = found.table[others].map(str).agg("\x1f".join, axis=1)
        everywhere = rest.map(at_level.groupby(rest).nunique()) == len(levels)
        nothing = np.full(DRAWS, np.nan)
        for order, level in enumerate(levels):
            here = ((at_level == level) & (everywhere | (not everywhere.any()))).to_numpy()
            mean, values = float(found.table["auroc"][here].mean()), found.resampled[here].mean(0)
            reference = reference or ((mean, values) if everywhere.any() else (float("nan"), nothing))
            low, high = np.quantile(values, [0.025, 0.975])
            apart = np.quantile(values - reference[1], [0.025, 0.975])
            rows.append(
                {
                    "parameter": name,
                    "level": level,
                    "order": order,
                    "cells": found.table["cell"][here].nunique(),
                    "estimate": mean,
                    "low": low,
                    "high": high,
                    "difference": mean - reference[0],
                    "difference_low": apart[0],
                    "difference_high": apart[1],
                }
            )
    columns = ["parameter", "level", "order", "cells", "estimate", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "difference", "difference_low", "difference_high"])


def interaction(found: Outcomes, first: str, second: str) -> pd.DataFrame:
    """Mean AUROC over tasks and all else: levels of `first` down, of `second` across."""
    text = found.table.assign(**{name: found.table[name].map(str) for name in (first, second)})
    wide = text.pivot_table(index=first, columns=second, values="auroc", aggfunc="mean")
    return wide.reindex(index=_levels(found.table[first]), columns=_levels(found.table[second]))


def best_cell(found: Outcomes) -> dict[str, Any]:
    """The cell that validation subjects pick, what it reaches on test subjects, and how far looking there flatters.

    Returns:
        cell, cells, validation and test (means over tasks) of the picked cell, low and high of the latter;
        highest_test, of whichever cell is highest on test subjects, which nobody may report as a result; and optimism,
        validation minus test of the picked cell.
    """
    means = found.table.groupby("cell")[["validation", "auroc"]].mean()
    picked = means["validation"].idxmax() if means["validation"].notna().any() else means.index[0]
    here = (found.table["cell"] == picked).to_numpy()
    low, high = np.quantile(found.resampled[here].mean(0), [0.025, 0.975])
    validation, test = float(means.loc[picked, "validation"]), float(means.loc[picked, "auroc"])
    return {
        "cell": str(picked),
        "cells": len(means),
        "validation": validation,
        "test": test,
        "low": float(low),
        "high": float(high),
        "highest_test": float(means["auroc"].max()),
        "optimism": validation - test,
    }


def cell_table(found: Outcomes, names: Sequence[str]) -> pd.DataFrame:
    """A row a cell: its parameters, mean AUROC over tasks on validation and on test subjects, and training seconds."""
    grouped = found.table.groupby("cell", sort=False)
    means = grouped[["validation", "auroc"]].mean()
    return grouped[[*names, "train_seconds"]].first().join(means).reset_index()


def _levels(column: pd.Series) -> list[str]:
    """Different values as text, numbers by size and words in order of appearance."""
    values = list(dict.fromkeys(column))
    if all(isinstance(v, int | float | np.number) for v in values):
        values = sorted(values)
    return list(dict.fromkeys(map(str, values)))
