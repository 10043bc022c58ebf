"""Augmentation of whole batches on their device, and the z-score that comes last."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from brainfm_lib.device import send
from brainfm_lib.errors import InputError

FLOOR = 1e-3  # smallest stored foreground value: foreground is `volume > 0` before and after


@dataclass(frozen=True)
class AugmentConfig:
    """Of each volume: one of {affine, left-right flip, nothing}, an orientation, one of {gamma, noise, blur, nothing}.

    Args:
        affine: Probability of a small rotation and scaling.
        flip: Probability of a left-right flip.
        orientation: Probability that axial, sagittal or coronal (drawn evenly) becomes the first plane: the axes change
            places. The grid must be cubic.
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
    orientation: float = 0.0
    gamma: float = 0.25
    noise: float = 0.25
    blur: float = 0.25
    max_angle: float = 10.0
    max_scale: float = 0.1
    max_gamma: float = 0.1
    noise_std: float = 0.01
    max_blur: float = 0.8

    def __post_init__(self) -> None:
        for names in (("affine", "flip"), ("orientation",), ("gamma", "noise", "blur")):
            shares = [getattr(self, name) for name in names]
            if min(shares) < 0 or sum(shares) > 1 + 1e-9:
                raise ValueError(f"the probabilities {' + '.join(names)} must be at least 0 and sum to at most 1")


def draw_augmentation(batch: int, generator: torch.Generator) -> Tensor:
    """Draw what `augment` does to each volume of a batch, on the host: (10, B) float64, uniform in [0, 1).

    So the host knows which volumes an operation is for, without waiting for a device, and the draws do not depend on
    the device nor on how the batch is split over processes: ``draws[:, part]`` belongs to ``volumes[part]``.
    """
    return torch.rand(10, batch, generator=generator, dtype=torch.float64)


def augment(volumes: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Augment a batch.

    Args:
        volumes: (B, 1, D, H, W) float in [0, 1], background 0; axis D runs left to right.
        draws: (10, B) from `draw_augmentation`, on the host.
        config: Probabilities and strengths.

    Returns:
        (B, 1, D, H, W) float32, background 0, foreground in [0.001, 1].
    """
    signed = (2 * draws[2:7] - 1).float()
    volumes = volumes.float()

    space = draws[0]
    inverse = _inverse_affine(signed[:3] * math.radians(config.max_angle), 1 + config.max_scale * signed[3])
    volumes = _where(space < config.affine, _resampled, volumes, inverse)
    flip = (space >= config.affine) & (space < config.affine + config.flip)
    volumes = _where(flip, lambda part: part.flip(2), volumes)
    if config.orientation > 0:
        if len(set(volumes.shape[2:])) > 1:
            raise InputError(f"augment.orientation needs a cubic grid, not {tuple(volumes.shape[2:])}: set it to 0.")
        turn = (3 * draws[9] / config.orientation).floor()
        volumes = _where(turn == 1, lambda part: part.permute(0, 1, 3, 4, 2), volumes)
        volumes = _where(turn == 2, lambda part: part.permute(0, 1, 4, 2, 3), volumes)

    value, foreground = draws[1], volumes > 0
    gamma, noisy, blurred = config.gamma, config.gamma + config.noise, config.gamma + config.noise + config.blur
    exponent = (1 + config.max_gamma * signed[4]).view(-1, 1, 1, 1, 1)
    volumes = _where(value < gamma, lambda part, power: part**power, volumes, exponent)
    noise = (value >= gamma) & (value < noisy)
    seeds = (draws[8] * 2**52).long()
    if bool(noise.any()):
        volumes = _noisy(volumes, noise, seeds, config.noise_std)
    sigma = (config.max_blur * draws[7].clamp_min(0.05)).float()
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
    """Apply `change` to the volumes that `chosen` (B,), on the host, picks; the device gets indices and arguments."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return volumes
    here = [send(argument[rows], volumes.device) for argument in arguments]
    there = send(rows, volumes.device)
    return volumes.index_copy(0, there, change(volumes.index_select(0, there), *here))


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
    theta = torch.stack(
        [torch.stack([inverse[:, i, j] * (extent[j] / extent[i]) for j in range(3)], 1) for i in range(3)], 1
    )
    # The grid is a sum over axes: broadcasting it takes a third of the matrix product in `affine_grid` or less.
    w, h, d = (
        theta[:, None, :, axis] * ((2 * torch.arange(n, device=volumes.device) + 1) / n - 1)[None, :, None]
        for axis, n in enumerate(extent)
    )
    grid = d[:, :, None, None] + (h[:, :, None] + w[:, None])[:, None]
    moved = F.grid_sample(volumes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved * (moved > FLOOR / 2)


def _noisy(volumes: Tensor, chosen: Tensor, seeds: Tensor, std: float) -> Tensor:
    """Add noise to the chosen volumes, to each from a generator of its own."""
    device = volumes.device
    volumes = volumes.clone()
    for row in chosen.nonzero()[:, 0].tolist():
        generator = torch.Generator(device=device).manual_seed(int(seeds[row]))
        volumes[row] += std * torch.randn(volumes.shape[1:], generator=generator, device=device)
    return volumes


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
