"""Which tokens the encoder sees. A mask is two index tensors, drawn on the device, gathered once."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from brainfm_lib.device import send
from brainfm_lib.ranks import sum_over_ranks


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

    @property
    def both(self) -> Tensor:
        """Visible, then hidden positions, (B, V + H); a shared mask stays one expanded row."""
        if self.visible.stride(0) == 0:
            return torch.cat([self.visible[:1], self.hidden[:1]], dim=1).expand(len(self.visible), -1)
        return torch.cat([self.visible, self.hidden], dim=1)

    def among(self, positions: Tensor) -> "Mask":
        """Read this mask (B, ·) as ranks within `positions` (1 or B, K): what is not among them is dropped."""
        if len(positions) == 1:
            return Mask(positions[0][self.visible], positions[0][self.hidden])
        return Mask(positions.take_along_dim(self.visible, 1), positions.take_along_dim(self.hidden, 1))

    def rows(self, rows: slice) -> "Mask":
        """The masks of some samples."""
        return Mask(self.visible[rows], self.hidden[rows])


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
    return _split(torch.rand(batch, n_tokens, generator=generator, device=device), ratio)


def block_mask(
    batch: int,
    grid: tuple[int, int, int],
    ratio: float,
    *,
    blocks: int = 4,
    stretch: float = 1.5,
    among: Tensor | None = None,
    rows: slice = slice(None),
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Mask:
    """Draw `batch` masks that hide the union of several boxes, with exactly as many tokens hidden as `random_mask`.

    Every box has a random centre and random proportions; all are inflated together until the share `ratio` is hidden,
    and of the tokens that the last inflation would add at once, a random part is taken. So shapes are static and
    nothing waits for the device. (Multi-block masking as in I-JEPA and V-JEPA, whose boxes have a fixed size instead,
    which leaves the count to chance.)

    Args:
        batch: Number of masks.
        grid: Patch grid (d, h, w), tokens in C order.
        ratio: Share hidden.
        blocks: Number of boxes; they may overlap.
        stretch: Each half-edge of a box is log-uniform within 1/stretch to stretch times the common one.
        among: (1 or B, K) positions to choose from, see `foreground_tokens`; the mask is in terms of their ranks.
        rows: Of the batch, those wanted, which is what B above means; the others are drawn and left out.
        generator: On `device`.
        device: Where the mask is drawn.
    """
    centres, log_edges = (torch.rand(batch, 3, blocks, generator=generator, device=device)[rows] for _ in range(2))
    ties = torch.rand(batch, grid[0] * grid[1] * grid[2], generator=generator, device=device)[rows]
    axes = [(torch.arange(n, device=centres.device) + 0.5) for n in grid]
    places = torch.cartesian_prod(*axes).view(1, -1, 3, 1)  # (1, N, 3, 1)
    if among is not None:
        places = places.expand(len(among), -1, -1, -1).take_along_dim(among[:, :, None, None], dim=1)
        ties = ties[:, : among.shape[1]]
    size = torch.stack([torch.full_like(centres[:, 0], n) for n in grid], dim=1)
    edges = size.prod(dim=1, keepdim=True) ** (1 / 3) * stretch ** (2 * log_edges - 1)
    distance = ((places - (centres * size)[:, None]).abs() / edges[:, None]).amax(dim=2).amin(dim=-1)  # (B, K)
    return _split(-distance + 1e-4 * ties, ratio)


def _split(score: Tensor, ratio: float) -> Mask:
    """Hide the share `ratio` of each row (B, N) with the largest score."""
    keep = visible_count(score.shape[1], ratio)
    order = score.argsort(dim=1)
    return Mask(order[:, :keep].sort(dim=1).values, order[:, keep:].sort(dim=1).values)


def foreground_tokens(volumes: Tensor, patch_size: int, budget: float, *, shared: bool) -> Tensor:
    """Positions of the tokens with most foreground: those that stay when air is dropped.

    Args:
        volumes: (B, 1, D, H, W) with background 0, before the z-score.
        patch_size: P.
        budget: Share of the N tokens that stay, the same for every volume, so that shapes are static.
        shared: One set for the whole batch of all processes, by the mean share of foreground, as one shared mask needs.

    Returns:
        (1, K) where `shared`, else (B, K): positions, ascending.
    """
    share = F.avg_pool3d((volumes > 0).float(), patch_size).flatten(1)
    if shared:
        share = sum_over_ranks(share.sum(dim=0, keepdim=True))
    count = min(max(round(budget * share.shape[1]), 2), share.shape[1])
    return share.topk(count, dim=1).indices.sort(dim=1).values


def dropped_foreground(volumes: Tensor, patch_size: int, kept: Tensor) -> Tensor:
    """Share of the foreground of volumes (B, 1, D, H, W) outside the tokens `kept` (1 or B, K); scalar."""
    share = F.avg_pool3d((volumes > 0).float(), patch_size).flatten(1)
    inside = share.take_along_dim(kept.expand(len(share), -1), 1).sum()
    return 1 - inside / share.sum().clamp_min(1e-12)


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
    changes from draw to draw, so the shapes of what follows do: drawn on an accelerator, the host must wait for it.
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
    """Draw masks whose visible sets partition the tokens, each of shape (1, K).

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


@dataclass(frozen=True)
class MaskConfig:
    """How tokens are hidden.

    Attributes:
        ratio: Share hidden.
        kind: ``random`` (exact share, without replacement), ``block`` (as many, in boxes) or ``replica`` (the authors'
            draw with replacement).
        shared: One mask for the whole global batch, which the variance term of VCR needs; else one a volume.
        blocks: Number of boxes of a ``block`` mask.
        budget: Share of the tokens that stay in a volume; the others, those with the least foreground, are dropped:
            neither seen nor predicted. 1 drops none. Features are read from whole volumes all the same.
    """

    ratio: float = 0.75
    kind: str = "random"
    shared: bool = True
    blocks: int = 4
    budget: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("random", "block", "replica"):
            raise ValueError(f"mask kind must be random, block or replica, got {self.kind!r}")
        if self.kind == "replica" and not self.shared:
            raise ValueError("replica masks are shared by the batch: their number of hidden tokens varies")
        if not 0.0 < self.ratio < 1.0 or not 0.0 < self.budget <= 1.0 or self.blocks < 1:
            raise ValueError("mask: ratio lies in (0, 1), budget in (0, 1], and blocks is at least 1")

    def kept(self, volumes: Tensor, patch_size: int) -> Tensor | None:
        """Tokens that stay in volumes (B, 1, D, H, W) with background 0: (1 or B, K), or None where all do."""
        if self.budget == 1.0:
            return None
        return foreground_tokens(volumes, patch_size, self.budget, shared=self.shared)

    def draw(
        self,
        batch: int,
        grid: tuple[int, int, int],
        generator: torch.Generator,
        device: torch.device,
        *,
        kept: Tensor | None = None,
        rows: slice = slice(None),
    ) -> Mask:
        """Masks of `rows` of a batch, drawn on `device` (``replica``: on the host, where their length is needed).

        Args:
            batch: Volumes in the whole batch.
            grid: Patch grid (d, h, w).
            generator: On `device`, for ``replica`` on the host.
            device: Where the masks are wanted.
            kept: Tokens that stay in these rows, see `kept`.
            rows: Those wanted here; the masks do not depend on how a batch is split.
        """
        n_tokens = grid[0] * grid[1] * grid[2] if kept is None else kept.shape[1]
        count = 1 if self.shared else batch
        if self.kind == "replica":
            mask = replica_mask(1, n_tokens, self.ratio, generator=generator, device=generator.device)
            mask = Mask(*(send(index, device) for index in mask))
        elif self.kind == "block":
            mask = block_mask(
                count,
                grid,
                self.ratio,
                blocks=self.blocks,
                among=kept,
                rows=slice(None) if self.shared else rows,
                generator=generator,
                device=device,
            )
        else:
            mask = random_mask(count, n_tokens, self.ratio, generator=generator, device=device)
            mask = mask if self.shared else mask.rows(rows)
        if kept is not None:
            mask = mask.among(kept)
        return mask.expand(len(range(*rows.indices(batch)))) if self.shared else mask
