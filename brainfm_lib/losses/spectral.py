"""Spectral-domain reconstruction loss, the auxiliary objective of SL-MAE (arXiv 2606.13315)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from brainfm_lib.losses.precision import widen

MODES = ("logmag", "magnitude", "complex", "focal")
BANDS = ("high", "low")


@dataclass(frozen=True)
class SpectralConfig:
    """Spectral loss and its schedule.

    Attributes:
        weight: λ at the end of the ramp. 0.01 every step is the authors' mean gradient weight.
        high_pass: ρ, share of the largest ‖f‖ (cycles/voxel) below which modes are left out.
        mode: ``logmag`` (the paper's), ``magnitude``, ``complex`` or ``focal``.
        band: ``high`` keeps ‖f‖ ≥ ρ max‖f‖, the paper's; ``low`` keeps the complement, for a control arm.
        kept_only: Take the mean over the kept modes instead of over all.
        ramp_start, ramp_end: Share of training at which the linear ramp of λ starts and ends.
        every: Evaluate at every n-th step only, scaled by 1/n (the authors': λ = 1, n = 10).
    """

    weight: float = 0.01
    high_pass: float = 0.3
    mode: str = "logmag"
    band: str = "high"
    kept_only: bool = False
    ramp_start: float = 0.007
    ramp_end: float = 0.036
    every: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"spectral mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.band not in BANDS:
            raise ValueError(f"spectral band must be one of {', '.join(BANDS)}, got {self.band!r}")
        if not 0.0 <= self.high_pass < 1.0 or self.weight < 0 or self.every < 1:
            raise ValueError("spectral: high_pass lies in [0, 1), weight is not negative, every is at least 1")

    def weight_at(self, step: int, steps: int) -> float:
        """Weight at `step` of `steps`: λ on its ramp over n, zero at steps where the loss is not evaluated."""
        if (step + 1) % self.every:  # the last of n steps, so that log points meet it
            return 0.0
        start, end = self.ramp_start * steps, self.ramp_end * steps
        ramp = 1.0 if step >= end else max(step - start, 0.0) / max(end - start, 1e-12)
        return self.weight * ramp / self.every


def standardise(volumes: Tensor) -> Tensor:
    """(v - mean) / (std + 1e-6) per volume (B, 1, D, H, W), std unbiased; finite gradient at a constant volume."""
    centred = volumes - volumes.mean(dim=(1, 2, 3, 4), keepdim=True)
    variance = centred.square().sum(dim=(1, 2, 3, 4), keepdim=True) / (volumes[0].numel() - 1)
    positive = variance > 0
    std = torch.where(positive, variance, 1.0).sqrt() * positive
    return centred / (std + 1e-6)


@lru_cache(maxsize=16)
def half_spectrum_weights(
    shape: tuple[int, int, int],
    high_pass: float,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    band: str = "high",
    kept_only: bool = False,
) -> Tensor:
    """Weight of each mode of ``rfftn`` in the mean over the full spectrum.

    Args:
        shape: (D, H, W) of the volumes.
        high_pass: ρ; modes with ‖f‖ / max‖f‖ < ρ get weight 0.
        device: Where the weights live.
        dtype: Their type.
        band: ``high``, or ``low`` for the complement.
        kept_only: Divide by the number of kept modes instead of all D·H·W.

    Returns:
        (D, H, W // 2 + 1): 0, or 1 at the self-conjugate planes of the last axis (0, and W/2 where W is even) and 2
        elsewhere, divided by the number of modes in the mean.

    Raises:
        ValueError: No mode is kept.
    """
    d, h, w = shape
    squared = (
        torch.fft.fftfreq(d, dtype=torch.float64)[:, None, None] ** 2
        + torch.fft.fftfreq(h, dtype=torch.float64)[None, :, None] ** 2
        + torch.fft.rfftfreq(w, dtype=torch.float64)[None, None, :] ** 2
    )
    radius = squared.sqrt()
    kept = (radius / radius.max() >= high_pass) == (band == "high")
    if not kept.any():
        raise ValueError(f"the {band} band at high_pass {high_pass} holds no mode of a volume {shape}")
    hermitian = torch.full((w // 2 + 1,), 2.0, dtype=torch.float64)
    hermitian[0] = 1.0
    if w % 2 == 0:
        hermitian[-1] = 1.0
    counts = kept * hermitian
    return (counts / (counts.sum() if kept_only else d * h * w)).to(dtype).to(device)


def spectral_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    high_pass: float = 0.3,
    mode: str = "logmag",
    band: str = "high",
    kept_only: bool = False,
) -> Tensor:
    """Distance between the high-pass spectra of two volumes, each z-scored first.

    Args:
        prediction: (B, 1, D, H, W), the mosaic: true voxels where visible, predicted ones where hidden.
        target: (B, 1, D, H, W).
        high_pass: ρ, see `SpectralConfig`.
        mode: ``logmag``: squared difference of log(1 + |H·F| + 1e-6), F unnormalised (the paper's; phase is not
            supervised). ``magnitude``: squared difference of |H·F|. ``complex``: |H·F(a) - H·F(b)|². ``focal``: the
            same times |H·F(a) - H·F(b)|, detached and scaled to at most 1 in each volume (focal frequency loss,
            arXiv 2012.12821, α = 1). The latter three use the orthonormal transform, so that ``complex`` at ρ = 0 is
            the mean squared error.
        band, kept_only: See `SpectralConfig`.

    Returns:
        Scalar, the mean over *all* modes (kept or not, unless `kept_only`) and the batch; at least float32 whatever
        autocast says.
    """
    if mode not in MODES:
        raise ValueError(f"spectral mode must be one of {', '.join(MODES)}, got {mode!r}")
    with torch.autocast(prediction.device.type, enabled=False):
        a, b = standardise(widen(prediction)), standardise(widen(target))
        norm = "backward" if mode == "logmag" else "ortho"
        fa, fb = (torch.fft.rfftn(v, dim=(-3, -2, -1), norm=norm) for v in (a, b))
        shape = (target.shape[-3], target.shape[-2], target.shape[-1])
        weights = half_spectrum_weights(shape, high_pass, fa.device, a.dtype, band=band, kept_only=kept_only)
        if mode == "logmag":
            error = (torch.log1p(fa.abs() + 1e-6) - torch.log1p(fb.abs() + 1e-6)).square()
        elif mode == "magnitude":
            error = (fa.abs() - fb.abs()).square()
        else:
            difference = fa - fb
            error = difference.real.square() + difference.imag.square()
            if mode == "focal":
                focus = error.detach().sqrt() * (weights > 0)
                error = error * (focus / focus.amax(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-30))
        return (error * weights).sum() / len(error)
