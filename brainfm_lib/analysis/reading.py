"""Linear readings of Gram matrices: ridge regression of the classes, its penalty chosen on validation subjects.

A Gram matrix (n, n) of scans has each radial band of frequency as a summand, and each principal component as a column
of coordinates, so that one matrix serves every question of how much of it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def ridge_fit(components: int | None = None) -> Callable[..., dict[tuple[str, Any], Array]]:
    """A `selection.Fit` that reads Gram matrices: ridge regression on the classes' indicators.

    Args:
        components: Read only this many leading principal components of the training rows; None: all.
    """

    def fit(
        grams: Mapping[str, Array], labels: Array, train: Array, penalties: tuple[float, ...]
    ) -> dict[tuple[str, Any], Array]:
        found = {}
        classes = np.eye(labels.max() + 1)[labels[train]]
        for name, gram in grams.items():
            axes, values = coordinates(np.asarray(gram, float), train)
            if components is not None:
                axes, values = axes[:, :components], values[:components]
            moment = axes[train].T @ (classes - classes.mean(0))
            for penalty in penalties:
                weights = moment / (values + penalty * values.mean())[:, None]
                scores = np.full((len(labels), classes.shape[1]), np.nan)
                scores[~train] = classes.mean(0) + axes[~train] @ weights
                found[name, penalty] = scores
        return found

    return fit


def read_linearly(grams: Mapping[str, Array], table: pd.DataFrame, *, components: int | None = None) -> ProbeResult:
    """Held-out scores of the ridge; which of the Gram matrices and which penalty is chosen on validation subjects.

    Args:
        grams: Name -> (n, n), rows as in `table`.
        table: As in `probes.linear_probe`.
        components: See `ridge_fit`.

    Raises:
        InputError: As `probes.selection.select_and_score`.
    """
    return select_and_score(grams, table, ridge_fit(components), "penalty", PENALTIES, UNCHOSEN)


def standardised_gram(features: Array) -> Array:
    """Inner products (n, n) of features (n, D), each centred and of unit variance, divided by D."""
    x = np.asarray(features, float)
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 1e-12 * max(float(deviation.max()), 1e-300), deviation, np.inf)
    return x @ x.T / x.shape[1]


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
    return gram - column[:, None] - column + gram[np.ix_(train, train)].mean()


def coordinates(gram: Array, train: Array) -> tuple[Array, Array]:
    """Principal coordinates (n, K) of the training rows' axes, and their eigenvalues (K,), falling."""
    rows = centred(gram, train)
    values, vectors = np.linalg.eigh(rows[np.ix_(train, train)])
    kept = values > values.max() * 1e-10
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    return rows[:, train] @ (vectors / np.sqrt(values)), values
