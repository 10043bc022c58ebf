"""Linear layers that recompute their cheap input in the backward pass instead of keeping it.

A transformer block keeps about seventeen activations of the width of its tokens for the backward pass. Six of them, the
outputs of both norms and of GELU, follow elementwise from others that are kept anyway: these two functions compute them
again, which costs one or two hundredths of a step. Gradients are those of the plain composition; under autocast the
products are taken in its type, norms in float32.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def norm_linear(x: Tensor, norm: torch.nn.LayerNorm, linear: torch.nn.Linear) -> Tensor:
    """``linear(norm(x))`` on (B, K, E), keeping `x` alone."""
    return _NormLinear.apply(x, norm.weight, norm.bias, linear.weight, linear.bias, norm.eps, _product_dtype(x))


def gelu_linear(x: Tensor, linear: torch.nn.Linear) -> Tensor:
    """``linear(gelu(x))`` on (B, K, M), keeping `x` alone."""
    return _GeluLinear.apply(x, linear.weight, linear.bias, _product_dtype(x))


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _product_gradients(context: Any, first: int, gradient: Tensor, x: Tensor, weight: Tensor) -> list[Tensor | None]:
    """Gradients of ``F.linear(x, weight, bias)`` by weight and bias (inputs `first`, `first` + 1), where wanted."""
    flat = gradient.flatten(0, -2)
    wanted_weight, wanted_bias = context.needs_input_grad[first : first + 2]
    return [
        (flat.T @ x.flatten(0, -2)).to(weight.dtype) if wanted_weight else None,
        flat.sum(0, dtype=weight.dtype) if wanted_bias else None,
    ]


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(scale.dtype)
            normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
            context.save_for_backward(x, mean, rstd, scale, shift, weight)
            context.eps, context.dtype = eps, dtype
            return F.linear(normed.to(dtype), weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Any:
        x, mean, rstd, scale, shift, weight = context.saved_tensors
        normed = torch.native_layer_norm(x, x.shape[-1:], scale, shift, context.eps)[0].to(context.dtype)
        by_product = _product_gradients(context, 3, gradient, normed, weight)
        by_normed = (gradient @ weight.to(context.dtype)).to(x.dtype)
        wanted = list(context.needs_input_grad[:3])
        by_norm = torch.ops.aten.native_layer_norm_backward(
            by_normed, x, x.shape[-1:], mean, rstd, scale, shift, wanted
        )
        return *(g if w else None for g, w in zip(by_norm, wanted)), *by_product, None, None


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            context.save_for_backward(x, weight)
            context.dtype = dtype
            return F.linear(F.gelu(x).to(dtype), weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Any:
        x, weight = context.saved_tensors
        by_product = _product_gradients(context, 1, gradient, F.gelu(x).to(context.dtype), weight)
        by_input = None
        if context.needs_input_grad[0]:
            by_input = torch.ops.aten.gelu_backward((gradient @ weight.to(context.dtype)).to(x.dtype), x)
        return by_input, *by_product, None
