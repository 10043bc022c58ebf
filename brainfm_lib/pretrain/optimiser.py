"""AdamW and its schedules."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and its schedule.

    Attributes:
        lr: Peak learning rate; warm-up from ``lr * start_factor``, cosine to ``lr * end_factor``.
        warmup: Share of the steps.
        weight_decay, weight_decay_end: Linear over the steps; biases, norms and the mask token are left out.
        betas: Of AdamW.
        clip: Largest global gradient norm.
        batch_size: Volumes a step, over all processes.
        accumulate: Parts into which each process cuts its share of the batch.
        steps: Optimiser steps.
        precision: ``auto`` (bf16 where the device is faster with it), ``bf16`` or ``fp32``.
    """

    lr: float = 5e-4
    start_factor: float = 0.2
    end_factor: float = 0.1
    warmup: float = 0.05
    weight_decay: float = 0.005
    weight_decay_end: float = 0.0005
    betas: tuple[float, float] = (0.9, 0.975)
    clip: float = 1.0
    batch_size: int = 32
    accumulate: int = 1
    steps: int = 1000
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"precision must be auto, bf16 or fp32, got {self.precision!r}")
        if min(self.batch_size, self.accumulate, self.steps) < 1:
            raise ValueError("batch_size, accumulate and steps are at least 1")
        if min(self.lr, self.start_factor, self.end_factor, self.weight_decay, self.weight_decay_end) < 0:
            raise ValueError("lr, its factors and weight_decay are not negative")
        if not (0 <= self.warmup <= 1 and self.clip > 0 and all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError("warmup lies in [0, 1], betas in [0, 1), and clip is above 0")

    def lr_at(self, step: int) -> float:
        """Learning rate of `step` (0-based)."""
        warm = max(round(self.warmup * self.steps), 1)
        if step < warm:
            return self.lr * (self.start_factor + (1 - self.start_factor) * (step + 1) / warm)
        progress = (step - warm) / max(self.steps - warm, 1)
        return self.lr * (self.end_factor + (1 - self.end_factor) * 0.5 * (1 + math.cos(math.pi * progress)))

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of `step` (0-based)."""
        return self.weight_decay + (self.weight_decay_end - self.weight_decay) * step / max(self.steps, 1)


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "decays": True},
        {"params": [p for p in trained if p.ndim <= 1], "decays": False, "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
