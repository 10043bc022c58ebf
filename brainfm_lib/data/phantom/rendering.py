"""Render phantom scans: draws per subject and scan, one interpolation of the anatomy, then imaging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from threadpoolctl import threadpool_limits

from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.phantom import imaging
from brainfm_lib.data.phantom.anatomy import AUTISM_PLACES, Level, fields, level, template
from brainfm_lib.data.phantom.cohort import PhantomSpec, draw_contrast, draw_subject, generator
from brainfm_lib.data.phantom.deform import CENTRE, exponentiate, random_velocity, sample, sample_nodes
from brainfm_lib.data.phantom.lesion import Lesion, compartments, draw_lesion, mass_effect
from brainfm_lib.data.phantom.tasks import CONDITIONS

GPU_STEP = 32  # volumes rendered at once on an accelerator; on a CPU one at a time, which is what makes bytes repeat
SIZES = {"F": 0.905, "M": 0.945}  # size of the brain relative to the template, which is larger than most people's
TEXTURE = 0.04  # of the signal, standard deviation in a voxel of 2 mm
OUTSIDE = 0.7  # how much darker than fluid the membranes and bone around the brain are
REACH = 20.0  # mm beyond the template's brain, at mean size, in which voxels are computed


@dataclass(frozen=True)
class Draw:
    """All random numbers of one scan; `severity` signs are already in `velocity`, `thin` and `lesion`."""

    matrix: np.ndarray  # (3, 3) subject mm -> template mm
    shift: np.ndarray  # (3,) mm
    velocity: np.ndarray  # (3, X, Y, Z) mm
    thin: tuple[float, float]  # units of thinning: everywhere, and on top of that in the temporal lobe
    lesion: Lesion | None
    contrast: str
    jitter: np.ndarray  # (8,)
    bias: np.ndarray  # (K,)
    blur: np.ndarray  # (3,) mm, standard deviation
    curve: float  # exponent of the intensity curve
    noise: float  # standard deviation in a voxel of 2 mm
    strip: float  # how tight the skull-strip is
    seeds: tuple[int, int, int]  # of texture and noise


def _rotation(angles: np.ndarray) -> np.ndarray:
    """(3, 3) rotation about x, then y, then z, radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ ry @ rx


def draw(spec: PhantomSpec, subject: int, scan: int) -> Draw:
    """Draw a scan: its subject's anatomy and disease, then this scan's imaging."""
    who, k = draw_subject(spec, subject), spec.nuisance
    family, signs = CONDITIONS[who.condition].family, spec.effect * who.severity
    rng = generator(spec, "anatomy", subject)
    normal = lambda size=None: np.clip(rng.standard_normal(size), -2.5, 2.5)  # noqa: E731
    size = SIZES[who.sex] * (1 + k * 0.018 * normal()) * (1 + k * 0.010 * normal(3))
    matrix = np.diag(1 / size) @ _rotation(k * np.radians(1.8) * normal(3))
    velocity = random_velocity(rng, k)
    known = fields()

    # Ageing: ventricles widen from middle age on, cortex thins; healthy people of one age differ widely.
    years = max(0.0, (who.age + scan - 20.0) / 50.0)
    ventricles = 2.4 * years**2 + k * 1.1 * normal()
    hippocampi = 0.35 * years**2 + k * 0.32 * normal()
    thin = [0.30 * years + k * 0.12 * normal(), k * 0.12 * normal()]
    torque = 1.5 + k * normal()
    places = k * 0.35 * normal(len(AUTISM_PLACES))
    lesion = None
    if family == "dementia":
        ventricles, hippocampi = ventricles + 1.1 * signs, hippocampi + 0.60 * signs
        thin = [thin[0] + 0.10 * signs, thin[1] + 0.25 * signs]
    elif family == "autism":
        places = places + 0.45 * signs
        thin[0] -= 0.04 * signs
    else:
        lesion = draw_lesion(rng, who.severity, spec.effect)
        velocity = velocity + mass_effect(lesion)
    velocity = velocity + np.float32(ventricles) * known.ventricles + np.float32(hippocampi) * known.hippocampi
    velocity = velocity + np.float32(torque) * known.torque
    velocity = velocity + np.tensordot(places.astype(np.float32), known.autism, axes=1)
    texture_seed = int(rng.integers(2**31))

    machine = generator(spec, "site", who.site)
    machine_curve, machine_noise, machine_bias, machine_blur = np.exp(k * 0.15 * machine.standard_normal(4))
    machine_jitter = k * 0.03 * machine.standard_normal(8)
    rng = generator(spec, "scan", subject, scan)
    jitter = np.exp(machine_jitter + k * np.array([0.10, 0.05, 0.05, 0.04, 0.08, 0.08, 0.08, 0.08]) * normal(8))
    blurs = np.full(3, 0.45 * machine_blur)
    blurs[rng.integers(3)] *= 1 + k * rng.exponential(1.5)
    return Draw(
        matrix,
        k * 1.3 * normal(3),
        velocity,
        (float(thin[0]), float(thin[1])),
        lesion,
        draw_contrast(spec, subject, scan),
        jitter,
        k * 0.10 * machine_bias * normal(imaging.BIAS_TERMS),
        np.minimum(blurs, 3.0),
        float(machine_curve * np.exp(k * 0.08 * normal())),
        float(0.03 * machine_noise * np.exp(0.4 * k * normal())),
        float(np.clip(0.55 + k * 0.08 * normal(), 0.35, 0.75)),
        (texture_seed, int(rng.integers(2**31)), int(rng.integers(2**31))),
    )


@dataclass(frozen=True)
class Support:
    """The voxels of a grid that a brain can reach, and what depends on them alone."""

    index: torch.Tensor  # (P,) int64 into the flattened grid
    points: torch.Tensor  # (P, 3) mm, 0 in the middle of the grid
    bias: torch.Tensor  # (K, P)
    maps: torch.Tensor  # (1, C, X, Y, Z)
    level: Level


@lru_cache(maxsize=4)
def support(geometry: Geometry, device: str) -> Support:
    """Voxels within `REACH` of the template's brain at mean size (cached)."""
    full, mean = template(), np.mean(list(SIZES.values()))
    near = ndimage.distance_transform_edt(full.maps[0, ::3, ::3, ::3] < 0.5).astype(np.float32) * 3.0
    index = np.indices(geometry.grid).reshape(3, -1).T
    points = index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    place = (points / mean + np.array(CENTRE) - np.array(full.origin)) / 3.0
    outside = np.maximum(0, np.maximum(-place, place - (np.array(near.shape) - 1))).max(1) * 3.0
    distance = ndimage.map_coordinates(near, place.T, order=1, mode="nearest") + outside
    kept = np.flatnonzero(distance * mean < REACH)
    fit = level(geometry.spacing)
    where = torch.tensor(points[kept], dtype=torch.float32)
    bias, maps = imaging.cosine_basis(where), torch.tensor(fit.maps)[None]
    return Support(torch.tensor(kept).to(device), where.to(device), bias.to(device), maps.to(device), fit)


def tissues(draws: list[Draw], ground: Support) -> tuple[torch.Tensor, torch.Tensor]:
    """Deform the anatomy: tissue shares (B, 6, P), the `CHANNELS`, and template points (B, P, 3), MNI mm."""
    device = ground.points.device

    def stack(name: str) -> torch.Tensor:
        return torch.tensor(np.stack([getattr(d, name) for d in draws]), dtype=torch.float32, device=device)

    centre = torch.tensor(CENTRE, device=device)
    points = (ground.points - stack("shift")[:, None]) @ stack("matrix").transpose(1, 2) + centre
    points = points + sample_nodes(exponentiate(stack("velocity")), points)
    maps = ground.maps.expand(len(draws), -1, -1, -1, -1)
    return sample(maps, points, ground.level.origin, ground.level.spacing), points


def _render(draws: list[Draw], geometry: Geometry, device: str) -> torch.Tensor:
    ground = support(geometry, device)
    tissue, points = tissues(draws, ground)

    def column(name: str) -> torch.Tensor:
        return torch.tensor(np.array([getattr(d, name) for d in draws]), dtype=torch.float32, device=device)

    fine = min(1.0, 2.0 / geometry.spacing)  # larger voxels average noise and texture out
    mask, grey, deep, white, thin, thin_temporal = tissue.unbind(1)
    units = column("thin").clamp(-0.6, 1.2)
    change = (units[:, :1] * thin + units[:, 1:] * thin_temporal).minimum(grey)
    grey = grey - change
    fluid = 1 - grey - deep - white - OUTSIDE * (1 - mask)  # what lies around the brain is dark in every contrast
    shares = torch.stack([fluid, grey, deep, white], dim=1)
    seeds = torch.tensor([d.seeds for d in draws], dtype=torch.int32, device=device)
    index = ground.index.int()
    rough = imaging.white_noise(seeds[:, 0], index)
    if any(d.lesion for d in draws):
        parts = torch.zeros(len(draws), 4, mask.shape[1], device=device)
        for row, d in enumerate(draws):
            if d.lesion is not None:
                parts[row] = compartments(d.lesion, points[row], rough[row], 0.6 * geometry.spacing)
        parts[:, 3] *= (white + 0.3 * grey).clamp(0, 1)  # oedema spreads along white matter
        shares = torch.cat([shares * (1 - parts.sum(1, keepdim=True)), parts], dim=1)
    contrasts = imaging.signals([d.contrast for d in draws], column("jitter"))
    signal = (contrasts[:, : shares.shape[1], None] * shares).sum(1)
    signal = signal * (1 + fine * TEXTURE * rough)

    dense = (contrasts[:, :1] * (1 - OUTSIDE)).repeat(1, int(np.prod(geometry.grid)))
    dense[:, ground.index] = signal
    dense = imaging.blur(dense.reshape(-1, *geometry.grid), column("blur") / geometry.spacing)
    signal = dense.flatten(1)[:, ground.index]
    signal = signal * torch.exp((column("bias")[:, :, None] * ground.bias).sum(1))
    signal = signal.clamp(min=0) ** column("curve")[:, None]
    level_of_noise = fine * column("noise")[:, None]
    signal = torch.hypot(
        signal + level_of_noise * imaging.white_noise(seeds[:, 1], index),
        level_of_noise * imaging.white_noise(seeds[:, 2], index),
    )
    values = imaging.normalise(signal, mask > column("strip")[:, None])
    volumes = torch.zeros(len(draws), int(np.prod(geometry.grid)), device=device)
    volumes[:, ground.index] = values
    return volumes.reshape(-1, *geometry.grid)


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for torch and BLAS: tensors of one volume are so small that a second one only makes the first wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def render(
    spec: PhantomSpec, scans: pd.DataFrame, geometry: Geometry, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Make the volumes of scans.

    A volume is a pure function of (spec without its number of subjects, subject, scan): the columns subject_id and
    scan say which, everything else is drawn again. On a CPU the bytes repeat in any order and batch size.

    Args:
        spec: The cohort.
        scans: Rows of `describe(spec)`; subject_id and scan are read.
        geometry: Grid; its middle shows MNI (0, -17, 5) mm of the template, give or take each subject's shift.
        device: Where to compute and return.

    Returns:
        (B, D, H, W) float32: background exactly 0, brain in [0.001, 1] between its 1st and 99th percentiles.
    """
    place = str(torch.device(device))
    numbers = [int(str(name).rsplit("-", 1)[-1]) for name in scans["subject_id"]]
    draws = [(number, int(scan)) for number, scan in zip(numbers, scans["scan"], strict=True)]
    step = 1 if place == "cpu" else GPU_STEP
    volumes = torch.empty(len(draws), *geometry.grid, device=place)
    with single_threaded():
        for start in range(0, len(draws), step):
            batch = [draw(spec, *pair) for pair in draws[start : start + step]]
            volumes[start : start + step] = _render(batch, geometry, place)
    return volumes
