"""Spectral-domain reconstruction loss, the auxiliary objective of SL-MAE (arXiv 2606.13315)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        shape = (target.shape[-3], target.shape[-2], target.shape[-1])
        if mode == "logmag":
            a, b = widen(prediction), widen(target).detach()
            weights = half_spectrum_weights(shape, high_pass, a.device, a.dtype, band=band, kept_only=kept_only)
            return _LogMagnitude.apply(a, b, weights)
        a, b = standardise(widen(prediction)), standardise(widen(target))
        fa, fb = (torch.fft.rfftn(v, dim=(-3, -2, -1), norm="ortho") for v in (a, b))
        weights = half_spectrum_weights(shape, high_pass, fa.device, a.dtype, band=band, kept_only=kept_only)
        if mode == "magnitude":
            error = (fa.abs() - fb.abs()).square()
        else:
            difference = fa - fb
            error = difference.real.square() + difference.imag.square()
            if mode == "focal":
                focus = error.detach().sqrt() * (weights > 0)
                error = error * (focus / focus.amax(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-30))
        return (error * weights).sum() / len(error)


EPSILON = 1e-6


def log_magnitude_error(
    fa: Tensor, fb: Tensor, scale_a: Tensor, scale_b: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted squared difference of log magnitudes, summed, and what its gradient needs.

    Args:
        fa, fb: (B, 1, D, H, K, 2) spectra, real and imaginary parts.
        scale_a, scale_b: (B, 1, 1, 1, 1) factors on magnitudes.
        weights: (D, H, K).

    Returns:
        The sum of the error; fa times its factor in the gradient, in the place and shape of `fa`; and for each volume
        Σ over modes of the gradient by |fa| times |fa|, over the scale.
    """
    size_a = (fa[..., 0].square() + fa[..., 1].square()).sqrt()
    size_b = (fb[..., 0].square() + fb[..., 1].square()).sqrt()
    scaled = size_a * scale_a + EPSILON
    difference = torch.log1p(scaled) - torch.log1p(size_b * scale_b + EPSILON)
    by_size = 2 * weights * difference / (1 + scaled)
    factor = torch.where(size_a > 0, by_size * scale_a / size_a, 0.0)
    by_scale = (by_size * size_a).sum(dim=(1, 2, 3, 4), keepdim=True)
    return (weights * difference.square()).sum(), fa * factor.unsqueeze(-1), by_scale


_fused = log_magnitude_error


def compile_spectral_loss() -> None:
    """Compile the arithmetic between the Fourier transforms: one pass over the spectra instead of a dozen."""
    global _fused
    if _fused is log_magnitude_error:
        _fused = torch.compile(log_magnitude_error, dynamic=False)


def _deviation(volumes: Tensor) -> Tensor:
    """(B, 1, 1, 1, 1) unbiased, of volumes (B, 1, D, H, W): on a CPU several times as fast as `torch.std`."""
    flat = volumes.flatten(1)
    norms = torch.linalg.vector_norm(flat - flat.mean(dim=1, keepdim=True), dim=1)
    return (norms / (flat.shape[1] - 1) ** 0.5).view(-1, 1, 1, 1, 1)


class _LogMagnitude(torch.autograd.Function):
    """Mode ``logmag``, its gradient in closed form.

    The z-score is linear but for its scale 1 / (std + 1e-6), and its mean moves one mode alone, which is set to zero.
    So volumes are transformed as they are, and magnitudes scaled.
    """

    @staticmethod
    def forward(context: Any, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
        axes = (-3, -2, -1)
        scales, spectra = [], []
        for v in (a, b):
            scales.append(1 / (_deviation(v) + EPSILON))
            spectrum = torch.view_as_real(torch.fft.rfftn(v, dim=axes))
            spectrum[..., 0, 0, 0, :] = 0
            spectra.append(spectrum)
        error, gradient, by_scale = _fused(spectra[0], spectra[1], scales[0], scales[1], weights)
        ends = torch.full_like(weights[:1, :1], 0.5)  # the inverse transform counts inner planes twice
        ends[..., 0] = 1
        if a.shape[-1] % 2 == 0:
            ends[..., -1] = 1
        gradient = torch.fft.irfftn(torch.view_as_complex(gradient) * ends, s=a.shape[-3:], dim=axes, norm="forward")
        std = 1 / scales[0] - EPSILON
        through_scale = torch.where(std > 0, -by_scale * scales[0].square() / (std * (a[0].numel() - 1)), 0.0)
        gradient += through_scale * (a - a.mean(dim=(1, 2, 3, 4), keepdim=True))
        context.save_for_backward(gradient)
        context.count = len(a)
        return error / len(a)

    @staticmethod
    @once_differentiable
    def backward(context: Any, by_loss: Tensor) -> Any:
        (gradient,) = context.saved_tensors
        return gradient * (by_loss / context.count), None, None
