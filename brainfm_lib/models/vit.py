"""Vision transformer on 3D patches: fixed sin-cos positions, pre-norm, no class token, any grid, any token subset."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from brainfm_lib.errors import InputError
from brainfm_lib.identity import save_tensors, write_atomic
from brainfm_lib.models import lean
from brainfm_lib.tokens import gather, patch_grid, patchify, rows_at


@dataclass(frozen=True)
class VisionTransformerConfig:
    """Size of the encoder. The paper's is ViT-Base: 768 wide, 12 blocks, 12 heads, patch 8.

    Attributes:
        patch_size: Edge of a cubic patch in voxels.
        embed_dim: Width E; a multiple of `heads` and of 2.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over E.
        position_grid: Patch grid of stored, learned positions, for imported encoders; None for fixed sin-cos ones.
    """

    patch_size: int = 8
    embed_dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    position_grid: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.patch_size, self.embed_dim, self.depth, self.heads) < 1 or self.embed_dim % self.heads:
            raise ValueError(f"encoder: sizes are positive and embed_dim is a multiple of heads, got {self}")


COMPILED_SHAPES = 64  # of blocks in one process: encoders and decoders, training or not, several batches and precisions
_PLAIN = (lambda x, norm, linear: linear(norm(x)), lambda x, linear: linear(F.gelu(x)))


class Block(nn.Module):
    """Pre-norm transformer block on (B, K, E).

    Attributes:
        recomputed: Keep nothing for the backward pass but the input (set by `recompute_activations`).
    """

    recomputed = False

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = round(dim * mlp_ratio)
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, K, E) -> (B, K - start, E): all tokens are attended to, those from `start` on are computed."""
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self._transform, x, start, use_reentrant=False, preserve_rng_state=False)
        return self._transform(x, start)

    def _transform(self, x: Tensor, start: int) -> Tensor:
        b, k, e = x.shape
        # a compiler fuses cheap steps and recomputes them on its own
        norm_linear, gelu_linear = (lean.norm_linear, lean.gelu_linear) if not is_compiling() else _PLAIN
        q, key, v = (
            norm_linear(x, self.norm1, self.qkv).view(b, k, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(q[:, :, start:], key, v).transpose(1, 2).reshape(b, k - start, e)
        x = x[:, start:] + self.proj(attended)
        return x + gelu_linear(norm_linear(x, self.norm2, self.fc1), self.fc2)


def recompute_activations(model: nn.Module) -> None:
    """Trade time for memory: let every transformer block of `model` recompute its activations in the backward pass."""
    for module in model.modules():
        if isinstance(module, Block):
            module.recomputed = True


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the transformer blocks of `model` in place, once for each shape of tokens; state names stay."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(backend=backend, dynamic=False)


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in linear layers, as in MAE (He et al. 2022)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@lru_cache(maxsize=32)
def sincos_positions(grid: tuple[int, int, int], dim: int, device: torch.device) -> Tensor:
    """Fixed 3D positions of the tokens of a patch grid.

    Each axis gets 2·(dim // 6) features, sines then cosines of index · 10000^(-i / (dim // 6)) with the token's
    index (d, h, w) along that axis; what is left of `dim` stays zero.

    Returns:
        (N, dim) float32, tokens in C order.
    """
    per_axis = dim // 6
    omega = 10000.0 ** (-torch.arange(per_axis, dtype=torch.float64) / max(per_axis, 1))
    index = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))  # (N, 3), C order
    angle = index[:, :, None] * omega  # (N, 3, per_axis)
    features = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)
    return F.pad(features, (0, dim - features.shape[1])).float().to(device)


class VisionTransformer3d(nn.Module):
    """The encoder.

    Args:
        config: Its size. The grid is not part of it: positions are computed for whatever volume comes.
    """

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.patch_size**3, config.embed_dim)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim)
        if config.position_grid is not None:
            self.positions = nn.Parameter(torch.zeros(math.prod(config.position_grid), config.embed_dim))
        self.apply(init_weights)

    def forward(self, volumes: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode all tokens, or the visible ones alone.

        Args:
            volumes: (B, 1, D, H, W) float32, z-scored, each axis a multiple of the patch size.
            visible: (B, K) int64 positions to embed and attend over; None for all N.

        Returns:
            (B, K, E), after the final norm.
        """
        x = self.embed_tokens(volumes, visible)
        for layer in self.blocks:
            x = layer(x)
        return self.norm(x)

    def embed_tokens(self, volumes: Tensor, visible: Tensor | None = None) -> Tensor:
        """Linear embedding plus position, of the visible tokens alone where `visible` is given: (B, K, E)."""
        tokens = patchify(volumes, self.config.patch_size)
        grid = patch_grid(volumes.shape, self.config.patch_size)
        positions = self._positions(grid, volumes.device)
        if visible is not None:
            tokens, positions = gather(tokens, visible), rows_at(positions, visible)
        return self.embed(tokens) + positions

    def _positions(self, grid: tuple[int, int, int], device: torch.device) -> Tensor:
        """Positions (N, E): computed, or the learned ones, interpolated linearly to another grid than their own."""
        native = self.config.position_grid
        if native is None:
            return sincos_positions(grid, self.config.embed_dim, device)
        if native == grid:
            return self.positions
        table = self.positions.T.unflatten(1, native).unsqueeze(0)
        return F.interpolate(table, size=grid, mode="trilinear", align_corners=False)[0].flatten(1).T

    def block_outputs(self, volumes: Tensor, blocks: Sequence[int]) -> dict[int, Tensor]:
        """Outputs (B, N, E) of the given blocks (1-based) in one pass; that of the last one after the final norm."""
        x, outputs = self.embed_tokens(volumes), {}
        for number, layer in enumerate(self.blocks[: max(blocks)], start=1):
            x = layer(x)
            if number in blocks:
                outputs[number] = self.norm(x) if number == self.config.depth else x
        return outputs

    def save_pretrained(self, folder: str | Path, *, card: str | None = None) -> None:
        """Write ``model.safetensors`` and ``config.json``, and the model card ``README.md`` if given, into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomic(folder / "model.safetensors") as path:
            save_tensors({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, path)
        with write_atomic(folder / "config.json") as path:
            path.write_text(json.dumps({"model_type": "vision_transformer_3d", **asdict(self.config)}, indent=2))
        if card is not None:
            with write_atomic(folder / "README.md") as path:
                path.write_text(card, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "VisionTransformer3d":
        """Read what `save_pretrained` wrote.

        Raises:
            InputError: A file is missing or does not hold such an encoder.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            fields = json.loads((folder / "config.json").read_text())
            fields.pop("model_type", None)
            if fields.get("position_grid") is not None:
                fields["position_grid"] = tuple(fields["position_grid"])
            model = cls(VisionTransformerConfig(**fields))
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"{folder} holds no encoder of ours ({str(error).splitlines()[0]}): it needs the model.safetensors and "
                "config.json that save_pretrained writes."
            ) from error
        return model
