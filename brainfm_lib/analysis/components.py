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

from brainfm_lib.analysis.reading import read_linearly
from brainfm_lib.errors import InputError
from brainfm_lib.probes.results import read_features, resampled_auroc
from brainfm_lib.stats import Interval, aggregate_by_subject

Array = NDArray[Any]
POOLING = "mean"  # of the last block: the vector that the page of latents calls pooled
DIRECTIONS = 128  # principal directions looked at for the dimension, at most
HALVES = 60  # random halves of the subjects


def component_curve(
    features: Array, table: pd.DataFrame, counts: Sequence[int], *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """AUROC of a linear reading of the first principal components of features (n, D).

    Args:
        features: Rows as in `table`.
        table: As in `probes.linear_probe`.
        counts: How many components are read.
        draws, seed: Of the bootstrap over held-out subjects.

    Returns:
        components, estimate, low, high (95 %).
    """
    rows = []
    for count in counts:
        reading = read_linearly({"features": features}, table, components=count)
        found, _ = resampled_auroc(reading.predictions, draws, seed)
        rows.append({"components": count, **vars(found)})
    return pd.DataFrame(rows)


def discriminative_dimension(features: Array, labels: Array, subjects: Array, *, level: float = 0.95) -> Interval:
    """Over how many principal directions the distance between the first and the last class is spread.

    With δ the distance of the class means along the k-th principal direction within classes, in standard deviations,
    the participation ratio (Σδ²)² / Σδ⁴. Both sums are estimated without bias from Gaussian means: δ̂² - v, and
    δ̂⁴ - 6vδ̂² + 3v², v the sampling variance. Where several directions have equal variance a sample turns them at
    random, so the estimate is the median over random halves of the subjects, and the interval their quantiles: a half
    deviates from the whole as the whole does from the population. A half in which the classes' distance is not told
    from 0 may be anything from 1 to the number of directions looked at, and opens the interval on both sides.

    Args:
        features: (n, D) of the scans; those of a subject with one label are averaged.
        labels: (n,) classes; those between the first and the last are left out.
        subjects: (n,) identifiers.
        level: Nominal coverage.

    Returns:
        The estimate is NaN where the classes' distance is not told from 0 in more than half of the halves; the interval
        is then all that is possible.

    Raises:
        InputError: A class with fewer than eight subjects.
    """
    kept = (labels == labels.min()) | (labels == labels.max())
    binary = (labels[kept] == labels.max()).astype(int)
    unit_labels, units, _ = aggregate_by_subject(binary, features[kept], subjects[kept])
    counts = np.bincount(unit_labels, minlength=2)
    if counts.min() < 8:
        raise InputError(
            f"Class {counts.argmin()} has {counts.min()} subject(s) and a dimension needs eight: add subjects."
        )
    rng, found, most = np.random.default_rng(0), [], 1
    groups = [np.flatnonzero(unit_labels == k) for k in (0, 1)]
    for _ in range(HALVES):
        rows = np.concatenate([rng.permutation(group)[: len(group) // 2] for group in groups])
        one, most = _participation(units[rows], unit_labels[rows])
        found.append(one)
    tail = (1 - level) / 2
    told = np.isfinite(found)
    middle = float(np.nanmedian(found)) if told.mean() >= 0.5 else float("nan")
    low, high = (float(np.quantile(np.where(told, found, end), q)) for end, q in ((1.0, tail), (float(most), 1 - tail)))
    return Interval(middle, low, high)


def make_components(
    features: Path, table: pd.DataFrame, settings: Mapping[str, Any]
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: ``components`` and ``dimension`` of a task's features.

    Args:
        features: Folder with one <pooling>.npy each; read are the means over tokens of the last block, or whatever else
            there is.
        table: Scans of the task.
        settings: draws and seed.
    """

    def make(folder: Path) -> dict[str, Any]:
        arrays = read_features(features, table)
        means = [name for name in arrays if name.split("@")[0] == POOLING]
        chosen = max(means, key=lambda name: int(name.split("@")[1])) if means else next(iter(arrays))
        standard = standardised(arrays[chosen])
        width = min(standard.shape[1], len(table) // 2)
        counts = [2**k for k in range(int(np.log2(width)) + 1)]
        draws = min(settings["draws"], 1000)
        curve = component_curve(standard, table, counts, draws=draws, seed=settings["seed"])
        curve.to_parquet(folder / "components.parquet", index=False)
        write_dimension(folder, chosen, standard, table)
        return {}

    return make


def write_dimension(folder: Path, name: str, features: Array, table: pd.DataFrame) -> None:
    """Write ``dimension.parquet``: pooling (`name`), estimate, low, high; NaN where a class is too small."""
    try:
        found = discriminative_dimension(features, table["label"].to_numpy(), table["subject_id"].to_numpy())
    except InputError:
        found = Interval(float("nan"), float("nan"), float("nan"))
    pd.DataFrame([{"pooling": name, **vars(found)}]).to_parquet(folder / "dimension.parquet", index=False)


def standardised(features: Array) -> Array:
    """Features (n, D), each centred and of unit variance; constant ones are 0."""
    x = np.asarray(features, float)
    deviation = x.std(0)
    return (x - x.mean(0)) / np.where(deviation > 1e-12 * max(float(deviation.max()), 1e-300), deviation, np.inf)


def _participation(features: Array, labels: Array) -> tuple[float, int]:
    """Participation ratio of the classes' distance over principal directions within classes, and their number.

    Labels are 0 and 1; NaN where the distance is not told from 0.
    """
    n = np.bincount(labels, minlength=2)
    means = np.stack([features[labels == k].mean(0) for k in (0, 1)])
    within = features - means[labels]
    values, axes = np.linalg.eigh(within.T @ within / (n.sum() - 2))
    count = min(DIRECTIONS, int((values > values.max() * 1e-9).sum()), n.sum() // 3)
    values, axes = values[-count:], axes[:, -count:]
    distance = (means[1] - means[0]) @ axes / np.sqrt(values)
    v = float((1 / n).sum())
    # directions are estimated from the same subjects: each takes a share 1/n of the whole distance besides
    v += max(float((distance**2 - v).sum()) / (1 + count / n.sum()), 0.0) / n.sum()
    first = float((distance**2 - v).sum())
    second = float((distance**4 - 6 * v * distance**2 + 3 * v**2).sum())
    noise = v * np.sqrt(2 * count)
    told = first > 2 * noise and second > 0
    return float(np.clip(first**2 / second, 1, count)) if told else float("nan"), count
