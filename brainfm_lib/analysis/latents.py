"""Covariance of what an encoder says about held-out volumes: pooled, by token, and by token without position."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brainfm_lib.analysis.covariance import eigenspectrum, rank_measures, remove_position_mean
from brainfm_lib.device import autocast, best_device
from brainfm_lib.features import VolumeReader, batches
from brainfm_lib.models import VisionTransformer3d

LEVELS = ("pooled", "tokens", "tokens, position removed")


@torch.inference_mode()
def token_latents(
    encoder: VisionTransformer3d, volumes: VolumeReader, *, batch_size: int, device: torch.device
) -> np.ndarray:
    """Final tokens of every volume, (n, N, E) float32."""
    encoder = encoder.to(device).eval()
    parts = []
    for batch in batches(volumes, batch_size, device):
        with autocast(device):
            parts.append(encoder(batch).float().cpu())
    return torch.cat(parts).numpy()


def measure_latents(tokens: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank measures and eigenspectra at each level.

    Args:
        tokens: (n, N, E).

    Returns:
        ``measures``: a row per level; variance_share is its total variance over that of the tokens: with positions
        removed, how much of what tokens say is about the brain and not about the place.
        ``eigenspectrum``: level, rank (1-based), covariance eigenvalue.
    """
    width = tokens.shape[-1]
    matrices = {
        "pooled": tokens.mean(1),
        "tokens": tokens.reshape(-1, width),
        "tokens, position removed": np.asarray(remove_position_mean(tokens)).reshape(-1, width),
    }
    measures, spectra = [], []
    whole = float(matrices["tokens"].var(axis=0, dtype=np.float64).sum())
    for level, matrix in matrices.items():
        share = float(matrix.var(axis=0, dtype=np.float64).sum()) / max(whole, 1e-30)
        row = {"level": level, "n": len(matrix), "width": width, "variance_share": share}
        measures.append({**row, **rank_measures(matrix)})
        values = np.asarray(eigenspectrum(matrix))
        spectra.append(pd.DataFrame({"level": level, "rank": np.arange(1, len(values) + 1), "eigenvalue": values}))
    return pd.DataFrame(measures), pd.concat(spectra, ignore_index=True)


def make_latents(
    encoder_folder: Path, volumes: Callable[[], VolumeReader], *, batch_size: int, cpu: bool = False
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls."""

    def make(folder: Path) -> dict[str, Any]:
        device = best_device(cpu=cpu)
        encoder = VisionTransformer3d.from_pretrained(encoder_folder)
        tokens = token_latents(encoder, volumes(), batch_size=batch_size, device=device)
        measures, spectra = measure_latents(tokens)
        measures.to_parquet(folder / "measures.parquet")
        spectra.to_parquet(folder / "eigenspectrum.parquet")
        np.save(folder / "pooled.npy", tokens.mean(1), allow_pickle=False)
        return {"device": device.type}

    return make
