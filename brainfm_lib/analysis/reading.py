"""Linear readings: ridge regression of the classes on principal coordinates, its penalty chosen on validation subjects.

Inputs are features (n, D), or a Gram matrix (n, n) of scans, which has each radial band of frequency as a summand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from brainfm_lib.probes.results import ProbeResult, score_columns
from brainfm_lib.probes.selection import select_and_score
from brainfm_lib.stats import Interval
from brainfm_lib.stats.units import bootstrap_interval, fold_mean_auroc, make_units, unit_weights

Array = NDArray[Any]
PENALTIES = tuple(float(x) for x in np.logspace(3, -3, 7))  # of the ridge, in mean eigenvalues; strongest first
UNCHOSEN = 1.0  # where two folds leave nothing to choose on


def read_linearly(
    inputs: Mapping[str, Array], table: pd.DataFrame, *, grams: bool = False, components: int | None = None
) -> ProbeResult:
    """Held-out scores of the ridge; which of the inputs and which penalty is chosen on validation subjects.

    Args:
        inputs: Name -> (n, D) features, rows as in `table`; or (n, n) inner products.
        table: As in `probes.linear_probe`.
        grams: Whether the inputs are Gram matrices.
        components: Read only this many leading principal components of the training rows; None: all.

    Raises:
        InputError: As `probes.selection.select_and_score`.
    """
    axes = _of_gram if grams else _of_features

    def fit(
        arrays: Mapping[str, Array], labels: Array, train: Array, penalties: tuple[float, ...]
    ) -> dict[tuple[str, Any], Array]:
        found = {}
        classes = np.eye(labels.max() + 1)[labels[train]]
        for name, array in arrays.items():
            coordinates, values = axes(np.asarray(array, float), train)
            coordinates, values = coordinates[:, :components], values[:components]
            moment = coordinates[train].T @ (classes - classes.mean(0))
            for penalty in penalties:
                weights = moment / (values + penalty * values.mean())[:, None]
                scores = np.full((len(labels), classes.shape[1]), np.nan)
                scores[~train] = classes.mean(0) + coordinates[~train] @ weights
                found[name, penalty] = scores
        return found

    return select_and_score(inputs, table, fit, "penalty", PENALTIES, UNCHOSEN)


def resampled(result: ProbeResult, draws: int, seed: int) -> tuple[Interval, Array]:
    """AUROC over held-out subjects with its 95 % interval, and its values under `draws` resamples of them."""
    table = result.predictions
    folds = table["fold"].to_numpy() if "fold" in table else None
    units = make_units(table["label"], score_columns(table).to_numpy(), table["subject_id"], folds, minimum=2)
    values = np.concatenate([fold_mean_auroc(units, weights) for weights in unit_weights(units, draws, seed)])
    return bootstrap_interval(units, 0.95, draws, seed), values


def centred(gram: Array, train: Array) -> Array:
    """Gram matrix (n, n) of rows from which the mean of the training rows is taken."""
    column = gram[:, train].mean(1)
    return np.asarray(gram - column[:, None] - column + gram[np.ix_(train, train)].mean())


def coordinates_of(gram: Array, most: int) -> Array:
    """Features (n, K), K at most `most`, whose inner products are those of a centred Gram matrix as far as they can."""
    return _of_gram(gram, np.ones(len(gram), bool))[0][:, :most]


def _of_gram(gram: Array, train: Array) -> tuple[Array, Array]:
    """Coordinates (n, K) along the principal axes of the training rows, and their sums of squares (K,), falling."""
    rows = centred(gram, train)
    values, vectors = _leading(rows[np.ix_(train, train)])
    return rows[:, train] @ (vectors / np.sqrt(values)), values


def _of_features(features: Array, train: Array) -> tuple[Array, Array]:
    """The same from features (n, D)."""
    x = features - features[train].mean(0)
    if x.shape[1] > train.sum():
        return _of_gram(x @ x.T, train)
    values, vectors = _leading(x[train].T @ x[train])
    return x @ vectors, values


def _leading(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues above rounding, falling, and their vectors."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > values.max() * 1e-10
    return values[kept][::-1], vectors[:, kept][:, ::-1]
