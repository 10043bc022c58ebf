"""Encoder, MAE and JEPA on a non-cubic grid: what each sees, what each predicts, and where."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from brainfm_lib import objectives
from brainfm_lib.errors import InputError
from brainfm_lib.losses.spectral import SpectralConfig
from brainfm_lib.losses.vcr import VcrConfig
from brainfm_lib.masking import Mask, MaskConfig, random_mask
from brainfm_lib.models import Jepa, JepaConfig, MaeConfig, MaskedAutoencoder, VisionTransformer3d
from brainfm_lib.models.lejepa import second_view
from brainfm_lib.models.vit import VisionTransformerConfig, compile_blocks, recompute_activations, sincos_positions
from brainfm_lib.objectives import ARMS, EVERY_ARM, build_model, compute_loss, objective_config
from brainfm_lib.tokens import gather, mosaic, patchify, scatter, unpatchify

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


@pytest.mark.parametrize("masks", [MaskConfig(), MaskConfig(budget=0.6), MaskConfig(kind="block", shared=False)])
@pytest.mark.parametrize("arm", ARMS)
def test_the_loss_is_taken_on_exactly_the_tokens_that_the_encoder_did_not_see(arm, masks, monkeypatch):
    """On 48×64×40, patch 8. Every token carries its number in its first voxel, so each can be followed to its end.

    What enters the student are the visible tokens; what the loss compares with are the hidden ones; both and the
    dropped ones are all tokens, disjoint; predictions land in the mosaic at the places of the tokens they are for.
    """
    shape, grid = (48, 64, 40), (6, 8, 5)
    n = math.prod(grid)
    torch.manual_seed(1)
    config = configs(arm)
    model = build_model(config)
    marked = torch.randn(2, n, PATCH**3)
    marked[:, :, 0] = torch.arange(n, dtype=torch.float32) + 1000
    volumes = unpatchify(marked, grid, PATCH)
    assert torch.equal(volumes[0, 0, ::8, ::8, ::8].flatten(), marked[0, :, 0])  # C order over (d, h, w)
    ball = torch.randn(2, 1, *shape) * (torch.arange(40) > 8) * (torch.arange(64) > 16)[:, None]
    kept = masks.kept(ball, PATCH)
    mask = masks.draw(2, grid, torch.Generator().manual_seed(0), torch.device("cpu"), kept=kept)

    entered: list[torch.Tensor] = []
    model.encoder.embed.register_forward_hook(lambda _m, inputs, _o: entered.append(inputs[0].detach()))
    targets: list[torch.Tensor] = []
    if config.mae is not None:
        real = objectives.reconstruction_loss
        watched = lambda p, t, **k: targets.append(t.detach()) or real(p, t, **k)  # noqa: E731
        monkeypatch.setattr(objectives, "reconstruction_loss", watched)
    else:
        seen_by_target: list[torch.Tensor] = []
        model.target_encoder.embed.register_forward_hook(lambda _m, i, _o: seen_by_target.append(i[0].detach()))
    compute_loss(model, config, volumes, mask, spectral_weight=0.01, detail=False)

    number = lambda tokens: (tokens[:, :, 0] - 1000).round().long()  # noqa: E731
    assert torch.equal(number(entered[0]), mask.visible)
    hidden = number(targets[0] if config.mae is not None else seen_by_target[0][:, mask.visible.shape[1] :])
    assert torch.equal(hidden, mask.hidden)
    for row in range(2):
        dropped = set(range(n)) - set((torch.arange(n) if kept is None else kept[min(row, len(kept) - 1)]).tolist())
        parts = [set(mask.visible[row].tolist()), set(mask.hidden[row].tolist()), dropped]
        assert set.union(*parts) == set(range(n)) and sum(map(len, parts)) == n
    signed = -marked[torch.arange(2)[:, None], mask.hidden]  # a prediction that can be told from the truth
    filled = mosaic(volumes, signed, mask, PATCH)[:, 0, ::8, ::8, ::8].flatten(1)
    expected = marked[:, :, 0].clone()
    expected.scatter_(1, mask.hidden, -expected.gather(1, mask.hidden))
    assert torch.equal(filled, expected)


@pytest.mark.parametrize("budget", [1.0, 0.6])
def test_targets_at_hidden_positions_are_those_of_the_whole_volume_unless_tokens_are_dropped(budget):
    torch.manual_seed(4)
    model = Jepa(VisionTransformer3d(SIZE), JepaConfig(24, 2, 3)).eval()
    volumes = torch.randn(2, 1, *SHAPE)
    volumes[:, :, :, :8] = 0
    masks = MaskConfig(budget=budget)
    mask = masks.draw(2, GRID, torch.Generator(), torch.device("cpu"), kept=masks.kept(volumes, PATCH))
    with torch.no_grad():
        some, everything = model.targets(volumes, mask), gather(model.targets(volumes), mask.hidden)
    assert some.shape == (2, mask.hidden.shape[1], 48)
    assert torch.allclose(some, everything, atol=1e-4) == (budget == 1.0)


@pytest.mark.parametrize("family", ["mae", "jepa"])
def test_recomputed_activations_and_compiled_blocks_give_the_same_gradients(family):
    config, gradients = configs(family), []
    volumes = torch.randn(2, 1, *SHAPE)
    mask = random_mask(1, N, 0.75, generator=torch.Generator().manual_seed(0)).expand(2)
    for prepare in (lambda model: None, recompute_activations, lambda model: compile_blocks(model, "aot_eager")):
        torch.manual_seed(5)
        model = build_model(config)
        prepare(model)
        names = list(model.state_dict())
        compute_loss(model, config, volumes, mask, spectral_weight=0.0)[0].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        assert names == list(build_model(config).state_dict())
    for name, plain in gradients[0].items():
        assert torch.equal(plain, gradients[1][name])
        torch.testing.assert_close(gradients[2][name], plain, atol=1e-6, rtol=1e-4)


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
    for arm in EVERY_ARM:
        torch.manual_seed(7)
        weights.append(build_model(configs(arm)).encoder.embed.weight)
    assert all(torch.equal(weights[0], w) for w in weights)
    assert configs("mae").spectral is None and configs("sl-mae").spectral is not None
    assert configs("jepa").vcr is None and configs("vcr-jepa").vcr is not None


@pytest.mark.parametrize("ratio", [0.75, 0.3])
@pytest.mark.parametrize("shared", [True, False])
def test_the_views_of_lejepa_share_no_token_and_are_as_large_as_each_other(ratio, shared):
    masks = MaskConfig(ratio=ratio, shared=shared)
    mask = masks.draw(3, (6, 8, 5), torch.Generator().manual_seed(0), torch.device("cpu"))
    other = second_view(mask)
    for row in range(3):
        visible, hidden, picked = ({*index[row].tolist()} for index in (mask.visible, mask.hidden, other))
        assert picked <= hidden and not picked & visible
        assert len(picked) == other.shape[1] == min(len(visible), len(hidden))
    assert (other.stride(0) == 0) == shared
    gaps = mask.hidden[0].tolist()
    places = torch.tensor([gaps.index(token) for token in other[0].tolist()])
    assert places.diff().min() >= len(gaps) // len(places) and places.diff().max() <= len(gaps) // len(places) + 1

    model = build_model(configs("lejepa"))
    entered: list[torch.Tensor] = []
    model.encoder.embed.register_forward_hook(lambda _m, inputs, _o: entered.append(inputs[0].detach()))
    marked = torch.randn(3, 240, PATCH**3)
    marked[:, :, 0] = torch.arange(240, dtype=torch.float32) + 1000
    z = model(unpatchify(marked, (6, 8, 5), PATCH), mask)
    assert z.shape == (2, 3, model.config.projector_dim) and model.exported is model.encoder
    for tokens, view in zip(entered, (mask.visible, other), strict=True):
        assert torch.equal(tokens[:, :, 0].long() - 1000, view)


def test_save_and_load_give_the_same_encoder(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "encoder")
    volumes = torch.randn(1, 1, *SHAPE)
    with torch.no_grad():
        assert torch.equal(VisionTransformer3d.from_pretrained(tmp_path / "encoder")(volumes), encoder(volumes))
    (tmp_path / "encoder" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no encoder"):
        VisionTransformer3d.from_pretrained(tmp_path / "encoder")


def test_models_need_torch_numpy_and_safetensors_only(tmp_path):
    """In a process where nothing else of site-packages can be imported; torch's own needs are allowed to it."""
    script = """
import sys
import torch, numpy, safetensors.torch
before = set(sys.modules)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        allowed = (*sys.stdlib_module_names, "torch", "numpy", "safetensors", "brainfm_lib", "_distutils_hack")
        if top in allowed or top.startswith("_sysconfigdata"):
            return None
        raise ImportError(f"brainfm_lib.models reached for {name}")
sys.meta_path.insert(0, Refuse())
from brainfm_lib.models import Jepa, JepaConfig, MaeConfig, MaskedAutoencoder, VisionTransformer3d
from brainfm_lib.models import VisionTransformerConfig
from brainfm_lib.masking import random_mask
size = VisionTransformerConfig(8, 48, 2, 3)
mask = random_mask(1, 8, 0.75)
MaskedAutoencoder(VisionTransformer3d(size), MaeConfig(24, 1, 3))(torch.randn(1, 1, 16, 16, 16), mask)
Jepa(VisionTransformer3d(size), JepaConfig(24, 1, 3))(torch.randn(1, 1, 16, 16, 16), mask)
VisionTransformer3d(size).save_pretrained(sys.argv[1])
VisionTransformer3d.from_pretrained(sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_is_imported_in_under_a_second():
    script = "import time; t = time.perf_counter(); import brainfm_lib; print(time.perf_counter() - t)"
    seconds = min(
        float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    )
    assert seconds < 1
