"""Every loss against a slow, obvious float64 reference written here."""

import numpy as np
import pytest
import torch

from brainfm_lib.losses.prediction import prediction_loss
from brainfm_lib.losses.reconstruction import denormalise, reconstruction_loss
from brainfm_lib.losses.spectral import SpectralConfig, half_spectrum_weights, spectral_loss
from brainfm_lib.losses.vcr import covariance_loss, variance_loss

SHAPES = [(12, 16, 10), (9, 8, 7), (8, 8, 8)]


def slow_spectral(prediction, target, high_pass, mode):
    """The formula of the paper, over the full spectrum, mode by mode in NumPy."""
    total = 0.0
    for a, b in zip(prediction, target, strict=True):
        a, b = ((v - v.mean()) / (v.std(ddof=1) + 1e-6) for v in (a[0], b[0]))
        axes = np.meshgrid(*(np.fft.fftfreq(n) for n in a.shape), indexing="ij")
        radius = np.sqrt(sum(axis**2 for axis in axes))
        keep = radius / radius.max() >= high_pass
        norm = "backward" if mode == "logmag" else "ortho"
        fa, fb = (np.fft.fftn(v, norm=norm) * keep for v in (a, b))
        if mode == "logmag":
            total += np.mean((np.log(1 + np.abs(fa) + 1e-6) - np.log(1 + np.abs(fb) + 1e-6)) ** 2)
        elif mode == "magnitude":
            total += np.mean((np.abs(fa) - np.abs(fb)) ** 2)
        else:
            total += np.mean(np.abs(fa - fb) ** 2)
    return total / len(target)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["logmag", "magnitude", "complex"])
@pytest.mark.parametrize("high_pass", [0.0, 0.3, 0.5])
def test_spectral_loss_is_the_mean_over_the_full_spectrum(shape, mode, high_pass):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(2, 1, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = slow_spectral(a.numpy(), b.numpy(), high_pass, mode)
    assert float(spectral_loss(a, b, high_pass=high_pass, mode=mode)) == pytest.approx(expected, rel=1e-6)
    narrow = float(spectral_loss(a.float(), b.float(), high_pass=high_pass, mode=mode))
    assert narrow == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_hermitian_weights_count_every_kept_mode_once(shape):
    axes = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    kept = (radius / radius.max() >= 0.3).mean()
    assert float(half_spectrum_weights(shape, 0.3, torch.device("cpu")).double().sum()) == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize("mode", ["logmag", "magnitude", "complex"])
def test_spectral_gradient_is_right(mode):
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(1, 1, 4, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    a.requires_grad_(True)
    # the weights are float32, which bounds the numerical derivative
    assert torch.autograd.gradcheck(lambda x: spectral_loss(x, b, mode=mode), a, atol=1e-5)


def test_spectral_gradient_is_finite_on_constant_volumes_and_under_autocast():
    constant = torch.zeros(2, 1, 8, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = spectral_loss(constant, torch.ones(2, 1, 8, 8, 8))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(constant.grad).all()


def test_spectral_loss_does_not_see_phase_in_logmag_but_does_in_complex():
    a = torch.randn(1, 1, 8, 8, 8)
    shifted = a.roll((2, 3, 1), dims=(-3, -2, -1))
    assert float(spectral_loss(shifted, a)) < 1e-8
    assert float(spectral_loss(shifted, a, mode="complex")) > 0.5


def test_ramp_and_schedule():
    config = SpectralConfig(weight=0.5, ramp_start=0.1, ramp_end=0.2, every=5)
    assert config.weight_at(50, 1000) == 0.0
    assert config.weight_at(150, 1000) == pytest.approx(0.25)
    assert config.weight_at(151, 1000) == 0.0
    assert config.weight_at(900, 1000) == 0.5


def test_vcr_terms_against_loops():
    z = torch.randn(5, 7, 4, dtype=torch.float64) * 0.5
    hinge = [max(0.0, 1 - np.sqrt(z[:, t, d].numpy().var(ddof=1) + 1e-4)) for t in range(7) for d in range(4)]
    assert float(variance_loss(z)) == pytest.approx(np.mean(hinge), rel=1e-8)
    pooled = z.mean(1).numpy()
    expected = np.mean([max(0.0, 1 - np.sqrt(pooled[:, d].var(ddof=1) + 1e-4)) for d in range(4)])
    assert float(variance_loss(z, pooled=True)) == pytest.approx(expected, rel=1e-8)
    c = np.cov(z.reshape(-1, 4).numpy().T)
    assert float(covariance_loss(z)) == pytest.approx((c**2).sum() / 4 - (np.diag(c) ** 2).sum() / 4, rel=1e-8)


def test_vcr_gradients_and_degenerate_batches():
    z = (torch.randn(3, 4, 5, dtype=torch.float64) * 0.3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: variance_loss(x) + covariance_loss(x), z)
    constant = torch.zeros(3, 4, 5, requires_grad=True)
    (variance_loss(constant) + covariance_loss(constant)).backward()
    assert torch.isfinite(constant.grad).all()
    with pytest.raises(ValueError, match="at least two volumes"):
        variance_loss(torch.randn(1, 4, 5))


def test_reconstruction_and_prediction_losses():
    a, b = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert float(reconstruction_loss(a, b)) == pytest.approx(((a - b).numpy() ** 2).mean() / 2, rel=1e-6)
    assert float(prediction_loss(a, b)) == pytest.approx(np.abs((a - b).numpy()).mean(), rel=1e-6)
    normal = (b - b.mean(-1, keepdim=True)) / (b.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = ((a - normal).numpy() ** 2).mean() / 2
    assert float(reconstruction_loss(a, b, normalise_patches=True)) == pytest.approx(expected, rel=1e-6)


def test_normalised_predictions_come_back_to_the_volumes_units():
    target = 3 + 2 * torch.randn(2, 5, 64)
    predicted = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert reconstruction_loss(predicted, target, normalise_patches=True) < 1e-10
    torch.testing.assert_close(denormalise(predicted, target), target)
