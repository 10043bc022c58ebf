"""Sums over the processes of a distributed run, for what is no mean over samples."""

import torch
from torch import Tensor, distributed


def n_ranks(gathered: bool = True) -> int:
    """Number of processes whose batches are taken together; 1 outside a distributed run or unless `gathered`."""
    together = gathered and distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


class _Sum(torch.autograd.Function):
    """All-reduce. Every process computes the same loss of the sum, and so the same gradient: nothing is sent back.

    ``DistributedDataParallel`` divides gradients by the number of processes; multiplying by it here leaves the gradient
    of that one loss.
    """

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        return gradients[0] * distributed.get_world_size()


def sum_over_ranks(value: Tensor, gathered: bool = True) -> Tensor:
    """Sum `value` over all processes, differentiably; `value` itself where there is one or unless `gathered`."""
    return _Sum.apply(value) if n_ranks(gathered) > 1 else value
