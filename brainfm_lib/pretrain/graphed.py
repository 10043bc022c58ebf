"""Forward and backward pass of a training step as CUDA graphs: launched at once, so that no host is too slow for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brainfm_lib.masking import Mask
from brainfm_lib.objectives import ObjectiveConfig, compute_loss

WARM = 3  # passes before a capture, in which libraries and compilers set themselves up


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    loss: Tensor
    terms: dict[str, Tensor]
    gradients: list[Tensor | None]


class GraphedLoss:
    """`compute_loss` and its backward pass, captured once for every kind of step, then replayed.

    Kinds of step differ in whether the spectral loss is evaluated and whether details are measured. Shapes must not
    change from step to step. Gradients are left in ``.grad``, overwritten by the next call.

    Args:
        model: Its parameters get the gradients.
        config: The arm.
        precision: ``bf16`` or ``fp32``.
    """

    def __init__(self, model: torch.nn.Module, config: ObjectiveConfig, precision: str) -> None:
        self.model, self.config, self.bf16 = model, config, precision == "bf16"
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.captured: dict[tuple[bool, bool], _Captured] = {}
        self.inputs: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self.pool: Any = None

    def __call__(
        self, volumes: Tensor, mask: Mask, spectral_weight: float, *, detail: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `compute_loss`; the loss is detached, and the gradients are there."""
        shared = mask.visible.stride(0) == 0
        given = (volumes, *(part[:1] if shared else part for part in mask))
        if self.inputs is None:
            weight = torch.zeros((), device=volumes.device)
            self.inputs = (*(torch.empty_like(part) for part in given), weight)  # type: ignore[assignment]
        assert self.inputs is not None
        for mine, part in zip(self.inputs, given):
            mine.copy_(part)
        self.inputs[-1].fill_(spectral_weight)
        kind = (spectral_weight > 0, detail and spectral_weight > 0)  # there are details of the spectral loss alone
        if kind not in self.captured:
            self.captured[kind] = self._capture(*kind, shared=shared)
        captured = self.captured[kind]
        captured.graph.replay()
        for parameter, gradient in zip(self.parameters, captured.gradients):
            parameter.grad = gradient
        return captured.loss.clone(), {name: term.clone() for name, term in captured.terms.items()}

    def _pass(self, spectral: bool, detail: bool, shared: bool) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.inputs is not None
        volumes, visible, hidden, weight = self.inputs
        mask = Mask(visible, hidden).expand(len(volumes)) if shared else Mask(visible, hidden)
        with torch.autocast(volumes.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            loss, terms = compute_loss(
                self.model, self.config, volumes, mask, spectral_weight=weight if spectral else 0.0, detail=detail
            )
        loss.backward()
        return loss.detach(), terms

    def _capture(self, spectral: bool, detail: bool, *, shared: bool) -> _Captured:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                self._forget()
                self._pass(spectral, detail, shared)
        torch.cuda.current_stream().wait_stream(aside)
        self._forget()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # other threads may go on
            loss, terms = self._pass(spectral, detail, shared)
        self.pool = graph.pool()
        return _Captured(graph, loss, terms, [p.grad for p in self.parameters])

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
