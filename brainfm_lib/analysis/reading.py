"""Linear readings: ridge regression of the classes on principal coordinates, its penalty chosen on validation subjects.

Inputs are features (n, D), or a Gram matrix (n, n) of scans, which has each radial band of frequency as a summand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh

from brainfm_lib.probes.results import ProbeResult
from brainfm_lib.probes.selection import select_and_score

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
        components: Read only this many leading principal components of the training rows' features; None: all.

    Raises:
        InputError: As `probes.selection.select_and_score`.
    """

    def fit(
        arrays: Mapping[str, Array], labels: Array, train: Array, penalties: tuple[float, ...]
    ) -> dict[tuple[str, Any], Array]:
        found = {}
        classes = np.eye(labels.max() + 1)[labels[train]]
        for name, array in arrays.items():
            x = np.asarray(array, float)
            regress = _on_gram(x, train) if grams else _on_features(x, train, components)
            for penalty in penalties:
                scores = np.full((len(labels), classes.shape[1]), np.nan)
                scores[~train] = classes.mean(0) + regress(classes - classes.mean(0), penalty)
                found[name, penalty] = scores
        return found

    return select_and_score(inputs, table, fit, "penalty", PENALTIES, UNCHOSEN)


def centred(gram: Array, train: Array) -> Array:
    """Gram matrix (n, n) of rows from which the mean of the training rows is taken."""
    column = gram[:, train].mean(1)
    return np.asarray(gram - column[:, None] - column + gram[np.ix_(train, train)].mean())


def dual_weights(inside: Array, target: Array, penalty: float) -> Array:
    """Ridge regression on a centred Gram matrix (n, n): the weight of each row, (n,) or (n, C) as the target.

    Where next to nothing is left of the inputs (frequencies that scans do not have), rounding outweighs the penalty and
    makes eigenvalues negative; they are taken for 0 then.
    """
    ridge = penalty * float(np.trace(inside)) / (len(inside) - 1)
    if ridge <= 0:
        return np.zeros_like(target)
    try:
        return np.asarray(cho_solve(cho_factor(inside + ridge * np.eye(len(inside))), target))
    except LinAlgError:
        values, vectors = eigh(inside)
        return np.asarray(vectors @ ((vectors.T @ target).T / (np.maximum(values, 0) + ridge)).T)


def coordinates_of(gram: Array, most: int) -> Array:
    """Features (n, K), K at most `most`, whose inner products are those of a centred Gram matrix as far as they can."""
    rows = centred(gram, np.ones(len(gram), bool))
    values, vectors = eigh(rows, subset_by_index=(max(len(rows) - most, 0), len(rows) - 1))
    kept = values > values.max() * 1e-10
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _on_gram(gram: Array, train: Array) -> Callable[[Array, float], Array]:
    """(target of the training rows, penalty) -> predictions of the others."""
    rows = centred(gram, train)
    inside, outside = rows[np.ix_(train, train)], rows[np.ix_(~train, train)]
    return lambda target, penalty: outside @ dual_weights(inside, target, penalty)


def _on_features(features: Array, train: Array, components: int | None) -> Callable[[Array, float], Array]:
    """The same from features (n, D), along the leading principal axes of the training rows."""
    x = features - features[train].mean(0)
    _, singular, axes = np.linalg.svd(x[train], full_matrices=False)
    kept = singular > singular.max() * 1e-5
    values, axes = np.square(singular[kept])[:components], axes[kept][:components]
    coordinates = x @ axes.T

    def regress(target: Array, penalty: float) -> Array:
        weights = (coordinates[train].T @ target) / (values + penalty * values.mean())[:, None]
        return np.asarray(coordinates[~train] @ weights)

    return regress
