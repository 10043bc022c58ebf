"""Reconstruction of hidden patches, the loss of MAE."""

from torch import Tensor
from torch.nn import functional as F

from brainfm_lib.losses.precision import widen


def reconstruction_loss(predicted: Tensor, target: Tensor, *, normalise_patches: bool = False) -> Tensor:
    """Half the mean squared error over hidden voxels.

    Args:
        predicted: (B, K, P³), predictions at the hidden positions.
        target: (B, K, P³), true voxels there.
        normalise_patches: Standardise each target patch by its own mean and standard deviation
            (He et al. 2022, not used by the paper).

    Returns:
        Scalar ``mean |x̂ - x|² / 2`` in float32 at least.
    """
    predicted, target = widen(predicted), widen(target)
    if normalise_patches:
        mean, std = _moments(target)
        target = (target - mean) / std
    return F.mse_loss(predicted, target) / 2


def denormalise(predicted: Tensor, target: Tensor) -> Tensor:
    """Bring patches predicted under `normalise_patches` back to the volume's units, by the moments of their targets.

    Args:
        predicted: (B, K, P³), in each target patch's own deviations from its own mean.
        target: (B, K, P³).

    Returns:
        (B, K, P³) float32.
    """
    mean, std = _moments(widen(target))
    return widen(predicted) * std + mean


def _moments(target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch, (B, K, 1) each."""
    return target.mean(-1, keepdim=True), (target.var(-1, keepdim=True) + 1e-6).sqrt()
