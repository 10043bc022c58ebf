"""Volumes to tokens and back. A token is one cubic patch; tokens run in C order over the patch grid (d, h, w)."""

import torch
from torch import Tensor

from brainfm_lib.masking import Mask


def patch_grid(shape: tuple[int, ...] | torch.Size, patch_size: int) -> tuple[int, int, int]:
    """Number of patches along each axis of a volume of `shape` (..., D, H, W).

    Raises:
        ValueError: An axis is not a multiple of the patch size.
    """
    d, h, w = shape[-3:]
    if d % patch_size or h % patch_size or w % patch_size:
        raise ValueError(f"volume {(d, h, w)} is not a whole number of patches of {patch_size}³")
    return d // patch_size, h // patch_size, w // patch_size


def patchify(volumes: Tensor, patch_size: int) -> Tensor:
    """Cut volumes into tokens.

    Args:
        volumes: (B, 1, D, H, W), each axis a multiple of `patch_size`.
        patch_size: P, edge of a patch in voxels.

    Returns:
        (B, N, P³) with N = (D/P)(H/P)(W/P), patches and the voxels inside them in C order.
    """
    p, (d, h, w) = patch_size, patch_grid(volumes.shape, patch_size)
    blocks = volumes.reshape(-1, d, p, h, p, w, p).permute(0, 1, 3, 5, 2, 4, 6)
    return blocks.reshape(volumes.shape[0], d * h * w, p**3)


def unpatchify(tokens: Tensor, grid: tuple[int, int, int], patch_size: int) -> Tensor:
    """Put tokens (B, N, P³) back into volumes (B, 1, D, H, W): the inverse of `patchify`."""
    (d, h, w), p = grid, patch_size
    blocks = tokens.reshape(-1, d, h, w, p, p, p).permute(0, 1, 4, 2, 5, 3, 6)
    return blocks.reshape(tokens.shape[0], 1, d * p, h * p, w * p)


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Take tokens (B, N, E) at positions `index` (B, K) -> (B, K, E).

    An index that is one row expanded over the batch (a shared mask) is taken as such, which is several times as fast.
    """
    if index.stride(0) == 0:
        return tokens.index_select(1, index[0])
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def rows_at(table: Tensor, index: Tensor) -> Tensor:
    """Rows of `table` (N, E) at `index` (B, K): (B, K, E), or (1, K, E) to be broadcast where the index is shared."""
    return table[index[:1]] if index.stride(0) == 0 else table[index]


def scatter(tokens: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Return tokens (B, N, E) with those at `index` (B, K) replaced by `values` (B, K, E); differentiable in both."""
    if index.stride(0) == 0:
        return tokens.index_copy(1, index[0], values)
    return tokens.scatter(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), values)


def mosaic(volumes: Tensor, predicted: Tensor, mask: Mask, patch_size: int) -> Tensor:
    """True voxels where the encoder saw them, predicted voxels where they were hidden.

    Args:
        volumes: (B, 1, D, H, W).
        predicted: (B, K, P³), predictions at ``mask.hidden`` in its order.
        mask: Visible and hidden positions.
        patch_size: P.

    Returns:
        (B, 1, D, H, W), in the dtype of `predicted`.
    """
    true = patchify(volumes, patch_size).to(predicted.dtype)
    return unpatchify(scatter(true, mask.hidden, predicted), patch_grid(volumes.shape, patch_size), patch_size)
