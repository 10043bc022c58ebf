"""Losses are taken in float32 at least, whatever autocast made of the predictions."""

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, or float64 if it is that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
