"""Encoders that were trained with MONAI's ViT, the layout in which BrainIAC and others publish their weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from brainfm_lib.errors import InputError
from brainfm_lib.models.vit import VisionTransformer3d, VisionTransformerConfig

ANCHOR = "patch_embedding.position_embeddings"
UNUSED = ("norm_cross_attn", "cross_attn")  # MONAI's blocks hold these even where nothing uses them


def import_monai_vit(
    state: Mapping[str, Tensor], *, heads: int = 12, grid: tuple[int, int, int] | None = None
) -> VisionTransformer3d:
    """Turn the state of a ``monai.networks.nets.ViT`` into an encoder with equal outputs.

    The state must be that of a one-channel ViT with cubic patches and no class token (``classification=False``),
    conv or perceptron projection, under any common prefix (``backbone.`` and the like); what stands outside the prefix,
    such as a head, is left aside. The positions are kept as they are and interpolated on other grids.

    Args:
        state: Names to tensors, for instance ``safetensors.torch.load_file(...)`` or
            ``torch.load(file, weights_only=True)["state_dict"]``.
        heads: Attention heads, which a state does not tell.
        grid: Patch grid (d, h, w) of the positions; default a cube.

    Raises:
        InputError: The state is not of that layout; the sentence names the tensor.
    """
    anchors = [name for name in state if name.endswith(ANCHOR)]
    if len(anchors) != 1:
        raise InputError(f"This is no state of one MONAI ViT: {len(anchors)} names end in {ANCHOR!r}.")
    prefix = anchors[0].removesuffix(ANCHOR)
    rest = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if "cls_token" in rest:
        raise InputError(f"{prefix}cls_token: a ViT with a class token (classification=True) cannot be imported.")

    def take(*names: str) -> Tensor:
        for name in names:
            if name in rest:
                return rest.pop(name).detach().float()
        raise InputError(f"This MONAI ViT state lacks {prefix}{names[0]}.")

    positions = take(ANCHOR)[0]
    projection = take("patch_embedding.patch_embeddings.weight", "patch_embedding.patch_embeddings.1.weight")
    width, voxels = len(projection), projection[0].numel()
    patch_size = round(voxels ** (1 / 3))
    cubic = projection.ndim == 2 or projection.shape[1:] == (1, patch_size, patch_size, patch_size)
    if patch_size**3 != voxels or not cubic:
        raise InputError(
            f"{prefix}patch_embedding: {tuple(projection.shape)} is no projection of cubic one-channel patches."
        )
    edge = round(len(positions) ** (1 / 3))
    grid = grid or (edge, edge, edge)
    if grid[0] * grid[1] * grid[2] != len(positions):
        raise InputError(f"{prefix}{ANCHOR} holds {len(positions)} tokens, not {grid}: give the patch grid as `grid`.")
    depth = 1 + max((int(name.split(".")[1]) for name in rest if name.startswith("blocks.")), default=-1)
    if depth == 0:
        raise InputError(f"This MONAI ViT state lacks {prefix}blocks.0.attn.qkv.weight.")

    renamed = {
        "positions": positions,
        "embed.weight": projection.reshape(width, voxels),
        "embed.bias": take("patch_embedding.patch_embeddings.bias", "patch_embedding.patch_embeddings.1.bias"),
        "norm.weight": take("norm.weight"),
        "norm.bias": take("norm.bias"),
    }
    pairs = {"attn.out_proj": "proj", "mlp.linear1": "fc1", "mlp.linear2": "fc2", "norm1": "norm1", "norm2": "norm2"}
    for i in range(depth):
        renamed[f"blocks.{i}.qkv.weight"] = take(f"blocks.{i}.attn.qkv.weight")
        bias = rest.pop(f"blocks.{i}.attn.qkv.bias", None)  # MONAI's default has none
        renamed[f"blocks.{i}.qkv.bias"] = torch.zeros(3 * width) if bias is None else bias.detach().float()
        for theirs, ours in pairs.items():
            for kind in ("weight", "bias"):
                renamed[f"blocks.{i}.{ours}.{kind}"] = take(f"blocks.{i}.{theirs}.{kind}")
    left = [name for name in rest if not any(f".{part}." in name for part in UNUSED)]
    if left:
        raise InputError(f"{prefix}{left[0]} has no counterpart here, so outputs would differ from MONAI's.")
    ratio = len(renamed["blocks.0.fc1.weight"]) / width
    encoder = VisionTransformer3d(VisionTransformerConfig(patch_size, width, depth, heads, ratio, grid))
    encoder.load_state_dict(renamed)
    return encoder.eval()
