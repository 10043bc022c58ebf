"""Training on a labelled task, of an encoder or a CNN from scratch; the epoch is chosen on validation subjects."""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brainfm_lib.data.augment import AugmentConfig, augment, draw_augmentation, zscore
from brainfm_lib.device import autocast, best_device
from brainfm_lib.features import VolumeReader, pool
from brainfm_lib.models import VisionTransformer3d
from brainfm_lib.models.attentive import AttentivePool
from brainfm_lib.models.baselines import small_resnet
from brainfm_lib.probes.results import ProbeResult, check_table, prediction_table, subject_auroc, write_result
from brainfm_lib.tokens import patch_grid

Array = np.ndarray


@dataclass(frozen=True)
class FinetuneConfig:
    """How an encoder is fine-tuned.

    Attributes:
        epochs: Passes over the training subjects' scans.
        batch_size: Volumes a step.
        lr: Peak learning rate of the head; cosine to zero after the warm-up.
        warmup: Share of the steps.
        weight_decay: Of matrices; biases and norms are left out.
        layer_decay: Learning rate of a block over that of the block after it.
        frozen_epochs: First epochs in which the head alone is trained.
        pooling: ``mean``, ``attentive`` (one learned query) or ``regional`` (2 × 2 × 2 means: place survives).
        clip: Largest global gradient norm.
        augment: What happens to training volumes.
    """

    epochs: int = 20
    batch_size: int = 32
    lr: float = 5e-4
    warmup: float = 0.1
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    frozen_epochs: int = 0
    pooling: str = "mean"
    clip: float = 1.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "attentive", "regional") or min(self.epochs, self.batch_size) < 1:
            raise ValueError(
                f"fine-tuning: pooling is mean, attentive or regional, epochs and batch_size positive, got {self}"
            )


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
        table: As in `probes.linear_probe`. With folds, the next fold is the validation set of each; two folds leave
            none, and the last epoch is taken.
        config: The recipe.
        seed: Of head, order and augmentation.
        device: Where to compute.

    Returns:
        Scores of the epoch with the best AUROC over validation subjects (ties: lowest validation loss).

    Raises:
        InputError: As in `probes.linear_probe`.
    """
    table, device = table.reset_index(drop=True), torch.device(device)
    labels, parts = check_table(table)
    rows, chosen = [], []
    for part, val in _rounds(parts, "split" in table):
        test = parts == part
        model, record = _train(
            encoder, volumes, labels, table, ~test & (parts != val), parts == val, config, seed, device
        )
        rows.append(prediction_table(table[test], _probabilities(model, volumes, np.flatnonzero(test), config, device)))
        chosen.append(({} if "split" in table else {"fold": part}) | record)
    return ProbeResult(pd.concat(rows).sort_index().reset_index(drop=True), pd.DataFrame(chosen))


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
        return {"device": device.type}

    return make


def _rounds(parts: Array, split: bool) -> Iterator[tuple[Any, Any]]:
    """Pairs (held-out part, validation part or None)."""
    if split:
        yield "test", "val"
        return
    folds = sorted(set(parts))
    for i, fold in enumerate(folds):
        yield fold, folds[(i + 1) % len(folds)] if len(folds) > 2 else None


def _train(
    encoder: VisionTransformer3d | None,
    volumes: Array,
    labels: Array,
    table: pd.DataFrame,
    train: Array,
    val: Array,
    config: FinetuneConfig,
    seed: int,
    device: torch.device,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train on `train`, keep the weights of the best epoch on `val` (both (n,) bool)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes = int(labels.max()) + 1
        model: nn.Module = small_resnet(classes)
        if encoder is not None:
            model = Classifier(copy.deepcopy(encoder), classes, config.pooling)
        model = model.to(device)
    fused = device.type in ("cpu", "cuda")  # the plain one takes longer than the step itself on a busy CPU
    optimiser = torch.optim.AdamW(_parameter_groups(model, config), lr=config.lr, fused=fused)
    peaks = [group["lr"] for group in optimiser.param_groups]
    order, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    where, subjects = np.flatnonzero(train), table["subject_id"].to_numpy()
    per_epoch = max(min(math.ceil(len(where) / config.batch_size), len(where) // 2), 1)  # a norm needs two volumes
    best: tuple[tuple[float, float], dict[str, Tensor], dict[str, Any]] | None = None
    for epoch in range(config.epochs):
        model.train()
        if isinstance(model, Classifier):
            model.encoder.requires_grad_(epoch >= config.frozen_epochs)
        for i, rows in enumerate(np.array_split(order.permutation(where), per_epoch)):
            factor = _schedule((epoch * per_epoch + i + 1) / (config.epochs * per_epoch), config.warmup)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            draws = draw_augmentation(len(rows), generator)
            batch = zscore(augment(_load(volumes, rows, device), draws, config.augment))
            with autocast(device):
                logits = model(batch)
            loss = F.cross_entropy(logits, torch.from_numpy(labels[rows]).to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimiser.step()
        record: dict[str, Any] = {"epoch": epoch + 1, "validation_auroc": float("nan")}
        rank = (float(epoch), 0.0)
        if val.any():
            scores = np.full((len(labels), int(labels.max()) + 1), np.nan)
            scores[val] = _probabilities(model, volumes, np.flatnonzero(val), config, device)
            record["validation_auroc"] = subject_auroc(labels, scores, subjects, val)
            rank = (record["validation_auroc"], float(np.log(scores[val, labels[val]] + 1e-12).mean()))
        if best is None or rank > best[0]:
            best = rank, {name: t.detach().clone() for name, t in model.state_dict().items()}, record
    assert best is not None
    model.load_state_dict(best[1])
    return model, best[2]


@torch.inference_mode()
def _probabilities(
    model: nn.Module, volumes: Array, rows: Array, config: FinetuneConfig, device: torch.device
) -> Array:
    """Class probabilities (len(rows), C), float64, no augmentation."""
    model.eval()
    parts = []
    for start in range(0, len(rows), config.batch_size):
        with autocast(device):
            logits = model(zscore(_load(volumes, rows[start : start + config.batch_size], device)))
        parts.append(logits.cpu().double().softmax(1).numpy())
    return np.concatenate(parts)


def _load(volumes: Array, rows: Array, device: torch.device) -> Tensor:
    """Volumes (B, 1, D, H, W) float32 on the device."""
    return torch.from_numpy(np.ascontiguousarray(volumes[rows])).to(device).float().unsqueeze(1)


def _schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then cosine to zero, over progress in (0, 1]."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9)))


def _parameter_groups(model: nn.Module, config: FinetuneConfig) -> list[dict[str, Any]]:
    """One group a depth and kind; the learning rate falls by `layer_decay` a block towards the input."""
    depth = model.encoder.config.depth if isinstance(model, Classifier) else 0
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        block = re.match(r"encoder\.blocks\.(\d+)\.", name)
        first = name.startswith(("encoder.embed", "encoder.positions"))
        level = int(block[1]) + 1 if block else 0 if first else depth + 1
        decays = parameter.ndim > 1 and name != "encoder.positions"
        rate = {
            "params": [],
            "lr": config.lr * config.layer_decay ** (depth + 1 - level),
            "weight_decay": config.weight_decay * decays,
        }
        groups.setdefault((level, decays), rate)["params"].append(parameter)
    return list(groups.values())
