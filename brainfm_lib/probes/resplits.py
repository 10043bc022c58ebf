"""The linear probe on many random splits: how much of a result is the luck of one split."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits

from brainfm_lib.data.splits import assign_splits
from brainfm_lib.probes.linear import linear_probe
from brainfm_lib.probes.results import Array, read_features, score_columns
from brainfm_lib.stats import aggregate_by_subject, auroc, auroc_variance

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
        held = linear_probe(features, table.assign(split=split)).predictions
        parts = held["label"].to_numpy(), score_columns(held).to_numpy(), held["subject_id"].to_numpy()
        area = auroc(*aggregate_by_subject(*parts)[:2])
        rows.append({"split": number, "auroc": area, "sampling": auroc_variance(*parts, draws=DRAWS)})
    return pd.DataFrame(rows)


def make_resplit(features: Path, table: pd.DataFrame) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: writes ``splits.parquet``; arguments as for `make_probe`."""

    def make(folder: Path) -> dict[str, Any]:
        with threadpool_limits(1):
            resplit(read_features(features, table), table).to_parquet(folder / "splits.parquet")
        return {}

    return make
