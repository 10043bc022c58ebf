"""Augmentation of whole batches on their device, and the z-score that comes last."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from brainfm_lib.data.noise import white_noise
from brainfm_lib.device import send
from brainfm_lib.errors import InputError

CACHED = 2**20  # voxels that a CPU's cache holds: so many are worked on at once
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
    out = volumes.to(torch.float32, copy=True)
    if out.device.type != "cpu":
        return _augmented(out, draws, config)
    at_once = max(CACHED // out[0].numel(), 1)
    for i, part in enumerate(out.split(at_once)):
        made = _augmented(part, draws[:, i * at_once : (i + 1) * at_once], config)
        if made is not part:
            part.copy_(made)
    return out


def _augmented(volumes: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """As `augment`; what was given may be written over."""
    signed = (2 * draws[2:7] - 1).float()
    space = draws[0]
    inverse = _inverse_affine(signed[:3] * math.radians(config.max_angle), 1 + config.max_scale * signed[3])
    volumes = _where(space < config.affine, _resampled, volumes, inverse)
    flip = (space >= config.affine) & (space < config.affine + config.flip)
    volumes = _where(flip, lambda part: part.flip(2), volumes)
    if config.orientation > 0:
        if len(set(volumes.shape[2:])) > 1:
            raise InputError(f"augment.orientation needs a cubic grid, not {tuple(volumes.shape[2:])}: set it to 0.")
        turn = (3 * draws[9] / config.orientation).floor()
        volumes = _where(turn == 1, lambda part: part.permute(0, 1, 3, 4, 2).clone(), volumes)
        volumes = _where(turn == 2, lambda part: part.permute(0, 1, 4, 2, 3).clone(), volumes)

    value, foreground = draws[1], volumes > 0
    gamma, noisy, blurred = config.gamma, config.gamma + config.noise, config.gamma + config.noise + config.blur
    # the background, where a logarithm is slow, is lifted here and is 0 again at the end
    exponent = (1 + config.max_gamma * signed[4]).view(-1, 1, 1, 1, 1)
    volumes = _where(
        value < gamma, lambda part, power: part.clamp_min_(FLOOR).log_().mul_(power).exp_(), volumes, exponent
    )
    noise = (value >= gamma) & (value < noisy)
    seeds = (draws[8] * 2**52).long()
    if volumes.device.type == "cpu":
        for row in noise.nonzero()[:, 0].tolist():  # to each from a generator of its own
            generator = torch.Generator().manual_seed(int(seeds[row]))
            volumes[row] += torch.empty_like(volumes[row]).normal_(0, config.noise_std, generator=generator)
    else:
        volumes = _where(noise, lambda part, seed: _noisy(part, seed, config.noise_std), volumes, seeds % 2**31)
    sigma = (config.max_blur * draws[7].clamp_min(0.05)).float()
    volumes = _where((value >= noisy) & (value < blurred), _blurred, volumes, sigma)
    touched = (space < config.affine) | (value < blurred)
    return volumes.clamp_(FLOOR, 1).mul_(foreground) if bool(touched.any()) else volumes


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
    if len(rows) == len(volumes):
        return change(volumes, *(send(argument, volumes.device) for argument in arguments))
    here = [send(argument[rows], volumes.device) for argument in arguments]
    there = send(rows, volumes.device)
    return volumes.index_copy(0, there, change(volumes.index_select(0, there), *here))


def _inverse_affine(angles: Tensor, scale: Tensor) -> Tensor:
    """(B, 3, 3) maps from output to input places, both (d, h, w) from the centre; angles (3, B), scale (B,)."""
    cos, sin = angles.cos(), angles.sin()
    one, zero = torch.ones_like(scale), torch.zeros_like(scale)
    (ca, cb, cc), (sa, sb, sc) = cos, sin
    about_d = torch.stack([one, zero, zero, zero, cc, sc, zero, -sc, cc], 1).view(-1, 3, 3)
    about_h = torch.stack([cb, zero, -sb, zero, one, zero, sb, zero, cb], 1).view(-1, 3, 3)
    about_w = torch.stack([ca, sa, zero, -sa, ca, zero, zero, zero, one], 1).view(-1, 3, 3)
    return about_w @ about_h @ about_d / scale.view(-1, 1, 1)


def _resampled(volumes: Tensor, inverse: Tensor) -> Tensor:
    """Volumes at rotated and scaled places; angles hold in voxels, on grids that are not cubic too.

    In two passes of two-dimensional sampling, which is several times as fast as three-dimensional: first within the
    input's slices d, at the places where each output line meets them, then along d.
    """
    batch, _, depth, height, width = volumes.shape
    d, h, w = (torch.arange(n, device=volumes.device) - (n - 1) / 2 for n in (depth, height, width))
    m = inverse[:, :, :, None, None, None]
    slices = d.view(-1, 1, 1)
    lines_h, lines_w = h.view(1, -1, 1), w.view(1, 1, -1)
    # On the output line (h, w), the input's slice d is met at the output's place (d - m01 h - m02 w) / m00.
    slope = m[:, 1:, 0] / m[:, :1, 0]
    of_h, of_w = (m[:, 1:, axis] - slope * m[:, :1, axis] for axis in (1, 2))
    grid = volumes.new_empty(batch, depth, height, width, 2)
    for place, (row, extent) in enumerate(((1, width), (0, height))):
        scaled = slope[:, row] * slices + of_h[:, row] * lines_h
        torch.add(scaled * (2 / extent), of_w[:, row] * lines_w * (2 / extent), out=grid[..., place])
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
    torch.add(along, m[:, 0, 2] * lines_w * (2 / depth), out=grid[..., 1])
    moved = F.grid_sample(
        within.transpose(1, 2).reshape(batch * height, 1, depth, width),
        grid.view(batch * height, depth, width, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    ).view(batch, 1, height, depth, width)
    moved = moved.transpose(2, 3)
    return moved * (moved > FLOOR / 2)


def _noisy(volumes: Tensor, seeds: Tensor, deviation: float) -> Tensor:
    """Noise in all volumes at once; seeds (B,)."""
    index = torch.arange(volumes[0].numel(), dtype=torch.int32, device=volumes.device)
    return volumes + deviation * white_noise(seeds.int(), index).view(volumes.shape)


def _blurred(volumes: Tensor, sigma: Tensor) -> Tensor:
    """Separable three-tap Gaussian blur, 0 outside; sigma (B,) voxels."""
    side = torch.exp(-0.5 / sigma**2).view(-1, 1, 1, 1, 1)
    centre = 1 / (1 + 2 * side)
    for axis in (2, 3, 4):
        n = volumes.shape[axis] - 1
        blurred = volumes * centre
        blurred.narrow(axis, 1, n).addcmul_(volumes.narrow(axis, 0, n), side * centre)
        blurred.narrow(axis, 0, n).addcmul_(volumes.narrow(axis, 1, n), side * centre)
        volumes = blurred
    return volumes
