"""Variance-covariance regularisation, the auxiliary objective of VCR-JEPA (arXiv 2606.13315; VICReg, Bardes 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from brainfm_lib.losses.precision import widen
from brainfm_lib.ranks import n_ranks, sum_over_ranks


@dataclass(frozen=True)
class VcrConfig:
    """Weights of L = L_JEPA + weight · (variance · L_var + covariance · L_cov).

    Attributes:
        weight, variance, covariance: As in the formula; the paper's values are the defaults.
        pooled: Take the variance of the token mean instead of at each position.
        context_only: Regularise the student's visible tokens alone; the paper appends the detached EMA targets.
        gathered: Take variance and covariance over the batch of all processes, so that they do not depend on how it is
            split; the authors take them per process and part.
    """

    weight: float = 0.25
    variance: float = 1.0
    covariance: float = 0.1
    pooled: bool = False
    context_only: bool = False
    gathered: bool = True

    def __post_init__(self) -> None:
        if min(self.weight, self.variance, self.covariance) < 0:
            raise ValueError("weights of VCR are not negative")


def variance_loss(z: Tensor, *, pooled: bool = False, gathered: bool = False) -> Tensor:
    """Hinge that keeps each feature's standard deviation over the batch above one.

    Args:
        z: (B, T, D) latents; one mask for the whole batch, so that position t is the same in every sample.
        pooled: Average over tokens first (for masks that differ between samples).
        gathered: The batch is that of all processes, B each; every process gets the same value, and the gradients that
            ``DistributedDataParallel`` averages are those of one process with the whole batch.

    Returns:
        Scalar ``mean over (t, d) of relu(1 - sqrt(Var over batch of z[:, t, d] + 1e-4))``, Var unbiased.

    Raises:
        ValueError: A batch of one has no variance.
    """
    z = widen(z)
    if pooled:
        z = z.mean(dim=1)
    n = len(z) * n_ranks(gathered)
    if n < 2:
        raise ValueError("the variance term of VCR needs a batch of at least two volumes")
    # Deviations sum to zero, so no gradient flows through the mean.
    mean = sum_over_ranks(z.detach().sum(dim=0), gathered) / n
    variance = sum_over_ranks((z - mean).square().sum(dim=0), gathered) / (n - 1)
    return torch.relu(1 - (variance + 1e-4).sqrt()).mean()


def covariance_loss(z: Tensor, constant: Tensor | None = None, *, gathered: bool = False) -> Tensor:
    """Sum of squared off-diagonal covariances over D.

    Args:
        z: (B, T, D), flattened to BT × D and centred.
        constant: (B, S, D) latents that count as well and get no gradient, which then costs nothing.
        gathered: As for `variance_loss`.

    Returns:
        Scalar ``Σ_{i≠j} C_ij² / D`` with ``C = ZᵀZ / (BT - 1)``, at least float32.

    Raises:
        ValueError: A single latent has no covariance.
    """
    with torch.autocast(z.device.type, enabled=False):
        parts = [widen(part).reshape(-1, z.shape[-1]) for part in ([z] if constant is None else [z, constant.detach()])]
        n = sum(len(rows) for rows in parts) * n_ranks(gathered)
        if n < 2:
            raise ValueError("the covariance term of VCR needs at least two latents")
        mean = sum_over_ranks(torch.stack([rows.detach().sum(dim=0) for rows in parts]).sum(dim=0), gathered) / n
        centred = [rows - mean for rows in parts]
        products = [rows.T @ rows for rows in centred]
        covariance = sum_over_ranks(products[0] if constant is None else products[0] + products[1], gathered) / (n - 1)
        return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[-1]
