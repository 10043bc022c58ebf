"""Held-out scores of a probe, what they must be checked for before, and what is written of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from brainfm_lib.errors import InputError
from brainfm_lib.stats import (
    Interval,
    aggregate_by_subject,
    auroc,
    auroc_interval,
    cv_auroc_interval,
    label_dealer,
    metric_intervals,
    permutation_p,
)
from brainfm_lib.stats.units import auroc_ends, auroc_values, fold_mean_auroc, make_units

Array = NDArray[Any]


@dataclass(frozen=True)
class ProbeResult:
    """Held-out scores of one probe.

    Attributes:
        predictions: A row a held-out scan (the test split, or every scan under cross-validation): scan_uid,
            subject_id, label, split or fold, and score_0 … score_{C-1}, the classes' probabilities.
        chosen: A row a fitted model with what the validation subjects chose, and validation_auroc; under
            cross-validation with the fold that it was scored on.
    """

    predictions: pd.DataFrame
    chosen: pd.DataFrame


def evaluate(
    result: ProbeResult, *, draws: int = 2000, permutations: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """AUROC over subjects with its interval, and the one-sided permutation p of being above chance.

    Returns:
        One row: metric, estimate, low, high, n_subjects, p_permutation. With folds it is the mean of the folds'
        AUROCs; the permutations hold the fitted models fixed.

    Raises:
        InputError: Fewer than two held-out subjects of a class (in a fold).
    """
    table = result.predictions
    held = table["label"].to_numpy(), score_columns(table).to_numpy(), table["subject_id"].to_numpy()
    folds = table["fold"].to_numpy() if "fold" in table else None
    settings: dict[str, Any] = {"level": level, "draws": draws, "seed": seed}
    found = auroc_interval(*held, **settings) if folds is None else cv_auroc_interval(*held, folds, **settings)
    p = permutation_p(*held, folds, draws=permutations, seed=seed)
    row = {"metric": "auroc", **vars(found), "n_subjects": table["subject_id"].nunique(), "p_permutation": p}
    return pd.DataFrame([row])


def write_result(result: ProbeResult, settings: Mapping[str, Any], folder: Path, *, p: float | None = None) -> None:
    """Write predictions, chosen and results (a row a metric) as Parquet; `p`, where given, replaces p_permutation."""
    scored = evaluate(result, draws=settings["draws"], permutations=settings["permutations"], seed=settings["seed"])
    scored = scored if p is None else scored.assign(p_permutation=p)
    table = result.predictions
    others = metric_intervals(
        table["label"],
        score_columns(table),
        table["subject_id"],
        table.get("fold"),
        draws=min(settings["draws"], 1000),  # beside the AUROC: half as many will do
        seed=settings["seed"],
    )
    others = others[others["metric"] != "auroc"].assign(n_subjects=scored["n_subjects"].iloc[0])
    scored = pd.concat([scored, others], ignore_index=True)
    for name, part in (("predictions", result.predictions), ("chosen", result.chosen), ("results", scored)):
        part.to_parquet(folder / f"{name}.parquet")


def read_features(folder: Path, table: pd.DataFrame) -> dict[str, Array]:
    """Pooling -> (n, D) of the table's scans; its `row` is the scan's row in each <pooling>.npy."""
    rows = table["row"].to_numpy()
    return {file.stem: np.load(file, mmap_mode="r")[rows] for file in sorted(folder.glob("*.npy"))}


def with_shuffled_labels(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The control: a task's scans with labels dealt out anew among subjects of one split or fold."""
    division = table["split" if "split" in table else "fold"]
    deal = label_dealer(table["label"], table["subject_id"], division)
    return table.assign(label=deal(np.random.default_rng([seed, 6])))


def check_table(table: pd.DataFrame) -> tuple[Array, Array]:
    """Labels (n,) and splits or folds (n,) of a task's scans, once nothing leaks and no class is missing.

    Raises:
        InputError: Says which subject, split or class.
    """
    missing = [name for name in ("scan_uid", "subject_id", "label") if name not in table]
    if missing or ("split" in table) == ("fold" in table):
        raise InputError(
            f"A probe's table needs {'column ' + missing[0] if missing else 'either a split or a fold column'}."
        )
    division = "split" if "split" in table else "fold"
    labels, parts = table["label"].to_numpy().astype(int), table[division].to_numpy()
    spread = table.groupby("subject_id")[division].nunique()
    if (spread > 1).any() and "leaks" not in table:  # whoever put that column there knows
        raise InputError(
            f"Subject {spread.index[spread > 1][0]} is in more than one {division}: assign {division}s by subject."
        )
    if len(set(labels)) < 2:
        raise InputError(f"All {len(table)} scans carry label {labels[0] if len(table) else '–'}: a probe needs two.")
    expected = ["train", "val", "test"] if division == "split" else sorted(set(parts))
    for part in expected:
        units = table[parts == part].drop_duplicates(["subject_id", "label"])
        counts = np.bincount(units["label"].astype(int), minlength=labels.max() + 1)
        needed = 2 if division == "fold" or part == "test" else 1  # an interval needs two held-out subjects a class
        if counts.min() < needed:
            raise InputError(
                f"{division.capitalize()} {part} has {counts.min()} subject(s) of class {counts.argmin()} and needs "
                f"{needed}: add subjects, {'use fewer folds' if division == 'fold' else 'change the split'} or merge "
                "classes."
            )
    if division == "split" and set(parts) - set(expected):
        raise InputError(f"Split {sorted(set(parts) - set(expected))[0]!r} is not one of train, val and test.")
    if len(expected) < 2:
        raise InputError("There is one fold only: cross-validation needs at least two.")
    return labels, parts


def subject_auroc(labels: Array, scores: Array, subjects: Array, rows: Array) -> float:
    """AUROC over the (subject, label) units among `rows` (n,) bool."""
    mean_labels, mean_scores, _ = aggregate_by_subject(labels[rows], scores[rows], subjects[rows])
    return auroc(mean_labels, mean_scores)


def resampled_auroc(predictions: pd.DataFrame, draws: int, seed: int = 0) -> tuple[Interval, Array]:
    """AUROC over held-out subjects with its 95 % interval, and its values under `draws` resamples of them.

    Probes of the same held-out subjects see the same resamples under one seed, so that their values are paired.

    Args:
        predictions: As in `ProbeResult.predictions`.
        draws, seed: Of the bootstrap.
    """
    folds = predictions["fold"].to_numpy() if "fold" in predictions else None
    scores = score_columns(predictions).to_numpy()
    units = make_units(predictions["label"], scores, predictions["subject_id"], folds, minimum=2)
    values, linear = auroc_values(units, draws, seed)
    return Interval(fold_mean_auroc(units), *auroc_ends(units, values, linear, 0.95)), values


def fold_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    """AUROC over subjects within each fold: metric, estimate, n_subjects, fold (text)."""
    rows = []
    for fold, table in predictions.groupby("fold"):
        labels, scores, names = aggregate_by_subject(table["label"], score_columns(table), table["subject_id"])
        estimate = auroc(labels, scores)
        rows.append({"metric": "auroc", "estimate": estimate, "n_subjects": len(set(names)), "fold": str(fold)})
    return pd.DataFrame(rows)


def score_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The columns score_0 … score_{C-1}."""
    return table[[f"score_{k}" for k in range(sum(str(name).startswith("score_") for name in table))]]


def prediction_table(scans: pd.DataFrame, scores: Array) -> pd.DataFrame:
    """Scans with their scores (n, C), columns as in `ProbeResult.predictions`."""
    division = "split" if "split" in scans else "fold"
    columns = {f"score_{k}": scores[:, k] for k in range(scores.shape[1])}
    return scans[["scan_uid", "subject_id", "label", division]].assign(**columns)
