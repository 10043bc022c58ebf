"""A tumour: where its compartments lie, as smooth functions of the place and of the latent severity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr

from brainfm_lib.data.phantom.deform import NODES, node_points

WAVES = 6
RADIUS = (18.0, 28.0)  # mm: 24 to 92 ml
OEDEMA = 20.0  # mm that it spreads beyond the border at the highest grade


@dataclass(frozen=True)
class Lesion:
    """One tumour in template millimetres.

    Args:
        centre: (3,) MNI mm, in deep white matter.
        radius: Of the solid part, mm; it says nothing about the grade.
        grade: In (0, 1), rises with the latent severity: the margin softens, the shape grows irregular, the core
            dies, a rim enhances, oedema spreads, texture coarsens.
        directions: (WAVES, 3) radians per unit of radius: waves that make the outline irregular.
        phases: (WAVES,) radians.
    """

    centre: np.ndarray
    radius: float
    grade: float
    directions: np.ndarray
    phases: np.ndarray


def draw_lesion(rng: np.random.Generator, places: np.ndarray, severity: float, effect: float) -> Lesion:
    """A tumour of this latent severity at one of places (N, 3); `effect` scales how fast its signs grow."""
    grade = float(ndtr(effect * (severity - 1.5) / 1.5))
    directions = rng.standard_normal((WAVES, 3)) * 2.2
    return Lesion(
        places[rng.integers(len(places))],
        float(rng.uniform(*RADIUS)),
        grade,
        directions.astype(np.float32),
        rng.uniform(0, 2 * np.pi, WAVES).astype(np.float32),
    )


def mass_effect(lesion: Lesion) -> np.ndarray:
    """(3, X, Y, Z) velocity, mm, on the deformation's nodes: the tumour pushes its surroundings outwards."""
    offset = (node_points() - torch.from_numpy(lesion.centre)).numpy() / np.float32(lesion.radius)
    pull = -np.float32(0.22 * lesion.radius) * offset * np.exp(-0.5 * (offset**2).sum(1, keepdims=True))
    return pull.T.reshape(3, *NODES)


def compartments(lesion: Lesion, points: torch.Tensor, texture: torch.Tensor, softness: float) -> torch.Tensor:
    """(4, P) shares of solid tumour, necrosis, rim and oedema at template points (P, 3) mm; the rest is healthy.

    Args:
        lesion: The tumour.
        points: MNI mm.
        texture: (P,) noise of unit variance that roughens the inside.
        softness: Width that the sampling grid gives every border, mm.
    """
    device, g = points.device, lesion.grade
    offset = (points - torch.from_numpy(lesion.centre).to(device)) / lesion.radius
    angle = offset @ torch.from_numpy(lesion.directions).to(device).T + torch.from_numpy(lesion.phases).to(device)
    outline = torch.cos(angle).sum(1) * (0.04 + 0.08 * g)
    depth = (1.0 + outline - offset.square().sum(1).sqrt()) * lesion.radius  # mm inside the border

    def inside(mm: torch.Tensor, width: float) -> torch.Tensor:
        return torch.sigmoid(mm * (3.0 / (width + softness)))

    solid = inside(depth, 2.0 + 4.0 * g)
    core = inside(depth - (1.15 - 0.85 * g) * lesion.radius + 1.5 * g * texture, 3.0) * solid
    rim = solid * (1 - core) * inside(depth - 1.0, 2.0) * g
    oedema = (1 - solid) * inside(depth + 2.0 + OEDEMA * g, 6.0)
    return torch.stack([solid - core - rim, core, rim, oedema])
