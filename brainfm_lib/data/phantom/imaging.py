"""From tissue to an image: contrasts, noise that is the same on every device, bias field, resolution, normalisation."""

from __future__ import annotations

import torch

from brainfm_lib.data.phantom.cohort import CONTRASTS
from brainfm_lib.data.storage import FLOOR

# Signal of fluid, grey matter, deep grey matter, white matter, solid tumour, necrosis, enhancing rim and oedema, white
# matter of a T1w image near 0.9 (arbitrary units; orders as in clinical images).
SIGNAL = {
    "T1w": (0.22, 0.60, 0.68, 0.88, 0.56, 0.34, 0.58, 0.72),
    "T2w": (1.00, 0.56, 0.46, 0.40, 0.74, 0.92, 0.66, 0.72),
    "FLAIR": (0.14, 0.70, 0.62, 0.56, 0.86, 0.42, 0.82, 0.95),
    "PDw": (0.80, 0.84, 0.74, 0.64, 0.88, 0.86, 0.84, 0.86),
    "T1c": (0.24, 0.64, 0.70, 0.88, 0.60, 0.34, 1.25, 0.72),
}


def signals(contrasts: list[str], jitter: torch.Tensor) -> torch.Tensor:
    """(B, 8) signal of the compartments in each scan; jitter (B, 8) multiplies."""
    assert set(contrasts) <= set(CONTRASTS)
    return torch.tensor([SIGNAL[c] for c in contrasts], device=jitter.device) * jitter


_WAVES = [(i, j, k) for i in range(3) for j in range(3) for k in range(3) if 0 < i + j + k < 3]
BIAS_TERMS = len(_WAVES)


def cosine_basis(points: torch.Tensor, extent: float = 220.0) -> torch.Tensor:
    """(BIAS_TERMS, P) products of low cosines along the axes at points (P, 3) mm: the log of a bias field."""
    phase = torch.pi * (points / extent + 0.5)
    return torch.stack([torch.cos(phase * torch.tensor(waves)).prod(1) for waves in _WAVES])


def axis_matrices(scanner: torch.Tensor, n: int) -> torch.Tensor:
    """(B, n, n) what a scanner does along one axis of n voxels; rows sum to 1.

    Args:
        scanner: (B, 4): standard deviation of the point spread, voxels; share of the frequencies up to Nyquist that
            were measured (below 1, edges ring); share of the signal in the ghosts of motion; their distance, voxels.
    """
    sigma, measured, ghosts, shift = (column[:, None, None] for column in scanner.unbind(1))
    place = torch.arange(n, device=scanner.device, dtype=torch.float32)
    distance = place[:, None] - place[None]
    weights = torch.exp(-(distance**2) / (2 * sigma.clamp(min=0.05) ** 2))
    weights = weights / weights.sum(-1, keepdim=True)
    if bool((measured < 1).any()):
        ringing = torch.where(measured < 1, measured * torch.sinc(measured * distance), (distance == 0).float())
        weights = ringing / ringing.sum(-1, keepdim=True) @ weights
    if bool((ghosts > 0).any()):
        beside = (1 - (distance - shift).abs()).clamp(min=0) + (1 - (distance + shift).abs()).clamp(min=0)
        moved = (1 - ghosts) * (distance == 0) + ghosts / 2 * beside
        weights = moved @ weights
        weights = weights / weights.sum(-1, keepdim=True)
    return weights


def acquire(volumes: torch.Tensor, scanner: torch.Tensor) -> torch.Tensor:
    """What a scanner makes of volumes (B, D, H, W): scanner (B, 3, 4) has the rows of `axis_matrices` for each axis."""
    d, h, w = volumes.shape[1:]
    volumes = volumes @ axis_matrices(scanner[:, 2], w).transpose(1, 2)[:, None]
    volumes = axis_matrices(scanner[:, 1], h)[:, None] @ volumes
    return (axis_matrices(scanner[:, 0], d) @ volumes.flatten(2)).reshape(volumes.shape)


def normalise(values: torch.Tensor, mask: torch.Tensor, low: float = 0.01, high: float = 0.99) -> torch.Tensor:
    """The stored convention: clip to two quantiles of the mask, scale to [FLOOR, 1], background exactly 0.

    Args:
        values, mask: (B, P) float32 and bool.
    """
    ordered = torch.where(mask, values, torch.inf).sort(dim=1).values
    count = mask.sum(1, keepdim=True)
    at = [((count - 1) * share).round().long().clamp(min=0) for share in (low, high)]
    lowest, highest = (ordered.gather(1, place) for place in at)
    scaled = ((values - lowest) / (highest - lowest).clamp(min=1e-6)).clamp(0, 1)
    return torch.where(mask, FLOOR + (1 - FLOOR) * scaled, 0.0)
