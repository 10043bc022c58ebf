"""In which spatial frequencies the label of a task can be read.

`cutoff_curves` sums it up as the high-frequency reliance: the share of what can be read at all that lies above a
cut-off, averaged over cut-offs. With I = d'², Σ I(high-pass) / Σ (I(high-pass) + I(low-pass)); information confined to
one frequency f gives f / Nyquist.
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

from brainfm_lib.analysis.components import standardised, write_dimension
from brainfm_lib.analysis.reading import centred, coordinates_of, dual_weights, read_linearly
from brainfm_lib.device import best_device
from brainfm_lib.features import VolumeReader, batches, extract
from brainfm_lib.models import VisionTransformer3d
from brainfm_lib.probes.results import resampled_auroc
from brainfm_lib.stats import Interval

Array = NDArray[Any]
BANDS = 12  # of equal width, from 0 to Nyquist; the corners beyond belong to the last
LEADING = 400  # principal components of images among which those within classes are sought
MODES_AT_ONCE = 400_000_000  # numbers of all volumes' spectra that are held at a time: 1.6 GB


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


def information(auroc: Array | float) -> Any:
    """d'² of an AUROC, d' = √2 Φ⁻¹(AUROC); 0 below one half, where nothing is read."""
    return 2 * ndtri(np.clip(auroc, 0.5, 1 - 1e-4)) ** 2


def cutoff_curves(
    low: Callable[[int], Mapping[str, Array]],
    high: Callable[[int], Mapping[str, Array]],
    table: pd.DataFrame,
    cutoffs: Sequence[float],
    *,
    grams: bool = False,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, Interval]:
    """AUROC of a linear reading of what lies below and of what lies above each cut-off, and the reliance.

    Args:
        low, high: Number of a cut-off -> what there is of the inputs below and above it, by name; see `read_linearly`.
        table: As in `probes.linear_probe`.
        cutoffs: In falling or rising order, evenly spaced; any unit.
        grams: Whether those are Gram matrices.
        draws, seed: Of the bootstrap over held-out subjects.

    Returns:
        band ("low", "high"), cutoff, estimate, low, high (95 % intervals); and the high-frequency reliance with its
        interval, NaN where nothing is read at any cut-off. Subjects are the same in every resample of all curves.
    """
    rows, sums, point = [], {"low": 0.0, "high": 0.0}, {"low": 0.0, "high": 0.0}
    for number, cutoff in enumerate(cutoffs):
        for band, inputs in (("low", low(number)), ("high", high(number))):
            estimate, values = resampled_auroc(read_linearly(inputs, table, grams=grams).predictions, draws, seed)
            rows.append({"band": band, "cutoff": cutoff, **vars(estimate)})
            point[band] += float(information(estimate.estimate))
            sums[band] = sums[band] + information(values)
    total = point["low"] + point["high"]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.asarray(sums["high"]) / (np.asarray(sums["low"]) + np.asarray(sums["high"]))
    ends = np.nanquantile(shares, [0.025, 0.975]) if np.isfinite(shares).any() else [np.nan, np.nan]
    reliance = Interval(point["high"] / total if total else float("nan"), float(ends[0]), float(ends[1]))
    return pd.DataFrame(rows), reliance


def direction_spectrum(grams: Array, table: pd.DataFrame, penalty: float) -> pd.DataFrame:
    """Where in frequency a linear reading of whole images looks, and where what it finds lies.

    Args:
        grams: (BANDS, n, n) from `band_grams`.
        table: As in `probes.linear_probe`; training and validation rows are used.
        penalty: Of the ridge, as `read_linearly` chose it.

    Returns:
        low, high (edges of a band, cycles per voxel), weights (share of the power of the weights) and pattern (share of
        the power of the covariance of images and score, Haufe et al. 2014: what the score stands for).
    """
    whole = grams.sum(0)
    labels = table["label"].to_numpy()
    train = (table["split"] != "test").to_numpy() if "split" in table else np.ones(len(table), bool)
    index = np.flatnonzero(train)
    gram = centred(whole, train)[np.ix_(index, index)]
    target = (labels[index] == labels.max()) - (labels[index] == labels.max()).mean()
    dual = dual_weights(gram, target, penalty)
    score = gram @ dual
    rows = []
    edges = band_edges()
    for band, part in enumerate(grams):
        inside = centred(part, train)[np.ix_(index, index)]
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

            reading = read_linearly(below(BANDS), table, grams=True)
            whole, _ = resampled_auroc(reading.predictions, settings["draws"], settings["seed"])
            pd.DataFrame([vars(whole)]).to_parquet(folder / "whole.parquet", index=False)
            direction = direction_spectrum(grams, table, float(reading.chosen["penalty"].iloc[0]))
            direction = direction.assign(low=direction["low"] / spacing, high=direction["high"] / spacing)
            direction.to_parquet(folder / "direction.parquet", index=False)
            write_dimension(folder, "voxels", coordinates_of(grams.sum(0), LEADING), table)
        else:
            encoder = VisionTransformer3d.from_pretrained(encoder_folder)

            def inside(low: float, high: float) -> Mapping[str, Array]:
                part = _BandLimited(reader, low, high)
                found = extract(encoder, part, batch_size=batch_size, device=device)
                return {name: standardised(array) for name, array in found.items()}

            def below(k: int) -> Mapping[str, Array]:
                return inside(-1.0, edges[k + 1])

            def above(k: int) -> Mapping[str, Array]:
                return inside(edges[k + 1], np.inf)

        curves, reliance = cutoff_curves(
            below,
            above,
            table,
            (edges[1:-1] / spacing).tolist(),
            grams=encoder_folder is None,
            draws=min(settings["draws"], 1000),
            seed=settings["seed"],
        )
        curves.to_parquet(folder / "cutoffs.parquet", index=False)
        pd.DataFrame([vars(reliance)]).to_parquet(folder / "reliance.parquet", index=False)
        return {"device": device.type}

    return make


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
