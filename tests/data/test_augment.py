import dataclasses
import os
import subprocess
import sys
import types

import numba
import numpy as np
import pytest
import torch
from scipy import ndimage

from brainfm_lib.data import augment as augmentation
from brainfm_lib.data import kernels
from brainfm_lib.data.augment import FLOOR, AugmentConfig, Changes, augment, changed, draw_augmentation, zscore
from brainfm_lib.data.resampling import inverse_affine, resampled
from brainfm_lib.errors import InputError

OFF = AugmentConfig(affine=0, flip=0, gamma=0, noise=0, blur=0)
SHAPE = (12, 20, 16)


def batch(n=16, shape=SHAPE, seed=0):
    """Smooth volumes in the stored convention: an ellipsoid on exactly 0."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, k) for k in shape], indexing="ij")
    inside = sum((a / 0.75) ** 2 for a in axes) < 1
    field = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) for _ in range(n)])
    field = (field - field.min()) / (field.max() - field.min())
    volumes = np.where(inside, np.clip(field, FLOOR, 1), 0)
    return torch.from_numpy(volumes[:, None].astype(np.float32))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(volumes, seed=0):
    return draw_augmentation(len(volumes), generator(seed))


def test_off_changes_nothing():
    volumes = batch()
    assert torch.equal(augment(volumes, draws(volumes), OFF), volumes)


@pytest.mark.parametrize("seed", range(5))
def test_convention_holds_and_draws_follow_the_generator(seed):
    volumes = batch()
    original = volumes.clone()
    out = augment(volumes, draws(volumes, seed), AugmentConfig())
    assert torch.equal(volumes, original), "the input is left alone"
    assert out.shape == volumes.shape and out.dtype == torch.float32 and torch.isfinite(out).all()
    inside = out[out != 0]
    assert inside.min() >= FLOOR and inside.max() <= 1
    assert (out == 0).flatten(1).any(dim=1).all()
    assert torch.equal(out, augment(volumes, draws(volumes, seed), AugmentConfig()))
    assert not torch.equal(out, augment(volumes, draws(volumes, seed + 1), AugmentConfig()))


def test_shares_are_those_asked_for():
    volumes = batch(1).expand(3000, -1, -1, -1, -1)[:, :, :, ::4, ::4].contiguous()
    out = augment(volumes, draws(volumes), dataclasses.replace(OFF, flip=0.3, noise=0.25))
    flipped = volumes.flip(2)
    near = lambda a, b: ((a - b).abs().flatten(1).amax(1) < 0.06).float().mean()  # noqa: E731
    assert abs(near(out, flipped) - 0.3) < 0.03
    same = (out == volumes).flatten(1).all(1) | (out == flipped).flatten(1).all(1)
    assert abs(same.float().mean() - 0.75) < 0.03


def test_each_orientation_comes_a_third_of_the_time_and_axes_change_places():
    cube = batch(1, (8, 8, 8))
    volumes = cube.expand(3000, -1, -1, -1, -1).contiguous()
    out = augment(volumes, draws(volumes), dataclasses.replace(OFF, orientation=0.9))
    turned = [cube, cube.permute(0, 1, 3, 4, 2), cube.permute(0, 1, 4, 2, 3)]
    shares = [(out == one).flatten(1).all(1).float().mean().item() for one in turned]
    assert np.abs(np.array(shares) - [0.4, 0.3, 0.3]).max() < 0.03 and abs(sum(shares) - 1) < 1e-6
    with pytest.raises(InputError, match="cubic"):
        augment(batch(), draws(batch()), dataclasses.replace(OFF, orientation=0.5))


@pytest.mark.parametrize("name", ["gamma", "noise", "blur", "flip"])
def test_only_an_affine_moves_the_background(name):
    volumes = batch()
    out = augment(volumes, draws(volumes), dataclasses.replace(OFF, **{name: 1.0}))
    mask = volumes.flip(2) > 0 if name == "flip" else volumes > 0
    assert torch.equal(out > 0, mask)
    assert not torch.equal(out, volumes)


@pytest.mark.parametrize("shape", [(21, 21, 21), (15, 25, 33)])
def test_affine_rotates_in_voxels_on_any_grid(shape):
    """The map from output to input is R / scale about the centre, in voxel units: trilinear between."""
    axes = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
    slopes = np.array([0.011, -0.007, 0.005])
    ramp = torch.from_numpy(0.5 + np.tensordot(slopes, axes, 1)).float().expand(8, 1, *shape)
    texture = batch(8, shape)
    config = dataclasses.replace(OFF, affine=1.0)
    of_ramp, of_texture = (augment(volumes, draws(volumes, 3), config) for volumes in (ramp, texture))
    signed = draws(texture, 3)[2:7].numpy() * 2 - 1
    for i in range(8):
        a, b, c = np.radians(10) * signed[:3, i]
        rw = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        rh = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        rd = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
        matrix = (rw @ rh @ rd / (1 + 0.1 * signed[3, i]))[::-1, ::-1]  # (W, H, D) -> (D, H, W)
        assert abs(np.linalg.det(matrix) * (1 + 0.1 * signed[3, i]) ** 3 - 1) < 1e-6
        places = np.tensordot(matrix, axes, 1)
        inside = (np.abs(places) <= (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2 - 1.5).all(axis=0)
        assert inside.mean() > 0.3
        assert np.abs(of_ramp[i, 0].numpy() - 0.5 - np.tensordot(slopes, places, 1))[inside].max() < 1e-5
        centre = (np.array(shape) - 1) / 2
        expected = ndimage.affine_transform(
            texture[i, 0].double().numpy(), matrix, centre - matrix @ centre, order=1, mode="grid-constant"
        )
        error = np.abs(of_texture[i, 0].numpy() - np.where(expected > FLOOR / 2, np.clip(expected, FLOOR, 1), 0))
        sure = np.abs(expected - FLOOR / 2) > 1e-5  # what lies at the edge may fall to either side
        assert error[sure].max() < 1e-5 and sure.mean() > 0.99


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in ("affine", "flip", "orientation", "gamma", "noise", "blur")
        for shape in ((21, 21, 21), (15, 25, 33), (3, 1, 2))
        if name != "orientation" or len(set(shape)) == 1
    ],
)
def test_compiled_loops_do_what_tensor_operations_do(name, shape):
    volumes = batch(24, shape) if min(shape) > 3 else torch.rand(24, 1, *shape)
    config = dataclasses.replace(OFF, **{name: 1.0}, max_angle=180.0, max_scale=0.5)
    drawn = draws(volumes, 4)
    compiled, plain = augment(volumes, drawn, config), changed(volumes.clone(), Changes.drawn(drawn, config))
    off = (compiled - plain).abs()
    assert off[plain > 0.002].max() < 1e-5 and (off > 1e-5).float().mean() < 1e-4
    assert not torch.equal(plain, volumes)


@pytest.mark.parametrize("step", [0.05, -0.05, 1e-4, 0.0, 1e-20])
def test_the_part_of_a_line_within_is_exactly_that(step):
    rng = np.random.default_rng(0)
    for start, first, last in rng.uniform(-5, 20, (200, 3)):
        low, high = kernels.between.py_func(2, 90, start, step, first, last)
        places = start + step * np.arange(2, 90)
        inside = 2 + np.flatnonzero((places > first + 1e-6) & (places < last))
        assert (low, high) == (inside[0], inside[-1] + 1) if len(inside) else high <= low


def test_small_tilts_and_empty_slices_read_nothing_from_beside_the_volume():
    """Compiled with bounds checked; what is computed is what tensor operations compute."""
    options = kernels.OPTIONS | {"boundscheck": True}
    checked = {name: numba.njit(**options)(getattr(kernels, name).py_func) for name in ("between", "whole", "part")}
    checked["kept"] = kernels.kept
    sample = numba.njit(**options)(rebound(kernels.sample.py_func, checked))
    move = numba.njit(**options)(rebound(kernels.move.py_func, checked | {"sample": sample}))
    shape = (12, 14, 13)
    full = np.random.default_rng(1).uniform(0.1, 1, shape).astype(np.float32)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        angles, scale = (
            torch.tensor(rng.normal(0, 10.0 ** rng.uniform(-8, -1), (3, 1))),
            torch.tensor(rng.uniform(0.5, 2, 1)),
        )
        inverse = inverse_affine(angles.float(), scale.float())
        given = full.copy()
        given[: rng.integers(0, 12)] = 0
        given[:, rng.integers(0, 14) :] = 0
        expected = torch.from_numpy(given.copy())[None, None]
        expected = resampled(expected, inverse)[0, 0].numpy()
        move(given, np.zeros([n + 3 for n in shape], np.float32), inverse[0].numpy())
        sure = np.abs(expected - FLOOR / 2) > 1e-5
        assert np.abs(given - np.where(expected > FLOOR / 2, expected.clip(FLOOR, 1), 0))[sure].max() < 1e-4


def rebound(function, names):
    """The same function with other globals, so that what it calls is compiled with bounds checked, too."""
    return types.FunctionType(function.__code__, function.__globals__ | names, function.__name__)


def test_loops_give_the_same_on_any_number_of_threads_and_whatever_came_before():
    volumes = batch(40, (16, 16, 16))
    config = dataclasses.replace(AugmentConfig(), affine=0.5, orientation=0.5)
    changes = {name: part.numpy() for name, part in vars(Changes.drawn(draws(volumes), config)).items()}
    by_one, by_five = volumes[:, 0].numpy().copy(), volumes[:, 0].numpy().copy()
    kernels.change_all(by_one, threads=1, **changes)
    kernels.change_all(by_five, threads=5, **changes)
    assert np.array_equal(by_one, by_five)
    last = volumes[-1:, 0].numpy().copy()
    kernels.change_all(last, **{name: part[-1:] for name, part in changes.items()})
    assert np.array_equal(last[0], by_one[-1])


def test_the_power_of_a_gamma_curve_is_right_to_a_millionth():
    x = np.geomspace(FLOOR, 1, 100_000).astype(np.float32)
    for exponent in (0.5, 0.9, 1.0, 1.1, 2.0):
        curved = x.copy()
        kernels.curve(curved, np.float32(exponent))
        expected = np.clip(x.astype(np.float64) ** float(np.float32(exponent)), FLOOR, 1)
        assert np.abs(curved / expected - 1).max() < 1e-6


def test_without_a_compiler_of_loops_tensor_operations_serve(monkeypatch):
    volumes = batch()
    expected = augment(volumes, draws(volumes), AugmentConfig())
    monkeypatch.delitem(sys.modules, "brainfm_lib.data.kernels")
    monkeypatch.delattr("brainfm_lib.data.kernels")
    monkeypatch.setitem(sys.modules, "numba", None)
    augmentation._compiled.cache_clear()
    with pytest.warns(UserWarning, match="several times slower"):
        out = augment(volumes, draws(volumes), AugmentConfig())
    augmentation._compiled.cache_clear()
    assert not torch.equal(out, expected)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_loops_work_where_the_disk_is_full(tmp_path):
    code = (
        "import resource, numpy as np; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "import brainfm_lib.data.kernels as k; x = np.full((1, 4, 4, 4), 0.5, np.float32); one = np.ones(1, int);"
        "k.change_all(x, space=0 * one, inverse=np.eye(3, dtype=np.float32)[None], turn=0 * one, value=one,"
        "amount=np.full(1, 2, np.float32), seed=one); assert np.allclose(x, 0.25), x"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(tmp_path.rglob("*.nbc"))


def test_blur_matches_scipy_inside():
    volumes = batch(4)
    config = dataclasses.replace(OFF, blur=1.0, max_blur=0.7)
    out = augment(volumes, draws(volumes, 1), config)
    sigmas = 0.7 * draws(volumes, 1)[7].clamp_min(0.05).numpy()
    for i, sigma in enumerate(sigmas):
        side = np.exp(-0.5 / sigma**2)
        kernel = np.array([side, 1, side]) / (1 + 2 * side)
        expected = volumes[i, 0].numpy().astype(float)
        inside = expected > 0
        for axis in range(3):
            expected = ndimage.convolve1d(expected, kernel, axis=axis, mode="constant")
        assert np.abs(out[i, 0].numpy() - np.clip(expected, FLOOR, 1))[inside].max() < 1e-5


def test_a_batch_may_be_split_and_noise_is_each_volumes_own():
    volumes = batch()
    drawn = draws(volumes, 2)
    for config in (AugmentConfig(), AugmentConfig(affine=0.5, gamma=0, noise=1, blur=0)):
        whole = augment(volumes, drawn, config)
        for size in (1, 5):
            parts = [augment(v, d, config) for v, d in zip(volumes.split(size), drawn.split(size, dim=1), strict=True)]
            torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)
    same = volumes[:1].expand(16, -1, -1, -1, -1)
    noisy = augment(same, drawn, dataclasses.replace(OFF, noise=1.0))
    assert len({float(v.sum()) for v in noisy}) == 16
    residual = (noisy - same)[same > 0.1]
    assert float(residual.std()) == pytest.approx(0.01, rel=0.1)


def test_in_place_is_the_same_without_a_copy():
    volumes, half = batch(), batch().half()
    out = augment(volumes, draws(volumes), AugmentConfig())
    for given in (volumes, half):
        before = given.clone()
        made = augment(given, draws(volumes), AugmentConfig(), in_place=True)
        assert made.is_contiguous() and made.dtype == torch.float32
        torch.testing.assert_close(made, out, atol=0 if given is volumes else 1e-3, rtol=0)
        assert torch.equal(given, made) if given is volumes else torch.equal(given, before)
    turned = batch().permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2)
    torch.testing.assert_close(augment(turned, draws(turned), AugmentConfig(), in_place=True), out, atol=0, rtol=0)
    assert augment(volumes[:0], draws(volumes[:0]), AugmentConfig()).shape == (0, 1, *SHAPE)


def test_zscore():
    volumes = batch() * 3 + 2
    scored = zscore(volumes)
    reference = (volumes - volumes.mean((1, 2, 3, 4), keepdim=True)) / (volumes.std((1, 2, 3, 4), keepdim=True) + 1e-6)
    assert scored.dtype == torch.float32 and (scored - reference).abs().max() < 1e-4
    assert zscore(volumes.half()).dtype == torch.float32
    assert zscore(torch.full((2, 1, 4, 4, 4), 0.3)).abs().max() < 0.1
    assert torch.equal(zscore(torch.zeros(2, 1, 4, 4, 4)), torch.zeros(2, 1, 4, 4, 4))


@pytest.mark.parametrize("wrong", [{"affine": 0.8, "flip": 0.4}, {"noise": -0.1}])
def test_probabilities_must_fit(wrong):
    with pytest.raises(ValueError, match="probabilities"):
        AugmentConfig(**wrong)
