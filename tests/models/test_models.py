"""Encoder, MAE and JEPA on a non-cubic grid: what each sees, what each predicts, and where."""

import numpy as np
import pytest
import torch

from brainfm_lib.errors import InputError
from brainfm_lib.losses.spectral import SpectralConfig
from brainfm_lib.losses.vcr import VcrConfig
from brainfm_lib.masking import Mask, random_mask
from brainfm_lib.models import Jepa, JepaConfig, MaeConfig, MaskedAutoencoder, VisionTransformer3d
from brainfm_lib.models.vit import VisionTransformerConfig, sincos_positions
from brainfm_lib.objectives import ARMS, build_model, compute_loss, objective_config
from brainfm_lib.tokens import gather, patchify, scatter, unpatchify

SHAPE, PATCH, GRID, N = (16, 32, 24), 8, (2, 4, 3), 24
SIZE = VisionTransformerConfig(patch_size=PATCH, embed_dim=48, depth=3, heads=3)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return VisionTransformer3d(SIZE).eval()


def configs(arm):
    return objective_config(
        arm,
        encoder=SIZE,
        mae=MaeConfig(24, 2, 3),
        jepa=JepaConfig(24, 2, 3),
        spectral=SpectralConfig(),
        vcr=VcrConfig(),
    )


def test_positions_are_those_of_the_token_index():
    positions = sincos_positions(GRID, 48, torch.device("cpu"))
    d, h, w = 1, 2, 1
    token, omega = (d * 4 + h) * 3 + w, 10000.0 ** (-np.arange(8) / 8)
    expected = np.concatenate([f(i * omega) for i in (d, h, w) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(positions[token].numpy(), expected, atol=1e-6)
    assert len(np.unique(positions.numpy().round(5), axis=0)) == N


def test_encoding_a_subset_depends_on_that_subset_alone(encoder):
    volumes = torch.randn(2, 1, *SHAPE)
    mask = random_mask(2, N, 0.75)
    disturbed = unpatchify(
        scatter(patchify(volumes, PATCH), mask.hidden, torch.full((2, mask.hidden.shape[1], 512), 99.0)), GRID, PATCH
    )
    with torch.no_grad():
        assert torch.equal(encoder(volumes, mask.visible), encoder(disturbed, mask.visible))
        everything = torch.arange(N).expand(2, -1)
        torch.testing.assert_close(encoder(volumes, everything), encoder(volumes))


def test_any_grid_and_block_outputs(encoder):
    with torch.no_grad():
        for shape in ((16, 16, 16), (32, 8, 40)):
            volumes = torch.randn(1, 1, *shape)
            outputs = encoder.block_outputs(volumes, [1, 3])
            torch.testing.assert_close(outputs[3], encoder(volumes))
            assert outputs[1].shape == outputs[3].shape and not torch.allclose(outputs[1], outputs[3])


@pytest.mark.parametrize("arm", ARMS)
def test_the_loss_is_taken_on_exactly_the_tokens_that_the_encoder_did_not_see(arm):
    """Every voxel's influence is traced by its gradient: targets are the hidden tokens, inputs the visible ones."""
    torch.manual_seed(1)
    config = configs(arm)
    model = build_model(config)
    seen: list[torch.Tensor] = []
    model.encoder.embed.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].detach()))
    volumes = torch.randn(3, 1, *SHAPE)
    marked = patchify(volumes, PATCH).clone()
    marked[:, :, 0] = torch.arange(N, dtype=torch.float32) + 1000  # each token carries its own number
    volumes = unpatchify(marked, GRID, PATCH)
    mask = random_mask(1, N, 0.75).expand(3)
    compute_loss(model, config, volumes, mask, spectral_weight=0.01, detail=False)
    entered = (seen[0][0, :, 0] - 1000).long()
    assert entered.tolist() == mask.visible[0].tolist()
    if config.mae is not None:
        target = gather(marked, mask.hidden)
        assert (target[0, :, 0] - 1000).long().tolist() == mask.hidden[0].tolist()
    assert sorted(entered.tolist() + mask.hidden[0].tolist()) == list(range(N))


def test_mae_gradient_stops_at_nothing_and_ignores_visible_targets():
    config = configs("mae")
    model = build_model(config)
    volumes = torch.randn(2, 1, *SHAPE)
    mask = random_mask(1, N, 0.75).expand(2)
    predicted = model(volumes, mask)
    assert predicted.shape == (2, mask.hidden.shape[1], PATCH**3)
    loss, _ = compute_loss(model, config, volumes, mask, spectral_weight=0.0, detail=False)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_predictions_belong_to_positions_and_not_to_their_order():
    torch.manual_seed(2)
    model = MaskedAutoencoder(VisionTransformer3d(SIZE), MaeConfig(24, 2, 3)).eval()
    volumes, mask = torch.randn(1, 1, *SHAPE), random_mask(1, N, 0.75)
    with torch.no_grad():
        straight = model(volumes, mask)
        turned = model(volumes, Mask(mask.visible.flip(1), mask.hidden.flip(1)))
    torch.testing.assert_close(turned, straight.flip(1), atol=1e-5, rtol=1e-4)


def test_jepa_targets_carry_no_gradient_and_follow_the_student():
    torch.manual_seed(3)
    model = Jepa(VisionTransformer3d(SIZE), JepaConfig(24, 2, 3))
    volumes, mask = torch.randn(2, 1, *SHAPE), random_mask(1, N, 0.75).expand(2)
    output = model(volumes, mask)
    assert not output.target.requires_grad
    torch.testing.assert_close(output.target.mean(-1), torch.zeros(2, N - 6), atol=1e-5, rtol=0)
    output.predicted.sum().backward()
    assert all(p.grad is None for p in model.target_encoder.parameters())
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1.0)
    before = [p.clone() for p in model.target_encoder.parameters()]
    model.update_target(0.9)
    for old, new, student in zip(before, model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)
    assert model.config.decay_at(0, 10) == 0.998 and model.config.decay_at(10, 10) == 1.0


def test_arms_start_from_the_same_encoder_and_differ_in_their_losses():
    weights = []
    for arm in ARMS:
        torch.manual_seed(7)
        weights.append(build_model(configs(arm)).encoder.embed.weight)
    assert all(torch.equal(weights[0], w) for w in weights)
    assert configs("mae").spectral is None and configs("sl-mae").spectral is not None
    assert configs("jepa").vcr is None and configs("vcr-jepa").vcr is not None


def test_save_and_load_give_the_same_encoder(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "encoder")
    volumes = torch.randn(1, 1, *SHAPE)
    with torch.no_grad():
        assert torch.equal(VisionTransformer3d.from_pretrained(tmp_path / "encoder")(volumes), encoder(volumes))
    (tmp_path / "encoder" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no encoder"):
        VisionTransformer3d.from_pretrained(tmp_path / "encoder")
