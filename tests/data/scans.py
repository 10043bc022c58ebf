"""Small NIfTI scans."""

from pathlib import Path

import nibabel as nib
import numpy as np


def head(shape=(40, 44, 38), seed=0) -> np.ndarray:
    """A bright ellipsoid with texture on an exactly black background."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum((a / 0.7) ** 2 for a in axes) < 1
    return np.where(inside, 100 + 20 * rng.standard_normal(shape), 0).astype(np.float32)


def save_scan(path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = head() if data is None else data
    nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0]) if affine is None else affine).to_filename(path)
    return path
