"""Sketched isotropic Gaussian regularisation, which keeps embeddings from collapsing (LeJEPA, arXiv 2511.08544)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from brainfm_lib.losses.precision import widen
from brainfm_lib.ranks import n_ranks, sum_over_ranks

KNOTS, LARGEST = 17, 3.0  # of the integral over t, which is symmetric: trapezoids on [0, 3]


@dataclass(frozen=True)
class SigregConfig:
    """Weight of L = (1 - weight) · L_invariance + weight · SIGReg, and how finely embeddings are looked at.

    Attributes:
        weight: The paper's λ.
        directions: Along which embeddings are held against a normal distribution, drawn anew at every step.
    """

    weight: float = 0.05
    directions: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1 or self.directions < 1:
            raise ValueError(f"sigreg: weight lies in [0, 1] and there is a direction at least, got {self}")


def draw_directions(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors as columns, (D, M) float32, on the host."""
    drawn = torch.randn(dim, count, generator=generator)
    return drawn / drawn.norm(dim=0, keepdim=True)


def sigreg_loss(z: Tensor, directions: Tensor, *, gathered: bool = False) -> Tensor:
    """Distance of embeddings from an isotropic standard normal distribution, by Epps and Pulley's statistic.

    Args:
        z: (B, D) embeddings.
        directions: (D, M) unit columns, the same in all processes.
        gathered: The batch is that of all processes, B each, as for `vcr.variance_loss`.

    Returns:
        Scalar, at least float32: the mean over directions u of ``N ∫ |φ(t) - exp(-t²/2)|² exp(-t²/2) dt`` for t from -3
        to 3, φ being the empirical characteristic function of the N projections ``z·u``.

    Raises:
        ValueError: A batch of one has no distribution.
    """
    with torch.autocast(z.device.type, enabled=False):
        projected = widen(z) @ directions.to(widen(z).dtype)  # (B, M)
        n = len(z) * n_ranks(gathered)
        if n < 2:
            raise ValueError("SIGReg needs a batch of at least two volumes")
        t = torch.linspace(0, LARGEST, KNOTS, dtype=projected.dtype, device=z.device)
        normal = torch.exp(-t.square() / 2)
        angles = projected[:, :, None] * t
        real, imaginary = sum_over_ranks(torch.stack([angles.cos().sum(dim=0), angles.sin().sum(dim=0)]), gathered) / n
        error = (real - normal).square() + imaginary.square()  # (M, knots)
        width = torch.full_like(t, 2 * LARGEST / (KNOTS - 1))  # both halves
        width[0] = width[-1] = LARGEST / (KNOTS - 1)
        return n * (error * normal * width).sum(dim=-1).mean()
