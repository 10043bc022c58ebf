"""Augmentation of whole batches on their device, and the z-score that comes last."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from brainfm_lib.data.noise import white_noise
from brainfm_lib.data.resampling import inverse_affine, resampled
from brainfm_lib.data.storage import FLOOR
from brainfm_lib.device import send
from brainfm_lib.errors import InputError


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


def augment(volumes: Tensor, draws: Tensor, config: AugmentConfig, *, in_place: bool = False) -> Tensor:
    """Augment a batch.

    Args:
        volumes: (B, 1, D, H, W) float in [0, 1], background 0; axis D runs left to right.
        draws: (10, B) from `draw_augmentation`, on the host.
        config: Probabilities and strengths.
        in_place: `volumes` may be written over, which saves a copy on a CPU; what is returned counts.

    Returns:
        (B, 1, D, H, W) float32, background 0, foreground in [0.001, 1].
    """
    out = volumes.to(torch.float32, copy=not in_place)
    if config.orientation > 0 and len(set(out.shape[2:])) > 1:
        raise InputError(f"augment.orientation needs a cubic grid, not {tuple(out.shape[2:])}: set it to 0.")
    changes = Changes.drawn(draws, config)
    if out.device.type == "cpu" and (compiled := _compiled()):
        out = out.contiguous()
        compiled.change_all(out[:, 0].numpy(), **{name: part.numpy() for name, part in vars(changes).items()})
        return out
    return changed(out, changes)


@dataclass(frozen=True)
class Changes:
    """What is done to each volume of a batch: arrays with a row a volume, on the host.

    Args:
        space: (B,) 0 nothing, 1 moved by `inverse`, 2 flipped left to right.
        inverse: (B, 3, 3) float32, see `inverse_affine`.
        turn: (B,) places by which the axes change cyclically: 0, 1 or 2.
        value: (B,) 0 nothing, 1 a gamma curve, 2 noise, 3 blur.
        amount: (B,) float32, exponent of the curve; deviation of the noise; deviation of the blur, voxels.
        seed: (B,) int32, of the noise.
    """

    space: Tensor
    inverse: Tensor
    turn: Tensor
    value: Tensor
    amount: Tensor
    seed: Tensor

    @classmethod
    def drawn(cls, draws: Tensor, config: AugmentConfig) -> Changes:
        """Draws (10, B) of `draw_augmentation` as what they mean."""
        signed = (2 * draws[2:7] - 1).float()
        space = _picked(draws[0], config.affine, config.flip)
        value = _picked(draws[1], config.gamma, config.noise, config.blur)
        exponent = 1 + config.max_gamma * signed[4]
        blur = (config.max_blur * draws[7].clamp_min(0.05)).float()
        turn = (3 * draws[9] / config.orientation).floor() if config.orientation > 0 else torch.zeros_like(draws[9])
        return cls(
            space=space,
            inverse=inverse_affine(signed[:3] * math.radians(config.max_angle), 1 + config.max_scale * signed[3]),
            turn=torch.where(turn < 3, turn, 0).long(),
            value=value,
            amount=torch.stack([exponent, exponent, torch.full_like(exponent, config.noise_std), blur])
            .gather(0, value[None])
            .squeeze(0),
            seed=(draws[8] * 2**31).int(),
        )


def _picked(draw: Tensor, *shares: float) -> Tensor:
    """Which of several exclusive things a uniform draw picks, counted from 1; 0 where none."""
    ends = torch.tensor(shares, dtype=draw.dtype).cumsum(0)
    picked = torch.bucketize(draw, ends, right=True) + 1
    return torch.where(picked > len(shares), 0, picked)


@lru_cache(maxsize=1)
def _compiled() -> ModuleType | None:
    """The loops for a CPU, where what compiles them is installed and fits."""
    try:
        from brainfm_lib.data import kernels
    except ImportError as error:
        warnings.warn(f"Augmentation on the CPU is several times slower than it could be: {error}.", stacklevel=2)
        return None
    return kernels


def changed(volumes: Tensor, changes: Changes) -> Tensor:
    """A batch (B, 1, D, H, W), float32, as `changes` say, in tensor operations."""
    volumes = _where(changes.space == 1, _moved, volumes, changes.inverse)
    volumes = _where(changes.space == 2, lambda part: part.flip(2), volumes)
    volumes = _where(changes.turn == 1, lambda part: part.permute(0, 1, 3, 4, 2).contiguous(), volumes)
    volumes = _where(changes.turn == 2, lambda part: part.permute(0, 1, 4, 2, 3).contiguous(), volumes)
    amount = changes.amount.view(-1, 1, 1, 1, 1)
    volumes = _where(changes.value == 1, _curved, volumes, amount)
    volumes = _where(changes.value == 2, _noisy, volumes, amount, changes.seed)
    return _where(changes.value == 3, _blurred, volumes, amount)


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


def _foreground(before: Tensor, after: Tensor) -> Tensor:
    """What became of the foreground, in [0.001, 1]; the background is 0."""
    return torch.where(before > 0, after.clamp(FLOOR, 1), 0)


def _moved(volumes: Tensor, inverse: Tensor) -> Tensor:
    """Volumes at rotated and scaled places; at the foreground's edge, what is above half of its least stays of it."""
    moved = resampled(volumes, inverse)
    return torch.where(moved > FLOOR / 2, moved.clamp(FLOOR, 1), 0)


def _curved(volumes: Tensor, exponents: Tensor) -> Tensor:
    """Gamma curves; exponents (B, 1, 1, 1, 1). The background, where a logarithm is slow, is lifted before."""
    return _foreground(volumes, volumes.clamp_min(FLOOR).log_().mul_(exponents).exp_())


def _noisy(volumes: Tensor, deviation: Tensor, seeds: Tensor) -> Tensor:
    """Noise to each volume from its seed (B,); deviation (B, 1, 1, 1, 1)."""
    index = torch.arange(volumes[0].numel(), dtype=torch.int32, device=volumes.device)
    return _foreground(volumes, volumes + deviation * white_noise(seeds, index).view(volumes.shape))


def _blurred(volumes: Tensor, sigma: Tensor) -> Tensor:
    """Separable three-tap Gaussian blur, 0 outside; sigma (B, 1, 1, 1, 1) voxels."""
    side = torch.exp(-0.5 / sigma**2)
    centre, before = 1 / (1 + 2 * side), volumes
    for axis in (2, 3, 4):
        n = volumes.shape[axis] - 1
        blurred = volumes * centre
        blurred.narrow(axis, 1, n).addcmul_(volumes.narrow(axis, 0, n), side * centre)
        blurred.narrow(axis, 0, n).addcmul_(volumes.narrow(axis, 1, n), side * centre)
        volumes = blurred
    return _foreground(before, volumes)
