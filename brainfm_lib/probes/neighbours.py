"""Nearest neighbours on frozen features: what they are without any training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits

from brainfm_lib.probes.results import Array, ProbeResult, read_features, write_result
from brainfm_lib.probes.selection import select_and_score

NEIGHBOURS = (20, 10, 40, 5, 80)  # candidates for k, the preferred first
UNCHOSEN_K = 20


def knn_probe(features: Mapping[str, Array], table: pd.DataFrame) -> ProbeResult:
    """Vote of the k nearest scans, by the cosine of standardised features, nearer ones counting more.

    k and the pooling are chosen as `select_and_score` says; k is at most the number of training scans.

    Args:
        features, table: As for `linear_probe`.

    Raises:
        InputError: As `linear_probe`.
    """
    return select_and_score(features, table, _fit, "k", NEIGHBOURS, UNCHOSEN_K)


def make_knn(features: Path, table: pd.DataFrame, settings: Mapping[str, Any]) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls; arguments as for `make_probe`. Cross-validated tasks get no p (too lenient)."""

    def make(folder: Path) -> dict[str, Any]:
        with threadpool_limits(1):
            result = knn_probe(read_features(features, table), table)
        write_result(result, settings, folder, p=float("nan") if "fold" in table else None)
        return {}

    return make


def _fit(
    features: Mapping[str, Array], labels: Array, train: Array, candidates: tuple[int, ...]
) -> dict[tuple[str, int], Array]:
    found, classes = {}, np.eye(labels.max() + 1)
    most = min(max(candidates), int(train.sum()))
    for pooling, array in features.items():
        x = np.asarray(array, np.float32)
        x = normalize(StandardScaler().fit(x[train]).transform(x))  # Euclidean distance now ranks as the cosine does
        search = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(x[train])
        distance, nearest = search.kneighbors(x[~train])
        for k in candidates:
            weights = _nearness(distance[:, :k])
            votes = (weights[:, :, None] * classes[labels[train][nearest[:, :k]]]).sum(1)
            scores = np.full((len(labels), len(classes)), np.nan)
            scores[~train] = votes / weights.sum(1, keepdims=True)
            found[pooling, k] = scores
    return found


def _nearness(distance: Array) -> Array:
    """exp(cosine / 0.1) up to a factor a row, of Euclidean distances between vectors of unit length."""
    square = distance**2 / 2
    return np.exp((square.min(axis=1, keepdims=True) - square) / 0.1)
