"""Variance-covariance regularisation, the auxiliary objective of VCR-JEPA (arXiv 2606.13315; VICReg, Bardes 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VcrConfig:
    """Weights of L = L_JEPA + weight · (variance · L_var + covariance · L_cov).

    Attributes:
        weight, variance, covariance: As in the formula; the paper's values are the defaults.
        pooled: Take the variance of the token mean instead of at each position.
        context_only: Regularise the student's visible tokens alone; the paper appends the detached EMA targets.
    """

    weight: float = 0.25
    variance: float = 1.0
    covariance: float = 0.1
    pooled: bool = False
    context_only: bool = False


def _as_float32(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def variance_loss(z: Tensor, *, pooled: bool = False) -> Tensor:
    """Hinge that keeps each feature's standard deviation over the batch above one.

    Args:
        z: (B, T, D) latents; one mask for the whole batch, so that position t is the same in every sample.
        pooled: Average over tokens first (for masks that differ between samples).

    Returns:
        Scalar ``mean over (t, d) of relu(1 - sqrt(Var over batch of z[:, t, d] + 1e-4))``, Var unbiased.

    Raises:
        ValueError: A batch of one has no variance.
    """
    if len(z) < 2:
        raise ValueError("the variance term of VCR needs a batch of at least two volumes")
    z = _as_float32(z)
    if pooled:
        z = z.mean(dim=1)
    return torch.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()


def covariance_loss(z: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances over D.

    Args:
        z: (B, T, D), flattened to BT × D and centred.

    Returns:
        Scalar ``Σ_{i≠j} C_ij² / D`` with ``C = ZᵀZ / (BT - 1)``, at least float32.
    """
    with torch.autocast(z.device.type, enabled=False):
        rows = _as_float32(z).reshape(-1, z.shape[-1])
        if len(rows) < 2:
            raise ValueError("the covariance term of VCR needs at least two latents")
        rows = rows - rows.mean(dim=0)
        covariance = rows.T @ rows / (len(rows) - 1)
        return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[-1]
