"""Augmentation: what stays fixed, what moves, and by how much."""

import numpy as np
import pytest
import torch

from brainfm_lib.data.augment import AugmentConfig, augment, zscore

SHAPE = (24, 32, 40)


def ellipsoid(batch=1, offset=(0, 0, 0)):
    axes = np.stack(np.meshgrid(*(np.arange(s) - (s - 1) / 2 for s in SHAPE), indexing="ij"))
    radius = sum(((axes[i] - offset[i]) / (0.3 * SHAPE[i])) ** 2 for i in range(3))
    volume = np.where(radius < 1, 1 - 0.5 * radius, 0).astype(np.float32)
    return torch.from_numpy(volume).expand(batch, 1, *SHAPE).clone()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_background_stays_zero_and_values_stay_in_range():
    result = augment(ellipsoid(64), generator(), AugmentConfig())
    assert result.min() == 0 and result.max() <= 1
    assert (result[result > 0] >= 1e-3).all()
    assert (result[:, :, 0, 0, 0] == 0).all()


def test_no_augmentation_changes_nothing():
    volumes = ellipsoid(3)
    assert torch.equal(augment(volumes, generator(), AugmentConfig(spatial=0.0, intensity=0.0)), volumes)


def test_the_same_generator_gives_the_same_batch():
    a, b = (augment(ellipsoid(8), generator(5), AugmentConfig()) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a[0], a[1])


def test_flip_is_left_right():
    volumes = ellipsoid(200, offset=(4, 0, 0))
    result = augment(volumes, generator(), AugmentConfig(spatial=1.0, degrees=0.0, scale=0.0, intensity=0.0))
    flipped = (result == volumes.flip(2)).flatten(1).all(1)
    kept = torch.isclose(result, volumes, atol=1e-5).flatten(1).all(1)
    assert (flipped | kept).all() and 60 < int(flipped.sum()) < 140


def test_scale_changes_the_size_by_the_stated_factor():
    config = AugmentConfig(spatial=2.0, degrees=0.0, scale=0.1, intensity=0.0)
    sizes = (augment(ellipsoid(100), generator(), config) > 0).flatten(1).sum(1) / (ellipsoid() > 0).sum()
    assert 0.9**3 - 0.06 < sizes.min() < 0.85 and 1.2 < sizes.max() < 1.1**3 + 0.06


def test_rotation_keeps_volume_on_a_grid_that_is_no_cube():
    config = AugmentConfig(spatial=2.0, degrees=10.0, scale=0.0, intensity=0.0)
    sizes = (augment(ellipsoid(50), generator(), config) > 0).flatten(1).sum(1) / (ellipsoid() > 0).sum()
    assert sizes.min() > 0.95 and sizes.max() < 1.05


def test_zscore_is_that_of_the_whole_volume_and_survives_a_constant():
    result = zscore(ellipsoid(2))
    assert float(result.mean()) == pytest.approx(0, abs=1e-5)
    assert float(result[0].std()) == pytest.approx(1, abs=1e-3)
    assert (zscore(torch.full((1, 1, 4, 4, 4), 3.0)) == 0).all()
