"""Over how many directions of images or features the label of a task is spread.

`discriminative_dimension` sums it up: the participation ratio of the squared distances between two classes along the
principal directions within classes; 1 if one direction holds all, K if K share it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from brainfm_lib.analysis.reading import read_linearly, resampled, standardised_gram
from brainfm_lib.errors import InputError
from brainfm_lib.probes.results import read_features
from brainfm_lib.stats import Interval, aggregate_by_subject

Array = NDArray[Any]
DIRECTIONS = 128  # principal directions looked at for the dimension, at most
HALVES = 60  # random halves of the subjects


def component_curve(
    grams: Mapping[str, Array], table: pd.DataFrame, counts: Sequence[int], *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """AUROC of a linear reading of the first principal components: components, estimate, low, high."""
    rows = []
    for count in counts:
        found, _ = resampled(read_linearly(grams, table, components=count), draws, seed)
        rows.append({"components": count, **vars(found)})
    return pd.DataFrame(rows)


def discriminative_dimension(gram: Array, labels: Array, subjects: Array, *, level: float = 0.95) -> Interval:
    """Over how many principal directions the distance between the first and the last class is spread.

    With δ the distance of the class means along the k-th principal direction within classes, in standard deviations,
    the participation ratio (Σδ²)² / Σδ⁴. Both sums are estimated without bias from Gaussian means: δ̂² - v, and
    δ̂⁴ - 6vδ̂² + 3v², v the sampling variance. Where several directions have equal variance a sample turns them at
    random, so the estimate is the median over random halves of the subjects, and the interval their quantiles: a half
    deviates from the whole as the whole does from the population.

    Args:
        gram: (n, n) inner products of the scans' features; scans of a subject with one label are averaged.
        labels: (n,) classes; those between the first and the last are left out.
        subjects: (n,) identifiers.
        level: Nominal coverage.

    Returns:
        NaN where the classes' distance is not told from 0 in more than half of the halves.
    """
    kept = np.flatnonzero((labels == labels.min()) | (labels == labels.max()))
    binary = (labels[kept] == labels.max()).astype(int)
    unit_labels, units, names = _average_rows(gram[np.ix_(kept, kept)], binary, subjects[kept])
    rng, found = np.random.default_rng(0), []
    people = np.unique(names)
    for _ in range(HALVES):
        rows = np.flatnonzero(np.isin(names, rng.permutation(people)[: len(people) // 2]))
        found.append(_participation(units[np.ix_(rows, rows)], unit_labels[rows]))
    if np.isnan(found).mean() > 0.5:
        return Interval(float("nan"), float("nan"), float("nan"))
    middle, low, high = np.nanquantile(found, [0.5, (1 - level) / 2, (1 + level) / 2])
    return Interval(float(middle), float(low), float(high))


def make_components(
    features: Path, table: pd.DataFrame, settings: Mapping[str, Any]
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: ``components`` and ``dimension`` of a task's features.

    Args:
        features: Folder with one <pooling>.npy each; the curve and the dimension are of the pooling that validation
            subjects choose.
        table: Scans of the task.
        settings: draws and seed.
    """

    def make(folder: Path) -> dict[str, Any]:
        arrays = read_features(features, table)
        grams = {name: standardised_gram(array) for name, array in arrays.items()}
        chosen = str(read_linearly(grams, table).chosen["pooling"].mode().iloc[0])
        width = min(arrays[chosen].shape[1], len(table) // 2)
        counts = [2**k for k in range(int(np.log2(width)) + 1)]
        curve = component_curve(
            {chosen: grams[chosen]}, table, counts, draws=min(settings["draws"], 1000), seed=settings["seed"]
        )
        curve.to_parquet(folder / "components.parquet", index=False)
        write_dimension(folder, chosen, grams[chosen], table)
        return {}

    return make


def write_dimension(folder: Path, name: str, gram: Array, table: pd.DataFrame) -> None:
    """Write ``dimension.parquet``: pooling (`name`), estimate, low, high."""
    found = discriminative_dimension(gram, table["label"].to_numpy(), table["subject_id"].to_numpy())
    pd.DataFrame([{"pooling": name, **vars(found)}]).to_parquet(folder / "dimension.parquet", index=False)


def _average_rows(gram: Array, labels: Array, subjects: Array) -> tuple[Array, Array, Array]:
    """Labels (U,), Gram matrix (U, U) and subjects (U,) of the means over scans that share a subject and a label."""
    unit_labels, half, names = aggregate_by_subject(labels, gram, subjects)
    _, whole, _ = aggregate_by_subject(labels, half.T, subjects)
    return unit_labels, whole, names


def _participation(gram: Array, labels: Array) -> float:
    """Participation ratio of the classes' distance over principal directions within classes; labels are 0 and 1."""
    n = np.bincount(labels, minlength=2)
    if n.min() < 4:
        raise InputError(f"Class {n.argmin()} has {n.min()} subject(s) and a dimension needs four: add subjects.")
    means = np.eye(2)[labels] / n  # (U, 2): columns average a class
    within = np.eye(len(labels)) - np.eye(2)[labels] @ means.T
    scatter = within @ gram @ within.T
    values, vectors = np.linalg.eigh(scatter / (n.sum() - 2))
    count = min(DIRECTIONS, int((values > values.max() * 1e-9).sum()), n.sum() // 3)
    values, vectors = values[-count:], vectors[:, -count:]
    # the k-th axis is within.T @ vector / sqrt(its scatter): the distance of the class means along it, in deviations
    distance = (means[:, 1] - means[:, 0]) @ gram @ within.T @ vectors / (values * np.sqrt(n.sum() - 2))
    v = float((1 / n).sum())
    first = float((distance**2 - v).sum())
    second = float((distance**4 - 6 * v * distance**2 + 3 * v**2).sum())
    noise = v * np.sqrt(2 * count)
    return first**2 / second if first > 2 * noise and second > 0 else float("nan")
