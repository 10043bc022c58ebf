"""Tokens: the order of patches, and that nothing is lost. Non-cubic throughout: a swapped axis hides in a cube."""

import pytest
import torch

from brainfm_lib.masking import partition_masks, random_mask
from brainfm_lib.tokens import gather, mosaic, patch_grid, patchify, scatter, unpatchify

SHAPE, PATCH = (48, 64, 40), 8
GRID = (6, 8, 5)


def test_patchify_and_unpatchify_are_inverse():
    volumes = torch.randn(2, 1, *SHAPE)
    assert torch.equal(unpatchify(patchify(volumes, PATCH), GRID, PATCH), volumes)


def test_tokens_run_in_c_order():
    volumes = torch.zeros(1, 1, *SHAPE)
    d, h, w = 3, 6, 2
    volumes[0, 0, d * 8 + 1, h * 8 + 2, w * 8 + 3] = 1.0
    token = (d * GRID[1] + h) * GRID[2] + w
    voxel = (1 * 8 + 2) * 8 + 3
    assert patchify(volumes, PATCH).nonzero().tolist() == [[0, token, voxel]]


def test_a_volume_that_is_no_whole_number_of_patches_is_refused():
    with pytest.raises(ValueError, match="whole number of patches"):
        patch_grid((48, 63, 40), PATCH)


def test_mosaic_keeps_what_was_seen_and_takes_the_rest_from_the_prediction():
    volumes = torch.randn(3, 1, *SHAPE)
    mask = random_mask(3, 240, 0.75)
    predicted = torch.full((3, 180, 512), 7.0)
    result = patchify(mosaic(volumes, predicted, mask, PATCH), PATCH)
    assert torch.equal(gather(result, mask.visible), gather(patchify(volumes, PATCH), mask.visible))
    assert (gather(result, mask.hidden) == 7.0).all()


def test_true_patches_as_prediction_give_the_volume_back():
    volumes = torch.randn(2, 1, *SHAPE)
    mask = random_mask(2, 240, 0.75)
    truth = gather(patchify(volumes, PATCH), mask.hidden)
    assert torch.equal(mosaic(volumes, truth, mask, PATCH), volumes)


def test_scatter_passes_gradients_to_both_sides():
    tokens, values = torch.randn(1, 6, 3, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    scatter(tokens, torch.tensor([[1, 4]]), values).sum().backward()
    assert tokens.grad is not None and values.grad is not None
    assert tokens.grad[0, :, 0].tolist() == [1, 0, 1, 1, 0, 1] and (values.grad == 1).all()


def test_partition_covers_every_token_once_as_visible():
    masks = partition_masks(240, 0.75, generator=torch.Generator().manual_seed(0))
    assert len(masks) == 4
    assert torch.cat([mask.visible[0] for mask in masks]).sort().values.tolist() == list(range(240))
    for mask in masks:
        assert sorted(mask.visible[0].tolist() + mask.hidden[0].tolist()) == list(range(240))
