"""The brain that one phantom descends from: its maps fit for a grid, and where disease and age act on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
from scipy import ndimage

from brainfm_lib.data.phantom.anatomy import AUTISM_PLACES, CHANNELS, Template, average, hippocampi
from brainfm_lib.data.phantom.deform import NODE_SPACING, node_axes
from brainfm_lib.data.phantom.labelmaps import person

ANCESTORS = 8  # brains kept in memory at once; scans are best rendered in order of their ancestor
_READING = Lock()


def template(label_map: str = "") -> Template:
    """The average brain, or the person of a file of labels, on the same grid (the last two are cached)."""
    if not label_map:
        return average()
    with _READING:  # threads that want the same person wait for the first
        return _person(label_map)


_person = lru_cache(maxsize=2)(person)


@dataclass(frozen=True)
class Level:
    """The template's maps (C, X, Y, Z), smoothed for a target spacing, at `origin` and `spacing` mm."""

    maps: np.ndarray
    origin: tuple[float, float, float]
    spacing: float


@lru_cache(maxsize=ANCESTORS)
def level(target_spacing: float, label_map: str = "") -> Level:
    """Maps fit to be sampled every `target_spacing` mm without aliasing.

    A Gaussian about as wide as the target voxel stands for the voxel's own averaging; the result is kept at two
    thirds of the target spacing (not below 1 mm), where linear interpolation between its samples is faithful.
    """
    full = template(label_map)
    spacing = max(1.0, target_spacing / 1.5)
    sigma = np.sqrt(max(0.0, (0.40 * target_spacing) ** 2 - 0.4**2))
    counts = [int(np.ceil((n - 1) / spacing)) + 1 for n in full.maps.shape[1:]]
    maps = []
    for channel in full.maps:
        smooth = ndimage.gaussian_filter(channel, sigma, truncate=3.0) if sigma > 0.3 else channel
        if spacing > 1.0:
            for axis, n in enumerate(counts):  # linear interpolation, an axis at a time
                place = np.minimum(np.arange(n) * spacing, smooth.shape[axis] - 1)
                low = np.minimum(place.astype(int), smooth.shape[axis] - 2)
                share = (place - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
                smooth = smooth.take(low, axis) * (1 - share) + smooth.take(low + 1, axis) * share
        maps.append(smooth)
    return Level(np.stack(maps).astype(np.float32), full.origin, float(spacing))


@dataclass(frozen=True)
class Fields:
    """Velocities (3, X, Y, Z), mm, on the deformation's nodes; each one's fastest point moves 1 mm.

    Args:
        ventricles: Enlarges the lateral ventricles.
        hippocampi: Shrinks the hippocampi.
        torque: Moves the right hemisphere forward against the left.
        autism: (places, 3, X, Y, Z), each shrinks or enlarges one place.
    """

    ventricles: np.ndarray
    hippocampi: np.ndarray
    torque: np.ndarray
    autism: np.ndarray


def _toward(bump: np.ndarray) -> np.ndarray:
    """Velocity up the gradient of a bump: points sample the tissue nearer its middle, so the middle grows."""
    field = np.stack(np.gradient(bump, NODE_SPACING)).astype(np.float32)
    return field / np.sqrt((field**2).sum(0)).max()


@lru_cache(maxsize=ANCESTORS)
def fields(label_map: str = "") -> Fields:
    """The deformations of known places (cached)."""
    full = template(label_map)
    axes = node_axes()
    nodes = [axis.astype(np.float32).reshape([-1 if k == i else 1 for k in range(3)]) for i, axis in enumerate(axes)]
    smooth = ndimage.gaussian_filter(full.ventricles, 9.0, truncate=3.0)
    index = np.meshgrid(*[axis - o for axis, o in zip(axes, full.origin, strict=True)], indexing="ij")
    ventricles = _toward(ndimage.map_coordinates(smooth, index, order=1))
    x, y, z = nodes
    torque = np.zeros_like(ventricles)
    torque[1] = -np.tanh(x / 30) * np.exp2(-(((z - 5) / 60) ** 2) + 0 * y)
    places = []
    for px, py, pz, sign in AUTISM_PLACES:
        places.append(sign * _toward(np.exp(-((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2) / (2 * 11.0**2))))
    return Fields(ventricles, -_toward(hippocampi(nodes, 8.0)), torque, np.stack(places))


@lru_cache(maxsize=ANCESTORS)
def lesion_places(label_map: str = "") -> np.ndarray:
    """(N, 3) float32 MNI mm: deep white matter of both hemispheres, where a tumour may be centred."""
    full = template(label_map)
    x, y, z = full.axes()
    white = ndimage.gaussian_filter(full.maps[CHANNELS.index("white")], 3.0) > 0.7
    white &= (np.abs(x) > 16) & (y > -70) & (y < 45) & (z > -12) & (z < 48)
    return (np.argwhere(white[::3, ::3, ::3]) * 3 + np.array(full.origin)).astype(np.float32)
