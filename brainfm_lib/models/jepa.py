"""Joint-embedding predictive architecture (Assran et al. 2023) on 3D patches: predict the latents of what is hidden."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brainfm_lib.masking import Mask
from brainfm_lib.models.mae import TokenFiller, check_size
from brainfm_lib.models.vit import VisionTransformer3d
from brainfm_lib.tokens import patch_grid


@dataclass(frozen=True)
class JepaConfig:
    """Predictor and target encoder; the paper's predictor is 384 wide, 6 blocks, 6 heads.

    Attributes:
        predictor_dim, predictor_depth, predictor_heads: Size of the predictor.
        ema_start, ema_end: Decay of the target encoder's moving average, linear from the first step to the last.
    """

    predictor_dim: int = 384
    predictor_depth: int = 6
    predictor_heads: int = 6
    ema_start: float = 0.998
    ema_end: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.ema_start <= 1 and 0 <= self.ema_end <= 1):
            raise ValueError(f"ema_start and ema_end lie in [0, 1], not at {self.ema_start:g} and {self.ema_end:g}")
        check_size(self.predictor_dim, self.predictor_depth, self.predictor_heads, "predictor")

    def decay_at(self, step: int, steps: int) -> float:
        """EMA decay after `step` of `steps`."""
        return self.ema_start + (self.ema_end - self.ema_start) * min(step / max(steps, 1), 1.0)


class JepaOutput(NamedTuple):
    """What the losses of JEPA need.

    Attributes:
        predicted: (B, H, E) predicted latents at the hidden positions.
        target: (B, H, E) layer-normed latents of the target encoder there, no gradient.
        context: (B, V, E) student latents at the visible positions, after its final norm.
    """

    predicted: Tensor
    target: Tensor
    context: Tensor


class Jepa(nn.Module):
    """Student encoder, its moving average, and the predictor between them.

    Args:
        encoder: The student; sees the visible tokens only.
        config: Predictor and moving average.
    """

    def __init__(self, encoder: VisionTransformer3d, config: JepaConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        dim = encoder.config.embed_dim
        self.predictor = TokenFiller(dim, config.predictor_dim, config.predictor_depth, config.predictor_heads, dim)

    @property
    def exported(self) -> VisionTransformer3d:
        """The encoder that is kept."""
        return self.target_encoder

    @torch.no_grad()
    def targets(self, volumes: Tensor, mask: Mask | None = None) -> Tensor:
        """Latents to predict: target encoder on all tokens (but those dropped), layer-normed over features.

        Returns:
            (B, H, E) float32 at ``mask.hidden``; without a mask, (B, N, E) at all positions.
        """
        if mask is None:
            latents = self.target_encoder(volumes).float()
        else:
            latents = self.target_encoder(volumes, mask.both)[:, mask.visible.shape[1] :].float()
        return F.layer_norm(latents, latents.shape[-1:])

    def forward(self, volumes: Tensor, mask: Mask, targets: Tensor | None = None) -> JepaOutput:
        """Volumes (B, 1, D, H, W) -> predictions, targets (computed unless given) and context."""
        grid = patch_grid(volumes.shape, self.encoder.config.patch_size)
        context = self.encoder(volumes, mask.visible)
        predicted = self.predictor(context, mask, grid)
        return JepaOutput(predicted, self.targets(volumes, mask) if targets is None else targets, context)

    @torch.no_grad()
    def update_target(self, decay: float) -> None:
        """Move the target encoder towards the student: θ' ← decay · θ' + (1 - decay) · θ."""
        torch._foreach_lerp_(list(self.target_encoder.parameters()), list(self.encoder.parameters()), 1.0 - decay)
