"""From a NIfTI file to a clean cube: checked, upright, isotropic, centred on the head and scaled to [0, 1]."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from brainfm_lib.data.geometry import Geometry
from brainfm_lib.errors import InputError, UnreadableError

FLOOR = 1e-3  # smallest stored value of a foreground voxel: background is exactly 0, so foreground is `volume > 0`
COARSE = 3.0  # mm, about the spacing at which the head is looked for
MOST_VOXELS = 2**30


@dataclass(frozen=True)
class IngestSettings:
    """What ingest accepts and how it scales.

    Args:
        low: Percentile over the foreground that becomes 0.
        high: Percentile over the foreground that becomes 1.
        min_extent: Field of view that every axis must exceed, mm.
        max_spacing: Largest accepted voxel edge, mm.
        head_height: Only this much below the vertex is centred on, mm, so that necks do not count.
        max_mean: Refuse volumes whose mean intensity is above this.
        min_std: Refuse volumes whose intensities have a standard deviation below this.
    """

    low: float = 1.0
    high: float = 99.0
    min_extent: float = 50.0
    max_spacing: float = 6.5
    head_height: float = 170.0
    max_mean: float | None = None
    min_std: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100:
            raise InputError(f"the percentiles {self.low} and {self.high} must rise and lie within 0 and 100.")


def prepare_volume(path: str | Path, geometry: Geometry, settings: IngestSettings) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one scan and bring it onto the grid.

    Axes are brought to the closest canonical (RAS+) order and resampled along themselves: an oblique scan keeps its
    tilt. Resampling is linear with a triangle kernel as wide as the larger of the two spacings, which is the
    anti-alias filter when voxels become larger. The cube is centred on the bounding box of the foreground, for whole
    heads the box of its upper part; brains are not extracted.

    Args:
        path: NIfTI file (.nii, .nii.gz).
        geometry: Target grid.
        settings: Limits and percentiles.

    Returns:
        volume: (D, H, W) float32, background exactly 0, foreground in [0.001, 1].
        info: shape, spacing (mm) and affine of the file, `grid_affine` (voxel of the volume to scanner mm), and
            `foreground`, its share of the grid.

    Raises:
        InputError: The file cannot be read or used: which, why, and the cure.
    """
    import nibabel

    image = open_scan(path, settings)
    try:
        data = _voxels(image, str(path))
    except (OSError, EOFError, ValueError, zlib.error, MemoryError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise UnreadableError(
                f"{path}: the voxels could not be read ({_words(error)}): mend disk, network or memory, and try again."
            ) from error
        raise InputError(
            f"{path}: the voxels cannot be read ({_words(error)}): copy or convert the file anew."
        ) from error
    data = data.reshape(data.shape[:3])
    _check_voxels(path, data, settings)

    orientation = nibabel.orientations.io_orientation(image.affine)
    upright = nibabel.orientations.apply_orientation(data, orientation)
    affine = image.affine @ nibabel.orientations.inv_ornt_aff(orientation, data.shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)

    threshold = foreground_threshold(upright)
    centre = _head_centre(path, upright, threshold, spacing, settings.head_height)
    steps = geometry.spacing / spacing
    start = centre - (np.array(geometry.grid) - 1) / 2 * steps
    volume = resample(upright, start, steps, geometry.grid)
    occupancy = resample(upright, start, steps, geometry.grid, threshold=threshold)
    mask = _largest(occupancy >= 0.5)
    if mask.sum() < 0.005 * mask.size:
        raise InputError(f"{path}: only {mask.mean():.1%} of the cube is foreground: look at the scan or leave it out.")
    low, high = np.percentile(volume[mask], [settings.low, settings.high])
    if not high > low:
        raise InputError(f"{path}: the foreground has one single intensity: look at the scan or leave it out.")
    scaled = np.clip((volume - low) / (high - low), FLOOR, 1.0)
    to_scan = np.diag([*steps, 1.0])
    to_scan[:3, 3] = start
    info = {
        "shape": [int(n) for n in image.shape[:3]],
        "spacing": [float(edge) for edge in nibabel.affines.voxel_sizes(image.affine)],
        "affine": [float(value) for value in np.asarray(image.affine).ravel()],
        "grid_affine": [float(value) for value in (affine @ to_scan).ravel()],
        "foreground": float(mask.mean()),
    }
    return np.where(mask, scaled, 0).astype(np.float32), info


def open_scan(path: str | Path, settings: IngestSettings) -> Any:
    """Open a scan and check its header: format, three axes, voxel type, affine, field of view, spacing.

    Returns:
        The nibabel image; its voxels are not read yet.

    Raises:
        InputError: One sentence: file, what is wrong, the cure.
    """
    import nibabel

    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: only NIfTI is read (.nii, .nii.gz): convert it, DICOM with dcm2niix -z y.")
    try:
        image: Any = nibabel.load(path)
        kind = image.get_data_dtype()
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(
            f"{path}: this is no readable NIfTI file ({_words(error)}): copy or convert it anew."
        ) from error
    except nibabel.spatialimages.HeaderDataError as error:
        raise InputError(f"{path}: the header is damaged ({_words(error)}): convert the file anew.") from error
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        cure = "save one volume of it" if len(shape) > 3 else "only volumes can be used"
        raise InputError(f"{path}: the shape is {shape}, {len(shape)}D instead of 3D: {cure} or leave it out.")
    if kind.kind not in "fiub":
        named = "RGB colours" if kind.fields else f"{kind} voxels"
        raise InputError(f"{path}: {named} are no intensities: save the magnitude as real numbers.")
    if min(shape) < 1 or np.prod(shape, dtype=float) > MOST_VOXELS:
        raise InputError(f"{path}: the header claims {shape} voxels, which is no brain scan: convert the file anew.")
    affine = np.asarray(image.affine, dtype=float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    sound = np.isfinite(affine).all() and (spacing > 0).all()
    if not sound or abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        raise InputError(f"{path}: the affine is singular or not finite: mend sform and qform, or convert it anew.")
    extent = spacing * shape[:3]
    if extent.min() <= settings.min_extent:
        raise InputError(
            f"{path}: the field of view is {_mm(extent)}, at most {settings.min_extent:g} mm on an axis: leave it out."
        )
    if spacing.max() > settings.max_spacing:
        raise InputError(
            f"{path}: the spacing is {_mm(spacing)}, above {settings.max_spacing:g} mm: leave it out, or raise "
            "max_spacing under 'ingest' in the manifest."
        )
    return image


def _voxels(image: Any, path: str) -> np.ndarray:
    """Scaled voxels, float32. A packed file is read to its end, where its checksum stands: nibabel stops before it."""
    proxy = image.dataobj
    if not path.endswith(".gz"):
        return np.asarray(proxy, dtype=np.float32)
    with gzip.open(path) as stream:
        layout = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
        data = np.asarray(type(proxy)(stream, layout, mmap=False), dtype=np.float32)
        while stream.read(2**20):
            pass
    return data


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
    """Resample along the axes, one matrix product each; outside the data everything is 0.

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
        part = _foreground(part, threshold).astype(np.float32)
    # The axis that lies closest in memory first: its product needs no copy and makes the rest small.
    for axis in np.argsort(np.abs(data.strides)):
        kernel = weights[axis][:, slices[axis]]
        part = np.moveaxis(np.tensordot(part, kernel, axes=(int(axis), 1)), -1, int(axis))
    return np.ascontiguousarray(part)


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
        raise InputError(f"{path}: nothing stands out from the background: look at the scan or leave it out.")
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
    return ndimage.binary_fill_holes(pieces == sizes.argmax())


def _check_voxels(path: str | Path, data: np.ndarray, settings: IngestSettings) -> None:
    low, high = float(data.min()), float(data.max())
    if not np.isfinite([low, high]).all():
        bad = int((~np.isfinite(data)).sum())
        raise InputError(f"{path}: {bad} of {data.size} voxels are NaN or infinite: mend or leave out the scan.")
    if low == high:
        raise InputError(f"{path}: every voxel is {low:g}: the scan is empty, leave it out or convert it anew.")
    if settings.max_mean is not None and data.mean() > settings.max_mean:
        raise InputError(f"{path}: the mean intensity {data.mean():.4g} is above {settings.max_mean:g}: leave it out.")
    if settings.min_std is not None and data.std() < settings.min_std:
        raise InputError(
            f"{path}: the intensities' deviation {data.std():.4g} is below {settings.min_std:g}: leave it out."
        )


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in values) + " mm"


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
