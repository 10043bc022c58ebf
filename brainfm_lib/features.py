"""Frozen encoders -> features: one pass over a cohort, several poolings and blocks at once."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from brainfm_lib.data.augment import zscore
from brainfm_lib.data.batches import scaled
from brainfm_lib.device import autocast, best_device, fixed_threads
from brainfm_lib.errors import InputError
from brainfm_lib.models import VisionTransformer3d
from brainfm_lib.tokens import patch_grid

POOLINGS = ("mean", "mean+std", "regional")
RAW_GRID = (16, 16, 16)


class VolumeReader(Protocol):
    """Whatever hands out prepared volumes: `read(rows)` -> (B, D, H, W) float32 in [0, 1]."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Rows (B,) -> (B, D, H, W)."""


def batches(volumes: VolumeReader, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Z-scored batches (B, 1, D, H, W) float32 on the device, in order; what every evaluation sees."""
    for start in range(0, len(volumes), batch_size):
        rows = range(start, min(start + batch_size, len(volumes)))
        yield zscore(read_onto(volumes, rows, device).unsqueeze(1))


def read_onto(volumes: VolumeReader, rows: Sequence[int], device: torch.device) -> Tensor:
    """Rows (B,) -> (B, D, H, W) float32 in [0, 1] on the device; from a bank that is there without a way round."""
    take = getattr(volumes, "on_device", None)
    if take is not None:
        return scaled(take(rows).to(device))
    return torch.from_numpy(np.ascontiguousarray(volumes.read(rows))).to(device)


def pool(tokens: Tensor, grid: tuple[int, int, int], pooling: str) -> Tensor:
    """Token outputs (B, N, E) of a patch grid -> one vector a volume.

    ``mean``: (B, E). ``mean+std``: (B, 2E), mean and standard deviation over tokens. ``regional``: (B, 8E), means
    over 2 × 2 × 2 regions (overlapping by one patch where an axis is odd), so that place survives.
    """
    tokens = tokens.float()
    if pooling == "mean":
        return tokens.mean(1)
    if pooling == "mean+std":
        return torch.cat([tokens.mean(1), tokens.std(1)], dim=1)
    if pooling == "regional":
        volume = tokens.transpose(1, 2).unflatten(2, grid)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return F.adaptive_avg_pool3d(volume, 2).flatten(1)
    raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")


@torch.inference_mode()
def extract(
    encoder: VisionTransformer3d,
    volumes: VolumeReader,
    *,
    poolings: Sequence[str] = POOLINGS,
    blocks: Sequence[int] | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """Features of every volume.

    Args:
        encoder: Frozen.
        volumes: n prepared volumes.
        poolings: Among `POOLINGS`.
        blocks: Blocks to read from, 1-based; default the middle and the last one.
        batch_size: Volumes a pass.
        device: Where to compute.

    Returns:
        ``{"<pooling>@<block>": (n, features) float32}``.
    """
    device = torch.device(device)
    encoder = encoder.to(device).eval()
    blocks = sorted(set(blocks or read_blocks(encoder)))
    collected: dict[str, list[Tensor]] = {}
    with fixed_threads(device, encoder.config.embed_dim):
        for batch in batches(volumes, batch_size, device):
            grid = patch_grid(batch.shape, encoder.config.patch_size)
            with autocast(device):
                outputs = encoder.block_outputs(batch, blocks)
            for block, tokens in outputs.items():
                for pooling in poolings:
                    collected.setdefault(f"{pooling}@{block}", []).append(pool(tokens, grid, pooling).cpu())
    return {name: torch.cat(parts).numpy() for name, parts in collected.items()}


@torch.inference_mode()
def extract_tokens(
    encoder: VisionTransformer3d,
    volumes: VolumeReader,
    rows: np.ndarray,
    folder: Path,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> dict[str, np.ndarray]:
    """All tokens of the middle and the last block, for what is trained on them: memory-mapped files in `folder`.

    Args:
        encoder: Frozen.
        volumes: Prepared volumes.
        rows: (n,) of the volumes wanted.
        folder: Where ``<block>.npy`` go.
        batch_size: Volumes a pass.
        device: Where to compute.

    Returns:
        ``{"<block>": (n, N, E) float16}``.
    """
    device = torch.device(device)
    encoder = encoder.to(device).eval()
    found: dict[str, np.ndarray] = {}
    with fixed_threads(device, encoder.config.embed_dim):
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size].tolist()
            batch = zscore(torch.from_numpy(np.ascontiguousarray(volumes.read(chosen))).unsqueeze(1))
            with autocast(device):
                outputs = encoder.block_outputs(batch.to(device), read_blocks(encoder))
            for block, tokens in outputs.items():
                shape = (len(rows), *tokens.shape[1:])
                if str(block) not in found:
                    found[str(block)] = np.lib.format.open_memmap(
                        folder / f"{block}.npy", mode="w+", dtype=np.float16, shape=shape
                    )
                found[str(block)][start : start + len(tokens)] = tokens.half().cpu().numpy()
    return found


def read_blocks(encoder: VisionTransformer3d) -> list[int]:
    """Blocks that every protocol may read from, 1-based: the middle and the last one."""
    depth = encoder.config.depth
    return sorted({max(depth // 2, 1), depth})


def raw_voxels(
    volumes: VolumeReader, *, batch_size: int = 64, device: torch.device | str = "cpu"
) -> dict[str, np.ndarray]:
    """The control without any encoder: z-scored voxels averaged to at most 16³, (n, 4096) float32."""
    parts = []
    for batch in batches(volumes, batch_size, torch.device(device)):
        d, h, w = (min(a, b) for a, b in zip(RAW_GRID, batch.shape[-3:], strict=True))
        parts.append(F.adaptive_avg_pool3d(batch, (d, h, w)).flatten(1).cpu())
    return {"voxels": torch.cat(parts).numpy()}


def make_features(
    encoder_folder: Path | None, volumes: Callable[[], VolumeReader], *, batch_size: int, cpu: bool = False
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls; without an encoder, raw voxels. Rows are those of the cohort's table."""

    def make(folder: Path) -> dict[str, Any]:
        device = best_device(cpu=cpu)
        if encoder_folder is None:
            features = raw_voxels(volumes(), device=device)
        else:
            encoder = VisionTransformer3d.from_pretrained(encoder_folder)
            bank = volumes()
            try:
                patch_grid(bank.read([0]).shape, encoder.config.patch_size)
            except ValueError as error:
                raise InputError(f"The encoder does not fit the profile's grid: {error}.") from error
            features = extract(encoder, bank, batch_size=batch_size, device=device)
        for name, array in features.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        return {"device": device.type}

    return make
