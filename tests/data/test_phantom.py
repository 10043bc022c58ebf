"""Phantoms: the same bytes however they are asked for, no folds, the stored convention, and a signal that is known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from brainfm_lib.analysis.spectrum import radial_power
from brainfm_lib.data.cohort import describe_cohort
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.data.phantom import CONDITIONS, PhantomSpec, describe, dials, render
from brainfm_lib.data.phantom.deform import exponentiate, jacobian_determinant, random_velocity
from brainfm_lib.data.phantom.draws import draw
from brainfm_lib.data.phantom.ideal import ideal_auroc
from brainfm_lib.data.phantom.rendering import render_draws, single_threaded
from brainfm_lib.errors import InputError
from brainfm_lib.stats import auroc

GRID = Geometry((32, 32, 32), 5.75)
MIXED = (("NC", 0.3), ("4", 0.3), ("dimension-8-case", 0.4))
SPEC = PhantomSpec(seed=5, subjects=6, scans_per_subject=2, conditions=MIXED)


@pytest.fixture(scope="module")
def rendered():
    scans = describe(SPEC)
    return scans, render(SPEC, scans, GRID)


def test_any_order_and_batch_gives_the_same_bytes(rendered):
    scans, volumes = rendered
    assert torch.equal(render(SPEC, scans.iloc[[7, 2]], GRID), volumes[[7, 2]])
    assert torch.equal(render(SPEC, scans.iloc[[2]], GRID)[0], volumes[2])


def test_a_smaller_cohort_holds_the_first_subjects_of_a_larger_one():
    small, large = describe(SPEC), describe(PhantomSpec(**{**SPEC.__dict__, "subjects": 9}))
    assert large.iloc[: len(small)].equals(small)


def test_volumes_follow_the_stored_convention_and_stay_inside_the_grid(rendered):
    _, volumes = rendered
    foreground = volumes[volumes > 0]
    assert volumes.dtype == torch.float32 and torch.isfinite(volumes).all()
    assert foreground.min() >= 1e-3 and volumes.max() <= 1
    share = (volumes > 0).float().mean((1, 2, 3))
    assert share.min() > 0.1 and share.max() < 0.5
    for axis in (1, 2, 3):
        assert (volumes.select(axis, 0) > 0).float().mean() < 0.05


def test_the_same_subject_differs_between_scans_and_subjects_differ(rendered):
    scans, volumes = rendered
    assert not torch.equal(volumes[0], volumes[1])
    assert scans["subject_id"].nunique() == 6 and len(scans) == 12
    assert {"subject_id", "session", "scan", "contrast", "site", "age", "sex", "diagnosis", "severity"} <= set(scans)


@pytest.mark.parametrize("spacing", [2.0, 4.0])
def test_a_grid_with_a_coarser_lattice_gives_the_same_bytes_too(spacing):
    grid = Geometry((48, 40, 56), spacing)
    scans = describe(SPEC).iloc[:3]
    volumes = render(SPEC, scans, grid)
    assert torch.equal(render(SPEC, scans.iloc[[2, 0]], grid), volumes[[2, 0]])
    assert torch.isfinite(volumes).all() and volumes.max() <= 1 and (volumes > 0).any()


def test_a_finer_grid_shows_the_same_brain():
    fine, coarse = (render(SPEC, describe(SPEC).iloc[:4], Geometry((n,) * 3, 192 / n)) for n in (64, 32))
    averaged = torch.nn.functional.avg_pool3d(fine[:, None], 2)[:, 0]
    for a, b in zip(averaged, coarse, strict=True):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.9


def test_site_effect_sets_how_far_scanners_differ():
    bias = {}
    for effect in (0.0, 1.0):
        spec = dataclasses.replace(SPEC, subjects=60, sites=8, site_effect=effect, nuisance=1.0)
        sites = {site: draw(spec, i, 0) for i, site in enumerate(describe(spec)["site"][::2])}
        bias[effect] = np.std([d.scanner[:, 1].max() for d in sites.values()])
    assert bias[0.0] == 0 and bias[1.0] > 0.1


def test_deformations_do_not_fold():
    velocities = [random_velocity(np.random.default_rng(seed), 1.0) for seed in range(30)]
    determinant = jacobian_determinant(exponentiate(torch.from_numpy(np.stack(velocities))))
    assert determinant.min() > 0


@pytest.mark.parametrize(("a", "b"), [("NC", "AD"), ("NC", "MCI"), ("2", "4"), ("control", "autism")])
def test_ideal_auroc_is_that_of_the_latent(a, b):
    spec = PhantomSpec(subjects=4000, conditions=((a, 0.5), (b, 0.5)))
    scans = describe(spec)
    low, high = (scans.loc[scans["diagnosis"] == c, "severity"].to_numpy() for c in (a, b))
    measured = (high[:, None] > low[None]).mean()
    assert measured == pytest.approx(ideal_auroc([[a], [b]], spec), abs=0.02)
    assert set(CONDITIONS) >= {a, b}


def test_the_ideal_of_three_classes_is_that_of_likelihood_ratios():
    spec = PhantomSpec(subjects=20_000, conditions=(("2", 0.4), ("3", 0.3), ("4", 0.3)))
    classes, rng = [["2"], ["3"], ["4"]], np.random.default_rng(0)
    labels = rng.choice(3, 40_000, p=[0.4, 0.3, 0.3])
    means = np.array([CONDITIONS[name].mean for name in "234"])
    severity = means[labels] + rng.standard_normal(len(labels))
    density = np.array([0.4, 0.3, 0.3]) * np.exp(-((severity[:, None] - means) ** 2) / 2)
    posterior = density / density.sum(axis=1, keepdims=True)
    assert auroc(labels, posterior) == pytest.approx(ideal_auroc(classes, spec), abs=0.01)


@pytest.mark.parametrize("setting", dials.FACTORS)
def test_no_setting_of_a_dial_changes_the_ideal_auroc(setting):
    rng, mine = np.random.default_rng(1), list(dials.FACTORS[setting])
    labels = np.arange(20_000) % 2
    means = [CONDITIONS[f"{setting}-{name}"].mean for name in ("control", "case")]
    factors = np.stack([dials.draw_factors(setting, means[y] + rng.standard_normal(), rng) for y in labels])
    stated = ndtr(dials.SEPARATION / 2**0.5)
    assert auroc(labels, factors[:, mine].sum(1)) == pytest.approx(stated, abs=0.01)
    assert ideal_auroc([[f"{setting}-control"], [f"{setting}-case"]], PhantomSpec()) == pytest.approx(stated, abs=1e-6)
    # each of the d factors tells as much as the others, and together they fill d directions
    alone = ndtr(dials.SEPARATION / np.sqrt(2 * len(mine)))
    assert np.allclose([auroc(labels, factors[:, k]) for k in mine], alone, atol=0.015)
    within = factors - np.stack([factors[labels == y].mean(0) for y in (0, 1)])[labels]
    assert np.abs(np.cov(within[:, mine].T) - np.eye(len(mine))).max() < 0.05
    assert np.linalg.matrix_rank(within, tol=1e-6) == len(mine) and not np.delete(factors, mine, axis=1).any()


def test_a_population_carries_every_factor_and_none_more_than_another():
    rng = np.random.default_rng(2)
    factors = np.stack([dials.draw_factors("", rng.standard_normal(), rng) for _ in range(20_000)])
    assert np.abs(np.cov(factors.T) - np.eye(dials.COUNT)).max() < 0.05
    spec = PhantomSpec(seed=3, subjects=1, conditions=((dials.POPULATION, 1.0),))
    assert np.count_nonzero(draw(spec, 0, 0).factors) == dials.COUNT


@pytest.fixture(scope="module")
def noiseless():
    """A scan of the family "dial" whose factors are all 0."""
    spec = PhantomSpec(seed=3, subjects=1, conditions=(("dimension-1-control", 1.0),), contrasts=("T1w",))
    return dataclasses.replace(draw(spec, 0, 0), factors=np.zeros(dials.COUNT))


def image(scan):
    """(D, H, W) of one scan, computed as `render` does."""
    with single_threaded():
        return render_draws([scan], GRID)[0]


def with_factors(scan, factors):
    return dataclasses.replace(scan, factors=np.asarray(factors, float))


def test_the_frequency_dial_moves_the_frequency_of_the_signal(noiseless):
    plain = image(noiseless)
    centres = []
    for band in dials.FREQUENCIES:
        factors = np.zeros(dials.COUNT)
        factors[list(dials.FACTORS[f"frequency-{band}"])] = 1
        frequencies, power = radial_power((image(with_factors(noiseless, factors)) - plain)[None], 1.0)
        shells = power[0] * frequencies**2  # how much of the signal lies in each shell
        centres.append((frequencies * shells).sum() / shells.sum())
    assert np.allclose(centres, np.array(dials.FREQUENCIES) / 100, atol=0.035)
    assert np.diff(centres).min() > 0.03


def test_the_image_gives_the_factors_away(noiseless):
    """With everything else known, noise and texture add at most 2 % to the variance of any factor."""
    plain = image(noiseless).flatten()
    each = np.eye(dials.COUNT)
    slopes = torch.stack([image(with_factors(noiseless, row)).flatten() - plain for row in each], 1)
    solve = torch.linalg.inv((slopes.T @ slopes).double()).float() @ slopes.T
    estimates = []
    for seed in range(40):
        seeds = (1000 + seed, 2000 + seed, 3000 + seed, noiseless.seeds[3])
        noisy = image(dataclasses.replace(noiseless, seeds=seeds)).flatten()
        estimates.append((solve @ (noisy - plain)).numpy())
    added = np.var(estimates, axis=0)
    assert 0 < added.max() < 0.02


def test_mistakes_are_named():
    with pytest.raises(InputError, match="condition"):
        PhantomSpec(conditions=(("flu", 1.0),))
    with pytest.raises(InputError, match="contrast"):
        PhantomSpec(contrasts=("DWI",))


def test_the_manifest_of_the_dials_asks_for_every_setting():
    manifest = load_manifest(Path(__file__).parents[2] / "book/examples/dials.yaml")
    assert list(manifest.tasks) == list(dials.FACTORS) and not manifest.missing()
    for name in manifest.tasks:
        spec = describe_cohort(manifest, name, max_subjects=4).source
        assert {CONDITIONS[condition].setting for condition, _ in spec.conditions} == {name}
    everybody = describe_cohort(manifest, "dials-pretraining", max_subjects=48).scans
    assert set(everybody["diagnosis"]) == {dials.POPULATION}
