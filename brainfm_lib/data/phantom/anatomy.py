"""The brain that phantoms descend from: the ICBM 2009a average, as soft tissue maps, and positions in it.

Grey- and white-matter probabilities come with nilearn's wheel (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033;
symmetric, 1 mm). Cerebrospinal fluid is what is left of the brain mask. All positions are MNI millimetres.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

# Channels of the sampled maps. The thin_* maps say how much grey matter becomes fluid at one unit of atrophy.
CHANNELS = ("mask", "grey", "deep", "white", "thin_cortex", "thin_temporal")
MARGIN = 12  # mm of nothing kept around the brain
SHARPENING = 1.6  # exponent on the average brain's probabilities: undoes part of the blur of averaging
NUCLEI = {
    "thalamus": ((12.0, -18.0, 8.0), (8.0, 12.0, 8.0)),
    "putamen": ((25.0, 4.0, 1.0), (6.0, 14.0, 9.0)),
    "caudate": ((13.0, 14.0, 9.0), (5.0, 9.0, 9.0)),
}
HIPPOCAMPUS = ((23.0, -9.0, -20.0), (28.0, -20.0, -15.0), (28.0, -30.0, -8.0), (22.0, -38.0, 0.0))
TEMPORAL = ((46.0, -15.0, -22.0), (22.0, 40.0, 18.0))
# Places whose size differs a little in the simulated autism, with the sign of the change: many, weak, both ways.
AUTISM_PLACES = (
    (20, 40, 30, 1), (-20, 40, 30, 1), (40, 25, 20, 1), (-40, 25, 20, -1), (35, 30, -10, 1), (-35, 30, -10, 1),
    (50, -10, 35, -1), (-50, -10, 35, -1), (10, -25, 55, -1), (-10, -25, 55, 1), (45, -45, 35, -1), (-45, -45, 35, 1),
    (52, -25, 5, 1), (-52, -25, 5, -1), (50, -10, -22, 1), (-50, -10, -22, 1), (23, -4, -20, 1), (-23, -4, -20, 1),
    (20, -80, 15, -1), (-20, -80, 15, -1), (25, -60, -35, -1), (-25, -60, -35, -1), (0, -58, -25, -1), (0, 20, 15, -1),
)  # fmt: skip


def _template_file(name: str) -> Path:
    spec = importlib.util.find_spec("nilearn")  # locates the wheel without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("nilearn is not installed; it carries the brain the phantoms are made from.")
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    return folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"


def _load(name: str) -> tuple[np.ndarray, np.ndarray]:
    image = nib.Nifti1Image.from_filename(_template_file(name))
    data = np.asarray(image.dataobj, np.float32) / 255.0
    return data, image.affine[:3, 3]


@dataclass(frozen=True)
class Template:
    """A brain at 1 mm.

    Args:
        maps: (6, X, Y, Z) float32 in [0, 1], the `CHANNELS`.
        ventricles: (X, Y, Z) float32 in [0, 1], the lateral ventricles.
        origin: MNI mm of voxel (0, 0, 0); the axes are RAS+.
    """

    maps: np.ndarray
    ventricles: np.ndarray
    origin: tuple[float, float, float]

    def axes(self) -> list[np.ndarray]:
        """Three broadcastable arrays of MNI mm coordinates."""
        shape = self.maps.shape[1:]
        axes = [o + np.arange(n, dtype=np.float32) for o, n in zip(self.origin, shape, strict=True)]
        return [axis.reshape([-1 if k == i else 1 for k in range(3)]) for i, axis in enumerate(axes)]


def ellipsoids(axes: list[np.ndarray], places: list[tuple[tuple, tuple]]) -> np.ndarray:
    """Soft union of ellipsoids, mirrored in x: 1 at a centre, 0.5 on a surface, near 0 outside."""
    weight = np.zeros(1, np.float32)
    for centre, radii in places:
        x = np.abs(axes[0]) - np.float32(centre[0])
        square = (x / radii[0]) ** 2 + ((axes[1] - centre[1]) / radii[1]) ** 2 + ((axes[2] - centre[2]) / radii[2]) ** 2
        weight = np.maximum(weight, np.exp2(-square, dtype=np.float32))
    return weight


def hippocampi(axes: list[np.ndarray], radius: float) -> np.ndarray:
    """Soft tubes along both hippocampi: 1 on the axis, 0.5 at `radius` mm from it."""
    points = np.array(HIPPOCAMPUS, np.float32)
    x, nearest = np.abs(axes[0]), np.float32(np.inf)
    for start, end in zip(points[:-1], points[1:], strict=True):
        d = end - start
        offset = [axis - s for axis, s in zip((x, axes[1], axes[2]), start, strict=True)]
        t = np.clip(sum(o * c for o, c in zip(offset, d, strict=True)) / (d @ d), 0, 1)
        nearest = np.minimum(nearest, sum((o - t * c) ** 2 for o, c in zip(offset, d, strict=True)))
    return np.exp2(-nearest / np.float32(radius**2))


@lru_cache(maxsize=1)
def average() -> Template:
    """Read the average brain's maps, sharpen them, and derive fluid, deep nuclei and ventricles (cached)."""
    t1, origin = _load("t1")
    grey, white = _load("gm")[0], _load("wm")[0]
    brain = ndimage.binary_fill_holes(t1 > 0)
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    grey, white, mask = (np.pad(a[box], MARGIN) for a in (grey, white, brain.astype(np.float32)))
    cx, cy, cz = (float(o + s.start - MARGIN) for o, s in zip(origin, box, strict=True))
    corner = (cx, cy, cz)
    fluid = np.clip(mask - grey - white, 0, 1)
    powers = [p**SHARPENING for p in (grey, white, fluid)]
    total = np.maximum(sum(powers), 1e-6)
    grey, white, fluid = (p / total * mask for p in powers)

    x, y, z = axes = Template(grey[None], grey, corner).axes()
    deep = grey * np.clip(1.3 * ellipsoids(axes, list(NUCLEI.values())), 0, 1)
    inside = (np.abs(x) < 36) & (y > -52) & (y < 34) & (z > -2) & (z < 32) & (np.abs(x) + 0 * y + 0 * z > 1)
    labels, _ = ndimage.label((fluid > 0.5) & inside)
    seeds = [labels[tuple(int(p - c) for p, c in zip(s, corner, strict=True))] for s in ((-4, 10, 8), (4, 10, 8))]
    ventricles = ndimage.binary_dilation(np.isin(labels, [s for s in seeds if s])) * fluid
    return assembled(mask, grey - deep, deep, white, ventricles, corner)


def assembled(
    mask: np.ndarray,
    grey: np.ndarray,
    deep: np.ndarray,
    white: np.ndarray,
    ventricles: np.ndarray,
    corner: tuple[float, float, float],
) -> Template:
    """A template of tissue maps (X, Y, Z), with the maps of what atrophy takes; `corner` is voxel (0, 0, 0) in mm.

    Grey matter beside fluid or the outside is what thinning takes first; below the tentorium nothing thins.
    """
    _, y, z = axes = Template(grey[None], grey, corner).axes()
    beside = ndimage.gaussian_filter(1 - grey - deep - white, 1.8)
    cerebrum = 1 / (1 + np.exp(-(z + 18 - 0.35 * (y + 45)) / 4)) + (y > -25)
    thin = grey * np.clip((beside - 0.15) / 0.5, 0, 1) * np.clip(cerebrum, 0, 1)
    medial = np.maximum(hippocampi(axes, 9.0), ellipsoids(axes, [TEMPORAL]))
    maps = np.stack([mask, grey, deep, white, thin, thin * medial]).astype(np.float32)
    return Template(maps, ventricles.astype(np.float32), corner)
