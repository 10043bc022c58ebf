"""LeJEPA (Balestriero and LeCun 2025) on masked views: embed two of a volume alike, without teacher or predictor."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brainfm_lib.device import send
from brainfm_lib.losses.sigreg import draw_directions
from brainfm_lib.masking import Mask
from brainfm_lib.models.vit import VisionTransformer3d, init_weights


@dataclass(frozen=True)
class LejepaConfig:
    """The projector between pooled tokens and the embedding that the losses see: two layers, GELU between them.

    Attributes:
        projector_hidden: Width of its hidden layer.
        projector_dim: Width of the embedding.
    """

    projector_hidden: int = 1024
    projector_dim: int = 64

    def __post_init__(self) -> None:
        if min(self.projector_hidden, self.projector_dim) < 1:
            raise ValueError(f"lejepa: the projector's widths are positive, got {self}")


def second_view(mask: Mask) -> Tensor:
    """Positions (B, V) of the other view: as many as are visible, evenly picked from those that are not.

    Where fewer are hidden than visible, all of them.
    """
    visible, hidden = mask.visible.shape[1], mask.hidden.shape[1]
    count = min(visible, hidden)
    picked = (torch.arange(count, device=mask.hidden.device) * 2 + 1) * hidden // (2 * count)
    if mask.hidden.stride(0) == 0:  # one row for all samples stays one
        return mask.hidden[:1, picked].expand(len(mask.hidden), -1)
    return mask.hidden[:, picked]


class Lejepa(nn.Module):
    """Encoder and projector. Two views of a volume are its visible tokens and as many of those that are hidden.

    Args:
        encoder: Sees the tokens of one view at a time.
        config: Size of the projector.
        directions: Number of those that SIGReg looks along; zeros until `redraw` was called.
    """

    def __init__(self, encoder: VisionTransformer3d, config: LejepaConfig, directions: int) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        dim = encoder.config.embed_dim
        self.projector = nn.Sequential(
            nn.Linear(dim, config.projector_hidden), nn.GELU(), nn.Linear(config.projector_hidden, config.projector_dim)
        )
        self.projector.apply(init_weights)
        self.register_buffer("directions", torch.zeros(config.projector_dim, directions), persistent=False)
        self.directions: Tensor

    @property
    def exported(self) -> VisionTransformer3d:
        """The encoder that is kept, without the projector."""
        return self.encoder

    def forward(self, volumes: Tensor, mask: Mask) -> Tensor:
        """Volumes (B, 1, D, H, W) -> embeddings (2, B, projector_dim) of the mean token of either view."""
        views = (mask.visible, second_view(mask))
        return self.projector(torch.stack([self.encoder(volumes, view).mean(dim=1) for view in views]))

    def redraw(self, generator: torch.Generator) -> None:
        """New directions, in place; `generator` on the host, so that all devices and processes look the same way."""
        dim, count = self.directions.shape
        self.directions.copy_(send(draw_directions(dim, count, generator), self.directions.device))
