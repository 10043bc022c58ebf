"""Few-shot probes: how many labelled subjects a representation needs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from brainfm_lib.errors import InputError
from brainfm_lib.probes.linear import linear_probe
from brainfm_lib.probes.results import Array, check_table, read_features, score_columns, subject_auroc

SHOTS = (8, 16, 32, 64)
DRAWS = 20
VALIDATION = 0.25  # share of the labelled subjects on which C and pooling are chosen


def few_shot(
    features: Mapping[str, Array],
    table: pd.DataFrame,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """The linear probe with few labelled subjects a class, drawn again and again from those not tested on.

    A quarter of the drawn subjects chooses C and pooling, so that no label beyond the stated number is looked at; then
    the probe is fitted on all of them and scored on the whole test set. All arms get the same draws.

    Args:
        features, table: As for `linear_probe`; the table has a split, not folds.
        shots: Labelled subjects a class; numbers that a class does not have are left out.
        draws: Of subjects, for each number.
        seed: Of the draws.

    Returns:
        A row a draw: shots, draw, auroc (over test subjects).

    Raises:
        InputError: The table is cross-validated, too small for the fewest shots, or as in `linear_probe`.
    """
    table = table.reset_index(drop=True)
    _, parts = check_table(table)
    if "split" not in table:
        raise InputError("Few-shot probes need one test set: this task has so few subjects that it is cross-validated.")
    pools = _subjects_of_classes(table[parts != "test"])
    possible = [n for n in shots if n <= min(map(len, pools))]
    if not possible:
        raise InputError(
            f"A class has {min(map(len, pools))} subjects outside the test set and {min(shots)} shots were asked for."
        )
    test = np.flatnonzero(parts == "test")
    rows = []
    for n in possible:
        for number in range(draws):
            rng = np.random.default_rng([seed, n, number])
            part: dict[Any, str] = {}
            for pool in pools:
                taken = rng.permutation(pool)[:n]
                held = max(round(VALIDATION * n), 1)
                part |= dict.fromkeys(taken[:held], "val") | dict.fromkeys(taken[held:], "train")
            drawn = table["subject_id"].map(part).to_numpy()
            kept = np.sort(np.concatenate([np.flatnonzero(pd.notna(drawn) & (parts != "test")), test]))
            chosen = table.iloc[kept].assign(split=np.where(parts[kept] == "test", "test", drawn[kept]))
            held_out = linear_probe({k: a[kept] for k, a in features.items()}, chosen).predictions
            everything = np.ones(len(held_out), bool)
            value = subject_auroc(
                held_out["label"].to_numpy(),
                score_columns(held_out).to_numpy(),
                held_out["subject_id"].to_numpy(),
                everything,
            )
            rows.append({"shots": n, "draw": number, "auroc": value})
    return pd.DataFrame(rows)


def make_few_shot(
    features: Path, table: pd.DataFrame, *, shots: Sequence[int], seed: int
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: writes ``draws.parquet``; arguments as for `few_shot` and `make_probe`."""

    def make(folder: Path) -> dict[str, Any]:
        with threadpool_limits(1):
            few_shot(read_features(features, table), table, shots=shots, seed=seed).to_parquet(folder / "draws.parquet")
        return {}

    return make


def _subjects_of_classes(table: pd.DataFrame) -> list[Any]:
    """Subjects of each class, sorted; those of several labels go one by one to what has the fewest by then."""
    carried = table.groupby("subject_id")["label"].unique()
    pools: dict[int, list[Any]] = {label: [] for label in sorted(table["label"].unique())}
    for subject, labels in sorted(carried.items(), key=lambda pair: (len(pair[1]), pair[0])):
        pools[min(labels, key=lambda label: (len(pools[label]), label))].append(subject)
    return [np.array(sorted(pool)) for pool in pools.values()]
