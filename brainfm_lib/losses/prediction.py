"""Prediction of latents at hidden positions, the loss of JEPA."""

from torch import Tensor
from torch.nn import functional as F


def prediction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error between predicted and target latents, both (B, K, E); scalar in float32."""
    return F.l1_loss(predicted.float(), target.float())
