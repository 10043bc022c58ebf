"""Duplicates, contradictions and confounders, planted and found."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brainfm_lib.data.audit import confounding, covariates, duplicates, label_conflicts, torn_pairs
from brainfm_lib.data.cohort import describe_cohort
from brainfm_lib.data.fingerprint import SAME, near_pairs
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.store import open_volumes
from tests.data.scans import save_scan

GRID = Geometry((24, 28, 26), 8.0)


def textured(seed, shape=(44, 52, 48)):
    """A head with coarse structure of its own, as heads have."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum((a / 0.8) ** 2 for a in axes) < 1
    coarse = gaussian_filter(rng.standard_normal(shape), 4)
    return np.where(inside, 300 + 60 * coarse / coarse.std(), 0).astype(np.float32)


@pytest.fixture
def volumes(tmp_path, make_manifest, monkeypatch):
    """Six subjects; then copies: saved as integers, rescaled, and stored in another order of axes."""
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))
    affine = np.diag([4.0, 4, 4, 1])
    names = []
    for seed in range(6):
        names.append((f"s{seed}.nii.gz", f"S{seed}"))
        save_scan(tmp_path / names[-1][0], textured(seed), affine)
    data = textured(0)
    nib.Nifti1Image(np.round(data).astype(np.int16), affine).to_filename(tmp_path / "integers.nii")
    nib.Nifti1Image(data * 17.5 + 3 * (data > 0), affine).to_filename(tmp_path / "rescaled.nii.gz")
    turned = nib.Nifti1Image(textured(1), affine)
    turned.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])).to_filename(tmp_path / "turned.nii.gz")
    names += [("integers.nii", "X0"), ("rescaled.nii.gz", "S0"), ("turned.nii.gz", "X1")]
    rows = "\n".join(f"{name},{subject}" for name, subject in names)
    (tmp_path / "scans.csv").write_text(f"path,subject_id\n{rows}\n")
    manifest = make_manifest(cohorts={"c": {"kind": "table", "table": "scans.csv", "contrast": "T1w"}})
    return open_volumes(describe_cohort(manifest, "c"), GRID, progress=False)


def test_copies_are_found_however_they_were_saved_and_nothing_else(volumes):
    pairs = duplicates({"c": volumes})
    found = {frozenset((a.removeprefix("c/"), b.removeprefix("c/"))) for a, b in zip(pairs["first"], pairs["second"])}
    assert found == {
        frozenset(pair) for pair in (("s0", "integers"), ("s0", "rescaled"), ("integers", "rescaled"), ("s1", "turned"))
    }
    assert pairs["distance"].max() < SAME / 2
    assert pairs["same_subject"].sum() == 1 and len(pairs) == 4


def test_a_copy_under_another_name_is_torn_and_contradicts(volumes):
    pairs = duplicates({"c": volumes})
    side = {"c/s0": "train", "c/integers": "test", "c/s1": "train", "c/turned": "train"}
    torn = torn_pairs(side, pairs)
    assert torn[["first_side", "second_side"]].to_numpy().tolist() in ([["train", "test"]], [["test", "train"]])
    table = pd.DataFrame({"scan_uid": ["c/s1", "c/turned", "c/s0", "c/integers"], "label": [0, 1, 1, 1]})
    conflicts = label_conflicts(table, pairs)
    assert len(conflicts) == 1 and set(conflicts.iloc[0][["first", "second"]]) == {"c/s1", "c/turned"}


def test_the_index_finds_exactly_the_pairs_that_trying_all_finds():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((300, 512)).astype(np.float32)
    prints = np.concatenate([base, base[:40] + 0.02 * rng.standard_normal((40, 512)), base[:5]]).astype(np.float32)
    prints /= np.linalg.norm(prints, axis=1, keepdims=True)
    pairs = near_pairs(prints, within=0.05)
    distance = np.linalg.norm(prints[:, None] - prints[None], axis=2)
    slow = {(i, j) for i, j in zip(*np.nonzero(distance <= 0.05)) if i < j}
    assert set(zip(pairs["first"], pairs["second"])) == slow and len(slow) >= 45
    assert np.allclose(pairs["distance"], distance[pairs["first"], pairs["second"]], atol=1e-6)
    assert near_pairs(prints[:1]).empty


def test_confounders_are_told_from_covariates_that_say_nothing():
    rng = np.random.default_rng(1)
    n = 200
    label = rng.integers(0, 2, n)
    table = pd.DataFrame({"scan_uid": range(n), "subject_id": [f"s{i}" for i in range(n)], "label": label})
    given = pd.DataFrame(
        {
            "site": np.where(label == 1, "A", rng.choice(["A", "B"], n)),
            "age": np.where(rng.random(n) < 0.1, np.nan, 60 + 10 * rng.standard_normal(n)),
            "sex": rng.choice(["M", "F"], n),
            "contrast": "T1w",
        }
    )
    found = confounding(table, given).set_index("covariate")
    assert "contrast" not in found.index, "a covariate with one value tells nothing"
    exact = 0.5 + 0.5 * (given["site"][label == 0] == "B").mean()  # AUROC of a two-valued score
    assert abs(found.loc["site", "auroc"] - exact) < 0.03 and found.loc["site", "low"] > 0.6
    for name in ("age", "sex"):
        assert found.loc[name, "low"] < 0.5 < found.loc[name, "high"] + 0.06
    three = table.assign(label=rng.integers(0, 3, n))
    assert 0.35 < confounding(three, given[["age"]])["auroc"].iloc[0] < 0.65
    assert confounding(table.iloc[:5], given.iloc[:5]).empty, "too few subjects"


def test_covariates_include_the_volume_of_the_brain(volumes):
    table = covariates(volumes, [0, 3])
    ellipsoid = 4 / 3 * np.pi * np.prod(0.8 * np.array([43, 51, 47]) * 4 / 2) / 1000  # ml
    assert np.abs(table["brain volume"] / ellipsoid - 1).max() < 0.1
    assert {"site", "contrast", "age", "sex"} <= set(table)
