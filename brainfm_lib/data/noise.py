"""Noise that is a pure function of seed and place, equal on every device."""

from __future__ import annotations

import torch


def _hash(x: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 that scatters its bits (Wellons' lowbias32); the arithmetic wraps on every device."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


def white_noise(seeds: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, P) float32 nearly Gaussian noise of unit variance, a pure function of (seed, index), equal on any device.

    The sum of four 16-bit integers of a hash: exact in integers, so no rounding depends on batch, order or device.

    Args:
        seeds: (B,) int32.
        index: (P,) int32, e.g. voxel numbers.
    """
    first = _hash(_hash(seeds)[:, None] ^ _hash(index)[None])
    second = _hash(first + 0x3C6EF372)
    total = (first & 0xFFFF) + ((first >> 16) & 0xFFFF) + (second & 0xFFFF) + ((second >> 16) & 0xFFFF)
    return (total - 131070).float() * ((3.0**0.5) / 65536.0)
