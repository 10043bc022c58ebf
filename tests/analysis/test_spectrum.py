import numpy as np
import pytest
import torch

from brainfm_lib.analysis.spectrum import (
    coherence,
    coherence_noise_floor,
    cross_spectrum,
    low_pass,
    patch_grid_excess,
    phase_error,
    power_ratio,
    radial_power,
    slice_log_power,
)

GRID, SPACING = (24, 30, 17), (1.0, 1.5, 2.0)


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def coloured(shape, beta, seed=0):
    """Gaussian fields with power ∝ f^-β, periodic on a unit-spaced grid."""
    norm = np.sqrt(sum(k**2 for k in np.meshgrid(*map(np.fft.fftfreq, shape[1:]), indexing="ij")))
    norm[0, 0, 0] = np.inf
    spectrum = np.fft.fftn(noise(shape, seed), axes=(1, 2, 3)) * norm ** (-beta / 2)
    return np.fft.ifftn(spectrum, axes=(1, 2, 3)).real


def scramble(volumes, seed=1):
    """The same amplitudes under the phases of white noise."""
    phases = np.exp(1j * np.angle(np.fft.rfftn(noise(volumes.shape, seed), axes=(1, 2, 3))))
    return np.fft.irfftn(np.abs(np.fft.rfftn(volumes, axes=(1, 2, 3))) * phases, s=volumes.shape[1:], axes=(1, 2, 3))


def slow_power(volume, spacing, window):
    """Mode by mode over the full spectrum."""
    x = (volume - (volume * window).sum() / window.sum()) * window
    density = np.abs(np.fft.fftn(x)) ** 2 * np.prod(spacing) / (window**2).sum()
    axes = [np.fft.fftfreq(n, s) for n, s in zip(volume.shape, spacing)]
    width, nyquist = 1 / max(np.multiply(volume.shape, spacing)), 0.5 / max(spacing)
    shells = {}
    for i, fx in enumerate(axes[0]):
        for j, fy in enumerate(axes[1]):
            for k, fz in enumerate(axes[2]):
                f = np.sqrt(fx**2 + fy**2 + fz**2)
                shell = int(f / width + 0.5 + 1e-9)
                if 0 < shell <= int(nyquist / width + 1e-9) and f <= nyquist * (1 + 1e-9):
                    shells.setdefault(shell, []).append((f, density[i, j, k]))
    return [np.mean(shells[s], axis=0) for s in sorted(shells)]


@pytest.mark.parametrize("grid", [GRID, (12, 9, 16)])
@pytest.mark.parametrize("window", ["hann", None, "mask"])
def test_equals_the_slow_full_spectrum(grid, window):
    volumes = noise((2, *grid)) + 3
    hann = [0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) for n in grid]
    mask = noise(grid, 5) > 0
    array = {"hann": np.einsum("i,j,k->ijk", *hann), None: np.ones(grid), "mask": mask.astype(float)}[window]
    frequencies, power = radial_power(volumes, SPACING, window=mask if window == "mask" else window)
    for volume, row in zip(volumes, power):
        slow = np.asarray(slow_power(volume, SPACING, array))
        np.testing.assert_allclose(frequencies, slow[:, 0], rtol=1e-6)
        np.testing.assert_allclose(row, slow[:, 1], rtol=1e-5)


@pytest.mark.parametrize("window", ["hann", None])
def test_white_noise_is_flat_at_variance_times_voxel_volume(window):
    frequencies, power = radial_power(2 * noise((40, *GRID)), SPACING, window=window)
    modes = coherence_noise_floor((40, *GRID), SPACING, window=window)[1]  # ∝ 1/√modes, also the spread of power
    assert np.all(np.abs(power.mean(0) / (4 * 3.0) - 1) < 5 * modes + 0.01)
    assert frequencies[-1] <= 0.25


@pytest.mark.parametrize("window", ["hann", None])
def test_a_cosine_stands_in_its_own_shell_on_an_anisotropic_grid(window):
    for axis, cycles in ((0, 5), (1, 9), (2, 6)):
        wave = np.cos(2 * np.pi * cycles * np.arange(GRID[axis]) / GRID[axis])
        volume = np.broadcast_to(wave.reshape([-1 if a == axis else 1 for a in range(3)]), GRID)
        frequencies, power = radial_power(volume[None], SPACING, window=window)
        expected = cycles / (GRID[axis] * SPACING[axis])
        assert abs(frequencies[power[0].argmax()] - expected) < 1 / 45  # one shell: 1 / longest extent


def test_a_cut_off_divides_waves_in_physical_units_and_keeps_the_mean():
    def wave(axis, cycles):
        values = np.cos(2 * np.pi * cycles * np.arange(GRID[axis]) / GRID[axis])
        return np.broadcast_to(values.reshape([-1 if a == axis else 1 for a in range(3)]), GRID)

    slow, fast = wave(0, 3), wave(2, 6)  # 0.125 and 0.176 cycles/mm; in cycles a voxel 0.125 and 0.35
    below = low_pass((2.0 + slow + fast)[None], SPACING, 0.15)[0]
    np.testing.assert_allclose(below, 2.0 + slow, atol=1e-5)
    np.testing.assert_allclose(low_pass(fast[None], SPACING, 6 / (17 * 2.0))[0], fast, atol=1e-5)  # at it: below


@pytest.mark.parametrize("beta", [1.0, 2.0, 3.0])
def test_a_power_law_returns_its_exponent(beta):
    frequencies, power = radial_power(coloured((24, 48, 48, 48), beta), 1.0, window=None)
    slope = -np.polyfit(np.log(frequencies[2:]), np.log(power.mean(0)[2:]), 1)[0]
    assert slope == pytest.approx(beta, rel=0.02)


def test_hann_keeps_the_exponent_of_a_field_that_is_not_periodic():
    crop = coloured((24, 64, 64, 64), 2.0)[:, :40, 5:45, 9:57]
    frequencies, power = radial_power(crop, 1.0)
    slope = -np.polyfit(np.log(frequencies[3:]), np.log(power.mean(0)[3:]), 1)[0]
    assert slope == pytest.approx(2.0, rel=0.02)


def test_coherence_is_signed_and_blind_to_scale_and_offset():
    volumes = torch.from_numpy(coloured((6, *GRID), 2.0)).unsqueeze(1)
    for copy, expected in ((volumes, 1), (-volumes, -1), (1 - 0.3 * volumes, -1), (5 + 2 * volumes, 1)):
        np.testing.assert_allclose(coherence(copy, volumes, SPACING)[1], expected, atol=1e-6)


def test_a_phase_scrambled_copy_keeps_its_power_and_loses_its_coherence():
    volumes = coloured((16, 32, 40, 24), 2.0)
    copy = scramble(volumes)
    np.testing.assert_allclose(power_ratio(copy, volumes, SPACING, window=None)[1], 1, rtol=1e-5)
    value = coherence(copy, volumes, SPACING, window=None)[1]
    floor = coherence_noise_floor(volumes.shape, SPACING, window=None)[1]
    assert np.mean(np.abs(value) < floor) >= 0.8
    assert np.all(np.abs(value) < 2 * floor)


@pytest.mark.parametrize("window", ["hann", None])
def test_the_noise_floor_is_the_spread_of_unrelated_volumes(window):
    shape = (4, 16, 20, 12)
    values = np.stack(
        [coherence(noise(shape, 2 * s), noise(shape, 2 * s + 1), 1.0, window=window)[1] for s in range(300)]
    )
    floor = coherence_noise_floor(shape, 1.0, window=window)[1]
    np.testing.assert_allclose(1.96 * values.std(0)[1:], floor[1:], rtol=0.2)


def test_cross_spectrum_rows_add_up_to_coherence():
    a, b = noise((40, *GRID)), noise((40, *GRID), 1)
    b += a
    s = cross_spectrum(a, b, SPACING)
    pooled = s.cross.sum(0) / np.sqrt(s.power_a.sum(0) * s.power_b.sum(0))
    np.testing.assert_allclose(pooled, coherence(a, b, SPACING)[1])
    assert pooled.mean() == pytest.approx(np.sqrt(0.5), abs=0.05)


def test_patch_seams_stand_out_and_a_steep_spectrum_does_not():
    volumes = coloured((8, 32, 48, 40), 3.0)
    volumes /= volumes.std()
    seams = np.indices((32, 48, 40)) % 8 == 0
    plain = patch_grid_excess(volumes, 8)
    assert plain.mean() == pytest.approx(1.0, abs=0.25)
    assert np.all(patch_grid_excess(volumes + 0.3 * seams.any(0), 8) > 5 * plain)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="no multiple"):
        patch_grid_excess(noise((1, 30, 32, 32)), 8)
    with pytest.raises(ValueError, match="shapes must agree"):
        coherence(noise((1, 8, 8, 8)), noise((2, 8, 8, 8)), 1.0)
    with pytest.raises(ValueError, match=r"\(B, 1, D, H, W\)"):
        radial_power(noise((8, 8, 8)), 1.0)


def test_the_phase_error_is_nothing_a_right_angle_or_a_half_turn() -> None:
    a, b = (torch.randn(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    assert np.abs(phase_error(3 * a + 1, a, 2.0)[1]).max() < 1e-2
    assert np.allclose(phase_error(-a, a, 2.0)[1], np.pi, atol=1e-2)
    unrelated = phase_error(b, a, 2.0)[1]
    assert abs(unrelated[2:].mean() - np.pi / 2) < 0.1
    with pytest.raises(ValueError, match="shapes must agree"):
        phase_error(a, b[:2], 2.0)


def test_a_wave_stands_twice_in_the_spectrum_of_its_slice() -> None:
    x = torch.arange(24.0)
    volume = torch.cos(2 * np.pi * x / 4)[:, None, None].expand(24, 20, 10)[None]
    found = slice_log_power(volume + 0.0)
    assert found.shape == (24, 20)
    rows = np.argsort(found.max(1))[-2:]
    assert sorted(int(row) for row in rows) == [6, 18] and found[6].argmax() == 10
