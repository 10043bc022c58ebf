"""Attentive pooling: one learned query over tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentivePool(nn.Module):
    """Cross-attention of one learned query over all tokens, as in the attentive probe of V-JEPA (arXiv 2404.08471).

    Args:
        embed_dim: Width E of the tokens, a multiple of `heads`.
        heads: Attention heads.
    """

    def __init__(self, embed_dim: int, heads: int = 4) -> None:
        super().__init__()
        if embed_dim % heads:
            raise ValueError(f"attentive pooling: embed_dim {embed_dim} is no multiple of heads {heads}")
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.norm = nn.LayerNorm(embed_dim)
        self.kv, self.proj = nn.Linear(embed_dim, 2 * embed_dim), nn.Linear(embed_dim, embed_dim)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, E) -> (B, E)."""
        b, n, e = tokens.shape
        key, value = self.kv(self.norm(tokens)).view(b, n, 2, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)
        query = self.query.to(key.dtype).view(1, 1, self.heads, -1).transpose(1, 2).expand(b, -1, -1, -1)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(b, e))
