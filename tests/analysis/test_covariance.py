import numpy as np
import pandas as pd
import pytest
import torch

from brainfm_lib.analysis.covariance import (
    alpha_req,
    debiased_cka,
    eigenspectrum,
    mean_abs_correlation,
    participation_ratio,
    rank_measures,
    rankme,
    remove_position_mean,
    variance_explained,
)
from brainfm_lib.analysis.latents import explained_table, measure_latents, principal_map


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def rotation(d, seed=3):
    return np.linalg.qr(noise(d, d, seed=seed))[0]


def planted(eigenvalues, n=400, seed=0):
    """Features (n, D) whose covariance has exactly these eigenvalues."""
    x = noise(n, len(eigenvalues), seed=seed)
    u = np.linalg.qr(x - x.mean(0))[0]
    return u * np.sqrt(np.asarray(eigenvalues) * (n - 1)) @ rotation(len(eigenvalues))


@pytest.mark.parametrize("shape", [(300, 20), (20, 300)])
def test_eigenspectrum_and_rankme_equal_the_svd(shape):
    x = noise(*shape) + 1
    centred = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(eigenspectrum(x), centred**2 / (len(x) - 1), rtol=1e-8, atol=1e-10)
    p = np.linalg.svd(x, compute_uv=False)
    p /= p.sum()
    assert rankme(x, centred=False) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_isotropic_features_have_full_rank():
    x = noise(200_000, 12)
    assert rankme(x, centred=True) == pytest.approx(12, rel=1e-3)
    assert participation_ratio(x) == pytest.approx(12, rel=1e-3)


def test_centring_matters():
    x = noise(500, 50) + 100
    assert rankme(x, centred=False) < 5 < 45 < rankme(x, centred=True)


def test_planted_spectra_are_recovered():
    eigenvalues = np.arange(1.0, 101) ** -1.3
    x = planted(eigenvalues)
    np.testing.assert_allclose(eigenspectrum(x), eigenvalues, rtol=1e-8)
    assert alpha_req(x, ranks=(1, 100)) == pytest.approx(1.3)
    assert participation_ratio(x) == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def test_collapsed_features_have_rank_one_or_none():
    line = np.outer(noise(50), noise(30))
    assert rankme(line, centred=True) == pytest.approx(1)
    assert participation_ratio(line) == pytest.approx(1)
    assert np.isnan(alpha_req(line))
    assert rankme(np.ones((50, 30)), centred=True) == 0
    assert participation_ratio(np.ones((50, 30))) == 0


def test_mean_abs_correlation_equals_numpy_and_ignores_constant_features():
    x = noise(100, 8) @ rotation(8) * np.arange(1, 9)
    x[:, 1] += x[:, 0]
    c = np.corrcoef(x.T)
    expected = np.abs(c[~np.eye(8, dtype=bool)]).mean()
    assert mean_abs_correlation(x) == pytest.approx(expected)
    assert mean_abs_correlation(np.c_[x, np.full(100, 7.0)]) == pytest.approx(expected)
    assert np.isnan(mean_abs_correlation(np.ones((10, 3))))


def test_cka_of_unrelated_features_is_zero_even_when_they_are_wide():
    values = [debiased_cka(noise(60, 500, seed=2 * s), noise(60, 400, seed=2 * s + 1)) for s in range(40)]
    assert np.mean(values) == pytest.approx(0, abs=0.02)


def test_cka_is_invariant_to_rotation_scale_and_offset():
    x = noise(80, 20) * np.arange(1, 21)
    assert debiased_cka(x, 3 * x @ rotation(20) + 5) == pytest.approx(1)
    y = x[:, :5] + noise(80, 5, seed=9)
    assert debiased_cka(x @ rotation(20), y) == pytest.approx(debiased_cka(x, y))


def test_position_codes_are_removed():
    tokens = noise(16, 10, 4)
    code = 50 * noise(1, 10, 4, seed=2)
    np.testing.assert_allclose(remove_position_mean(tokens + code), tokens - tokens.mean(0), atol=1e-12)
    assert torch.is_tensor(remove_position_mean(torch.ones(2, 3, 4)))


def test_rank_measures_collects_them_all():
    x = torch.from_numpy(noise(90, 40)).float()
    measures = rank_measures(x)
    assert measures["rankme_centred"] == pytest.approx(rankme(x, centred=True))
    assert measures["rankme_uncentred"] == pytest.approx(rankme(x, centred=False))
    assert measures["alpha_req"] == pytest.approx(alpha_req(x))
    assert measures["participation_ratio"] == pytest.approx(participation_ratio(x))
    assert measures["mean_abs_correlation"] == pytest.approx(mean_abs_correlation(x))


def test_bad_features_are_named():
    with pytest.raises(ValueError, match="not finite"):
        rankme(np.full((4, 2), np.nan), centred=True)
    with pytest.raises(ValueError, match="two samples"):
        eigenspectrum(np.ones((1, 3)))


def test_the_share_of_variance_that_is_not_the_positions() -> None:
    rng = np.random.default_rng(0)
    place, brain = rng.standard_normal((1, 50, 16)), rng.standard_normal((400, 50, 16))
    table = measure_latents((3 * place + brain).astype(np.float32))[0].set_index("level")
    assert table.loc["tokens", "variance_share"] == 1
    assert abs(table.loc["tokens, position removed", "variance_share"] - 1 / (1 + 9 * place.var())) < 0.01


def test_variance_between_groups_is_what_was_planted_and_none_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(400) % 4
    centres = rng.standard_normal((4, 30))
    features = centres[groups] + rng.standard_normal((400, 30))
    between = centres.var(0, ddof=0).sum()
    assert variance_explained(features, groups) == pytest.approx(between / (between + 30), abs=0.03)
    assert abs(variance_explained(rng.standard_normal((400, 30)), groups)) < 0.01
    assert np.isnan(variance_explained(features, np.zeros(400))) and np.isnan(
        variance_explained(features, np.arange(400))
    )


def test_intervals_of_explained_variance_hold_the_truth_where_groups_say_nothing_or_a_little() -> None:
    """Plain percentiles never do for eight groups without effect: a sample drawn again explains more than the first."""
    centres = np.random.default_rng(5).standard_normal((8, 24))
    for effect, truth in ((0.0, 0.0), (0.5, 0.5**2 * centres.var(0).mean() / (1 + 0.5**2 * centres.var(0).mean()))):
        held = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            groups = rng.integers(8, size=80)
            scans = pd.DataFrame({"subject_id": np.arange(80), "site": groups.astype(str)})
            row = explained_table(rng.standard_normal((80, 24)) + effect * centres[groups], scans, draws=100).iloc[0]
            assert row["low"] <= row["estimate"] <= row["high"]
            held.append(row["low"] <= truth <= row["high"])
        assert np.mean(held) > 0.8


def test_scans_of_one_person_make_no_group_differ() -> None:
    """Forty people of six scans each, every one himself, at ten sites that do nothing."""
    above, estimates = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        person = np.repeat(np.arange(40), 6)
        scans = pd.DataFrame({"subject_id": person, "site": (rng.permutation(40) % 10)[person].astype(str)})
        pooled = rng.standard_normal((40, 16))[person] + 0.3 * rng.standard_normal((240, 16))
        row = explained_table(pooled, scans, draws=60).iloc[0]
        estimates.append(row["estimate"])
        above.append(row["low"] > 0)
    assert abs(np.mean(estimates)) < 0.02 and np.mean(above) < 0.15


def test_what_is_not_known_of_a_scan_is_no_group() -> None:
    """Two cohorts that differ; one knows its subjects' sexes, which say nothing, and only the other has diagnoses."""
    rng = np.random.default_rng(0)
    cohort = np.arange(400) // 200
    scans = pd.DataFrame(
        {
            "subject_id": [f"s{i}" for i in range(400)],
            "cohort": np.array(["a", "b"])[cohort],
            "sex": np.where(cohort == 0, np.array(["F", "M"])[rng.integers(2, size=400)], ""),
            "diagnosis": [None] * 200 + ["NC"] * 100 + ["AD"] * 100,
            "site": [""] * 400,
        }
    )
    found = explained_table(rng.standard_normal((400, 8)) + 2 * cohort[:, None], scans, draws=50).set_index("factor")
    assert set(found.index) == {"cohort", "sex", "diagnosis"}
    assert found.loc["cohort", "estimate"] > 0.4 and (found["groups"] == 2).all()
    assert abs(found.loc["sex", "estimate"]) < 0.02 and abs(found.loc["diagnosis", "estimate"]) < 0.02


def test_explained_table_asks_what_the_scans_have_and_resamples_subjects() -> None:
    rng = np.random.default_rng(1)
    scans = pd.DataFrame({"subject_id": np.arange(120) // 2, "contrast": np.arange(120) % 3, "site": ["one"] * 120})
    pooled = rng.standard_normal((120, 8)) + 2 * (scans["contrast"].to_numpy() == 1)[:, None]
    found = explained_table(pooled, scans, draws=50)
    assert list(found["factor"]) == ["contrast"]
    row = found.iloc[0]
    assert 0.3 < row["low"] <= row["estimate"] <= row["high"] < 0.9
    drawn = principal_map(pooled, scans)
    assert abs(np.corrcoef(drawn["component_1"], scans["contrast"] == 1)[0, 1]) > 0.8 and drawn["share_1"].iloc[0] > 0.4
