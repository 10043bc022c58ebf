"""The two dials of the causal test: settings of simulated tasks, what each is set to, and what is measured of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from brainfm_lib.data.phantom.dials import DIMENSIONS, FREQUENCIES
from brainfm_lib.runs import Run
from brainfm_lib.study.structure import structure_rows

MEASURES = {"frequency": "reliance", "dimension": "dimension"}  # dial -> what should follow it


@dataclass(frozen=True)
class Dial:
    """A row of settings that differ in one property of the signal.

    Attributes:
        settings: Tasks, in order.
        positions: (S,) of each on the dial, 0 to 1.
        values: What the dial is set to.
        unit: Of the values.
        arm: The arm whose gain should rise along it.
    """

    settings: tuple[str, ...]
    positions: tuple[float, ...]
    values: tuple[float, ...]
    unit: str
    arm: str


def _evenly(values: Sequence[float]) -> tuple[float, ...]:
    return tuple((v - values[0]) / (values[-1] - values[0]) for v in values)


DIALS = {
    "frequency": Dial(
        tuple(f"frequency-{band}" for band in FREQUENCIES),
        _evenly(FREQUENCIES),
        tuple(band / 100 for band in FREQUENCIES),
        "cycles per voxel",
        "sl-mae",
    ),
    "dimension": Dial(
        tuple(f"dimension-{d}" for d in DIMENSIONS),
        _evenly(np.log2(DIMENSIONS).tolist()),
        tuple(float(d) for d in DIMENSIONS),
        "directions",
        "vcr-jepa",
    ),
}


def all_settings() -> list[str]:
    """All settings, dial by dial."""
    return [setting for dial in DIALS.values() for setting in dial.settings]


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
