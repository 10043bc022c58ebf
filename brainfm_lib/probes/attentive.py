"""The attentive probe: one learned query over the tokens of a frozen encoder."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from brainfm_lib.device import best_device, fixed_threads
from brainfm_lib.features import VolumeReader, extract_tokens
from brainfm_lib.models import VisionTransformer3d
from brainfm_lib.models.attentive import AttentivePool
from brainfm_lib.probes.results import Array, ProbeResult, write_result
from brainfm_lib.probes.training import TrainingConfig, train_and_score


@dataclass(frozen=True)
class AttentiveConfig(TrainingConfig):
    """How the query and the classifier behind it are trained."""

    batch_size: int = 64
    lr: float = 1e-3


class AttentiveHead(nn.Module):
    """Attentive pooling, batch norm without weights and a linear layer: tokens (B, N, E) -> logits (B, C)."""

    def __init__(self, embed_dim: int, heads: int, classes: int) -> None:
        super().__init__()
        self.attend = AttentivePool(embed_dim, heads)
        self.norm, self.head = nn.BatchNorm1d(embed_dim, affine=False, eps=1e-6), nn.Linear(embed_dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, float32."""
        return self.head(self.norm(self.attend(tokens))).float()


def attentive_probe(
    tokens: Mapping[str, Array],
    table: pd.DataFrame,
    config: AttentiveConfig,
    *,
    heads: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Train a query and a classifier on frozen tokens; the block to read from and the epoch are chosen on validation.

    Args:
        tokens: Block -> (n, N, E), rows as in `table`.
        table: As for `probes.training.train_and_score`; two folds leave nothing to choose on, and the first block is
            taken.
        config: The recipe.
        heads: Of the attention, a divisor of E.
        seed: Of weights and order.
        device: Where to compute.

    Raises:
        InputError: As in `probes.linear_probe`.
    """
    device = torch.device(device)

    def on(values: Array) -> ProbeResult:
        def make_model(classes: int) -> nn.Module:
            return AttentiveHead(values.shape[-1], heads, classes)

        def load(rows: Array, _: torch.Generator | None) -> Tensor:
            return torch.from_numpy(values[rows]).to(device).float()

        with fixed_threads(device, values.shape[-1]):
            return train_and_score(make_model, load, table, config, seed=seed, device=device)

    found = {block: on(values) for block, values in tokens.items()}
    parts, chosen = [], []
    for i in range(len(next(iter(found.values())).chosen)):  # once, or for each fold
        reached = {block: result.chosen["validation_auroc"].iloc[i] for block, result in found.items()}
        block = max(reached, key=lambda name: reached[name] if np.isfinite(reached[name]) else -1.0)
        record, held = found[block].chosen.iloc[[i]], found[block].predictions
        parts.append(held[held["fold"] == record["fold"].iloc[0]] if "fold" in held else held)
        chosen.append(record.assign(pooling=f"attentive@{block}"))
    return ProbeResult(pd.concat(parts).sort_index().reset_index(drop=True), pd.concat(chosen).reset_index(drop=True))


def make_attentive(
    encoder_folder: Path,
    volumes: Callable[[], VolumeReader],
    table: pd.DataFrame,
    config: AttentiveConfig,
    settings: Mapping[str, Any],
    *,
    batch_size: int,
    cpu: bool = False,
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls; tokens (float16) lie in a temporary file beside the run while it is made."""

    def make(folder: Path) -> dict[str, Any]:
        device = best_device(cpu=cpu)
        encoder = VisionTransformer3d.from_pretrained(encoder_folder)
        rows = table["row"].to_numpy()
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tokens-") as scratch:
            tokens = extract_tokens(encoder, volumes(), rows, Path(scratch), batch_size=batch_size, device=device)
            result = attentive_probe(
                tokens, table, config, heads=encoder.config.heads, seed=settings["seed"], device=device
            )
            del tokens
        write_result(result, settings, folder, p=float("nan") if "fold" in table else None)
        return {"device": device.type}

    return make
