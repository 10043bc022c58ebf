"""Render phantom scans: draws per subject and scan, one interpolation of the anatomy, then imaging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
from threadpoolctl import threadpool_limits

from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.noise import white_noise
from brainfm_lib.data.phantom import dials, imaging
from brainfm_lib.data.phantom.anatomy import CHANNELS
from brainfm_lib.data.phantom.cohort import PhantomSpec, draw_ancestor, numbers_of
from brainfm_lib.data.phantom.deform import CENTRE, NODE_SPACING, exponentiate, sample, sample_nodes
from brainfm_lib.data.phantom.draws import SIZES, Draw, draw
from brainfm_lib.data.phantom.lesion import compartments
from brainfm_lib.data.phantom.regions import ANCESTORS, Level, level, template

GPU_STEP = 32  # volumes rendered at once on an accelerator; on a CPU one at a time, which is what makes bytes repeat
TEXTURE = 0.006  # of the signal, standard deviation in a voxel of 2 mm
FOLD_KNOTS = 5.0  # mm between the knots of a person's random folds
FOLDS = (1.6, 4.0)  # their standard deviations, in log odds: of tissue against fluid, of white against grey matter
RELIEF = 0.08  # of the signal, standard deviation of slow variation within a tissue
STEEPER = 1.8  # how much surer one person's tissue is than the average's
OUTSIDE = 0.7  # how much darker than fluid the membranes and bone around the brain are
REACH = 28.0  # mm beyond the template's brain, at mean size, in which voxels are computed


@dataclass(frozen=True)
class Support:
    """The voxels of a grid that a brain can reach, and what depends on them alone.

    Deformations are smooth, so they are computed on a lattice of every `step`-th voxel and interpolated.
    """

    geometry: Geometry
    index: torch.Tensor  # (P,) int64 into the flattened grid
    bias: torch.Tensor  # (K, P)
    lattice: torch.Tensor  # (M, 3) mm, 0 in the middle of the grid; where step is 1 the P voxels themselves
    block: torch.Tensor  # (P,) int64: nearest place of the lattice
    step: int
    near: torch.Tensor  # (1, 1, X, Y, Z) mm outside the template's brain, every 3 mm
    rows: torch.Tensor  # (X*Y*Z, 8) the template's maps, the channels of a voxel side by side
    level: Level
    tissue: np.ndarray  # (P,) share of brain tissue in the average brain

    @cached_property
    def patterns(self) -> torch.Tensor:
        """(dials.COUNT, P) patterns of the dials' factors; made when they are first needed."""
        made = dials.patterns(self.geometry, self.index.cpu().numpy(), self.tissue)
        return torch.from_numpy(made).to(self.index.device)


@lru_cache(maxsize=ANCESTORS)
def support(geometry: Geometry, device: str, ancestor: str = "") -> Support:
    """Voxels within `REACH` of the ancestor's brain at mean size (cached)."""
    full, mean = template(ancestor), float(np.mean(list(SIZES.values())))
    near = ndimage.distance_transform_edt(full.maps[0, ::3, ::3, ::3] < 0.5).astype(np.float32) * 3.0
    index = np.indices(geometry.grid).reshape(3, -1).T
    points = index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    place = (points / mean + np.array(CENTRE) - np.array(full.origin)) / 3.0
    outside = np.maximum(0, np.maximum(-place, place - (np.array(near.shape) - 1))).max(1) * 3.0
    distance = ndimage.map_coordinates(near, place.T, order=1, mode="nearest") + outside
    kept = np.flatnonzero(distance * mean < REACH)
    fit = level(geometry.spacing, ancestor)
    where = torch.tensor(points[kept], dtype=torch.float32)
    step = max(int(NODE_SPACING / geometry.spacing), 1)
    if step == 1:
        lattice, block = where, np.arange(len(kept))
    else:
        shape = [-(-(n - 1) // step) + 1 for n in geometry.grid]
        nodes = np.indices(shape).reshape(3, -1).T * step
        lattice = torch.tensor(nodes @ geometry.affine[:3, :3].T + geometry.affine[:3, 3], dtype=torch.float32)
        block = np.ravel_multi_index(tuple(((index[kept] + step // 2) // step).T), shape)
    rows = torch.zeros(fit.maps[0].size, 8)
    rows[:, : len(CHANNELS)] = torch.from_numpy(fit.maps.reshape(len(CHANNELS), -1).T)
    inside = sample_rows(rows, fit, where / mean + torch.tensor(CENTRE))
    tissue = inside[:, [CHANNELS.index(name) for name in ("grey", "deep", "white")]].sum(1).double().numpy()
    return Support(
        geometry,
        torch.tensor(kept).to(device),
        imaging.cosine_basis(where).to(device),
        lattice.to(device),
        torch.from_numpy(block).to(device),
        step,
        torch.from_numpy(near)[None, None].to(device),
        rows.to(device),
        fit,
        tissue,
    )


def sample_rows(rows: torch.Tensor, fit: Level, points: torch.Tensor) -> torch.Tensor:
    """Trilinear values (P, 8) of maps at points (P, 3) MNI mm; beyond the border the border's value.

    One weighted sum of eight rows a point, which is two to three times as fast as sampling channel by channel.
    """
    _, *shape = fit.maps.shape
    corner, sides = [], []
    for axis, (n, start) in enumerate(zip(shape, fit.origin)):
        place = ((points[:, axis] - start) / fit.spacing).clamp(0, n - 1)
        low = place.floor().clamp(max=n - 2)
        share = place - low
        corner.append(low.int())
        sides.append((1 - share, share))
    first = (corner[0] * shape[1] + corner[1]) * shape[2] + corner[2]
    which, weights = [], []
    for x, y, z in np.ndindex(2, 2, 2):
        which.append(first + (x * shape[1] + y) * shape[2] + z)
        weights.append(sides[0][x] * sides[1][y] * sides[2][z])
    return F.embedding_bag(torch.stack(which, 1), rows, per_sample_weights=torch.stack(weights, 1), mode="sum")


@lru_cache(maxsize=16)
def _interpolation(n: int, step: int, device: str) -> torch.Tensor:
    """(n, m) weights that interpolate every `step`-th of n places linearly."""
    nodes = -(-(n - 1) // step) + 1
    distance = torch.arange(n)[:, None] / step - torch.arange(nodes)[None]
    return (1 - distance.abs()).clamp(min=0).to(device)


def deformed(draws: list[Draw], ground: Support) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the support's voxels these brains reach, and the template's place that each shows.

    Returns:
        (Q,) int64 positions in `ground.index`, and (B, Q, 3) MNI mm.
    """
    device = ground.lattice.device

    def stack(name: str) -> torch.Tensor:
        return torch.tensor(np.stack([getattr(d, name) for d in draws]), dtype=torch.float32, device=device)

    centre = torch.tensor(CENTRE, device=device)
    points = (ground.lattice - stack("shift")[:, None]) @ stack("matrix").transpose(1, 2) + centre
    points = points + sample_nodes(exponentiate(stack("velocity")), points)
    outside = sample(ground.near.expand(len(draws), -1, -1, -1, -1), points, ground.level.origin, 3.0)[:, 0]
    spacing = ground.geometry.spacing
    margin = 1.1 * ground.step * spacing * 3**0.5 / 2 + 1.5 * spacing + 3.0  # of a block, of smoothed maps, of `near`
    kept = (outside < margin).any(0)[ground.block].nonzero()[:, 0]
    if ground.step == 1:
        return kept, points[:, kept]
    grid = ground.geometry.grid
    weights = [_interpolation(n, ground.step, str(device)) for n in grid]
    moved = points.transpose(1, 2).reshape(len(draws), 3, *(w.shape[1] for w in weights))
    moved = weights[1] @ (moved @ weights[2].T)
    moved = (weights[0] @ moved.flatten(3)).flatten(2)
    return kept, moved[:, :, ground.index[kept]].transpose(1, 2)


def folded(
    grey: torch.Tensor,
    deep: torch.Tensor,
    white: torch.Tensor,
    mask: torch.Tensor,
    points: torch.Tensor,
    seeds: torch.Tensor,
    spacing: float,
) -> tuple[torch.Tensor, ...]:
    """One person's folds, where the average brain has a probability of many people's.

    The log odds of tissue against fluid, and within tissue of white against grey matter, move up and down with two
    random fields and are steepened: where an average is sure nothing changes, where it is not a sulcus or a blade of
    white matter appears or goes.

    Args:
        grey, deep, white, mask: (B, Q) the average brain's probabilities, of this person's age and disease.
        points: (B, Q, 3) MNI mm.
        seeds: (B,) int32.
        spacing: Of the grid, mm; fields finer than a voxel are averaged out.

    Returns:
        grey, deep and white (B, Q), and a third field (B, Q) of unit variance on the finest grids.
    """
    origin, extent = template().origin, template().maps.shape[1:]
    knots = max(FOLD_KNOTS, 1.25 * spacing)  # or they would look like noise of a voxel
    weaker = (FOLD_KNOTS / knots) ** 1.5
    shape = [int(n / knots) + 2 for n in extent]
    index = torch.arange(3 * int(np.prod(shape)), dtype=torch.int32, device=points.device)
    field = sample(white_noise(seeds, index).view(len(seeds), 3, *shape), points, origin, knots)

    def realised(share: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(STEEPER * (torch.logit(share, eps=1e-4) + weaker * shift))

    tissue = grey + deep + white
    inside = mask.clamp(min=1e-3)
    solid = realised(tissue / inside, FOLDS[0] * field[:, 0]) * inside
    core = realised(white / tissue.clamp(min=1e-3), FOLDS[1] * field[:, 1])
    other = grey + deep
    nuclei = deep / other.clamp(min=1e-3)
    return solid * (1 - core) * (1 - nuclei), solid * (1 - core) * nuclei, solid * core, weaker * field[:, 2]


def render_draws(draws: list[Draw], geometry: Geometry, device: str = "cpu") -> torch.Tensor:
    """Volumes (B, D, H, W) of scans whose random numbers are drawn: change one of them to see what it does.

    All subjects of a batch descend from one ancestor.
    """
    (ancestor,) = {d.ancestor for d in draws}
    ground = support(geometry, device, ancestor)
    reached, points = deformed(draws, ground)
    where = ground.index[reached]
    tissue = sample_rows(ground.rows, ground.level, points.reshape(-1, 3)).view(len(draws), -1, 8)

    def column(name: str) -> torch.Tensor:
        return torch.tensor(np.array([getattr(d, name) for d in draws]), dtype=torch.float32, device=device)

    mask, grey, deep, white, thin, thin_temporal = (tissue[..., k].contiguous() for k in range(len(CHANNELS)))
    units = column("thin").clamp(-0.6, 1.2)  # thinning comes before folding: one cortex, folded
    grey = grey - (units[:, :1] * thin + units[:, 1:] * thin_temporal).minimum(grey)
    seeds = torch.tensor([d.seeds for d in draws], dtype=torch.int32, device=device)
    grey, deep, white, smooth = folded(grey, deep, white, mask, points, seeds[:, 3], geometry.spacing)
    fine = min(1.0, 2.0 / geometry.spacing)  # larger voxels average noise and texture out
    fluid = 1 - grey - deep - white - OUTSIDE * (1 - mask)  # what lies around the brain is dark in every contrast
    shares = torch.stack([fluid, grey, deep, white], dim=1)
    index = where.int()
    rough = white_noise(seeds[:, 0], index)
    if any(d.lesion for d in draws):
        parts = torch.zeros(len(draws), 4, mask.shape[1], device=device)
        for row, d in enumerate(draws):
            if d.lesion is not None:
                parts[row] = compartments(d.lesion, points[row], rough[row], 0.6 * geometry.spacing)
        parts[:, 3] *= (white + 0.3 * grey).clamp(0, 1)  # oedema spreads along white matter
        shares = torch.cat([shares * (1 - parts.sum(1, keepdim=True)), parts], dim=1)
    contrasts = imaging.signals([d.contrast for d in draws], column("jitter"))
    signal = (contrasts[:, : shares.shape[1], None] * shares).sum(1)
    relief = fine * TEXTURE * rough + RELIEF * smooth
    factors = column("factors")
    if any(d.factors.any() for d in draws):
        relief = relief + (factors @ ground.patterns)[:, reached] * (grey + deep + white)
    signal = signal * (1 + relief)

    dense = (contrasts[:, :1] * (1 - OUTSIDE)).repeat(1, int(np.prod(geometry.grid)))
    dense[:, where] = signal
    scanner = column("scanner") / geometry.spacing
    measured = (1 / scanner[..., 1].clamp(min=1e-6)).clamp(max=1.0)  # voxels finer than the grid do not ring on it
    scanner = torch.stack([scanner[..., 0], measured, column("scanner")[..., 2], scanner[..., 3]], dim=-1)
    dense = imaging.acquire(dense.reshape(-1, *geometry.grid), scanner)
    signal = dense.flatten(1)[:, where]
    signal = signal * torch.exp((column("bias") @ ground.bias)[:, reached])
    signal = signal.clamp(min=0) ** column("curve")[:, None]
    level_of_noise = fine * column("noise")[:, None]
    signal = torch.hypot(
        signal + level_of_noise * white_noise(seeds[:, 1], index),
        level_of_noise * white_noise(seeds[:, 2], index),
    )
    values = imaging.normalise(signal, mask > column("strip")[:, None])
    volumes = torch.zeros(len(draws), int(np.prod(geometry.grid)), device=device)
    volumes[:, where] = values
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
    numbers = numbers_of(scans)
    wanted = list(zip(numbers, (int(scan) for scan in scans["scan"]), strict=True))
    families: dict[str, list[int]] = {}
    for row, number in enumerate(numbers):
        families.setdefault(draw_ancestor(spec, number), []).append(row)
    step = 1 if place == "cpu" else GPU_STEP
    volumes = torch.empty(len(wanted), *geometry.grid, device=place)
    with single_threaded():
        for rows in families.values():
            for start in range(0, len(rows), step):
                batch = rows[start : start + step]
                volumes[batch] = render_draws([draw(spec, *wanted[row]) for row in batch], geometry, place)
    return volumes
