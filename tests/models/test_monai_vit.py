"""Encoders trained with MONAI's ViT give the same outputs here."""

import pytest
import torch
from monai.networks.nets import ViT

from brainfm_lib.errors import InputError
from brainfm_lib.models import VisionTransformer3d, import_monai_vit


def monai_vit(**changes):
    torch.manual_seed(0)
    settings = {"in_channels": 1, "img_size": (48, 32, 64), "patch_size": (16, 16, 16), "hidden_size": 48}
    vit = ViT(**{**settings, "mlp_dim": 96, "num_layers": 3, "num_heads": 4, **changes}).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1: make them count
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return vit


@pytest.mark.parametrize("projection", ["conv", "perceptron"])
@pytest.mark.parametrize("positions", ["learnable", "sincos"])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_outputs_equal_monais(projection, positions, qkv_bias, tmp_path):
    vit = monai_vit(proj_type=projection, pos_embed_type=positions, qkv_bias=qkv_bias)
    encoder = import_monai_vit(vit.state_dict(), heads=4, grid=(3, 2, 4))
    volumes = torch.randn(2, 1, 48, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(volumes), vit(volumes)[0], atol=2e-5, rtol=1e-4)
        encoder.save_pretrained(tmp_path)
        again = VisionTransformer3d.from_pretrained(tmp_path)
        assert torch.equal(again(volumes), encoder(volumes))
        assert encoder(torch.randn(1, 1, 32, 32, 32)).shape == (1, 8, 48)  # positions are interpolated
        index = torch.tensor([[0, 5, 23]])
        assert encoder(volumes[:1], index).shape == (1, 3, 48)


def test_the_layout_of_brainiac_is_read():
    """Cube of 96, patch 16, under a prefix, beside a head, from a MONAI that had no cross attention."""
    vit = monai_vit(img_size=(96, 96, 96), mlp_dim=192, save_attn=True)
    state = {f"backbone.{n}": t for n, t in vit.state_dict().items() if "cross_attn" not in n}
    encoder = import_monai_vit({**state, "projection_head.weight": torch.zeros(2, 2)}, heads=4)
    volumes = torch.randn(1, 1, 96, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(encoder(volumes), vit(volumes)[0], atol=2e-5, rtol=1e-4)


def test_positions_interpolated_to_a_finer_grid_keep_a_linear_ramp():
    vit = monai_vit(img_size=(64, 64, 64))
    with torch.no_grad():
        ramp = torch.arange(4.0)[:, None, None].expand(4, 4, 4).reshape(1, 64, 1)
        vit.patch_embedding.position_embeddings.copy_(ramp.expand(1, 64, 48))
    encoder = import_monai_vit(vit.state_dict(), heads=4)
    finer = encoder._positions((8, 4, 4), torch.device("cpu")).unflatten(0, (8, 4, 4))
    expected = ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3)
    torch.testing.assert_close(finer[:, 0, 0, 0].detach(), expected)


def test_what_is_no_such_state_is_refused_with_the_tensors_name():
    state = monai_vit().state_dict()
    grid = (3, 2, 4)
    with pytest.raises(InputError, match="0 names end in"):
        import_monai_vit({"weight": torch.zeros(1)})
    with pytest.raises(InputError, match="24 tokens"):
        import_monai_vit(state, heads=4)
    with pytest.raises(InputError, match="cls_token"):
        import_monai_vit(monai_vit(classification=True, num_classes=2).state_dict(), heads=4, grid=grid)
    with pytest.raises(InputError, match=r"lacks blocks\.1\.mlp\.linear1\.weight"):
        import_monai_vit({n: t for n, t in state.items() if n != "blocks.1.mlp.linear1.weight"}, heads=4, grid=grid)
    with pytest.raises(InputError, match="extra has no counterpart"):
        import_monai_vit({**state, "extra": torch.zeros(1)}, heads=4, grid=grid)
    with pytest.raises(InputError, match="one-channel"):
        import_monai_vit(monai_vit(in_channels=2).state_dict(), heads=4, grid=grid)
