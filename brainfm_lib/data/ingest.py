"""From a file to a clean cube: checked, upright, isotropic, centred on the head and scaled to [0, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from brainfm_lib.data.brain import PROGRAMS, brain_mask
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.quality import check_voxels, open_scan, read_voxels
from brainfm_lib.data.settings import IngestSettings
from brainfm_lib.data.storage import FLOOR
from brainfm_lib.errors import RefusedScan

COARSE = 3.0  # mm, about the spacing at which the head is looked for


def prepare_volume(path: str | Path, geometry: Geometry, settings: IngestSettings) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one scan and bring it onto the grid.

    Axes are brought to the closest canonical (RAS+) order and resampled along themselves: an oblique scan keeps its
    tilt. Resampling is linear with a triangle kernel as wide as the larger of the two spacings, which is the
    anti-alias filter when voxels become larger. The cube is centred on the bounding box of the foreground, for whole
    heads the box of its upper part; what is not brain is taken away first where the settings say so.

    Args:
        path: NIfTI or FreeSurfer file (.nii, .nii.gz, .mgz).
        geometry: Target grid.
        settings: Limits and percentiles.

    Returns:
        volume: (D, H, W) float32, background exactly 0, foreground in [0.001, 1].
        info: shape, spacing (mm) and affine of the file, `grid_affine` (voxel of the volume to scanner mm),
            `foreground`, its share of the grid, how the `brain` was extracted, mean and std of the intensities.
            Nothing else of the header leaves this function: its free text may name people.

    Raises:
        RefusedScan: The file cannot be used: which, why, and the cure.
    """
    import nibabel

    image = open_scan(path, settings)
    data = read_voxels(image, path)
    measured = check_voxels(path, data, settings)
    if settings.brain in PROGRAMS:
        data = np.where(brain_mask(path, data, image.affine, settings.brain), data, data.min())

    orientation = nibabel.orientations.io_orientation(image.affine)
    upright = nibabel.orientations.apply_orientation(data, orientation)
    affine = image.affine @ nibabel.orientations.inv_ornt_aff(orientation, data.shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)

    threshold = foreground_threshold(upright)
    if settings.brain == "already" and threshold[0] != "differs":
        raise RefusedScan(
            "brain",
            f"{path}: no single value surrounds the brain, so it is not skull-stripped as 'brain: already' says: "
            "leave it out, or set 'brain: none' under 'ingest' in the manifest.",
        )
    centre = _head_centre(path, upright, threshold, spacing, settings.head_height)
    steps = geometry.spacing / spacing
    start = centre - (np.array(geometry.grid) - 1) / 2 * steps
    volume = resample(upright, start, steps, geometry.grid)
    occupancy = resample(upright, start, steps, geometry.grid, threshold=threshold)
    mask = _largest(occupancy >= 0.5)
    if mask.mean() < settings.min_foreground:
        sentence = f"only {mask.mean():.1%} of the cube is foreground: look at the scan or leave it out."
        raise RefusedScan("foreground", f"{path}: {sentence}")
    low, high = np.percentile(volume[mask], [settings.low, settings.high])
    if not high > low:
        sentence = "the foreground has one single intensity: look at the scan or leave it out."
        raise RefusedScan("constant", f"{path}: {sentence}")
    scaled = np.clip((volume - low) / (high - low), FLOOR, 1.0)
    to_scan = np.diag([*steps, 1.0])
    to_scan[:3, 3] = start
    info = {
        "shape": [int(n) for n in image.shape[:3]],
        "spacing": [float(edge) for edge in nibabel.affines.voxel_sizes(image.affine)],
        "affine": [float(value) for value in np.asarray(image.affine).ravel()],
        "grid_affine": [float(value) for value in (affine @ to_scan).ravel()],
        "foreground": float(mask.mean()),
        "brain": settings.brain,
        **measured,
    }
    return np.where(mask, scaled, 0).astype(np.float32), info


def foreground_threshold(data: np.ndarray) -> tuple[str, float]:
    """Tell what separates the head from what surrounds it.

    Skull-stripped and otherwise masked scans have one exact value around the brain and few dim voxels besides: there
    everything that differs from that value is foreground. Elsewhere the air is noise: the foreground lies above the
    mean of Otsu's darker class plus a quarter of the way to the mean of his brighter one.

    Args:
        data: (X, Y, Z), any scale.

    Returns:
        ``("differs", value)`` or ``("above", value)``.
    """
    sample = data[tuple(slice(None, None, max(1, n // 64)) for n in data.shape)].ravel()
    values, counts = np.unique(sample, return_counts=True)
    common = values[counts.argmax()]
    rest = sample[sample != common]
    if counts.max() > 0.2 * sample.size and rest.size:
        top = np.percentile(rest, 98)
        dim = (np.abs(rest - common) < 0.1 * abs(top - common)).mean()
        if dim < 0.25:
            return "differs", float(common)
    low, high = np.percentile(sample, [0, 99.5])
    counts, edges = np.histogram(sample, bins=256, range=(low, high if high > low else low + 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        dark, bright = sums / below, (sums[-1] - sums) / above
        between = np.nan_to_num(below * above * (bright - dark) ** 2)
    best = int(between.argmax())
    if not between[best] > 0:
        return "above", float(low)
    return "above", float(dark[best] + 0.25 * (bright[best] - dark[best]))


def resample(
    data: np.ndarray,
    start: np.ndarray,
    steps: np.ndarray,
    grid: tuple[int, int, int],
    *,
    threshold: tuple[str, float] | None = None,
) -> np.ndarray:
    """Resample along one axis after the other; outside the data everything is 0.

    Args:
        data: (X, Y, Z).
        start: (3,) place of the first output voxel, in voxels of the data.
        steps: (3,) distance of output voxels, in voxels of the data.
        grid: Output shape (D, H, W).
        threshold: Resample the foreground's indicator instead of the data.

    Returns:
        (D, H, W) float32.
    """
    weights = [_weights(n, s, step, out) for n, s, step, out in zip(data.shape, start, steps, grid)]
    spans = [np.flatnonzero(w.any(axis=0)) for w in weights]
    if not all(len(span) for span in spans):
        return np.zeros(grid, np.float32)
    slices = tuple(slice(span[0], span[-1] + 1) for span in spans)
    part = data[slices]
    if threshold is not None:
        part = _foreground(part, threshold)
    # In the order in which the axes lie in memory, slowest first, no step needs a copy; the kernels are a few voxels
    # wide, so that along the first two axes a sum of few scaled slices beats a matrix product.
    order = np.argsort([-abs(stride) for stride in data.strides], kind="stable")
    part = part.transpose(order)
    kernels = [weights[axis][:, slices[axis]] for axis in order]
    part = _weighted_sums(part, kernels[0])
    part = _weighted_sums(part.swapaxes(0, 1), kernels[1]).swapaxes(0, 1)
    part = np.ascontiguousarray(part) @ kernels[2].T
    return np.ascontiguousarray(part.transpose(np.argsort(order)))


def _weighted_sums(slices: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Sums (out, ...) float32 over the first axis of slices (n, ...) with weights (out, n), most of which are 0."""
    sums = np.zeros((len(kernel), *slices.shape[1:]), np.float32)
    scaled = np.empty(slices.shape[1:], np.float32)
    for total, row in zip(sums, kernel):
        for place in np.flatnonzero(row):
            np.multiply(slices[place], row[place], out=scaled, dtype=np.float32, casting="same_kind")
            total += scaled
    return sums


def _weights(n: int, start: float, step: float, out: int) -> np.ndarray:
    """(out, n) triangle-kernel weights; rows that lie more outside than inside the data are 0, the others sum to 1."""
    width = max(1.0, step)
    places = start + step * np.arange(out)
    weights = np.clip(1 - np.abs(np.arange(n)[None] - places[:, None]) / width, 0, None)
    around = np.floor(places)[:, None] + np.arange(-np.ceil(width), np.ceil(width) + 2)[None]
    whole = np.clip(1 - np.abs(around - places[:, None]) / width, 0, None).sum(axis=1)
    inside = weights.sum(axis=1)
    kept = inside >= 0.5 * whole
    return np.where(kept[:, None], weights / np.where(kept, inside, 1)[:, None], 0).astype(np.float32)


def _head_centre(
    path: str | Path, data: np.ndarray, threshold: tuple[str, float], spacing: np.ndarray, height: float
) -> np.ndarray:
    """(3,) centre of the foreground's bounding box, in voxels of the upright data (X, Y, Z)."""
    strides = np.maximum(1, np.round(COARSE / spacing)).astype(int)
    mask = _largest(_foreground(data[tuple(slice(None, None, s) for s in strides)], threshold))
    if not mask.any():
        sentence = "nothing stands out from the background: look at the scan or leave it out."
        raise RefusedScan("foreground", f"{path}: {sentence}")
    levels = np.flatnonzero(mask.any(axis=(0, 1)))
    mask[:, :, : max(0, levels[-1] - round(height / (strides[2] * spacing[2])))] = False
    spans = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return np.array([(span[0] + span[-1]) / 2 * stride for span, stride in zip(spans, strides)])


def _foreground(data: np.ndarray, threshold: tuple[str, float]) -> np.ndarray:
    rule, value = threshold
    return data != np.float32(value) if rule == "differs" else data > value


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask, its holes filled."""
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    outside, count = ndimage.label(pieces != sizes.argmax())
    faces = [outside.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
    open_air = np.zeros(count + 1, bool)
    open_air[np.unique(np.concatenate(faces))] = True
    open_air[0] = False
    return ~open_air[outside]
