"""The linear probe on frozen features: every choice on validation subjects, every score from subjects not fitted on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from brainfm_lib.probes.results import (
    Array,
    ProbeResult,
    read_features,
    score_columns,
    subject_auroc,
    write_result,
)
from brainfm_lib.probes.selection import select_and_score
from brainfm_lib.stats import permutation_p_refit

PENALTIES = tuple(float(c) for c in np.logspace(-5, 0, 6))  # C of the L2 penalty, on standardised features
FEW = 800  # weights up to which Newton steps are the faster and more exact way to the optimum
UNCHOSEN_C = 1e-2  # where two folds leave nothing to choose on


def linear_probe(
    features: Mapping[str, Array],
    table: pd.DataFrame,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    cache: dict[Any, Array] | None = None,
) -> ProbeResult:
    """L2-penalised logistic regression on standardised features.

    C and the pooling are chosen as `select_and_score` says; two folds leave C = `UNCHOSEN_C`.

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
    cache = {} if cache is None else cache
    return select_and_score(
        features, table, lambda x, y, train, c: _fit(x, y, train, c, cache), "C", tuple(sorted(penalties)), UNCHOSEN_C
    )


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
        arrays = read_features(features, table)
        refits = settings.get("refits", 0) if "fold" in table else 0
        with threadpool_limits(1):  # the problems are small: more threads only wait for each other
            p = refit_p(arrays, table, draws=refits, seed=settings["seed"]) if refits else None
            write_result(linear_probe(arrays, table), settings, folder, p=p)
        return {}

    return make


def _fit(
    features: Mapping[str, Array], labels: Array, train: Array, penalties: tuple[float, ...], cache: dict[Any, Array]
) -> dict[tuple[str, float], Array]:
    """Probabilities (n, C) of all scans, NaN where trained on, under every (pooling, C)."""
    found = {}
    for pooling, array in features.items():
        key = (pooling, train.tobytes())
        rotated = cache[key] if key in cache else cache.setdefault(key, _principal_coordinates(array, train))
        weights = rotated.shape[1] * (labels.max() + 1 if labels.max() > 1 else 1)
        solver = "newton-cholesky" if weights <= FEW else "lbfgs"
        model = LogisticRegression(solver=solver, max_iter=20_000, warm_start=True)
        for c in penalties:  # from the strongest on, each starts from the one before: a fraction of the steps
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
