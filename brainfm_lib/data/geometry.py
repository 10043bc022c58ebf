"""The fixed grid on which every volume is stored, and the type of its voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STORAGES = ("float16", "uint8")


@dataclass(frozen=True)
class Geometry:
    """An isotropic grid in RAS+ order: array axes (D, H, W) run to the right, anterior and superior.

    Args:
        grid: Voxels along the three axes (D, H, W).
        spacing: Edge length of a voxel, mm.
        storage: Type of stored voxels: "float16", or "uint8", which takes half the space and keeps 255 levels.
    """

    grid: tuple[int, int, int]
    spacing: float
    storage: str = "float16"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(int(n) for n in self.grid))
        object.__setattr__(self, "spacing", float(self.spacing))
        if len(self.grid) != 3 or min(self.grid) < 1 or not self.spacing > 0:
            raise ValueError(f"a geometry needs three axes and a spacing above 0 mm, not {self.grid}, {self.spacing}")
        if self.storage not in STORAGES:
            raise ValueError(f"volumes are stored as {' or '.join(STORAGES)}, not {self.storage}")

    @property
    def extent(self) -> tuple[float, float, float]:
        """Edge lengths of the whole grid, mm."""
        d, h, w = self.grid
        return (d * self.spacing, h * self.spacing, w * self.spacing)

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64, voxel index to mm; the grid's centre, index (n - 1) / 2, lies at 0 mm."""
        affine = np.diag([self.spacing, self.spacing, self.spacing, 1.0])
        affine[:3, 3] = [-self.spacing * (n - 1) / 2 for n in self.grid]
        return affine
