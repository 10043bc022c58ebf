"""The linear probe on many random splits: how much of a result is the luck of one split."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from brainfm_lib.data.splits import assign_splits
from brainfm_lib.probes.linear import linear_probe
from brainfm_lib.probes.results import Array, evaluate, read_features

SPLITS = 10
TEST = 0.3  # share of the subjects tested in each
DRAWS = 400  # bootstrap resamples for the variance that sampling test subjects brings


def resplit(features: Mapping[str, Array], table: pd.DataFrame, *, splits: int = SPLITS) -> pd.DataFrame:
    """Probe anew on random splits of the subjects, the same ones for every arm; everything is chosen and fitted anew.

    Args:
        features, table: As for `linear_probe`; the table's own split is left aside.
        splits: How many.

    Returns:
        A row a split: split (from 1), auroc, sampling (the variance of the AUROC over resampled test subjects).

    Raises:
        InputError: As `linear_probe`.
    """
    rows = []
    for number in range(1, splits + 1):
        split = assign_splits(table, seed=number, test=TEST)
        found = evaluate(linear_probe(features, table.assign(split=split)), draws=DRAWS, permutations=1).iloc[0]
        error = (found["high"] - found["low"]) / (2 * norm.isf(0.025))
        rows.append({"split": number, "auroc": found["estimate"], "sampling": error**2})
    return pd.DataFrame(rows)


def make_resplit(features: Path, table: pd.DataFrame) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: writes ``splits.parquet``; arguments as for `make_probe`."""

    def make(folder: Path) -> dict[str, Any]:
        with threadpool_limits(1):
            resplit(read_features(features, table), table).to_parquet(folder / "splits.parquet")
        return {}

    return make
