"""Prediction of latents at hidden positions, the loss of JEPA."""

from torch import Tensor
from torch.nn import functional as F

from brainfm_lib.losses.precision import widen


def prediction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error between predicted and target latents, both (B, K, E); scalar in float32 at least."""
    return F.l1_loss(widen(predicted), widen(target))
