"""Augmentation of whole batches on the device: one resampling a volume, draws from one generator, z-score last."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to a volume, as in the paper: one spatial change or none, then one intensity change or none.

    Attributes:
        spatial: Probability of affine (half of it) or left-right flip (the other half).
        intensity: Probability of gamma, noise or blur (a third each).
        degrees: Largest rotation about each axis.
        scale: Largest relative change of size.
        gamma: Largest change of the exponent.
        noise: Standard deviation, in units of the [0, 1] range.
    """

    spatial: float = 2 / 3
    intensity: float = 3 / 4
    degrees: float = 10.0
    scale: float = 0.1
    gamma: float = 0.1
    noise: float = 0.01


def augment(volumes: Tensor, generator: torch.Generator, config: AugmentConfig) -> Tensor:
    """Change each volume at random.

    Args:
        volumes: (B, 1, D, H, W) float32, background 0, foreground in (0, 1], axes right, anterior, superior.
        generator: On the volumes' device; every draw comes from it.
        config: What may happen.

    Returns:
        The same shape and range; the background stays exactly 0.
    """
    batch, device = len(volumes), volumes.device

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(batch, *shape, generator=generator, device=device) * (high - low) + low

    which = uniform()
    affine, flip = which < config.spatial / 2, (which >= config.spatial / 2) & (which < config.spatial)
    angles = uniform(3, low=-1, high=1) * math.radians(config.degrees) * affine[:, None]
    scales = 1 + uniform(low=-1, high=1) * config.scale * affine
    moved = _resample(volumes, angles, scales)
    volumes = torch.where(
        affine[:, None, None, None, None], moved, torch.where(flip[:, None, None, None, None], volumes.flip(2), volumes)
    )

    kind = uniform() / max(config.intensity, 1e-12) * 3
    exponent = 1 + uniform(low=-1, high=1) * config.gamma
    noise = torch.randn(volumes.shape, generator=generator, device=device) * config.noise
    cell = (slice(None), None, None, None, None)
    foreground = volumes > 0
    changed = torch.where((kind < 1)[cell], volumes.clamp_min(1e-6).pow(exponent[cell]), volumes)
    changed = torch.where(((kind >= 1) & (kind < 2))[cell], changed + noise, changed)
    changed = torch.where(((kind >= 2) & (kind < 3))[cell], _blur(volumes), changed)
    return torch.where(foreground, changed.clamp(1e-3, 1.0), 0.0)


def zscore(volumes: Tensor) -> Tensor:
    """Whole-volume z-score of (B, 1, D, H, W), float32; a constant volume becomes zero."""
    volumes = volumes.float()
    std, mean = torch.std_mean(volumes, dim=(1, 2, 3, 4), keepdim=True)
    return (volumes - mean) / (std + 1e-6)


def _resample(volumes: Tensor, angles: Tensor, scales: Tensor) -> Tensor:
    """Rotate about the three axes (angles (B, 3), radians) and scale (B,) about the centre, trilinearly."""
    cos, sin = angles.cos(), angles.sin()
    zero, one = torch.zeros_like(cos[:, 0]), torch.ones_like(cos[:, 0])

    def matrix(*rows: Tensor) -> Tensor:
        return torch.stack(rows, dim=1).view(-1, 3, 3)

    x = matrix(one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0])
    y = matrix(cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1])
    z = matrix(cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one)
    rotation = x @ y @ z / scales[:, None, None]
    extent = torch.tensor(volumes.shape[:-4:-1], device=volumes.device, dtype=rotation.dtype)  # W, H, D as grid_sample
    theta = rotation * extent[None, None, :] / extent[None, :, None]  # angles are those of voxels on any grid
    theta = torch.cat([theta, torch.zeros_like(theta[:, :, :1])], dim=2)
    grid = F.affine_grid(theta, list(volumes.shape), align_corners=False)
    moved = F.grid_sample(volumes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    inside = F.grid_sample((volumes > 0).to(volumes.dtype), grid, mode="nearest", align_corners=False)
    return moved * inside


def _blur(volumes: Tensor) -> Tensor:
    """Binomial blur (1, 2, 1) / 4 along each axis."""
    kernel = torch.tensor([0.25, 0.5, 0.25], device=volumes.device, dtype=volumes.dtype)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 3
        padding = [0, 0, 0]
        padding[axis] = 1
        volumes = F.conv3d(volumes, kernel.view(shape), padding=padding)
    return volumes
