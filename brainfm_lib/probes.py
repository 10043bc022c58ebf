"""The linear probe on frozen features: every choice on validation subjects, every score from subjects not fitted on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from brainfm_lib.errors import InputError
from brainfm_lib.stats import (
    aggregate_by_subject,
    auroc,
    auroc_interval,
    cv_auroc_interval,
    permutation_p,
    permutation_p_refit,
)

Array = NDArray[Any]
PENALTIES = tuple(float(c) for c in np.logspace(-5, 2, 8))  # C of the L2 penalty, on standardised features
FEW = 64  # coordinates up to which Newton steps are the faster way to the same weights
UNCHOSEN_C = 1e-2  # where two folds leave nothing to choose on


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


def linear_probe(
    features: Mapping[str, Array],
    table: pd.DataFrame,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    cache: dict[Any, Array] | None = None,
) -> ProbeResult:
    """L2-penalised logistic regression on standardised features.

    C and the pooling maximise the AUROC over validation subjects (ties: first pooling, strongest penalty); then the
    model is fitted again on training and validation subjects. With folds the choice is nested: for each outer fold,
    every other fold in turn is the validation set. Two folds leave nothing to choose on: the first pooling and
    C = `UNCHOSEN_C` are taken, and validation_auroc is NaN.

    Args:
        features: Pooling -> (n, D), rows as in `table`.
        table: n scans: scan_uid, subject_id, label (0…C-1), and split ("train", "val", "test") or fold (int).
        penalties: Candidates for C.
        cache: Rotated features, filled and reused where the same features and splits are fitted again.

    Returns:
        Scores of the test split, or of every scan from the model that did not see its fold.

    Raises:
        InputError: A subject on both sides, a class or split without subjects, features that are not finite.
    """
    table = table.reset_index(drop=True)
    labels, parts = check_table(table)
    for name, array in features.items():
        if len(array) != len(table):
            raise InputError(f"Features {name} have {len(array)} rows for a table of {len(table)}: align them.")
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise InputError(f"Features {name} of {table['scan_uid'][row]} are not finite: drop or mend that scan.")
    subjects, grid = table["subject_id"].to_numpy(), dict.fromkeys(features, penalties)
    cache = {} if cache is None else cache
    tried: dict[frozenset[Any], dict[tuple[str, float], Array]] = {}

    def candidates(held: frozenset[Any]) -> dict[tuple[str, float], Array]:
        if held not in tried:
            tried[held] = _fit(features, labels, ~np.isin(parts, list(held)), grid, cache)
        return tried[held]

    rows, chosen = [], []
    for part in ["test"] if "split" in table else sorted(set(parts)):
        inner = ["val"] if "split" in table else [p for p in sorted(set(parts)) if p != part]
        if "split" in table or len(inner) > 1:
            value = {
                key: np.mean(
                    [subject_auroc(labels, candidates(frozenset({part, p}))[key], subjects, parts == p) for p in inner]
                )
                for key in [(pooling, c) for pooling in features for c in sorted(penalties)]
            }
            pooling, c = max(value, key=lambda key: value[key])
            validation = float(value[pooling, c])
        else:
            pooling, c, validation = next(iter(features)), UNCHOSEN_C, float("nan")
        held = parts == part
        scores = _fit({pooling: features[pooling]}, labels, ~held, {pooling: (c,)}, cache)[pooling, c]
        rows.append(prediction_table(table[held], scores[held]))
        fold = {} if "split" in table else {"fold": part}
        chosen.append({**fold, "pooling": pooling, "C": c, "validation_auroc": validation})
    return ProbeResult(pd.concat(rows).sort_index().reset_index(drop=True), pd.DataFrame(chosen))


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


def refit_p(features: Mapping[str, Array], table: pd.DataFrame, *, draws: int = 399, seed: int = 0) -> float:
    """One-sided p of a cross-validated probe, its choices and fits repeated under labels permuted within folds.

    What `evaluate` does instead, permuting against fixed scores, is too lenient for small cross-validated samples,
    because the folds' models share subjects (17 against 11 subjects under the null: p < 0.05 in 11 % of studies).

    Args:
        features, table: As in `linear_probe`, with folds.
        draws: Permutations; each costs a whole nested cross-validation.
        seed: Of the permutations.
    """
    cache: dict[Any, Array] = {}  # coordinates do not depend on labels

    def estimate(labels: Array) -> float:
        held = linear_probe(features, table.assign(label=labels), cache=cache).predictions
        values = [
            subject_auroc(
                held["label"].to_numpy(), score_columns(held).to_numpy(), held["subject_id"].to_numpy(), rows.to_numpy()
            )
            for rows in (held["fold"] == fold for fold in held["fold"].unique())
        ]
        return float(np.mean(values))

    subjects, folds = table["subject_id"].to_numpy(), table["fold"].to_numpy()
    return permutation_p_refit(estimate, table["label"].to_numpy(), subjects, folds, draws=draws, seed=seed)


def make_probe(features: Path, table: pd.DataFrame, settings: Mapping[str, Any]) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls.

    Args:
        features: Folder with one <pooling>.npy (cohort scans, D) each.
        table: Scans of the task; `row` is the scan's row in the features.
        settings: draws, permutations and seed of the evaluation; with `refits` > 0 the p of a cross-validated task
            comes from that many refits (`refit_p`).
    """

    def make(folder: Path) -> dict[str, Any]:
        rows = table["row"].to_numpy()
        arrays = {file.stem: np.load(file, mmap_mode="r")[rows] for file in sorted(features.glob("*.npy"))}
        refits = settings.get("refits", 0) if "fold" in table else 0
        with threadpool_limits(1):  # the problems are small: more threads only wait for each other
            p = refit_p(arrays, table, draws=refits, seed=settings["seed"]) if refits else None
            write_result(linear_probe(arrays, table), settings, folder, p=p)
        return {}

    return make


def write_result(result: ProbeResult, settings: Mapping[str, Any], folder: Path, *, p: float | None = None) -> None:
    """Write predictions, chosen and results as Parquet; `p`, where given, replaces p_permutation."""
    scored = evaluate(result, draws=settings["draws"], permutations=settings["permutations"], seed=settings["seed"])
    scored = scored if p is None else scored.assign(p_permutation=p)
    for name, part in (("predictions", result.predictions), ("chosen", result.chosen), ("results", scored)):
        part.to_parquet(folder / f"{name}.parquet")


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
    if (spread > 1).any():
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


def score_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The columns score_0 … score_{C-1}."""
    return table[[f"score_{k}" for k in range(sum(str(name).startswith("score_") for name in table))]]


def prediction_table(scans: pd.DataFrame, scores: Array) -> pd.DataFrame:
    """Scans with their scores (n, C), columns as in `ProbeResult.predictions`."""
    division = "split" if "split" in scans else "fold"
    columns = {f"score_{k}": scores[:, k] for k in range(scores.shape[1])}
    return scans[["scan_uid", "subject_id", "label", division]].assign(**columns)


def _fit(
    features: Mapping[str, Array],
    labels: Array,
    train: Array,
    grid: Mapping[str, tuple[float, ...]],
    cache: dict[Any, Array],
) -> dict[tuple[str, float], Array]:
    """Probabilities (n, C) of all scans, NaN where trained on, under every (pooling, C) of the grid."""
    found = {}
    for pooling, penalties in grid.items():
        key = (pooling, train.tobytes())
        rotated = (
            cache[key] if key in cache else cache.setdefault(key, _principal_coordinates(features[pooling], train))
        )
        solver = "newton-cholesky" if rotated.shape[1] <= FEW else "lbfgs"
        model = LogisticRegression(solver=solver, max_iter=20_000, warm_start=True)
        for c in sorted(penalties):  # from the strongest on, each starts from the one before: a fraction of the steps
            model.set_params(C=c).fit(rotated[train], labels[train])
            scores = np.full((len(labels), labels.max() + 1), np.nan)
            scores[~train] = model.predict_proba(rotated[~train])
            found[pooling, c] = scores
    return found


def _principal_coordinates(features: Array, train: Array) -> Array:
    """Features (n, D) standardised on the training rows, in the principal axes of those rows where D is larger.

    The weights of an L2-penalised linear model lie in the span of its training rows, so rotating into that span
    changes nothing but the time it takes.
    """
    x = StandardScaler().fit(features[train].astype(np.float64)).transform(features.astype(np.float64))
    if train.sum() >= x.shape[1]:
        return x
    values, vectors = np.linalg.eigh(x[train] @ x[train].T)
    kept = values > values.max() * 1e-12
    return x @ (x[train].T @ (vectors[:, kept] / np.sqrt(values[kept])))
