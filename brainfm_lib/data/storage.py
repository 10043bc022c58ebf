"""The types in which volumes are stored, and back."""

from __future__ import annotations

import numpy as np

LEVELS = 255
FLOOR = 1e-3  # smallest value of foreground; the background is exactly 0, so foreground is `volume > 0`


def as_stored(volumes: np.ndarray, storage: str) -> np.ndarray:
    """Volumes in [0, 1] in the type they are stored in; foreground, which is above 0, stays above 0.

    The largest error is 2**-12 (float16) or 1/510 (uint8; 1/255 next to 0).
    """
    if storage == "float16":
        return volumes.astype(np.float16)
    return np.where(volumes > 0, np.clip(np.rint(volumes * LEVELS), 1, LEVELS), 0).astype(np.uint8)


def as_float(stored: np.ndarray) -> np.ndarray:
    """Stored volumes as float32 in [0, 1]."""
    if stored.dtype == np.uint8:
        return stored.astype(np.float32) / LEVELS
    return stored.astype(np.float32)
