"""Every loss against a slow, obvious float64 reference written here."""

import numpy as np
import pytest
import torch

from brainfm_lib.losses import spectral
from brainfm_lib.losses.prediction import prediction_loss
from brainfm_lib.losses.reconstruction import denormalise, reconstruction_loss
from brainfm_lib.losses.sigreg import draw_directions, sigreg_loss
from brainfm_lib.losses.spectral import SpectralConfig, half_spectrum_weights, spectral_loss, standardise
from brainfm_lib.losses.vcr import covariance_loss, variance_loss

SHAPES = [(12, 16, 10), (9, 8, 7), (8, 8, 8)]
MODES = ["logmag", "magnitude", "complex", "focal"]


def slow_spectral(prediction, target, high_pass, mode, band="high", kept_only=False):
    """The formula of the paper, over the full spectrum, mode by mode in NumPy."""
    total = 0.0
    for a, b in zip(prediction, target, strict=True):
        a, b = ((v - v.mean()) / (v.std(ddof=1) + 1e-6) for v in (a[0], b[0]))
        axes = np.meshgrid(*(np.fft.fftfreq(n) for n in a.shape), indexing="ij")
        radius = np.sqrt(sum(axis**2 for axis in axes))
        keep = radius / radius.max() >= high_pass
        keep = keep if band == "high" else ~keep
        fa, fb = (np.fft.fftn(v, norm="backward" if mode == "logmag" else "ortho") * keep for v in (a, b))
        if mode == "logmag":
            error = (np.log(1 + np.abs(fa) + 1e-6) - np.log(1 + np.abs(fb) + 1e-6)) ** 2
        elif mode == "magnitude":
            error = (np.abs(fa) - np.abs(fb)) ** 2
        elif mode == "complex":
            error = np.abs(fa - fb) ** 2
        else:
            error = np.abs(fa - fb) / np.abs(fa - fb).max() * np.abs(fa - fb) ** 2
        total += error.sum() / (keep.sum() if kept_only else keep.size)
    return total / len(target)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("band", "high_pass"), [("high", 0.0), ("high", 0.3), ("high", 0.5), ("low", 0.3)])
@pytest.mark.parametrize("kept_only", [False, True])
def test_spectral_loss_is_the_mean_over_the_full_spectrum(shape, mode, band, high_pass, kept_only):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(2, 1, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    settings = {"high_pass": high_pass, "mode": mode, "band": band, "kept_only": kept_only}
    expected = slow_spectral(a.numpy(), b.numpy(), **settings)
    assert float(spectral_loss(a, b, **settings)) == pytest.approx(expected, rel=1e-8)
    assert float(spectral_loss(a.float(), b.float(), **settings)) == pytest.approx(expected, rel=1e-5)
    one = float(spectral_loss(a[:1], b[:1], **settings))  # a batch of one is fine: nothing is compared across samples
    assert one == pytest.approx(slow_spectral(a[:1].numpy(), b[:1].numpy(), **settings), rel=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_hermitian_weights_count_every_kept_mode_once(shape):
    axes = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    kept = (radius / radius.max() >= 0.3).mean()
    weights = half_spectrum_weights(shape, 0.3, torch.device("cpu"), torch.float64)
    assert float(weights.sum()) == pytest.approx(kept, rel=1e-12)
    low = half_spectrum_weights(shape, 0.3, torch.device("cpu"), torch.float64, band="low")
    assert float(low.sum()) == pytest.approx(1 - kept, rel=1e-12)
    assert not (low.bool() & weights.bool()).any()


def test_the_high_pass_keeps_the_shares_of_modes_that_are_stated():
    for high_pass, share in [(0.3, 0.927), (0.5, 0.66), (0.7, 0.188)]:
        weights = half_spectrum_weights((144, 144, 144), high_pass, torch.device("cpu"), torch.float64)
        assert float(weights.sum()) == pytest.approx(share, abs=2e-3)


@pytest.mark.parametrize("kept_only", [False, True])
@pytest.mark.parametrize("mode", ["logmag", "magnitude", "complex"])
def test_spectral_gradient_is_right(mode, kept_only):
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(2, 1, 4, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    a.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: spectral_loss(x, b, mode=mode, kept_only=kept_only), a)


def test_focal_gradient_treats_its_weight_as_a_constant():
    """By hand: with the weight held fixed, the loss is a weighted `complex` one."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(1, 1, 4, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    a.requires_grad_(True)
    spectral_loss(a, b, mode="focal", high_pass=0.0).backward()
    difference = torch.fft.fftn(standardise(a) - standardise(b), dim=(-3, -2, -1), norm="ortho")
    weight = difference.detach().abs() / difference.detach().abs().max()
    expected = torch.autograd.grad((weight * difference.abs() ** 2).mean(), a)[0]
    torch.testing.assert_close(a.grad, expected, rtol=1e-8, atol=1e-12)
    same = b.clone().requires_grad_(True)
    loss = spectral_loss(same, b, mode="focal")  # the largest difference is zero
    loss.backward()
    assert float(loss) == 0 and torch.isfinite(same.grad).all()


@pytest.mark.parametrize("mode", MODES)
def test_spectral_gradient_is_finite_where_patches_are_all_zero(mode):
    target = torch.zeros(2, 1, 16, 16, 16)
    target[0, :, :8] = torch.rand(8, 16, 16)  # half of it air; the second volume is empty
    prediction = target.clone()
    prediction[:, :, :8, :8, :8] = 0.0
    prediction.requires_grad_(True)
    loss = spectral_loss(prediction, target, mode=mode)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(prediction.grad).all()


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
    assert config.weight_at(49, 1000) == config.weight_at(99, 1000) == 0.0
    assert config.weight_at(149, 1000) == pytest.approx(0.245 / 5)
    assert config.weight_at(150, 1000) == 0.0
    assert config.weight_at(899, 1000) == pytest.approx(0.5 / 5)
    authors = SpectralConfig(weight=1.0, ramp_start=0.0, ramp_end=0.0, every=10)
    assert sum(authors.weight_at(step, 1000) for step in range(1000)) / 1000 == pytest.approx(0.01)


def test_settings_that_are_none_are_refused():
    for wrong in ({"mode": "phase"}, {"band": "middle"}, {"high_pass": 1.0}, {"every": 0}):
        with pytest.raises(ValueError, match="spectral"):
            SpectralConfig(**wrong)
    with pytest.raises(ValueError, match="no mode"):
        half_spectrum_weights((8, 8, 8), 0.0, torch.device("cpu"), band="low")


def test_vcr_terms_against_loops():
    z = torch.randn(5, 7, 4, dtype=torch.float64) * 0.5
    hinge = [max(0.0, 1 - np.sqrt(z[:, t, d].numpy().var(ddof=1) + 1e-4)) for t in range(7) for d in range(4)]
    assert float(variance_loss(z)) == pytest.approx(np.mean(hinge), rel=1e-8)
    pooled = z.mean(1).numpy()
    expected = np.mean([max(0.0, 1 - np.sqrt(pooled[:, d].var(ddof=1) + 1e-4)) for d in range(4)])
    assert float(variance_loss(z, pooled=True)) == pytest.approx(expected, rel=1e-8)
    c = np.cov(z.reshape(-1, 4).numpy().T)
    assert float(covariance_loss(z)) == pytest.approx((c**2).sum() / 4 - (np.diag(c) ** 2).sum() / 4, rel=1e-8)
    for term, options in [(variance_loss, {}), (variance_loss, {"pooled": True}), (covariance_loss, {})]:
        alone = float(term(z.float(), gathered=True, **options))  # one process: gathered changes nothing
        assert alone == pytest.approx(float(term(z, **options)), rel=1e-5)


def test_vcr_gradients_and_degenerate_batches():
    z = (torch.randn(3, 4, 5, dtype=torch.float64) * 0.3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: variance_loss(x) + covariance_loss(x), z)
    assert torch.autograd.gradcheck(lambda x: variance_loss(x, pooled=True), z)
    constant = torch.zeros(3, 4, 5, requires_grad=True)
    (variance_loss(constant) + covariance_loss(constant)).backward()
    assert torch.isfinite(constant.grad).all()
    with pytest.raises(ValueError, match="at least two volumes"):
        variance_loss(torch.randn(1, 4, 5))
    with pytest.raises(ValueError, match="at least two latents"):
        covariance_loss(torch.randn(1, 1, 5))
    assert torch.isfinite(covariance_loss(torch.randn(1, 4, 5)))  # several tokens of one volume do have a covariance


def test_reconstruction_and_prediction_losses():
    a, b = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert float(reconstruction_loss(a, b)) == pytest.approx(((a - b).numpy() ** 2).mean() / 2, rel=1e-6)
    assert float(prediction_loss(a, b)) == pytest.approx(np.abs((a - b).numpy()).mean(), rel=1e-6)
    normal = (b - b.mean(-1, keepdim=True)) / (b.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = ((a - normal).numpy() ** 2).mean() / 2
    assert float(reconstruction_loss(a, b, normalise_patches=True)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("normalise_patches", [False, True])
def test_reconstruction_and_prediction_losses_in_float64(normalise_patches):
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(2, 3, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    target = b.numpy()
    if normalise_patches:
        target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    expected = np.mean((a.numpy() - target) ** 2) / 2
    options = {"normalise_patches": normalise_patches}
    assert float(reconstruction_loss(a, b, **options)) == pytest.approx(expected, rel=1e-8)
    assert float(prediction_loss(a, b)) == pytest.approx(np.abs(a.numpy() - b.numpy()).mean(), rel=1e-8)
    a.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: reconstruction_loss(x, b, **options), a)
    assert torch.autograd.gradcheck(lambda x: prediction_loss(x, b), a)
    empty = torch.zeros(1, 2, 8, requires_grad=True)  # patches of air
    reconstruction_loss(empty, torch.zeros(1, 2, 8), **options).backward()
    assert torch.isfinite(empty.grad).all()


def test_normalised_predictions_come_back_to_the_volumes_units():
    target = 3 + 2 * torch.randn(2, 5, 64)
    predicted = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert reconstruction_loss(predicted, target, normalise_patches=True) < 1e-10
    torch.testing.assert_close(denormalise(predicted, target), target)


def test_latents_without_gradient_count_as_if_they_had_one():
    z, fixed = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True), torch.randn(4, 6, 5, dtype=torch.float64)
    apart, together = covariance_loss(z, fixed), covariance_loss(torch.cat([z, fixed], dim=1))
    torch.testing.assert_close(apart, together)
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (apart, together)]
    torch.testing.assert_close(*gradients)


def test_the_compiled_spectral_loss_is_the_same(monkeypatch):
    compiled = torch.compile(spectral.log_magnitude_error, backend="aot_eager", dynamic=False)
    found = []
    for arithmetic in (spectral.log_magnitude_error, compiled):
        monkeypatch.setattr(spectral, "_fused", arithmetic)
        torch.manual_seed(0)
        volumes = torch.randn(2, 1, 8, 6, 10, dtype=torch.float64, requires_grad=True)
        loss = spectral_loss(volumes, torch.randn_like(volumes))
        found.append((loss, torch.autograd.grad(loss, volumes)[0]))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def slow_sigreg(z, directions):
    """N ∫ |φ(t) - exp(-t²/2)|² exp(-t²/2) dt along each direction, over both halves of the axis."""
    knots = np.linspace(-3, 3, 33)
    values = []
    for u in directions.T:
        x = z @ u
        distance = [abs(np.mean([np.exp(1j * t * value) for value in x]) - np.exp(-(t**2) / 2)) ** 2 for t in knots]
        values.append(len(z) * np.trapezoid(distance * np.exp(-(knots**2) / 2), knots))
    return np.mean(values)


def test_sigreg_against_loops():
    generator = torch.Generator().manual_seed(0)
    for n, dim, count in ((2, 3, 1), (7, 5, 6)):
        z = 1.7 * torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.3
        directions = draw_directions(dim, count, generator).double()
        torch.testing.assert_close(directions.norm(dim=0), torch.ones(count).double(), atol=1e-6, rtol=0)
        expected = slow_sigreg(z.numpy(), directions.numpy())
        assert float(sigreg_loss(z, directions)) == pytest.approx(expected, rel=1e-8)
        assert float(sigreg_loss(z.float(), directions)) == pytest.approx(expected, rel=1e-5)
        leaf = z.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, d=directions: sigreg_loss(x, d), leaf)


def test_sigreg_tells_collapse_shift_and_scale_from_a_normal_distribution():
    generator = torch.Generator().manual_seed(1)
    normal, directions = torch.randn(512, 8, generator=generator), draw_directions(8, 64, generator)
    good = sigreg_loss(normal, directions)
    for bad in (torch.zeros(512, 8), normal + 1, 2 * normal, normal / 2, normal[:, :1].expand(-1, 8)):
        assert sigreg_loss(bad, directions) > 10 * good
    with pytest.raises(ValueError, match="at least two volumes"):
        sigreg_loss(normal[:1], directions)
    constant = torch.zeros(4, 8, requires_grad=True)
    sigreg_loss(constant, directions).backward()
    assert torch.isfinite(constant.grad).all()
