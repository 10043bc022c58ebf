"""Training on a labelled task, of an encoder or a CNN from scratch; the epoch is chosen on validation subjects."""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from brainfm_lib.data.augment import AugmentConfig, augment, draw_augmentation, zscore
from brainfm_lib.device import NARROW, best_device, fixed_threads
from brainfm_lib.features import VolumeReader, pool
from brainfm_lib.models import VisionTransformer3d
from brainfm_lib.models.attentive import AttentivePool
from brainfm_lib.models.baselines import small_resnet
from brainfm_lib.probes.results import ProbeResult, write_result
from brainfm_lib.probes.training import TrainingConfig, train_and_score
from brainfm_lib.tokens import patch_grid

Array = np.ndarray


@dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """How an encoder is fine-tuned.

    Attributes:
        layer_decay: Learning rate of a block over that of the block after it.
        frozen_epochs: First epochs in which the head alone is trained.
        pooling: ``mean``, ``attentive`` (one learned query) or ``regional`` (2 × 2 × 2 means: place survives).
        augment: What happens to training volumes.
    """

    layer_decay: float = 0.75
    frozen_epochs: int = 0
    pooling: str = "mean"
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in ("mean", "attentive", "regional"):
            raise ValueError(f"fine-tuning: pooling is mean, attentive or regional, got {self.pooling!r}")


class Classifier(nn.Module):
    """Encoder, pooling over tokens, batch norm and linear head: volumes (B, 1, D, H, W) -> logits (B, C).

    The batch norm (without weights, as in the probes of He et al. 2022) puts directions in which pretrained features
    hardly vary on a par with the few in which they vary most; without it a short training never reaches them.
    """

    def __init__(self, encoder: VisionTransformer3d, classes: int, pooling: str) -> None:
        super().__init__()
        size = encoder.config
        self.encoder = encoder
        self.pooling = pooling
        self.attend = AttentivePool(size.embed_dim, size.heads) if pooling == "attentive" else None
        width = size.embed_dim * (8 if pooling == "regional" else 1)
        self.norm, self.head = nn.BatchNorm1d(width, affine=False, eps=1e-6), nn.Linear(width, classes)

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits, float32."""
        tokens = self.encoder(volumes)
        grid = patch_grid(volumes.shape, self.encoder.config.patch_size)
        pooled = pool(tokens, grid, self.pooling) if self.attend is None else self.attend(tokens)
        return self.head(self.norm(pooled)).float()


def finetune(
    encoder: VisionTransformer3d | None,
    volumes: Array,
    table: pd.DataFrame,
    config: FinetuneConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Fine-tune a copy of `encoder` and score held-out scans.

    Args:
        encoder: Starting weights, left as they are. Freshly initialised ones make it training from scratch. None:
            MONAI's convolutional network from scratch in place of encoder and pooling.
        volumes: (n, D, H, W) in [0, 1], rows as in `table`.
        table: As in `probes.training.train_and_score`.
        config: The recipe.
        seed: Of head, order and augmentation.
        device: Where to compute.

    Returns:
        Scores of the epoch with the best AUROC over validation subjects (ties: lowest validation loss).

    Raises:
        InputError: As in `probes.linear_probe`.
    """
    device = torch.device(device)

    def make_model(classes: int) -> nn.Module:
        if encoder is None:
            return small_resnet(classes).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return Classifier(copy.deepcopy(encoder), classes, config.pooling)

    def load(rows: Array, generator: torch.Generator | None) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(volumes[rows])).to(device).float().unsqueeze(1)
        if generator is not None:
            batch = augment(batch, draw_augmentation(len(rows), generator), config.augment, in_place=True)
        batch = zscore(batch)
        return batch if encoder is not None else batch.contiguous(memory_format=torch.channels_last_3d)

    def started(model: nn.Module, epoch: int) -> None:
        if isinstance(model, Classifier):
            model.encoder.requires_grad_(epoch >= config.frozen_epochs)

    depth = 0 if encoder is None else encoder.config.depth

    def rate(name: str) -> float:
        return config.layer_decay ** (depth + 1 - _level(name, depth))

    with fixed_threads(device, NARROW if encoder is None else encoder.config.embed_dim):
        return train_and_score(make_model, load, table, config, rate=rate, started=started, seed=seed, device=device)


def make_finetune(
    encoder_folder: Path | None,
    volumes: Callable[[], VolumeReader],
    table: pd.DataFrame,
    config: FinetuneConfig,
    settings: Mapping[str, Any],
    *,
    cpu: bool = False,
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls; `row` of the table is the scan's row in the volumes; settings as for a probe."""

    def make(folder: Path) -> dict[str, Any]:
        device = best_device(cpu=cpu)
        encoder = None if encoder_folder is None else VisionTransformer3d.from_pretrained(encoder_folder)
        bank = volumes().read(table["row"].to_numpy()).astype(np.float16)
        result = finetune(encoder, bank, table, config, seed=settings["seed"], device=device)
        # Fixed scores of cross-validated models permute too leniently, and refitting them is dear: no p is given.
        write_result(result, settings, folder, p=float("nan") if "fold" in table else None)
        return {"device": device.type, "epochs": config.epochs}

    return make


def _level(name: str, depth: int) -> int:
    """How far from the input a parameter stands: 0 for the embedding, then the blocks, depth + 1 for all that follows.

    A network that is no transformer (depth 0) stands at one level.
    """
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(("encoder.embed", "encoder.positions")) else depth + 1
