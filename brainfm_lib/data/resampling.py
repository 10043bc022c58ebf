"""Rotating and scaling volumes in two passes of two-dimensional sampling, which is faster than three-dimensional."""

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
    """Volumes at rotated and scaled places, 0 outside; angles hold in voxels, on grids that are not cubic too.

    First within the input's slices d, at the places where each output line meets them, then along d.

    Args:
        volumes: (B, 1, D, H, W) float32.
        inverse: (B, 3, 3) from `inverse_affine`.
    """
    batch, _, depth, height, width = volumes.shape
    d, h, w = (torch.arange(n, device=volumes.device) - (n - 1) / 2 for n in (depth, height, width))
    slices, rows = d.view(-1, 1, 1), h.view(1, -1, 1)
    m = inverse[:, :, :, None, None, None]
    # On the output line (h, w), the input's slice d is met at the output's place (d - m01 h - m02 w) / m00.
    of_d = m[:, 1:, 0] / m[:, :1, 0]
    of_h, of_w = (m[:, 1:, axis] - of_d * m[:, :1, axis] for axis in (1, 2))
    grid = volumes.new_empty(batch, depth, height, width, 2)
    for place, (row, extent) in enumerate(((1, width), (0, height))):
        scaled = of_d[:, row] * slices + of_h[:, row] * rows
        torch.add(scaled * (2 / extent), of_w[:, row] * w * (2 / extent), out=grid[..., place])
    within = F.grid_sample(
        volumes.view(batch * depth, 1, height, width),
        grid.view(batch * depth, height, width, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    ).view(batch, depth, height, width)
    grid = volumes.new_empty(batch, height, depth, width, 2)
    grid[..., 0] = w * (2 / width)
    along = (m[:, 0, 0] * d.view(1, -1, 1) + m[:, 0, 1] * h.view(-1, 1, 1)) * (2 / depth)
    torch.add(along, m[:, 0, 2] * w * (2 / depth), out=grid[..., 1])
    moved = F.grid_sample(
        within.transpose(1, 2).reshape(batch * height, 1, depth, width),
        grid.view(batch * height, depth, width, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return moved.view(batch, 1, height, depth, width).transpose(2, 3).contiguous()
