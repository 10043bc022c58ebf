"""Augmentation of whole batches on their device, and the z-score that comes last."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-3  # smallest stored foreground value: foreground is `volume > 0` before and after


@dataclass(frozen=True)
class AugmentConfig:
    """Of each volume: one of {affine, left-right flip, nothing}, then one of {gamma, noise, blur, nothing}.

    Args:
        affine: Probability of a small rotation and scaling.
        flip: Probability of a left-right flip.
        gamma: Probability of a gamma curve.
        noise: Probability of Gaussian noise.
        blur: Probability of a Gaussian blur.
        max_angle: Rotation about each axis is uniform within ± this, degrees.
        max_scale: Scale is uniform within 1 ± this.
        max_gamma: The exponent is uniform within 1 ± this.
        noise_std: Standard deviation of the noise, on the [0, 1] scale.
        max_blur: Standard deviation of the blur is uniform up to this, voxels.
    """

    affine: float = 1 / 3
    flip: float = 1 / 3
    gamma: float = 0.25
    noise: float = 0.25
    blur: float = 0.25
    max_angle: float = 10.0
    max_scale: float = 0.1
    max_gamma: float = 0.1
    noise_std: float = 0.01
    max_blur: float = 0.8

    def __post_init__(self) -> None:
        for names in (("affine", "flip"), ("gamma", "noise", "blur")):
            shares = [getattr(self, name) for name in names]
            if min(shares) < 0 or sum(shares) > 1 + 1e-9:
                raise ValueError(f"the probabilities {' + '.join(names)} must be at least 0 and sum to at most 1")


def augment(volumes: Tensor, generator: torch.Generator, config: AugmentConfig) -> Tensor:
    """Augment a batch; all draws come from the generator, so the same generator state gives the same batch.

    Args:
        volumes: (B, 1, D, H, W) float in [0, 1], background 0; axis D runs left to right.
        generator: On the volumes' device (then nothing waits for the device) or on the CPU.
        config: Probabilities and strengths.

    Returns:
        (B, 1, D, H, W) float32, background 0, foreground in [0.001, 1].
    """
    batch, device = len(volumes), volumes.device
    draws = torch.rand(8, batch, generator=generator, device=generator.device).to(device)
    signed = 2 * draws[2:7] - 1
    volumes = volumes.float()

    space = draws[0]
    inverse = _inverse_affine(signed[:3] * math.radians(config.max_angle), 1 + config.max_scale * signed[3])
    volumes = _where(space < config.affine, _resampled, volumes, inverse)
    flip = (space >= config.affine) & (space < config.affine + config.flip)
    volumes = _where(flip, lambda part: part.flip(2), volumes)

    value, foreground = draws[1], volumes > 0
    gamma, noisy, blurred = config.gamma, config.gamma + config.noise, config.gamma + config.noise + config.blur
    exponent = (1 + config.max_gamma * signed[4]).view(-1, 1, 1, 1, 1)
    volumes = _where(value < gamma, lambda part, power: part**power, volumes, exponent)
    noise = (value >= gamma) & (value < noisy)
    volumes = _where(noise, lambda part: _noisy(part, generator, config.noise_std), volumes)
    sigma = config.max_blur * draws[7].clamp_min(0.05)
    volumes = _where((value >= noisy) & (value < blurred), _blurred, volumes, sigma)
    return torch.where(foreground, volumes.clamp(FLOOR, 1), 0)


def zscore(volumes: Tensor) -> Tensor:
    """Z-score each volume over all its voxels; a constant volume stays finite, next to 0.

    Args:
        volumes: (B, ..., D, H, W).

    Returns:
        float32, same shape: (v - mean) / (std + 1e-6), std unbiased.
    """
    flat = volumes.float().flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    std = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / max(flat.shape[1] - 1, 1) ** 0.5
    return (centred / (std + 1e-6)).view(volumes.shape)


def _where(chosen: Tensor, change: Callable[..., Tensor], volumes: Tensor, *arguments: Tensor) -> Tensor:
    """Apply `change` to the chosen volumes of the batch.

    On a CPU only those are worked on; elsewhere all are, because picking them would make the host wait.
    """
    if volumes.device.type != "cpu":
        return torch.where(chosen.view(-1, 1, 1, 1, 1), change(volumes, *arguments), volumes)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return volumes
    return volumes.index_copy(0, rows, change(volumes[rows], *(argument[rows] for argument in arguments)))


def _inverse_affine(angles: Tensor, scale: Tensor) -> Tensor:
    """(B, 3, 3) maps from output to input places, axes in `grid_sample` order (W, H, D); angles (3, B), scale (B,)."""
    cos, sin = angles.cos(), angles.sin()
    one, zero = torch.ones_like(scale), torch.zeros_like(scale)
    (ca, cb, cc), (sa, sb, sc) = cos, sin
    about_w = torch.stack([one, zero, zero, zero, ca, -sa, zero, sa, ca], 1).view(-1, 3, 3)
    about_h = torch.stack([cb, zero, sb, zero, one, zero, -sb, zero, cb], 1).view(-1, 3, 3)
    about_d = torch.stack([cc, -sc, zero, sc, cc, zero, zero, zero, one], 1).view(-1, 3, 3)
    return about_w @ about_h @ about_d / scale.view(-1, 1, 1)


def _resampled(volumes: Tensor, inverse: Tensor) -> Tensor:
    """Volumes at rotated and scaled places; angles hold in voxels, on grids that are not cubic too."""
    extent = volumes.shape[:1:-1]  # (W, H, D)
    sizes = torch.tensor(extent, dtype=torch.float32, device=volumes.device)
    theta = inverse * sizes[None, None, :] / sizes[None, :, None]
    # The grid is a sum over axes: broadcasting it takes a third of the matrix product in `affine_grid` or less.
    w, h, d = (
        theta[:, None, :, axis] * ((2 * torch.arange(n, device=volumes.device) + 1) / n - 1)[None, :, None]
        for axis, n in enumerate(extent)
    )
    grid = d[:, :, None, None] + (h[:, :, None] + w[:, None])[:, None]
    moved = F.grid_sample(volumes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved * (moved > FLOOR / 2)


def _noisy(volumes: Tensor, generator: torch.Generator, std: float) -> Tensor:
    noise = torch.randn(volumes.shape, generator=generator, device=generator.device)
    return volumes + std * noise.to(volumes.device)


def _blurred(volumes: Tensor, sigma: Tensor) -> Tensor:
    """Separable three-tap Gaussian blur; sigma (B,) voxels."""
    side = torch.exp(-0.5 / sigma**2)
    kernel = torch.stack([side, torch.ones_like(side), side], 1) / (1 + 2 * side)[:, None]
    blurred = volumes.transpose(0, 1)  # one group a volume
    for axis in (2, 3, 4):
        shape, padding = [len(kernel), 1, 1, 1, 1], [0, 0, 0]
        shape[axis], padding[axis - 2] = 3, 1
        blurred = F.conv3d(blurred, kernel.view(shape), padding=padding, groups=len(kernel))
    return blurred.transpose(0, 1)
