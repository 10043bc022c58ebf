"""Errors by place on a patch whose errors are planted."""

import pytest
import torch

from brainfm_lib.analysis.places import THIRDS, error_places

P = 4


def test_errors_land_at_their_distance_and_brightness() -> None:
    grid = (8, 12, 4)
    axis = [torch.minimum(torch.arange(n) % P, P - 1 - torch.arange(n) % P) for n in grid]
    distance = torch.minimum(torch.minimum(axis[0][:, None, None], axis[1][:, None]), axis[2])
    target = torch.rand(2, 1, *grid, generator=torch.Generator().manual_seed(0))
    predicted = target + (1 + distance)  # an error of 1 at a face, of 2 one voxel in
    brain = torch.ones_like(target, dtype=torch.bool)
    kept = torch.arange(2 * 3 * 1)[None]
    found = error_places(target, predicted, target + 3, brain, kept, P).set_index("place")
    assert found.loc["0", "model"] == pytest.approx(1, rel=1e-5)
    assert found.loc["1", "model"] == pytest.approx(4, rel=1e-5)
    assert found.loc["0", "voxels"] + found.loc["1", "voxels"] == target.numel()
    assert found["baseline"].to_numpy() == pytest.approx(9, rel=1e-5)
    assert found.loc[list(THIRDS), "voxels"].sum() == target.numel()


def test_only_brain_and_predicted_tokens_count() -> None:
    target = torch.zeros(1, 1, 8, 8, 8)
    target[..., :4] = torch.rand(8, 8, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    predicted = target.clone()
    predicted[:, :, :4] += 5  # an error in tokens 0 to 3 alone
    kept = torch.tensor([[4, 5, 6, 7]])
    found = error_places(target, predicted, target, target > 0, kept, P)
    assert (found["model"].dropna() < 1e-10).all()
    assert found[found["split"] == "brightness"]["voxels"].sum() == 4 * 8 * 4
