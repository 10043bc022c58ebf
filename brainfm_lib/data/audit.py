"""What a reviewer would ask of the data before any result.

Is a scan there twice? Does a subject stand on two sides? Do labels contradict each other? Could they be told without
looking at the brain?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainfm_lib.data.fingerprint import near_pairs
from brainfm_lib.data.manifest import Manifest
from brainfm_lib.data.splits import assign_folds
from brainfm_lib.data.store import Volumes

COVARIATES = {
    "site": "site",
    "scanner": "scanner",
    "contrast": "contrast",
    "age": "age",
    "sex": "sex",
    "brain volume": "foreground_ml",
}
NEEDED = {"train": 1, "val": 1, "test": 2}  # subjects of a class, in splits; an interval needs two
IN_FOLDS = 4  # without splits: two in each of two folds
PAIRS = ["first", "second", "same_subject", "distance"]


def duplicates(volumes: Mapping[str, Volumes]) -> pd.DataFrame:
    """Scans that are the same, or nearly: saved again, rescaled, or stored in another order of axes.

    Args:
        volumes: By cohort, all on one grid; scans of two cohorts are compared too.

    Returns:
        first, second (scan_uid), same_subject (bool, of one cohort), distance of their fingerprints; nearest first.
    """
    names = list(volumes)
    if not names:
        return pd.DataFrame(columns=PAIRS)
    scans = pd.concat([volumes[name].scans.assign(_cohort=name) for name in names], ignore_index=True)
    prints = np.concatenate([volumes[name].fingerprints() for name in names])
    pairs = near_pairs(prints)
    a, b = (scans.iloc[pairs[side].to_numpy()].reset_index(drop=True) for side in ("first", "second"))
    same = (a["subject_id"] == b["subject_id"]) & (a["_cohort"] == b["_cohort"])
    return pd.DataFrame(
        {"first": a["scan_uid"], "second": b["scan_uid"], "same_subject": same, "distance": pairs["distance"]}
    )


def label_conflicts(table: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of one and the same scan that carry different labels in a task.

    Args:
        table: A task's scans: scan_uid, label.
        pairs: From `duplicates`.
    """
    labels = table.drop_duplicates("scan_uid").set_index("scan_uid")["label"]
    a, b = pairs["first"].map(labels), pairs["second"].map(labels)
    found = a.notna() & b.notna() & (a != b)
    return pairs[found].assign(first_label=a[found].astype(int), second_label=b[found].astype(int))


def divided_subjects(table: pd.DataFrame) -> list[str]:
    """Subjects with scans on two sides of a task's split, or in two folds."""
    sides = table.groupby("subject_id")["split" if "split" in table else "fold"].nunique()
    return sorted(sides.index[sides > 1])


def too_few(manifest: Manifest, task: str, table: pd.DataFrame) -> str | None:
    """That the smallest class of a task has fewer subjects than probes need, two to test on and others to learn from.

    Args:
        manifest: With the task.
        task: Its name.
        table: As from `splits.task_table`: subject_id, label and, where files give them, split.
    """
    parts = NEEDED if "split" in table else {"": IN_FOLDS}
    for part, needed in parts.items():
        rows = table[table["split"] == part] if part else table
        counts = [rows["subject_id"][rows["label"] == k].nunique() for k in range(len(manifest.tasks[task].classes))]
        if min(counts) < needed:
            name, there = manifest.tasks[task].classes[int(np.argmin(counts))], f" in the {part} split" if part else ""
            few = f"{min(counts)} subject{'s' * (min(counts) != 1)}{there}"
            return (
                f"Class {name} of task {task} has {few}, and probes need {needed}: give more, merge the class with "
                "another, or map it to null."
            )
    return None


def torn_pairs(side: Mapping[str, str], pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of one and the same scan that stand on two sides.

    Args:
        side: scan_uid -> train, val, test, pretraining or a fold; scans that are nowhere are left out.
        pairs: From `duplicates`.
    """
    a, b = pairs["first"].map(side), pairs["second"].map(side)
    found = a.notna() & b.notna() & (a != b)
    return pairs[found].assign(first_side=a[found], second_side=b[found])


def confounding(table: pd.DataFrame, covariates: pd.DataFrame, *, seed: int = 0, folds: int = 5) -> pd.DataFrame:
    """How well each covariate alone tells the labels, without a look at the brain.

    A logistic regression on that covariate (categories one-hot; missing ages and volumes at the mean, with a flag),
    cross-validated over subjects; AUROC is the mean over folds, macro one-vs-rest for several classes, with a
    subject-clustered bootstrap interval.

    Args:
        table: A task's scans: scan_uid, subject_id, label.
        covariates: Aligned with `table`; its columns are tried one by one, those with a single value are left out.
        seed: Of folds and bootstrap.
        folds: At most; fewer where a class has few subjects.

    Returns:
        covariate, values (how many different ones), auroc, low, high; empty where a class has under four subjects.
    """
    from sklearn.linear_model import LogisticRegression

    from brainfm_lib import stats

    columns = ["covariate", "values", "auroc", "low", "high"]
    smallest = int(table.groupby("label")["subject_id"].nunique().min())
    if smallest < 4:
        return pd.DataFrame(columns=columns)
    fold = assign_folds(table, seed=seed, folds=min(folds, smallest // 2)).to_numpy()
    labels, subjects = table["label"].to_numpy(), table["subject_id"].to_numpy()
    rows = []
    for name in covariates:
        values = covariates[name]
        design = _design(values)
        if design.shape[1] == 0:
            continue
        scores = np.zeros((len(table), len(np.unique(labels))))
        for number in np.unique(fold):
            train, test = fold != number, fold == number
            model = LogisticRegression(max_iter=1000).fit(design[train], labels[train])
            scores[np.ix_(test, model.classes_)] = model.predict_proba(design[test])
        score = scores[:, 1] if scores.shape[1] == 2 else scores
        found = stats.cv_auroc_interval(labels, score, subjects, fold, draws=500, seed=seed)
        rows.append((name, values.nunique(), found.estimate, found.low, found.high))
    return pd.DataFrame(rows, columns=columns)


def covariates(volumes: Volumes, rows: Sequence[int] | np.ndarray) -> pd.DataFrame:
    """What could tell a label of these volumes without a look at the brain: columns named as in `COVARIATES`."""
    scans = volumes.scans.assign(foreground_ml=_foreground_ml(volumes))
    present = {name: column for name, column in COVARIATES.items() if column in scans}
    chosen = scans.iloc[np.asarray(rows)].reset_index(drop=True)
    return chosen[list(present.values())].set_axis(list(present), axis=1)


def make_confounding(volumes: Callable[[], Volumes], table: pd.DataFrame) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: `confounding` of a task, ``covariates.parquet``.

    Args:
        volumes: Of the task's cohort.
        table: As for `confounding`, with `row`, the scan's row in the volumes.
    """

    def make(folder: Path) -> dict[str, Any]:
        found = confounding(table, covariates(volumes(), table["row"].to_numpy()))
        found.to_parquet(folder / "covariates.parquet")
        return {}

    return make


def make_nuisance(volumes: Callable[[], Volumes]) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: all covariates of a cohort's scans as one matrix of features, ``covariates.npy``."""

    def make(folder: Path) -> dict[str, Any]:
        bank = volumes()
        table = covariates(bank, np.arange(len(bank)))
        parts = [_design(table[name]) for name in table] or [np.zeros((len(bank), 0))]
        found = np.concatenate(parts, axis=1).astype(np.float32)
        # Where no covariate varies, one that says nothing stands for them.
        np.save(folder / "covariates.npy", found if found.shape[1] else np.zeros((len(bank), 1), np.float32))
        return {}

    return make


def _foreground_ml(volumes: Volumes) -> np.ndarray:
    """Volume of the foreground, ml: of the brain where scans are skull-stripped, else of the head within the grid."""
    share = volumes.info["foreground"].to_numpy(float)
    return share * float(np.prod(volumes.geometry.extent)) / 1000


def _design(values: pd.Series) -> np.ndarray:
    """(n, k) standardised design matrix of one covariate; k = 0 where it has a single value."""
    if pd.api.types.is_numeric_dtype(values):
        missing = values.isna().to_numpy()
        filled = values.fillna(values.mean()).fillna(0).to_numpy(float)
        columns = np.stack([filled, missing.astype(float)], axis=1)
    else:
        columns = pd.get_dummies(values.astype(str)).to_numpy(float)
    spread = columns.std(axis=0)
    return (columns[:, spread > 0] - columns.mean(axis=0)[spread > 0]) / spread[spread > 0]
