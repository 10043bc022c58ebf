"""Smooth invertible deformations: a stationary velocity field on coarse nodes, exponentiated by scaling and squaring.

All fields live in template millimetres (MNI) on the nodes of `NODES`; a deformation takes a point of the subject,
already in the template's frame, to the point of the template whose tissue it shows (a pull-back).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

NODE_SPACING = 8.0
NODES = (25, 29, 27)
CENTRE = (0.0, -17.0, 5.0)  # the middle of the template's brain, MNI mm; grids are centred here
SQUARINGS = 4
# Knot distance (mm) and standard deviation of the displacement along each axis (mm) of the random scales.
SCALES = ((56.0, 2.0), (28.0, 1.5), (14.0, 0.7))
SYMMETRIC_SHARE = 0.7  # share of the variance that both hemispheres have in common


def node_axes() -> list[np.ndarray]:
    """MNI mm coordinates of the nodes along x, y and z."""
    return [middle + NODE_SPACING * (np.arange(n) - (n - 1) / 2) for n, middle in zip(NODES, CENTRE, strict=True)]


@cache
def _spline_bases(knot_distance: float) -> tuple[np.ndarray, ...]:
    """(nodes, knots) cubic B-spline weights along each axis, scaled so that unit knots give about unit variance."""
    bases = []
    for axis in node_axes():
        half = int(np.ceil((axis[-1] - axis[0]) / 2 / knot_distance)) + 1
        knots = (axis[0] + axis[-1]) / 2 + knot_distance * np.arange(-half, half + 1)
        t = np.abs(axis[:, None] - knots[None, :]) / knot_distance
        weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0))
        bases.append((weights / np.sqrt((weights**2).sum(1).mean())).astype(np.float32))
    return tuple(bases)


def random_velocity(rng: np.random.Generator, strength: float) -> np.ndarray:
    """(3, X, Y, Z) float32 velocity, mm: independent cubic splines at three scales, mostly symmetric about x = 0."""
    velocity = np.zeros((3, *NODES), np.float32)
    for knot_distance, deviation in SCALES:
        bx, by, bz = _spline_bases(knot_distance)
        knots = rng.standard_normal((3, bx.shape[1], by.shape[1], bz.shape[1]), dtype=np.float32)
        mirrored = knots[:, ::-1] * np.array([-1, 1, 1], np.float32)[:, None, None, None]
        both, one = np.sqrt(SYMMETRIC_SHARE / 2), np.sqrt(1 - SYMMETRIC_SHARE)
        other = rng.standard_normal(knots.shape, dtype=np.float32)
        knots = np.float32(strength * deviation) * (np.float32(both) * (knots + mirrored) + np.float32(one) * other)
        field = knots @ bz.T
        field = np.swapaxes(np.swapaxes(field, 2, 3) @ by.T, 2, 3)
        velocity += np.tensordot(field, bx, axes=(1, 1)).transpose(0, 3, 1, 2)
    return velocity


def sample(maps: torch.Tensor, points: torch.Tensor, origin: tuple[float, ...], spacing: float) -> torch.Tensor:
    """Trilinear values of maps at points; beyond the border the border's value.

    Args:
        maps: (B, C, X, Y, Z) float32 on a grid whose first voxel lies at `origin` mm, `spacing` mm apart.
        points: (B, P, 3) mm in the same frame.

    Returns:
        (B, C, P) float32.
    """
    last = torch.tensor([n - 1 for n in maps.shape[2:]], dtype=points.dtype, device=points.device)
    start = torch.tensor(origin, dtype=points.dtype, device=points.device)
    scaled = (points - start) * (2.0 / spacing / last) - 1.0
    grid = scaled.flip(-1)[:, :, None, None]
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)[..., 0, 0]


def node_points(device: torch.device | str = "cpu") -> torch.Tensor:
    """(X*Y*Z, 3) float32 MNI mm of every node, C order."""
    axes = [torch.tensor(axis, dtype=torch.float32, device=device) for axis in node_axes()]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def sample_nodes(field: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(B, P, 3) values of a node field (B, 3, X, Y, Z) at points (B, P, 3) MNI mm."""
    origin = tuple(float(axis[0]) for axis in node_axes())
    return sample(field, points, origin, NODE_SPACING).transpose(1, 2)


def exponentiate(velocity: torch.Tensor) -> torch.Tensor:
    """Displacement (B, 3, X, Y, Z), mm, of the flow of a stationary velocity at time 1 (scaling and squaring)."""
    nodes = node_points(velocity.device)[None]
    displacement = velocity / 2.0**SQUARINGS
    for _ in range(SQUARINGS):
        points = nodes + displacement.flatten(2).transpose(1, 2)
        displacement = displacement + sample_nodes(displacement, points).transpose(1, 2).reshape(velocity.shape)
    return displacement


def jacobian_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """(B, X-1, Y-1, Z-1) determinant of the deformation's Jacobian in each cell of nodes, by averaged differences."""
    rows = []
    for axis in range(3):
        step = torch.diff(displacement, dim=2 + axis) / NODE_SPACING
        for other in range(3):
            if other != axis:
                n = step.shape[2 + other]
                step = (step.narrow(2 + other, 0, n - 1) + step.narrow(2 + other, 1, n - 1)) / 2
        rows.append(step)
    matrix = torch.stack(rows, dim=-1).movedim(1, -2) + torch.eye(3, device=displacement.device)
    return torch.linalg.det(matrix)
