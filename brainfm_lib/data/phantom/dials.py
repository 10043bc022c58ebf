"""Two dials on where a known signal lies, at an ideal observer's AUROC that no setting of them changes.

A factor is a signed pattern of small relative brightness on brain tissue: noise of one radial band of spatial
frequency, fixed to the field of view, so that anatomy does not smear a fine pattern more than a coarse one. A setting
names the factors that its subjects carry, independent and of unit variance, and that their label shifts, all alike and
together by d' standard deviations:

- `frequency-NN`: `PER_BAND` factors at 0.NN cycles per voxel; the dial is the frequency.
- `dimension-D`: D factors of one broad band, each shifted by d'/sqrt(D); the dial is D, the rank of their covariance.

Given the factors u, the label tells u apart as two Gaussians of unit variance in every direction, so the sum of the
factors is all an ideal observer needs, and its AUROC is Phi(d'/sqrt 2) whatever the setting.

Factors that a setting does not name are absent from its subjects. Were they there, the dimension dial would turn
nothing: a label that shifts D of many independent factors of equal variance shifts one factor, their scaled sum, and
leaves the rest as they were, so that no observer of images could tell D from 1. With the others absent, D is the number
of directions in which subjects of the setting differ apart from anatomy and scanner, and only one of them, which no
variance betrays, tells their label. Subjects of the condition `POPULATION` carry all factors: a cohort to pretrain on.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import fft

from brainfm_lib.data.geometry import Geometry

FREQUENCIES = (12, 20, 28, 36, 44)  # hundredths of a cycle per voxel: a patch of 8 voxels, up to near Nyquist (50)
HALF_WIDTH = 0.03  # cycles per voxel, of each of these bands
PER_BAND = 4
DIMENSIONS = (1, 2, 4, 8, 16, 32, 64)
BROAD = (0.16, 0.40)  # cycles per voxel, the band of all factors of the dimension dial
AMPLITUDE = 0.02  # of the local signal: a factor's root mean square over brain tissue at one standard deviation
SEPARATION = 2.0  # d' of case against control
POPULATION = "dial-population"  # the condition of those who carry every factor and have no label
SEED = 20  # of the patterns, which are the same in every cohort: a pretrained encoder may know them

FACTORS: dict[str, tuple[int, ...]] = {
    f"frequency-{band}": tuple(range(PER_BAND * i, PER_BAND * (i + 1))) for i, band in enumerate(FREQUENCIES)
} | {f"dimension-{d}": tuple(PER_BAND * len(FREQUENCIES) + k for k in range(d)) for d in DIMENSIONS}
COUNT = PER_BAND * len(FREQUENCIES) + max(DIMENSIONS)


def band_of(factor: int) -> tuple[float, float]:
    """Lowest and highest frequency of a factor's pattern, cycles per voxel."""
    if factor < PER_BAND * len(FREQUENCIES):
        centre = FREQUENCIES[factor // PER_BAND] / 100
        return centre - HALF_WIDTH, centre + HALF_WIDTH
    return BROAD


def draw_factors(setting: str, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a subject's factors given their scaled sum.

    Args:
        setting: A key of `FACTORS`; "" for all factors.
        severity: Sum of the setting's factors over sqrt(their number): Gaussian with unit variance.
        rng: Generator of the subject.

    Returns:
        (COUNT,) float64: those of the setting, around their mean Gaussian, of unit variance and independent of each
        other; 0 elsewhere.
    """
    mine = list(FACTORS[setting]) if setting else list(range(COUNT))
    drawn, factors = rng.standard_normal(COUNT)[mine], np.zeros(COUNT)
    factors[mine] = drawn + severity / len(mine) ** 0.5 - drawn.mean()
    return factors


@lru_cache(maxsize=2)
def _noise(grid: tuple[int, int, int]) -> list[np.ndarray]:
    """COUNT band-limited fields (D, H, W) float32."""
    axes = [np.fft.fftfreq(n) for n in grid[:2]] + [np.fft.rfftfreq(grid[2])]
    radius = np.sqrt(sum(f.reshape([-1 if k == i else 1 for k in range(3)]) ** 2 for i, f in enumerate(axes)))
    fields = []
    for factor in range(COUNT):
        white = np.random.default_rng([SEED, factor]).standard_normal(grid, dtype=np.float32)
        low, high = band_of(factor)
        kept = ((radius >= low) & (radius <= high)).astype(np.float32)
        fields.append(fft.irfftn(fft.rfftn(white) * kept, grid).astype(np.float32))
    return fields


def patterns(geometry: Geometry, index: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """The factors' patterns at some voxels of a grid.

    Args:
        geometry: The grid; on one that is not cubic too the bands are spheres in cycles per voxel.
        index: (P,) voxel numbers, C order.
        tissue: (P,) the average share of brain tissue there, the weight of the root mean square.

    Returns:
        (COUNT, P) float32, root mean square `AMPLITUDE` over tissue, mean 0.
    """
    weight = tissue / tissue.sum()
    made = np.stack([field.reshape(-1)[index] for field in _noise(geometry.grid)])
    made -= (made @ weight)[:, None]
    return (made * (AMPLITUDE / np.sqrt(made**2 @ weight))[:, None]).astype(np.float32)
