"""Over how many directions of images or features the label of a task is spread.

`discriminative_dimension` sums it up: the participation ratio of the squared distances between two classes along the
principal directions within classes; 1 if one direction holds all, K if K share it alike. Measured in a sample it is too
large, and simulation tells by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
SIMULATIONS = 200  # of a half, for every number of directions
WAY = "calibrated"  # how dimensions are measured: changed with the measure, since those of two ways do not compare


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
    the participation ratio (Σδ²)² / Σδ⁴ is measured: the median over random halves of the subjects. Both sums are
    estimated without bias from Gaussian means: δ̂² - v, and δ̂⁴ - 6vδ̂² + 3v², v the sampling variance. But a sample
    turns directions of close variances into each other, and one of them is then measured as many. So the measurement
    is calibrated by simulation (indirect inference: Gourieroux et al. 1993, Journal of Applied Econometrics 8, S85):
    the estimate is the number K of directions that would give it, the interval all those whose central 95 % hold it.

    Simulated are halves with the sample's variances and whole distance, shared equally by K neighbouring directions
    about the place in the spectrum where the sample has it. Assumed are thus Gaussian classes of one covariance and
    such shares: under heavy tails, which turn directions further, intervals lie too high. If no K gives what was
    measured, the assumption fails; then the measurement stands as it is, and the interval reaches from it to the
    nearer end. One direction and several of close variances cannot be told apart in few subjects: the interval then
    holds both, and the estimate may be either. A half in which the distance is not told from 0 may be anything from 1
    to the number of directions looked at.

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
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(unit_labels == k) for k in (0, 1)]
    found = []
    for _ in range(HALVES):
        rows = np.concatenate([rng.permutation(group)[: len(group) // 2] for group in groups])
        _, distance = _distances(*_moments(units[rows], unit_labels[rows]), counts // 2)
        found.append(_participation(distance, counts // 2))
    variances, distance = _distances(*_moments(units, unit_labels), counts)
    most = len(variances)
    if np.isfinite(found).mean() < 0.5:
        return Interval(float("nan"), 1.0, float(most))
    numbers = np.unique([*(2 ** np.arange(int(np.log2(most)) + 1)), most])
    simulated = _simulated(variances, distance, counts, numbers, rng)
    return _inverted(float(np.nanmedian(found)), numbers, simulated, (1 - level) / 2)


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
    """Write ``dimension.parquet``: pooling (`name`), estimate, low, high, by (`WAY`); NaN for too small a class."""
    try:
        found = discriminative_dimension(features, table["label"].to_numpy(), table["subject_id"].to_numpy())
    except InputError:
        found = Interval(float("nan"), float("nan"), float("nan"))
    pd.DataFrame([{"pooling": name, **vars(found), "by": WAY}]).to_parquet(folder / "dimension.parquet", index=False)


def standardised(features: Array) -> Array:
    """Features (n, D), each centred and of unit variance; constant ones are 0."""
    x = np.asarray(features, float)
    deviation = x.std(0)
    return (x - x.mean(0)) / np.where(deviation > 1e-12 * max(float(deviation.max()), 1e-300), deviation, np.inf)


def _moments(features: Array, labels: Array) -> tuple[Array, Array]:
    """Covariance within classes (D, D) and difference of the class means (D,); labels are 0 and 1."""
    means = np.stack([features[labels == k].mean(0) for k in (0, 1)])
    within = features - means[labels]
    return within.T @ within / (len(labels) - 2), means[1] - means[0]


def _distances(covariance: Array, difference: Array, counts: Array) -> tuple[Array, Array]:
    """Variances of the principal directions looked at, ascending, and the distance along each in SDs."""
    values, axes = np.linalg.eigh(covariance)
    count = min(DIRECTIONS, int((values > values.max() * 1e-9).sum()), int(counts.sum()) // 3)
    return values[-count:], difference @ axes[:, -count:] / np.sqrt(values[-count:])


def _sampling_variance(distance: Array, counts: Array) -> float:
    """Of a distance along one direction, from `counts` subjects a class."""
    v, n = float((1 / counts).sum()), int(counts.sum())
    # directions are estimated from the same subjects: each takes a share 1/n of the whole distance besides
    return v + max(float((distance**2 - v).sum()) / (1 + len(distance) / n), 0.0) / n


def _participation(distance: Array, counts: Array) -> float:
    """Participation ratio of the distances (K,) along directions; NaN where they are not told from 0."""
    v = _sampling_variance(distance, counts)
    first = float((distance**2 - v).sum())
    second = float((distance**4 - 6 * v * distance**2 + 3 * v**2).sum())
    told = first > 2 * v * np.sqrt(2 * len(distance)) and second > 0
    return float(np.clip(first**2 / second, 1, len(distance))) if told else float("nan")


def _simulated(variances: Array, distance: Array, counts: Array, numbers: Array, rng: np.random.Generator) -> Array:
    """Participation ratios (SIMULATIONS, len(numbers)) in Gaussian halves whose distance `numbers` directions share.

    Args:
        variances, distance: As `_distances` gives of the whole sample.
        counts: Subjects of the two classes in the whole sample.
        numbers: How many neighbouring directions share the distance equally.
    """
    parts = distance**2 - _sampling_variance(distance, counts)
    total, most, half = max(float(parts.sum()), 0.0), len(parts), counts // 2
    shares = np.cumsum(parts.clip(0))
    place = int(np.searchsorted(shares, shares[-1] / 2))  # the weighted median
    planted = np.zeros((len(numbers), most))
    for row, number in zip(planted, numbers, strict=True):
        start = int(np.clip(place - number // 2, 0, most - number))
        row[start : start + number] = np.sqrt(total / number)
    deviations, freedom = np.sqrt(variances), int(half.sum()) - 2
    found = np.empty((SIMULATIONS, len(numbers)))
    for row in found:  # a sample's two moments are drawn, not its subjects: a Wishart matrix (Bartlett) and a mean
        factor = np.tril(rng.standard_normal((most, most)), -1)
        factor[np.diag_indices(most)] = np.sqrt(rng.chisquare(freedom - np.arange(most)))
        factor *= deviations[:, None]
        noise = rng.standard_normal(most) * np.sqrt((1 / half).sum())
        along = _distances(factor @ factor.T / freedom, (planted + noise) * deviations, half)[1]
        row[:] = [_participation(one, half) for one in along]
    return found


def _inverted(measured: float, numbers: Array, simulated: Array, tail: float) -> Interval:
    """The number that gives `measured` in the median, and those in whose central 1 - 2 `tail` it lies.

    Args:
        numbers: (K,) ascending.
        simulated: (R, K) what each gives; NaN may be anything from the first to the last of `numbers`.
    """
    told = np.isfinite(simulated)
    low = np.quantile(np.where(told, simulated, numbers[0]), tail, axis=0)
    high = np.quantile(np.where(told, simulated, numbers[-1]), 1 - tail, axis=0)
    either = np.where(told.any(0), simulated, np.sqrt(numbers[0] * numbers[-1]))
    middle = np.nanmedian(either, axis=0)

    def crossing(curve: Array, side: Literal["left", "right"]) -> float:
        at = int(np.searchsorted(curve, measured, side))
        if at in (0, len(curve)):
            return float(numbers[min(at, len(curve) - 1)])
        part = (measured - curve[at - 1]) / (curve[at] - curve[at - 1])
        return float(numbers[at - 1] * (numbers[at] / numbers[at - 1]) ** part)

    def first(curve: Array) -> float:
        return crossing(np.maximum.accumulate(curve), "left")

    def last(curve: Array) -> float:
        return crossing(np.minimum.accumulate(curve[::-1])[::-1], "right")

    least, most = first(high), last(low)
    if least == most:  # none gives it: the distance is not shared as assumed
        return Interval(measured, min(least, measured), max(most, measured))
    return Interval(float(np.sqrt(first(middle) * last(middle))), least, most)
