"""What a scan must be to be used: one rule after another, those of the header before any voxel is read."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip, isal_zlib

from brainfm_lib.data.settings import IngestSettings
from brainfm_lib.errors import RefusedScan, UnreadableError

RULES = {
    "identifier": "path, subject and contrast are given, and every scan stands once",
    "file": "a readable file of a known format, undamaged to its last byte",
    "dimensions": "one three-dimensional volume",
    "voxel type": "real numbers",
    "affine": "an affine that is neither singular nor sheared",
    "field of view": "large enough on every axis",
    "spacing": "voxels small enough on every axis",
    "finite": "no NaN and no infinity",
    "constant": "intensities that vary",
    "intensity": "the cohort's own limits of mean and deviation",
    "brain": "skull-stripped, where the manifest says so or a program does it",
    "foreground": "enough of the cube is foreground",
}
MOST_VOXELS = 2**27  # 512 voxels along each axis
DEFLATE = 1032  # bytes that one byte of a gzip file can hold, at most
SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
ITEM_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4}  # of the NIfTI codes of plain numbers
CHUNK = 4096
NIFTI_HEADER = np.dtype(
    {
        "names": ["size", "dim", "kind", "pixdim", "offset", "qform", "sform", "quatern", "srow", "magic"],
        "formats": ["<i4", "(8,)<i2", "<i2", "(8,)<f4", "<f4", "<i2", "<i2", "(3,)<f4", "(3,4)<f4", "S4"],
        "offsets": [0, 40, 70, 76, 108, 252, 254, 256, 280, 344],
        "itemsize": 348,
    }
)


def open_scan(path: str | Path, settings: IngestSettings) -> Any:
    """Open a scan and check its header: format, three axes, voxel type, affine, field of view, spacing.

    Args:
        path: NIfTI or FreeSurfer file (.nii, .nii.gz, .mgz, .mgh).
        settings: Limits.

    Returns:
        The nibabel image; its voxels are not read yet.

    Raises:
        RefusedScan: One sentence: file, what is wrong, the cure.
    """
    import nibabel

    if not str(path).endswith(SUFFIXES):
        cure = "convert it, DICOM with dcm2niix -z y"
        raise RefusedScan("file", f"{path}: only NIfTI (.nii, .nii.gz) and .mgz are read: {cure}.")
    try:
        image: Any = nibabel.load(path)
        kind = image.get_data_dtype()
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise RefusedScan(
            "file",
            f"{path}: this is no readable scan ({words(error)}): copy or convert it anew.",
            lasting=getattr(error, "errno", None) is None,
        ) from error
    except nibabel.spatialimages.HeaderDataError as error:
        raise RefusedScan("file", f"{path}: the header is damaged ({words(error)}): convert the file anew.") from error
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        cure = "save one volume of it" if len(shape) > 3 else "only volumes can be used"
        raise RefusedScan(
            "dimensions", f"{path}: the shape is {shape}, {len(shape)}D instead of 3D: {cure} or leave it out."
        )
    if kind.kind not in "fiub":
        named = "RGB colours" if kind.fields else f"{kind} voxels"
        raise RefusedScan("voxel type", f"{path}: {named} are no intensities: save the magnitude as real numbers.")
    if min(shape) < 1 or np.prod(shape, dtype=float) > MOST_VOXELS:
        raise RefusedScan(
            "dimensions", f"{path}: the header claims {shape} voxels, which is no brain scan: convert the file anew."
        )
    _check_size(path, np.prod(shape, dtype=float) * kind.itemsize)
    _check_affine(path, np.asarray(image.affine, dtype=float), np.array(shape[:3]), settings)
    return image


def _check_size(path: str | Path, needed: float) -> None:
    """Refuse a file that cannot hold the voxels its header claims, before memory is taken for them."""
    size = Path(path).stat().st_size
    holds = size * DEFLATE if str(path).endswith((".gz", ".mgz")) else size
    if holds < needed:
        raise RefusedScan(
            "file",
            f"{path}: the voxels cannot be read (the header claims {needed:,.0f} bytes, the file has {size:,}): copy "
            "or convert the file anew.",
        )


def _check_affine(path: str | Path, affine: np.ndarray, shape: np.ndarray, settings: IngestSettings) -> None:
    with np.errstate(all="ignore"):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        axes = affine[:3, :3] / spacing
    sound = np.isfinite(affine).all() and np.isfinite(axes).all() and (spacing > 0).all()
    if not sound or abs(np.linalg.det(axes)) < 0.1:
        raise RefusedScan(
            "affine", f"{path}: the affine is singular or not finite: mend sform and qform, or convert it anew."
        )
    shear = shear_degrees(axes)
    if shear > settings.max_shear:
        raise RefusedScan(
            "affine",
            f"{path}: two axes are {shear:.1f} degrees from a right angle, more than {settings.max_shear:g}: resample "
            "it onto a straight grid, or raise max_shear under 'ingest' in the manifest.",
        )
    extent = spacing * shape
    if extent.min() <= settings.min_extent:
        raise RefusedScan(
            "field of view",
            f"{path}: the field of view is {_mm(extent)}, at most {settings.min_extent:g} mm on an axis: leave it out.",
        )
    if spacing.max() > settings.max_spacing:
        raise RefusedScan(
            "spacing",
            f"{path}: the spacing is {_mm(spacing)}, above {settings.max_spacing:g} mm: leave it out, or raise "
            "max_spacing under 'ingest' in the manifest.",
        )


def shear_degrees(axes: np.ndarray) -> Any:
    """Largest departure from a right angle between two of the three unit columns of axes (..., 3, 3), degrees."""
    cosines = np.stack([(axes[..., i] * axes[..., j]).sum(axis=-1) for i, j in ((0, 1), (0, 2), (1, 2))], axis=-1)
    return np.degrees(np.arcsin(np.clip(np.abs(cosines).max(axis=-1), 0, 1)))


def read_voxels(image: Any, path: str | Path) -> np.ndarray:
    """Scaled voxels (X, Y, Z) float32 of an opened scan.

    Raises:
        RefusedScan: The file is damaged.
        UnreadableError: Disk, network or memory failed: that says nothing about the scan.
    """
    try:
        data = _unpacked(image, str(path))
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, isal_zlib.error, MemoryError) as error:  # type: ignore[misc]
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise UnreadableError(
                f"{path}: the voxels could not be read ({words(error)}): mend disk, network or memory, and try again."
            ) from error
        raise RefusedScan(
            "file", f"{path}: the voxels cannot be read ({words(error)}): copy or convert the file anew."
        ) from error
    return data.reshape(data.shape[:3])


def _unpacked(image: Any, path: str) -> np.ndarray:
    """A packed file is read to its end, where its checksum stands: nibabel stops before it."""
    proxy = image.dataobj
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite, and is refused as such
        if not path.endswith((".gz", ".mgz")):
            return np.asarray(proxy, dtype=np.float32)
        with igzip.open(path) as stream:
            layout = (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter)
            data = np.asarray(type(proxy)(stream, layout, mmap=False), dtype=np.float32)
            while stream.read(2**20):
                pass
    return data


def check_voxels(path: str | Path, data: np.ndarray, settings: IngestSettings) -> dict[str, float]:
    """Check intensities: finite, not constant, and the cohort's own limits.

    Returns:
        Their mean and standard deviation.

    Raises:
        RefusedScan: One sentence: file, what is wrong, the cure.
    """
    low, high = float(data.min()), float(data.max())
    if not np.isfinite([low, high]).all():
        bad = int((~np.isfinite(data)).sum())
        sentence = f"{bad} of {data.size} voxels are NaN or infinite: mend or leave out the scan."
        raise RefusedScan("finite", f"{path}: {sentence}")
    if low == high:
        sentence = f"every voxel is {low:g}: the scan is empty, leave it out or convert it anew."
        raise RefusedScan("constant", f"{path}: {sentence}")
    mean, std = _mean_and_std(data)
    if settings.max_mean is not None and mean > settings.max_mean:
        sentence = f"the mean intensity {mean:.4g} is above {settings.max_mean:g}: leave it out."
        raise RefusedScan("intensity", f"{path}: {sentence}")
    if settings.min_std is not None and std < settings.min_std:
        sentence = f"the intensities' deviation {std:.4g} is below {settings.min_std:g}: leave it out."
        raise RefusedScan("intensity", f"{path}: {sentence}")
    return {"mean": mean, "std": std}


def _mean_and_std(data: np.ndarray) -> tuple[float, float]:
    """Over all voxels; slab by slab, each centred on the first, so that float32 products lose nothing."""
    slabs = np.moveaxis(data, int(np.argmax(np.abs(data.strides))), 0)
    centre = float(slabs[0].mean(dtype=np.float64))
    total = squares = 0.0
    for slab in slabs:
        centred = np.ravel(slab - np.float32(centre), order="K")
        total += float(centred.sum(dtype=np.float64))
        squares += float(np.dot(centred, centred))
    shift = total / data.size
    return centre + shift, float(np.sqrt(max(squares / data.size - shift**2, 0.0)))


def check_headers(paths: Sequence[str], settings: IngestSettings) -> Iterator[RefusedScan | None]:
    """What `open_scan` says of each file, in order: the refusal, or None.

    The headers of plain NIfTI files are judged thousands at a time; only what is not surely sound is opened.
    """
    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        for path, sure in zip(chunk, _surely_sound(chunk, settings)):
            if sure:
                yield None
                continue
            try:
                open_scan(path, settings)
            except RefusedScan as refusal:
                yield refusal
            else:
                yield None


def _surely_sound(paths: Sequence[str], settings: IngestSettings) -> np.ndarray:
    """(n,) whether a header passes every rule beyond doubt; False says nothing."""
    raws, sizes = zip(*(_nifti_start(path) for path in paths))
    h = np.frombuffer(b"".join(raws), NIFTI_HEADER)
    shape = h["dim"][:, 1:4].astype(np.float64)
    single = (h["dim"][:, 0:1] < np.arange(4, 8)) | (h["dim"][:, 4:] == 1)
    with np.errstate(all="ignore"):
        spacing = np.linalg.norm(h["srow"][..., :3].astype(np.float64), axis=1)
        axes = h["srow"][..., :3] / spacing[:, None]
        affine_sound = np.isfinite(axes).all(axis=(1, 2)) & np.isfinite(h["srow"]).all(axis=(1, 2))
        affine_sound &= np.abs(np.linalg.det(np.nan_to_num(axes))) >= 0.1
        affine_sound &= shear_degrees(axes) <= settings.max_shear
        fits = (spacing * shape > settings.min_extent).all(axis=1) & (spacing <= settings.max_spacing).all(axis=1)
        voxels = shape.prod(axis=1)
        item = np.array([ITEM_BYTES.get(int(kind), 0) for kind in h["kind"]])
        enough = np.array(sizes) >= voxels * item
    ours = (h["size"] == 348) & (h["magic"] == b"n+1") & (h["sform"] > 0) & (h["offset"] >= 352)
    ours &= (item > 0) & (h["dim"][:, 0] >= 3) & (h["dim"][:, 0] <= 7) & single.all(axis=1)
    return ours & affine_sound & fits & enough & (shape >= 1).all(axis=1) & (voxels <= MOST_VOXELS)


def _nifti_start(path: str) -> tuple[bytes, int]:
    """First 348 bytes of a NIfTI file, unpacked, and how many bytes it can hold; zeros where there are none."""
    try:
        if path.endswith(".nii.gz"):
            with Path(path).open("rb", buffering=0) as handle:
                packed = handle.read(4096)
                size = handle.seek(0, 2)
            start = zlib.decompressobj(wbits=31).decompress(packed, 348)
            return start.ljust(348, b"\0"), size * DEFLATE
        if path.endswith(".nii"):
            with Path(path).open("rb", buffering=0) as handle:
                return handle.read(348).ljust(348, b"\0"), handle.seek(0, 2)
    except (OSError, zlib.error):
        pass
    return bytes(348), 0


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in values) + " mm"


def words(error: BaseException) -> str:
    """An error's text in one line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
