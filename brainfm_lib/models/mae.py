"""Masked autoencoder (He et al. 2022) on 3D patches: encode what is visible, reconstruct what is hidden."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brainfm_lib.masking import Mask
from brainfm_lib.models.vit import Block, VisionTransformer3d, init_weights, sincos_positions
from brainfm_lib.tokens import patch_grid, rows_at


@dataclass(frozen=True)
class MaeConfig:
    """Decoder of the masked autoencoder; the paper's is 384 wide, 8 blocks, 6 heads.

    Attributes:
        decoder_dim, decoder_depth, decoder_heads: Size of the decoder.
        normalise_patches: Reconstruct patches standardised by their own mean and deviation (not the paper's).
    """

    decoder_dim: int = 384
    decoder_depth: int = 8
    decoder_heads: int = 6
    normalise_patches: bool = False

    def __post_init__(self) -> None:
        check_size(self.decoder_dim, self.decoder_depth, self.decoder_heads, "decoder")


def check_size(dim: int, depth: int, heads: int, what: str) -> None:
    """Raise a ValueError unless sizes are positive and the width is a multiple of the heads."""
    if min(dim, depth, heads) < 1 or dim % heads:
        raise ValueError(f"{what}: sizes are positive and its width {dim} is a multiple of its {heads} heads")


class TokenFiller(nn.Module):
    """Narrow transformer that fills hidden positions from encoded visible tokens.

    The decoder of MAE and the predictor of JEPA are both this: project, append mask tokens with their positions,
    attend over all, read out the hidden ones. Attention does not mind the order of tokens, so nothing is unshuffled.
    """

    def __init__(self, in_dim: int, dim: int, depth: int, heads: int, out_dim: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.project_out = nn.Linear(dim, out_dim)
        self.apply(init_weights)

    def forward(self, encoded: Tensor, mask: Mask, grid: tuple[int, int, int]) -> Tensor:
        """Encoded visible tokens (B, V, E) -> (B, H, out_dim) at ``mask.hidden``."""
        positions = sincos_positions(grid, self.mask_token.numel(), encoded.device)
        seen = self.project_in(encoded) + rows_at(positions, mask.visible)
        hidden = (self.mask_token + rows_at(positions, mask.hidden)).expand(len(encoded), -1, -1)
        x = torch.cat([seen, hidden.to(seen.dtype)], dim=1)
        n_seen = mask.visible.shape[1]
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, n_seen)  # what the last block would make of seen tokens is not read
        return self.project_out(self.norm(x))


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder.

    Args:
        encoder: Sees the visible tokens only.
        config: Size of the decoder.
    """

    def __init__(self, encoder: VisionTransformer3d, config: MaeConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        size = encoder.config
        self.decoder = TokenFiller(
            size.embed_dim, config.decoder_dim, config.decoder_depth, config.decoder_heads, size.patch_size**3
        )

    @property
    def exported(self) -> VisionTransformer3d:
        """The encoder that is kept."""
        return self.encoder

    def forward(self, volumes: Tensor, mask: Mask) -> Tensor:
        """Volumes (B, 1, D, H, W) -> predicted patches (B, H, P³) at ``mask.hidden``."""
        grid = patch_grid(volumes.shape, self.encoder.config.patch_size)
        return self.decoder(self.encoder(volumes, mask.visible), mask, grid)
