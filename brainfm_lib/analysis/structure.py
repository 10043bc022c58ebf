"""Task structure: in which frequencies, and over how many directions, a labelled set of scans differs.

All readings are linear: ridge regression of the classes, its penalty chosen on validation subjects like everything
else. They work on Gram matrices (n, n), in which a radial band of frequencies is a summand, so that one pass over the
volumes serves every cut-off.

Two numbers sum a task up. `high_frequency_reliance` is the share of what can be read at all that lies above a cut-off,
averaged over cut-offs: with I = d'², Σ I(high-pass) / Σ (I(high-pass) + I(low-pass)). Information confined to one
frequency f gives f / Nyquist. `discriminative_dimension` is the participation ratio of the squared distances between
two classes along the principal directions within classes: 1 if one direction holds all, K if K share it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from brainfm_lib.device import best_device
from brainfm_lib.errors import InputError
from brainfm_lib.features import VolumeReader, batches, extract
from brainfm_lib.models import VisionTransformer3d
from brainfm_lib.probes.results import ProbeResult, read_features, score_columns
from brainfm_lib.probes.selection import select_and_score
from brainfm_lib.stats import Interval, aggregate_by_subject
from brainfm_lib.stats.units import bootstrap_interval, fold_mean_auroc, make_units, unit_weights

Array = NDArray[Any]

BANDS = 12  # of equal width, from 0 to Nyquist; the corners beyond belong to the last
PENALTIES = tuple(float(x) for x in np.logspace(3, -3, 7))  # of the ridge, in mean eigenvalues; strongest first
UNCHOSEN = 1.0  # where two folds leave nothing to choose on
MODES_AT_ONCE = 400_000_000  # numbers of all volumes' spectra that are held at a time: 1.6 GB
DIRECTIONS = 128  # principal directions looked at for the dimension, at most
HALVES = 60  # random halves of the subjects


def band_edges() -> Array:
    """Edges of the bands (BANDS + 1,), cycles per voxel."""
    return np.linspace(0, 0.5, BANDS + 1)


def band_grams(volumes: VolumeReader, *, batch_size: int = 64, device: torch.device | str = "cpu") -> Array:
    """Inner products of z-scored volumes within each radial band of frequency; their sum is that of the volumes.

    Args:
        volumes: n prepared volumes.
        batch_size: Volumes a pass.
        device: Where to compute.

    Returns:
        (BANDS, n, n) float64, divided by the number of voxels.
    """
    device = torch.device(device)
    grid = tuple(volumes.read([0]).shape[1:])
    radius = _radius(grid)
    band = np.minimum(np.digitize(radius, band_edges()) - 1, BANDS - 1)
    half = np.arange(grid[2] // 2 + 1)
    once = (half == 0) | (2 * half == grid[2])  # self-conjugate planes of the half spectrum stand once
    scale = np.broadcast_to(np.sqrt(np.where(once, 1.0, 2.0)) / np.prod(grid), radius.shape)
    order = [np.flatnonzero(band.ravel() == b) for b in range(BANDS)]
    weight = [torch.from_numpy(scale.ravel()[index]).float().to(device) for index in order]
    place = [torch.from_numpy(index).to(device) for index in order]
    grams = np.zeros((BANDS, len(volumes), len(volumes)))
    todo = list(range(BANDS))
    while todo:
        group = [todo.pop(0)]  # as many bands as fit; the volumes are transformed once for each group
        while todo and 2 * len(volumes) * sum(len(order[b]) for b in [*group, todo[0]]) <= MODES_AT_ONCE:
            group.append(todo.pop(0))
        parts: dict[int, list[torch.Tensor]] = {b: [] for b in group}
        for batch in batches(volumes, batch_size, device):
            spectrum = torch.fft.rfftn(batch[:, 0], dim=(1, 2, 3)).flatten(1)
            for b in group:
                modes = spectrum[:, place[b]] * weight[b]
                parts[b].append(torch.view_as_real(modes).flatten(1))
        for b in group:
            rows = torch.cat(parts.pop(b))
            grams[b] = (rows @ rows.T).double().cpu().numpy()
    return grams


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
            coordinates, values = _coordinates(np.asarray(gram, float), train)
            if components is not None:
                coordinates, values = coordinates[:, :components], values[:components]
            moment = coordinates[train].T @ (classes - classes.mean(0))
            for penalty in penalties:
                weights = moment / (values + penalty * values.mean())[:, None]
                scores = np.full((len(labels), classes.shape[1]), np.nan)
                scores[~train] = classes.mean(0) + coordinates[~train] @ weights
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


def information(auroc: Array | float) -> Any:
    """d'² of an AUROC, d' = √2 Φ⁻¹(AUROC); 0 below one half, where nothing is read."""
    return 2 * ndtri(np.clip(auroc, 0.5, 1 - 1e-4)) ** 2


def cutoff_curves(
    low: Callable[[int], Mapping[str, Array]],
    high: Callable[[int], Mapping[str, Array]],
    table: pd.DataFrame,
    cutoffs: Sequence[float],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, Interval]:
    """AUROC of a linear reading of what lies below and of what lies above each cut-off, and the reliance.

    Args:
        low, high: Number of a cut-off -> Gram matrices of the inputs below and above it, by name.
        table: As in `probes.linear_probe`.
        cutoffs: In falling or rising order, evenly spaced; any unit.
        draws, seed: Of the bootstrap over held-out subjects.

    Returns:
        band ("low", "high"), cutoff, estimate, low, high (95 % intervals); and the high-frequency reliance with its
        interval, NaN where nothing is read at any cut-off. Subjects are the same in every resample of all curves.
    """
    rows, sums, point = [], {"low": 0.0, "high": 0.0}, {"low": 0.0, "high": 0.0}
    for number, cutoff in enumerate(cutoffs):
        for band, grams in (("low", low(number)), ("high", high(number))):
            estimate, values = _resampled(read_linearly(grams, table), draws, seed)
            rows.append({"band": band, "cutoff": cutoff, **vars(estimate)})
            point[band] += float(information(estimate.estimate))
            sums[band] = sums[band] + information(values)
    total = point["low"] + point["high"]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.asarray(sums["high"]) / (np.asarray(sums["low"]) + np.asarray(sums["high"]))
    ends = np.nanquantile(shares, [0.025, 0.975]) if np.isfinite(shares).any() else [np.nan, np.nan]
    reliance = Interval(point["high"] / total if total else float("nan"), float(ends[0]), float(ends[1]))
    return pd.DataFrame(rows), reliance


def component_curve(
    grams: Mapping[str, Array], table: pd.DataFrame, counts: Sequence[int], *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """AUROC of a linear reading of the first principal components: components, estimate, low, high."""
    rows = []
    for count in counts:
        found, _ = _resampled(read_linearly(grams, table, components=count), draws, seed)
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


def direction_spectrum(grams: Array, table: pd.DataFrame) -> pd.DataFrame:
    """Where in frequency a linear reading of whole images looks, and where what it finds lies.

    Args:
        grams: (BANDS, n, n) from `band_grams`.
        table: As in `probes.linear_probe`; training and validation rows are used, under the chosen penalty.

    Returns:
        low, high (edges of a band, cycles per voxel), weights (share of the power of the weights) and pattern (share of
        the power of the covariance of images and score, Haufe et al. 2014: what the score stands for).
    """
    whole = grams.sum(0)
    penalty = float(read_linearly({"all": whole}, table).chosen["penalty"].iloc[0])
    labels = table["label"].to_numpy()
    train = (table["split"] != "test").to_numpy() if "split" in table else np.ones(len(table), bool)
    index = np.flatnonzero(train)
    gram = _centre(whole, train)[np.ix_(index, index)]
    values, vectors = np.linalg.eigh(gram)
    target = (labels[index] == labels.max()) - (labels[index] == labels.max()).mean()
    positive = values > values.max() * 1e-10
    dual = vectors @ ((vectors.T @ target) / (np.maximum(values, 0) + penalty * values[positive].mean()))
    score = gram @ dual
    rows = []
    edges = band_edges()
    for band, part in enumerate(grams):
        inside = _centre(part, train)[np.ix_(index, index)]
        power = {"weights": float(dual @ inside @ dual), "pattern": float(score @ inside @ score)}
        rows.append({"low": edges[band], "high": edges[band + 1], **power})
    found = pd.DataFrame(rows)
    return found.assign(**{name: found[name] / found[name].sum() for name in ("weights", "pattern")})


def make_bands(
    volumes: Callable[[], VolumeReader],
    table: pd.DataFrame,
    spacing: float,
    settings: Mapping[str, Any],
    *,
    encoder_folder: Path | None = None,
    batch_size: int = 64,
    cpu: bool = False,
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: ``cutoffs`` and ``reliance``; for images also ``whole``, ``direction``, ``dimension``.

    Args:
        volumes: The cohort's; the table's `row` is a scan's row in it.
        table: Scans of the task.
        spacing: Voxel size, mm.
        settings: draws and seed.
        encoder_folder: What an encoder says of band-limited inputs is read; None: the inputs themselves.
        batch_size, cpu: How the encoder is run.
    """

    def make(folder: Path) -> dict[str, Any]:
        device = best_device(cpu=cpu)
        reader, edges = _Rows(volumes(), table["row"].to_numpy()), band_edges()
        if encoder_folder is None:
            grams = band_grams(reader, device=device)

            def below(k: int) -> Mapping[str, Array]:
                return {"voxels": grams[: k + 1].sum(0)}

            def above(k: int) -> Mapping[str, Array]:
                return {"voxels": grams[k + 1 :].sum(0)}

            direction = direction_spectrum(grams, table)
            direction = direction.assign(low=direction["low"] / spacing, high=direction["high"] / spacing)
            direction.to_parquet(folder / "direction.parquet", index=False)
            _write_dimension(folder, "voxels", grams.sum(0), table)
            whole, _ = _resampled(read_linearly(below(BANDS), table), settings["draws"], settings["seed"])
            pd.DataFrame([vars(whole)]).to_parquet(folder / "whole.parquet", index=False)
        else:
            encoder = VisionTransformer3d.from_pretrained(encoder_folder)

            def inside(low: float, high: float) -> Mapping[str, Array]:
                part = _BandLimited(reader, low, high)
                found = extract(encoder, part, batch_size=batch_size, device=device)
                return {name: standardised_gram(array) for name, array in found.items()}

            def below(k: int) -> Mapping[str, Array]:
                return inside(-1.0, edges[k + 1])

            def above(k: int) -> Mapping[str, Array]:
                return inside(edges[k + 1], np.inf)

        curves, reliance = cutoff_curves(
            below,
            above,
            table,
            (edges[1:-1] / spacing).tolist(),
            draws=min(settings["draws"], 1000),
            seed=settings["seed"],
        )
        curves.to_parquet(folder / "cutoffs.parquet", index=False)
        pd.DataFrame([vars(reliance)]).to_parquet(folder / "reliance.parquet", index=False)
        return {"device": device.type}

    return make


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
        _write_dimension(folder, chosen, grams[chosen], table)
        return {}

    return make


def _write_dimension(folder: Path, name: str, gram: Array, table: pd.DataFrame) -> None:
    found = discriminative_dimension(gram, table["label"].to_numpy(), table["subject_id"].to_numpy())
    pd.DataFrame([{"pooling": name, **vars(found)}]).to_parquet(folder / "dimension.parquet", index=False)


def standardised_gram(features: Array) -> Array:
    """Inner products (n, n) of features (n, D), each centred and of unit variance, divided by D."""
    x = np.asarray(features, float)
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 1e-12 * max(float(deviation.max()), 1e-300), deviation, np.inf)
    return x @ x.T / x.shape[1]


class _Rows:
    """Some rows of a reader."""

    def __init__(self, volumes: VolumeReader, rows: Array) -> None:
        self.volumes, self.rows = volumes, rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        return self.volumes.read(self.rows[list(rows)].tolist())


class _BandLimited:
    """Volumes of which the frequencies from `low` up to, not including, `high` (cycles per voxel) are left."""

    def __init__(self, volumes: VolumeReader, low: float, high: float) -> None:
        self.volumes, self.low, self.high = volumes, low, high

    def __len__(self) -> int:
        return len(self.volumes)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        volumes = torch.from_numpy(np.ascontiguousarray(self.volumes.read(rows)))
        grid = tuple(volumes.shape[1:])
        spectrum, radius = torch.fft.rfftn(volumes, dim=(1, 2, 3)), _radius(grid)
        kept = torch.from_numpy((radius >= self.low) & (radius < self.high))
        return torch.fft.irfftn(spectrum * kept, s=grid, dim=(1, 2, 3)).numpy()


def _radius(grid: tuple[int, ...]) -> Array:
    """Frequency of each mode of rfftn, cycles per voxel."""
    axes = [np.fft.fftfreq(n) for n in grid[:2]] + [np.fft.rfftfreq(grid[2])]
    return np.asarray(np.sqrt(sum(f.reshape([-1 if k == i else 1 for k in range(3)]) ** 2 for i, f in enumerate(axes))))


def _centre(gram: Array, train: Array) -> Array:
    """Gram matrix (n, n) of rows from which the mean of the training rows is taken."""
    column = gram[:, train].mean(1)
    return gram - column[:, None] - column + gram[np.ix_(train, train)].mean()


def _coordinates(gram: Array, train: Array) -> tuple[Array, Array]:
    """Principal coordinates (n, K) of the training rows' axes, and their eigenvalues (K,), falling."""
    centred = _centre(gram, train)
    values, vectors = np.linalg.eigh(centred[np.ix_(train, train)])
    kept = values > values.max() * 1e-10
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    return centred[:, train] @ (vectors / np.sqrt(values)), values


def _resampled(result: ProbeResult, draws: int, seed: int) -> tuple[Interval, Array]:
    """AUROC over held-out subjects with its 95 % interval, and its values under `draws` resamples of them."""
    table = result.predictions
    folds = table["fold"].to_numpy() if "fold" in table else None
    units = make_units(table["label"], score_columns(table).to_numpy(), table["subject_id"], folds, minimum=2)
    values = np.concatenate([fold_mean_auroc(units, weights) for weights in unit_weights(units, draws, seed)])
    return bootstrap_interval(units, 0.95, draws, seed), values


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
