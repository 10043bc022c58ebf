"""A small picture of a volume by which the same scan is known again, however it was saved."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

CELLS = 8  # along each axis
COARSE_DIMENSIONS = 12  # in which the search tree stands
# Distance of two fingerprints. Copies lie within 0.015, two contrasts of one head at least 0.08 apart (52 real scans).
SAME = 0.03


def fingerprint(volume: np.ndarray) -> bytes:
    """Block means of a prepared volume on 8 x 8 x 8 cells, centred and of length 1, as float16.

    A prepared volume stands on its grid whatever the file's orientation, type and scaling were, so scans that were
    saved again, rescaled or stored in another order have nearly equal fingerprints.

    Args:
        volume: (D, H, W) in [0, 1].
    """
    cells: np.ndarray = np.asarray(volume, np.float32)
    for axis, n in enumerate(cells.shape):
        edges = (np.arange(min(CELLS, n)) * n) // min(CELLS, n)
        sizes = np.diff([*edges, n]).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = -1
        cells = np.add.reduceat(cells, edges, axis=axis) / sizes.reshape(shape)
    flat = cells.ravel() - cells.mean()
    return (flat / (np.linalg.norm(flat) + 1e-12)).astype("<f2").tobytes()


def unpack(packed: Iterable[bytes]) -> np.ndarray:
    """Fingerprints as they come from `fingerprint` -> (N, cells) float32."""
    rows = [np.frombuffer(text, "<f2") for text in packed]
    return np.stack(rows).astype(np.float32) if rows else np.empty((0, CELLS**3), np.float32)


def near_pairs(prints: np.ndarray, within: float = SAME) -> pd.DataFrame:
    """All pairs of fingerprints closer than a distance, found by a tree and not by trying all pairs.

    The tree stands in the directions of largest variance; projecting onto them only shortens distances, so that no
    pair is missed, and what it finds is measured again in full.

    Args:
        prints: (N, cells) float32, rows of length 1.
        within: Largest distance; sqrt(2 - 2 r) for a correlation r.

    Returns:
        first, second (rows, first < second) and distance, nearest first.
    """
    from scipy.spatial import cKDTree

    n, k = len(prints), min(COARSE_DIMENSIONS, prints.shape[1])
    if n < 2:
        return pd.DataFrame({"first": [], "second": [], "distance": []}).astype({"first": int, "second": int})
    centred = prints - prints.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, -k:]
    pairs = cKDTree((centred @ directions).astype(np.float64)).query_pairs(within * 1.001, output_type="ndarray")
    distance = np.empty(len(pairs))
    for start in range(0, len(pairs), 65536):  # full rows of many pairs do not fit in memory at once
        part = pairs[start : start + 65536]
        distance[start : start + 65536] = np.linalg.norm(prints[part[:, 0]] - prints[part[:, 1]], axis=1)
    table = pd.DataFrame({"first": pairs[:, 0], "second": pairs[:, 1], "distance": distance})
    table = table[table["distance"] <= within]
    return table.sort_values(["distance", "first", "second"], ignore_index=True)
