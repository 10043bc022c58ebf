"""Covariance of what an encoder says about held-out volumes: pooled, by token, and by token without position."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brainfm_lib.analysis.covariance import (
    eigenspectrum,
    rank_measures,
    remove_position_mean,
    variance_explained,
)
from brainfm_lib.device import autocast, best_device
from brainfm_lib.features import VolumeReader, batches
from brainfm_lib.models import VisionTransformer3d

FACTORS = ("contrast", "site", "diagnosis", "cohort", "sex")  # columns of scans that may explain variance
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


def explained_table(pooled: np.ndarray, scans: pd.DataFrame, *, draws: int = 300, seed: int = 0) -> pd.DataFrame:
    """How much of the variance of pooled features (n, E) is between contrasts, sites and so on.

    A subject counts once in each of its groups, with the mean over its scans there: scans of one person are alike, and
    as rows of their own would make groups of few people differ. Scans of which a factor is not known are left out.

    Args:
        pooled: A row a scan.
        scans: n rows; of `FACTORS`, those columns that it has are asked; subject_id.
        draws, seed: Of the bootstrap over subjects.

    Returns:
        factor, groups, estimate, low, high: 95 %, percentiles of the draws less their bias, which is upwards, for a
        subject that is drawn twice makes its group look more alike.
    """
    rows = []
    for factor in FACTORS:
        if factor not in scans:
            continue
        known = (scans[factor].notna() & (scans[factor] != "")).to_numpy()
        pairs = scans.loc[known, ["subject_id", factor]].astype(str)
        numbers = pairs.groupby(["subject_id", factor], sort=True).ngroup().to_numpy()
        units = pairs.drop_duplicates().sort_values(["subject_id", factor])
        groups, members = units[factor].to_numpy(), pd.factorize(units["subject_id"])[0]
        if not 1 < units[factor].nunique() < len(units):  # one group, or a group each
            continue
        means = np.zeros((len(units), pooled.shape[1]))
        np.add.at(means, numbers, pooled[known])
        means /= np.bincount(numbers)[:, None]
        rng, own = np.random.default_rng(seed), [np.flatnonzero(members == k) for k in range(members.max() + 1)]
        samples = [np.concatenate([own[k] for k in rng.integers(len(own), size=len(own))]) for _ in range(draws)]
        values = [variance_explained(means[drawn], groups[drawn]) for drawn in samples]
        estimate = variance_explained(means, groups)
        low, high = np.nanquantile(values, [0.025, 0.975]) - (np.nanmean(values) - estimate)
        found = {"estimate": estimate, "low": float(low), "high": float(high)}
        rows.append({"factor": factor, "groups": units[factor].nunique(), **found})
    return pd.DataFrame(rows, columns=["factor", "groups", "estimate", "low", "high"])


def principal_map(pooled: np.ndarray, scans: pd.DataFrame) -> pd.DataFrame:
    """First two principal components of pooled features (n, E), their share of the variance, and the scans' factors."""
    x = pooled.astype(np.float64) - pooled.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    kept = [factor for factor in FACTORS if factor in scans]
    shares = np.square(s) / max(np.square(s).sum(), 1e-300)
    axes = {f"component_{k + 1}": u[:, k] * s[k] for k in range(2)}
    columns = {f"share_{k + 1}": np.full(len(x), shares[k]) for k in range(2)}
    return scans[kept].reset_index(drop=True).assign(**axes, **columns)


def make_latents(
    encoder_folder: Path,
    data: Callable[[], tuple[VolumeReader, pd.DataFrame]],
    *,
    batch_size: int,
    cpu: bool = False,
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls; `data` gives volumes and their scans."""

    def make(folder: Path) -> dict[str, Any]:
        device = best_device(cpu=cpu)
        encoder = VisionTransformer3d.from_pretrained(encoder_folder)
        volumes, scans = data()
        tokens = token_latents(encoder, volumes, batch_size=batch_size, device=device)
        measures, spectra = measure_latents(tokens)
        pooled = tokens.mean(1)
        measures.to_parquet(folder / "measures.parquet")
        spectra.to_parquet(folder / "eigenspectrum.parquet")
        explained_table(pooled, scans).to_parquet(folder / "explained.parquet", index=False)
        principal_map(pooled, scans).to_parquet(folder / "map.parquet", index=False)
        np.save(folder / "pooled.npy", pooled, allow_pickle=False)
        return {"device": device.type}

    return make
