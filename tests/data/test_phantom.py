"""Phantoms: the same bytes however they are asked for, no folds, the stored convention, and a signal that is known."""

import numpy as np
import pytest
import torch

from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.phantom import CONDITIONS, PhantomSpec, describe, ideal_auroc, render
from brainfm_lib.data.phantom.deform import exponentiate, jacobian_determinant, random_velocity
from brainfm_lib.errors import InputError

GRID = Geometry((32, 32, 32), 5.75)
SPEC = PhantomSpec(seed=5, subjects=6, scans_per_subject=2, conditions=(("NC", 0.5), ("4", 0.5)))


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
    assert measured == pytest.approx(ideal_auroc(a, b, spec), abs=0.02)
    assert set(CONDITIONS) >= {a, b}


def test_mistakes_are_named():
    with pytest.raises(InputError, match="condition"):
        PhantomSpec(conditions=(("flu", 1.0),))
    with pytest.raises(InputError, match="contrast"):
        PhantomSpec(contrasts=("DWI",))
