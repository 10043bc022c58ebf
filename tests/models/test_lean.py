"""Layers that recompute their input: values and gradients of the plain composition, and less memory."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from brainfm_lib.models.lean import gelu_linear, norm_linear


def layers(dtype=torch.float64):
    torch.manual_seed(0)
    norm, first, second = nn.LayerNorm(6), nn.Linear(6, 10), nn.Linear(10, 6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    return nn.ModuleList([norm, first, second]).to(dtype)


def both(modules, x):
    norm, first, second = modules
    return gelu_linear(norm_linear(x, norm, first), second)


def plain(modules, x):
    norm, first, second = modules
    return second(F.gelu(first(norm(x))))


def test_gradients_are_right():
    modules, x = layers(), torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(both(modules, x), plain(modules, x), rtol=1e-12, atol=1e-12)
    names = [name for name, _ in modules.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(_Both(modules), dict(zip([f"m.{n}" for n in names], parameters)), (x,))

    assert torch.autograd.gradcheck(function, (x, *[p.detach().requires_grad_() for p in modules.parameters()]))


class _Both(nn.Module):
    def __init__(self, modules):
        super().__init__()
        self.m = modules

    def forward(self, x):
        return both(self.m, x)


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2)])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_equal_the_plain_ones_under_autocast_and_with_frozen_layers(autocast, frozen):
    results = []
    for function in (both, plain):
        modules = copy.deepcopy(layers(torch.float32))
        for i in frozen:
            modules[i].requires_grad_(False)
        x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = function(modules, x)
        assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
        out.float().square().sum().backward()
        results.append([out, x.grad, *[p.grad for p in modules.parameters()]])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=2e-2 if autocast else 1e-5, atol=5e-2 if autocast else 1e-5)


def test_only_the_input_is_kept():
    kept = []
    modules, x = layers(torch.float32), torch.randn(4, 5, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        both(modules, x)
    parameters = {p.data_ptr() for p in modules.parameters()}
    activations = [t for t in kept if t.data_ptr() not in parameters and t.shape[-1] > 1]
    assert sorted(tuple(t.shape) for t in activations) == [(4, 5, 6), (4, 5, 10)]
