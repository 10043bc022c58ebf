"""Which tokens the encoder sees. A mask is two index tensors, drawn on the device, gathered once."""

from typing import NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """Positions of the tokens that are seen and of those to be predicted.

    Attributes:
        visible: (B, V) int64, ascending in each row.
        hidden: (B, H) int64, ascending in each row, disjoint from `visible`. V + H = N unless background
            tokens were dropped before masking.
    """

    visible: Tensor
    hidden: Tensor

    def expand(self, batch: int) -> "Mask":
        """The same mask for every sample: (1, K) -> (B, K), without copying."""
        return Mask(self.visible.expand(batch, -1), self.hidden.expand(batch, -1))


def visible_count(n_tokens: int, ratio: float) -> int:
    """Number of visible tokens at mask ratio `ratio`; at least one token on either side.

    Raises:
        ValueError: The ratio is not between 0 and 1, or there are fewer than two tokens.
    """
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"mask ratio must lie between 0 and 1, got {ratio}")
    if n_tokens < 2:
        raise ValueError(f"masking needs at least two tokens, got {n_tokens}")
    return min(max(round((1.0 - ratio) * n_tokens), 1), n_tokens - 1)


def random_mask(
    batch: int,
    n_tokens: int,
    ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Mask:
    """Draw `batch` masks that hide a share `ratio` of single tokens, without replacement.

    Use ``random_mask(1, ...).expand(B)`` for one mask shared by the batch, the default for every arm: the
    variance term of VCR compares one position across samples.
    """
    keep = visible_count(n_tokens, ratio)
    order = torch.rand(batch, n_tokens, generator=generator, device=device).argsort(dim=1)
    return Mask(order[:, :keep].sort(dim=1).values, order[:, keep:].sort(dim=1).values)


def replica_mask(
    batch: int,
    n_tokens: int,
    ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Mask:
    """The authors' draw: ``round(ratio * N)`` positions *with replacement*, one mask for the whole batch.

    At a nominal ratio r the expected share hidden is 1 - exp(-r): 52.8 % at 0.75. The number of hidden tokens
    changes from draw to draw.
    """
    if not 0.0 < ratio < 1.0 or n_tokens < 2:
        raise ValueError(f"cannot hide a share {ratio} of {n_tokens} tokens")
    drawn = torch.randint(n_tokens, (round(ratio * n_tokens),), generator=generator, device=device)
    is_hidden = torch.zeros(n_tokens, dtype=torch.bool, device=drawn.device)
    is_hidden[drawn] = True
    position = torch.arange(n_tokens, device=drawn.device)
    return Mask(position[~is_hidden].unsqueeze(0), position[is_hidden].unsqueeze(0)).expand(batch)


def partition_masks(
    n_tokens: int,
    ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> list[Mask]:
    """Masks whose visible sets partition the tokens, each of shape (1, K).

    At a ratio of 75 % these are four passes; every token is hidden in all but one of them. Averaging the
    predictions over the passes in which a voxel is hidden gives the *pure prediction*, free of true voxels.
    """
    parts = max(round(n_tokens / visible_count(n_tokens, ratio)), 2)
    order = torch.randperm(n_tokens, generator=generator, device=device)
    masks = []
    for part in range(parts):
        seen = torch.zeros(n_tokens, dtype=torch.bool, device=order.device)
        seen[order[part::parts]] = True
        position = torch.arange(n_tokens, device=order.device)
        masks.append(Mask(position[seen].unsqueeze(0), position[~seen].unsqueeze(0)))
    return masks
