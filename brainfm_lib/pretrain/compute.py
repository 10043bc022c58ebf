"""Arithmetic of training, counted from sizes: FLOPs of matrix products, convolutions and attention, and tokens seen.

Per volume and pass, a block of width E on K tokens takes 2K(4E² + 2EM) + 4K²E, M being the MLP's width; embedding and
read-out take 2K·(in)·(out). Backward counts twice forward, recomputation is not counted, nor are the Fourier transforms
and covariances of auxiliary losses (their time is measured in `benchmarks/step.md`).
"""

from dataclasses import dataclass

import torch

from brainfm_lib.masking import visible_count
from brainfm_lib.models import VisionTransformerConfig
from brainfm_lib.objectives import ObjectiveConfig
from brainfm_lib.pretrain.config import PretrainConfig
from brainfm_lib.tokens import patch_grid


def block_flops(tokens: int, width: int, mlp: float = 4.0) -> float:
    """Forward pass of one transformer block on one volume."""
    return 2 * tokens * (4 + 2 * mlp) * width**2 + 4 * tokens**2 * width


def encoder_flops(encoder: VisionTransformerConfig, tokens: int) -> float:
    """Forward pass of an encoder on some tokens of one volume."""
    embed = 2 * tokens * encoder.patch_size**3 * encoder.embed_dim
    return encoder.depth * block_flops(tokens, encoder.embed_dim, encoder.mlp_ratio) + embed


def step_flops(objective: ObjectiveConfig, tokens: int, seen: int) -> float:
    """Forward and backward pass of a training step on one volume.

    Args:
        objective: The arm.
        tokens: Tokens of a volume, those dropped as air left out.
        seen: Tokens that the encoder sees.
    """
    encoder = objective.encoder
    student = encoder_flops(encoder, seen)
    if objective.lejepa is not None:  # two views, as large as each other unless most tokens are seen
        projector = objective.lejepa.projector_hidden * (encoder.embed_dim + objective.lejepa.projector_dim)
        return 3 * (student + encoder_flops(encoder, min(seen, tokens - seen)) + 2 * 2 * projector)
    if objective.mae is not None:
        dim, depth, out, target = objective.mae.decoder_dim, objective.mae.decoder_depth, encoder.patch_size**3, 0.0
    else:
        assert objective.jepa is not None
        dim, depth, out = objective.jepa.predictor_dim, objective.jepa.predictor_depth, encoder.embed_dim
        target = encoder_flops(encoder, tokens)  # without gradient
    filler = depth * block_flops(tokens, dim) + 2 * seen * encoder.embed_dim * dim + 2 * (tokens - seen) * dim * out
    return 3 * (student + filler) + target


@dataclass(frozen=True)
class Cost:
    """What a run takes.

    Attributes:
        volumes: Volumes, each pass counted.
        tokens_seen: Tokens that the encoder saw in training, over all volumes.
        flops: Of the whole run.
    """

    volumes: int
    tokens_seen: int
    flops: float


def pretraining_cost(config: PretrainConfig) -> Cost:
    """Cost of a pretraining run; of the authors' masks, whose size varies, the expected one."""
    d, h, w = patch_grid(config.geometry.grid, config.objective.encoder.patch_size)
    tokens = round(config.mask.budget * d * h * w)
    if config.mask.kind == "replica":  # drawn with replacement
        seen = round(tokens * (1 - 1 / tokens) ** round(config.mask.ratio * tokens))
    else:
        seen = visible_count(tokens, config.mask.ratio)
    volumes = config.optimiser.steps * config.optimiser.batch_size
    return Cost(volumes, volumes * seen, volumes * step_flops(config.objective, tokens, seen))


def finetuning_flops(encoder: VisionTransformerConfig, grid: tuple[int, int, int], volumes: int) -> float:
    """Training an encoder with a linear head on `volumes` volumes, each pass counted."""
    d, h, w = patch_grid(grid, encoder.patch_size)
    return 3 * volumes * encoder_flops(encoder, d * h * w)


def cnn_flops(grid: tuple[int, int, int], volumes: int) -> float:
    """Training the supervised CNN on `volumes` volumes of a grid, each pass counted; its convolutions are counted."""
    from torch.utils.flop_counter import FlopCounterMode

    from brainfm_lib.models.baselines import small_resnet

    model = small_resnet(2).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 1, *grid, device="meta"))
    return 3.0 * volumes * counter.get_total_flops()


def matched_epochs(grid: tuple[int, int, int], volumes: int, flops: float, most: int) -> int:
    """Epochs in which the CNN spends `flops` on a training set of `volumes`; at least 1, at most `most`.

    Where few scans are labelled and pretraining was long, a CNN would otherwise see each of them thousands of times.
    """
    return min(max(round(flops / cnn_flops(grid, max(volumes, 1))), 1), most)
