"""Rotating and scaling volumes, by tensor operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def inverse_affine(angles: Tensor, scale: Tensor) -> Tensor:
    """(B, 3, 3) maps from output to input places, both (d, h, w) from the centre; angles (3, B), scale (B,)."""
    cos, sin = angles.cos(), angles.sin()
    one, zero = torch.ones_like(scale), torch.zeros_like(scale)
    (ca, cb, cc), (sa, sb, sc) = cos, sin
    about_d = torch.stack([one, zero, zero, zero, cc, sc, zero, -sc, cc], 1).view(-1, 3, 3)
    about_h = torch.stack([cb, zero, -sb, zero, one, zero, sb, zero, cb], 1).view(-1, 3, 3)
    about_w = torch.stack([ca, sa, zero, -sa, ca, zero, zero, zero, one], 1).view(-1, 3, 3)
    return about_w @ about_h @ about_d / scale.view(-1, 1, 1)


def resampled(volumes: Tensor, inverse: Tensor) -> Tensor:
    """Trilinear samples at rotated and scaled places, 0 outside; angles hold in voxels, on grids that are no cubes too.

    Args:
        volumes: (B, 1, D, H, W) float32.
        inverse: (B, 3, 3) from `inverse_affine`.
    """
    shape = volumes.shape[2:]
    d, h, w = (torch.arange(n, device=volumes.device) - (n - 1) / 2 for n in shape)
    grid = volumes.new_empty(len(volumes), *shape, 3)
    m = inverse[:, :, :, None, None, None]
    for axis, size in enumerate(shape):  # a grid's places are (w, h, d), and 2 is the length of an axis
        plane = m[:, axis, 0] * d.view(-1, 1, 1) + m[:, axis, 1] * h.view(-1, 1)
        torch.add(plane * (2 / size), m[:, axis, 2] * w * (2 / size), out=grid[..., 2 - axis])
    return F.grid_sample(volumes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
