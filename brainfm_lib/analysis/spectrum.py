"""Radial power spectra, signed coherence and patch-grid artefacts of 3D volumes, in physical units.

Shells are as wide as the fundamental of the longest extent, 1 / (n · spacing), centred on its multiples, and reach
up to the smallest axis Nyquist. The shell of the mean is left out, and the mean under the window is removed first:
otherwise it leaks through the window into the lowest shells, and a copy with inverted contrast would not be -1.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Spacing = float | tuple[float, float, float]
Window = str | NDArray[Any] | Tensor | None
Floats = NDArray[np.float64]
MODES_AT_ONCE = 16_000_000  # keeps the spectra of a chunk of volumes near 500 MB


class CrossSpectrum(NamedTuple):
    """Shell sums of two sets of volumes, before any ratio: resample the rows (subjects) for intervals.

    frequencies: (bins,) cycles/mm. cross, power_a, power_b: (B, bins), mean over the shell's modes of
    Re F(a)F(b)*, |F(a)|² and |F(b)|² in units²·mm³.
    """

    frequencies: Floats
    cross: Floats
    power_a: Floats
    power_b: Floats


@dataclass(frozen=True)
class _Shells:
    index: Tensor  # (M,) shell of each mode of rfftn, 0 … bins - 1, or bins for modes that belong to none
    weight: Tensor  # (M,) float64, how often the mode stands in the full spectrum: 1 or 2
    frequencies: Floats  # (bins,) mean ‖f‖ of the shell's modes, cycles/mm
    count: Floats  # (bins,) modes of the full spectrum


def radial_power(volumes: Tensor | NDArray[Any], spacing: Spacing, *, window: Window = "hann") -> tuple[Floats, Floats]:
    """Radial power spectral density.

    Args:
        volumes: (B, 1, D, H, W) or (B, D, H, W).
        spacing: Voxel size in mm, one number or one for each axis.
        window: "hann", None, or a brain mask / window of the volumes' shape or (D, H, W). The window's energy is
            divided out, so white noise of variance σ² has the power σ² · voxel volume under every window.

    Returns:
        frequencies (bins,) in cycles/mm, the mean ‖f‖ of each shell's modes; power (B, bins) in units²·mm³.
    """
    x, size = _as_batch(volumes), _spacing(spacing)
    shells = _shells(tuple(x.shape[1:]), size, x.device)
    parts = [_shell_mean(_power(f), shells) for f in _spectra(x, size, window)]
    return shells.frequencies, np.concatenate(parts)


def cross_spectrum(
    a: Tensor | NDArray[Any], b: Tensor | NDArray[Any], spacing: Spacing, *, window: Window = "hann"
) -> CrossSpectrum:
    """Shell means of the cross-spectrum and both power spectra, a row a volume; arguments as in `coherence`."""
    x, y, size = _as_batch(a), _as_batch(b), _spacing(spacing)
    if x.shape != y.shape:
        raise ValueError(f"cross-spectrum of volumes {tuple(x.shape)} and {tuple(y.shape)}: shapes must agree")
    shells = _shells(tuple(x.shape[1:]), size, x.device)
    rows = [
        [_shell_mean(v, shells) for v in ((f * g.conj()).real, _power(f), _power(g))]
        for f, g in zip(_spectra(x, size, window), _spectra(y, size, window), strict=True)
    ]
    cross, power_a, power_b = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return CrossSpectrum(shells.frequencies, cross, power_a, power_b)


def coherence(
    a: Tensor | NDArray[Any], b: Tensor | NDArray[Any], spacing: Spacing, *, window: Window = "hann"
) -> tuple[Floats, Floats]:
    """Signed coherence Re Σ F(a)F(b)* / sqrt(Σ|F(a)|² Σ|F(b)|²), sums over the shell and then over volumes.

    Args:
        a: (B, 1, D, H, W) or (B, D, H, W), for instance predictions.
        b: The volumes that they are compared with, same shape.
        spacing: Voxel size in mm.
        window: As in `radial_power`.

    Returns:
        frequencies (bins,) in cycles/mm and coherence (bins,) in [-1, 1]; NaN where a shell holds no power.
    """
    s = cross_spectrum(a, b, spacing, window=window)
    with np.errstate(invalid="ignore", divide="ignore"):
        return s.frequencies, s.cross.sum(0) / np.sqrt(s.power_a.sum(0) * s.power_b.sum(0))


def power_ratio(
    a: Tensor | NDArray[Any], b: Tensor | NDArray[Any], spacing: Spacing, *, window: Window = "hann"
) -> tuple[Floats, Floats]:
    """Power of `a` over power of `b` in each shell, summed over volumes; arguments as in `coherence`."""
    frequencies, power_a = radial_power(a, spacing, window=window)
    with np.errstate(invalid="ignore", divide="ignore"):
        return frequencies, power_a.sum(0) / radial_power(b, spacing, window=window)[1].sum(0)


def phase_error(
    a: Tensor | NDArray[Any], b: Tensor | NDArray[Any], spacing: Spacing, *, window: Window = "hann"
) -> tuple[Floats, Floats]:
    """Mean |phase of F(a)F(b)*| in each shell, weighted by |F(b)|², radians: π/2 for unrelated volumes.

    Arguments as in `coherence`, `b` the target. Unlike coherence it does not ask whether amplitudes fit.
    """
    x, y, size = _as_batch(a), _as_batch(b), _spacing(spacing)
    if x.shape != y.shape:
        raise ValueError(f"phase error of volumes {tuple(x.shape)} and {tuple(y.shape)}: shapes must agree")
    shells = _shells(tuple(x.shape[1:]), size, x.device)
    angle, weight = [], []
    for f, g in zip(_spectra(x, size, window), _spectra(y, size, window), strict=True):
        power = _power(g)
        angle.append(_shell_mean((f * g.conj()).angle().abs() * power, shells))
        weight.append(_shell_mean(power, shells))
    with np.errstate(invalid="ignore", divide="ignore"):
        return shells.frequencies, np.concatenate(angle).sum(0) / np.concatenate(weight).sum(0)


def low_pass(volumes: Tensor | NDArray[Any], spacing: Spacing, cutoff: float) -> NDArray[np.float32]:
    """What lies at or below a frequency, the mean with it; what lies above is the rest.

    Args:
        volumes: (B, 1, D, H, W) or (B, D, H, W).
        spacing: Voxel size in mm, one number or one for each axis.
        cutoff: In cycles/mm.

    Returns:
        (B, D, H, W).
    """
    x = _as_batch(volumes)
    grid, size = tuple(x.shape[1:]), _spacing(spacing)
    axes = [np.fft.fftfreq(n, s) for n, s in zip(grid[:2], size[:2], strict=True)] + [np.fft.rfftfreq(grid[2], size[2])]
    norm = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij")))
    kept = torch.from_numpy(norm <= cutoff * (1 + 1e-9)).to(x.device)
    below = torch.fft.irfftn(torch.fft.rfftn(x, dim=(1, 2, 3)) * kept, s=grid, dim=(1, 2, 3))
    return np.asarray(below.cpu().numpy(), dtype=np.float32)


def slice_log_power(volumes: Tensor | NDArray[Any]) -> Floats:
    """Mean over volumes of log10 |F|² of the central axial slice under a Hann window, zero frequency in the middle.

    Args:
        volumes: (B, 1, D, H, W) or (B, D, H, W), the last axis from bottom to top.

    Returns:
        (D, H) float64; 1e-12 of the largest power is the floor.
    """
    x = _as_batch(volumes)
    middle = x[..., x.shape[-1] // 2].double()
    d, h = (torch.hann_window(n, dtype=torch.float64, device=x.device) for n in middle.shape[1:])
    taper = d[:, None] * h
    mean = (middle * taper).sum((1, 2), keepdim=True) / taper.sum()
    power = torch.fft.fftshift(torch.fft.fft2((middle - mean) * taper), dim=(1, 2)).abs().square()
    floor = power.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny) * 1e-12
    return np.asarray(power.maximum(floor).log10().mean(0).cpu().numpy())


def coherence_noise_floor(
    shape: tuple[int, ...], spacing: Spacing, *, window: Window = "hann", quantile: float = 1.959964
) -> tuple[Floats, Floats]:
    """The |coherence| below which unrelated volumes of flat spectra stay in 95 % of cases, shell by shell.

    Between independent fields Var Σ F(a)F(b)* = Σ |K(k - l)|² over all pairs k, l of a shell's modes, where K is the
    normalised transform of the squared window: 1/n for n modes under no window, more where the window's leakage ties
    neighbouring modes together.

    Args:
        shape: Shape of the volumes compared, (B, 1, D, H, W) or (B, D, H, W).
        spacing: Voxel size in mm.
        window: As in `radial_power`.
        quantile: Normal quantile of the floor.

    Returns:
        frequencies (bins,) in cycles/mm and the floor (bins,), at most 1.
    """
    grid, cpu = (shape[-3], shape[-2], shape[-1]), torch.device("cpu")
    shells, modes = _shells(grid, _spacing(spacing), cpu), _shell_index(grid, _spacing(spacing))[0]
    squared = _window(window, grid, cpu).double().square()
    kernel = torch.fft.fftn(squared / squared.sum((1, 2, 3), keepdim=True), dim=(1, 2, 3)).abs().square().mean(0)
    kernel = torch.fft.fftn(kernel).real
    variance = [  # by Parseval the sum over pairs is a sum over voxels
        float((torch.fft.fftn(torch.from_numpy(modes == shell).double()).abs().square() * kernel).sum())
        / (kernel.numel() * n**2 * shape[0])
        for shell, n in enumerate(shells.count)
    ]
    return shells.frequencies, np.minimum(quantile * np.sqrt(variance), 1.0)


def patch_grid_excess(volumes: Tensor | NDArray[Any], patch_size: int) -> Floats:
    """Power on the lattice of multiples of 1/patch cycles per voxel, relative to its neighbours two modes away.

    Seams between patches repeat with the patch's period and therefore stand exactly there. Power is divided by its
    shell's mean before the comparison, so that a steep spectrum does not count as a lattice; modes beyond the axis
    Nyquist are left out. 1 means no artefact; show the target's value beside a prediction's.

    Args:
        volumes: (B, 1, D, H, W) or (B, D, H, W), every axis a multiple of the patch size.
        patch_size: Edge of a patch in voxels, at least 2.

    Returns:
        (B,) excess.
    """
    x = _as_batch(volumes)
    grid = tuple(x.shape[1:])
    if any(n % patch_size for n in grid) or patch_size < 2:
        raise ValueError(f"patch-grid excess: the grid {grid} is no multiple of the patch size {patch_size}")
    norm = np.sqrt(sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n) for n in grid), indexing="ij")))
    lattice, near = (modes & (norm <= 0.5) for modes in _lattice(grid, patch_size))
    shell = torch.from_numpy(np.round(norm * max(grid)).astype(np.int64).ravel()).to(x.device)
    plain = torch.from_numpy(~lattice.ravel()).to(x.device)
    excess = []
    for volume in x:
        power = torch.fft.fftn(volume - volume.mean()).abs().square().double().flatten()
        bins = int(shell.max()) + 1
        total = torch.bincount(shell, power * plain, minlength=bins)
        mean = total / torch.bincount(shell, plain.double(), minlength=bins).clamp_min(1)
        flat = (power / mean[shell].clamp_min(torch.finfo(torch.float64).tiny)).cpu().numpy()
        excess.append(flat[lattice.ravel()].mean() / flat[near.ravel()].mean())
    return np.asarray(excess)


def _lattice(grid: tuple[int, ...], patch_size: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Modes of fftn on the patch lattice without the mean, and those exactly two modes away from one."""
    lattice = np.zeros(grid, dtype=bool)
    lattice[tuple(slice(None, None, n // patch_size) for n in grid)] = True
    lattice[0, 0, 0] = False
    offsets = np.stack(np.meshgrid(*[range(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    near = np.zeros_like(lattice)
    for offset in offsets[np.abs(offsets).max(1) == 2]:
        near |= np.roll(lattice, tuple(offset), axis=(0, 1, 2))
    near[0, 0, 0] = False
    return lattice, near & ~lattice


def _as_batch(volumes: Tensor | NDArray[Any]) -> Tensor:
    x = volumes if isinstance(volumes, Tensor) else torch.tensor(volumes)
    x = x.squeeze(1) if x.ndim == 5 and x.shape[1] == 1 else x
    if x.ndim != 4:
        raise ValueError(f"volumes must be (B, 1, D, H, W) or (B, D, H, W), got {tuple(x.shape)}")
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def _spacing(spacing: Spacing) -> tuple[float, float, float]:
    size = np.broadcast_to(np.asarray(spacing, dtype=float), 3)
    return float(size[0]), float(size[1]), float(size[2])


def _window(window: Window, grid: tuple[int, ...], device: torch.device) -> Tensor:
    """(1, D, H, W) or (B, D, H, W)."""
    if window is None:
        return torch.ones(1, *grid, device=device)
    if isinstance(window, str):
        if window != "hann":
            raise ValueError(f"window must be 'hann', None or an array, got {window!r}")
        d, h, w = (torch.hann_window(n, device=device) for n in grid)
        return (d[:, None, None] * h[:, None] * w)[None]
    w = torch.as_tensor(window).to(device).float()
    if tuple(w.shape[-3:]) != tuple(grid):
        raise ValueError(f"the window {tuple(w.shape)} does not have the volumes' grid {tuple(grid)}")
    return w.reshape(-1, *grid)


def _spectra(x: Tensor, spacing: tuple[float, float, float], window: Window) -> Any:
    """Half spectra of chunks of volumes (B, D, H, W), scaled so that |F|² is a density in units²·mm³."""
    w = _window(window, tuple(x.shape[1:]), x.device).to(x.dtype)
    size = max(1, MODES_AT_ONCE // x[0].numel())
    for start in range(0, len(x), size):
        part = x[start : start + size]
        taper = w if len(w) == 1 else w[start : start + size]
        mean = (part * taper).sum((1, 2, 3), keepdim=True) / taper.sum((1, 2, 3), keepdim=True)
        energy = taper.square().sum((1, 2, 3), keepdim=True)
        yield torch.fft.rfftn((part - mean) * taper * (math.prod(spacing) / energy).sqrt(), dim=(1, 2, 3))


def _power(f: Tensor) -> Tensor:
    return f.real.square() + f.imag.square()


def _shell_index(
    grid: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[NDArray[np.int64], Floats, int]:
    """Shell (D, H, W) of each mode of fftn, `bins` for modes that belong to none; ‖f‖ (D, H, W); and `bins`."""
    if min(grid) < 2:
        raise ValueError(f"a spectrum needs at least two voxels along every axis, got the grid {grid}")
    axes = (np.fft.fftfreq(n, s) for n, s in zip(grid, spacing, strict=True))
    norm = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij")))
    width = 1 / max(n * s for n, s in zip(grid, spacing, strict=True))
    nyquist = 1 / (2 * max(spacing))
    bins = max(int(nyquist / width + 1e-9), 1)
    index = np.floor(norm / width + 0.5 + 1e-9).astype(np.int64) - 1  # the shell of the mean becomes -1
    index[(index < 0) | (index >= bins) | (norm > nyquist * (1 + 1e-9))] = bins
    return index, norm, bins


@lru_cache(maxsize=8)
def _shells(grid: tuple[int, int, int], spacing: tuple[float, float, float], device: torch.device) -> _Shells:
    full, norm, bins = _shell_index(grid, spacing)
    count = np.bincount(full.ravel(), minlength=bins + 1)[:bins].astype(np.float64)
    frequencies = np.bincount(full.ravel(), norm.ravel(), bins + 1)[:bins] / count
    half = np.arange(grid[2] // 2 + 1)
    double = np.where((half == 0) | (2 * half == grid[2]), 1.0, 2.0)  # self-conjugate planes stand once
    weight = np.broadcast_to(double, (*grid[:2], half.size)).ravel()
    index = torch.from_numpy(full[..., : half.size].ravel()).to(device)
    return _Shells(index, torch.tensor(weight, device=device), frequencies, count)


def _shell_mean(values: Tensor, shells: _Shells) -> Floats:
    """Weighted mean over each shell of (B, D, H, W // 2 + 1), in float64: (B, bins)."""
    flat = values.flatten(1).double() * shells.weight
    sums = torch.zeros(len(flat), shells.count.size + 1, dtype=torch.float64, device=flat.device)
    sums.scatter_add_(1, shells.index.expand(len(flat), -1), flat)
    return sums[:, :-1].cpu().numpy() / shells.count
